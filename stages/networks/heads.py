"""Heads: networks that read a feature. The actor, two-hot scalars (rewards and values), and the continue head.

Axes: F feature, I bins.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from envs.environment import ActionSpace
from stages.config import ModelConfig, Scalar
from stages.networks.distributions import POLICIES, ActionDistribution, policy_at
from stages.networks.layers import Head
from stages.networks.two_hot import symexp_bins, two_hot_loss, two_hot_mean


class Actor(eqx.Module):
    """Feature -> distribution over actions: categorical with unimix, several of them, or bounded normal (DreamerV3,
    Methods)."""

    head: Head
    actions: ActionSpace = eqx.field(static=True)

    def __init__(self, model: ModelConfig, actions: ActionSpace, *, key: PRNGKeyArray):
        policy = POLICIES[actions.kind]
        sizes = (model.feat, model.units, model.layers, policy.outputs(actions))
        self.head = Head(*sizes, scale=0.01, parts=policy.parts, key=key)
        self.actions = actions

    def __call__(self, feat: Float[Array, "... F"], unimix: Scalar) -> ActionDistribution:
        """The policy at these features; `unimix` is the uniform share of a categorical one."""
        return policy_at(self.actions, self.head(feat), unimix)

    def noise(self, lead: tuple[int, ...], *, key: PRNGKeyArray) -> Float[Array, "..."]:
        """The random numbers for samples of leading axes `lead`, [*lead], [*lead, D] or [*lead, A]."""
        return POLICIES[self.actions.kind].noise(lead, self.actions, key=key)


class TwoHotHead(eqx.Module):
    """A scalar predicted as a distribution over symexp bins; the output layer starts at zero, so the first prediction
    is exactly 0 (DreamerV3, Methods). A reward head has one hidden layer, a critic as many as the actor."""

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
        self,
        logits: Float[Array, "*b I"],
        *targets: Float[Array, "*b"],
        weights: tuple[Scalar, ...] = (1.0,),
    ) -> Float[Array, "*b"]:
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
