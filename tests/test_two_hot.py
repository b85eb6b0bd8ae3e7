"""networks/symlog.py and networks/two_hot.py against plain numpy, a binary search and closed forms.

Axes: I bins.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stages.networks.symlog import symexp, symlog
from stages.networks.two_hot import cross_entropy, symexp_bins, two_hot, two_hot_loss, two_hot_mean
from tests.by_hand import close, either, softmax
from tests.conftest import AS_IN_A_RUN
from tests.programs import in_one_program, value_and_grads

BINS = symexp_bins(255)


@either
def test_symlog_and_symexp_values(run):
    x = np.array([-(np.e**2) + 1, 1 - np.e, 0, np.e - 1, np.e**3 - 1], np.float32)
    y = np.array([-2, -1, 0, 1, 3], np.float32)
    close(run(symlog)(x), y, rtol=1e-6)
    close(run(symexp)(y), x, rtol=1e-6)


def test_symlog_and_symexp_are_inverse():
    x = jnp.float32(np.concatenate([-np.logspace(-6, 8, 60), [0], np.logspace(-6, 8, 60)]))
    close(symexp(symlog(x)), x, rtol=2e-5)
    close(symlog(symexp(jnp.linspace(-20, 20, 81))), np.linspace(-20, 20, 81), rtol=1e-6)


@pytest.mark.parametrize("count", [3, 15, 255])
def test_bins_are_symmetric_about_zero_and_end_at_symexp_of_twenty(count):
    bins = symexp_bins(count)
    chex.assert_shape(bins, (count,))
    assert bins.dtype == np.float32 and (np.diff(bins) > 0).all()
    assert bins[count // 2] == 0 and (bins == -bins[::-1]).all()
    close(bins[-1], np.float32(np.exp(20) - 1), rtol=1e-6)
    close(np.sign(bins) * np.log1p(np.abs(bins)), np.linspace(-20, 20, count), rtol=1e-5, atol=1e-5)


def two_hot_by_search(x: float, bins) -> np.ndarray:
    """Weights [I] on the neighbours that a binary search finds, in float64."""
    bins, weights = bins.astype(np.float64), np.zeros(len(bins))
    x = min(max(float(x), bins[0]), bins[-1])
    above = np.searchsorted(bins, x)
    if bins[above] == x:
        weights[above] = 1
    else:
        weights[above] = (x - bins[above - 1]) / (bins[above] - bins[above - 1])
        weights[above - 1] = 1 - weights[above]
    return weights


def some_values() -> np.ndarray:
    """Of every magnitude and both signs, near bins, and beyond both ends."""
    rng = np.random.default_rng(0)
    spread = np.sign(rng.normal(size=200)) * np.expm1(rng.uniform(0, 20, 200))
    beside = np.concatenate([np.nextafter(BINS, np.float32(np.inf)), np.nextafter(BINS, np.float32(-np.inf))])
    return np.concatenate([spread, rng.normal(size=50), beside, [1e12, -1e12, 0, 1e-6, -1e-6]]).astype(np.float32)


@either
def test_two_hot_agrees_with_a_search(run):
    x = some_values()
    weights = run(lambda x: two_hot(x, BINS))(x)
    chex.assert_shape(weights, (len(x), 255))
    close(weights, np.stack([two_hot_by_search(v, BINS) for v in x]), atol=1e-6)


@either
def test_two_hot_of_a_bin_is_one_hot(run):
    close(run(lambda x: two_hot(x, BINS))(BINS), np.eye(255, dtype=np.float32), atol=2e-7)


def test_two_hot_beyond_the_ends_is_the_outermost_bin():
    weights = two_hot(jnp.float32([-1e30, 1e30]), BINS)
    chex.assert_trees_all_equal(weights, np.eye(255, dtype=np.float32)[[0, -1]])


def test_two_hot_sums_to_one_and_its_expectation_is_the_value():
    x = some_values()
    weights = np.asarray(two_hot(jnp.asarray(x), BINS), np.float64)
    assert (weights >= 0).all() and ((weights > 0).sum(-1) <= 2).all()
    close(weights.sum(-1), np.ones(len(x)), atol=1e-6)
    close(weights @ BINS.astype(np.float64), np.clip(x, BINS[0], BINS[-1]).astype(np.float64), rtol=2e-6, atol=1e-7)


@either
@pytest.mark.parametrize("logit", [0.0, 3.7, -11.3])
def test_two_hot_mean_of_uniform_logits_is_exactly_zero(run, logit):
    mean = run(lambda x: two_hot_mean(x, BINS))(jnp.full((2, 3, 255), logit))
    chex.assert_trees_all_equal(mean, jnp.zeros((2, 3)))


@either
def test_two_hot_mean_undoes_two_hot(run):
    x = some_values()
    decode = run(lambda x: two_hot_mean(jnp.log(two_hot(x, BINS)), BINS))
    close(decode(x), np.clip(x, BINS[0], BINS[-1]), rtol=2e-6, atol=1e-6)
    close(decode(BINS), BINS, rtol=1e-6, atol=1e-6)


def test_two_hot_mean_is_the_expectation():
    logits = np.random.default_rng(1).normal(size=(20, 15)).astype(np.float32)
    bins = symexp_bins(15)
    weighed = softmax(logits) * bins
    error = np.asarray(two_hot_mean(jnp.asarray(logits), bins)) - weighed.sum(-1)
    assert (np.abs(error) < 1e-6 * np.abs(weighed).sum(-1)).all()


def mean_gradient(logits, bins):
    """d mean / d logits and the sum of magnitudes that it is a difference of, in float64."""
    probs, bins = softmax(logits), np.float64(bins)
    mean, size = (probs * bins).sum(-1, keepdims=True), (probs * np.abs(bins)).sum(-1, keepdims=True)
    return probs * (bins - mean), probs * (np.abs(bins) + size)


@either
@pytest.mark.parametrize("count", [3, 15, 255])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_two_hot_mean_has_the_gradient_of_an_expectation(run, count, shape):
    rng, bins = np.random.default_rng(1), symexp_bins(count)
    logits, out = rng.normal(size=(*shape, count)).astype(np.float32), rng.normal(size=shape).astype(np.float32)
    mean = lambda logits: two_hot_mean(logits, bins)
    grad = run(jax.grad(lambda logits: (out * mean(logits)).sum()))(logits)
    by_hand, size = (np.float64(out)[..., None] * x for x in mean_gradient(logits, bins))
    assert (np.abs(np.asarray(grad) - by_hand) <= 2e-6 * np.abs(size)).all()
    many = np.stack([logits, 2 * logits])
    size = (softmax(many) * np.abs(np.float64(bins))).sum(-1)  # of the terms: their sum's order may differ
    assert (
        np.abs(np.asarray(run(jax.vmap(mean))(many)) - (softmax(many) * np.float64(bins)).sum(-1)) <= 1e-6 * size
    ).all()


def cross_entropies(logits, targets, weights, count):
    """two_hot_loss in its plain form: vectors of weights on all bins, written into cross_entropy."""
    two_hots = [two_hot(jax.lax.stop_gradient(target), symexp_bins(count)) for target in targets]
    return sum(jax.lax.stop_gradient(w) * cross_entropy(logits, x) for w, x in zip(weights, two_hots, strict=True))


def value_and_gradients(loss, count, out):
    """(losses, gradients of all three arguments) for one cotangent, as a function."""

    def both(*args):
        value, back = jax.vjp(lambda *args: loss(*args, count), *args)
        return value, back(out)

    return both


def loss_inputs(count: int, heads: int):
    """(logits, targets, weights, cotangent): targets beside bins, on them, of all sizes, and beyond the ends."""
    rng, bins = np.random.default_rng(2), symexp_bins(count)
    targets = np.concatenate([some_values(), bins, np.float32([1e30, -1e30])])
    targets = np.stack([rng.permutation(targets) for _ in range(heads)])
    logits = (3 * rng.normal(size=(targets.shape[1], count))).astype(np.float32)
    weights = np.float32([1.0, -0.3, 2.5][:heads])
    out = rng.normal(size=len(logits)).astype(np.float32)
    return jax.device_put((logits, targets, weights, out))


LOSS_SIZES = [(3, 2), (15, 1), (15, 3), (255, 2)]


@pytest.fixture(scope="module")
def losses():
    """Both forms of the loss of all sizes, value and gradients, optimised as in a run."""
    calls = {}
    for count, heads in LOSS_SIZES:
        *args, out = loss_inputs(count, heads)
        for loss in (two_hot_loss, cross_entropies):
            of_count = lambda *args, loss=loss, count=count: loss(*args, count)
            calls[loss, count, heads] = value_and_grads(of_count), out, *args
    return in_one_program(calls, AS_IN_A_RUN)


@pytest.mark.parametrize("count, heads", LOSS_SIZES)
def test_two_hot_loss_is_cross_entropies_in_value_and_gradient(losses, count, heads):
    close(losses[two_hot_loss, count, heads], losses[cross_entropies, count, heads], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("count", [3, 15, 255])
def test_two_hot_loss_agrees_with_a_search(count):
    logits, targets, weights, _ = loss_inputs(count, 2)
    logp, bins, by_hand = np.log(softmax(logits)), symexp_bins(count), np.zeros(len(logits))
    for target, weight in zip(targets, weights, strict=True):
        by_hand -= weight * (np.stack([two_hot_by_search(x, bins) for x in target]) * logp).sum(-1)
    loss = jax.jit(two_hot_loss, static_argnums=3)(logits, targets, weights, count)
    close(loss, by_hand, rtol=1e-5, atol=2e-5)


def test_two_hot_loss_takes_any_leading_axes_and_vmap():
    logits, targets, weights, out = loss_inputs(15, 2)
    cut = lambda x, *shape: x[..., :12].reshape(*x.shape[:-1], *shape)
    logits, out, targets = logits[:12].reshape(2, 3, 2, 15), cut(out, 2, 3, 2), cut(targets, 2, 3, 2)
    both = [jax.jit(value_and_gradients(loss, 15, out)) for loss in (two_hot_loss, cross_entropies)]
    fast, plain = (loss(logits, targets, weights) for loss in both)
    close(fast, plain, rtol=1e-5, atol=1e-5)
    one = lambda loss: lambda logits, targets, out: value_and_gradients(loss, 15, out)(logits, targets, weights)
    batch = lambda loss: jax.jit(jax.vmap(one(loss), (0, 1, 0)))(logits, targets, out)
    many = [batch(loss) for loss in (two_hot_loss, cross_entropies)]
    close(*many, rtol=1e-5, atol=1e-5)
    close(many[0][0], plain[0], rtol=1e-5, atol=1e-5)
    losses = [jax.jit(loss, static_argnums=3) for loss in (two_hot_loss, cross_entropies)]
    single = [loss(logits[0, 0, 0], targets[:, 0, 0, 0], weights, 15) for loss in losses]
    close(*single, rtol=1e-5, atol=1e-5)


def test_two_hot_loss_sends_no_gradient_to_targets_and_weights():
    logits, targets, weights, _ = loss_inputs(15, 2)
    total = lambda *args: two_hot_loss(*args, 15).sum()
    grads = jax.tree.map(np.asarray, jax.jit(jax.grad(total, (0, 1, 2)))(logits, targets, weights))
    assert (np.abs(grads[0]).max(-1) > 1e-3).all()
    assert not grads[1].any() and not grads[2].any()


def test_two_hot_loss_of_extreme_logits_is_finite():
    logits = jnp.float32([[1e4, -1e4, 0], [-1e30, 0, 1e30]])
    args = (logits, jnp.float32([[0.5, 1e30]]), jnp.ones(1))
    losses, back = jax.vjp(jax.jit(lambda *args: two_hot_loss(*args, 3)), *args)
    close(losses[0], 2e4, rtol=1e-3)
    close(losses[1], 0.0)
    chex.assert_tree_all_finite(back(jnp.ones(2)))


@either
def test_cross_entropy(run):
    rng = np.random.default_rng(2)
    logits, weights = rng.normal(size=(4, 7)).astype(np.float32), rng.uniform(size=(4, 7)).astype(np.float32)
    close(run(cross_entropy)(logits, weights), -(weights * np.log(softmax(logits))).sum(-1), rtol=1e-5)
    close(run(cross_entropy)(jnp.zeros(2), jnp.ones(2)), 2 * np.log(2), rtol=1e-6)  # two targets, added up
