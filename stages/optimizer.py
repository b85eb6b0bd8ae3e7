"""Optimiser: adaptive gradient clipping and LaProp, as an optax transformation.

It works on all tensors as rows of one array (fast/rows.py), K tensors in R rows of 64 numbers. Source: DreamerV3,
Methods ("Optimizer"); the reference's opt.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from stages.config import Hypers, Scalar
from stages.fast.kernels import last_sum
from stages.fast.rows import WIDTH, from_rows, tensor_rows, tensor_sums, to_rows


def optimizer(hypers: Hypers) -> optax.GradientTransformation:
    """LaProp (Ziyin et al. 2020, arXiv 2002.04839) after adaptive gradient clipping, with linear warm-up."""

    def step_size(count: ArrayLike) -> Array:
        # From a first step of 0 (the reference's), unless there is no warm-up at all.
        warmup_fraction = jnp.minimum(1.0, count / jnp.maximum(1.0, hypers.warmup))
        return -hypers.lr * jnp.where(hypers.warmup < 1, 1.0, warmup_fraction)

    laprop = optax.chain(
        optax.scale_by_rms(decay=0.999, eps=1e-20, eps_in_sqrt=False, bias_correction=True),
        optax.ema(0.9, debias=True),
        optax.scale_by_schedule(step_size),
    )

    def init(params: PyTree) -> optax.OptState:
        return laprop.init(jnp.zeros((tensor_rows(params).sum(), WIDTH)))  # of which it takes the shape alone

    def update(updates: PyTree, state: optax.OptState, params: PyTree = None) -> tuple[PyTree, optax.OptState]:
        clipped = adaptive_clip(to_rows(updates), to_rows(params), tensor_rows(params), hypers.agc)
        rows, state = laprop.update(clipped, state)
        return from_rows(jnp.asarray(rows), params), state

    return optax.GradientTransformation(init, update)


def adaptive_clip(
    grads: Float[Array, "R 64"],
    params: Float[Array, "R 64"],
    counts: np.ndarray,
    clip: Scalar,
    floor: float = 1e-3,
) -> Float[Array, "R 64"]:
    """Scale each tensor's gradient so that its norm is at most `clip` times the parameter's (at least `floor`) norm.

    Norms are over whole tensors, as in the reference (optax's own works unit by unit; Brock et al. 2021, arXiv
    2102.06171). The modules of a Stacked are clipped one by one: each member of an ensemble trains as it would alone.

    Args:
        counts: rows of each tensor, [K].
    """
    norms = jnp.sqrt(tensor_sums(last_sum(jnp.square(jnp.stack([grads, params]))), counts))
    excess = jnp.maximum(1.0, norms[0] / (clip * jnp.maximum(floor, norms[1])))
    return grads / excess[np.repeat(np.arange(len(counts)), counts)][:, None]


def drop_opt_state(state: optax.OptState, before: PyTree, after: PyTree) -> optax.OptState:
    """The optimiser's state for `after`, from that for `before`. `after` is `before` with some parts None."""

    def kept(rows: Float[Array, "R 64"]) -> Float[Array, "Q 64"]:
        moments = from_rows(rows, before)
        return to_rows(jax.tree.map(lambda part, x: None if part is None else x, after, moments, is_leaf=_is_none))

    shape = (tensor_rows(before).sum(), WIDTH)
    return jax.tree.map(lambda x: kept(x) if x.shape == shape else x, state)


def _is_none(x: object) -> bool:
    return x is None
