"""world_model.py: the window row by row, every loss in plain numpy, and where gradients go.

Axes: T rows, B windows, S categoricals, K classes.
"""

import dataclasses

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from stages import rssm
from stages.config import Hypers
from stages.networks.distributions import Categorical
from stages.rssm import Latent
from stages.world_model import (
    WorldModel,
    action_vector,
    balanced_kl,
    compute_dtype,
    expected_reward,
    model_loss,
    observe,
    reward_scale,
    see_rewards,
)
from tests.by_hand import categorical, close, either, softmax, two_hot_by_hand
from tests.conftest import arbitrary
from tests.programs import plain_scan

T, B, RATIO = 6, 3, 0.01
LOSSES = ("recon", "reward", "cont", "dyn", "rep")


@dataclasses.dataclass
class Window:
    """A window of made-up rows and the context before it."""

    context: Latent
    action: jax.Array  # [T, B, A], the actions before each row
    obs: jax.Array
    is_first: jax.Array
    reward: jax.Array
    is_terminal: jax.Array
    key: jax.Array


@pytest.fixture(scope="module")
def model(config, env):
    return arbitrary(lambda: WorldModel(config, env.obs_space, env.action_space, key=jr.key(0)))


@pytest.fixture(scope="module")
def window(config, env):
    sizes = config.model
    keys = jr.split(jr.key(1), 8)
    stoch = jax.nn.one_hot(jr.randint(keys[0], (B, sizes.stoch), 0, sizes.classes), sizes.classes)
    return Window(
        Latent(jr.normal(keys[1], (B, sizes.deter)), stoch),
        jax.nn.one_hot(jr.randint(keys[2], (T, B), 0, 3), 3),
        jr.bernoulli(keys[3], 0.3, (T, B, *env.obs_space.shape)),
        jnp.zeros((T, B), bool).at[2, 0].set(True).at[0, 1].set(True),
        2 * jr.normal(keys[4], (T, B)),
        jnp.zeros((T, B), bool).at[1, 0].set(True).at[4, 2].set(True),
        keys[5],
    )


@pytest.fixture(scope="module")
def watch():
    """observe, compiled."""
    return jax.jit(lambda model, context, *rows, key: observe(model, context, *rows, RATIO, key=key))


@pytest.fixture(scope="module")
def seen(watch, model, window):
    return watch(model, window.context, window.action, window.obs, window.is_first, key=window.key)


@pytest.fixture(scope="module")
def lose():
    """model_loss of what was seen, compiled: (losses, metrics)."""
    return jax.jit(model_loss, static_argnames="reward_free")


@pytest.fixture(scope="module")
def gradient(window):
    """Gradient with respect to the model of a weighted sum of its losses, through the whole window."""

    def loss(model, weights, reward_free, rows):
        cut = lambda x: x[:rows]
        seen = observe(
            model, window.context, *map(cut, (window.action, window.obs, window.is_first)), RATIO, key=window.key
        )
        hypers = Hypers(free_nats=0.0)
        targets = map(cut, (window.obs, window.reward, window.is_terminal))
        losses, _ = model_loss(model, seen, *targets, hypers, reward_free)
        return sum(weights[name] * losses[name].sum() for name in LOSSES)

    grad = jax.jit(jax.grad(loss), static_argnums=(2, 3))
    return lambda model, name, reward_free=False, rows=T: grad(
        model, {n: float(n == name) for n in LOSSES}, reward_free, rows
    )


def moved(grads) -> set[str]:
    """The parts of a world model that a gradient reaches."""
    parts = ("encoder", "rssm", "decoder", "reward", "cont")
    return {part for part in parts if any((np.asarray(x) != 0).any() for x in jax.tree.leaves(getattr(grads, part)))}


# ---- observe -------------------------------------------------------------------------------------------------------


