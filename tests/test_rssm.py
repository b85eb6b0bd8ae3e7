"""stages/rssm.py against plain numpy, computed from the same weights, and what an episode's start must forget.

Axes: B batch, D deter, S categoricals, K classes, E embed, A action vector.
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

B, D, S, K, E, A, RATIO = 6, 12, 3, 4, 5, 2, 0.01
MODEL = ModelConfig(deter=D, blocks=3, hidden=7, stoch=S, classes=K)
close = chex.assert_trees_all_close


@pytest.fixture(scope="module")
def model() -> RSSM:
    """Every leaf random, biases and norms' scales too, so that none can be left out unseen."""
    rng = np.random.default_rng(0)
    made = jax.eval_shape(lambda key: RSSM(MODEL, E, A, key=key), jr.key(0))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.7, jnp.float32), made)


def one_hot(index, count: int) -> np.ndarray:
    return np.eye(count, dtype=np.float32)[index]


class Inputs:
    """Random inputs of one step."""

    def __init__(self, seed: int):
        rng = np.random.default_rng(seed)
        normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
        self.latent = Latent(normal(B, D), one_hot(rng.integers(0, K, (B, S)), K))
        self.action, self.embed = normal(B, A) * 2, normal(B, E)
        self.uniform = rng.uniform(size=(B, S)).astype(np.float32)


# ---- the same in numpy, float64, one sample at a time --------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def activate(norm, x):
    """RMSNorm, SiLU."""
    x = x / np.sqrt((x**2).mean() + 1e-4) * np.float64(norm.scale)
    return x * sigmoid(x)


def linear(layer, x):
    return x @ np.float64(layer.weight) + np.float64(layer.bias)


def dense(layer, x):
    return activate(layer.norm, linear(layer.linear, x))


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
    hidden = activate(model.gru.norm, hidden).reshape(MODEL.blocks, -1)
    gates = (blocks_of(model.gru.gates, hidden) + np.float64(model.gru.gates_bias)).reshape(MODEL.blocks, 3, -1)
    reset, cand, update = gates[:, 0], gates[:, 1], sigmoid(gates[:, 2] - 1)
    return (update * np.tanh(sigmoid(reset) * cand) + (1 - update) * slices).reshape(-1)


def action_share_by_hand(model: RSSM, action):
    """What an action adds to the cell's hidden layer [D]: the last rows of its weights are the action's."""
    projected = dense(model.from_action, np.float64(action))
    return np.concatenate([projected @ np.float64(model.gru.hidden[-MODEL.hidden :, g]) for g in range(MODEL.blocks)])


def prior_by_hand(model: RSSM, deter):
    """Logits [S, K] without an observation."""
    for layer in model.prior.layers:
        deter = dense(layer, deter)
    return linear(model.prior_out, deter).reshape(S, K)


def posterior_by_hand(model: RSSM, deter, embed):
    """Logits [S, K] with one: a single layer on both, joined."""
    return linear(model.post_out, dense(model.post, np.concatenate([deter, embed]))).reshape(S, K)


def sample_by_hand(logits, uniform):
    """One-hot [S, K]: the first class whose cumulative probability exceeds the uniform number."""
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    probs = (1 - RATIO) * exp / exp.sum(-1, keepdims=True) + RATIO / K
    return one_hot([int(np.argmax(np.cumsum(p) > u)) for p, u in zip(probs, uniform, strict=True)], K)


# ---- steps ---------------------------------------------------------------------------------------------------------


def run_posterior(model, latent, action, embed, reset, uniform):
    """posterior_step with the parts that a scan computes beforehand."""
    projected, share = rssm.action_share(model, action, reset), rssm.embed_share(model, embed)
    return rssm.posterior_step(model, latent, projected, share, reset, uniform, RATIO)


def run_prior(model, latent, action, uniform):
    """prior_step likewise."""
    projected = rssm.action_share(model, action, jnp.zeros(action.shape[:-1], bool))
    return rssm.prior_step(model, latent, projected, uniform, RATIO)


@pytest.mark.parametrize("resets", [[], [1, 4]])
def test_posterior_step_agrees_with_numpy(model, resets):
    x = Inputs(1)
    reset = np.isin(np.arange(B), resets)
    latent, logits = jax.jit(run_posterior)(model, x.latent, x.action, x.embed, reset, x.uniform)
    for b in range(B):
        keep = 0 if reset[b] else 1
        deter = deter_by_hand(model, keep * x.latent.deter[b], keep * x.latent.stoch[b], keep * x.action[b])
        by_hand = posterior_by_hand(model, deter, x.embed[b])
        close((latent.deter[b], logits[b]), (deter, by_hand), rtol=1e-4, atol=1e-4)
        close(latent.stoch[b], sample_by_hand(by_hand, x.uniform[b]), atol=1e-6)


def test_prior_step_agrees_with_numpy(model):
    x = Inputs(2)
    latent = jax.jit(run_prior)(model, x.latent, x.action, x.uniform)
    for b in range(B):
        deter = deter_by_hand(model, x.latent.deter[b], x.latent.stoch[b], x.action[b])
        logits = prior_by_hand(model, deter)
        close(rssm.prior_logits(model, latent.deter[b]), logits, rtol=1e-4, atol=1e-4)
        close(latent.deter[b], deter, rtol=1e-4, atol=1e-4)
        close(latent.stoch[b], sample_by_hand(logits, x.uniform[b]), atol=1e-6)


def test_prior_and_posterior_advance_the_same_deter(model):
    x = Inputs(3)
    seen, _ = jax.jit(run_posterior)(model, x.latent, x.action, x.embed, np.zeros(B, bool), x.uniform)
    close(jax.jit(run_prior)(model, x.latent, x.action, x.uniform).deter, seen.deter, rtol=1e-5, atol=1e-6)


