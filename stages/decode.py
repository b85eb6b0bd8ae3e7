"""Decoder: latent -> observation. The observation space picks network and loss.

The outputs for binary observations are Bernoulli logits, and for integers categorical ones. Reals have a squared error
of their symlog, images one of a sigmoid, as in the reference. With a squared error, binary observations are learned far
more slowly: on Catch, with all else equal, the return after 2,048 updates was -0.56 against 0.84.

An observation may have several entries. Its images are channels of one image that convolutions make. Each of its other
entries has a linear layer on one MLP.

Axes: D deter, S categoricals, K classes; "..." are any leading axes.
"""

import functools
import math
import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from envs.environment import DictSpace, Obs, ObsSpace, Space, map_entries, zip_entries
from stages.config import ModelConfig
from stages.encode import (
    DEPTH_MULTIPLIERS,
    image_shape,
    images_and_vectors,
    join,
    joined_image_space,
    number_count,
    preprocessed_shape,
    uses_convolutions,
)
from stages.networks.convolution import Conv, ConvStage, pyramid, upsample
from stages.networks.layers import MLP, BlockLinear, Dense, Head, Linear, RMSNorm
from stages.networks.symlog import symexp, symlog
from stages.networks.two_hot import cross_entropy
from stages.rssm import Latent


class MLPDecoder(eqx.Module):
    """Feature [deter, stoch] -> MLP -> raw outputs."""

    head: Head
    space: ObsSpace = eqx.field(static=True)

    def __init__(self, space: ObsSpace, model: ModelConfig, *, key: PRNGKeyArray):
        self.head = Head(model.feat, model.units, model.layers, number_count(space), key=key)
        self.space = space

    def __call__(self, latent: Latent) -> Float[Array, "..."]:
        """Raw outputs [..., *preprocessed]: logits, or predicted symlog."""
        return self.head(latent.feat).reshape(*latent.deter.shape[:-1], *preprocessed_shape(self.space))


class ConvDecoder(eqx.Module):
    """Deter through a block-linear layer and stoch through two layers meet in the coarsest level; then upsampling and
    convolution level by level (DreamerV3's decoder with bspace 8)."""

    from_deter: BlockLinear
    from_stoch: Dense
    from_hidden: Linear
    norm: RMSNorm
    stages: tuple[ConvStage, ...]
    out: Conv
    space: ObsSpace = eqx.field(static=True)
    blocks: int = eqx.field(static=True)

    def __init__(self, space: ObsSpace, model: ModelConfig, *, key: PRNGKeyArray):
        height, width, channels = image_shape(space)
        sizes = pyramid((height, width))
        depths = [model.depth * m for m in DEPTH_MULTIPLIERS[: max(1, len(sizes) - 1)]]
        kernel = 5 if len(sizes) > 3 else 3
        coarse = math.prod(sizes[-1]) * depths[-1]
        key_deter, key_stoch, key_hidden, key_out, *keys = jr.split(key, 4 + len(depths) - 1)
        # The blocks of deter share out the channels, so their number has to divide both.
        self.blocks = math.gcd(8, math.gcd(model.deter, depths[-1]))
        self.from_deter = BlockLinear(model.deter, coarse, self.blocks, key=key_deter)
        self.from_stoch = Dense(model.stoch * model.classes, 2 * model.units, key=key_stoch)
        self.from_hidden = Linear(2 * model.units, coarse, key=key_hidden)
        self.norm = RMSNorm(depths[-1])
        self.stages = tuple(
            ConvStage(i, o, kernel, key=k) for i, o, k in zip(depths[:0:-1], depths[-2::-1], keys, strict=True)
        )
        self.out = Conv(depths[0], channels, kernel, key=key_out)
        self.space = space

    def __call__(self, latent: Latent) -> Float[Array, "..."]:
        """Raw outputs [..., *preprocessed]: logits, or predicted symlog."""
        deter, stoch = latent.deter, latent.stoch
        lead, sizes = deter.shape[:-1], pyramid(image_shape(self.space)[:2])
        height, width = sizes[-1]
        split = self.from_deter(deter.reshape(*lead, self.blocks, -1)).reshape(*lead, self.blocks, height, width, -1)
        x = jnp.moveaxis(split, -4, -2).reshape(*lead, height, width, -1)
        y = self.from_hidden(self.from_stoch(stoch.reshape(*lead, -1)))
        x = jax.nn.silu(self.norm(x + y.reshape(x.shape)))
        for level, stage in enumerate(self.stages):
            x = upsample(x, sizes[-2 - level])
            x = jax.nn.silu(stage.norm(stage.conv(x)))
        x = upsample(x, sizes[0]) if len(sizes) > 1 else x
        return self.out(x).astype(jnp.float32).reshape(*lead, *preprocessed_shape(self.space))


