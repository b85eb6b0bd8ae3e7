"""Operations as XLA computes them fast, above all on a CPU. Each has the numbers of its plain form, gradients included.

What XLA does on a CPU with the plain forms (measured, docs/speed.md), and what is done here instead:

- XLA loops over single numbers for a sum over an axis: a sum is a product with ones here. Maxima are taken by halves.
- What has several readers is computed again for each of them, unless it ends in an operation that XLA takes for
  expensive. A division is one, a product is none: silu, the gates and their gradients end in divisions.
- A product's transposed weight is transposed again in each step of a scan, unless the forward pass kept it.

Axes: i inputs, o outputs, n rows, G blocks, K classes. "..." are any leading axes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

EPSILON = 1e-4  # of every RMSNorm

matmul_highest = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
"""A product in full float32 on every device: sums are taken as products, and a GPU would round their factors."""


def last_sum(x: Float[Array, "... K"]) -> Float[Array, "..."]:
    """Sum over the last axis, in float32."""
    return matmul_highest(x, np.ones(x.shape[-1], np.float32))


def row_sum(x: Float[Array, "... o"]) -> Float[Array, " o"]:
    """Sum over all axes but the last, in x's type."""
    return _block_row_sum(x.reshape(1, -1, x.shape[-1]))[0]


@custom_vmap
def _block_row_sum(x: Float[Array, "G n o"]) -> Float[Array, "G o"]:
    return jnp.matmul(np.ones((len(x), 1, x.shape[1]), x.dtype), x)[:, 0]


@_block_row_sum.def_vmap
def _(size, batched, x):
    # Left to itself, vmap shares the ones out over what it maps over: a product that first transposes x.
    return _block_row_sum(x.reshape(-1, *x.shape[2:])).reshape(*x.shape[:2], -1), True


def last_max(x: Float[Array, "... K"]) -> Float[Array, "..."]:
    """Maximum over the last axis. Meant for use without gradient."""
    while x.shape[-1] > 16:
        half = (x.shape[-1] + 1) // 2
        x = jnp.maximum(x[..., :half], x[..., -half:])
    return x.max(-1)


# ---- products ------------------------------------------------------------------------------------------------------


@jax.custom_vjp
def product(x: Float[Array, "... i"], weight: Float[Array, "i o"]) -> Float[Array, "... o"]:
    """x W. The gradient of W needs a transposed copy of only the narrower of its two factors."""
    return x @ weight


def _product_grad(saved, grad):
    x, transposed = saved
    rows = tuple(range(x.ndim - 1))
    outputs, inputs = transposed.shape
    if inputs <= outputs:
        return grad @ transposed, lax.dot_general(x, grad, ((rows, rows), ((), ())))
    # As a batch of one: else XLA turns the product around, and reads all of x by columns (47 instead of 125 GFLOP/s).
    rows = tuple(r + 1 for r in rows)
    grad_weight = lax.dot_general(grad[None], x[None], ((rows, rows), ((0,), (0,))))
    return grad @ transposed, jnp.swapaxes(grad_weight, 1, 2)[0]


product.defvjp(lambda x, weight: (x @ weight, (x, weight.T)), _product_grad)


@jax.custom_vjp
def affine(x: Float[Array, "... i"], weight: Float[Array, "i o"], bias: Float[Array, " o"]) -> Float[Array, "... o"]:
    """x W + b."""
    return x @ weight + bias


affine.defvjp(
    lambda x, weight, bias: (x @ weight + bias, (x, weight.T)),
    lambda saved, grad: (*_product_grad(saved, grad), row_sum(grad)),
)


@jax.custom_vjp
def block_product(x: Float[Array, "G n i"], weight: Float[Array, "G i o"]) -> Float[Array, "G n o"]:
    """x W of each block."""
    return x @ weight


def _block_product_grad(saved, grad):
    x, transposed = saved
    return grad @ transposed, lax.dot_general(x, grad, (((1,), (1,)), ((0,), (0,))))


block_product.defvjp(lambda x, weight: (x @ weight, (x, jnp.swapaxes(weight, 1, 2))), _block_product_grad)


# ---- blocks --------------------------------------------------------------------------------------------------------


