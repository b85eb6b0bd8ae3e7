"""networks/distributions.py against plain numpy, hand tables and closed forms.

Axes: K classes, A action dimensions.
"""

import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import special, stats

from envs.environment import ActionSpace
from stages.networks import distributions
from stages.networks.distributions import BoundedNormal, Categorical, MultiCategorical, max_entropy
from tests.by_hand import categorical, close, either, softmax

# ---- categoricals --------------------------------------------------------------------------------------------------


@either
@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.3])
def test_unimix_mixes_probabilities(run, ratio):
    logits = np.random.default_rng(3).normal(size=(5, 6)).astype(np.float32) * 3
    dist = run(Categorical.from_outputs)(logits, ratio)
    probs = (1 - ratio) * softmax(logits) + ratio / 6
    close((dist.probs, dist.logp), (probs, np.log(probs)), rtol=1e-5, atol=1e-6)
    close(dist.probs.sum(-1), np.ones(5), rtol=1e-6)


def test_unimix_keeps_every_class_alive():
    dist = Categorical.from_outputs(jnp.float32([[200, -200, 0, 0], [-90, -90, -90, 90]]), 0.01)
    assert (dist.probs >= np.float32(0.01) / 4).all()
    chex.assert_tree_all_finite(dist)


def test_without_unimix_a_class_of_no_probability_does_no_harm():
    """Its logarithm is finite, so that entropy, log-probability, KL and their gradients are."""
    logits = jnp.float32([[200, -200, 0, 0], [-90, -90, -90, 90]])

    def total(logits):
        dist = Categorical.from_outputs(logits, 0.0)
        taken = dist.log_prob(jnp.eye(4)[jnp.array([0, 3])])
        return (dist.entropy() + taken + distributions.kl(dist, dist)).sum(), dist

    (value, dist), grad = jax.value_and_grad(total, has_aux=True)(logits)
    assert (dist.probs == jnp.float32([[1, 0, 0, 0], [0, 0, 0, 1]])).all()
    chex.assert_tree_all_finite((value, dist, grad))
    np.testing.assert_allclose((value, grad.sum()), 0, atol=1e-6)


def test_unimix_of_half_precision_is_float32():
    dist = Categorical.from_outputs(jnp.zeros(4, jnp.bfloat16), 0.01)
    assert dist.probs.dtype == dist.logp.dtype == jnp.float32


@either
@pytest.mark.parametrize(
    "probs, table",
    [
        ([0.25, 0.5, 0.25], {0.0: 0, 0.2499: 0, 0.25: 1, 0.7499: 1, 0.75: 2, 0.9999: 2}),
        ([0.0, 0.5, 0.0, 0.5], {0.0: 1, 0.4999: 1, 0.5: 3, 0.9999: 3}),  # a class of probability 0 is never drawn
        ([1.0, 0.0], {0.0: 0, 0.9999: 0}),
    ],
)
def test_sample_index_at_boundaries(run, probs, table):
    uniform = np.array(list(table), np.float32)
    index = run(distributions.sample_index)(np.broadcast_to(np.float32(probs), (len(table), len(probs))), uniform)
    chex.assert_trees_all_equal(index, np.array(list(table.values()), np.int32))


def test_sample_index_divides_even_uniforms_by_the_probabilities():
    probs = np.float32([0.05, 0.4, 0.02, 0.33, 0.2])
    uniform = ((np.arange(5000) + 0.5) / 5000).astype(np.float32)
    index = distributions.sample_index(jnp.broadcast_to(probs, (5000, 5)), jnp.asarray(uniform))
    assert (np.abs(np.bincount(index, minlength=5) - 5000 * probs) <= 1).all()


def test_sample_index_frequencies():
    probs, count = np.float32([0.05, 0.4, 0.02, 0.33, 0.2]), 20_000
    index = jax.jit(distributions.sample_index)(jnp.broadcast_to(probs, (count, 5)), jr.uniform(jr.key(0), (count,)))
    expected = count * probs
    chi_square = ((np.bincount(index, minlength=5) - expected) ** 2 / expected).sum()
    assert chi_square < 18.5  # 0.999 of the distribution with 4 degrees of freedom


@either
@pytest.mark.parametrize("count", [2, 3, 7, 64, 256])
def test_sample_index_never_leaves_the_range(run, count):
    largest = np.nextafter(np.float32(1), np.float32(0))
    rng = np.random.default_rng(4)
    probs = softmax(rng.normal(size=(100, count)) * rng.uniform(0, 9, (100, 1))).astype(np.float32)
    probs[:20] *= 0.99  # a sum well below one, as rounding makes it slightly
    index = np.asarray(run(distributions.sample_index)(probs, np.full(100, largest)))
    assert ((index >= 0) & (index < count)).all()
    assert (index[:20] == count - 1).all()


