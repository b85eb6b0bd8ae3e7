"""Returns: rewards and values along a trajectory -> lambda-returns, and the scale that advantages are divided by.

Axes: T time (leading). "..." and "*b" are any further axes. Source: DreamerV3, eq. 5 and 7.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.lax import stop_gradient as sg
from jaxtyping import Array, Bool, Float


def lambda_return(
    reward: Float[Array, "T *b"],
    value: Float[Array, "T *b"],
    discount: Float[Array, "T *b"],
    last: Bool[Array, "T *b"] | Float[Array, "T *b"],
    lam: Float[Array, ""] | float,
) -> Float[Array, "T-1 *b"]:
    """R_t = r_{t+1} + d_{t+1} ((1 - l_{t+1}) v_{t+1} + l_{t+1} R_{t+1}), l = lam (1 - last) (DreamerV3, eq. 5).

    Args:
        reward: arrival-indexed: reward[t] came with state t, so reward[0] is not used.
        value: bootstrap values; the last one starts the recursion.
        discount: d, the discount times the probability that the episode goes on after state t (0 at a terminal state).
        last: where a replayed sequence breaks off: bootstrap there instead of reading on into the next episode.
        lam: mixes one-step and longer returns.
    """
    lam_t = lam * (1 - last.astype(jnp.float32))
    inputs = (reward[1:] + discount[1:] * (1 - lam_t[1:]) * value[1:], discount[1:] * lam_t[1:])

    def back(following, step):
        here, decay = step
        ret = here + decay * following
        return ret, ret

    return lax.scan(back, value[-1], inputs, reverse=True)[1]


class ReturnScale(eqx.Module):
    """Moving averages of the 5th and 95th percentile of returns (DreamerV3, eq. 7)."""

    low: Float[Array, "..."]
    high: Float[Array, "..."]
    weight: Float[Array, "..."]
    peak: Float[Array, "..."]  # the largest range of the averages so far

    @staticmethod
    def zero() -> "ReturnScale":
        return ReturnScale(*[jnp.zeros(())] * 4)


def update_scale(
    scale: ReturnScale,
    returns: Float[Array, "..."],
    rate: Float[Array, ""] | float,
    weight: Float[Array, "..."] | None = None,
) -> ReturnScale:
    """One step of the moving averages towards the percentiles of `returns`; sends no gradient.

    Args:
        weight: how much each of them counts; all alike if None (the reference's).
    """
    if weight is None:
        low, high = jnp.percentile(sg(returns), np.array([5.0, 95.0], np.float32))
    else:
        low, high = weighted_percentiles(sg(returns), sg(weight), np.array([5.0, 95.0], np.float32))
    average = lambda old, new: (1 - rate) * old + rate * new
    low, high = average(scale.low, low), average(scale.high, high)
    return ReturnScale(low, high, average(scale.weight, 1.0), jnp.maximum(scale.peak, high - low))


def weighted_percentiles(
    x: Float[Array, "..."], weight: Float[Array, "..."], percent: Float[np.ndarray, " q"]
) -> Float[Array, " q"]:
    """The smallest numbers below which, themselves included, lies that percentage of all weight."""
    order = jnp.argsort(x.ravel())
    below = jnp.cumsum(weight.ravel()[order])
    at = jnp.searchsorted(below, percent / 100 * below[-1])
    return x.ravel()[order][jnp.minimum(at, x.size - 1)]


def return_range(scale: ReturnScale, debias: bool) -> Float[Array, "..."]:
    """S. `debias` corrects the averages for their start at zero, which a divisor's floor of 1 hides (DreamerV3) and a
    small one does not."""
    spread = scale.high - scale.low
    return spread / jnp.maximum(scale.weight, 1e-8) if debias else spread


class StartValue(eqx.Module):
    """A moving average of a critic's values of starting states."""

    total: Float[Array, "..."]
    weight: Float[Array, "..."]  # what the average sums to: it starts at zero

    @staticmethod
    def zero() -> "StartValue":
        return StartValue(jnp.zeros(()), jnp.zeros(()))

    @property
    def mean(self) -> Float[Array, "..."]:
        """0 before any starting state was seen."""
        return self.total / jnp.maximum(self.weight, 1e-8)


def update_start_value(
    start: StartValue, value: Float[Array, "*b"], is_first: Bool[Array, "*b"], rate: Float[Array, ""] | float
) -> StartValue:
    """One step of the average towards the values at rows that begin an episode; none where there is no such row."""
    count = is_first.sum()
    rate = jnp.where(count > 0, rate, 0.0)
    mean = jnp.where(is_first, sg(value), 0.0).sum() / jnp.maximum(count, 1)
    return StartValue((1 - rate) * start.total + rate * mean, (1 - rate) * start.weight + rate)
