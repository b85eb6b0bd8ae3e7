"""Distributions over action vectors and categorical latents: sample, mode, log_prob, entropy.

All are built from a network's raw outputs and take the noise of a sample as an argument, so that a scan may draw all of
it beforehand. `POLICIES` says which one an action space calls for, `policy_at` makes it.

Axes: K classes, D choices, A numbers of an action vector. "..." are any leading axes.
"""

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.lax import stop_gradient as sg
from jaxtyping import Array, Float, Int, PRNGKeyArray

from envs.environment import ActionSpace
from stages.config import Scalar
from stages.fast.kernels import matmul_highest, softmax

MIN_STD, MAX_STD = 0.1, 1.0
MIN_PROB = 1e-30  # in float32 it changes no probability that a sample can have


class Categorical(eqx.Module):
    """A categorical distribution whose samples are one-hot vectors.

    Probabilities and their logarithms are computed once and shared by sampling, entropy and KL.
    """

    probs: Float[Array, "... K"]
    logp: Float[Array, "... K"]
    parts: ClassVar = 1  # output layers that a network needs

    @staticmethod
    def from_outputs(outputs: Float[Array, "... K"], unimix: Float[Array, "..."] | float) -> "Categorical":
        """Softmax mixed with a share `unimix` of the uniform distribution (DreamerV3, Methods), in float32."""
        probs = softmax(outputs.astype(jnp.float32))
        probs = (1 - unimix) * probs + unimix / outputs.shape[-1]
        # Without a uniform share a class may have probability 0; its logarithm must not be infinite.
        return Categorical(probs, jnp.log(probs + MIN_PROB))

    @staticmethod
    def outputs(actions: ActionSpace) -> int:
        """How many numbers `from_outputs` takes."""
        return actions.size

    @staticmethod
    def noise(lead: tuple[int, ...], actions: ActionSpace, *, key: PRNGKeyArray) -> Float[Array, "..."]:
        """The noise of samples: one uniform number in [0, 1) each, [*lead]; or one for each choice, [*lead, D]."""
        return jr.uniform(key, (*lead, *actions.struct.shape))

    def sample(self, noise: Float[Array, "..."]) -> Float[Array, "... K"]:
        """A one-hot sample, without gradient."""
        return jax.nn.one_hot(sample_index(sg(self.probs), noise), self.probs.shape[-1], dtype=self.probs.dtype)

    def rsample(self, noise: Float[Array, "..."]) -> Float[Array, "... K"]:
        """A one-hot sample with the gradient of the probabilities: straight-through (Bengio et al. 2013)."""
        return straight_through(sample_index(self.probs, noise), self.probs)

    def mode(self) -> Float[Array, "... K"]:
        """The most likely class, one-hot."""
        return jax.nn.one_hot(jnp.argmax(self.probs, -1), self.probs.shape[-1], dtype=self.probs.dtype)

    def log_prob(self, value: Float[Array, "... K"]) -> Float[Array, "..."]:
        """Log-probability of a one-hot vector, nats."""
        return jnp.sum(self.logp * value, -1)

    def entropy(self) -> Float[Array, "..."]:
        """Entropy in nats."""
        return -jnp.sum(self.probs * self.logp, -1)


class BoundedNormal(eqx.Module):
    """A diagonal normal distribution with its mean in (-1, 1) and its standard deviation in (0.1, 1)."""

    mean: Float[Array, "... A"]
    std: Float[Array, "... A"]
    parts: ClassVar = 2  # the reference's mean and standard deviation come from a layer each

    @staticmethod
    def from_outputs(outputs: Float[Array, "... O"], unimix: Scalar) -> "BoundedNormal":
        """The first half of the outputs gives the mean, the second the standard deviation; no uniform share."""
        del unimix
        mean, std = jnp.split(outputs, 2, -1)
        return BoundedNormal(jnp.tanh(mean), (MAX_STD - MIN_STD) * jax.nn.sigmoid(std + 2) + MIN_STD)

    @staticmethod
    def outputs(actions: ActionSpace) -> int:
        """How many numbers `from_outputs` takes."""
        return 2 * actions.size

    @staticmethod
    def noise(lead: tuple[int, ...], actions: ActionSpace, *, key: PRNGKeyArray) -> Float[Array, "... A"]:
        """The noise of samples, [*lead, A]: standard normal."""
        return jr.normal(key, (*lead, actions.size))

    def sample(self, noise: Float[Array, "... A"]) -> Float[Array, "... A"]:
        """A sample, without gradient. It may lie outside of [-1, 1]."""
        return sg(self.mean + self.std * noise)

    def mode(self) -> Float[Array, "... A"]:
        """The mean."""
        return self.mean

    def log_prob(self, value: Float[Array, "... A"]) -> Float[Array, "..."]:
        """Log-density of a vector, nats, summed over its dimensions."""
        return jax.scipy.stats.norm.logpdf(value.astype(jnp.float32), self.mean, self.std).sum(-1)

    def entropy(self) -> Float[Array, "..."]:
        """Differential entropy in nats, summed over dimensions."""
        return (0.5 * jnp.log(2 * jnp.pi * jnp.square(self.std)) + 0.5).sum(-1)


