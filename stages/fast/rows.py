"""All tensors of a module as one array of rows, so that an optimiser's elementwise work compiles to a few operations.

Axes: R rows of 64 numbers, K tensors. A tensor begins on a row of its own, and zeros fill its last one. Each array
of each module in a `Stacked` one is a tensor of its own. This compiles and runs a tenth of the operations that the same
work leaf by leaf would take.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree

from stages.fast.kernels import last_sum
from stages.fast.stacked import Stacked

WIDTH = 64


def _leaves(tree: PyTree) -> list[tuple[Any, int]]:
    """Every leaf, and how many tensors it is: N in a Stacked module of N, else 1."""
    parts = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, Stacked))
    return [(x, len(part) if isinstance(part, Stacked) else 1) for part in parts for x in jax.tree.leaves(part)]


def tensor_rows(tree: PyTree) -> np.ndarray:
    """Rows of each tensor, [K]. The tree may be one of shapes."""
    return np.concatenate([[-(-x.size // count // WIDTH)] * count for x, count in _leaves(tree)])


def to_rows(tree: PyTree) -> Float[Array, "R 64"]:
    """All numbers of a tree of arrays."""
    pieces = []
    for x, count in _leaves(tree):
        x = x.reshape(count, -1)
        zeros = jnp.zeros((count, -x.shape[1] % WIDTH), x.dtype)
        # Two pieces, or one: `reshape`, since `ravel` is a function of its own that is traced for every tensor.
        joined = [x, zeros] if count == 1 else [jnp.concatenate([x, zeros], 1)]
        pieces += [piece.reshape(-1) for piece in joined if piece.size]
    return jnp.concatenate(pieces).reshape(-1, WIDTH)


def from_rows(rows: Float[Array, "R 64"], like: PyTree) -> PyTree:
    """Undo to_rows: a tree like `like`, which may be one of shapes."""
    start, arrays = 0, []
    for x, count in _leaves(like):
        size = x.size // count
        end = start + count * -(-size // WIDTH)
        tensor = lax.slice_in_dim(rows, start, end).reshape(count, -1)
        arrays.append(lax.slice_in_dim(tensor, 0, size, axis=1).reshape(x.shape))
        start = end
    return jax.tree.structure(like).unflatten(arrays)


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


def norm(tree: PyTree) -> Float[Array, ""]:
    """The Euclidean norm of all numbers of a tree."""
    return jnp.sqrt(last_sum(jnp.square(to_rows(tree))).sum())
