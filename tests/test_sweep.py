"""Seeds side by side: a seed alone equals that seed in a sweep, in any lanes, on any devices, with one trace."""

import dataclasses
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from stages import train
from stages.sweep import sweep as sweep_stage
from stages.sweep.rounds import Phase, prepare
from stages.sweep.sweep import CompiledPhase, in_lanes, mesh_for, over_seeds, vmap_width_of
from tests.conftest import pick, tree_equal

ITERATIONS = 8


def play(env, config, hypers, seeds, devices, lane=0):
    """A phase of its own, played -> the compiled phase, state, counters, last progress."""
    config = dataclasses.replace(config, vmap_width=lane)
    return replay(CompiledPhase(env, config, mesh_for(len(seeds), jax.devices()[:devices])), seeds, hypers)


def replay(compiled, seeds, hypers):
    """Prefill and two chunks -> the compiled phase, state, counters, last progress; compiled on its first time."""
    state, counters, _ = compiled.prefill(compiled.init(seeds, hypers))
    for _ in range(2):
        state, counters, progress = compiled.train_chunk(state, counters, ITERATIONS)
    return compiled, state, counters, progress


@pytest.fixture(scope="module")
def together(env, config, hypers):
    """Seeds 4 to 7 on one device, all at once: the plain form."""
    with mock.patch.object(sweep_stage, "CPU_VMAP_WIDTH", 0):
        return play(env, config, hypers, [4, 5, 6, 7], 1)


@pytest.fixture(scope="module")
def lanes(env, config, hypers):
    """The same seeds on one device, one after another."""
    return play(env, config, hypers, [4, 5, 6, 7], 1, lane=1)


@pytest.fixture(scope="module")
def pairs(env, config, hypers):
    """The same seeds on one device, at most three at once: two."""
    return play(env, config, hypers, [4, 5, 6, 7], 1, lane=3)


@pytest.fixture(scope="module")
def prepared(env, config):
    """(a phase of four seeds, two on each of two devices and one after another; bytes that its phase needs)."""
    compiled = CompiledPhase(env, config, mesh_for(4, jax.devices()[:2]))
    return compiled, prepare([Phase(compiled, ITERATIONS, 2)], 4, float("inf"))


@pytest.fixture(scope="module")
def spread(prepared, hypers):
    """The same seeds, in a phase that was compiled before."""
    return replay(prepared[0], [4, 5, 6, 7], hypers)


@pytest.fixture(scope="module")
def alone(env, config, hypers):
    """Seed 7 on its own."""
    return play(env, config, hypers, [7], 1)


def assert_same(one, other):
    """The same rows, to the bit, and numbers close to each other: weights to half an update's largest change."""
    (_, state, counters, progress), (_, other_state, other_clock, other_progress) = one, other
    assert tree_equal(counters, other_clock) and tree_equal(state.key, other_state.key)
    for name in ("obs", "action", "reward", "is_first", "stoch"):
        np.testing.assert_array_equal(getattr(state.ring, name), getattr(other_state.ring, name), err_msg=name)
    numbers = lambda *trees: jax.tree.map(np.asarray, trees)
    close = chex.assert_trees_all_close
    close(numbers(progress), numbers(other_progress), rtol=1e-4, atol=1e-4)
    close(numbers(state.agent, state.targets), numbers(other_state.agent, other_state.targets), rtol=1e-4, atol=5e-4)


def test_seed_alone_equals_that_seed_in_a_sweep(together, alone, config):
    _, many, counters, progress = together
    _, one, _, progress_one = alone
    steps = int(counters.step)
    assert steps >= 30
    np.testing.assert_array_equal(many.ring.action[3, :steps], one.ring.action[0, :steps])
    np.testing.assert_array_equal(many.ring.obs[3, :steps], one.ring.obs[0, :steps])
    pick = lambda tree, i: jax.tree.map(lambda x: np.asarray(x[i]), tree)
    chex.assert_trees_all_close(pick(progress, 3), pick(progress_one, 0), rtol=1e-4, atol=1e-4)