class DictDecoder(eqx.Module):
    """Images are channels of one ConvDecoder; each other entry has a linear layer on one MLP."""

    mlp: MLP | None
    out: dict[str, Linear]
    conv: ConvDecoder | None
    space: DictSpace = eqx.field(static=True)

    def __init__(self, space: DictSpace, model: ModelConfig, *, key: PRNGKeyArray):
        key_mlp, key_conv, *keys = jr.split(key, 2 + len(space.entries))
        images, vectors = images_and_vectors(space, model)
        self.mlp = MLP(model.feat, model.units, model.layers, key=key_mlp) if vectors else None
        self.out = {
            name: Linear(model.units, number_count(entry), key=key_out)
            for key_out, (name, entry) in zip(keys, vectors.items(), strict=False)
        }
        self.conv = ConvDecoder(joined_image_space(images), model, key=key_conv) if images else None
        self.space = space

    def __call__(self, latent: Latent) -> dict[str, Float[Array, "..."]]:
        """Raw outputs [..., *preprocessed] of each entry: logits, or predicted symlog."""
        lead, raw = latent.deter.shape[:-1], {}
        if self.mlp is not None:
            hidden = self.mlp(latent.feat)
            raw = {name: out(hidden).astype(jnp.float32) for name, out in self.out.items()}
        if self.conv is not None:
            images = [name for name in self.space.entries if name not in self.out]
            channels = [image_shape(self.space.entries[name])[2] for name in images]
            ends = [sum(channels[: i + 1]) for i in range(len(channels) - 1)]
            raw |= dict(zip(images, jnp.split(self.conv(latent), ends, -1), strict=True))
        return {
            name: raw[name].reshape(*lead, *preprocessed_shape(entry)) for name, entry in self.space.entries.items()
        }


Decoder = MLPDecoder | ConvDecoder | DictDecoder


def make_decoder(space: Space, model: ModelConfig, *, key: PRNGKeyArray) -> Decoder:
    """The decoder that this observation space calls for. Raises ConfigError where there is none."""
    if isinstance(space, DictSpace):
        return DictDecoder(space, model, key=key)
    cls = ConvDecoder if uses_convolutions(space, model) else MLPDecoder
    return cls(space, model, key=key)


def recon_losses(decoder: Decoder, latent: Latent, obs: Obs) -> dict[str, Float[Array, "..."]]:
    """Negative log-likelihood (or squared error) of each entry of observations, summed over its numbers, [...].

    Args:
        latent: [..., D] and [..., S, K].
        obs: [..., *obs] in the space's storage type.
    """
    entries = zip_entries(decoder.space, decoder(latent), obs)
    return {name: _entry_loss(space, raw, array) for name, space, raw, array in entries}


def recon_loss(decoder: Decoder, latent: Latent, obs: Obs) -> Float[Array, "..."]:
    """`recon_losses`, summed over entries."""
    return sum_entries(recon_losses(decoder, latent, obs))


def sum_entries(losses: dict[str, Float[Array, "..."]]) -> Float[Array, "..."]:
    """The losses of all entries, added up."""
    return functools.reduce(operator.add, losses.values())


def _entry_loss(space: ObsSpace, raw: Float[Array, "..."], obs: Shaped[Array, "..."]) -> Float[Array, "..."]:
    if space.kind == "categorical":
        loss = cross_entropy(raw, jax.nn.one_hot(obs, space.classes))
    elif space.kind == "binary":
        loss = jax.nn.softplus(raw) - raw * obs
    elif space.kind == "image":
        loss = jnp.square(jax.nn.sigmoid(raw) - obs.astype(jnp.float32) / 255)
    else:
        loss = jnp.square(raw - symlog(obs))
    return loss.sum(tuple(range(-len(space.shape), 0))) if space.shape else loss


def decode_mean(decoder: Decoder, latent: Latent) -> Float[Array, "... P"]:
    """The mean of the predicted observation, flat and preprocessed as an encoder's input (encode.flat_numbers)."""
    lead = latent.deter.shape[:-1]
    entries = zip_entries(decoder.space, decoder(latent))
    return join([_entry_mean(space, raw).reshape(*lead, -1) for _, space, raw in entries])


def _entry_mean(space: ObsSpace, raw: Float[Array, "..."]) -> Float[Array, "..."]:
    if space.kind == "categorical":
        return jax.nn.softmax(raw)
    if space.kind == "real":
        return raw
    return jax.nn.sigmoid(raw) - (0.5 if space.kind == "image" else 0.0)


def reconstruct(decoder: Decoder, latent: Latent) -> PyTree[Float[Array, "..."]]:
    """The most likely observation, float32, of the structure that observations have: probabilities for binary and byte
    entries, indices for integers."""
    return map_entries(decoder.space, _entry_mode, decoder(latent))


def _entry_mode(space: ObsSpace, raw: Float[Array, "..."]) -> Float[Array, "..."]:
    if space.kind == "categorical":
        return jnp.argmax(raw, -1).astype(jnp.float32)
    return symexp(raw) if space.kind == "real" else jax.nn.sigmoid(raw)
