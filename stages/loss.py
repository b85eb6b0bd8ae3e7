"""All losses of one update. One gradient of one sum; stop_gradient draws the borders between the parts.

Axes: T time, B windows, H horizon, n = T B starts, R rewards. This is the file where disagreement becomes a reward.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from stages import blocks, rssm
from stages.agent import Agent, Targets
from stages.behavior import Actor, Imagined, Replayed, Weights, act, action_noise, behavior_loss
from stages.config import Config, Hypers
from stages.ensemble import disagreement, ensemble_loss
from stages.imagine import Noise, Trajectory, imagine
from stages.maths import ReturnScale, sg
from stages.replay import Row
from stages.rssm import Latent
from stages.world_model import Observed, WorldModel, action_vector, model_loss, observe


class Outcome(eqx.Module):
    """What an update needs besides its gradient."""

    latent: Latent  # fresh latents of the trained rows, [T, B, ...]
    tasker_scale: ReturnScale
    explorer_scale: ReturnScale | None
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
    model, reward_free = agent.model, config.mode == "explore"
    actions = action_vector(model, rows.action)
    stored = jax.nn.one_hot(rows.stoch[0], model.rssm.classes, dtype=model.dtype)
    context = Latent(rows.deter[0].astype(model.dtype), stored)
    rows = jax.tree.map(lambda x: x[1:], rows)

    seen = observe(model, context, actions[:-1], rows.obs, rows.is_first, hypers.unimix, key=key_observe)
    actions = actions[1:]
    losses, metrics = model_loss(model, seen, rows.obs, rows.reward, rows.is_terminal, hypers, reward_free)
    feat = rssm.feat(seen.latent)

    key_tasker, key_explorer = jr.split(key_imagine)
    starts = _starts(model, seen.latent, config, key=key_tasker)
    tasker_feat = sg(feat) if reward_free else feat
    lost, tasker_scale, told = _tasker_loss(agent, targets, rows, tasker_feat, starts, hypers)
    losses |= lost
    metrics |= told
    explorer_scale = None
    if agent.ensemble is not None:
        target = _ensemble_target(seen, config.ensemble.target)
        losses["ensemble"] = ensemble_loss(agent.ensemble, feat, actions, target, rows.is_first)
        starts = _starts(model, seen.latent, config, key=key_explorer)
        lost, explorer_scale, told = _explorer_loss(agent, targets, rows, sg(feat), actions, starts, config, hypers)
        losses |= {f"explorer_{name}": loss for name, loss in lost.items()}
        metrics |= {f"explorer_{name}": value for name, value in told.items()}

    scales = loss_scales(hypers, agent.explorer is not None)
    assert losses.keys() == scales.keys(), (sorted(losses), sorted(scales))
    means = {name: loss.mean() for name, loss in losses.items()}
    total = jnp.stack([scales[name] * mean for name, mean in means.items()]).sum()
    metrics |= {f"loss/{name}": mean for name, mean in means.items()}
    return total, Outcome(sg(seen.latent), tasker_scale, explorer_scale, metrics)


def _tasker_loss(agent: Agent, targets: Targets, rows: Row, feat: Array, starts: Any, hypers: Hypers):
    """The tasker learns from the reward head in dreams, and from the rewards replayed."""

    def dream(known, start):
        agent, hypers = known
        dreamt = _dream(agent.model, agent.tasker.actor, start, hypers)
        return _imagined(agent, dreamt, [_predicted_reward(agent, dreamt)])

    replayed = Replayed(feat, rows.reward[None], rows.is_last, rows.is_terminal)
    weights = Weights((1.0,), (hypers.return_floor,), (False,), hypers.entropy)
    return behavior_loss(agent.tasker, targets.tasker, dream, (sg(agent), hypers), starts, replayed, weights, hypers)


def _explorer_loss(
    agent: Agent,
    targets: Targets,
    rows: Row,
    feat: Array,
    actions: Array,
    starts: Any,
    config: Config,
    hypers: Hypers,
):
    """The explorer learns from the ensemble's disagreement; in mode mix also from the reward, a critic for each."""
    assert agent.explorer is not None and agent.ensemble is not None and targets.explorer is not None

    def dream(known, start):
        agent, hypers = known
        dreamt = _dream(agent.model, agent.explorer.actor, start, hypers)
        # Disagreement becomes the reward of the untried action: D(s_t, a_t) arrives with s_{t+1}.
        intrinsic = arrive(disagreement(agent.ensemble, dreamt.feat[:-1], dreamt.action[:-1], config.ensemble.spread))
        extrinsic = [_predicted_reward(agent, dreamt)] if config.mode == "mix" else []
        return _imagined(agent, dreamt, [intrinsic, *extrinsic])

    on_rows = arrive(disagreement(agent.ensemble, feat, actions, config.ensemble.spread)[:-1])
    # What would arrive with a reset was not earned by the action before it.
    on_rows = jnp.where(rows.is_first, 0.0, on_rows)
    if config.mode == "mix":
        replayed = jnp.stack([on_rows, rows.reward])
        scales, floors = (hypers.intrinsic_scale, hypers.extrinsic_scale), (hypers.intrinsic_floor, hypers.return_floor)
    else:
        replayed = on_rows[None]
        scales, floors = (hypers.intrinsic_scale,), (hypers.intrinsic_floor,)
    weights = Weights(scales, floors, (True, False)[: len(scales)], hypers.explorer_entropy)
    replayed = Replayed(feat, replayed, rows.is_last, rows.is_terminal)
    known = (sg(agent), hypers)
    losses, scale, metrics = behavior_loss(
        agent.explorer, targets.explorer, dream, known, starts, replayed, weights, hypers
    )
    return losses, scale, metrics | {"disagreement": on_rows.mean()}


