"""Layers: Linear, RMSNorm, MLP, BlockLinear, BlockGRU and small convolutions, initialised as DreamerV3's.

Every layer acts on the last axes and takes any leading ones. Parameters are float32; the input's type is the compute
type, so one cast at the door decides the arithmetic. Source: DreamerV3's embodied/jax/nets.py, re-derived.
"""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray


def truncated_normal(key: PRNGKeyArray, shape: tuple[int, ...], fan_in: int, scale: float = 1.0) -> Array:
    """Normal of variance 1/fan_in, cut off at two standard deviations (1.1368 restores the variance)."""
    return jr.truncated_normal(key, -2.0, 2.0, shape) * (scale * 1.1368 * math.sqrt(1.0 / fan_in))


# ---- products and activations with gradients written out -----------------------------------------------------------


@jax.custom_vjp
def product(x: Float[Array, "... i"], weight: Float[Array, "i o"]) -> Float[Array, "... o"]:
    """x W. The gradient of W asks for a transposed copy of the narrower of its two factors only."""
    return x @ weight


def _product_grad(saved, grad):
    x, weight = saved
    rows = tuple(range(x.ndim - 1))
    inputs, outputs = weight.shape
    first, second = (x, grad) if inputs <= outputs else (grad, x)
    grad_weight = jax.lax.dot_general(first, second, ((rows, rows), ((), ())))
    return grad @ weight.T, grad_weight if inputs <= outputs else grad_weight.T


product.defvjp(lambda x, weight: (x @ weight, (x, weight)), _product_grad)


@jax.custom_vjp
def block_product(x: Float[Array, "G n i"], weight: Float[Array, "G i o"]) -> Float[Array, "G n o"]:
    """x W of each block; its gradient as product's."""
    return x @ weight


def _block_product_grad(saved, grad):
    x, weight = saved
    grad_weight = jax.lax.dot_general(x, grad, (((1,), (1,)), ((0,), (0,))))
    return grad @ jnp.swapaxes(weight, 1, 2), grad_weight


block_product.defvjp(lambda x, weight: (x @ weight, (x, weight)), _block_product_grad)


@jax.custom_vjp
def norm_silu(x: Float[Array, "... i"], scale: Float[Array, " i"]) -> Float[Array, "... i"]:
    """silu(RMSNorm(x)), in float32: the activation of all layers.

    Its gradient's sums are products with a vector: on a CPU, XLA takes up to 30 times as long for sums of products.
    """
    return _norm_silu(x, scale)[0]


def _norm_silu(x, scale):
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + EPSILON)
    return jax.nn.silu(x32 * (inverse * scale)).astype(x.dtype), (x, inverse, scale)


def _norm_silu_grad(saved, grad):
    x, inverse, scale = saved
    x32, size = x.astype(jnp.float32), x.shape[-1]
    normed = x32 * (inverse * scale)
    gate = jax.nn.sigmoid(normed)
    grad = grad.astype(jnp.float32) * (gate * (1 + normed * (1 - gate)))
    shared = grad * x32
    exact = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)  # sums, which no GPU may shorten
    along = exact(shared, scale)[..., None] / size
    grad_x = inverse * (grad * scale - x32 * (jnp.square(inverse) * along))
    return grad_x.astype(x.dtype), exact(inverse.reshape(-1), shared.reshape(-1, size))


norm_silu.defvjp(_norm_silu, _norm_silu_grad)


# ---- layers --------------------------------------------------------------------------------------------------------

EPSILON = 1e-4  # of every RMSNorm


class Linear(eqx.Module):
    """x W + b over the last axis."""

    weight: Float[Array, "i o"]
    bias: Float[Array, " o"]

    def __init__(self, inputs: int, outputs: int, *, scale: float = 1.0, key: PRNGKeyArray):
        self.weight = truncated_normal(key, (inputs, outputs), inputs, scale)
        self.bias = jnp.zeros((outputs,))

    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        return product(x, self.weight.astype(x.dtype)) + self.bias.astype(x.dtype)


class RMSNorm(eqx.Module):
    """x / sqrt(mean(x^2) + 1e-4) * scale over the last axis, in float32 (Zhang & Sennrich 2019, arXiv 1910.07467)."""

    scale: Float[Array, " i"]

    def __init__(self, size: int):
        self.scale = jnp.ones((size,))

    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... i"]:
        x32 = x.astype(jnp.float32)
        norm = jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + EPSILON)
        return (x32 * (norm * self.scale)).astype(x.dtype)


