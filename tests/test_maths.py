"""maths.py's categoricals and returns against plain numpy, hand tables and closed forms; test_two_hot.py has the rest.

Axes: K classes, S latents, T time, B batch.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from stages import maths
from stages.maths import Categorical, ReturnScale
from tests.conftest import AS_IN_A_RUN
from tests.test_kernels import softmax

# What is exact here must stay so when the compiler rewrites it.
optimised = functools.partial(jax.jit, compiler_options=AS_IN_A_RUN)
either = pytest.mark.parametrize("run", [lambda f: f, optimised], ids=["eager", "jit"])
close = chex.assert_trees_all_close


def categorical(probs) -> Categorical:
    """The record of given probabilities."""
    probs = jnp.asarray(probs, jnp.float32)
    return Categorical(probs, jnp.log(probs))


# ---- categoricals --------------------------------------------------------------------------------------------------


@either
@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.3])
def test_unimix_mixes_probabilities(run, ratio):
    logits = np.random.default_rng(3).normal(size=(5, 6)).astype(np.float32) * 3
    dist = run(maths.unimix)(logits, ratio)
    probs = (1 - ratio) * softmax(logits) + ratio / 6
    close(dist, Categorical(probs, np.log(probs)), rtol=1e-5, atol=1e-6)
    close(dist.probs.sum(-1), np.ones(5), rtol=1e-6)


def test_unimix_keeps_every_class_alive():
    dist = maths.unimix(np.float32([[200, -200, 0, 0], [-90, -90, -90, 90]]), 0.01)
    assert (dist.probs >= np.float32(0.01) / 4).all()
    chex.assert_tree_all_finite(dist)


def test_unimix_of_half_precision_is_float32():
    dist = maths.unimix(jnp.zeros(4, jnp.bfloat16), 0.01)
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
    index = run(maths.sample_index)(np.broadcast_to(np.float32(probs), (len(table), len(probs))), uniform)
    chex.assert_trees_all_equal(index, np.array(list(table.values()), np.int32))


def test_sample_index_divides_even_uniforms_by_the_probabilities():
    probs = np.float32([0.05, 0.4, 0.02, 0.33, 0.2])
    uniform = ((np.arange(5000) + 0.5) / 5000).astype(np.float32)
    index = maths.sample_index(np.broadcast_to(probs, (5000, 5)), uniform)
    assert (np.abs(np.bincount(index, minlength=5) - 5000 * probs) <= 1).all()


def test_sample_index_frequencies():
    probs, count = np.float32([0.05, 0.4, 0.02, 0.33, 0.2]), 20_000
    index = jax.jit(maths.sample_index)(jnp.broadcast_to(probs, (count, 5)), jr.uniform(jr.key(0), (count,)))
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
    index = np.asarray(run(maths.sample_index)(probs, np.full(100, largest)))
    assert ((index >= 0) & (index < count)).all()
    assert (index[:20] == count - 1).all()


@either
def test_straight_through_is_one_hot_with_the_gradient_of_probs(run):
    rng = np.random.default_rng(5)
    logits, weights = rng.normal(size=(6, 4)).astype(np.float32), rng.normal(size=(6, 4)).astype(np.float32)
    index = np.array([0, 1, 2, 3, 0, 2])
    sample = lambda logits: maths.straight_through(index, jax.nn.softmax(logits))
    chex.assert_trees_all_equal(run(sample)(logits), np.eye(4, dtype=np.float32)[index])
    probs = softmax(logits)
    by_hand = probs * (weights - (probs * weights).sum(-1, keepdims=True))
    close(run(jax.grad(lambda x: (weights * sample(x)).sum()))(logits), by_hand, atol=1e-6)


@either
def test_kl_and_entropy(run):
    rng = np.random.default_rng(6)
    p, q = softmax(rng.normal(size=(3, 5))), softmax(rng.normal(size=(3, 5)))
    close(run(maths.kl)(categorical(p), categorical(q)), (p * np.log(p / q)).sum(-1), atol=1e-6)
    close(run(maths.entropy)(categorical(p)), -(p * np.log(p)).sum(-1), rtol=1e-5)
    close(maths.entropy(categorical(np.full(8, 1 / 8))), np.log(8), rtol=1e-6)


# [0.9, 0.1] || [0.5, 0.5] = 0.368 nats, and the other way round 0.511.
POST, PRIOR = np.float32([0.9, 0.1]), np.float32([0.5, 0.5])
KL = 0.9 * np.log(1.8) + 0.1 * np.log(0.2)


def test_balanced_kl_is_of_the_posterior_from_the_prior():
    dyn, rep = maths.balanced_kl(categorical(POST[None]), categorical(PRIOR[None]), 0.0)
    close((dyn, rep), (KL, KL), rtol=1e-5)


@pytest.mark.parametrize("latents, loss", [(1, 1.0), (2, 1.0), (3, 3 * KL), (10, 10 * KL)])
def test_free_nats_clip_the_sum_over_latents(latents, loss):
    # Clipped one by one, two latents would lose 2 nats and three of them 3.
    stack = lambda probs: jnp.log(jnp.tile(probs, (5, latents, 1)))
    post, prior = stack(POST), stack(PRIOR)
    both = lambda post, prior: maths.balanced_kl(maths.unimix(post, 0.0), maths.unimix(prior, 0.0), 1.0)
    close(both(post, prior), (np.full(5, loss), np.full(5, loss)), rtol=1e-5)
    for grad in jax.jit(jax.grad(lambda *x: sum(y.sum() for y in both(*x)), (0, 1)))(post, prior):
        assert (jnp.abs(grad) > 0.01).all() == (latents > 2) and (grad == 0).all() == (latents <= 2)


@either
def test_balanced_kl_moves_the_prior_by_dyn_and_the_posterior_by_rep(run):
    rng = np.random.default_rng(7)
    post, prior = rng.normal(size=(2, 4, 3, 5)).astype(np.float32)
    part = lambda i: lambda *x: maths.balanced_kl(*(maths.unimix(y, 0.0) for y in x), 0.0)[i].sum()
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

    part = lambda i: lambda *x: maths.balanced_kl(*(maths.unimix(y, 0.1) for y in x), 0.0)[i]
    floats = (jnp.float32(post), jnp.float32(prior))
    close(jax.jit(jax.grad(part(0), 1))(*floats), slope(lambda x: loss(post, x), prior), atol=1e-5)
    close(jax.jit(jax.grad(part(1), 0))(*floats), slope(lambda x: loss(x, prior), post), atol=1e-5)


# ---- returns -------------------------------------------------------------------------------------------------------

REWARD, VALUE = np.float32([9, 1, 2, 3]), np.float32([7, 10, 20, 30])
HALF, NEVER = [0.5, 0.5, 0.5, 0.5], [False] * 4


@either
@pytest.mark.parametrize(
    "live, last, lam, expected",
    [
        (HALF, NEVER, 0.5, [1 + (5 + 5.75) / 2, 2 + (10 + 9) / 2, 3 + 15]),
        (HALF, NEVER, 0.0, [1 + 5, 2 + 10, 3 + 15]),
        (HALF, NEVER, 1.0, [1 + 5.5, 2 + 9, 3 + 15]),
        # State 2 is terminal: nothing after its own reward counts.
        ([0.5, 0.5, 0.0, 0.5], NEVER, 0.5, [1 + (5 + 1) / 2, 2, 3 + 15]),
        ([0.5, 0.5, 0.0, 0.5], [False, False, True, False], 0.5, [1 + (5 + 1) / 2, 2, 3 + 15]),
        # State 2 is where a time limit cut: its whole worth is its value.
        (HALF, [False, False, True, False], 0.5, [1 + (5 + 6) / 2, 2 + 10, 3 + 15]),
        (HALF, [False, False, True, False], 1.0, [1 + 6, 2 + 10, 3 + 15]),
        # What the very first state says of itself belongs to no return here.
        ([0.0, 0.5, 0.5, 0.5], [True, False, False, False], 0.5, [1 + (5 + 5.75) / 2, 2 + (10 + 9) / 2, 3 + 15]),
    ],
)
def test_lambda_return_by_hand(run, live, last, lam, expected):
    returns = run(maths.lambda_return)(REWARD, VALUE, np.float32(live), np.array(last), lam)
    close(returns, np.float32(expected), rtol=1e-6)


def test_lambda_return_reads_neither_the_first_reward_nor_the_first_value():
    spoil = lambda x: np.concatenate([[np.nan], x[1:]]).astype(np.float32)
    args = (np.float32(HALF), np.array(NEVER), 0.5)
    close(maths.lambda_return(spoil(REWARD), spoil(VALUE), *args), maths.lambda_return(REWARD, VALUE, *args))


@either
@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_lambda_return_agrees_with_a_slow_recursion(run, lam):
    rng = np.random.default_rng(9)
    reward, value = rng.normal(size=(2, 12, 4)).astype(np.float32)
    live = (0.99 * (rng.uniform(size=(12, 4)) > 0.2)).astype(np.float32)
    last = rng.uniform(size=(12, 4)) < 0.2

    def ret(t, b):
        """R_t of one column."""
        if t == 11:
            return value[t, b]
        bootstrap = last[t + 1, b]
        ahead = value[t + 1, b] if bootstrap else (1 - lam) * value[t + 1, b] + lam * ret(t + 1, b)
        return reward[t + 1, b] + live[t + 1, b] * ahead

    slow = np.array([[ret(t, b) for b in range(4)] for t in range(11)])
    close(run(maths.lambda_return)(reward, value, live, last, lam), slow, rtol=1e-5, atol=1e-5)


def test_return_scale_is_a_moving_average_of_percentiles():
    rng, update = np.random.default_rng(10), jax.jit(maths.update_scale)
    scale, low, high = ReturnScale.zero(), 0.0, 0.0
    for step in range(5):
        returns = rng.normal(size=(7, 9)).astype(np.float32) * (1 + step)
        scale = update(scale, returns, 0.1)
        low, high = 0.9 * low + 0.1 * np.percentile(returns, 5), 0.9 * high + 0.1 * np.percentile(returns, 95)
    close(scale, ReturnScale(low, high, 1 - 0.9**5), rtol=1e-4)


def test_return_scale_sends_no_gradient():
    spread = lambda x: maths.divisor(maths.update_scale(ReturnScale.zero(), x, 0.5), 1e-8, True)
    chex.assert_trees_all_equal(jax.grad(spread)(jnp.arange(9.0)), jnp.zeros(9))


@either
@pytest.mark.parametrize(
    "floor, debias, expected",
    [(1.0, False, 1.5), (2.0, False, 2.0), (1.0, True, 6.0), (1e-8, False, 1.5), (7.0, True, 7.0)],
)
def test_divisor_is_the_spread_but_no_less_than_the_floor(run, floor, debias, expected):
    scale = ReturnScale(jnp.float32(-0.5), jnp.float32(1.0), jnp.float32(0.25))
    close(run(lambda scale, floor: maths.divisor(scale, floor, debias))(scale, floor), expected)


@pytest.mark.parametrize("steps", [1, 2, 30])
def test_debias_makes_up_for_the_start_at_zero(steps):
    returns, scale = np.linspace(0, 1e-3, 101, dtype=np.float32), ReturnScale.zero()
    for _ in range(steps):
        scale = maths.update_scale(scale, returns, 0.01)
    close(maths.divisor(scale, 1e-8, True), 0.9e-3, rtol=1e-4)
    close(maths.divisor(scale, 1e-8, False), 0.9e-3 * (1 - 0.99**steps), rtol=1e-4)


def test_debias_before_any_return_is_the_floor():
    close(maths.divisor(ReturnScale.zero(), 1e-8, True), 1e-8)