@either
def test_straight_through_is_one_hot_with_the_gradient_of_probs(run):
    rng = np.random.default_rng(5)
    logits, weights = rng.normal(size=(6, 4)).astype(np.float32), rng.normal(size=(6, 4)).astype(np.float32)
    index = jnp.array([0, 1, 2, 3, 0, 2])
    sample = lambda logits: distributions.straight_through(index, jax.nn.softmax(logits))
    chex.assert_trees_all_equal(run(sample)(logits), np.eye(4, dtype=np.float32)[index])
    probs = softmax(logits)
    by_hand = probs * (weights - (probs * weights).sum(-1, keepdims=True))
    close(run(jax.grad(lambda x: (weights * sample(x)).sum()))(logits), by_hand, atol=1e-6)


@either
def test_kl_and_entropy(run):
    rng = np.random.default_rng(6)
    p, q = softmax(rng.normal(size=(3, 5))), softmax(rng.normal(size=(3, 5)))
    close(run(distributions.kl)(categorical(p), categorical(q)), (p * np.log(p / q)).sum(-1), atol=1e-6)
    close(run(Categorical.entropy)(categorical(p)), -(p * np.log(p)).sum(-1), rtol=1e-5)
    close(categorical(np.full(8, 1 / 8)).entropy(), np.log(8), rtol=1e-6)


# ---- log-probabilities and entropies of actions --------------------------------------------------------------------


def test_discrete_log_prob_and_entropy_are_the_closed_forms():
    probs = np.array([[0.2, 0.5, 0.3], [0.98, 0.01, 0.01]], np.float32)
    dist = categorical(probs)
    logp, entropy = dist.log_prob(jnp.eye(3)[jnp.array([1, 2])]), dist.entropy()
    np.testing.assert_allclose(logp, np.log([0.5, 0.01]), rtol=1e-5)
    np.testing.assert_allclose(entropy, stats.entropy(probs, axis=-1), rtol=1e-5)


def test_choices_side_by_side_are_the_table_of_their_combinations():
    """Log-probability, entropy and mode of two choices, of 2 and 3 options, by the table of all 6 combinations."""
    logits, unimix = np.array([0.3, -1.0, 2.0, 0.5, 0.5], np.float32), 0.1
    first, second = (0.9 * special.softmax(x) + 0.1 / len(x) for x in (logits[:2], logits[2:]))
    table = first[:, None] * second
    dist = MultiCategorical.from_outputs(jnp.asarray(logits), unimix, ActionSpace.of_choices(2, 3))
    vectors = jnp.stack([jnp.concatenate([jnp.eye(2)[i], jnp.eye(3)[j]]) for i in range(2) for j in range(3)])
    np.testing.assert_allclose(np.exp(dist.log_prob(vectors)), table.ravel(), rtol=1e-5)
    np.testing.assert_allclose(dist.entropy(), stats.entropy(table.ravel()), rtol=1e-5)
    np.testing.assert_array_equal(dist.mode(), [1, 0, 1, 0, 0])
    grid = (np.stack(np.meshgrid(np.arange(100), np.arange(100)), -1).reshape(-1, 2) + 0.5) / 100
    wide = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(grid), x.size)), dist)
    samples = np.asarray(wide.sample(jnp.asarray(grid, jnp.float32)))
    drawn = np.einsum("ni,nj->ij", samples[:, :2], samples[:, 2:]) / len(grid)
    np.testing.assert_allclose(drawn, table, atol=0.02)


def test_the_most_entropy_is_that_of_uniform_actions():
    spaces = ActionSpace("discrete", 3), ActionSpace.of_choices(2, 3)
    np.testing.assert_allclose([max_entropy(space) for space in spaces], np.log([3, 6]))
    assert np.isnan(max_entropy(ActionSpace("continuous", 3)))


def test_normal_log_prob_and_entropy_are_the_closed_forms_summed_over_dimensions():
    mean, std = np.array([[0.5, -0.2], [0.0, 0.9]], np.float32), np.array([[0.1, 1.0], [0.3, 0.7]], np.float32)
    action = np.array([[0.4, 2.0], [0.0, -1.0]], np.float32)
    dist = BoundedNormal(jnp.asarray(mean), jnp.asarray(std))
    logp, entropy = dist.log_prob(jnp.asarray(action)), dist.entropy()
    np.testing.assert_allclose(logp, stats.norm.logpdf(action, mean, std).sum(-1), rtol=1e-4)
    np.testing.assert_allclose(entropy, stats.norm.entropy(mean, std).sum(-1), rtol=1e-5)
