"""What several tests hold networks to: layers in plain numpy and float64, and functions run in both of their forms."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stages.networks.distributions import Categorical
from stages.networks.layers import ParallelLinear
from tests.conftest import AS_IN_A_RUN

close = chex.assert_trees_all_close

# ---- in both forms -------------------------------------------------------------------------------------------------

# What is exact must stay so when the compiler rewrites it.
optimised = functools.partial(jax.jit, compiler_options=AS_IN_A_RUN)


def eager(function):
    """`function` as it stands, of arrays on the device."""
    return lambda *args: function(*jax.device_put(args))


either = pytest.mark.parametrize("run", [eager, optimised], ids=["eager", "jit"])

# ---- in numpy ------------------------------------------------------------------------------------------------------


def softmax(logits):
    exp = np.exp(np.asarray(logits, np.float64) - np.max(logits, -1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def two_hot_by_hand(value: float, count: int) -> np.ndarray:
    """Weights [I] on the two of `count` bins, even in symlog, around `value`; float64."""
    points = np.linspace(-20, 20, count)
    bins, weights = np.sign(points) * np.expm1(np.abs(points)), np.zeros(count)
    value = min(max(value, bins[0]), bins[-1])
    high = max(1, int(np.searchsorted(bins, value)))
    weights[high] = (value - bins[high - 1]) / (bins[high] - bins[high - 1])
    weights[high - 1] = 1 - weights[high]
    return weights


def sigmoid(x):
    return 1 / (1 + np.exp(-np.float64(x)))


def norm_silu(x, scale):
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-4) * np.float64(scale)
    return x * sigmoid(x)


def linear(layer, x):
    return x @ np.float64(layer.weight) + np.float64(layer.bias)


def dense(layer, x):
    return norm_silu(linear(layer.linear, x), layer.norm.scale)


def slow_mlp(mlp, x):
    for layer in mlp.layers:
        x = dense(layer, x)
    return x


def slow_head(head, x):
    """A head's outputs in float64; those of several linear layers side by side one after another."""
    x = slow_mlp(head.mlp, np.float64(x))
    if isinstance(head.out, ParallelLinear):
        parts = head.out.parts.module
        weights = zip(np.float64(parts.weight), np.float64(parts.bias), strict=True)
        return np.concatenate([x @ weight + bias for weight, bias in weights], -1)
    return linear(head.out, x)


def conv(x, layer):
    """ "Same" convolution of [H, W, i], pixel by pixel."""
    height, width, _ = x.shape
    kernel, before = len(layer.weight), (len(layer.weight) - 1) // 2
    weight, out = np.float64(layer.weight), np.tile(np.float64(layer.bias), (height, width, 1))
    for h, w, i, j in np.ndindex(height, width, kernel, kernel):
        row, column = h + i - before, w + j - before
        if 0 <= row < height and 0 <= column < width:
            out[h, w] += x[row, column] @ weight[i, j]
    return out


def categorical(probs) -> Categorical:
    """The record of given probabilities."""
    probs = jnp.asarray(probs, jnp.float32)
    return Categorical(probs, jnp.log(probs))
