"""rssm.py's verbs against plain numpy, computed from the same weights, and what an episode's start must forget.

Axes: T time, B batch, D deter, S categoricals, K classes, E embed, A action vector.
"""

import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from stages import rssm
from stages.config import ModelConfig
from stages.rssm import RSSM, Latent
from tests.by_hand import dense, linear, norm_silu, sigmoid
from tests.conftest import to_device

T, B, D, S, K, E, A, RATIO = 5, 6, 12, 3, 4, 5, 2, 0.01
MODEL = ModelConfig(deter=D, blocks=3, hidden=7, stoch=S, classes=K)
close = chex.assert_trees_all_close


@pytest.fixture(scope="module")
def model() -> RSSM:
    """Every leaf random, biases and norms' scales too, so that none can be left out unseen."""
    rng = np.random.default_rng(0)
    made = jax.eval_shape(lambda key: RSSM(MODEL, E, A, key=key), jr.key(0))
    return jax.tree.map(lambda x: to_device(rng.normal(size=x.shape) * 0.7, jnp.float32), made)


def one_hot(index, count: int) -> np.ndarray:
    return np.eye(count, dtype=np.float32)[index]


class Inputs:
    """Random inputs of one step, or with `lead` of a window of them; the latent is before the first."""

    def __init__(self, seed: int, lead: tuple[int, ...] = ()):
        rng = np.random.default_rng(seed)
        normal = lambda *shape: to_device(rng.normal(size=shape), jnp.float32)
        self.latent = Latent(normal(B, D), to_device(one_hot(rng.integers(0, K, (B, S)), K)))
        self.action, self.embed = normal(*lead, B, A) * 2, normal(*lead, B, E)
        self.uniform = to_device(rng.uniform(size=(*lead, B, S)), jnp.float32)


# ---- the same in numpy, float64, one sample at a time --------------------------------------------------------------


def blocks_of(weight, x):
    """Product of each block [G, i] with its own weights [G, i, o]."""
    return np.stack([part @ np.float64(w) for part, w in zip(x, weight, strict=True)])


def deter_by_hand(model: RSSM, deter, stoch, action):
    """The recurrent step [D]."""
    deter, action = np.float64(deter), np.float64(action) / np.maximum(1, np.abs(action))
    x = [dense(model.from_deter, deter), dense(model.from_stoch, stoch.reshape(-1)), dense(model.from_action, action)]
    slices = deter.reshape(MODEL.blocks, -1)
    # Weights [i, G, o]: rows are a block's slice of deter, then what all blocks see.
    weight = np.moveaxis(np.float64(model.gru.hidden), 1, 0)
    hidden = blocks_of(weight, [np.concatenate([own, *x]) for own in slices]).reshape(-1) + np.float64(model.gru.bias)
    hidden = norm_silu(hidden, model.gru.norm.scale).reshape(MODEL.blocks, -1)
    gates = (blocks_of(model.gru.gates, hidden) + np.float64(model.gru.gates_bias)).reshape(MODEL.blocks, 3, -1)
    reset, cand, update = gates[:, 0], gates[:, 1], sigmoid(gates[:, 2] - 1)
    return (update * np.tanh(sigmoid(reset) * cand) + (1 - update) * slices).reshape(-1)


def prior_by_hand(model: RSSM, deter):
    """Logits [S, K] without an observation."""
    for layer in model.prior.layers:
        deter = dense(layer, deter)
    return linear(model.prior_out, deter).reshape(S, K)


def posterior_by_hand(model: RSSM, deter, embed):
    """Logits [S, K] with one: a single layer on both, joined."""
    return linear(model.post_out, dense(model.post, np.concatenate([deter, embed]))).reshape(S, K)


def probs_by_hand(logits, ratio):
    """Softmax with a uniform share."""
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return (1 - ratio) * exp / exp.sum(-1, keepdims=True) + ratio / K


def sample_by_hand(logits, uniform, ratio=RATIO):
    """One-hot [S, K]: the first class whose cumulative probability exceeds the uniform number."""
    probs = probs_by_hand(logits, ratio)
    return one_hot([int(np.argmax(np.cumsum(p) > u)) for p, u in zip(probs, uniform, strict=True)], K)


# ---- steps ---------------------------------------------------------------------------------------------------------