def test_observe_is_observe_step_row_by_row(model, window, seen):
    uniform = jr.uniform(window.key, (T, B, model.rssm.stoch))

    @jax.jit
    def one_row(latent, action, obs, is_first, uniform):
        """(state, posterior's probabilities without a uniform share) of one row of one window."""
        embed = model.encoder(obs, model.dtype)
        row = [x[None, None] for x in (embed, action, is_first, uniform)]
        context = jax.tree.map(lambda x: x[None], latent)
        _, post, _ = rssm.observe_embeds(model.rssm, context, *row, 0.0)
        return rssm.observe_step(model.rssm, latent, embed, action, is_first, uniform, RATIO), post.probs[0, 0]

    for b in range(B):
        latent = jax.tree.map(lambda x: x[b], window.context)  # noqa: B023
        for t in range(T):
            latent, probs = one_row(latent, window.action[t, b], window.obs[t, b], window.is_first[t, b], uniform[t, b])
            np.testing.assert_allclose(seen.latent.deter[t, b], latent.deter, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(seen.latent.stoch[t, b], latent.stoch)
            mixed = (1 - RATIO) * probs + RATIO / probs.shape[-1]
            np.testing.assert_allclose(seen.post.probs[t, b], mixed, rtol=1e-5)


def plain_observe(model, context, action, obs, is_first, uniform):
    """observe with lax.scan over whole rows, its weights' gradient left to jax: (latents, the posterior's logp)."""

    def row(latent, inputs):
        action, obs, is_first, uniform = (x[None] for x in inputs)
        window = (model.encoder(obs, model.dtype), action, is_first, uniform)
        latent, post, _ = jax.tree.map(lambda x: x[0], rssm.observe_embeds(model.rssm, latent, *window, RATIO))
        return latent, (latent, post.logp)

    return jax.lax.scan(row, context, (action, obs, is_first, uniform))[1]


@pytest.mark.parametrize("resets", [False, True])
def test_observe_is_a_plain_scan_in_value_and_gradient(monkeypatch, model, window, resets):
    is_first = window.is_first & resets
    key_deter, key_stoch = jr.split(jr.key(2))
    deter, stoch = window.context.deter.shape, window.context.stoch.shape
    weights = Latent(jr.normal(key_deter, (T, *deter)), jr.normal(key_stoch, (T, *stoch)))
    moods = jr.normal(jr.key(3), weights.stoch.shape)

    def fast(model, context, action):
        seen = observe(model, context, action, window.obs, is_first, RATIO, key=window.key)
        return seen.latent, seen.post.logp

    def plain(model, context, action):
        uniform = jr.uniform(window.key, (T, B, model.rssm.stoch))
        return plain_observe(model, context, action, window.obs, is_first, uniform)

    def both(f):
        value, back = jax.vjp(f, model, window.context, window.action)
        return value, back((weights, moods))

    value, grads = jax.jit(lambda: both(fast))()
    monkeypatch.setattr(rssm, "scan", plain_scan)
    expected, expected_grads = jax.jit(lambda: both(plain))()
    chex.assert_trees_all_close(value, expected, rtol=1e-5, atol=1e-5)
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(expected_grads), strict=True
    ):
        error, largest = np.abs(one - other).max(), np.abs(other).max()
        assert error <= 1e-5 * largest, f"{jax.tree_util.keystr(path)}: {error} of {largest}"
    reached = moved(expected_grads[0])
    assert reached == {"encoder", "rssm"}


def test_prior_is_what_deter_foretells(model, seen):
    logits = model.rssm.prior_out(model.rssm.prior(seen.latent.deter))
    probs = softmax(logits.reshape(seen.prior.probs.shape))
    np.testing.assert_allclose(seen.prior.probs, (1 - RATIO) * probs + RATIO / probs.shape[-1], rtol=1e-5)
    np.testing.assert_allclose(seen.prior.logp, np.log(seen.prior.probs), rtol=1e-5, atol=1e-6)


def test_observe_gives_every_row(config, model, seen):
    sizes = config.model
    chex.assert_shape(seen.latent.deter, (T, B, sizes.deter))
    chex.assert_shape([seen.latent.stoch, seen.post.probs, seen.prior.probs], (T, B, sizes.stoch, sizes.classes))
    chex.assert_tree_all_finite(seen)
    np.testing.assert_array_equal(np.sort(seen.latent.stoch, -1)[..., -1], 1)
    np.testing.assert_array_equal(seen.latent.stoch.sum(-1), 1)


def rows_from(tree, start):
    return jax.tree.map(lambda x: np.asarray(x)[start:], tree)


