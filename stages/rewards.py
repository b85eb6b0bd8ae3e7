"""Rewards: what each behaviour maximises, by mode.

A reward is computed twice: along imagined trajectories, for actor and critic, and on replayed rows, for the critic.
Both are indexed by arrival: reward[t] came with state t. The intrinsic reward itself is in intrinsic.py.

Axes: R rewards, T time, B windows, L = H + 1 imagined states, c starts of a block, F feat, A action vector.
"""

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from stages.behavior import Objective
from stages.config import Config, Hypers, Norm
from stages.count import CountBonus
from stages.elliptical import EllipticalBonus
from stages.episodic import Past, imagined_novelty, modulator, replayed_novelty
from stages.imagine import Trajectory
from stages.intrinsic import ConstantReward, Disagreement, IntrinsicReward
from stages.replay import Row
from stages.rnd import RND
from stages.world_model import WorldModel

Source = Literal["extrinsic", "intrinsic"]
Scalar = Float[Array, ""] | float

LEAST_LEVEL = 1e-8
"""Smallest divisor of a centred reward, whose mean is 0 where all members agree."""
INTRINSIC_REWARDS: dict[str, type[IntrinsicReward]] = {
    reward.name: reward for reward in (Disagreement, ConstantReward, RND, EllipticalBonus, CountBonus)
}
"""Config.explorer_reward -> its class."""


class Reward(NamedTuple):
    """A weighted sum of sources, learned by a critic of its own."""

    name: str  # in the names of metrics
    weights: Mapping[Source, Scalar]
    objective: Objective
    centred: bool = False  # see `centre`


def tasker_rewards(config: Config, hypers: Hypers) -> tuple[Reward, ...]:
    """The environment's reward."""
    return (Reward("extrinsic", {"extrinsic": 1.0}, _of_norm(config.task_norm, hypers.task_floor, hypers)),)


def explorer_rewards(config: Config, hypers: Hypers) -> tuple[Reward, ...]:
    """The explorer's rewards; none where the mode has no explorer."""
    if config.mode in ("task", "random"):
        return ()
    name = config.explorer_reward
    if name == ConstantReward.name and not config.episodic_novelty:
        return (Reward(name, {"intrinsic": 1.0}, _like_dreamer(hypers)),)
    # Averages of small ranges show their start at zero: they are debiased.
    floor = hypers.intrinsic_floor if config.mode == "explore" else hypers.mix_intrinsic_floor
    objective = Objective(hypers.intrinsic_scale, config.intrinsic_norm, floor, True, _shortening(hypers))
    intrinsic = Reward(name, {"intrinsic": 1.0}, objective, config.intrinsic_centred)
    if config.mode == "explore":
        return (intrinsic,)
    if config.explorer_critics == "sum":
        weights: dict[Source, Scalar] = {"intrinsic": hypers.intrinsic_scale, "extrinsic": hypers.extrinsic_scale}
        return (Reward("sum", weights, _like_dreamer(hypers)),)
    # With a floor: Deep Sea's cost of a thousandth for a step, brought to unit size, would drown novelty.
    extrinsic = _of_norm(config.extrinsic_norm, hypers.extrinsic_floor, hypers)._replace(weight=hypers.extrinsic_scale)
    return intrinsic, Reward("extrinsic", {"extrinsic": 1.0}, extrinsic)


def _shortening(hypers: Hypers) -> Scalar:
    """The intrinsic reward's discount over that of the continue head."""
    ratio = (1 - 1 / jnp.maximum(hypers.intrinsic_horizon, 1.0)) / (1 - 1 / hypers.discount_horizon)
    return jnp.where(jnp.asarray(hypers.intrinsic_horizon) > 0, ratio, 1.0)


def _of_norm(norm: Norm, floor: Scalar, hypers: Hypers) -> Objective:
    """Extrinsic advantages divided as DreamerV3 does, or by what they are themselves, but by no less than `floor`.

    DreamerV3's divisor has a floor of its own.
    """
    return _like_dreamer(hypers) if norm == "returns" else Objective(1.0, norm, floor, debias=True)


def _like_dreamer(hypers: Hypers) -> Objective:
    """Advantages divided by the range of returns, but by no less than the floor (DreamerV3, eq. 7)."""
    return Objective(1.0, "returns", hypers.return_floor, debias=False)


