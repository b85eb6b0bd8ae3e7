"""Scalars as distributions over bins: two-hot targets, their cross-entropy and the expected value.

Axes: I bins. "..." are any leading axes. Source: DreamerV3, eq. 10 and 11.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stages.fast.kernels import exponentials, matmul_highest
from stages.networks.symlog import symlog


def symexp_bins(count: int) -> np.ndarray:
    """Bins [I] at symexp of `count` even points in -20 ... 20, exactly symmetric (DreamerV3, eq. 10). count is odd."""
    half = np.linspace(-20, 0, (count - 1) // 2 + 1, dtype=np.float32)
    half = np.sign(half) * np.expm1(np.abs(half))
    return np.concatenate([half, -half[:-1][::-1]])


def two_hot(target: Float[Array, "..."], bins: np.ndarray) -> Float[Array, "... I"]:
    """Weights on the two bins around `target`, linear between them, clipped to the outermost (DreamerV3, eq. 11).

    Each bin's weight is a hat function, so that nothing is gathered and XLA fuses it into the loss that reads it.
    """
    gaps = np.diff(bins)
    below, above = np.append(1.0, gaps), np.append(gaps, 1.0)
    away = jnp.clip(target, bins[0], bins[-1])[..., None] - bins
    rising = 1 + away / below.astype(np.float32)
    falling = 1 - away / above.astype(np.float32)
    return jnp.maximum(0.0, jnp.minimum(rising, falling))


def two_hot_mean(logits: Float[Array, "... I"], bins: np.ndarray) -> Float[Array, "..."]:
    """Expected bin. The halves are subtracted from each other, so that uniform logits give exactly 0."""
    powers, total, _ = exponentials(logits)
    half = (len(bins) - 1) // 2
    low, high = powers[..., :half][..., ::-1], powers[..., half + 1 :]
    # A matrix product instead of a sum of products: on a CPU, XLA takes 3 times as long for the latter.
    return matmul_highest(high - low, bins[half + 1 :]) / total[..., 0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def two_hot_loss(
    logits: Float[Array, "... I"], targets: Float[Array, "n ..."], weights: Float[Array, " n"], count: int
) -> Float[Array, "..."]:
    """sum_n weights[n] * cross_entropy(logits, two_hot(targets[n], symexp_bins(count))), nats.

    Computed without the two-hot vectors: a target has weight on two bins, so only two logits are read.
    Sends gradient to the logits only.
    """
    return _two_hot_loss(logits, targets, weights, count)[0]


def _two_hot_loss(logits, targets, weights, count):
    bins = symexp_bins(count)
    # Bins are evenly spaced in symlog. If rounding picks the neighbouring bin, the clipped share is still right.
    index = jnp.floor((symlog(targets) + 20) * ((count - 1) / 40))
    index = jnp.clip(index, 0, count - 2).astype(jnp.int32)
    share = jnp.clip((targets - jnp.asarray(bins)[index]) / jnp.asarray(np.diff(bins))[index], 0, 1)
    lower, upper = (jnp.take_along_axis(logits[None], i[..., None], -1)[..., 0] for i in (index, index + 1))
    matched = (1 - share) * lower + share * upper
    powers, total, top = exponentials(logits)
    loss = jnp.tensordot(weights, (jnp.log(total) + top)[..., 0] - matched, 1)
    return loss, (powers, total, targets, weights)


def _two_hot_loss_grad(count, saved, grad):
    powers, total, targets, weights = saved
    matched = sum(weights[i] * two_hot(targets[i], symexp_bins(count)) for i in range(targets.shape[0]))
    return grad[..., None] * ((weights.sum() / total) * powers - matched), None, None


two_hot_loss.defvjp(_two_hot_loss, _two_hot_loss_grad)


def cross_entropy(logits: Float[Array, "... I"], weights: Float[Array, "... I"]) -> Float[Array, "..."]:
    """-sum(weights * log softmax(logits)), nats. Weights need not sum to one: those of two targets may be added."""
    return -jnp.sum(weights * jax.nn.log_softmax(logits), -1)