def test_first_row_inside_a_window_cuts_the_past(watch, model, window):
    cut = 3
    is_first = jnp.zeros((T, B), bool).at[cut].set(True)
    other = Latent(-window.context.deter, jnp.roll(window.context.stoch, 1, -1))
    obs = window.obs.at[:cut].set(~window.obs[:cut])
    action = window.action.at[: cut + 1].set(jnp.roll(window.action[: cut + 1], 1, -1))  # and that before the reset
    before = watch(model, window.context, window.action, window.obs, is_first, key=window.key)
    after = watch(model, other, action, obs, is_first, key=window.key)
    chex.assert_trees_all_equal(rows_from(after, cut), rows_from(before, cut))
    assert (np.abs(after.latent.deter - before.latent.deter)[:cut].max((1, 2)) > 1e-4).all()


def test_without_a_first_row_the_past_reaches_the_end(watch, model, window):
    none = jnp.zeros((T, B), bool)
    other = Latent(-window.context.deter, window.context.stoch)
    before = watch(model, window.context, window.action, window.obs, none, key=window.key)
    after = watch(model, other, window.action, window.obs, none, key=window.key)
    assert (np.abs(after.latent.deter - before.latent.deter).max(-1) > 0).all()


@pytest.mark.parametrize("cut", [False, True])
def test_each_windows_first_row_is_its_own(watch, model, window, cut):
    is_first = jnp.zeros((T, B), bool).at[0, 1].set(cut)
    other = Latent(window.context.deter.at[1].add(1.0), window.context.stoch)
    before = watch(model, window.context, window.action, window.obs, is_first, key=window.key)
    after = watch(model, other, window.action, window.obs, is_first, key=window.key)
    changed = (np.asarray(after.latent.deter) != before.latent.deter).any((0, 2))
    np.testing.assert_array_equal(changed, [False, not cut, False])


def test_action_vector_is_one_hot_of_a_discrete_action(model):
    np.testing.assert_array_equal(action_vector(model, jnp.array([2, 0])), [[0, 0, 1], [1, 0, 0]])


# ---- losses --------------------------------------------------------------------------------------------------------


def losses_of(lose, model, seen, window, **hypers):
    return lose(model, seen, window.obs, window.reward, window.is_terminal, Hypers(**hypers), reward_free=False)[0]


def test_losses_are_rows_of_nats(lose, model, seen, window):
    losses = losses_of(lose, model, seen, window)
    assert set(losses) == set(LOSSES)
    chex.assert_shape(list(losses.values()), (T, B))
    chex.assert_type(list(losses.values()), jnp.float32)
    chex.assert_tree_all_finite(losses)


def test_reconstruction_is_bernoulli_of_the_board(lose, model, seen, window):
    raw = np.asarray(model.decoder(seen.latent), np.float64)
    prob = 1 / (1 + np.exp(-raw))
    expected = -np.where(window.obs, np.log(prob), np.log(1 - prob)).sum((-2, -1))
    np.testing.assert_allclose(losses_of(lose, model, seen, window)["recon"], expected, rtol=1e-5)