class Dense(eqx.Module):
    """Linear, RMSNorm, SiLU: the layer that all of DreamerV3 is made of."""

    linear: Linear
    norm: RMSNorm

    def __init__(self, inputs: int, outputs: int, *, key: PRNGKeyArray):
        self.linear = Linear(inputs, outputs, key=key)
        self.norm = RMSNorm(outputs)

    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        return self.activate(self.linear(x))

    def activate(self, x: Float[Array, "... o"]) -> Float[Array, "... o"]:
        """Norm and SiLU of a product computed elsewhere (parts of it before a scan, say)."""
        return norm_silu(x, self.norm.scale)


class MLP(eqx.Module):
    """A stack of Dense layers of one width."""

    layers: tuple[Dense, ...]

    def __init__(self, inputs: int, units: int, depth: int, *, key: PRNGKeyArray):
        sizes = [inputs] + [units] * depth
        keys = jr.split(key, depth)
        self.layers = tuple(Dense(i, o, key=k) for i, o, k in zip(sizes[:-1], sizes[1:], keys, strict=True))

    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        for layer in self.layers:
            x = layer(x)
        return x


class Head(eqx.Module):
    """MLP and a linear output; `scale` multiplies the output layer's initial weights."""

    mlp: MLP
    out: Linear

    def __init__(self, inputs: int, units: int, depth: int, outputs: int, *, scale: float = 1.0, key: PRNGKeyArray):
        key_mlp, key_out = jr.split(key)
        self.mlp = MLP(inputs, units, depth, key=key_mlp)
        self.out = Linear(units, outputs, scale=scale, key=key_out)

    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        return self.out(self.mlp(x)).astype(jnp.float32)


