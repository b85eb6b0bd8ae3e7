"""intrinsic_scale.py: what a policy collects beyond its slow copy, and the scale's steps, against plain numpy.

Axes: n states, F feat, A actions.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from envs.environment import ActionSpace, ObsSpace
from stages.config import Config, EnsembleConfig, Hypers, ModelConfig
from stages.ensemble import Ensemble, disagreement
from stages.intrinsic_scale import IntrinsicScale, gain_over_slow, update_scale, with_scale
from stages.networks.heads import Actor
from stages.rewards import DISAGREEMENT, intrinsic_reward
from stages.world_model import WorldModel
from tests.conftest import arbitrary

n, A = 40, 3
OBS, ACTIONS = ObsSpace((5,), "real"), ActionSpace("discrete", A)
SIZES = ModelConfig(deter=4, blocks=1, hidden=4, units=8, stoch=2, classes=2, layers=1, bins=15)
CONFIG = Config(mode="mix", model=SIZES, ensemble=EnsembleConfig(members=3, layers=1, target="embed"))
HYPERS = Hypers(policy_unimix=0.1, intrinsic_scale=0.5, intrinsic_scale_lr=0.01, slow_rate=0.25)
MODEL = arbitrary(lambda: WorldModel(CONFIG, OBS, ACTIONS, key=jr.key(0)))
ENSEMBLE = arbitrary(lambda: Ensemble(CONFIG, OBS, A, key=jr.key(0)), seed=1)
ACTOR, OTHER = (arbitrary(lambda: Actor(SIZES, ACTIONS, key=jr.key(0)), seed=s) for s in (2, 3))
FEAT, NOISE = jr.normal(jr.key(1), (n, SIZES.feat)), jr.uniform(jr.key(2), (n,))


def gain_of(slow, actor=ACTOR, feat=FEAT, ensemble=ENSEMBLE):
    """What `actor` collects beyond `slow`."""
    action = actor(feat, HYPERS.policy_unimix).sample(NOISE)
    scale = dataclasses.replace(IntrinsicScale.of(actor), slow=slow)
    return gain_over_slow(scale, DISAGREEMENT, MODEL, ensemble, feat, action, NOISE, HYPERS)


def drawn(actor):
    """The action that each state's random number draws, by hand: the first whose cumulative probability exceeds it."""
    probs = np.asarray(actor(FEAT, HYPERS.policy_unimix).probs, np.float64)
    return [next((a for a in range(A) if probs[i, : a + 1].sum() > NOISE[i]), A - 1) for i in range(n)]


def test_the_gain_is_the_disagreement_beyond_the_slow_policys():
    table = np.stack([disagreement(ENSEMBLE, MODEL, FEAT, jnp.tile(jnp.eye(A)[a], (n, 1)), HYPERS) for a in range(A)])
    mine, slow = drawn(ACTOR), drawn(OTHER)
    assert 0.1 < np.mean(np.array(mine) != np.array(slow)) < 1
    expected = np.mean([table[mine[i], i] - table[slow[i], i] for i in range(n)])
    assert abs(expected) > 1e-4
    np.testing.assert_allclose(jax.jit(gain_of)(OTHER), expected, rtol=1e-3)


def test_equal_policies_collect_exactly_the_same():
    assert float(jax.jit(gain_of)(ACTOR)) == 0


def test_the_gain_sends_no_gradient():
    grads = jax.jit(jax.grad(gain_of, argnums=(0, 1, 2, 3)))(OTHER, ACTOR, FEAT, ENSEMBLE)
    chex.assert_trees_all_equal(grads, jax.tree.map(jnp.zeros_like, grads))


def test_the_reward_that_is_meant_learns_with_a_network():
    assert intrinsic_reward("mix") is DISAGREEMENT


@pytest.mark.parametrize("size", [1.0, 1e-6])  # of disagreement, on which no step depends
def test_steps_are_adams_down_the_gradient_of_the_logarithm_times_the_gain(size):
    gains = size * np.array([0.3, 0.1, -2.0, 0.0, 1.5, 1.0])
    scale, log, mean, square = IntrinsicScale.of(ACTOR), 0.0, 0.0, 0.0
    for i, gain in enumerate(gains, 1):
        scale = update_scale(scale, ACTOR, jnp.float32(gain), HYPERS)
        mean, square = 0.9 * mean + 0.1 * gain, 0.999 * square + 0.001 * gain**2
        log -= 0.01 * (mean / (1 - 0.9**i)) / np.sqrt(square / (1 - 0.999**i))
        np.testing.assert_allclose(scale.log, log, rtol=1e-4)
        np.testing.assert_allclose(with_scale(HYPERS, scale).intrinsic_scale, 0.5 * np.exp(log), rtol=1e-5)


def test_the_scale_falls_where_the_policy_collects_more_and_rises_where_less():
    after = lambda gain: float(update_scale(IntrinsicScale.of(ACTOR), ACTOR, jnp.float32(gain), HYPERS).log)
    assert after(0.2) < 0 == after(0.0) < after(-0.2)


def test_without_a_learned_scale_hypers_are_what_they_were():
    assert with_scale(HYPERS, None) is HYPERS


def test_the_slow_policy_follows_at_its_rate():
    scale = dataclasses.replace(IntrinsicScale.of(ACTOR), slow=OTHER)
    followed = update_scale(scale, ACTOR, jnp.float32(0.1), HYPERS).slow
    by_hand = jax.tree.map(lambda s, a: 0.75 * np.asarray(s) + 0.25 * np.asarray(a), OTHER, ACTOR)
    chex.assert_trees_all_close(followed, by_hand, rtol=1e-5, atol=1e-7)
