"""Rewards: what each behaviour maximises.

A reward is computed twice: along imagined trajectories, for actor and critic, and on replayed rows, for the critic.
Both are indexed by arrival: reward[t] arrives with state t. intrinsic.py has the intrinsic rewards. episodic.py has
episodic novelty, which is combined with them here.

Axes: T time, B windows, L = H + 1 imagined states, c starts of a block (imagine.py), F feat, A action vector.
"""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from stages.behavior import Objective
from stages.config import Config, Hypers, Scalar
from stages.count import CountBonus
from stages.episodic import episodic_memory, imagined_novelty, modulator, replayed_novelty
from stages.imagine import Trajectory
from stages.intrinsic import ConstantReward, Disagreement, IntrinsicReward
from stages.replay import Row
from stages.rnd import RND
from stages.rssm import Latent
from stages.world_model import WorldModel

MIN_MEAN_REWARD = 1e-8
"""Smallest divisor of a centred reward, whose mean is 0 where all members agree."""
INTRINSIC_REWARDS: dict[str, type[IntrinsicReward]] = {
    reward.name: reward for reward in (Disagreement, ConstantReward, RND, CountBonus)
}
"""Config.explorer_reward -> its class."""


class Batch(eqx.Module):
    """A batch and the model's posterior states of it: what behaviours learn from."""

    rows: Row  # [T, B, ...]
    action: Float[Array, "T B A"]  # vectors of the rows' actions
    latent: Latent  # [T, B, ...]
    feat: Float[Array, "T B F"]


class Rewards(NamedTuple):
    """A behaviour's rewards along imagined trajectories and on replayed rows, indexed by arrival."""

    imagined: Float[Array, "blocks L c"]
    replayed: Float[Array, "T B"]


def tasker_objective(config: Config, hypers: Hypers) -> Objective:
    """The tasker's objective: the environment's reward. Its advantages are divided by the range of returns, or by their
    own range or root mean square, but by no less than a floor."""
    if config.task_norm == "returns":
        return _dreamer_objective("extrinsic", hypers.entropy, hypers)
    return Objective("extrinsic", hypers.entropy, config.task_norm, hypers.task_floor, debias=True)


def explorer_objective(config: Config, hypers: Hypers) -> Objective:
    """The explorer's objective, in modes with an explorer: what `explorer_rewards` makes of the intrinsic reward."""
    name, entropy = config.explorer_reward, hypers.explorer_entropy
    if name == ConstantReward.name and not config.episodic_novelty:
        return _dreamer_objective(name, entropy, hypers)
    return Objective(
        name,
        entropy,
        config.intrinsic_norm,
        hypers.intrinsic_floor,
        debias=True,  # the floor is so small that the moving averages' start at zero would matter
        discount_ratio=_discount_ratio(hypers),
        centred=config.intrinsic_centred,
    )


def _dreamer_objective(name: str, entropy: Scalar, hypers: Hypers) -> Objective:
    """Advantages divided by the range of returns, but by no less than the floor (DreamerV3, eq. 7)."""
    return Objective(name, entropy, "returns", hypers.return_floor, debias=False)


def _discount_ratio(hypers: Hypers) -> Scalar:
    """The ratio of the intrinsic reward's discount to the discount in the continue head."""
    ratio = (1 - 1 / jnp.maximum(hypers.intrinsic_horizon, 1.0)) / (1 - 1 / hypers.discount_horizon)
    return jnp.where(jnp.asarray(hypers.intrinsic_horizon) > 0, ratio, 1.0)


def tasker_rewards(model: WorldModel, trajectory: Trajectory, batch: Batch) -> Rewards:
    """The environment's reward: what the head expects on arrival in each imagined state, and what arrived."""
    imagined = lax.map(lambda feat: model.reward.mean(model.reward(feat)), trajectory.feat)
    return Rewards(imagined, batch.rows.reward)


def explorer_rewards(
    model: WorldModel,
    intrinsic: IntrinsicReward,
    trajectory: Trajectory,
    batch: Batch,
    config: Config,
    hypers: Hypers,
) -> Rewards:
    """The explorer's reward on arrival in a state: the intrinsic reward, or episodic novelty times a factor of it
    (episodic.modulator).

    No action leads to the first state of a trajectory, of a window or of an episode: nothing arrives there.
    """
    numbers, memory = intrinsic.obs_numbers, None
    reward = intrinsic(model, batch.feat, batch.action, hypers)
    if config.episodic_novelty:
        memory = episodic_memory(model, numbers, batch.feat, batch.rows, reward)

    def imagined(inputs: tuple[Trajectory, Int[Array, " c"]]) -> Float[Array, "L c"]:
        block, start = inputs
        # intrinsic.Disagreement.__call__: here disagreement becomes the explorer's reward.
        reward = intrinsic(model, block.feat[:-1], block.action[:-1], hypers)
        if memory is None:
            return shift_to_arrival(reward)
        novelty = imagined_novelty(memory, model, numbers, block.feat, start, hypers)
        return shift_to_arrival(modulator(memory, reward, hypers)) * novelty

    replayed = shift_to_arrival(reward[:-1])
    if memory is not None:
        replayed = shift_to_arrival(modulator(memory, reward[:-1], hypers)) * replayed_novelty(memory, hypers)
    blocks, _, width = trajectory.cont.shape
    starts = jnp.arange(blocks * width).reshape(blocks, width)
    return Rewards(lax.map(imagined, (trajectory, starts)), jnp.where(batch.rows.is_first, 0.0, replayed))


def centre(rewards: Rewards, cont: Float[Array, "blocks L c"], is_first: Bool[Array, "T B"]) -> Rewards:
    """A reward divided by its mean along imagined trajectories, less 1; 0 at an episode's first row.

    An intrinsic reward is never negative, so its uncentred return grows with the length of an episode: the end of an
    episode costs the explorer all later rewards. And where returns of actions differ by hundredths of a large sum, the
    critic's error hides the difference. A centred reward (as in average-reward learning: Mahadevan 1996) avoids both.

    Args:
        cont: of the same trajectories. A reward is weighted by the discounted probability that its action is reached,
            as in the losses.
    """
    weight = jnp.cumprod(cont, 1)[:, :-1]
    mean = jnp.maximum((weight * rewards.imagined[:, 1:]).sum() / weight.sum(), MIN_MEAN_REWARD)
    imagined = rewards.imagined.at[:, 1:].set(rewards.imagined[:, 1:] / mean - 1)
    return Rewards(imagined, jnp.where(is_first, 0.0, rewards.replayed / mean - 1))


def shift_to_arrival(reward: Float[Array, "H *b"]) -> Float[Array, "L *b"]:
    """Rewards indexed by the step of their action -> by the step at which they arrive: one later, 0 at the first."""
    return jnp.concatenate([jnp.zeros_like(reward[:1]), reward])
