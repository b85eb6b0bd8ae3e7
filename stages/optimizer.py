"""Optimiser: adaptive gradient clipping and LaProp over all weights as one array.

Axes: R rows of 64 numbers, K tensors. A tensor begins on a row of its own, and zeros fill its last one; those of
ensemble members and of rewards are tensors of their own. A tenth of the operations that leaf after leaf would take is
compiled and run. Source: DreamerV3, Methods ("Optimizer"); the reference's opt.py.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from stages.config import Hypers
from stages.kernels import last_sum

WIDTH = 64


def optimizer(hypers: Hypers) -> Any:
    """LaProp (Ziyin et al. 2020, arXiv 2002.04839) after adaptive gradient clipping, with linear warm-up."""
    warmup = lambda count: -hypers.lr * jnp.minimum(1.0, count / jnp.maximum(1.0, hypers.warmup))
    laprop = optax.chain(
        optax.scale_by_rms(decay=0.999, eps=1e-20, eps_in_sqrt=False, bias_correction=True),
        optax.ema(0.9, debias=True),
        optax.scale_by_schedule(warmup),
    )

    def init(params: Any) -> Any:
        return laprop.init(to_rows(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        clipped = adaptive_clip(to_rows(updates), to_rows(params), tensor_rows(params), hypers.agc)
        rows: Any
        rows, state = laprop.update(clipped, state)
        return from_rows(rows, params), state

    return optax.GradientTransformation(init, update)


def adaptive_clip(
    grads: Float[Array, "R 64"],
    params: Float[Array, "R 64"],
    counts: np.ndarray,
    clip: Float[Array, ""] | float,
    floor: float = 1e-3,
) -> Float[Array, "R 64"]:
    """Scale each tensor's gradient so that its norm is at most `clip` times the parameter's (at least `floor`) norm.

    Norms are over whole tensors, as in the reference (optax's own works unit by unit; Brock et al. 2021, arXiv
    2102.06171). Members and rewards are clipped one by one: an ensemble trains as its members alone would.
    """
    norms = jnp.sqrt(tensor_sums(last_sum(jnp.square(jnp.stack([grads, params]))), counts))
    excess = jnp.maximum(1.0, norms[0] / (clip * jnp.maximum(floor, norms[1])))
    return grads / excess[np.repeat(np.arange(len(counts)), counts)][:, None]


def norm(agent: Any) -> Float[Array, ""]:
    """Of all numbers of an agent, or of a tree like it."""
    return jnp.sqrt(last_sum(jnp.square(to_rows(agent))).sum())


# ---- all weights as rows -------------------------------------------------------------------------------------------


def _stacked(agent: Any) -> Any:
    """A tree like the agent: how many tensors each leaf is."""
    ones = jax.tree.map(lambda _: 1, agent)
    where = lambda a: [x for x in (a.ensemble, a.tasker.critics, a.explorer and a.explorer.critics) if x is not None]
    return eqx.tree_at(where, ones, [jax.tree.map(len, part) for part in where(agent)])


def tensor_rows(agent: Any) -> np.ndarray:
    """Rows of each tensor, [K]. The agent may be one of shapes."""
    leaves, stacked = jax.tree.leaves(agent), jax.tree.leaves(_stacked(agent))
    rows = [[-(-x.size // n // WIDTH)] * n for x, n in zip(leaves, stacked, strict=True)]
    return np.concatenate(rows)


def to_rows(agent: Any) -> Float[Array, "R 64"]:
    """All numbers of an agent, or of a tree like it."""
    pieces = []
    for x, count in zip(jax.tree.leaves(agent), jax.tree.leaves(_stacked(agent)), strict=True):
        x = x.reshape(count, -1)
        zeros = jnp.zeros((count, -x.shape[1] % WIDTH), x.dtype)
        pieces += [x.ravel(), zeros.ravel()] if count == 1 else [jnp.concatenate([x, zeros], 1).ravel()]
    return jnp.concatenate(pieces).reshape(-1, WIDTH)


def from_rows(rows: Float[Array, "R 64"], like: Any) -> Any:
    """Undo to_rows."""
    leaves, structure = jax.tree.flatten(like)
    stacked, at, back = jax.tree.leaves(_stacked(like)), 0, []
    for x, count in zip(leaves, stacked, strict=True):
        size = x.size // count
        end = at + count * -(-size // WIDTH)
        back.append(rows[at:end].reshape(count, -1)[:, :size].reshape(x.shape))
        at = end
    return structure.unflatten(back)


def tensor_sums(x: Float[Array, "... R"], counts: np.ndarray) -> Float[Array, "... K"]:
    """Sums of consecutive stretches of `counts` numbers: 64 at a time, in the same order on every machine."""
    while counts.max() > 1:
        ends, counts = np.cumsum(counts), -(-counts // WIDTH)
        begins = np.concatenate([[0], ends[:-1]])
        last, begins = np.repeat(ends, counts), np.repeat(begins, counts)
        rank = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        index = (begins + rank * WIDTH)[:, None] + np.arange(WIDTH)
        padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 1)])
        x = padded[..., np.where(index < last[:, None], index, x.shape[-1])].sum(-1)
    return x