def test_reward_loss_is_cross_entropy_to_the_two_bins_around_it(lose, model, seen, window, config):
    logits = np.asarray(model.reward(seen.latent.feat), np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = np.zeros((T, B))
    for t, b in np.ndindex(T, B):
        expected[t, b] = -two_hot_by_hand(float(window.reward[t, b]), config.model.bins) @ logp[t, b]
    np.testing.assert_allclose(losses_of(lose, model, seen, window)["reward"], expected, rtol=1e-4)


def test_the_reward_scale_is_the_largest_reward_below_1(config, env, model):
    enlarging = dataclasses.replace(config, enlarge_rewards=True)
    start = scaled = WorldModel(enlarging, env.obs_space, env.action_space, key=jr.key(0))
    scales = [float(reward_scale(scaled))]
    for rewards in ([0.0, 0.0], [-0.04, 0.0], [-0.03, 0.02], [0.01, 0.0], [0.5, -7.0], [1.0, 1.0]):
        scaled = see_rewards(scaled, jnp.array(rewards))
        scales.append(float(reward_scale(scaled)))
    np.testing.assert_allclose(scales, [1, 1, 1, 0.04, 0.04, 1, 1])
    assert reward_scale(see_rewards(start, jnp.array([-0.3, 0.02]))) == np.float32(0.3)
    assert see_rewards(model, jnp.array([7.0])) is model and reward_scale(model) == 1.0


def test_what_the_head_expects_is_in_the_environments_unit(model, seen):
    paid = (jnp.float32(-0.05), jnp.float32(0.25))
    scaled = eqx.tree_at(lambda m: m.reward_range, model, paid, is_leaf=lambda x: x is None)
    plain = expected_reward(model, seen.latent.feat)
    np.testing.assert_allclose(expected_reward(scaled, seen.latent.feat), 0.25 * np.asarray(plain), rtol=1e-6)
    np.testing.assert_array_equal(plain, model.reward.mean(model.reward(seen.latent.feat)))


@pytest.mark.parametrize("free_nats", [0.0, 1.0, 100.0])
def test_both_kl_losses_are_kl_of_posterior_from_prior_above_free_nats(lose, model, seen, window, free_nats):
    post, prior = (np.asarray(x.probs, np.float64) for x in (seen.post, seen.prior))
    expected = np.maximum(free_nats, (post * np.log(post / prior)).sum((-2, -1)))
    losses = losses_of(lose, model, seen, window, free_nats=free_nats)
    np.testing.assert_allclose(losses["dyn"], expected, rtol=1e-4)
    np.testing.assert_allclose(losses["rep"], expected, rtol=1e-4)


def says(model, logit):
    """A model whose continue head always says `logit`."""
    where = lambda m: (m.cont.head.out.weight, m.cont.head.out.bias)
    return eqx.tree_at(where, model, (jnp.zeros_like(model.cont.head.out.weight), jnp.full((1,), logit)))


@pytest.mark.parametrize("horizon", [333.0, 10.0])
@pytest.mark.parametrize("prob", [0.1, 0.9, 0.999])
def test_continue_loss_is_cross_entropy_to_the_discount(lose, model, seen, window, prob, horizon):
    steady = says(model, float(np.log(prob / (1 - prob))))
    losses = losses_of(lose, steady, seen, window, discount_horizon=horizon)
    target = np.where(window.is_terminal, 0.0, 1 - 1 / horizon)
    expected = -target * np.log(prob) - (1 - target) * np.log(1 - prob)
    np.testing.assert_allclose(losses["cont"], expected, rtol=1e-4, atol=1e-6)


def test_losses_of_a_joint_outcome_are_of_one_distribution(lose, config, env, seen, window):
    """Cross-entropy to two-hot rewards, where the episode goes on with the discount, or where it ends."""
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, outcome="joint"))
    model = arbitrary(lambda: WorldModel(config, env.obs_space, env.action_space, key=jr.key(0)))
    losses = losses_of(lose, model, seen, window, discount_horizon=10.0)
    logits = np.asarray(model.reward(seen.latent.feat), np.float64)
    logp = np.log(softmax(logits.reshape(T, B, -1))).reshape(logits.shape)
    expected = np.zeros((T, B))
    for t, b in np.ndindex(T, B):
        weights = [0.0, 1.0] if window.is_terminal[t, b] else [0.9, 0.1]
        expected[t, b] = (
            -np.array(weights) @ logp[t, b] @ two_hot_by_hand(float(window.reward[t, b]), config.model.bins)
        )
    np.testing.assert_allclose(losses["reward"] + losses["cont"], expected, rtol=1e-4)
    assert set(losses) == set(LOSSES)


@pytest.mark.parametrize("horizon", [333.0, 10.0])
def test_continue_loss_is_least_at_the_discount(lose, model, seen, window, horizon):
    stops = np.array([8, 4, 2, 1.3, 1.1, 1, 0.9, 0.7, 0.5, 0.1]) / horizon  # probabilities of an end, most first
    curve = np.stack(
        [
            losses_of(lose, says(model, float(np.log((1 - p) / p))), seen, window, discount_horizon=horizon)["cont"]
            for p in stops
        ]
    )
    terminal = np.asarray(window.is_terminal)
    np.testing.assert_allclose(stops[curve.argmin(0)[~terminal]], 1 / horizon)
    np.testing.assert_array_equal(curve.argmin(0)[terminal], 0)


