"""Heads: networks that read a feature. The actor, two-hot scalars (rewards and values), the continue head, and reward
and end as one distribution.

Axes: F feature, I bins.
"""

import equinox as eqx
import jax
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


INITIAL_END_LOGIT = -5.0
"""Added to an OutcomeHead's logits of an end: before it has learned, an end has a probability of 0.7 %."""


class OutcomeHead(eqx.Module):
    """The reward on arrival in a state, and whether the episode goes on, as one distribution over bins x {goes on,
    ends}. It replaces the reward head and the continue head (`--model.outcome joint`; not in DreamerV3).

    Separate heads need not agree about a goal that pays and ends the episode. In DoorKey, at imagined states that may
    be the goal, one expected 0.7 of the reward and the other an end with 0.4. Imagination was then paid several times,
    and states in front of the goal had values above what the goal pays (docs/experiments/recipe.md). Here a reward that
    was only seen at ends is expected with the probability of an end.
    """

    head: Head
    bins: int = eqx.field(static=True)

    def __init__(self, inputs: int, units: int, bins: int, *, key: PRNGKeyArray):
        self.head = Head(inputs, units, 1, 2 * bins, scale=0.0, key=key)
        self.bins = bins

    def __call__(self, feat: Float[Array, "... F"]) -> Float[Array, "... 2 I"]:
        """Logits: of the bins where the episode goes on, and where it ends."""
        logits = self.head(feat)
        logits = logits.reshape(*logits.shape[:-1], 2, self.bins)
        return logits + jnp.array([[0.0], [INITIAL_END_LOGIT]])

    def mean(self, logits: Float[Array, "... 2 I"]) -> Float[Array, "..."]:
        """Expected reward."""
        return two_hot_mean(jnp.logaddexp(logits[..., 0, :], logits[..., 1, :]), symexp_bins(self.bins))

    def continue_logit(self, logits: Float[Array, "... 2 I"]) -> Float[Array, "..."]:
        """The logit of the probability that the episode goes on, times the discount."""
        goes_on, ends = jnp.moveaxis(jax.nn.logsumexp(logits, -1), -1, 0)
        return goes_on - ends

    def loss(
        self, logits: Float[Array, "*b 2 I"], reward: Float[Array, "*b"], goes_on: Float[Array, "*b"]
    ) -> Float[Array, "*b"]:
        """Cross-entropy to the two-hot of the reward, given whether the episode goes on, nats.

        With the cross-entropy of `continue_logit` it is that of the whole distribution.

        Args:
            goes_on: the probability that it does: 0 at an end, else the discount.
        """
        once = jnp.ones(1)
        losses = jnp.stack([two_hot_loss(logits[..., i, :], reward[None], once, self.bins) for i in range(2)])
        return (jnp.stack([goes_on, 1 - goes_on]) * losses).sum(0)
