"""Layers: Linear, RMSNorm, Dense, MLP, ParallelLinear, Head and BlockLinear, initialised as DreamerV3's.

Every layer acts on the last axes and takes any leading ones. Parameters are float32; a layer computes in its input's
type. Source: DreamerV3's embodied/jax/nets.py, re-derived.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from stages.fast.kernels import EPSILON, affine, norm_silu
from stages.fast.stacked import Stacked


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


class ParallelLinear(eqx.Module):
    """Several Linears of one input, their outputs concatenated; the optimiser clips each by itself."""

    parts: Stacked

    def __init__(self, inputs: int, outputs: int, parts: int, *, scale: float = 1.0, key: PRNGKeyArray):
        self.parts = Stacked(lambda key: Linear(inputs, outputs // parts, scale=scale, key=key), jr.split(key, parts))

    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        return jnp.concatenate(list(self.parts.map(lambda part: part(x))), -1)


class Head(eqx.Module):
    """MLP and `parts` linear output layers; `scale` multiplies the output layers' initial weights."""

    mlp: MLP
    out: Linear | ParallelLinear

    def __init__(
        self,
        inputs: int,
        units: int,
        depth: int,
        outputs: int,
        *,
        scale: float = 1.0,
        parts: int = 1,
        key: PRNGKeyArray,
    ):
        key_mlp, key_out = jr.split(key)
        self.mlp = MLP(inputs, units, depth, key=key_mlp)
        if parts == 1:
            self.out = Linear(units, outputs, scale=scale, key=key_out)
        else:
            self.out = ParallelLinear(units, outputs, parts, scale=scale, key=key_out)

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
        """Input split into blocks [..., G, i] -> outputs of all blocks, concatenated [..., O]."""
        x = jnp.einsum("...gi,gio->...go", x, self.weight.astype(x.dtype))
        return x.reshape(*x.shape[:-2], -1) + self.bias.astype(x.dtype)
