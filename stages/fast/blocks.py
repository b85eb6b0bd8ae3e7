"""Many rows computed one block after another, so that what a block works on stays in a processor's cache.

Imagined starts do not depend on each other, but their activations are large: those of all starts at once do not fit
into the cache, and go through main memory at every operation. `lax.map` over blocks computes a function block by block.
`sum_over` sums a loss and takes its gradient within each block, so that a block's saved activations are freed with it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

CPU_BLOCK = 64
"""Rows of a block on a CPU, measured: see docs/speed.md."""


def count(rows: int, size: int) -> int:
    """The fewest equal blocks of at most `size` rows; 0 takes CPU_BLOCK on a CPU and all rows on accelerators."""
    size = size or (CPU_BLOCK if jax.default_backend() == "cpu" else rows)
    return next(n for n in range(1, rows + 1) if rows % n == 0 and rows // n <= max(1, size))


def split(tree: PyTree[Array], blocks: int, axis: int = 0) -> PyTree[Array]:
    """Leaves [..., rows, ...] with rows at `axis` -> [blocks, ..., rows / blocks, ...]."""

    def split_leaf(x):
        return jnp.moveaxis(x.reshape(*x.shape[:axis], blocks, -1, *x.shape[axis + 1 :]), axis, 0)

    return jax.tree.map(split_leaf, tree)


def sum_over(
    loss: Callable[[PyTree, PyTree, PyTree], tuple[Float[Array, ""], PyTree]],
    params: PyTree,
    frozen: PyTree,
    blocks: PyTree,
) -> tuple[Float[Array, ""], PyTree]:
    """Sum of `loss(params, frozen, block)[0]` over the blocks, and its second results stacked [blocks, ...].

    Sends gradient to `params` only. `loss` must not close over anything traced: that is what `frozen` is for.
    """

    def forward(params, frozen, blocks):
        def one(total, block):
            (value, aux), grad = jax.value_and_grad(loss, has_aux=True)(params, frozen, block)
            return jax.tree.map(jnp.add, total, (value, grad)), aux

        zero = jax.tree.map(jnp.zeros_like, (jnp.float32(0), params))
        (value, grad), aux = lax.scan(one, zero, blocks)
        return (value, aux), grad

    summed = jax.custom_vjp(lambda *args: forward(*args)[0])
    summed.defvjp(forward, lambda grad, ct: (jax.tree.map(lambda g: ct[0] * g, grad), None, None))
    return summed(params, frozen, blocks)