class MultiCategorical(eqx.Module):
    """Independent categorical distributions side by side. Samples are their one-hot vectors one after another."""

    choices: tuple[Categorical, ...]
    parts: ClassVar = 1
    outputs = Categorical.outputs
    noise = Categorical.noise

    @staticmethod
    def from_outputs(
        outputs: Float[Array, "... A"], unimix: Float[Array, "..."] | float, actions: ActionSpace
    ) -> "MultiCategorical":
        """Each choice's part of the outputs as in `Categorical`."""
        return MultiCategorical(tuple(Categorical.from_outputs(part, unimix) for part in actions.split(outputs)))

    def sample(self, noise: Float[Array, "... D"]) -> Float[Array, "... A"]:
        """A sample of every choice, without gradient."""
        return jnp.concatenate([choice.sample(noise[..., d]) for d, choice in enumerate(self.choices)], -1)

    def mode(self) -> Float[Array, "... A"]:
        """The most likely option of every choice."""
        return jnp.concatenate([choice.mode() for choice in self.choices], -1)

    def log_prob(self, value: Float[Array, "... A"]) -> Float[Array, "..."]:
        """Log-probability of an action vector, nats."""
        return jnp.sum(jnp.concatenate([choice.logp for choice in self.choices], -1) * value, -1)

    def entropy(self) -> Float[Array, "..."]:
        """Entropy in nats, summed over choices."""
        return sum((choice.entropy() for choice in self.choices), jnp.zeros(()))


ActionDistribution = Categorical | BoundedNormal | MultiCategorical
POLICIES: dict[str, type[ActionDistribution]] = {
    "discrete": Categorical,
    "continuous": BoundedNormal,
    "multi_discrete": MultiCategorical,
}
"""Kind of action space -> the distribution that an actor has over it."""


def policy_at(actions: ActionSpace, outputs: Float[Array, "... O"], unimix: Scalar) -> ActionDistribution:
    """The distribution over actions that an actor's outputs stand for."""
    if actions.kind == "multi_discrete":
        return MultiCategorical.from_outputs(outputs, unimix, actions)
    return (Categorical if actions.kind == "discrete" else BoundedNormal).from_outputs(outputs, unimix)


def max_entropy(actions: ActionSpace) -> float:
    """The entropy of uniformly random actions, nats; NaN for continuous ones."""
    if actions.kind == "continuous":
        return math.nan
    return sum(math.log(size) for size in actions.choices or (actions.size,))


def sample_index(probs: Float[Array, "... K"], uniform: Float[Array, "..."]) -> Int[Array, "..."]:
    """Class drawn with one uniform in [0, 1) each, by inverting the cumulative distribution."""
    count = probs.shape[-1]
    triangle = np.triu(np.ones((count, count), np.float32))
    cumulative = matmul_highest(probs, triangle[:, :-1])
    # The last class takes what remains, so rounding of the cumulative sum can never name a class beyond it.
    return jnp.sum(uniform[..., None] >= cumulative, -1, dtype=jnp.int32)


def straight_through(index: Int[Array, "..."], probs: Float[Array, "... K"]) -> Float[Array, "... K"]:
    """One-hot of `index` whose gradient is that of `probs` (Bengio et al. 2013, arXiv 1308.3432)."""
    onehot = jax.nn.one_hot(index, probs.shape[-1], dtype=probs.dtype)
    return sg(onehot) + (probs - sg(probs))


def kl(p: Categorical, q: Categorical) -> Float[Array, "..."]:
    """KL[p || q] in nats."""
    return jnp.sum(p.probs * (p.logp - q.logp), -1)
