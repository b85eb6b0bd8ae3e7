"""Intrinsic rewards: what the explorer is paid for novelty, such as the ensemble's disagreement.

`IntrinsicReward` is the interface, `Disagreement` is Plan2Explore's reward, and `ConstantReward` is its control. To add
one, write a class with these methods (rnd.py is an example) and add a line to `rewards.INTRINSIC_REWARDS`.

Axes: T time, B windows, n pairs, F feat, A action vector, U actions that are told apart (coverage.action_count). "*b"
are any leading axes.
"""

import abc
from typing import ClassVar, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from envs.environment import ActionSpace, Space
from stages.config import Config, EnsembleConfig, Hypers
from stages.ensemble import (
    Ensemble,
    disagreement,
    ensemble_loss,
    init_opt_state,
    replace_members,
    update_ensemble,
)
from stages.obs_numbers import ObsNumbers
from stages.replay import Row
from stages.world_model import Observed, WorldModel


class VisitCounts(NamedTuple):
    """Counts that an update may use beside its replayed pairs of rows."""

    action_vectors: Float[Array, "U A"]  # of the actions that are told apart (measure/coverage.py)
    visits: Int[Array, "n U"] | None  # how often each was taken in the pair's first state; None: no state is counted


class IntrinsicReward(eqx.Module):
    """A reward that the agent computes itself, with the networks that it trains for that."""

    name: ClassVar[str]
    """Its key in INTRINSIC_REWARDS, and in the names of metrics."""
    loss_name: ClassVar[str]
    """The metric of its loss is loss/LOSS_NAME."""

    @abc.abstractmethod
    def __init__(self, config: Config, obs: Space, actions: ActionSpace, *, key: PRNGKeyArray): ...

    @property
    @abc.abstractmethod
    def updates(self) -> int:
        """Calls of `update` after each update of the agent; 0: it learns with the agent, by `loss`."""

    @abc.abstractmethod
    def __call__(
        self, model: WorldModel, feat: Float[Array, "*b F"], action: Float[Array, "*b A"], hypers: Hypers
    ) -> Float[Array, "*b"]:
        """The reward for choosing `action` at `feat`. It arrives with the next state, and sends no gradient."""

    @property
    @abc.abstractmethod
    def obs_numbers(self) -> ObsNumbers:
        """How it normalises and projects decoded observations."""

    @property
    @abc.abstractmethod
    def novelty_signal(self) -> "IntrinsicReward":
        """The reward that measure/ compares with visits: this one, unless it is a control."""

    @abc.abstractmethod
    def loss(
        self, model: WorldModel, observed: Observed, rows: Row, action: Float[Array, "T B A"], hypers: Hypers
    ) -> Float[Array, "T B"]:
        """Its loss on a batch, nats. Sends gradient to its own weights only."""

    @abc.abstractmethod
    def init_opt_state(self, hypers: Hypers) -> optax.OptState:
        """The state of its own optimiser before the first `update`."""

    @abc.abstractmethod
    def update(
        self, opt_state: optax.OptState, model: WorldModel, pairs: Row, counts: VisitCounts, hypers: Hypers
    ) -> tuple["IntrinsicReward", optax.OptState, Float[Array, ""]]:
        """One step of its own optimiser.

        Args:
            pairs: rows and their successors, [2, n, ...]: a quarter from the newest rows, the others uniform.
            counts: what else is known about them.

        Returns:
            (the reward, the optimiser's state, the loss [], nats).
        """

    @abc.abstractmethod
    def reinitialize(self, config: Config, obs: Space, actions: ActionSpace, *, key: PRNGKeyArray) -> "IntrinsicReward":
        """This reward with new trainable weights, as before training. What is not trained by gradient is kept."""


class ObsReward(IntrinsicReward):
    """A reward that has `ObsNumbers` and an EnsembleConfig, and is its own novelty signal."""

    numbers: eqx.AbstractVar[ObsNumbers]
    config: eqx.AbstractVar[EnsembleConfig]

    @property
    def obs_numbers(self) -> ObsNumbers:
        return self.numbers

    @property
    def updates(self) -> int:
        return self.config.updates

    @property
    def novelty_signal(self) -> "ObsReward":
        return self


SomeObsReward = TypeVar("SomeObsReward", bound=ObsReward)


def update_normalizer(reward: SomeObsReward, model: WorldModel, pairs: Row) -> SomeObsReward:
    """The reward with its normaliser updated by the second observations of pairs, [2, n, ...]."""
    numbers = reward.numbers.updated(model.decoder.space, jax.tree.map(lambda x: x[1], pairs.obs))
    return eqx.tree_at(lambda reward: reward.numbers, reward, numbers)


