"""All losses of one update: observe, imagine, reward, actor and critic. An update takes one gradient, of their sum;
stop_gradient separates the parts.

Axes: T time, B windows, n = T B starts of imagination.
"""

import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.lax import stop_gradient as sg
from jaxtyping import Array, Float, PRNGKeyArray

from stages.agent import Agent, Targets
from stages.behavior import Behavior, BehaviorTarget, Objective, Replayed, behavior_loss
from stages.config import Config, Hypers, Scalar
from stages.imagine import draw_noise, imagine, stored_latent
from stages.intrinsic import IntrinsicReward
from stages.replay import Row
from stages.returns import ReturnScale
from stages.rewards import Batch, centre, explorer_objective, explorer_rewards, tasker_objective, tasker_rewards
from stages.rssm import Latent
from stages.world_model import WorldModel, action_vector, model_loss, observe, reward_scale

NAMED_BY_REWARD: tuple[str, ...] = ("rew", "replay_rew", "ret", "ret_scale", "val")
"""Metrics whose names end with the reward's."""
IN_UNIT_OF_REWARD = ("rew", "replay_rew", "ret", "val")


class LossAux(eqx.Module):
    """What an update needs besides its gradient."""

    latent: Latent  # fresh latents of the trained rows, [T, B, ...]
    tasker_scale: ReturnScale
    explorer_scale: ReturnScale | None
    metrics: dict[str, Float[Array, ""]]


def agent_loss(
    agent: Agent, targets: Targets, rows: Row, config: Config, hypers: Hypers, *, key: PRNGKeyArray
) -> tuple[Float[Array, ""], LossAux]:
    """The summed loss of one batch.

    Args:
        rows: [T+1, B, ...]; row 0 is context: its stored latent starts the window.

    Returns:
        loss [], and the LossAux.
    """
    key_observe, key_imagine = jr.split(key)
    key_tasker, key_explorer = jr.split(key_imagine)
    model, reward_free = agent.model, config.mode == "explore"
    tasker, explorer = learners(agent, targets, config, hypers)

    context = stored_latent(model, jax.tree.map(lambda x: x[0], rows))
    rows = dataclasses.replace(rows, reward=rows.reward / reward_scale(model))
    action, rows = action_vector(model, rows.action), jax.tree.map(lambda x: x[1:], rows)
    observed = observe(model, context, action[:-1], rows.obs, rows.is_first, hypers.unimix, key=key_observe)
    batch = Batch(rows, action[1:], observed.latent, observed.latent.feat)
    losses, metrics = model_loss(model, observed, rows.obs, rows.reward, rows.is_terminal, hypers, reward_free)
    if agent.intrinsic is not None and agent.intrinsic.updates == 0:
        loss = agent.intrinsic.loss(sg(model), observed, rows, batch.action, hypers)
        losses[agent.intrinsic.loss_name] = loss

    # Only the tasker's critic loss on replayed rows sends gradient to the model; in mode explore, not even that.
    tasker_losses, tasker_scale, tasker_metrics = learner_loss(
        model, tasker, sg(batch) if reward_free else batch, config, hypers, key=key_tasker
    )
    losses, metrics, explorer_scale = losses | tasker_losses, metrics | tasker_metrics, None
    if explorer is not None:
        explorer_losses, explorer_scale, explorer_metrics = learner_loss(
            model, explorer, sg(batch), config, hypers, key=key_explorer
        )
        losses |= {f"explorer_{name}": loss for name, loss in explorer_losses.items()}
        metrics |= {f"explorer_{name}": value for name, value in explorer_metrics.items()}

    total, means = _weighted_sum(losses, loss_scales(hypers, agent))
    metrics |= {f"loss/{name}": mean for name, mean in means.items()}
    return total, LossAux(sg(observed.latent), tasker_scale, explorer_scale, metrics)


class Learner(NamedTuple):
    """A behaviour, and what its loss depends on besides experience."""

    behavior: Behavior
    target: BehaviorTarget
    objective: Objective
    intrinsic: IntrinsicReward | None  # its reward; None: the environment's


def learners(agent: Agent, targets: Targets, config: Config, hypers: Hypers) -> tuple[Learner, Learner | None]:
    """The tasker and, where the agent has one, the explorer."""
    tasker = Learner(agent.tasker, targets.tasker, tasker_objective(config, hypers), None)
    if agent.explorer is None or targets.explorer is None:
        return tasker, None
    return tasker, Learner(agent.explorer, targets.explorer, explorer_objective(config, hypers), agent.intrinsic)


def learner_loss(
    model: WorldModel, learner: Learner, batch: Batch, config: Config, hypers: Hypers, *, key: PRNGKeyArray
) -> tuple[dict[str, Array], ReturnScale, dict[str, Array]]:
    """Imagine from every replayed state, and compute the rewards: the behaviour's losses, its new scale, metrics.

    Args:
        batch: the gradient of the replayed values may pass through its feat into the world model.
    """
    behavior, target, objective, intrinsic = learner
    model, intrinsic = sg((model, intrinsic))
    start = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch.latent)
    noise = draw_noise(model, behavior.actor, config.horizon, start.deter.shape[0], key=key)
    trajectory = imagine(model, behavior.actor, start, noise, hypers.unimix, hypers.policy_unimix, config.imagine_batch)
    if intrinsic is not None:
        rewards = explorer_rewards(model, intrinsic, trajectory, batch, config, hypers)
    else:
        rewards = tasker_rewards(model, trajectory, batch)
    # Without the first state: its reward is in no return, and an intrinsic one is 0 there.
    means = {"rew": rewards.imagined[:, 1:].mean(), "replay_rew": rewards.replayed[1:].mean()}
    imagined, replayed = centre(rewards, trajectory.cont, batch.rows.is_first) if objective.centred else rewards

    replay = Replayed(batch.feat, replayed, batch.rows.is_last, batch.rows.is_terminal)
    losses, scale, metrics = behavior_loss(behavior, target, trajectory, imagined, replay, objective, hypers)
    metrics |= means
    unit = reward_scale(model) if intrinsic is None else 1.0
    for name in IN_UNIT_OF_REWARD:
        metrics[name] *= unit
    suffix = dict.fromkeys(NAMED_BY_REWARD, f"_{objective.reward_name}")
    return losses, scale, {name + suffix.get(name, ""): x for name, x in metrics.items()}


def loss_scales(hypers: Hypers, agent: Agent) -> dict[str, Scalar]:
    """Weight of each of the agent's losses, by name."""
    scales: dict[str, Scalar] = {
        "recon": hypers.scale_recon,
        "reward": hypers.scale_reward,
        "cont": hypers.scale_cont,
        "dyn": hypers.scale_dyn,
        "rep": hypers.scale_rep,
        "policy": hypers.scale_policy,
        "value": hypers.scale_value,
        "repval": hypers.scale_repval,
    }
    if agent.explorer is not None:
        scales |= {
            "explorer_policy": hypers.scale_policy,
            "explorer_value": hypers.scale_value,
            "explorer_repval": hypers.scale_explorer_repval,
        }
    if agent.intrinsic is not None and agent.intrinsic.updates == 0:
        scales[agent.intrinsic.loss_name] = hypers.scale_ensemble
    return scales


def _weighted_sum(losses: dict[str, Array], scales: dict[str, Scalar]) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The sum of the losses' means, each with its scale; and the means."""
    assert losses.keys() == scales.keys(), (sorted(losses), sorted(scales))
    means = {name: loss.mean() for name, loss in losses.items()}
    return jnp.stack([scales[name] * mean for name, mean in means.items()]).sum(), means
