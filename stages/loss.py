"""All losses of one update: observe -> imagine -> reward -> learn. One gradient of one sum; stop_gradient draws the
borders between the parts.

Axes: T time, B windows, n = T B starts of imagination, R rewards.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.lax import stop_gradient as sg
from jaxtyping import Array, Float, PRNGKeyArray

from stages.agent import Agent, Targets
from stages.behavior import Objective, Replayed, behavior_loss
from stages.config import Config, Hypers, Norm
from stages.imagine import draw_noise, imagine
from stages.replay import Row
from stages.returns import ReturnScale
from stages.rewards import Reward, behaviors, imagined_rewards, learns_with_model, network_of, replayed_rewards
from stages.rssm import Latent
from stages.world_model import action_vector, model_loss, observe

PREFIX = {"tasker": "", "explorer": "explorer_"}
"""Behaviour -> what the names of its losses and metrics begin with."""


class Outcome(eqx.Module):
    """What an update needs besides its gradient."""

    latent: Latent  # fresh latents of the trained rows, [T, B, ...]
    scales: dict[str, ReturnScale]  # new return scales of each behaviour
    metrics: dict[str, Float[Array, ""]]


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
    keys = dict(zip(PREFIX, jr.split(key_imagine), strict=True))
    model, frozen, reward_free = agent.model, sg(agent), config.mode == "explore"
    context, rows, before, action = _window(agent, rows)

    observed = observe(model, context, before, rows.obs, rows.is_first, hypers.unimix, key=key_observe)
    feat, start = observed.latent.feat, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), observed.latent)
    losses, metrics = model_loss(model, observed, rows.obs, rows.reward, rows.is_terminal, hypers, reward_free)
    if (network := network_of(config.mode)) and learns_with_model(config):
        losses[network.name] = network.loss(agent.novelty, frozen.model, observed, rows, action, hypers)

    scales = {}
    for name, rewards in behaviors(config).items():
        behavior, target = getattr(agent, name), getattr(targets, name)
        noise = draw_noise(model, behavior.actor, config.horizon, feat.shape[0] * feat.shape[1], key=keys[name])
        trajectory = imagine(model, behavior.actor, start, noise, hypers.unimix, hypers.policy_unimix, config.block)
        reward = imagined_rewards(rewards, frozen.model, frozen.novelty, trajectory, hypers)

        # Only the tasker's replayed values shape the world model, and nothing of a reward does where it is reward-free.
        read = feat if name == "tasker" and not reward_free else sg(feat)
        replayed_reward = replayed_rewards(rewards, frozen.model, frozen.novelty, rows, read, action, hypers)
        replayed = Replayed(read, replayed_reward, rows.is_last, rows.is_terminal)
        objective = objective_of(name, rewards, config, hypers)
        learned = behavior_loss(behavior, target, trajectory, reward, replayed, objective, hypers)
        own_losses, scales[name], own_metrics = learned
        losses |= {PREFIX[name] + key: loss for key, loss in own_losses.items()}
        metrics |= {PREFIX[name] + key: value for key, value in _by_reward(own_metrics, rewards).items()}

    total, means = _weighted_sum(losses, loss_scales(hypers, config))
    metrics |= {f"loss/{name}": mean for name, mean in means.items()}
    return total, Outcome(sg(observed.latent), scales, metrics)


def _window(agent: Agent, rows: Row) -> tuple[Latent, Row, Float[Array, "T B A"], Float[Array, "T B A"]]:
    """(context latent [B, ...], trained rows, the action vectors before them, their own action vectors)."""
    model = agent.model
    action = action_vector(model, rows.action)
    context = Latent.stored(rows.deter[0], rows.stoch[0], model.rssm.classes, model.dtype)
    return context, jax.tree.map(lambda x: x[1:], rows), action[:-1], action[1:]


def objective_of(name: str, rewards: tuple[Reward, ...], config: Config, hypers: Hypers) -> Objective:
    """What a behaviour maximises: its rewards' settings, and its entropy bonus."""
    entropy = {"tasker": hypers.entropy, "explorer": hypers.explorer_entropy}[name]
    scale, floor = tuple(r.scale(hypers) for r in rewards), tuple(r.floor(hypers) for r in rewards)
    norm: tuple[Norm, ...] = tuple(r.norm(config) for r in rewards)
    return Objective(scale, norm, floor, tuple(r.debias for r in rewards), entropy)


def _by_reward(metrics: dict[str, Array], rewards: tuple[Reward, ...]) -> dict[str, Float[Array, ""]]:
    """Metrics [R] as R metrics, each with its reward's name behind its own."""
    single = {name: value for name, value in metrics.items() if value.ndim == 0}
    several = {name: value for name, value in metrics.items() if value.ndim == 1}
    return single | {f"{name}_{r.name}": value[i] for name, value in several.items() for i, r in enumerate(rewards)}


def loss_scales(hypers: Hypers, config: Config) -> dict[str, Float[Array, ""] | float]:
    """Weight of each of the run's losses, by name."""
    scales = {name: getattr(hypers, f"scale_{name}") for name in ("recon", "reward", "cont", "dyn", "rep")}
    for name in behaviors(config):
        scales |= {PREFIX[name] + key: getattr(hypers, f"scale_{key}") for key in ("policy", "value")}
        scales[PREFIX[name] + "repval"] = getattr(hypers, f"scale_{PREFIX[name]}repval")
    if (network := network_of(config.mode)) and learns_with_model(config):
        scales[network.name] = getattr(hypers, f"scale_{network.name}")
    return scales


def _weighted_sum(losses: dict[str, Array], scales: dict[str, Any]) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The sum of the losses' means, each with its scale; and the means."""
    assert losses.keys() == scales.keys(), (sorted(losses), sorted(scales))
    means = {name: loss.mean() for name, loss in losses.items()}
    return jnp.stack([scales[name] * mean for name, mean in means.items()]).sum(), means