def split_blocks(x: Float[Array, "... D"], blocks: int) -> Float[Array, "G n o"]:
    """Rows cut into G blocks, with the blocks as leading axis and all other leading axes flattened."""
    return jnp.moveaxis(x.reshape(-1, blocks, x.shape[-1] // blocks), 1, 0)


@jax.custom_vjp
def merge_blocks(x: Float[Array, "G n o"]) -> Float[Array, "n D"]:
    """The inverse of split_blocks: the blocks of each row concatenated."""
    # As one transposing copy, XLA would compute x itself in transposed order, at a twentieth of the speed. Joined slice
    # by slice x has several readers, and so is computed before them.
    return jnp.concatenate(list(x), -1)


merge_blocks.defvjp(lambda x: (merge_blocks(x), len(x)), lambda blocks, grad: (split_blocks(grad, blocks),))


# ---- activations ---------------------------------------------------------------------------------------------------


def _exp_minus(x):
    """exp(-x), for sigmoid(x) = 1 / (1 + exp(-x)). Below -40 that is 0 up to rounding, and squares would overflow."""
    return jnp.exp(jnp.minimum(-x, 40))


def norm_silu(x: Float[Array, "... i"], scale: Float[Array, " i"]) -> Float[Array, "... i"]:
    """silu(RMSNorm(x)), in float32: the activation of all layers."""
    return block_norm_silu(x.reshape(1, -1, x.shape[-1]), scale).reshape(x.shape)


@jax.custom_vjp
def block_norm_silu(x: Float[Array, "G n o"], scale: Float[Array, " G*o"]) -> Float[Array, "G n o"]:
    """norm_silu of rows whose G blocks stand in front: one norm over all blocks of a row."""
    return _block_norm_silu(x, scale)[0]


def _block_norm_silu(x, scale):
    x32 = x.astype(jnp.float32)
    blocks, _, size = x.shape
    mean = matmul_highest(jnp.square(x32), np.full(size, 1 / scale.size, np.float32)).sum(0)
    root = jnp.sqrt(mean + EPSILON)[:, None]
    normed = x32 * (scale.reshape(blocks, 1, size) / root)
    return (normed / (1 + _exp_minus(normed))).astype(x.dtype), (x, root, scale)


def _block_norm_silu_grad(saved, grad):
    x, root, scale = saved
    x32, (blocks, rows, size) = x.astype(jnp.float32), x.shape
    scale = scale.reshape(blocks, 1, size)
    normed = x32 * (scale / root)
    power = _exp_minus(normed)
    grad = grad.astype(jnp.float32) * (1 + power * (1 + normed)) / jnp.square(1 + power)
    shared = grad * x32
    along = matmul_highest(shared, jnp.swapaxes(scale, 1, 2)).sum(0) / (blocks * size * jnp.square(root))
    grad_scale = matmul_highest((1 / root).reshape(1, 1, rows), shared)
    return ((grad * scale - x32 * along) / root).astype(x.dtype), grad_scale.reshape(-1)


block_norm_silu.defvjp(_block_norm_silu, _block_norm_silu_grad)


@jax.custom_vjp
def gated_update(gate: Float[Array, "..."], new: Float[Array, "..."], old: Float[Array, "..."]) -> Float[Array, "..."]:
    """u new + (1 - u) old, u = sigmoid(gate)."""
    stay = _exp_minus(gate)
    return (new + stay * old) / (1 + stay)


def _gated_update_grad(saved, grad):
    gate, new, old = saved
    update = jax.nn.sigmoid(gate)
    grad_new = update * grad
    return grad_new * (1 - update) * (new - old), grad_new, grad - grad_new


gated_update.defvjp(lambda gate, new, old: (gated_update(gate, new, old), (gate, new, old)), _gated_update_grad)


def exponentials(
    logits: Float[Array, "... K"],
) -> tuple[Float[Array, "... K"], Float[Array, "... 1"], Float[Array, "... 1"]]:
    """exp(logits - top), their sum and top, the largest logit: what softmax and log-sum-exp are made of, in one place,
    so that XLA computes it once for all that read it. For use without gradient, or within one that is written out."""
    top = last_max(logits)[..., None]
    powers = jnp.exp(logits - top)
    return powers, last_sum(powers)[..., None], top


@jax.custom_vjp
def softmax(logits: Float[Array, "... K"]) -> Float[Array, "... K"]:
    """jax.nn.softmax over the last axis."""
    powers, total, _ = exponentials(logits)
    return powers / total


def _softmax_grad(probs, grad):
    weighted = probs * grad
    return (weighted - probs * last_sum(weighted)[..., None],)


softmax.defvjp(lambda logits: (softmax(logits),) * 2, _softmax_grad)
