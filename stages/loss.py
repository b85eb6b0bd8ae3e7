"""All losses of one update: observe -> imagine -> reward -> learn. One gradient of one sum; stop_gradient draws the
borders between the parts.

Axes: T time, B windows, n = T B starts of imagination, R rewards.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.lax import stop_gradient as sg
from jaxtyping import Array, Float, PRNGKeyArray

from stages.agent import Agent, Targets
from stages.behavior import Behavior, BehaviorTarget, Replayed, behavior_loss
from stages.config import Config, Hypers
from stages.episodic import past_of
from stages.imagine import draw_noise, imagine
from stages.replay import Row
from stages.returns import ReturnScale
from stages.rewards import (
    Reward,
    Scalar,
    centre,
    explorer_rewards,
    imagined_rewards,
    replayed_rewards,
    tasker_rewards,
)
from stages.rssm import Latent
from stages.world_model import action_vector, model_loss, observe


class Outcome(eqx.Module):
    """What an update needs besides its gradient."""

    latent: Latent  # fresh latents of the trained rows, [T, B, ...]
    tasker_scale: ReturnScale  # new return scales, [R]
    explorer_scale: ReturnScale | None
    metrics: dict[str, Float[Array, ""]]


class Batch(eqx.Module):
    """A batch and the model's account of it: what behaviours learn from."""

    rows: Row  # [T, B, ...]
    action: Float[Array, "T B A"]  # vectors of the rows' actions
    latent: Latent  # [T, B, ...]
    feat: Float[Array, "T B F"]


def agent_loss(
    agent: Agent, targets: Targets, rows: Row, config: Config, hypers: Hypers, *, key: PRNGKeyArray
) -> tuple[Float[Array, ""], Outcome]:
    """The summed loss of one batch.

    Args:
        rows: [T+1, B, ...]; row 0 is context: its stored latent starts the window.

    Returns:
        loss [] and the Outcome.
    """
    key_observe, key_imagine = jr.split(key)
    key_tasker, key_explorer = jr.split(key_imagine)
    model, reward_free = agent.model, config.mode == "explore"

    context = Latent.stored(rows.deter[0], rows.stoch[0], model.rssm.classes, model.dtype)
    action, rows = action_vector(model, rows.action), jax.tree.map(lambda x: x[1:], rows)
    observed = observe(model, context, action[:-1], rows.obs, rows.is_first, hypers.unimix, key=key_observe)
    batch = Batch(rows, action[1:], observed.latent, observed.latent.feat)
    losses, metrics = model_loss(model, observed, rows.obs, rows.reward, rows.is_terminal, hypers, reward_free)
    if agent.intrinsic is not None and agent.intrinsic.updates == 0:
        loss = agent.intrinsic.loss(sg(model), observed, rows, batch.action, hypers)
        losses[agent.intrinsic.loss_name] = loss

    # Of the behaviours' losses only the tasker's replayed values shape the model; none does where it is reward-free.
    tasker_batch = sg(batch) if reward_free else batch
    paid = tasker_rewards(config, hypers)
    tasker_losses, tasker_scale, tasker_metrics = learn_behavior(
        agent, agent.tasker, targets.tasker, paid, hypers.entropy, tasker_batch, config, hypers, key=key_tasker
    )
    losses, metrics, explorer_scale = losses | tasker_losses, metrics | tasker_metrics, None
    if agent.explorer is not None and targets.explorer is not None:
        paid, bonus = explorer_rewards(config, hypers), hypers.explorer_entropy
        explorer_losses, explorer_scale, explorer_metrics = learn_behavior(
            agent, agent.explorer, targets.explorer, paid, bonus, sg(batch), config, hypers, key=key_explorer
        )
        losses |= {f"explorer_{name}": loss for name, loss in explorer_losses.items()}
        metrics |= {f"explorer_{name}": value for name, value in explorer_metrics.items()}

    total, means = _weighted_sum(losses, loss_scales(hypers, agent))
    metrics |= {f"loss/{name}": mean for name, mean in means.items()}
    return total, Outcome(sg(observed.latent), tasker_scale, explorer_scale, metrics)


def learn_behavior(
    agent: Agent,
    behavior: Behavior,
    target: BehaviorTarget,
    rewards: tuple[Reward, ...],
    entropy: Scalar,
    batch: Batch,
    config: Config,
    hypers: Hypers,
    *,
    key: PRNGKeyArray,
) -> tuple[dict[str, Array], ReturnScale, dict[str, Array]]:
    """Imagine from every replayed state, compute the rewards, and learn from them: losses, new scales [R], metrics.

    Args:
        behavior: the agent's tasker or explorer.
        entropy: weight of its actor's entropy.
        batch: its feat carries the gradient of the replayed values into the world model, if any.
    """
    model, intrinsic = sg((agent.model, agent.intrinsic))
    start = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch.latent)
    noise = draw_noise(model, behavior.actor, config.horizon, start.deter.shape[0], key=key)
    trajectory = imagine(model, behavior.actor, start, noise, hypers.unimix, hypers.policy_unimix, config.imagine_batch)
    past = None
    if config.episodic_novelty and intrinsic is not None and behavior is agent.explorer:
        past = past_of(model, intrinsic, batch.feat, batch.action, batch.rows.is_first, hypers)
    imagined = imagined_rewards(rewards, model, intrinsic, trajectory, hypers, past)
    replayed = replayed_rewards(rewards, model, intrinsic, batch.rows, batch.feat, batch.action, hypers, past)

    means = {"rew": imagined[:, :, 1:].mean((0, 2, 3)), "replay_rew": replayed.mean((1, 2))}
    imagined, replayed, objectives = centre(rewards, imagined, replayed, batch.rows.is_first)

    replay = Replayed(batch.feat, replayed, batch.rows.is_last, batch.rows.is_terminal)
    losses, scale, metrics = behavior_loss(behavior, target, trajectory, imagined, replay, objectives, entropy, hypers)
    return losses, scale, _by_reward(means | metrics, rewards)


def _by_reward(metrics: dict[str, Array], rewards: tuple[Reward, ...]) -> dict[str, Float[Array, ""]]:
    """Metrics [R] as R metrics, each with its reward's name behind its own."""
    single = {name: value for name, value in metrics.items() if value.ndim == 0}
    several = {name: value for name, value in metrics.items() if value.ndim == 1}
    return single | {f"{name}_{r.name}": value[i] for name, value in several.items() for i, r in enumerate(rewards)}


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
