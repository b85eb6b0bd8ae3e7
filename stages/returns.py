"""Returns: rewards and values along a trajectory -> lambda-returns, and the scale that advantages are divided by.

Axes: T time (leading). "..." and "*b" are any further axes. Source: DreamerV3, eq. 5 and 7.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.lax import stop_gradient as sg
from jaxtyping import Array, Bool, Float

from stages.config import Scalar


def lambda_return(
    reward: Float[Array, "T *b"],
    value: Float[Array, "T *b"],
    discount: Float[Array, "T *b"],
    is_last: Bool[Array, "T *b"] | Float[Array, "T *b"],
    lam: Scalar,
) -> Float[Array, "T-1 *b"]:
    """R_t = r_{t+1} + d_{t+1} ((1 - l_{t+1}) v_{t+1} + l_{t+1} R_{t+1}), l = lam (1 - is_last) (DreamerV3, eq. 5).

    Args:
        reward: arrival-indexed: reward[t] came with state t, so reward[0] is not used.
        value: bootstrap values; the last one starts the recursion.
        discount: d, the discount times the probability that the episode goes on after state t (0 at a terminal state).
        is_last: where a replayed sequence breaks off: bootstrap there instead of reading on into the next episode.
        lam: mixes one-step and longer returns.
    """
    lam_t = lam * (1 - is_last.astype(jnp.float32))
    inputs = (reward[1:] + discount[1:] * (1 - lam_t[1:]) * value[1:], discount[1:] * lam_t[1:])

    def step(next_ret, inputs):
        reward, decay = inputs
        ret = reward + decay * next_ret
        return ret, ret

    return lax.scan(step, value[-1], inputs, reverse=True)[1]


class ReturnScale(eqx.Module):
    """Moving averages of the 5th and 95th percentile of returns (DreamerV3, eq. 7) or of advantages; or 0 and the root
    mean square of advantages."""

    low: Float[Array, "..."]
    high: Float[Array, "..."]
    weight: Float[Array, "..."]  # the sum of the averages' weights, 0 at first: `divisor` debiases by it

    @staticmethod
    def zero() -> "ReturnScale":
        return ReturnScale(jnp.zeros(()), jnp.zeros(()), jnp.zeros(()))


def update_percentiles(
    scale: ReturnScale,
    returns: Float[Array, "..."],
    rate: Scalar,
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
    return ReturnScale(average(scale.low, low), average(scale.high, high), average(scale.weight, 1.0))


def update_rms(
    scale: ReturnScale,
    advantages: Float[Array, "..."],
    rate: Scalar,
    weight: Float[Array, "..."],
) -> ReturnScale:
    """The root mean square of `advantages`, which rises at once and falls slowly; sends no gradient.

    If the average rose slowly, the advantages of the first reward would be many times the average. They would decide
    the policy before the critic is right.

    Args:
        weight: how much each of them counts.
    """
    advantages, weight = sg((advantages, weight))
    rms = jnp.sqrt((weight * jnp.square(advantages)).sum() / weight.sum())
    high = jnp.maximum(rms, (1 - rate) * scale.high + rate * rms)
    return ReturnScale(jnp.zeros_like(high), high, jnp.ones_like(high))


def weighted_percentiles(
    x: Float[Array, "..."], weight: Float[Array, "..."], percent: Float[np.ndarray, " q"]
) -> Float[Array, " q"]:
    """For each q the smallest number in x at and below which lies at least q percent of all weight."""
    order = jnp.argsort(x.ravel())
    cumulative = jnp.cumsum(weight.ravel()[order])
    index = jnp.searchsorted(cumulative, percent / 100 * cumulative[-1])
    return x.ravel()[order][jnp.minimum(index, x.size - 1)]


def divisor(scale: ReturnScale, floor: Scalar, debias: bool) -> Float[Array, ""]:
    """max(floor, S). `debias` corrects the averages for their start at zero, which a floor of 1 hides (DreamerV3)
    and a small one does not."""
    spread = scale.high - scale.low
    if debias:
        spread = spread / jnp.maximum(scale.weight, 1e-8)
    return jnp.maximum(floor, spread)