class BlockLinear(eqx.Module):
    """Block-diagonal Linear: input and output fall into G equal blocks, each with weights of its own."""

    weight: Float[Array, "G i o"]
    bias: Float[Array, " O"]

    def __init__(self, inputs: int, outputs: int, blocks: int, *, key: PRNGKeyArray):
        shape = (blocks, inputs // blocks, outputs // blocks)
        self.weight = truncated_normal(key, shape, math.prod(shape[:2]))
        self.bias = jnp.zeros((outputs,))

    def __call__(self, x: Float[Array, "... G i"]) -> Float[Array, "... O"]:
        """Takes the blocks apart [..., G, i] and returns them joined [..., O]."""
        x = jnp.einsum("...gi,gio->...go", x, self.weight.astype(x.dtype))
        return x.reshape(*x.shape[:-2], -1) + self.bias.astype(x.dtype)


class BlockGRU(eqx.Module):
    """DreamerV3's recurrent cell (Methods, "block-diagonal GRU"): one block-linear layer, then three gates.

    `u = sigmoid(update - 1)`, `h' = u tanh(sigmoid(reset) cand) + (1 - u) h`. Each of the G blocks sees its own slice
    of deter and the whole input: for the input the layer is an ordinary product, which may be computed in parts.
    """

    hidden: Float[Array, "i G o"]  # rows: a block's slice of deter, then the input
    bias: Float[Array, " D"]
    norm: RMSNorm
    gates: Float[Array, "G o 3*o"]
    gates_bias: Float[Array, "G 3*o"]

    def __init__(self, inputs: int, deter: int, blocks: int, *, key: PRNGKeyArray):
        key_hidden, key_gates = jr.split(key)
        size = deter // blocks
        # The reference counts a block-linear layer's inputs over all blocks.
        self.hidden = truncated_normal(key_hidden, (size + inputs, blocks, size), deter + blocks * inputs)
        self.bias = jnp.zeros((deter,))
        self.norm = RMSNorm(deter)
        self.gates = truncated_normal(key_gates, (blocks, size, 3 * size), deter)
        self.gates_bias = jnp.zeros((blocks, 3 * size))

    def input_share(self, x: Float[Array, "... j"], start: int = 0) -> Float[Array, "... D"]:
        """What input rows `start` ... `start + j` add to the hidden layer. Needs no deter."""
        rows = self.hidden[self.bias.size // self.hidden.shape[1] + start :][: x.shape[-1]]
        return product(x, rows.reshape(x.shape[-1], -1).astype(x.dtype))

    def __call__(self, deter: Float[Array, "... D"], share: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """One step. `share` is the sum of input_share over all inputs."""
        blocks, size, _ = self.gates.shape
        old = _apart(deter, blocks)
        own = _joined(block_product(old, jnp.moveaxis(self.hidden[:size], 1, 0).astype(deter.dtype)), deter.shape)
        hidden = norm_silu(own + share + self.bias.astype(deter.dtype), self.norm.scale)
        # Blocks stay in front from here on: products and gates then read and write whole rows.
        gates = block_product(_apart(hidden, blocks), self.gates.astype(deter.dtype))
        reset, cand, update = jnp.split(gates + self.gates_bias[:, None].astype(deter.dtype), 3, -1)
        update = jax.nn.sigmoid(update - 1)
        return _joined(update * jnp.tanh(jax.nn.sigmoid(reset) * cand) + (1 - update) * old, deter.shape)


def _apart(x: Float[Array, "... D"], blocks: int) -> Float[Array, "G n o"]:
    """Blocks in front, all leading axes in one."""
    return jnp.moveaxis(x.reshape(-1, blocks, x.shape[-1] // blocks), 1, 0)


def _joined(x: Float[Array, "G n o"], shape: tuple[int, ...]) -> Float[Array, "... D"]:
    """Undo _apart."""
    return jnp.moveaxis(x, 0, 1).reshape(shape)


MOST_SLICED = 1600  # H * W of the largest board: Pong's 30 x 40 is one, a 64 x 64 image is not


class Conv(eqx.Module):
    """Convolution with "same" padding and stride 1 over [..., H, W, C].

    Boards are convolved as shifted slices and one matrix product: with weights per seed a library convolution becomes
    a grouped one, 6 to 12 times slower on a CPU (forward and backward, 4 seeds, 15 x 20 to 64 x 64). Images take the
    library's all the same: there the slices of a batch need a gigabyte a seed.
    """

    weight: Float[Array, "k k i o"]
    bias: Float[Array, " o"]

    def __init__(self, inputs: int, outputs: int, kernel: int, *, key: PRNGKeyArray):
        shape = (kernel, kernel, inputs, outputs)
        self.weight = truncated_normal(key, shape, kernel * kernel * inputs)
        self.bias = jnp.zeros((outputs,))

    def __call__(self, x: Float[Array, "... H W i"]) -> Float[Array, "... H W o"]:
        y = self._slices(x) if x.shape[-3] * x.shape[-2] <= MOST_SLICED else self._library(x)
        return y + self.bias.astype(x.dtype)

    def _slices(self, x):
        kernel, (height, width) = self.weight.shape[0], x.shape[-3:-1]
        low, high = (kernel - 1) // 2, kernel // 2
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(low, high), (low, high), (0, 0)])
        patches = [x[..., i : i + height, j : j + width, :] for i in range(kernel) for j in range(kernel)]
        weight = self.weight.reshape(-1, self.weight.shape[-1]).astype(x.dtype)
        return jnp.concatenate(patches, -1) @ weight

    def _library(self, x):
        flat = x.reshape(-1, *x.shape[-3:])
        dims = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(flat, self.weight.astype(x.dtype), (1, 1), "SAME", dimension_numbers=dims)
        return y.reshape(*x.shape[:-1], -1)


class ConvStage(eqx.Module):
    """Conv, RMSNorm over channels, SiLU: one level of the convolutional encoder and decoder."""

    conv: Conv
    norm: RMSNorm

    def __init__(self, inputs: int, outputs: int, kernel: int, *, key: PRNGKeyArray):
        self.conv = Conv(inputs, outputs, kernel, key=key)
        self.norm = RMSNorm(outputs)


def max_pool(x: Float[Array, "... H W C"]) -> Float[Array, "... h w C"]:
    """Maximum over 2 x 2 windows, h = ceil(H / 2); an odd side is padded at its end."""
    height, width = x.shape[-3:-1]
    pad = [(0, 0)] * (x.ndim - 3) + [(0, height % 2), (0, width % 2), (0, 0)]
    x = jnp.pad(x, pad, mode="edge")
    x = x.reshape(*x.shape[:-3], -(-height // 2), 2, -(-width // 2), 2, x.shape[-1])
    return x.max((-4, -2))


def upsample(x: Float[Array, "... h w C"], shape: tuple[int, int]) -> Float[Array, "... H W C"]:
    """Nearest-neighbour doubling, cropped to `shape`."""
    x = jnp.repeat(jnp.repeat(x, 2, -3), 2, -2)
    return x[..., : shape[0], : shape[1], :]


def pyramid(shape: tuple[int, int], most: int = 4) -> list[tuple[int, int]]:
    """Sizes of the convolution levels, finest first: halved (rounding up) while both sides stay at 4 or more.

    A 64 x 64 image gives the reference's four halvings down to 4 x 4; a 10 x 10 board gives one, to 5 x 5.
    """
    sizes = [shape]
    while len(sizes) <= most and min(-(-s // 2) for s in sizes[-1]) >= 4:
        height, width = sizes[-1]
        sizes.append((-(-height // 2), -(-width // 2)))
    return sizes