class Disagreement(IntrinsicReward):
    """Plan2Explore's reward: the spread of an ensemble's predictions (Sekar et al. 2020, arXiv 2005.05960, eq. 2)."""

    ensemble: Ensemble
    name: ClassVar[str] = "disagreement"
    loss_name: ClassVar[str] = "ensemble"

    def __init__(self, config: Config, obs: Space, actions: ActionSpace, *, key: PRNGKeyArray):
        self.ensemble = Ensemble(config, obs, actions.size, key=key)

    @property
    def obs_numbers(self) -> ObsNumbers:
        return self.ensemble.numbers

    @property
    def updates(self) -> int:
        return self.ensemble.config.updates

    def __call__(
        self, model: WorldModel, feat: Float[Array, "*b F"], action: Float[Array, "*b A"], hypers: Hypers
    ) -> Float[Array, "*b"]:
        return disagreement(self.ensemble, model, feat, action, hypers)

    @property
    def novelty_signal(self) -> "Disagreement":
        return self

    def loss(
        self, model: WorldModel, observed: Observed, rows: Row, action: Float[Array, "T B A"], hypers: Hypers
    ) -> Float[Array, "T B"]:
        return ensemble_loss(self.ensemble, model, observed, rows, action, hypers)

    def init_opt_state(self, hypers: Hypers) -> optax.OptState:
        return init_opt_state(self.ensemble, hypers)

    def update(
        self, opt_state: optax.OptState, model: WorldModel, pairs: Row, counts: VisitCounts, hypers: Hypers
    ) -> tuple["Disagreement", optax.OptState, Float[Array, ""]]:
        del counts
        ensemble, opt_state, loss = update_ensemble(self.ensemble, opt_state, model, pairs, hypers)
        return eqx.tree_at(lambda reward: reward.ensemble, self, ensemble), opt_state, loss

    def reinitialize(self, config: Config, obs: Space, actions: ActionSpace, *, key: PRNGKeyArray) -> "Disagreement":
        ensemble = replace_members(self.ensemble, Ensemble(config, obs, actions.size, key=key).members)
        return eqx.tree_at(lambda reward: reward.ensemble, self, ensemble)


class ConstantReward(IntrinsicReward):
    """1 for every action: a control.

    With episodic novelty, which modes explore and mix set, the explorer is paid episodic novelty alone. Without it, the
    explorer is paid for long episodes. An ensemble is trained as well, so that disagreement can be measured.
    """

    unpaid: Disagreement  # trained and measured; the explorer is not paid it
    name: ClassVar[str] = "constant"
    loss_name: ClassVar[str] = Disagreement.loss_name

    def __init__(self, config: Config, obs: Space, actions: ActionSpace, *, key: PRNGKeyArray):
        self.unpaid = Disagreement(config, obs, actions, key=key)

    @property
    def obs_numbers(self) -> ObsNumbers:
        return self.unpaid.obs_numbers

    @property
    def updates(self) -> int:
        return self.unpaid.updates

    def __call__(
        self, model: WorldModel, feat: Float[Array, "*b F"], action: Float[Array, "*b A"], hypers: Hypers
    ) -> Float[Array, "*b"]:
        del model, action, hypers
        return jnp.ones(feat.shape[:-1])

    @property
    def novelty_signal(self) -> Disagreement:
        return self.unpaid

    def loss(
        self, model: WorldModel, observed: Observed, rows: Row, action: Float[Array, "T B A"], hypers: Hypers
    ) -> Float[Array, "T B"]:
        return self.unpaid.loss(model, observed, rows, action, hypers)

    def init_opt_state(self, hypers: Hypers) -> optax.OptState:
        return self.unpaid.init_opt_state(hypers)

    def update(
        self, opt_state: optax.OptState, model: WorldModel, pairs: Row, counts: VisitCounts, hypers: Hypers
    ) -> tuple["ConstantReward", optax.OptState, Float[Array, ""]]:
        unpaid, opt_state, loss = self.unpaid.update(opt_state, model, pairs, counts, hypers)
        return eqx.tree_at(lambda reward: reward.unpaid, self, unpaid), opt_state, loss

    def reinitialize(self, config: Config, obs: Space, actions: ActionSpace, *, key: PRNGKeyArray) -> "ConstantReward":
        return eqx.tree_at(lambda r: r.unpaid, self, self.unpaid.reinitialize(config, obs, actions, key=key))