def test_learning_rates_side_by_side_equal_runs_alone(lanes, alone, hypers):
    """Two seeds with two learning rates each, in one program, against four runs of one seed."""
    seeds, rates = [0, 1, 0, 1], [1e-3, 1e-3, 4e-3, 4e-3]
    each = [dataclasses.replace(hypers, lr=rate) for rate in rates]
    stacked = jax.tree.map(lambda *values: jnp.array(values), *each)
    _, many, counters, progress = replay(lanes[0], seeds, stacked)
    pick = lambda tree, i: jax.tree.map(lambda x: np.asarray(x[i]), tree)
    steps, weights = int(counters.step), []
    for i, (seed, rate) in enumerate(zip(seeds, rates, strict=True)):
        _, state, counters_one, progress_one = replay(alone[0], [seed], dataclasses.replace(hypers, lr=rate))
        assert int(counters_one.step) == steps and many.hypers.lr[i] == state.hypers.lr[0] == np.float32(rate)
        np.testing.assert_array_equal(many.ring.action[i, :steps], state.ring.action[0, :steps])
        np.testing.assert_array_equal(many.ring.obs[i, :steps], state.ring.obs[0, :steps])
        chex.assert_trees_all_close(pick(progress, i), pick(progress_one, 0), rtol=1e-4, atol=1e-4)
        one = pick(state.agent, 0)
        chex.assert_trees_all_close(pick(many.agent, i), one, rtol=1e-4, atol=5e-4)
        weights.append(np.concatenate([x.ravel() for x in jax.tree.leaves(one)]))
    for compiled in (lanes[0], alone[0]):
        assert compiled.traces["train_chunk"] == 1, "hypers are data: another learning rate compiles nothing"
    for seed in (0, 1):  # and each rate shows, far beyond the tolerance
        assert np.abs(weights[seed] - weights[seed + 2]).max() > 5e-3


def test_adapt_is_what_each_seed_does_alone(env, config, hypers):
    """CompiledPhase.adapt on two devices against train.adapt of every seed; and it compiles from shapes alone."""
    explore = dataclasses.replace(config, mode="explore")
    compiled = CompiledPhase(env, explore, mesh_for(4, jax.devices()[:2]))
    state = compiled.init([4, 5, 6, 7], hypers)
    adapt = jax.jit(train.adapt)
    wanted = [adapt(pick(state, i)) for i in range(4)]
    shapes = compiled.adapted_shapes(compiled.shapes(4)[0])
    adapted = compiled.adapt(state)
    assert adapted.agent.explorer is None and adapted.agent.intrinsic is None and adapted.targets.explorer is None
    assert jax.tree.structure(adapted) == jax.tree.structure(shapes) == jax.tree.structure(wanted[0])
    same = lambda x, y: x.shape == y.shape and x.dtype == y.dtype and x.sharding.is_equivalent_to(y.sharding, x.ndim)
    assert all(jax.tree.leaves(jax.tree.map(same, adapted, shapes)))
    for i in range(4):
        assert tree_equal(pick(adapted, i), wanted[i])


def test_seeds_differ(together):
    _, state, counters, _ = together
    actions = np.asarray(state.ring.action[:, : int(counters.step)])
    for i in range(4):
        for j in range(i):
            assert (actions[i] != actions[j]).any()


def test_lanes_do_not_change_the_numbers(together, lanes, pairs):
    assert_same(together, lanes)
    assert_same(together, pairs)


def test_devices_do_not_change_the_numbers(together, spread):
    assert_same(together, spread)


def test_seeds_are_spread_over_devices(spread):
    _, state, _, _ = spread
    assert len(state.agent.tasker.actor.head.out.weight.sharding.device_set) == 2


def test_advance_is_traced_once(together, pairs):
    assert together[0].traces["train_chunk"] == pairs[0].traces["train_chunk"] == 1


def test_what_is_prepared_is_what_runs_and_needs_at_least_the_state(prepared, spread):
    _, need = prepared
    compiled, state, _, _ = spread
    assert compiled.traces["train_chunk"] == 1 and compiled.traces["evaluate"] == 1
    held = sum(x.nbytes for x in jax.tree.leaves(state) if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key))
    assert held < need < 100 * held
    shapes, _ = compiled.shapes(4)
    same = jax.tree.map(lambda x, y: x.shape == y.shape and x.dtype == y.dtype, shapes, state)
    assert all(jax.tree.leaves(same)) and sum(compiled.parameters(4).values()) > 1000


@pytest.mark.parametrize("compiled", ["together", "lanes", "pairs", "spread"])
def test_state_is_donated_to_the_last_byte(request, compiled):
    compiled, state, _, _ = request.getfixturevalue(compiled)
    memory = compiled._compiled[ITERATIONS].memory_analysis()
    raw = lambda x: jr.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    held = sum(raw(x).nbytes for x in jax.tree.leaves(state)) // compiled.mesh.size
    assert memory.alias_size_in_bytes == held


