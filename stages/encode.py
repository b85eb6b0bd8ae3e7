"""Encoder: observation -> embedding. The observation space picks the network.

An observation may have several entries. Its images, concatenated along their channels, go through convolutions. All
other entries go through one MLP. The two embeddings are concatenated (DreamerV3's encoder).
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from envs.environment import DictSpace, Obs, ObsSpace, Space, map_entries, obs_entries, zip_entries
from stages.config import ConfigError, ModelConfig
from stages.networks.convolution import ConvStage, max_pool, pyramid
from stages.networks.layers import MLP
from stages.networks.symlog import symlog

DEPTH_MULTIPLIERS = (2, 3, 4, 4)
"""Channels of each convolution level, as multiples of `ModelConfig.depth`."""


def uses_convolutions(space: ObsSpace, model: ModelConfig) -> bool:
    """Whether this observation goes through convolutions.

    (H, W, C) does. (H, W) may (`--model.encoder conv`), but goes through the MLP unless asked, as in the reference.
    """
    return {"auto": len(space.shape) == 3, "mlp": False, "conv": len(space.shape) in (2, 3)}[model.encoder]


def preprocessed_shape(space: ObsSpace) -> tuple[int, ...]:
    """Shape of one preprocessed observation: the one-hot of integers has an axis of its own, the last."""
    return space.shape + ((space.classes,) if space.kind == "categorical" else ())


def number_count(space: Space) -> int:
    """P: how many numbers of an observation the networks see."""
    return sum(math.prod(preprocessed_shape(entry)) for entry in obs_entries(space).values())


def image_shape(space: ObsSpace) -> tuple[int, int, int]:
    """(H, W, C) that convolutions see; integer grids have their one-hot classes among the channels."""
    height, width, *channels = preprocessed_shape(space)
    return height, width, math.prod(channels)


def preprocess_obs(space: ObsSpace, obs: Shaped[Array, "..."]) -> Float[Array, "..."]:
    """Stored observation -> float32 input: symlog of reals, one-hot of integers, bytes to -0.5 ... 0.5."""
    if space.kind == "categorical":
        return jax.nn.one_hot(obs, space.classes)
    if space.kind == "image":
        return obs.astype(jnp.float32) / 255 - 0.5
    return symlog(obs) if space.kind == "real" else obs.astype(jnp.float32)


def flat_numbers(space: Space, obs: Obs) -> Float[Array, "... P"]:
    """Stored observation -> the numbers of all entries (`preprocess_obs`), flat, one entry after the other."""
    return join([_flat(entry, array) for _, entry, array in zip_entries(space, obs)])


def join(parts: list[Float[Array, "..."]]) -> Float[Array, "..."]:
    """Concatenate along the last axis; a single part is returned unchanged."""
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, -1)


def _flat(space: ObsSpace, obs: Shaped[Array, "..."]) -> Float[Array, "... P"]:
    return preprocess_obs(space, obs).reshape(*_lead(space, obs), -1)


def _lead(space: ObsSpace, obs: Shaped[Array, "..."]) -> tuple[int, ...]:
    return obs.shape[: obs.ndim - len(space.shape)]


class MLPEncoder(eqx.Module):
    """Flattened observation -> MLP."""

    mlp: MLP
    space: ObsSpace = eqx.field(static=True)

    def __init__(self, space: ObsSpace, model: ModelConfig, *, key: PRNGKeyArray):
        self.mlp = MLP(number_count(space), model.units, model.layers, key=key)
        self.space = space

    def __call__(self, obs: Shaped[Array, "..."], dtype: jnp.dtype) -> Float[Array, "... E"]:
        """Embedding of observations [..., *obs] in their storage type; computed in `dtype`."""
        return self.mlp(_flat(self.space, obs).astype(dtype))


class ConvEncoder(eqx.Module):
    """Convolution, max-pool, norm, SiLU at each level of the pyramid (DreamerV3's encoder); boards too."""

    stages: tuple[ConvStage, ...]
    space: ObsSpace = eqx.field(static=True)

    def __init__(self, space: ObsSpace, model: ModelConfig, *, key: PRNGKeyArray):
        height, width, channels = image_shape(space)
        levels = len(pyramid((height, width))) - 1
        depths = [channels] + [model.depth * m for m in DEPTH_MULTIPLIERS[: max(1, levels)]]
        kernel = 5 if levels > 2 else 3
        keys = jr.split(key, len(depths) - 1)
        self.stages = tuple(
            ConvStage(i, o, kernel, key=k) for i, o, k in zip(depths[:-1], depths[1:], keys, strict=True)
        )
        self.space = space

    def __call__(self, obs: Shaped[Array, "..."], dtype: jnp.dtype) -> Float[Array, "... E"]:
        """Embedding of observations [..., *obs] in their storage type; computed in `dtype`."""
        image = preprocess_obs(self.space, obs).reshape(*_lead(self.space, obs), *image_shape(self.space))
        return self.embed(image.astype(dtype))

    def embed(self, x: Float[Array, "... H W C"]) -> Float[Array, "... E"]:
        """Embedding of preprocessed images."""
        lead = x.shape[:-3]
        pools = len(pyramid(image_shape(self.space)[:2])) - 1
        for level, stage in enumerate(self.stages):
            x = stage.conv(x)
            x = max_pool(x) if level < pools else x
            x = jax.nn.silu(stage.norm(x))
        return x.reshape(*lead, -1)


def images_and_vectors(space: DictSpace, model: ModelConfig) -> tuple[dict[str, ObsSpace], dict[str, ObsSpace]]:
    """The entries that go through convolutions, and those that go through the MLP.

    Raises:
        ConfigError: images of several sizes: their channels cannot be joined.
    """
    images = {name: entry for name, entry in space.entries.items() if uses_convolutions(entry, model)}
    if len(sizes := {entry.shape[:2] for entry in images.values()}) > 1:
        raise ConfigError(
            f"the observation's images {', '.join(images)} have {len(sizes)} sizes, but are joined by their channels: "
            "bring them to one size in the environment, or pass --model.encoder mlp"
        )
    return images, {name: entry for name, entry in space.entries.items() if name not in images}


def joined_image_space(images: dict[str, ObsSpace]) -> ObsSpace:
    """The space of images joined by their channels, as convolutions see them."""
    shapes = [image_shape(entry) for entry in images.values()]
    return ObsSpace((*shapes[0][:2], sum(channels for *_, channels in shapes)), "real")


class DictEncoder(eqx.Module):
    """Images go through convolutions, all other entries through an MLP; the two embeddings are concatenated."""

    mlp: MLP | None
    conv: ConvEncoder | None
    images: tuple[str, ...] = eqx.field(static=True)
    space: DictSpace = eqx.field(static=True)

    def __init__(self, space: DictSpace, model: ModelConfig, *, key: PRNGKeyArray):
        key_mlp, key_conv = jr.split(key)
        images, vectors = images_and_vectors(space, model)
        size = sum(number_count(entry) for entry in vectors.values())
        self.mlp = MLP(size, model.units, model.layers, key=key_mlp) if vectors else None
        self.conv = ConvEncoder(joined_image_space(images), model, key=key_conv) if images else None
        self.images, self.space = tuple(images), space

    def __call__(self, obs: dict[str, Shaped[Array, "..."]], dtype: jnp.dtype) -> Float[Array, "... E"]:
        """Embedding of observations, each entry [..., *entry] in its storage type; computed in `dtype`."""
        embeddings = []
        if self.mlp is not None:
            vectors = [_flat(e, x) for name, e, x in zip_entries(self.space, obs) if name not in self.images]
            embeddings.append(self.mlp(join(vectors).astype(dtype)))
        if self.conv is not None:
            images = [
                preprocess_obs(e, x).reshape(*_lead(e, x), *image_shape(e))
                for name, e, x in zip_entries(self.space, obs)
                if name in self.images
            ]
            embeddings.append(self.conv.embed(join(images).astype(dtype)))
        return join(embeddings)


Encoder = MLPEncoder | ConvEncoder | DictEncoder


def make_encoder(space: Space, model: ModelConfig, *, key: PRNGKeyArray) -> Encoder:
    """The encoder that this observation space calls for. Raises ConfigError where there is none."""
    if isinstance(space, DictSpace):
        return DictEncoder(space, model, key=key)
    cls = ConvEncoder if uses_convolutions(space, model) else MLPEncoder
    return cls(space, model, key=key)


def embed_size(space: Space, model: ModelConfig) -> int:
    """E, read off the encoder's own output; nothing is computed."""
    obs = map_entries(space, lambda entry: jax.ShapeDtypeStruct(entry.shape, entry.dtype))
    embed = lambda key, obs: make_encoder(space, model, key=key)(obs, jnp.dtype(jnp.float32))
    return jax.eval_shape(embed, jax.eval_shape(lambda: jr.key(0)), obs).shape[-1]