def observe_row(model, latent, action, embed, reset, uniform, ratio=RATIO):
    """observe, of a window of one row: (state, posterior, prior), [B, ...]."""
    row = [x[None] for x in (embed, action, reset, uniform)]
    return jax.tree.map(lambda x: x[0], rssm.observe_embeds(model, latent, *row, ratio))


@pytest.mark.parametrize("ratio", [0.0, RATIO])
@pytest.mark.parametrize("resets", [[], [1, 4]])
def test_observe_agrees_with_numpy(model, resets, ratio):
    x = Inputs(1)
    reset = np.isin(np.arange(B), resets)
    latent, post, prior = jax.jit(observe_row)(model, x.latent, x.action, x.embed, reset, x.uniform, ratio)
    for b in range(B):
        keep = 0 if reset[b] else 1
        deter = deter_by_hand(model, keep * x.latent.deter[b], keep * x.latent.stoch[b], keep * x.action[b])
        close(latent.deter[b], deter, rtol=1e-4, atol=1e-4)
        logits, prior_logits = posterior_by_hand(model, deter, x.embed[b]), prior_by_hand(model, deter)
        close(latent.stoch[b], sample_by_hand(logits, x.uniform[b], ratio), atol=1e-6)
        for dist, by_hand in ((post, logits), (prior, prior_logits)):
            probs = probs_by_hand(by_hand, ratio)
            close((dist.probs[b], dist.logp[b]), (probs, np.log(probs)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("resets", [[], [1, 4]])
def test_observe_step_agrees_with_numpy(model, resets):
    x = Inputs(1)
    reset = np.isin(np.arange(B), resets)
    latent = jax.jit(rssm.observe_step)(model, x.latent, x.embed, x.action, reset, x.uniform, RATIO)
    for b in range(B):
        keep = 0 if reset[b] else 1
        deter = deter_by_hand(model, keep * x.latent.deter[b], keep * x.latent.stoch[b], keep * x.action[b])
        close(latent.deter[b], deter, rtol=1e-4, atol=1e-4)
        close(latent.stoch[b], sample_by_hand(posterior_by_hand(model, deter, x.embed[b]), x.uniform[b]), atol=1e-6)


def test_imagine_step_agrees_with_numpy(model):
    x = Inputs(2)
    latent = jax.jit(rssm.imagine_step)(model, x.latent, x.action, x.uniform, RATIO)
    for b in range(B):
        deter = deter_by_hand(model, x.latent.deter[b], x.latent.stoch[b], x.action[b])
        close(latent.deter[b], deter, rtol=1e-4, atol=1e-4)
        close(latent.stoch[b], sample_by_hand(prior_by_hand(model, deter), x.uniform[b]), atol=1e-6)


def test_prior_and_posterior_advance_the_same_deter(model):
    x = Inputs(3)
    seen = jax.jit(rssm.observe_step)(model, x.latent, x.embed, x.action, np.zeros(B, bool), x.uniform, RATIO)
    imagined = jax.jit(rssm.imagine_step)(model, x.latent, x.action, x.uniform, RATIO)
    close(imagined.deter, seen.deter, rtol=1e-5, atol=1e-6)


def test_observe_is_observe_step_by_step(model):
    x = Inputs(4, (T,))
    is_first = np.zeros((T, B), bool)
    is_first[[0, 2, 2, 4], [1, 0, 3, 3]] = True
    window, post, prior = jax.jit(rssm.observe_embeds)(model, x.latent, x.embed, x.action, is_first, x.uniform, RATIO)
    chex.assert_shape([window.stoch, post.probs, post.logp, prior.probs, prior.logp], (T, B, S, K))
    step, latent = jax.jit(rssm.observe_step), x.latent
    for t in range(T):
        latent = step(model, latent, x.embed[t], x.action[t], is_first[t], x.uniform[t], RATIO)
        close(window.deter[t], latent.deter, rtol=1e-5, atol=1e-6)
        close(window.stoch[t], latent.stoch, atol=1e-6)


def test_steps_take_any_leading_axes(model):
    x = Inputs(4)
    two = lambda tree: jax.tree.map(lambda y: y.reshape(2, 3, *y.shape[1:]), tree)
    rows = (x.embed, x.action, jnp.zeros(B, bool).at[2].set(True), x.uniform)

    @jax.jit
    def both_steps(latent, rows):
        observed = rssm.observe_step(model, latent, *rows, RATIO)
        return observed, rssm.imagine_step(model, latent, *rows[1::2], RATIO)

    flat, cut = both_steps(x.latent, rows), both_steps(two(x.latent), two(rows))
    close(cut, two(flat), rtol=1e-5, atol=1e-5)


def test_samples_carry_gradient_to_the_logits_and_through_time(model):
    x = Inputs(5)
    weights = Inputs(6).latent.deter[:, :K]

    def later(deter):
        first = rssm.imagine_step(model, Latent(deter, x.latent.stoch), x.action, x.uniform, RATIO)
        return (first.stoch * weights[:, None]).sum()

    assert (jnp.abs(jax.jit(jax.grad(later))(x.latent.deter)).max(-1) > 1e-6).all()


def test_observed_samples_carry_gradient_through_time(model):
    """From a window's last deter to its first embedding: that reaches it through samples alone."""
    x = Inputs(6, (T,))
    none = jnp.zeros((T, B), bool)

    def last(embed):
        return jnp.square(
            rssm.observe_embeds(model, x.latent, embed, x.action, none, x.uniform, RATIO)[0].deter[-1]
        ).sum()

    grad = np.abs(jax.jit(jax.grad(last))(x.embed)).max(-1)
    assert (grad[:-1] > 0).all() and (grad[-1] == 0).all()


# ---- episodes begin with nothing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", [True, False])
def test_an_episodes_first_state_has_no_trace_of_the_past(model, reset):
    past, other, resets = Inputs(7), Inputs(8), jnp.full(B, reset)

    def state(latent, action):
        latent, post, _ = observe_row(model, latent, action, past.embed, resets, past.uniform)
        return latent, post.logp

    step = jax.jit(state)
    (here, logp), (there, there_logp) = step(past.latent, past.action), step(other.latent, other.action)
    same = lambda x, y: bool((x == y).all())
    assert same(here.deter, there.deter) == same(logp, there_logp) == reset
    if reset:
        assert same(here.stoch, there.stoch)

    def reach(latent, action):
        """A number that all of the new state goes into."""
        new, logp = state(latent, action)
        return (new.deter**2).sum() + (logp**2).sum() + (new.stoch * past.uniform[..., None]).sum()

    grads = jax.jit(jax.grad(reach, (0, 1)))(past.latent, past.action)
    for grad in jax.tree.leaves(grads):
        rows = jnp.abs(grad).reshape(B, -1).max(-1)
        assert (rows == 0).all() if reset else (rows > 0).all()


def test_a_reset_wipes_its_own_row_only(model):
    x = Inputs(9)
    reset = np.array([True, False, True, False, False, False])
    keep = (~reset).astype(np.float32)[:, None]
    wiped = Latent(x.latent.deter * keep, x.latent.stoch * keep[..., None])
    step = jax.jit(observe_row)
    rest = (x.embed, np.zeros(B, bool), x.uniform)
    new = step(model, x.latent, x.action, x.embed, reset, x.uniform)
    close(new, step(model, wiped, x.action * keep, *rest), rtol=1e-6, atol=1e-6)
    changed = (np.asarray(new[0].deter) != step(model, x.latent, x.action, *rest)[0].deter).any(-1)
    chex.assert_trees_all_equal(changed, reset)


def test_a_first_state_after_a_wipe_equals_one_from_the_initial_state(model):
    x = Inputs(10)
    begin = rssm.initial_latent(model, (B,), jnp.dtype(jnp.float32))
    chex.assert_tree_all_finite(begin)
    chex.assert_trees_all_equal(begin, Latent(jnp.zeros((B, D)), jnp.zeros((B, S, K))))
    step = jax.jit(observe_row)
    wiped = step(model, x.latent, x.action, x.embed, np.ones(B, bool), x.uniform)
    close(step(model, begin, 0 * x.action, x.embed, np.zeros(B, bool), x.uniform), wiped, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_the_initial_state_has_any_leading_axes_and_type(model, lead, dtype):
    begin = rssm.initial_latent(model, lead, jnp.dtype(dtype))
    chex.assert_trees_all_equal(begin, Latent(jnp.zeros((*lead, D), dtype), jnp.zeros((*lead, S, K), dtype)))
    chex.assert_type([begin.deter, begin.stoch], dtype)


# ---- actions -------------------------------------------------------------------------------------------------------


@jax.jit
def deters(model, latent, action, reset):
    """Where both kinds of step go from one state [D]: (with an observation, without one)."""
    zeros = jnp.zeros((S,))
    seen = rssm.observe_step(model, latent, jnp.zeros(E), action, jnp.asarray(reset), zeros, RATIO)
    return seen.deter, rssm.imagine_step(model, latent, action, zeros, RATIO).deter


@pytest.mark.parametrize(
    "action, read",
    [([0.5, -0.25], [0.5, -0.25]), ([3.0, -0.5], [1, -0.5]), ([-4.0, 0.2], [-1, 0.2]), ([1.0, 7.0], [1, 1])],
)
def test_actions_beyond_one_are_scaled_back_entry_by_entry(model, action, read):
    close(rssm.bound_action(jnp.float32(action)), np.float32(read))
    latent = jax.tree.map(lambda x: x[0], Inputs(11).latent)
    by_hand = deter_by_hand(model, latent.deter, latent.stoch, np.float64(read))
    for deter in deters(model, latent, jnp.float32(action), False):
        close(deter, by_hand, rtol=1e-4, atol=1e-5)


def test_the_action_before_a_reset_is_none(model):
    nothing = rssm.initial_latent(model, (), jnp.dtype(jnp.float32))
    for reset, read in ((True, [0, 0]), (False, [0.5, -0.25])):
        by_hand = deter_by_hand(model, nothing.deter, nothing.stoch, np.float64(read))
        close(deters(model, nothing, jnp.float32([0.5, -0.25]), reset)[0], by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("verb", [0, 1], ids=["observe", "imagine"])
def test_the_action_scale_passes_no_gradient(model, verb):
    latent = jax.tree.map(lambda x: x[0], Inputs(11).latent)
    weights = jnp.arange(D, dtype=jnp.float32)
    project = lambda a: (deters(model, latent, a, False)[verb] * weights).sum()
    # d (a / sg(|a|)) / da = 1 / |a|, where a normalised a would have no slope at all.
    grad = jax.jit(jax.grad(project))
    far, near = (grad(np.float32(a)) for a in ([4, -2], [1, -1]))
    close(far, near / np.float32([4, 2]))
    assert (near != 0).all()


# ---- records and types ---------------------------------------------------------------------------------------------


def test_feat_is_deter_then_stoch_flattened():
    x = Inputs(11)
    feat = x.latent.feat
    chex.assert_shape(feat, (B, D + S * K))
    assert feat.shape[-1] == MODEL.feat
    chex.assert_trees_all_equal(feat[2], np.concatenate([x.latent.deter[2], *x.latent.stoch[2]]))


@pytest.mark.parametrize("classes", [2, 4, 256])
def test_classes_and_one_hot_go_round(classes):
    index = np.random.default_rng(0).integers(0, classes, (5, S))
    index[0] = [0, classes - 1, 1]
    stored = Latent(jnp.zeros((5, D)), jax.nn.one_hot(index, classes)).classes
    assert stored.dtype == jnp.uint8
    chex.assert_trees_all_equal(stored, index.astype(np.uint8))
    chex.assert_trees_all_equal(jax.nn.one_hot(stored, classes), one_hot(index, classes))


def test_every_verb_keeps_the_compute_type(model):
    x = Inputs(12)
    half = lambda tree: jax.tree.map(lambda a: to_device(a, jnp.bfloat16), tree)
    latent, action, embed, none = half(x.latent), half(x.action), half(x.embed), jnp.zeros(B, bool)
    seen, post, prior = jax.eval_shape(observe_row, model, latent, action, embed, none, x.uniform)
    step = jax.eval_shape(rssm.observe_step, model, latent, embed, action, none, x.uniform, RATIO)
    imagined = jax.eval_shape(rssm.imagine_step, model, latent, action, x.uniform, RATIO)
    for state in (seen, step, imagined):
        assert state.deter.dtype == state.stoch.dtype == jnp.bfloat16
    assert all(y.dtype == jnp.float32 for y in jax.tree.leaves((post, prior)))
