"""Seeds side by side: a seed alone equals that seed in a sweep, on any number of devices, with one trace."""

import chex
import jax
import numpy as np
import pytest

from stages.sweep import Sweep, mesh_for
from tests.conftest import tree_equal

ITERATIONS = 8


def play(env, config, hypers, seeds, devices):
    """Prefill and two chunks -> sweep, state, clock, last progress."""
    sweep = Sweep(env, config, hypers, mesh_for(len(seeds), jax.devices()[:devices]))
    state, clock, _ = sweep.prefill(sweep.init(seeds))
    for _ in range(2):
        state, clock, progress = sweep.advance(state, clock, ITERATIONS)
    return sweep, state, clock, progress


@pytest.fixture(scope="module")
def together(env, config, hypers):
    """Seeds 4 to 7 on one device."""
    return play(env, config, hypers, [4, 5, 6, 7], 1)


@pytest.fixture(scope="module")
def spread(env, config, hypers):
    """The same seeds, one on each of four devices."""
    return play(env, config, hypers, [4, 5, 6, 7], 4)


@pytest.fixture(scope="module")
def alone(env, config, hypers):
    """Seed 7 on its own."""
    return play(env, config, hypers, [7], 1)


def test_seed_alone_equals_that_seed_in_a_sweep(together, alone, config):
    _, many, clock, progress = together
    _, one, _, progress_one = alone
    steps = int(clock.step)
    assert steps >= 30
    np.testing.assert_array_equal(many.ring.action[3, :steps], one.ring.action[0, :steps])
    np.testing.assert_array_equal(many.ring.obs[3, :steps], one.ring.obs[0, :steps])
    pick = lambda tree, i: jax.tree.map(lambda x: np.asarray(x[i]), tree)
    chex.assert_trees_all_close(pick(progress, 3), pick(progress_one, 0), rtol=1e-4, atol=1e-4)


def test_seeds_differ(together):
    _, state, clock, _ = together
    actions = np.asarray(state.ring.action[:, : int(clock.step)])
    for i in range(4):
        for j in range(i):
            assert (actions[i] != actions[j]).any()


def test_devices_do_not_change_the_numbers(together, spread):
    _, one, clock, progress = together
    _, four, clock_four, progress_four = spread
    assert tree_equal(clock, clock_four)
    np.testing.assert_array_equal(one.ring.action, four.ring.action)
    chex.assert_trees_all_close(
        jax.tree.map(np.asarray, progress), jax.tree.map(np.asarray, progress_four), rtol=1e-4, atol=1e-4
    )


def test_seeds_are_spread_over_devices(spread):
    _, state, _, _ = spread
    assert len(state.agent.tasker.actor.head.out.weight.sharding.device_set) == 4


def test_advance_is_traced_once(together):
    assert together[0].traces["advance"] == 1


def test_state_is_donated(env, config, hypers):
    sweep = Sweep(env, config, hypers, mesh_for(2, jax.devices()[:1]))
    state, clock, _ = sweep.prefill(sweep.init([0, 1]))
    memory = sweep.compile(state, clock, ITERATIONS).memory_analysis()
    held = sum(x.nbytes for x in jax.tree.leaves(state) if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key))
    assert memory.alias_size_in_bytes >= held


def test_evaluation_is_repeatable_and_apart_from_training(together):
    sweep, state, _, _ = together
    first, lengths = sweep.evaluate(state, [4, 5, 6, 7], 0)
    again, _ = sweep.evaluate(state, [4, 5, 6, 7], 0)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(lengths, 10)
    assert set(np.unique(first)) <= {-1.0, 1.0}
    assert sweep.traces["evaluate"] == 1


@pytest.mark.parametrize(("seeds", "devices", "used"), [(32, 8, 8), (30, 8, 6), (7, 2, 1), (1, 4, 1), (3, 4, 3)])
def test_mesh_shares_seeds_out_evenly(seeds, devices, used):
    class Device:
        pass

    assert mesh_for(seeds, [Device() for _ in range(devices)]).size == used
