"""Layers: Linear, RMSNorm, MLP, BlockLinear, BlockGRU and small convolutions, initialised as DreamerV3's.

Every layer acts on the last axes and takes any leading ones. Parameters are float32; the input's type is the compute
type, so one cast at the door decides the arithmetic. Source: DreamerV3's embodied/jax/nets.py, re-derived.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from stages.kernels import EPSILON, affine, apart, block_norm_silu, block_product, joined, mix, norm_silu, product


def truncated_normal(key: PRNGKeyArray, shape: tuple[int, ...], fan_in: int, scale: float = 1.0) -> Array:
    """Normal of variance 1/fan_in, cut off at two standard deviations (1.1368 restores the variance)."""
    return jr.truncated_normal(key, -2.0, 2.0, shape) * (scale * 1.1368 * math.sqrt(1.0 / fan_in))


class Linear(eqx.Module):
    """x W + b over the last axis."""

    weight: Float[Array, "i o"]
    bias: Float[Array, " o"]

    def __init__(self, inputs: int, outputs: int, *, scale: float = 1.0, key: PRNGKeyArray):
        self.weight = truncated_normal(key, (inputs, outputs), inputs, scale)
        self.bias = jnp.zeros((outputs,))

    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        return affine(x, self.weight.astype(x.dtype), self.bias.astype(x.dtype))


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
    """Weights of DreamerV3's recurrent cell (Methods, "block-diagonal GRU"): one block-linear layer, then three gates.

    Each of the G blocks sees its own slice of deter and the whole input, which comes in parts of the sizes `inputs`.
    """

    hidden: Float[Array, "i G o"]  # rows: a block's slice of deter, then the input
    bias: Float[Array, " D"]
    norm: RMSNorm
    gates: Float[Array, "G o 3*o"]
    gates_bias: Float[Array, "G 3*o"]
    inputs: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, inputs: tuple[int, ...], deter: int, blocks: int, *, key: PRNGKeyArray):
        key_hidden, key_gates = jr.split(key)
        size = deter // blocks
        # The reference counts a block-linear layer's inputs over all blocks.
        shape = (size + sum(inputs), blocks, size)
        self.hidden = truncated_normal(key_hidden, shape, deter + blocks * sum(inputs))
        self.bias = jnp.zeros((deter,))
        self.norm = RMSNorm(deter)
        self.gates = truncated_normal(key_gates, (blocks, size, 3 * size), deter)
        self.gates_bias = jnp.zeros((blocks, 3 * size))
        self.inputs = inputs

    def cell(self) -> "Cell":
        """The weights as the cell's products take them: laid out before a scan, they are not in each of its steps."""
        blocks, size, _ = self.gates.shape
        own, rest = jnp.split(self.hidden, [size])
        parts = jnp.split(rest.reshape(-1, blocks * size), np.cumsum(self.inputs)[:-1])
        bias, gates_bias = self.bias.reshape(blocks, 1, -1), self.gates_bias[:, None]
        return Cell(jnp.moveaxis(own, 1, 0), tuple(parts), bias, self.norm.scale, self.gates, gates_bias)


class Cell(eqx.Module):
    """DreamerV3's recurrent cell: `h' = u tanh(sigmoid(reset) cand) + (1 - u) h`, `u = sigmoid(update - 1)`.

    A block sees its own slice of h and the whole input. For the input, the hidden layer is an ordinary product, which
    may be computed in parts, and beforehand.
    """

    own: Float[Array, "G o o"]
    parts: tuple[Float[Array, "j D"], ...]
    bias: Float[Array, "G 1 o"]
    scale: Float[Array, " D"]
    gates: Float[Array, "G o 3*o"]
    gates_bias: Float[Array, "G 1 3*o"]

    def cell(self) -> "Cell":
        """Itself."""
        return self

    def share(self, part: int, x: Float[Array, "... j"]) -> Float[Array, "... D"]:
        """What this part of the input adds to the hidden layer. Needs no deter."""
        return product(x, self.parts[part].astype(x.dtype))

    def __call__(self, deter: Float[Array, "... D"], share: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """One step. `share` is the sum over all parts of the input."""
        blocks, dtype = len(self.own), deter.dtype
        # Blocks stay in front: products, norm and gates then read and write whole rows.
        old = apart(deter, blocks)
        hidden = block_product(old, self.own.astype(dtype)) + apart(share, blocks) + self.bias.astype(dtype)
        gates = block_product(block_norm_silu(hidden, self.scale), self.gates.astype(dtype))
        reset, cand, update = jnp.split(gates + self.gates_bias.astype(dtype), 3, -1)
        return joined(mix(update - 1, jnp.tanh(jax.nn.sigmoid(reset) * cand), old)).reshape(deter.shape)


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