def test_splitting_the_posterior_layer_equals_the_joined_one(model):
    x = Inputs(4)
    split = rssm.posterior_logits(model, x.latent.deter, rssm.embed_share(model, x.embed))
    joined = np.stack([posterior_by_hand(model, d, e) for d, e in zip(x.latent.deter, x.embed, strict=True)])
    close(split, joined, rtol=1e-4, atol=1e-4)


def test_samples_carry_gradient_to_the_logits_and_through_time(model):
    x = Inputs(5)
    weights = Inputs(6).latent.deter[:, :K]

    def later(deter):
        first = run_prior(model, Latent(deter, x.latent.stoch), x.action, x.uniform)
        return (first.stoch * weights[:, None]).sum()

    assert (jnp.abs(jax.jit(jax.grad(later))(x.latent.deter)).max(-1) > 1e-6).all()


# ---- episodes begin with nothing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", [True, False])
def test_an_episodes_first_state_has_no_trace_of_the_past(model, reset):
    past, other, resets = Inputs(7), Inputs(8), np.full(B, reset)

    def state(latent, action):
        return run_posterior(model, latent, action, past.embed, resets, past.uniform)

    step = jax.jit(state)
    (here, logits), (there, there_logits) = step(past.latent, past.action), step(other.latent, other.action)
    same = lambda x, y: bool((x == y).all())
    assert same(here.deter, there.deter) == same(logits, there_logits) == reset
    if reset:
        assert same(here.stoch, there.stoch)

    def reach(latent, action):
        """A number that all of the new state goes into."""
        new, logits = state(latent, action)
        return (new.deter**2).sum() + (logits**2).sum() + (new.stoch * past.uniform[..., None]).sum()

    grads = jax.jit(jax.grad(reach, (0, 1)))(past.latent, past.action)
    for grad in jax.tree.leaves(grads):
        rows = jnp.abs(grad).reshape(B, -1).max(-1)
        assert (rows == 0).all() if reset else (rows > 0).all()


def test_a_reset_wipes_its_own_row_only(model):
    x = Inputs(9)
    reset = np.array([True, False, True, False, False, False])
    wiped = rssm.wipe(x.latent, reset)
    keep = (~reset).astype(np.float32)
    close(wiped, Latent(x.latent.deter * keep[:, None], x.latent.stoch * keep[:, None, None]))


def test_a_first_state_after_a_wipe_equals_one_from_the_initial_state(model):
    x = Inputs(10)
    begin = rssm.initial(model, (B,), D, jnp.float32)
    chex.assert_tree_all_finite(begin)
    chex.assert_trees_all_equal(begin, Latent(jnp.zeros((B, D)), jnp.zeros((B, S, K))))
    step = jax.jit(run_posterior)
    wiped = step(model, x.latent, x.action, x.embed, np.ones(B, bool), x.uniform)
    close(step(model, begin, 0 * x.action, x.embed, np.zeros(B, bool), x.uniform), wiped, rtol=1e-6, atol=1e-6)


# ---- records and inputs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "action, read",
    [([0.5, -0.25], [0.5, -0.25]), ([3.0, -0.5], [1, -0.5]), ([-4.0, 0.2], [-1, 0.2]), ([1.0, 7.0], [1, 1])],
)
def test_actions_beyond_one_are_scaled_back_entry_by_entry(model, action, read):
    share = rssm.action_share(model, jnp.float32(action), jnp.array(False))
    close(share, action_share_by_hand(model, read), rtol=1e-4, atol=1e-5)


def test_the_action_before_a_reset_is_none(model):
    share = rssm.action_share(model, jnp.float32([[0.5, -0.25]] * 2), jnp.array([True, False]))
    close(share, np.stack([action_share_by_hand(model, a) for a in ([0, 0], [0.5, -0.25])]), rtol=1e-4, atol=1e-5)


def test_the_action_scale_passes_no_gradient(model):
    weights = np.float32(np.arange(D))
    project = lambda a: (rssm.action_share(model, a, jnp.array(False)) * weights).sum()
    # d (a / sg(|a|)) / da = 1 / |a|, where a normalised a would have no slope at all.
    close(jax.grad(project)(jnp.float32([4, -2])), jax.grad(project)(jnp.float32([1, -1])) / np.float32([4, 2]))


def test_feat_is_deter_then_stoch_flattened():
    x = Inputs(11)
    feat = rssm.feat(x.latent)
    chex.assert_shape(feat, (B, D + S * K))
    chex.assert_trees_all_equal(feat[2], np.concatenate([x.latent.deter[2], *x.latent.stoch[2]]))


@pytest.mark.parametrize("classes", [2, 4, 256])
def test_classes_and_one_hot_go_round(classes):
    index = np.random.default_rng(0).integers(0, classes, (5, S))
    index[0] = [0, classes - 1, 1]
    stored = rssm.classes_of(Latent(jnp.zeros((5, D)), jax.nn.one_hot(index, classes)))
    assert stored.dtype == jnp.uint8
    chex.assert_trees_all_equal(stored, index.astype(np.uint8))
    chex.assert_trees_all_equal(jax.nn.one_hot(stored, classes), one_hot(index, classes))


def test_a_step_keeps_the_compute_type(model):
    x = Inputs(12)
    half = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), tree)
    latent, logits = jax.eval_shape(
        run_posterior, model, half(x.latent), half(x.action), half(x.embed), np.zeros(B, bool), x.uniform
    )
    assert latent.deter.dtype == latent.stoch.dtype == logits.dtype == jnp.bfloat16
