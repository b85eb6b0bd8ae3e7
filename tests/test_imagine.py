"""imagine.py: which action was chosen where, what follows from it, and that no gradient leaves.

Axes: H steps, n starts, A actions, F feat.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

from envs.environment import ActionSpace
from stages import rssm
from stages.imagine import Noise, draw_noise, imagine
from stages.networks.heads import Actor
from stages.rssm import Latent
from stages.world_model import WorldModel
from tests.by_hand import dense, linear, sigmoid, softmax
from tests.conftest import arbitrary

H, n, A, RATIO, SHARE = 4, 4, 3, 0.01, 0.2  # the uniform shares of the prior and of the policy
ACTIONS = ActionSpace("continuous", A)


@pytest.fixture(scope="module")
def model(config, env):
    return arbitrary(lambda: WorldModel(config, env.obs_space, ACTIONS, key=jr.key(0)))


@pytest.fixture(scope="module")
def actor(config):
    return arbitrary(lambda: Actor(config.model, ACTIONS, key=jr.key(0)), seed=1)


@pytest.fixture(scope="module")
def start(config):
    sizes = config.model
    stoch = jr.randint(jr.key(1), (n, sizes.stoch), 0, sizes.classes)
    return Latent(jr.normal(jr.key(2), (n, sizes.deter)), jax.nn.one_hot(stoch, sizes.classes))


@pytest.fixture(scope="module")
def noise(config):
    uniform = jr.uniform(jr.key(5), (H, n, config.model.stoch))
    return Noise(uniform, 0.5 * jr.normal(jr.key(4), (H + 1, n, A)))


def merged(trajectory):
    """The trajectory without its leading axis: [blocks, L, c, ...] -> [L, n, ...]."""
    return jax.tree.map(lambda x: np.concatenate(list(np.asarray(x)), 1), trajectory)


@pytest.fixture(scope="module")
def run_model():
    """imagine, compiled and merged."""
    run = jax.jit(imagine, static_argnames="block_size")
    return lambda *args, block_size=0: merged(run(*args, RATIO, SHARE, block_size=block_size))


@pytest.fixture(scope="module")
def trajectory(run_model, model, actor, start, noise):
    return run_model(model, actor, start, noise)


def latent_of(config, feat):
    """The state behind a feature."""
    sizes = config.model
    feat = jnp.asarray(feat)
    return Latent(feat[: sizes.deter], feat[sizes.deter :].reshape(sizes.stoch, sizes.classes))


def act_by_hand(actor, feat, noise):
    """The action vector, in float64."""
    x = np.asarray(feat, np.float64)
    for layer in actor.head.mlp.layers:
        x = dense(layer, x)
    mean, std = (linear(jax.tree.map(lambda w, i=i: w[i], actor.head.out.parts.module), x) for i in range(2))
    return np.tanh(mean) + (0.1 + 0.9 * sigmoid(std + 2)) * np.asarray(noise)


def test_a_trajectory_is_a_start_and_h_steps(config, trajectory):
    chex.assert_shape(trajectory.feat, (H + 1, n, config.model.deter + config.model.stoch * config.model.classes))
    chex.assert_shape(trajectory.action, (H + 1, n, A))
    chex.assert_shape(trajectory.cont, (H + 1, n))
    chex.assert_tree_all_finite(trajectory)


def test_the_first_feature_is_the_start(start, trajectory):
    expected = np.concatenate([start.deter, np.reshape(start.stoch, (n, -1))], -1)
    np.testing.assert_array_equal(trajectory.feat[0], expected)


def test_each_action_was_chosen_at_the_feature_of_its_step(trajectory, actor, noise):
    np.testing.assert_allclose(
        trajectory.action, act_by_hand(actor, trajectory.feat, noise.action), rtol=1e-4, atol=1e-5
    )


def test_each_feature_follows_from_the_one_before_and_its_action(config, model, trajectory, noise):
    @jax.jit
    def one_step(feat, action, uniform):
        return rssm.imagine_step(model.rssm, latent_of(config, feat), action, uniform, RATIO)

    for t in range(H):
        for i in range(n):
            following = one_step(trajectory.feat[t, i], trajectory.action[t, i], noise.latent[t, i])
            expected = latent_of(config, trajectory.feat[t + 1, i])
            np.testing.assert_allclose(following.deter, expected.deter, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(following.stoch, expected.stoch)


def test_cont_is_what_the_continue_head_says_of_each_feature(model, trajectory):
    x = dense(model.cont.head.mlp.layers[0], np.asarray(trajectory.feat, np.float64))
    expected = sigmoid(linear(model.cont.head.out, x)[..., 0])
    np.testing.assert_allclose(trajectory.cont, expected, rtol=1e-4, atol=1e-6)
    assert trajectory.cont.std() > 1e-3


def test_cont_of_a_joint_outcome_is_the_share_of_bins_where_the_episode_goes_on(
    config, env, run_model, actor, start, noise
):
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, outcome="joint"))
    model = arbitrary(lambda: WorldModel(config, env.obs_space, ACTIONS, key=jr.key(0)))
    trajectory = run_model(model, actor, start, noise)
    x = dense(model.reward.head.mlp.layers[0], np.asarray(trajectory.feat, np.float64))
    logits = linear(model.reward.head.out, x)
    logits[..., config.model.bins :] -= 5
    expected = softmax(logits)[..., : config.model.bins].sum(-1)
    np.testing.assert_allclose(trajectory.cont, expected, rtol=1e-4, atol=1e-6)
    assert model.cont is None and trajectory.cont.std() > 1e-4


@pytest.mark.parametrize("block, blocks", [(1, 4), (2, 2), (3, 2), (4, 1), (100, 1), (0, 1)])
def test_blocks_change_no_number(config, run_model, trajectory, model, actor, start, noise, block, blocks):
    raw = jax.eval_shape(lambda *args: imagine(*args, RATIO, SHARE, block), model, actor, start, noise)
    chex.assert_tree_shape_prefix(raw, (blocks, H + 1, n // blocks))
    other = run_model(model, actor, start, noise, block_size=block)
    chex.assert_trees_all_close(other, trajectory, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(other.feat[..., config.model.deter :], trajectory.feat[..., config.model.deter :])


@pytest.mark.parametrize("t", range(H + 1))
def test_another_action_changes_what_comes_after_it_and_nothing_before(
    run_model, trajectory, model, actor, start, noise, t
):
    other = run_model(model, actor, start, dataclasses.replace(noise, action=noise.action.at[t].add(-2.0)))
    chex.assert_trees_all_equal(other.feat[: t + 1], trajectory.feat[: t + 1])
    chex.assert_trees_all_equal(other.action[:t], trajectory.action[:t])
    assert (np.abs(other.action[t] - trajectory.action[t]).max(-1) > 1e-3).all()
    if t < H:
        assert (np.abs(other.feat[t + 1] - trajectory.feat[t + 1]).max(-1) > 1e-5).all()


@pytest.mark.parametrize("block", [0, 2])
def test_starts_do_not_mix(run_model, model, actor, start, noise, block):
    one = run_model(model, actor, start, noise, block_size=block)
    other = run_model(model, actor, Latent(start.deter.at[1].add(1.0), start.stoch), noise, block_size=block)
    changed = (other.feat != one.feat).any((0, 2))
    np.testing.assert_array_equal(changed, [False, True, False, False])


@pytest.mark.parametrize("t", range(H))
def test_another_latent_noise_changes_the_step_that_it_draws(
    config, run_model, trajectory, model, actor, start, noise, t
):
    other = run_model(
        model, actor, start, dataclasses.replace(noise, latent=noise.latent.at[t].set(1 - noise.latent[t]))
    )
    chex.assert_trees_all_equal(other.feat[: t + 1], trajectory.feat[: t + 1])
    chex.assert_trees_all_equal(other.action[: t + 1], trajectory.action[: t + 1])
    deter, stoch = np.split(np.asarray(other.feat[t + 1] != trajectory.feat[t + 1]), [config.model.deter], -1)
    assert not deter.any() and stoch.any()  # deter comes before the draw


def test_no_gradient_reaches_model_start_policy_or_noise(model, actor, start, noise):
    def total(model, actor, start, noise):
        out = imagine(model, actor, start, noise, RATIO, SHARE)
        return jnp.square(out.feat).sum() + jnp.square(out.action).sum() + jnp.square(out.cont).sum()

    arguments = (model, actor, start, noise)
    grads = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3)))(*arguments)
    chex.assert_trees_all_equal(grads, jax.tree.map(jnp.zeros_like, arguments))


def test_without_the_stops_there_would_be_a_gradient(config, model, actor, start, noise):
    def total(model, actor, start):
        latent = jax.tree.map(lambda x: x[0], start)
        policy = actor(latent.feat, RATIO)
        action = policy.mean + policy.std * noise.action[0, 0]
        after = rssm.imagine_step(model.rssm, latent, action, jnp.full((config.model.stoch,), 0.5), RATIO)
        return jnp.square(after.feat).sum()

    for grads in jax.jit(jax.grad(total, argnums=(0, 1, 2)))(model, actor, start):
        assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(grads)) > 0


CALLS = []


class Watched(Actor):
    """An actor that writes down what it is given."""

    def __call__(self, feat, unimix):
        CALLS.append((feat.shape, unimix))
        return super().__call__(feat, unimix)


def test_the_policy_is_given_features_and_its_uniform_share_alone(config, model, start, noise):
    CALLS.clear()
    imagine(model, arbitrary(lambda: Watched(config.model, ACTIONS, key=jr.key(0))), start, noise, RATIO, SHARE)
    assert CALLS and all(call == ((n, config.model.feat), SHARE) for call in CALLS)


def test_all_unimix_makes_every_class_equally_likely(config, model, actor):
    many = 4000
    start = rssm.initial_latent(model.rssm, (many,), jnp.dtype(jnp.float32))
    noise = Noise(jr.uniform(jr.key(7), (1, many, config.model.stoch)), jnp.zeros((2, many, A)))
    out = merged(jax.jit(imagine)(model, actor, start, noise, 1.0, 0.0))
    stoch = np.reshape(out.feat[1, :, 16:], (many, config.model.stoch, config.model.classes))
    np.testing.assert_allclose(stoch.mean(0), 0.25, atol=0.04)


def test_a_discrete_policy_has_a_uniform_share_of_its_own(config, env):
    many, actions = 4000, env.action_space
    model = arbitrary(lambda: WorldModel(config, env.obs_space, actions, key=jr.key(0)))
    actor = arbitrary(lambda: Actor(config.model, actions, key=jr.key(0)), seed=1)
    start = rssm.initial_latent(model.rssm, (many,), jnp.dtype(jnp.float32))
    noise = draw_noise(model, actor, 1, many, key=jr.key(7))
    out = merged(jax.jit(imagine)(model, actor, start, noise, 0.0, 1.0))
    np.testing.assert_array_equal(np.sort(out.action, -1), np.broadcast_to([0, 0, 1], out.action.shape))
    np.testing.assert_allclose(out.action.mean(1), 1 / 3, atol=0.04)


def test_a_trajectory_has_the_compute_type(config, env):
    half = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="bfloat16"))
    for actions in (ACTIONS, env.action_space):
        model = arbitrary(lambda a=actions: WorldModel(half, env.obs_space, a, key=jr.key(0)))
        actor = arbitrary(lambda a=actions: Actor(half.model, a, key=jr.key(0)))
        noise, start = draw_noise(model, actor, H, n, key=jr.key(1)), rssm.initial_latent(model.rssm, (n,), model.dtype)
        out = jax.eval_shape(lambda *args: imagine(*args, RATIO, SHARE), model, actor, start, noise)
        chex.assert_type([out.feat, out.action, out.cont], [jnp.bfloat16, jnp.float32, jnp.float32])


def test_noise_is_uniform_for_latents_and_the_actors_own_for_actions(config, env, model, actor):
    discrete = arbitrary(lambda: Actor(config.model, env.action_space, key=jr.key(0)))
    for each, shape, distribution in ((actor, (H + 1, 500, A), "norm"), (discrete, (H + 1, 500), "uniform")):
        noise = draw_noise(model, each, H, 500, key=jr.key(0))
        chex.assert_shape(noise.latent, (H, 500, config.model.stoch))
        chex.assert_shape(noise.action, shape)
        assert stats.kstest(np.ravel(noise.latent), "uniform").pvalue > 1e-3
        assert stats.kstest(np.ravel(noise.action), distribution).pvalue > 1e-3
