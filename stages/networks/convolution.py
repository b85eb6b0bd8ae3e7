"""Convolutions over boards and images, pooling and upsampling.

Axes: H, W sides, C channels, k kernel, i inputs, o outputs. Source: DreamerV3's encoder and decoder.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from stages.networks.layers import RMSNorm, truncated_normal

MAX_SLICED_SIZE = 1600  # H * W of the largest board: Pong's 30 x 40 is one, a 64 x 64 image is not


class Conv(eqx.Module):
    """Convolution with "same" padding and stride 1 over [..., H, W, C].

    Boards are convolved as shifted slices and one matrix product. A library convolution with weights per seed becomes a
    grouped one. That is 6 to 12 times slower on a CPU (forward and backward, 4 seeds, 15 x 20 to 64 x 64). Images use
    the library's convolution nevertheless: the slices of a batch would need a gigabyte a seed.
    """

    weight: Float[Array, "k k i o"]
    bias: Float[Array, " o"]

    def __init__(self, inputs: int, outputs: int, kernel: int, *, key: PRNGKeyArray):
        shape = (kernel, kernel, inputs, outputs)
        self.weight = truncated_normal(key, shape, kernel * kernel * inputs)
        self.bias = jnp.zeros((outputs,))

    def __call__(self, x: Float[Array, "... H W i"]) -> Float[Array, "... H W o"]:
        y = self._slices(x) if x.shape[-3] * x.shape[-2] <= MAX_SLICED_SIZE else self._library(x)
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


def pyramid(shape: tuple[int, int], max_halvings: int = 4) -> list[tuple[int, int]]:
    """Sizes of the convolution levels, finest first: halved (rounding up) while both sides stay at 4 or more.

    A 64 x 64 image gives the reference's four halvings down to 4 x 4; a 10 x 10 board gives one, to 5 x 5.
    """
    sizes = [shape]
    while len(sizes) <= max_halvings and min(-(-s // 2) for s in sizes[-1]) >= 4:
        height, width = sizes[-1]
        sizes.append((-(-height // 2), -(-width // 2)))
    return sizes