def loss_scales(hypers: Hypers, exploring: bool) -> dict[str, Float[Array, ""] | float]:
    """Weight of each loss, by name."""
    behavior = {"policy": hypers.scale_policy, "value": hypers.scale_value, "repval": hypers.scale_repval}
    model = {name: getattr(hypers, f"scale_{name}") for name in ("recon", "reward", "cont", "dyn", "rep")}
    explore = {f"explorer_{name}": scale for name, scale in behavior.items()} | {"ensemble": hypers.scale_ensemble}
    return model | behavior | (explore if exploring else {})


def arrive(reward: Float[Array, "T-1 *b"]) -> Float[Array, "T *b"]:
    """Rewards of choosing an action, indexed by its step -> indexed by arrival: one later, 0 at the first."""
    return jnp.concatenate([jnp.zeros_like(reward[:1]), reward])


def _starts(model: WorldModel, latent: Latent, config: Config, *, key: PRNGKeyArray) -> tuple[Latent, Noise]:
    """Every replayed state as a start of dreams, with the dreams' noise: in blocks, [blocks, ...]."""
    key_latent, key_action = jr.split(key)
    start = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), sg(latent))
    horizon, rows = config.horizon, start.deter.shape[0]
    uniform = jr.uniform(key_latent, (horizon, rows, model.rssm.stoch))
    noise = Noise(uniform, action_noise(model.actions, (horizon + 1, rows), key=key_action))
    count = blocks.count(rows, config.block)
    return blocks.split(start, count), blocks.split(noise, count, axis=1)


def _dream(model: WorldModel, actor: Actor, start: tuple[Latent, Noise], hypers: Hypers) -> Trajectory:
    """Imagine with this actor from one block of starts."""
    policy = lambda feat, noise: act(actor, feat, noise, hypers.unimix)
    return imagine(model, policy, *start, hypers.unimix)


def _predicted_reward(agent: Agent, dream: Trajectory) -> Float[Array, "H+1 n"]:
    """What the reward head expects on arrival in each imagined state."""
    head = sg(agent.model.reward)
    return head.mean(head(dream.feat))


def _imagined(agent: Agent, dream: Trajectory, rewards: list[Float[Array, "H+1 n"]]) -> Imagined:
    """A dream with its rewards and continues."""
    cont = jax.nn.sigmoid(sg(agent.model.cont)(dream.feat))
    return Imagined(dream.feat, dream.action, jnp.stack(rewards), cont)


def _ensemble_target(seen: Observed, name: str) -> Float[Array, "T B Y"]:
    """What the ensemble predicts of the next row."""
    flat = lambda x: x.reshape(*x.shape[:-2], -1)
    return {
        "probs": lambda: flat(seen.post.probs),
        "stoch": lambda: flat(seen.latent.stoch),
        "embed": lambda: seen.embed,
        "deter": lambda: seen.latent.deter,
    }[name]()