@pytest.mark.parametrize(("seeds", "copies"), [(1, 0), (2, 1)])
def test_rings_are_not_copied(env, config, seeds, copies):
    """A lane among others is copied out and back; one that is alone works in place, and so does all that it calls."""
    replay = dataclasses.replace(config.replay, capacity=1_000_000)
    large = dataclasses.replace(config, steps=1_000_000, envs=1, replay=replay)
    compiled = CompiledPhase(env, large, mesh_for(seeds, jax.devices()[:1]))
    state, counters = compiled.shapes(seeds)
    one = sum(np.prod(x.shape[1:]) * x.dtype.itemsize for x in jax.tree.leaves(state.ring))
    assert one > 1e8
    # As users' programs are compiled, and not as conftest.py would: on jax 0.10 only these emitters want other layouts.
    options = {"xla_cpu_use_fusion_emitters": True} if jax.__version__.startswith("0.10.") else None
    memory = compiled._train_chunk(2).lower(state, counters).compile(compiler_options=options).memory_analysis()
    assert copies * one <= memory.temp_size_in_bytes < (copies + 0.1) * one


# ---- lanes of something small ---------------------------------------------------------------------------------------


def walk(state, counters):
    """A stage of one seed: its state, the counters, what it reports."""
    key, key_step = jr.split(state["key"])
    x = state["x"] * (1 + counters) + jr.normal(key_step, (3,))
    return {"key": key, "x": x}, counters + 2, {"sum": x.sum(), "counters": counters}


def walks(seeds):
    """States of many."""
    return {"key": jr.split(jr.key(0), seeds), "x": jnp.arange(3.0 * seeds).reshape(seeds, 3)}


def all_at_once(state, counters):
    return jax.vmap(walk, in_axes=(0, None), out_axes=(0, None, 0))(state, counters)


def assert_same_walk(laned, plain):
    assert laned[1] == plain[1] == 7
    assert tree_equal(laned[0]["key"], plain[0]["key"])
    chex.assert_trees_all_close((laned[0]["x"], laned[2]), (plain[0]["x"], plain[2]), rtol=1e-6)


@pytest.mark.parametrize(
    ("seeds", "lane", "width"), [(6, 1, 1), (6, 2, 2), (6, 4, 3), (6, 6, 6), (6, 9, 6), (7, 3, 1), (1, 2, 1)]
)
def test_lanes_are_the_widest_that_share_the_seeds_out(seeds, lane, width):
    laned = jax.jit(in_lanes(walk, lane))
    assert_same_walk(laned(walks(seeds), jnp.int32(5)), all_at_once(walks(seeds), jnp.int32(5)))
    jaxpr = jax.make_jaxpr(in_lanes(walk, lane))(walks(seeds), jnp.int32(5))
    loops = [e.params["length"] for e in jaxpr.eqns if e.primitive.name == "scan"]
    assert loops == ([] if width == seeds else [seeds // width])


@pytest.mark.parametrize(("devices", "lane"), [(1, 4), (2, 1), (2, 2), (3, 2), (3, 0)])
def test_lanes_on_each_device(devices, lane):
    mesh = mesh_for(6, jax.devices()[:devices])
    state = jax.device_put(walks(6), NamedSharding(mesh, P("seeds")))
    laned = jax.jit(over_seeds(mesh, walk, 1, True, lane), donate_argnums=0).lower(state, jnp.int32(5)).compile()
    assert laned.memory_analysis().alias_size_in_bytes == 6 * (2 * 4 + 3 * 4) // devices  # keys and x
    assert_same_walk(laned(state, jnp.int32(5)), all_at_once(walks(6), jnp.int32(5)))


def test_lane_of_suits_the_machine(config):
    mesh = lambda platform: mock.Mock(spec=Mesh, devices=np.array([mock.Mock(platform=platform)]))
    lane = lambda lane, platform: vmap_width_of(dataclasses.replace(config, vmap_width=lane), mesh(platform))
    assert [lane(0, "cpu"), lane(0, "gpu"), lane(3, "cpu"), lane(3, "gpu")] == [1, 0, 3, 3]


def test_evaluation_is_repeatable_and_apart_from_training(together):
    compiled, state, _, _ = together
    first, lengths, _ = compiled.evaluate(state, [4, 5, 6, 7], 0)
    again, *_ = compiled.evaluate(state, [4, 5, 6, 7], 0)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(lengths, 10)
    assert set(np.unique(first)) <= {-1.0, 1.0}
    assert compiled.traces["evaluate"] == 1


@pytest.mark.parametrize(("seeds", "devices", "used"), [(32, 8, 8), (30, 8, 6), (7, 2, 1), (1, 4, 1), (3, 4, 3)])
def test_mesh_shares_seeds_out_evenly(seeds, devices, used):
    class Device:
        pass

    assert mesh_for(seeds, [Device() for _ in range(devices)]).size == used
