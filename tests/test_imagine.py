"""imagine.py: which action was chosen where, what follows from it, and that no gradient leaves.

Axes: H steps, n starts, A actions, F feat.
"""

import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from stages import rssm
from stages.imagine import Noise, imagine
from stages.rssm import Latent
from stages.world_model import WorldModel
from tests.conftest import arbitrary

H, n, A, RATIO = 4, 3, 3, 0.01


@pytest.fixture(scope="module")
def model(config, env):
    return arbitrary(lambda: WorldModel(config, env.obs_space, env.action_space, key=jr.key(0)))


@pytest.fixture(scope="module")
def start(config):
    sizes = config.model
    stoch = jr.randint(jr.key(1), (n, sizes.stoch), 0, sizes.classes)
    return Latent(jr.normal(jr.key(2), (n, sizes.deter)), jax.nn.one_hot(stoch, sizes.classes))


@pytest.fixture(scope="module")
def weight(config):
    """A policy's weights [F, A]."""
    return jr.normal(jr.key(3), (config.model.deter + config.model.stoch * config.model.classes, A))


@pytest.fixture(scope="module")
def noise(config):
    uniform = jr.uniform(jr.key(5), (H, n, config.model.stoch))
    return Noise(uniform, 0.5 * jr.normal(jr.key(4), (H + 1, n, A)))


def act(weight, feat, noise):
    """A policy whose action vector has a gradient, were one let through."""
    return jnp.tanh(feat @ weight + noise)


@pytest.fixture(scope="module")
def dream():
    """imagine under `act`, compiled."""

    def run(model, weight, start, noise):
        return imagine(model, lambda feat, noise: act(weight, feat, noise), start, noise, RATIO)

    return jax.jit(run)


@pytest.fixture(scope="module")
def dreamt(dream, model, weight, start, noise):
    return dream(model, weight, start, noise)


def latent_of(config, feat):
    """The state behind a feature."""
    sizes = config.model
    return Latent(feat[: sizes.deter], feat[sizes.deter :].reshape(sizes.stoch, sizes.classes))


def test_a_trajectory_is_a_start_and_h_steps(config, dreamt):
    chex.assert_shape(dreamt.feat, (H + 1, n, config.model.deter + config.model.stoch * config.model.classes))
    chex.assert_shape(dreamt.action, (H + 1, n, A))
    chex.assert_tree_all_finite(dreamt)


def test_the_first_feature_is_the_start(start, dreamt):
    expected = np.concatenate([start.deter, np.reshape(start.stoch, (n, -1))], -1)
    np.testing.assert_array_equal(dreamt.feat[0], expected)


def test_each_action_was_chosen_at_the_feature_of_its_step(dreamt, weight, noise):
    expected = np.tanh(np.asarray(dreamt.feat, np.float64) @ np.asarray(weight, np.float64) + np.asarray(noise.action))
    np.testing.assert_allclose(dreamt.action, expected, rtol=1e-4, atol=1e-5)


def test_each_feature_follows_from_the_one_before_and_its_action(config, model, dreamt, noise):
    @jax.jit
    def one_step(feat, action, uniform):
        projected = rssm.action_share(model.rssm, action, jnp.array(False))
        return rssm.prior_step(model.rssm, latent_of(config, feat), projected, uniform, RATIO)

    for t in range(H):
        for i in range(n):
            following = one_step(dreamt.feat[t, i], dreamt.action[t, i], noise.latent[t, i])
            expected = latent_of(config, dreamt.feat[t + 1, i])
            np.testing.assert_allclose(following.deter, expected.deter, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(following.stoch, expected.stoch)


@pytest.mark.parametrize("t", range(H + 1))
def test_another_action_changes_what_comes_after_it_and_nothing_before(dream, dreamt, model, weight, start, noise, t):
    other = dream(model, weight, start, noise._replace(action=noise.action.at[t].add(2.0)))
    chex.assert_trees_all_equal(other.feat[: t + 1], dreamt.feat[: t + 1])
    chex.assert_trees_all_equal(other.action[:t], dreamt.action[:t])
    assert (np.abs(other.action[t] - dreamt.action[t]).max(-1) > 1e-3).all()
    if t < H:
        assert (np.abs(other.feat[t + 1] - dreamt.feat[t + 1]).max(-1) > 1e-5).all()


def test_starts_do_not_mix(dream, dreamt, model, weight, start, noise):
    other = dream(model, weight, Latent(start.deter.at[1].add(1.0), start.stoch), noise)
    changed = (np.asarray(other.feat) != dreamt.feat).any((0, 2))
    np.testing.assert_array_equal(changed, [False, True, False])


@pytest.mark.parametrize("t", range(H))
def test_another_latent_noise_changes_the_step_that_it_draws(config, dream, dreamt, model, weight, start, noise, t):
    other = dream(model, weight, start, noise._replace(latent=noise.latent.at[t].set(1 - noise.latent[t])))
    chex.assert_trees_all_equal(other.feat[: t + 1], dreamt.feat[: t + 1])
    chex.assert_trees_all_equal(other.action[: t + 1], dreamt.action[: t + 1])
    deter, stoch = np.split(np.asarray(other.feat[t + 1] != dreamt.feat[t + 1]), [config.model.deter], -1)
    assert not deter.any() and stoch.any()  # deter comes before the draw


def test_no_gradient_reaches_model_start_policy_or_noise(model, weight, start, noise):
    def total(model, weight, start, noise):
        out = imagine(model, lambda feat, noise: act(weight, feat, noise), start, noise, RATIO)
        return jnp.square(out.feat).sum() + jnp.square(out.action).sum()

    arguments = (model, weight, start, noise)
    grads = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3)))(*arguments)
    chex.assert_trees_all_equal(grads, jax.tree.map(jnp.zeros_like, arguments))


def test_without_the_stops_there_would_be_a_gradient(config, model, weight, start, noise):
    def total(model, weight, start):
        latent = latent_of(config, jnp.concatenate([start.deter[0], start.stoch[0].reshape(-1)]))
        action = act(weight, rssm.feat(latent), noise.action[0, 0])
        projected = rssm.action_share(model.rssm, action, jnp.array(False))
        after = rssm.prior_step(model.rssm, latent, projected, jnp.full((config.model.stoch,), 0.5), RATIO)
        return jnp.square(rssm.feat(after)).sum()

    for grads in jax.jit(jax.grad(total, argnums=(0, 1, 2)))(model, weight, start):
        assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(grads)) > 0


def test_the_policy_is_given_features_and_its_noise_alone(config, model, weight, start, noise):
    calls = []

    def policy(*args, **kwargs):
        calls.append((tuple(x.shape for x in args), kwargs))
        return act(weight, *args)

    imagine(model, policy, start, noise, RATIO)
    features = config.model.deter + config.model.stoch * config.model.classes
    assert calls and all(call == (((n, features), (n, A)), {}) for call in calls)


def test_all_unimix_makes_every_class_equally_likely(config, model, weight):
    many = 4000
    start = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (many, *x.shape)), rssm.initial(model.rssm, (), 16, float))
    noise = Noise(jr.uniform(jr.key(7), (1, many, config.model.stoch)), jnp.zeros((2, many, A)))
    policy = lambda feat, noise: act(weight, feat, noise)
    out = jax.jit(lambda ratio: imagine(model, policy, start, noise, ratio))(1.0)
    stoch = np.reshape(out.feat[1, :, 16:], (many, config.model.stoch, config.model.classes))
    np.testing.assert_allclose(stoch.mean(0), 0.25, atol=0.04)