@pytest.mark.parametrize("free_nats", [0.0, 0.3, 100.0])
def test_metrics_say_the_whole_kl_and_how_often_it_is_free(lose, model, seen, window, free_nats):
    hypers = Hypers(free_nats=free_nats)
    _, metrics = lose(model, seen, window.obs, window.reward, window.is_terminal, hypers, reward_free=False)
    post, prior = (np.asarray(dist.probs, np.float64) for dist in (seen.post, seen.prior))
    whole = (post * np.log(post / prior)).sum((-1, -2))  # over classes and latents
    np.testing.assert_allclose(metrics["kl"], whole.mean(), rtol=1e-3)
    assert float(metrics["kl_free"]) == pytest.approx((whole <= free_nats).mean(), abs=1e-6)
    for name, probs in (("rep_ent", post), ("dyn_ent", prior)):
        np.testing.assert_allclose(metrics[name], -(probs * np.log(probs)).sum((-1, -2)).mean(), rtol=1e-3)


# ---- balanced KL ---------------------------------------------------------------------------------------------------

# [0.9, 0.1] || [0.5, 0.5] = 0.368 nats, and the other way round 0.511.
POST, PRIOR = np.float32([0.9, 0.1]), np.float32([0.5, 0.5])
KL = 0.9 * np.log(1.8) + 0.1 * np.log(0.2)


def test_balanced_kl_is_of_the_posterior_from_the_prior():
    dyn, rep = balanced_kl(categorical(POST[None]), categorical(PRIOR[None]), 0.0)
    close((dyn, rep), (KL, KL), rtol=1e-5)


@pytest.mark.parametrize("latents, loss", [(1, 1.0), (2, 1.0), (3, 3 * KL), (10, 10 * KL)])
def test_free_nats_clip_the_sum_over_latents(latents, loss):
    # Clipped one by one, two latents would lose 2 nats and three of them 3.
    stack = lambda probs: jnp.log(jnp.tile(probs, (5, latents, 1)))
    post, prior = stack(POST), stack(PRIOR)
    both = lambda *logits: balanced_kl(*(Categorical.from_outputs(x, 0.0) for x in logits), 1.0)
    close(both(post, prior), (np.full(5, loss), np.full(5, loss)), rtol=1e-5)
    for grad in jax.jit(jax.grad(lambda *x: sum(y.sum() for y in both(*x)), (0, 1)))(post, prior):
        assert (jnp.abs(grad) > 0.01).all() == (latents > 2) and (grad == 0).all() == (latents <= 2)


@either
def test_balanced_kl_moves_the_prior_by_dyn_and_the_posterior_by_rep(run):
    rng = np.random.default_rng(7)
    post, prior = rng.normal(size=(2, 4, 3, 5)).astype(np.float32)
    part = lambda i: lambda *x: balanced_kl(*(Categorical.from_outputs(y, 0.0) for y in x), 0.0)[i].sum()
    p, q = softmax(post), softmax(prior)
    log_ratio = np.log(p / q)
    moves_post = p * (log_ratio - (p * log_ratio).sum(-1, keepdims=True))
    close(run(jax.grad(part(0), (0, 1)))(post, prior), (np.zeros_like(post), q - p), atol=1e-6)
    close(run(jax.grad(part(1), (0, 1)))(post, prior), (moves_post, np.zeros_like(prior)), atol=1e-6)


def test_balanced_kl_gradient_through_unimix_agrees_with_finite_differences():
    rng = np.random.default_rng(8)
    post, prior = rng.normal(size=(2, 2, 3))
    mixed = lambda logits: 0.9 * softmax(logits) + 0.1 / 3

    def loss(post, prior):
        p, q = mixed(post), mixed(prior)
        return (p * np.log(p / q)).sum()

    def slope(f, x):
        out = np.zeros_like(x)
        for i in np.ndindex(x.shape):
            step = np.zeros_like(x)
            step[i] = 1e-5
            out[i] = (f(x + step) - f(x - step)) / 2e-5
        return out

    part = lambda i: lambda *x: balanced_kl(*(Categorical.from_outputs(y, 0.1) for y in x), 0.0)[i]
    floats = (jnp.float32(post), jnp.float32(prior))
    close(jax.jit(jax.grad(part(0), 1))(*floats), slope(lambda x: loss(post, x), prior), atol=1e-5)
    close(jax.jit(jax.grad(part(1), 0))(*floats), slope(lambda x: loss(x, prior), post), atol=1e-5)


