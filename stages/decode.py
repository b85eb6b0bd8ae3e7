"""Decoder: feature -> observation, and the reward and continue heads. The observation space picks net and loss.

Binary observations are Bernoulli (a summed MSE learns them far slower: DESIGN's prototype on Catch), reals a squared
error of their symlog, integers categorical, images a squared error of a sigmoid as in the reference.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from envs.environment import ObsSpace
from stages.config import ModelConfig
from stages.encode import MULTIPLIERS, board, convolutional, features
from stages.maths import cross_entropy, symexp, symexp_bins, symlog, two_hot_loss, two_hot_mean
from stages.nets import BlockLinear, Conv, ConvStage, Dense, Head, Linear, RMSNorm, pyramid, upsample


class MLPDecoder(eqx.Module):
    """Feature [deter, stoch] -> MLP -> raw outputs."""

    head: Head
    space: ObsSpace = eqx.field(static=True)

    def __init__(self, space: ObsSpace, model: ModelConfig, *, key: PRNGKeyArray):
        inputs = model.deter + model.stoch * model.classes
        self.head = Head(inputs, model.units, model.layers, math.prod(features(space)), key=key)
        self.space = space

    def __call__(self, deter: Float[Array, "... D"], stoch: Float[Array, "... S K"]) -> Float[Array, "..."]:
        """Raw outputs [..., *features]: logits, or predicted symlog."""
        feat = jnp.concatenate([deter, stoch.reshape(*stoch.shape[:-2], -1)], -1)
        return self.head(feat).reshape(*deter.shape[:-1], *features(self.space))


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
        height, width, channels = board(space)
        sizes = pyramid((height, width))
        depths = [model.depth * m for m in MULTIPLIERS[: max(1, len(sizes) - 1)]]
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

    def __call__(self, deter: Float[Array, "... D"], stoch: Float[Array, "... S K"]) -> Float[Array, "..."]:
        """Raw outputs [..., *features]: logits, or predicted symlog."""
        lead, sizes = deter.shape[:-1], pyramid(board(self.space)[:2])
        height, width = sizes[-1]
        split = self.from_deter(deter.reshape(*lead, self.blocks, -1)).reshape(*lead, self.blocks, height, width, -1)
        x = jnp.moveaxis(split, -4, -2).reshape(*lead, height, width, -1)
        y = self.from_hidden(self.from_stoch(stoch.reshape(*lead, -1)))
        x = jax.nn.silu(self.norm(x + y.reshape(x.shape)))
        for level, stage in enumerate(self.stages):
            x = upsample(x, sizes[-2 - level])
            x = jax.nn.silu(stage.norm(stage.conv(x)))
        x = upsample(x, sizes[0]) if len(sizes) > 1 else x
        return self.out(x).astype(jnp.float32).reshape(*lead, *features(self.space))


Decoder = MLPDecoder | ConvDecoder


def make_decoder(space: ObsSpace, model: ModelConfig, *, key: PRNGKeyArray) -> Decoder:
    """The decoder that this observation space calls for."""
    cls = ConvDecoder if convolutional(space, model) else MLPDecoder
    return cls(space, model, key=key)


def recon_loss(decoder: Decoder, deter: Array, stoch: Array, obs: Array) -> Float[Array, "..."]:
    """Negative log-likelihood (or squared error) of observations, summed over each one's entries.

    Args:
        deter, stoch: [..., D] and [..., S, K].
        obs: [..., *obs] in the space's storage type.
    """
    space, raw = decoder.space, decoder(deter, stoch)
    if space.kind == "categorical":
        loss = cross_entropy(raw, jax.nn.one_hot(obs, space.classes))
    elif space.kind == "binary":
        loss = jax.nn.softplus(raw) - raw * obs
    elif space.kind == "image":
        loss = jnp.square(jax.nn.sigmoid(raw) - obs.astype(jnp.float32) / 255)
    else:
        loss = jnp.square(raw - symlog(obs))
    return loss.sum(tuple(range(-len(space.shape), 0))) if space.shape else loss


def reconstruct(decoder: Decoder, deter: Array, stoch: Array) -> Float[Array, "..."]:
    """The most likely observation, float32: probabilities for binary and byte entries, indices for integers."""
    raw = decoder(deter, stoch)
    if decoder.space.kind == "categorical":
        return jnp.argmax(raw, -1).astype(jnp.float32)
    if decoder.space.kind == "real":
        return symexp(raw)
    return jax.nn.sigmoid(raw)


class TwoHotHead(eqx.Module):
    """A scalar predicted as a distribution over symexp bins; the output layer starts at zero, so the first prediction
    is exactly 0 (DreamerV3, Methods). Rewards have one hidden layer, critics three."""

    head: Head
    bins: int = eqx.field(static=True)

    def __init__(self, inputs: int, units: int, depth: int, bins: int, *, key: PRNGKeyArray):
        self.head = Head(inputs, units, depth, bins, scale=0.0, key=key)
        self.bins = bins

    def __call__(self, feat: Float[Array, "... F"]) -> Float[Array, "... I"]:
        """Logits."""
        return self.head(feat)

    def mean(self, logits: Float[Array, "... I"]) -> Float[Array, "..."]:
        """Expected value."""
        return two_hot_mean(logits, symexp_bins(self.bins))

    def loss(
        self, logits: Float[Array, "... I"], *targets: Float[Array, "..."], weights: tuple[Array | float, ...] = (1.0,)
    ) -> Float[Array, "..."]:
        """Cross-entropy to the two-hot of each target, weighted and summed, nats; no gradient to targets."""
        return two_hot_loss(logits, jnp.stack(targets), jnp.stack([jnp.float32(w) for w in weights]), self.bins)


class ContinueHead(eqx.Module):
    """Probability that the episode goes on, times the discount."""

    head: Head

    def __init__(self, inputs: int, units: int, *, key: PRNGKeyArray):
        self.head = Head(inputs, units, 1, 1, key=key)

    def __call__(self, feat: Float[Array, "... F"]) -> Float[Array, "..."]:
        """Logits."""
        return self.head(feat)[..., 0]
