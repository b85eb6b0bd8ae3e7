"""Blocks: a sum over many rows, taken with its gradient one block after another, so that each block stays in a cache.

The loss of an imagined start needs no other start, but its activations are large: all of them at once wander through
main memory at every operation. In blocks they do not, and what a block computed for its gradient is gone with it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

CACHED = 64
"""Starts of a block on a CPU, measured: see docs/speed.md."""


def count(rows: int, size: int) -> int:
    """The fewest equal blocks of at most `size` of `rows` rows; 0 takes what suits the machine: 64 on a CPU, and on
    an accelerator all rows at once."""
    size = size or (CACHED if jax.default_backend() == "cpu" else rows)
    return next(n for n in range(1, rows + 1) if rows % n == 0 and rows // n <= max(1, size))


def split(tree: PyTree[Array], blocks: int, axis: int = 0) -> PyTree[Array]:
    """Leaves [..., rows, ...] with rows at `axis` -> [blocks, ..., rows / blocks, ...]."""
    apart = lambda x: x.reshape(*x.shape[:axis], blocks, -1, *x.shape[axis + 1 :])
    return jax.tree.map(lambda x: jnp.moveaxis(apart(x), axis, 0), tree)


def sum_over(
    loss: Callable[[Any, Any, Any], tuple[Float[Array, ""], Any]], params: Any, known: Any, blocks: Any
) -> tuple[Float[Array, ""], Any]:
    """Sum of `loss(params, known, block)[0]` over the blocks, and what it returned besides, stacked [blocks, ...].

    Sends gradient to `params` only. `loss` must not close over anything traced: that is what `known` is for.
    """

    def forward(params, known, blocks):
        def one(total, block):
            (value, kept), grad = jax.value_and_grad(loss, has_aux=True)(params, known, block)
            return jax.tree.map(jnp.add, total, (value, grad)), kept

        zero = jax.tree.map(jnp.zeros_like, (jnp.float32(0), params))
        (value, grad), kept = lax.scan(one, zero, blocks)
        return (value, kept), grad

    summed = jax.custom_vjp(lambda *args: forward(*args)[0])
    summed.defvjp(forward, lambda grad, ct: (jax.tree.map(lambda g: ct[0] * g, grad), None, None))
    return summed(params, known, blocks)
