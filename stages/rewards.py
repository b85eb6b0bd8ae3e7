"""Rewards: what each behaviour is paid, by mode. This is the file where disagreement becomes a reward.

A reward is computed twice: along imagined trajectories, for actor and critic, and on replayed rows, for the critic.
Both are indexed by arrival: reward[t] came with state t. `BEHAVIORS` is the table of modes; another intrinsic reward is
a `Reward` here, with a file of its own if it learns a network, and a mode or a place in the table.

Axes: R rewards, T time, B windows, L = H + 1 imagined states, c starts of a block, F feat, A action vector.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from stages.config import Config, Hypers, Mode, Norm
from stages.ensemble import Ensemble, disagreement, ensemble_loss, ensemble_moments, update_ensemble
from stages.imagine import Trajectory
from stages.replay import Row
from stages.world_model import WorldModel


class Network(NamedTuple):
    """What an intrinsic reward learns with."""

    name: str  # of its loss, and of the loss' scale in Hypers: scale_NAME
    make: Callable[..., Any]  # (config, observations, action size, *, key) -> the network
    # Learning with the model, from its batch: (network, model, observed, rows, action, hypers) -> nats [T, B]
    loss: Callable[..., Float[Array, "T B"]]
    # Or by updates of its own: (network, moments, model, pairs, hypers) -> (network, moments, loss)
    update: Callable[..., tuple[Any, Any, Float[Array, ""]]]
    moments: Callable[[Any, Hypers], Any]  # of its own optimiser, at the start


class Reward(NamedTuple):
    """One of a behaviour's rewards: how it is computed, and how its advantages are scaled."""

    name: str  # in metrics
    # Of one block: (model, network, trajectory, hypers)
    imagined: Callable[[WorldModel, Any, Trajectory, Hypers], Float[Array, "L c"]]
    # (model, network, rows, feat, action, hypers)
    replayed: Callable[[WorldModel, Any, Row, Array, Array, Hypers], Float[Array, "T B"]]
    norm: Callable[[Config], Norm]  # whose range divides its advantages
    scale: Callable[[Hypers], Any]  # weight of its normalised advantages
    floor: Callable[[Hypers], Any]  # smallest divisor of its advantages
    debias: bool  # whether the return scale is corrected for its start at zero, which only a small floor shows
    network: Network | None = None


# ---- the extrinsic reward ------------------------------------------------------------------------------------------


def imagined_extrinsic(model: WorldModel, network: Any, trajectory: Trajectory, hypers: Hypers) -> Float[Array, "L c"]:
    """The reward head's expectation on arrival in each imagined state."""
    del network, hypers
    return model.reward.mean(model.reward(trajectory.feat))


def replayed_extrinsic(
    model: WorldModel, network: Any, rows: Row, feat: Array, action: Array, hypers: Hypers
) -> Float[Array, "T B"]:
    """The rewards that arrived."""
    del model, network, feat, action, hypers
    return rows.reward


# ---- disagreement --------------------------------------------------------------------------------------------------


def imagined_disagreement(
    model: WorldModel, ensemble: Ensemble, trajectory: Trajectory, hypers: Hypers
) -> Float[Array, "L c"]:
    """The disagreement about each imagined action (Plan2Explore, eq. 2): D(s_t, a_t) arrives with s_{t+1}."""
    feat, action = trajectory.feat[:-1], trajectory.action[:-1]
    return shift_to_arrival(disagreement(ensemble, model, feat, action, hypers))


def replayed_disagreement(
    model: WorldModel,
    ensemble: Ensemble,
    rows: Row,
    feat: Float[Array, "T B F"],
    action: Float[Array, "T B A"],
    hypers: Hypers,
) -> Float[Array, "T B"]:
    """The ensemble's disagreement about each replayed action."""
    return replayed_on_arrival(disagreement(ensemble, model, feat, action, hypers), rows)


def shift_to_arrival(reward: Float[Array, "H *b"]) -> Float[Array, "L *b"]:
    """Rewards indexed by the step of the action they pay -> by the step they arrive at: one later, 0 at the first."""
    return jnp.concatenate([jnp.zeros_like(reward[:1]), reward])


def replayed_on_arrival(paid: Float[Array, "T B"], rows: Row) -> Float[Array, "T B"]:
    """What each replayed action is paid, by the step it arrives at; the last row's arrives after the window."""
    # What would arrive with a reset was not earned by the action before it.
    return jnp.where(rows.is_first, 0.0, shift_to_arrival(paid[:-1]))


# ---- a constant, the control ---------------------------------------------------------------------------------------


def imagined_constant(model: WorldModel, network: Any, trajectory: Trajectory, hypers: Hypers) -> Float[Array, "L c"]:
    """1 for every imagined action, arriving with the state after it."""
    del model, network, hypers
    return shift_to_arrival(jnp.ones_like(trajectory.cont[:-1]))


