"""A seed that diverges, by its environment or its own updates, stays what it was; the others do not notice."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from envs.environment import ActionSpace, Environment, ObsSpace, Timestep
from stages.config import EnsembleConfig
from stages.finite import all_finite, tree_where, update_diverged_step
from stages.sweep.sweep import CompiledPhase, mesh_for

SEEDS, BROKEN, ITERATIONS = [3, 4, 5], 1, 8
AT = 20  # rows of an episode before something goes wrong: prefill has 9
NAN, INF = float("nan"), float("inf")


class Breaking(Environment):
    """Counts to 40. A seed's parameters are what is added to observation and reward at row AT of an episode."""

    name, time_limit = "Breaking", 40
    obs_space, action_space = ObsSpace((2,), "real"), ActionSpace("discrete", 2)

    def __init__(self, wrong: Any = None):
        self.wrong = wrong

    def sample_params(self, key):
        return jnp.zeros(2)

    def with_params(self, params):
        return Breaking(params)

    def reset(self, key):
        yes, no = jnp.array(True), jnp.array(False)
        count = jnp.zeros((), jnp.int32)
        return count, Timestep(jr.normal(key, (2,)), jnp.zeros(()), is_first=yes, is_last=no, is_terminal=no)

    def step(self, key, state, action):
        count, no = state + 1, jnp.array(False)
        obs, reward = jnp.where(count == AT, self.wrong, 0.0)
        step = Timestep(obs + jr.normal(key, (2,)), reward + action, no, is_last=count == 40, is_terminal=no)
        return count, step


@pytest.fixture(scope="module")
def compiled(config):
    """Three seeds at once, with everything that learns: explorer, ensemble, its own updates."""
    own = EnsembleConfig(members=2, layers=1, input="decoded", target="projected", updates=1, batch_size=8)
    config = dataclasses.replace(config, mode="explore", ensemble=own, vmap_width=len(SEEDS))
    return CompiledPhase(Breaking(), config, mesh_for(len(SEEDS), jax.devices()[:1]))


def numbers(tree):
    """Arrays as numpy has them, keys as their words."""
    raw = lambda x: jr.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return jax.tree.map(lambda x: np.array(raw(x)), tree)


def play(compiled, hypers, wrong=(0.0, 0.0), **own):
    """The broken seed with these parameters and hypers of its own -> after each chunk (state, progress); scores."""
    state = compiled.init(SEEDS, hypers)
    broken = lambda x, value: jax.device_put(x.at[BROKEN].set(value), x.sharding)
    state = eqx.tree_at(lambda s: s.env_params, state, broken(state.env_params, jnp.array(wrong)))
    for name, value in own.items():
        state = eqx.tree_at(lambda s, n=name: getattr(s.hypers, n), state, broken(getattr(state.hypers, name), value))
    state, counters, _ = compiled.prefill(state)
    chunks = []
    for _ in range(2):
        state, counters, progress = compiled.train_chunk(state, counters, ITERATIONS)
        chunks.append(numbers((state, progress)))
    scores, *_ = compiled.evaluate(state, SEEDS, 0)
    return chunks, np.asarray(scores), compiled.config.prefill


@pytest.fixture(scope="module")
def healthy(compiled, hypers):
    """The same three seeds when nothing goes wrong."""
    return play(compiled, hypers)


def leaves(tree, place):
    return [x[place] for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize(
    ("wrong", "own"),
    [
        *(((NAN, 0.0), {}), ((0.0, INF), {}), ((0.0, 0.0), {"scale_recon": NAN}), ((0.0, 0.0), {"lr": 1e38})),
        ((0.0, 0.0), {"ensemble_lr": 1e38}),
    ],
    ids=["observation", "reward", "loss", "update", "ensemble's update"],
)
def test_a_seed_diverges_alone_and_is_frozen(compiled, hypers, healthy, wrong, own):
    chunks, scores, prefill = play(compiled, hypers, wrong, **own)
    for (state, progress), (expected, expected_progress) in zip(chunks, healthy[0], strict=True):
        for place in (0, 2):
            mine, theirs = leaves((state, progress), place), leaves((expected, expected_progress), place)
            for x, y in zip(mine, theirs, strict=True):
                np.testing.assert_array_equal(x, y)
            assert state.diverged[place] == 0
    np.testing.assert_array_equal(scores[[0, 2]], healthy[1][[0, 2]])
    assert np.isfinite(healthy[1]).all()

    (first, progress), (last, later) = chunks
    in_env = any(wrong)
    assert last.diverged[BROKEN] == AT if in_env else prefill < last.diverged[BROKEN] < AT
    assert progress.diverged[BROKEN] == later.diverged[BROKEN] == last.diverged[BROKEN]
    frozen = lambda s: (s.agent, s.targets, s.opt_state, s.intrinsic_opt_state, s.ring, s.actor_state)
    for x, y in zip(*(leaves(frozen(s), BROKEN) for s in (first, last)), strict=True):
        np.testing.assert_array_equal(x, y)
    assert all(np.isfinite(x).all() for x in leaves(frozen(last), BROKEN))
    rows = last.ring.obs[BROKEN, last.diverged[BROKEN] - 1 :]  # the last one taken in vain, and those after it
    assert (rows[1:] == 0).all() and (rows[0] == 0).all() == in_env
    assert all(np.isnan(x[BROKEN]) for x in later.metrics.values()) and later.episodes.count[BROKEN] == 0
    assert np.isnan(scores[BROKEN]).all() if in_env else np.isfinite(scores[BROKEN]).all()


def test_the_parts_by_hand():
    whole, key = jnp.arange(3), jr.key(0)
    assert (
        all_finite((whole, key, jnp.ones(2)))
        and not all_finite((whole, jnp.array([1.0, NAN])))
        and not all_finite([jnp.float32(INF)])
    )
    new, old = {"a": jnp.float32(NAN), "b": key}, {"a": jnp.float32(2.0), "b": jr.key(1)}
    kept = tree_where(jnp.array(False), new, old)
    assert kept["a"] == 2 and (jr.key_data(kept["b"]) == jr.key_data(old["b"])).all()
    assert np.isnan(tree_where(jnp.array(True), new, old)["a"])
    steps = [(0, True, 5, 0), (0, False, 5, 5), (5, True, 9, 5), (5, False, 9, 5)]
    for before, taken, step, after in steps:
        assert update_diverged_step(jnp.int32(before), jnp.array(taken), jnp.int32(step)) == after
