"""Uniformly random actions, against their known moments; and the mode in which they collect."""

import dataclasses

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from envs.environment import ActionSpace
from stages import train
from stages.agent import Agent, collector
from stages.cli.validate import validate
from stages.config import ConfigError
from stages.replay import StepCounters
from stages.uniform import RandomPolicy
from tests.conftest import arbitrary

DRAWS = 4000


def drawn(actions):
    """Samples [DRAWS, A] of a policy that sees features of its own each time."""
    actor = RandomPolicy(actions).actor
    policy = actor(jnp.asarray(np.random.default_rng(0).normal(size=(DRAWS, 7))), 0.01)
    samples = policy.sample(actor.noise((DRAWS,), key=jr.key(1)))
    chex.assert_shape([samples, policy.mode()], (DRAWS, actions.size))
    return np.asarray(samples)


def test_discrete_actions_are_equally_likely():
    samples = drawn(ActionSpace("discrete", 3))
    assert (samples.sum(-1) == 1).all() and set(np.unique(samples)) == {0, 1}
    np.testing.assert_allclose(samples.mean(0), 1 / 3, atol=4 * np.sqrt(2 / 9 / DRAWS))


def test_continuous_actions_fill_their_bounds():
    samples = drawn(ActionSpace("continuous", 2))
    assert -1 <= samples.min() < -0.99 and 0.99 < samples.max() <= 1
    counts = [np.histogram(samples[:, i], 10, (-1, 1))[0] for i in range(2)]
    np.testing.assert_allclose(counts, DRAWS / 10, atol=5 * np.sqrt(DRAWS * 0.09))
    assert abs(np.corrcoef(samples.T)[0, 1]) < 0.07


def test_every_choice_is_equally_likely():
    samples = drawn(ActionSpace.of_choices(2, 3))
    pairs = np.einsum("ni,nj->ij", samples[:, :2], samples[:, 2:]) / DRAWS  # both parts are one-hot
    np.testing.assert_allclose(pairs, 1 / 6, atol=4 * np.sqrt(5 / 36 / DRAWS))
    assert pairs.sum() == 1


def test_it_has_no_weights_and_is_who_collects_in_mode_random(config, env):
    random = dataclasses.replace(config, mode="random")
    agent = arbitrary(lambda: Agent(random, env.obs_space, env.action_space, key=jr.key(0)))
    assert agent.explorer is None and agent.intrinsic is None
    behavior = collector(agent, "random")
    assert isinstance(behavior, RandomPolicy) and not jax.tree.leaves(behavior)


def test_mode_random_trains_what_mode_task_trains_on_other_actions(config, hypers, env):
    """The same agent at the start, the same losses by name; but not the tasker's actions: this one takes the first."""
    ends = {}
    for mode in ("task", "random"):
        mine = dataclasses.replace(config, mode=mode)
        begin = jax.jit(lambda key, c=mine: train.init(env, c, hypers, key=key))(jr.key(3))
        begin = eqx.tree_at(lambda s: s.agent.tasker.actor.head.out.bias, begin, jnp.array([9.0, 0.0, 0.0]))
        collect = jax.jit(lambda state, c=mine: train.collect_steps(env, c, state, StepCounters.zero(), 20))
        state, counters, _ = collect(begin)
        metrics = jax.eval_shape(lambda state, counters, c=mine: train.update(c, state, counters), state, counters)[2]
        ends[mode] = begin, state, metrics
    chex.assert_trees_all_equal(ends["task"][0].agent, ends["random"][0].agent)
    assert ends["task"][2].keys() == ends["random"][2].keys()
    taken = {mode: np.bincount(np.asarray(end[1].ring.action[:20]).ravel(), minlength=3) for mode, end in ends.items()}
    assert taken["task"][0] > 35 and (taken["random"] > 5).all()


def test_random_rows_may_be_adapted_to_and_task_rows_may_not(config, hypers):
    validate(dataclasses.replace(config, mode="random", adapt_steps=10), hypers)
    with pytest.raises(ConfigError, match="--adapt-steps follows"):
        validate(dataclasses.replace(config, mode="task", adapt_steps=10), hypers)
