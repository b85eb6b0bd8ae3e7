"""Uniformly random actions: the policy of mode random, the control with which explorers are compared.

Axes: F feat, A action vector.
"""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from envs.environment import ActionSpace
from stages.config import Scalar
from stages.networks.distributions import ActionDistribution, policy_at


class UniformBox(eqx.Module):
    """The uniform distribution over [-1, 1] in each of A dimensions."""

    center: Float[Array, "... A"]  # zeros

    def sample(self, noise: Float[Array, "... A"]) -> Float[Array, "... A"]:
        """A sample is its noise, uniform in [-1, 1)."""
        return self.center + noise

    def mode(self) -> Float[Array, "... A"]:
        """The center, though no action is likelier than another."""
        return self.center


class UniformActor(eqx.Module):
    """An actor that ignores the state: discrete actions are equally likely, continuous ones uniform in their bounds."""

    actions: ActionSpace = eqx.field(static=True)

    def __call__(self, feat: Float[Array, "... F"], unimix: Scalar) -> ActionDistribution | UniformBox:
        """The same distribution at every feature."""
        del unimix
        zeros = jnp.zeros((*feat.shape[:-1], self.actions.size))
        return UniformBox(zeros) if self.actions.kind == "continuous" else policy_at(self.actions, zeros, 0.0)

    def noise(self, lead: tuple[int, ...], *, key: PRNGKeyArray) -> Float[Array, "..."]:
        """The random numbers that `lead` samples take: [*lead] or [*lead, D] in [0, 1), or [*lead, A] in [-1, 1)."""
        low = -1.0 if self.actions.kind == "continuous" else 0.0
        return jr.uniform(key, (*lead, *self.actions.struct.shape), minval=low)


class RandomPolicy(eqx.Module):
    """The behaviour that collects in mode random. It learns nothing and holds no weights."""

    actor: UniformActor

    def __init__(self, actions: ActionSpace):
        self.actor = UniformActor(actions)
