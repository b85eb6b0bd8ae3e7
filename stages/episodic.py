"""Episodic novelty, and how an intrinsic reward raises it: Never Give Up (Badia et al. 2020, arXiv 2002.06038, eq. 1).

The explorer is paid clip(1 + (r - mean) / std, 1, limit) / sqrt(1 + n) for arriving in a state.

- n counts the earlier states of the same episode: 1 / sqrt(1 + n) is episodic novelty. An earlier state counts by a
  kernel of its decoded observation and this state's: 1 where they are equal, exp(-sharpness^2 d / 2) where their
  normalised numbers have a mean squared difference of d. Earlier than an imagined state are the imagined ones before it
  and the window's rows before its start.
- r is the intrinsic reward, which falls over all of training: life-long novelty. Alone it pays for one state again and
  again within an episode. Its mean and standard deviation are those of the batch's rows, so its scale does not matter.
  Where r is below its mean the factor is 1: episodic novelty alone is paid.

Axes: T time, B windows, L = H + 1 imagined states, c starts of a block, F feat, P numbers of an observation.
"""

import equinox as eqx
import jax.numpy as jnp
from jax.lax import stop_gradient as sg
from jaxtyping import Array, Float, Int

from stages.config import Hypers
from stages.decode import decode_mean
from stages.obs_numbers import ObsNumbers
from stages.replay import Row
from stages.rssm import latent_of
from stages.world_model import WorldModel

MIN_REWARD_STD = 1e-8
"""Smallest divisor of an intrinsic reward: a constant one has no deviation."""


class EpisodicMemory(eqx.Module):
    """The rows of a batch, which later states of their episodes are compared with."""

    decoded: Float[Array, "T B P"]  # their decoded observations, normalised
    episode: Int[Array, "T B"]  # counted from the window's first row
    reward_mean: Float[Array, ""]  # of the rows' intrinsic reward
    reward_std: Float[Array, ""]


def episodic_memory(
    model: WorldModel, numbers: ObsNumbers, feat: Float[Array, "T B F"], rows: Row, reward: Float[Array, "T B"]
) -> EpisodicMemory:
    """The memory that holds a batch's rows.

    Args:
        feat: their features.
        reward: the intrinsic reward of their actions. The action at an episode's last row leads nowhere: no network
            has learned from it, and its reward does not count.
    """
    counts = ~rows.is_last
    mean, std = sg(reward.mean(where=counts)), sg(reward.std(where=counts))
    return EpisodicMemory(_decode(model, numbers, feat), jnp.cumsum(rows.is_first, 0), mean, std)


def modulator(memory: EpisodicMemory, reward: Float[Array, "*b"], hypers: Hypers) -> Float[Array, "*b"]:
    """What an intrinsic reward multiplies episodic novelty by: 1 to `hypers.novelty_limit`."""
    z_score = (reward - memory.reward_mean) / jnp.maximum(memory.reward_std, MIN_REWARD_STD)
    return jnp.clip(1 + z_score, 1.0, hypers.novelty_limit)


def replayed_novelty(memory: EpisodicMemory, hypers: Hypers) -> Float[Array, "T B"]:
    """Episodic novelty of the batch's rows. Sends no gradient."""
    return _novelty((_kernel(memory.decoded, memory.decoded, hypers) * _earlier(memory)).sum(1))


def imagined_novelty(
    memory: EpisodicMemory,
    model: WorldModel,
    numbers: ObsNumbers,
    feat: Float[Array, "L c F"],
    start: Int[Array, " c"],
    hypers: Hypers,
) -> Float[Array, "L c"]:
    """Episodic novelty of imagined states.

    Args:
        start: the row where each trajectory starts, in the batch's order [T, B].
    """
    decoded, (time, window) = _decode(model, numbers, feat), jnp.divmod(start, memory.episode.shape[1])
    replayed = _kernel(decoded, memory.decoded[:, window], hypers) * _earlier(memory)[time, :, window].T  # [L, T, c]
    imagined = _kernel(decoded, decoded, hypers) * jnp.tri(decoded.shape[0], k=-1)[..., None]
    return _novelty(replayed.sum(1) + imagined.sum(1))


def _decode(model: WorldModel, numbers: ObsNumbers, feat: Float[Array, "*b F"]) -> Float[Array, "*b P"]:
    """The normalised decoded observations by which states are compared. Sends no gradient."""
    decoded = decode_mean(model.decoder, latent_of(model.rssm, feat))
    return sg(numbers.normalize(model.decoder.space, decoded).astype(jnp.float32))


def _kernel(x: Float[Array, "X *b P"], y: Float[Array, "Y *b P"], hypers: Hypers) -> Float[Array, "X Y *b"]:
    """The similarity of each of X states to each of Y states: 0 to 1, and 1 where they are equal."""
    square = lambda x: jnp.square(x).mean(-1)
    distance = square(x)[:, None] + square(y) - 2 * jnp.einsum("x...p,y...p->xy...", x, y) / x.shape[-1]
    return jnp.exp(-0.5 * jnp.square(hypers.episodic_sharpness) * jnp.maximum(distance, 0.0))


def _earlier(memory: EpisodicMemory) -> Float[Array, "T T B"]:
    """1 where the second row comes before the first, in the same episode."""
    before = jnp.tri(memory.episode.shape[0], k=-1)[..., None]
    return before * (memory.episode[:, None] == memory.episode)


def _novelty(count: Float[Array, "*b"]) -> Float[Array, "*b"]:
    return 1 / jnp.sqrt(1 + count)
