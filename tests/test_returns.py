"""returns.py against hand tables, a slow recursion and plain numpy.

Axes: T time, B batch.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from stages.returns import ReturnScale, divisor, lambda_return, update_percentiles, update_rms, weighted_percentiles
from tests.by_hand import close, either

REWARD, VALUE = jnp.float32([9, 1, 2, 3]), jnp.float32([7, 10, 20, 30])
HALF, NEVER = [0.5, 0.5, 0.5, 0.5], [False] * 4


@either
@pytest.mark.parametrize(
    "discount, last, lam, expected",
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
def test_lambda_return_by_hand(run, discount, last, lam, expected):
    returns = run(lambda_return)(REWARD, VALUE, np.float32(discount), np.array(last), lam)
    close(returns, np.float32(expected), rtol=1e-6)


def test_annotations_are_checked_while_testing():
    """conftest.py's import hook: a shape that contradicts its annotation stops a public function at its door."""
    four, five, never = jnp.zeros(4), jnp.zeros(5), jnp.zeros(4, bool)
    assert lambda_return(four, four, four, never, 0.9).shape == (3,)
    with pytest.raises(TypeCheckError, match="lambda_return"):
        lambda_return(four, five, four, never, 0.9)


def test_lambda_return_reads_neither_the_first_reward_nor_the_first_value():
    spoil = lambda x: x.at[0].set(jnp.nan)
    args = (jnp.float32(HALF), jnp.array(NEVER), 0.5)
    close(lambda_return(spoil(REWARD), spoil(VALUE), *args), lambda_return(REWARD, VALUE, *args))


@either
@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_lambda_return_agrees_with_a_slow_recursion(run, lam):
    rng = np.random.default_rng(9)
    reward, value = rng.normal(size=(2, 12, 4)).astype(np.float32)
    discount = (0.99 * (rng.uniform(size=(12, 4)) > 0.2)).astype(np.float32)
    last = rng.uniform(size=(12, 4)) < 0.2

    def ret(t, b):
        """R_t of one column."""
        if t == 11:
            return value[t, b]
        bootstrap = last[t + 1, b]
        ahead = value[t + 1, b] if bootstrap else (1 - lam) * value[t + 1, b] + lam * ret(t + 1, b)
        return reward[t + 1, b] + discount[t + 1, b] * ahead

    slow = np.array([[ret(t, b) for b in range(4)] for t in range(11)])
    close(run(lambda_return)(reward, value, discount, last, lam), slow, rtol=1e-5, atol=1e-5)


def test_return_scale_is_a_moving_average_of_percentiles():
    rng, update = np.random.default_rng(10), jax.jit(update_percentiles)
    scale, low, high = ReturnScale.zero(), 0.0, 0.0
    for step in range(5):
        returns = rng.normal(size=(7, 9)).astype(np.float32) * (1 + step)
        scale = update(scale, returns, 0.1)
        low, high = 0.9 * low + 0.1 * np.percentile(returns, 5), 0.9 * high + 0.1 * np.percentile(returns, 95)
    close((scale.low, scale.high, scale.weight), (low, high, 1 - 0.9**5), rtol=1e-4)


def test_return_scale_sends_no_gradient():
    spread = lambda x: divisor(update_percentiles(ReturnScale.zero(), x, 0.5), 1e-8, True)
    chex.assert_trees_all_equal(jax.grad(spread)(jnp.arange(9.0)), jnp.zeros(9))


@either
@pytest.mark.parametrize(
    "floor, debias, expected",
    [(1.0, False, 1.5), (2.0, False, 2.0), (1.0, True, 6.0), (1e-8, False, 1.5), (7.0, True, 7.0)],
)
def test_divisor_is_the_spread_but_no_less_than_the_floor(run, floor, debias, expected):
    scale = ReturnScale(jnp.float32(-0.5), jnp.float32(1.0), jnp.float32(0.25))
    close(run(lambda scale, floor: divisor(scale, floor, debias))(scale, floor), expected)


@pytest.mark.parametrize("steps", [1, 2, 30])
def test_debias_makes_up_for_the_start_at_zero(steps):
    returns, scale = jnp.linspace(0, 1e-3, 101), ReturnScale.zero()
    for _ in range(steps):
        scale = update_percentiles(scale, returns, 0.01)
    close(divisor(scale, 1e-8, True), 0.9e-3, rtol=1e-4)
    close(divisor(scale, 1e-8, False), 0.9e-3 * (1 - 0.99**steps), rtol=1e-4)


def test_debias_before_any_return_is_the_floor():
    close(divisor(ReturnScale.zero(), 1e-8, True), 1e-8)


def test_weighted_percentiles_by_hand():
    x, weight = jnp.array([[3.0, 1.0], [2.0, 9.0]]), jnp.array([[1.0, 2.0], [1.0, 0.0]])
    close(weighted_percentiles(x, weight, np.float32([5, 49, 51, 74, 76, 100])), np.float32([1, 1, 2, 2, 3, 3]))


def test_with_weights_alike_percentiles_are_the_plain_ones_and_without_weight_nothing_counts():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(40, 50)), jnp.float32)
    plain, alike = (update_percentiles(ReturnScale.zero(), x, 1.0, w) for w in (None, jnp.full(x.shape, 0.3)))
    close((alike.low, alike.high), (plain.low, plain.high), atol=0.03)
    noisy = jnp.concatenate([x, 1e6 * x])
    only = update_percentiles(ReturnScale.zero(), noisy, 1.0, jnp.concatenate([jnp.ones_like(x), jnp.zeros_like(x)]))
    close((only.low, only.high), (plain.low, plain.high), atol=0.03)


def test_the_root_mean_square_rises_at_once_and_falls_slowly():
    scale, seen = ReturnScale.zero(), []
    for factor in (1.0, 10.0, 0.0, 0.0):
        # Squares 1, 4 and 16 count 2, 1 and 1 times: their mean is 22 / 4.
        advantages, weight = factor * jnp.float32([[-1.0, 2.0], [4.0, 99.0]]), jnp.float32([[0.5, 0.25], [0.25, 0.0]])
        scale = update_rms(scale, advantages, 0.1, weight)
        seen.append(float(divisor(scale, 0.5, True)))
    rms = 5.5**0.5
    close(seen, [rms, 10 * rms, 9 * rms, 8.1 * rms], rtol=1e-5)
    close(divisor(scale, 1e3, True), 1e3)


def test_the_root_mean_square_sends_no_gradient():
    spread = lambda x: divisor(update_rms(ReturnScale.zero(), x, 0.5, jnp.abs(x)), 1e-8, True)
    chex.assert_trees_all_equal(jax.grad(spread)(jnp.arange(1.0, 9.0)), jnp.zeros(8))
