"""behavior.py's actors: acting, and the distributions that they act by, against closed forms.

Axes: A actions, F feat.
"""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from scipy import stats

from envs.environment import ActionSpace
from stages.behavior import Actor, Normal, act, act_greedily, action_noise, log_prob_and_entropy
from stages.config import ModelConfig
from stages.maths import Categorical

F = 6
SIZES = ModelConfig(units=8, layers=2)
TABLE = ModelConfig(units=F, layers=0)  # no hidden layer
DISCRETE, CONTINUOUS = ActionSpace("discrete", 3), ActionSpace("continuous", 2)


# ---- acting --------------------------------------------------------------------------------------------------------


def fixed_actor(actions, bias):
    """An actor whose raw outputs are `bias`, whatever it sees."""
    actor = Actor(F, TABLE, actions, key=jr.key(0))
    where = lambda a: (a.head.out.weight, a.head.out.bias)
    return eqx.tree_at(where, actor, (jnp.zeros_like(actor.head.out.weight), jnp.asarray(bias, jnp.float32)))


def test_discrete_acting_is_one_hot_in_the_policys_proportions():
    many, ratio = 10_000, 0.1
    actor = fixed_actor(DISCRETE, [0.0, 1.0, 2.0])
    action = act(actor, jnp.zeros((many, F)), (jnp.arange(many) + 0.5) / many, ratio)
    chex.assert_shape(action, (many, 3))
    np.testing.assert_array_equal(np.sort(action, -1), np.tile([0, 0, 1], (many, 1)))
    expected = 0.9 * np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum() + 0.1 / 3
    np.testing.assert_allclose(action.mean(0), expected, atol=2 / many)


def test_discrete_noise_is_one_uniform_number():
    noise = action_noise(DISCRETE, (500, 4), key=jr.key(0))
    chex.assert_shape(noise, (500, 4))
    assert stats.kstest(np.ravel(noise), "uniform").pvalue > 1e-3


def test_continuous_acting_is_mean_plus_std_times_normal_noise():
    actor = fixed_actor(CONTINUOUS, [0.5, -3.0, 0.0, -2.0])
    noise = action_noise(CONTINUOUS, (2000,), key=jr.key(0))
    chex.assert_shape(noise, (2000, 2))
    assert stats.kstest(np.ravel(noise), "norm").pvalue > 1e-3
    action = act(actor, jnp.zeros((2000, F)), noise, 0.0)
    std = 0.1 + 0.9 / (1 + np.exp([-2.0, 0.0]))
    np.testing.assert_allclose(action, np.tanh([0.5, -3.0]) + std * np.asarray(noise), rtol=1e-5, atol=1e-6)


def test_acting_sends_no_gradient_to_the_actor():
    for actions, noise in ((DISCRETE, jnp.full((1,), 0.3)), (CONTINUOUS, jnp.ones((1, 2)))):
        actor = Actor(F, SIZES, actions, key=jr.key(0))
        grads = jax.grad(lambda a, noise=noise: jnp.square(act(a, jnp.ones((1, F)), noise, 0.01)).sum())(actor)
        chex.assert_trees_all_equal(grads, jax.tree.map(jnp.zeros_like, actor))


def test_greedy_acting_takes_the_likeliest():
    discrete, continuous = fixed_actor(DISCRETE, [0.0, 1.0, 0.9]), fixed_actor(CONTINUOUS, [0.5, -3.0, 0.0, 5.0])
    np.testing.assert_array_equal(act_greedily(discrete, jnp.zeros((2, F)), 0.01), [[0, 1, 0]] * 2)
    np.testing.assert_allclose(act_greedily(continuous, jnp.zeros((2, F)), 0.01), [np.tanh([0.5, -3.0])] * 2, rtol=1e-5)


def test_actions_have_the_features_type():
    feat = jnp.zeros((2, F), jnp.bfloat16)
    for actions, noise in ((DISCRETE, jnp.full((2,), 0.3)), (CONTINUOUS, jnp.ones((2, 2)))):
        actor = Actor(F, SIZES, actions, key=jr.key(0))
        chex.assert_type([act(actor, feat, noise, 0.01), act_greedily(actor, feat, 0.01)], jnp.bfloat16)


# ---- distributions -------------------------------------------------------------------------------------------------


def test_discrete_log_prob_and_entropy_are_the_closed_forms():
    probs = np.array([[0.2, 0.5, 0.3], [0.98, 0.01, 0.01]], np.float32)
    logp, entropy = log_prob_and_entropy(Categorical(probs, np.log(probs)), jnp.eye(3)[jnp.array([1, 2])])
    np.testing.assert_allclose(logp, np.log([0.5, 0.01]), rtol=1e-5)
    np.testing.assert_allclose(entropy, stats.entropy(probs, axis=-1), rtol=1e-5)


def test_normal_log_prob_and_entropy_are_the_closed_forms_summed_over_dimensions():
    mean, std = np.array([[0.5, -0.2], [0.0, 0.9]], np.float32), np.array([[0.1, 1.0], [0.3, 0.7]], np.float32)
    action = np.array([[0.4, 2.0], [0.0, -1.0]], np.float32)
    logp, entropy = log_prob_and_entropy(Normal(mean, std), jnp.asarray(action))
    np.testing.assert_allclose(logp, stats.norm.logpdf(action, mean, std).sum(-1), rtol=1e-4)
    np.testing.assert_allclose(entropy, stats.norm.entropy(mean, std).sum(-1), rtol=1e-5)


def test_a_saturated_discrete_policy_keeps_a_floor_under_every_action():
    ratio, size = 0.01, 3
    dist = fixed_actor(DISCRETE, [1e4, -1e4, 0.0])(jnp.zeros((1, F)), ratio)
    expected = np.array([[1 - ratio + ratio / size, ratio / size, ratio / size]])
    np.testing.assert_allclose(dist.probs, expected, rtol=1e-5)
    entropy = log_prob_and_entropy(dist, dist.probs)[1]
    np.testing.assert_allclose(entropy, stats.entropy(expected, axis=-1), rtol=1e-4)
    assert entropy[0] > 0.04
    chex.assert_tree_all_finite(dist)


def test_a_bounded_normal_stays_within_its_bounds():
    for raw, mean, std in ((-1e4, -1.0, 0.1), (1e4, 1.0, 1.0), (0.0, 0.0, 0.1 + 0.9 / (1 + np.exp(-2)))):
        dist = fixed_actor(CONTINUOUS, [raw] * 4)(jnp.zeros((1, F)), 0.01)
        np.testing.assert_allclose(dist.mean, np.full((1, 2), mean), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(dist.std, np.full((1, 2), std), rtol=1e-5)


def test_a_fresh_actor_is_nearly_indifferent():
    dist = Actor(F, SIZES, DISCRETE, key=jr.key(0))(jr.normal(jr.key(1), (50, F)), 0.01)
    np.testing.assert_allclose(dist.probs, np.full((50, 3), 1 / 3), atol=0.03)