def replayed_constant(
    model: WorldModel, network: Any, rows: Row, feat: Array, action: Array, hypers: Hypers
) -> Float[Array, "T B"]:
    """1 for every replayed action, as disagreement pays them."""
    del model, network, feat, action, hypers
    return replayed_on_arrival(jnp.ones_like(rows.reward), rows)


# ---- the table of modes --------------------------------------------------------------------------------------------

TASK = Reward(
    "extrinsic",
    imagined_extrinsic,
    replayed_extrinsic,
    lambda c: "returns",
    lambda h: 1.0,
    lambda h: h.return_floor,
    debias=False,
)
EXTRINSIC = TASK._replace(scale=lambda h: h.extrinsic_scale)
DISAGREEMENT = Reward(
    "disagreement",
    imagined_disagreement,
    replayed_disagreement,
    lambda c: c.intrinsic_norm,
    lambda h: h.intrinsic_scale,
    lambda h: h.intrinsic_floor,
    debias=True,
    network=Network("ensemble", Ensemble, ensemble_loss, update_ensemble, ensemble_moments),
)
# Beside a reward it is to fade once there is nothing new.
FADING = DISAGREEMENT._replace(floor=lambda h: h.mix_intrinsic_floor)
# Scaled as rewards are; the ensemble learns beside it, so that what it would have paid is measured.
CONSTANT = TASK._replace(
    name="constant", imagined=imagined_constant, replayed=replayed_constant, network=DISAGREEMENT.network
)

BEHAVIORS: dict[Mode, dict[str, tuple[Reward, ...]]] = {
    "task": {"tasker": (TASK,)},
    "explore": {"tasker": (TASK,), "explorer": (DISAGREEMENT,)},
    "mix": {"tasker": (TASK,), "explorer": (FADING, EXTRINSIC)},
    "random": {"tasker": (TASK,)},
}
"""Mode -> its behaviours, and the rewards of each. Mode random trains what mode task trains (rewards shape the world
model in both), on rows that uniformly random actions collect."""


def total(rewards: tuple[Reward, ...]) -> Reward:
    """Several rewards as one: the sum of scale times reward, as they come. One range divides its advantages, that of
    its returns, with the floor of the extrinsic ones (DreamerV3, eq. 7)."""

    def imagined(model: WorldModel, network: Any, trajectory: Trajectory, hypers: Hypers) -> Float[Array, "L c"]:
        return jnp.stack([r.scale(hypers) * r.imagined(model, network, trajectory, hypers) for r in rewards]).sum(0)

    def replayed(
        model: WorldModel, network: Any, rows: Row, feat: Array, action: Array, hypers: Hypers
    ) -> Float[Array, "T B"]:
        each = [r.scale(hypers) * r.replayed(model, network, rows, feat, action, hypers) for r in rewards]
        return jnp.stack(each).sum(0)

    (network,) = {r.network for r in rewards if r.network}
    return TASK._replace(name="sum", imagined=imagined, replayed=replayed, network=network)


def behaviors(config: Config) -> dict[str, tuple[Reward, ...]]:
    """The run's behaviours, and the rewards of each; every reward has a critic of its own."""
    table = BEHAVIORS[config.mode]
    if config.explorer_reward == "constant":
        instead = lambda rewards: tuple(CONSTANT if reward is DISAGREEMENT else reward for reward in rewards)
        return {name: instead(rewards) for name, rewards in table.items()}
    if config.explorer_critics == "each":
        return table
    return {name: rewards if len(rewards) == 1 else (total(rewards),) for name, rewards in table.items()}


def learns_with_model(config: Config) -> bool:
    """Whether the mode's network learns in the model's batch and optimiser, and not by updates of its own."""
    return config.ensemble.updates == 0


def network_of(mode: Mode) -> Network | None:
    """What the mode's intrinsic reward learns with."""
    networks = {r.network for rewards in BEHAVIORS[mode].values() for r in rewards if r.network}
    assert len(networks) <= 1, networks
    return next(iter(networks), None)


def imagined_rewards(
    rewards: tuple[Reward, ...], model: WorldModel, network: Any, trajectory: Trajectory, hypers: Hypers
) -> Float[Array, "blocks R L c"]:
    """All of a behaviour's rewards along its imagined trajectory, block by block."""
    each = lambda block: jnp.stack([reward.imagined(model, network, block, hypers) for reward in rewards])
    return lax.map(each, trajectory)


def replayed_rewards(
    rewards: tuple[Reward, ...],
    model: WorldModel,
    network: Any,
    rows: Row,
    feat: Float[Array, "T B F"],
    action: Float[Array, "T B A"],
    hypers: Hypers,
) -> Float[Array, "R T B"]:
    """All of a behaviour's rewards on replayed rows."""
    return jnp.stack([reward.replayed(model, network, rows, feat, action, hypers) for reward in rewards])
