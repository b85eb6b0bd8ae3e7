"""Inputs of intrinsic rewards: a state's decoded observation, its numbers normalised, and an action.

Axes: n pairs, F feat, A action vector, I inputs, P numbers of an observation, Q numbers of its projection.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.lax import stop_gradient as sg
from jaxtyping import Array, Float, PRNGKeyArray

from envs.environment import Obs, Space, obs_entries
from stages.config import Config, EnsembleConfig, Hypers
from stages.decode import decode_mean
from stages.encode import flat_numbers, join, number_count
from stages.rssm import bound_action, latent_of
from stages.world_model import WorldModel

NORMALIZER_RATE = 0.01  # of a RunningNormalizer's moving averages, for each of the ensemble's own updates


class RunningNormalizer(eqx.Module):
    """Brings the numbers of real observations to mean 0 and variance 1 by moving averages of them and their squares: a
    velocity of 0.07 then counts as much as a position of 1."""

    mean: Float[Array, " P"]
    square: Float[Array, " P"]
    weight: Float[Array, ""]  # the sum of the averages' weights: the averages start at zero

    @staticmethod
    def zero(size: int) -> "RunningNormalizer":
        """Before any observation: numbers pass unchanged."""
        return RunningNormalizer(jnp.zeros(size), jnp.zeros(size), jnp.zeros(()))

    def __call__(self, x: Float[Array, "... P"]) -> Float[Array, "... P"]:
        weight = jnp.maximum(self.weight, 1e-8)
        mean = self.mean / weight
        # Numbers that never change have no deviation, and a decoder's small errors in them must not look large.
        deviation = jnp.sqrt(jnp.maximum(self.square / weight - jnp.square(mean), 0) + 1e-4)
        return jnp.where(self.weight > 0, (x - mean) / deviation, x)

    def updated(self, x: Float[Array, "n P"]) -> "RunningNormalizer":
        """One step of the averages towards these numbers."""
        average = lambda old, new: (1 - NORMALIZER_RATE) * old + NORMALIZER_RATE * new
        new = RunningNormalizer(x.mean(0), jnp.square(x).mean(0), jnp.ones(()))
        return jax.tree.map(average, self, new)


class ObsNumbers(eqx.Module):
    """Brings an observation's numbers to a mean square of 1, and projects them. Nothing in it learns by gradient."""

    projection: Float[Array, "P Q"] | None  # fixed and random
    normalizer: RunningNormalizer | None  # of real observations, where own updates feed it

    def __init__(self, obs: Space, config: EnsembleConfig, *, key: PRNGKeyArray):
        size, projects = number_count(obs), "projected" in (config.input, config.target)
        self.projection = jr.normal(key, (size, config.projection)) if projects else None
        any_real = any(entry.kind == "real" for entry in obs_entries(obs).values())
        self.normalizer = RunningNormalizer.zero(size) if any_real and config.updates else None

    def normalize(self, space: Space, numbers: Float[Array, "... P"]) -> Float[Array, "... P"]:
        """Real numbers one by one, by the running mean and variance; the numbers of any other entry together.

        So a grid with one of 100 cells set has the same mean square as a full one, and weighs as much beside the action
        and in the prior networks.
        """
        reals = numbers if self.normalizer is None else self.normalizer(numbers)
        parts, start = [], 0
        for entry in obs_entries(space).values():
            stop = start + number_count(entry)
            parts.append(reals[..., start:stop] if entry.kind == "real" else _unit_scale(numbers[..., start:stop]))
            start = stop
        return join(parts)

    def project(self, numbers: Float[Array, "... P"]) -> Float[Array, "... Q"]:
        """Normalised numbers in the fixed random projection, of the same mean square in expectation."""
        assert self.projection is not None
        return numbers @ self.projection / math.sqrt(numbers.shape[-1])

    def updated(self, space: Space, obs: Obs) -> "ObsNumbers":
        """The normaliser moved towards observations [n, *obs] in storage type."""
        if self.normalizer is None:
            return self
        return eqx.tree_at(lambda numbers: numbers.normalizer, self, self.normalizer.updated(flat_numbers(space, obs)))


def _unit_scale(numbers: Float[Array, "... P"]) -> Float[Array, "... P"]:
    """Numbers brought to a mean square of 1."""
    return numbers * math.sqrt(numbers.shape[-1]) / jnp.sqrt(jnp.square(numbers).sum(-1, keepdims=True) + 0.01)


def state_action_inputs(
    numbers: ObsNumbers,
    config: EnsembleConfig,
    model: WorldModel,
    feat: Float[Array, "*b F"],
    action: Float[Array, "*b A"],
    hypers: Hypers,
) -> Float[Array, "*b I"]:
    """A state, as `config.input` says, and the action scaled by `hypers.action_scale`. Sends no gradient."""
    state = feat
    if config.input != "feat":
        state = numbers.normalize(model.decoder.space, decode_mean(model.decoder, latent_of(model.rssm, feat)))
    if config.input == "projected":
        state = numbers.project(state)
    # An action beyond the bounds is the bound, as the dynamics see it, and must not look new.
    action = (hypers.action_scale * bound_action(action)).astype(feat.dtype)
    return sg(jnp.concatenate([state.astype(feat.dtype), action], -1))


def input_size(obs: Space, action: int, config: Config) -> int:
    """I: how many numbers `state_action_inputs` gives."""
    sizes = {"feat": config.model.feat, "decoded": number_count(obs), "projected": config.ensemble.projection}
    return sizes[config.ensemble.input] + action