def imagined_rewards(
    rewards: tuple[Reward, ...],
    model: WorldModel,
    intrinsic: IntrinsicReward | None,
    trajectory: Trajectory,
    hypers: Hypers,
    past: Past | None = None,
) -> Float[Array, "blocks R L c"]:
    """All of a behaviour's rewards along its imagined trajectory, block by block.

    Extrinsic ones are the reward head's expectation on arrival in each imagined state.

    Args:
        past: the rows where the trajectories start, where episodic novelty is paid.
    """

    def of_block(inputs: tuple[Trajectory, Int[Array, " c"]]) -> Float[Array, "R L c"]:
        block, start = inputs

        def extrinsic() -> Float[Array, "L c"]:
            return model.reward.mean(model.reward(block.feat))

        def earned() -> Float[Array, "L c"]:
            assert intrinsic is not None
            # intrinsic.Disagreement.__call__: here disagreement becomes the explorer's reward.
            reward = intrinsic(model, block.feat[:-1], block.action[:-1], hypers)
            if past is None:
                return shift_to_arrival(reward)
            novelty = imagined_novelty(past, model, intrinsic.obs_numbers, block.feat, start, hypers)
            return shift_to_arrival(modulator(past, reward, hypers)) * novelty

        return _weighted(rewards, {"extrinsic": extrinsic, "intrinsic": earned})

    blocks, _, width = trajectory.cont.shape
    return lax.map(of_block, (trajectory, jnp.arange(blocks * width).reshape(blocks, width)))


def replayed_rewards(
    rewards: tuple[Reward, ...],
    model: WorldModel,
    intrinsic: IntrinsicReward | None,
    rows: Row,
    feat: Float[Array, "T B F"],
    action: Float[Array, "T B A"],
    hypers: Hypers,
    past: Past | None = None,
) -> Float[Array, "R T B"]:
    """All of a behaviour's rewards on replayed rows. Extrinsic ones are the rewards that arrived. `past`: the rows
    again, for episodic novelty."""

    def earned() -> Float[Array, "T B"]:
        assert intrinsic is not None
        reward = intrinsic(model, feat, action, hypers)[:-1]
        if past is None:
            arrived = shift_to_arrival(reward)
        else:
            arrived = shift_to_arrival(modulator(past, reward, hypers)) * replayed_novelty(past, hypers)
        return jnp.where(rows.is_first, 0.0, arrived)  # no action led to a reset

    return _weighted(rewards, {"extrinsic": lambda: rows.reward, "intrinsic": earned})


def centre(
    rewards: tuple[Reward, ...],
    imagined: Float[Array, "blocks R L c"],
    replayed: Float[Array, "R T B"],
    is_first: Bool[Array, "T B"],
) -> tuple[Float[Array, "blocks R L c"], Float[Array, "R T B"], tuple[Objective, ...]]:
    """Divide each centred reward by its mean along imagined trajectories and subtract 1. The others stay.

    Disagreement is never negative, so that an uncentred sum of it is larger for whoever lives longer: the end of an
    episode costs the explorer all that follows. And where it differs by hundredths of a large sum, the critic's error
    hides what one action gives. A centred reward (as in average-reward learning: Mahadevan 1996) has neither fault.

    Returns:
        imagined and replayed rewards, 0 where none arrives; and the objectives, whose floors keep their units.
    """
    objectives = []
    for r, reward in enumerate(rewards):
        if not reward.centred:
            objectives.append(reward.objective)
            continue
        level = jnp.maximum(imagined[:, r, 1:].mean(), LEAST_LEVEL)
        imagined = imagined.at[:, r, 1:].set(imagined[:, r, 1:] / level - 1)
        replayed = replayed.at[r].set(jnp.where(is_first, 0.0, replayed[r] / level - 1))
        objectives.append(reward.objective._replace(floor=reward.objective.floor / level))
    return imagined, replayed, tuple(objectives)


def shift_to_arrival(reward: Float[Array, "H *b"]) -> Float[Array, "L *b"]:
    """Rewards indexed by the step of their action -> by the step at which they arrive: one later, 0 at the first."""
    return jnp.concatenate([jnp.zeros_like(reward[:1]), reward])


def _weighted(rewards: tuple[Reward, ...], sources: Mapping[Source, Callable[[], Array]]) -> Float[Array, "R ..."]:
    """Each reward as the weighted sum of its sources, of which only those that are used are computed."""
    used = {source: compute() for source, compute in sources.items() if any(source in r.weights for r in rewards)}
    parts = ([weight * used[source] for source, weight in reward.weights.items()] for reward in rewards)
    return jnp.stack([functools.reduce(operator.add, terms) for terms in parts])
