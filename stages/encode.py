"""Encoder: observation -> embedding. The observation space picks the network."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from envs.environment import ObsSpace
from stages.config import ModelConfig
from stages.networks.convolution import ConvStage, max_pool, pyramid
from stages.networks.layers import MLP
from stages.networks.symlog import symlog

MULTIPLIERS = (2, 3, 4, 4)


def convolutional(space: ObsSpace, model: ModelConfig) -> bool:
    """Whether this observation goes through convolutions.

    (H, W, C) does. (H, W) may (`--model.encoder conv`), but goes through the MLP unless asked, as in the reference.
    """
    return {"auto": len(space.shape) == 3, "mlp": False, "conv": len(space.shape) in (2, 3)}[model.encoder]


def features(space: ObsSpace) -> tuple[int, ...]:
    """Shape of one observation as the networks see it: integers become one-hot, a grid gets a channel axis last."""
    return space.shape + ((space.classes,) if space.kind == "categorical" else ())


def image_shape(space: ObsSpace) -> tuple[int, int, int]:
    """(H, W, C) that convolutions see; integer grids have their one-hot classes among the channels."""
    height, width, *rest = features(space)
    return height, width, math.prod(rest)


def preprocess_obs(space: ObsSpace, obs: Shaped[Array, "..."]) -> Float[Array, "..."]:
    """Stored observation -> float32 input: symlog of reals, one-hot of integers, bytes to -0.5 ... 0.5."""
    if space.kind == "categorical":
        return jax.nn.one_hot(obs, space.classes)
    if space.kind == "image":
        return obs.astype(jnp.float32) / 255 - 0.5
    return symlog(obs) if space.kind == "real" else obs.astype(jnp.float32)


class MLPEncoder(eqx.Module):
    """Flattened observation -> MLP."""

    mlp: MLP
    space: ObsSpace = eqx.field(static=True)

    def __init__(self, space: ObsSpace, model: ModelConfig, *, key: PRNGKeyArray):
        self.mlp = MLP(math.prod(features(space)), model.units, model.layers, key=key)
        self.space = space

    def __call__(self, obs: Shaped[Array, "..."], dtype: jnp.dtype) -> Float[Array, "... E"]:
        """Embedding of observations [..., *obs] in their storage type; computed in `dtype`."""
        lead = obs.shape[: obs.ndim - len(self.space.shape)]
        return self.mlp(preprocess_obs(self.space, obs).reshape(*lead, -1).astype(dtype))


class ConvEncoder(eqx.Module):
    """Convolution, max-pool, norm, SiLU at each level of the pyramid (DreamerV3's encoder); boards too."""

    stages: tuple[ConvStage, ...]
    space: ObsSpace = eqx.field(static=True)

    def __init__(self, space: ObsSpace, model: ModelConfig, *, key: PRNGKeyArray):
        height, width, channels = image_shape(space)
        levels = len(pyramid((height, width))) - 1
        depths = [channels] + [model.depth * m for m in MULTIPLIERS[: max(1, levels)]]
        kernel = 5 if levels > 2 else 3
        keys = jr.split(key, len(depths) - 1)
        self.stages = tuple(
            ConvStage(i, o, kernel, key=k) for i, o, k in zip(depths[:-1], depths[1:], keys, strict=True)
        )
        self.space = space

    def __call__(self, obs: Shaped[Array, "..."], dtype: jnp.dtype) -> Float[Array, "... E"]:
        """Embedding of observations [..., *obs] in their storage type; computed in `dtype`."""
        lead = obs.shape[: obs.ndim - len(self.space.shape)]
        x = preprocess_obs(self.space, obs).reshape(*lead, *image_shape(self.space)).astype(dtype)
        pools = len(pyramid(image_shape(self.space)[:2])) - 1
        for level, stage in enumerate(self.stages):
            x = stage.conv(x)
            x = max_pool(x) if level < pools else x
            x = jax.nn.silu(stage.norm(x))
        return x.reshape(*lead, -1)


Encoder = MLPEncoder | ConvEncoder


def make_encoder(space: ObsSpace, model: ModelConfig, *, key: PRNGKeyArray) -> Encoder:
    """The encoder that this observation space calls for."""
    cls = ConvEncoder if convolutional(space, model) else MLPEncoder
    return cls(space, model, key=key)


def embed_size(space: ObsSpace, model: ModelConfig) -> int:
    """E, read off the encoder's own output; nothing is computed."""
    obs = jax.ShapeDtypeStruct(space.shape, space.dtype)
    embed = lambda key, obs: make_encoder(space, model, key=key)(obs, jnp.dtype(jnp.float32))
    return jax.eval_shape(embed, jax.eval_shape(lambda: jr.key(0)), obs).shape[-1]