# ---- gradients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reward", "cont"])
def test_reward_free_heads_learn_alone(gradient, model, name):
    grads = gradient(model, name, reward_free=True)
    assert moved(grads) == {name}
    chex.assert_trees_all_equal(grads.encoder, jax.tree.map(jnp.zeros_like, model.encoder))
    chex.assert_trees_all_equal(grads.rssm, jax.tree.map(jnp.zeros_like, model.rssm))
    chex.assert_trees_all_equal(grads.decoder, jax.tree.map(jnp.zeros_like, model.decoder))


@pytest.mark.parametrize("name", ["reward", "cont"])
def test_otherwise_the_heads_shape_the_model(gradient, model, name):
    assert moved(gradient(model, name)) == {name, "encoder", "rssm"}


@pytest.mark.parametrize("reward_free", [False, True])
@pytest.mark.parametrize("name", ["recon", "dyn", "rep"])
def test_reconstruction_and_kl_shape_the_model_in_any_case(gradient, model, name, reward_free):
    heads = {"decoder"} if name == "recon" else set()
    assert moved(gradient(model, name, reward_free)) == {"encoder", "rssm"} | heads


def test_dynamics_loss_of_one_row_moves_the_prior_and_not_the_posterior(gradient, model):
    grads = gradient(model, "dyn", rows=1)
    assert moved(grads) == {"rssm"}
    posterior = lambda m: (m.rssm.post, m.rssm.post_out)
    chex.assert_trees_all_equal(posterior(grads), jax.tree.map(jnp.zeros_like, posterior(model)))
    assert np.abs(grads.rssm.prior_out.weight).max() > 0


def test_representation_loss_moves_the_posterior_and_not_the_prior(gradient, model):
    grads = gradient(model, "rep", rows=1)
    assert moved(grads) == {"encoder", "rssm"}
    prior = lambda m: (m.rssm.prior, m.rssm.prior_out)
    chex.assert_trees_all_equal(prior(grads), jax.tree.map(jnp.zeros_like, prior(model)))
    assert np.abs(grads.rssm.post_out.weight).max() > 0


def test_gradient_reaches_back_through_time_and_not_past_a_first_row(model, window):
    def last_row(context, is_first):
        seen = observe(model, context, window.action, window.obs, is_first, RATIO, key=window.key)
        return jnp.square(seen.latent.deter[-1]).sum()

    grad = jax.jit(jax.grad(last_row))
    none = jnp.zeros((T, B), bool)
    per_window = lambda context: (np.asarray(context.deter) != 0).any(-1)
    np.testing.assert_array_equal(per_window(grad(window.context, none)), [True, True, True])
    np.testing.assert_array_equal(per_window(grad(window.context, none.at[3, 1].set(True))), [True, False, True])


# ---- bfloat16 ------------------------------------------------------------------------------------------------------


def test_bfloat16_computes_in_it_and_loses_in_float32(config, env, watch, lose, window):
    half = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="bfloat16"))
    model = arbitrary(lambda: WorldModel(half, env.obs_space, env.action_space, key=jr.key(0)))
    context = jax.tree.map(lambda x: x.astype(jnp.bfloat16), window.context)
    seen = watch(model, context, window.action.astype(jnp.bfloat16), window.obs, window.is_first, key=window.key)
    chex.assert_type([seen.latent.deter, seen.latent.stoch], jnp.bfloat16)
    chex.assert_type([seen.post.probs, seen.prior.logp], jnp.float32)
    losses = losses_of(lose, model, seen, window)
    chex.assert_type(list(losses.values()), jnp.float32)
    chex.assert_tree_all_finite(losses)
    chex.assert_type(jax.tree.leaves(model), jnp.float32)


def test_compute_type_by_name():
    assert compute_dtype("bfloat16") == jnp.bfloat16
    assert compute_dtype("float32") == jnp.float32
    assert compute_dtype("auto") == (jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
