"""Agent: everything that learns, what follows it without gradient, and the one optimiser.

Source: DreamerV3, Methods ("Optimizer"); the reference's opt.py.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from envs.environment import ActionSpace, ObsSpace
from stages.behavior import Behavior, BehaviorTarget
from stages.config import Config, Hypers, Mode
from stages.encode import embed_size
from stages.ensemble import Ensemble, target_size
from stages.world_model import WorldModel


class Agent(eqx.Module):
    """World model and tasker; and for exploration the explorer and the ensemble that pays it."""

    model: WorldModel
    tasker: Behavior
    explorer: Behavior | None
    ensemble: Ensemble | None

    def __init__(self, config: Config, obs: ObsSpace, actions: ActionSpace, *, key: PRNGKeyArray):
        key_model, key_tasker, key_explorer, key_ensemble = jr.split(key, 4)
        feat = config.model.deter + config.model.stoch * config.model.classes
        self.model = WorldModel(config, obs, actions, key=key_model)
        self.tasker = Behavior(feat, config.model, actions, 1, key=key_tasker)
        self.explorer, self.ensemble = None, None
        if config.mode != "task":
            rewards = 2 if config.mode == "mix" else 1
            self.explorer = Behavior(feat, config.model, actions, rewards, key=key_explorer)
            outputs = target_size(config, embed_size(obs, config.model))
            self.ensemble = Ensemble(config, feat + actions.size, outputs, key=key_ensemble)


class Targets(eqx.Module):
    """Slow critics and return scales of both behaviours."""

    tasker: BehaviorTarget
    explorer: BehaviorTarget | None

    @staticmethod
    def of(agent: Agent) -> "Targets":
        """The targets at the start of training."""
        explorer = None if agent.explorer is None else BehaviorTarget.of(agent.explorer)
        return Targets(BehaviorTarget.of(agent.tasker), explorer)


def collector(agent: Agent, mode: Mode) -> Behavior:
    """Who acts in the environment."""
    return agent.tasker if mode == "task" or agent.explorer is None else agent.explorer


def parameter_counts(agent: Agent) -> dict[str, int]:
    """Parameters of each part, by the reference's names."""
    model = agent.model
    parts = {
        "dynamics": model.rssm,
        "encoder": model.encoder,
        "decoder": model.decoder,
        "reward": model.reward,
        "continue": model.cont,
        "actor": agent.tasker.actor,
        "critic": agent.tasker.critics,
        "explorer": agent.explorer,
        "ensemble": agent.ensemble,
    }
    return {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in parts.items() if part is not None}


# ---- optimiser -----------------------------------------------------------------------------------------------------


def _stacked(agent: Agent) -> Agent:
    """A tree like the agent: True at leaves with a leading axis of members or rewards."""
    false = jax.tree.map(lambda _: False, agent)
    where = lambda a: [x for x in (a.ensemble, a.tasker.critics, a.explorer and a.explorer.critics) if x is not None]
    true = [jax.tree.map(lambda _: True, part) for part in where(agent)]
    return eqx.tree_at(where, false, true)


def adaptive_clip(clip: Float[Array, ""] | float, floor: float = 1e-3) -> optax.GradientTransformation:
    """Scale each gradient so that its norm is at most `clip` times its parameter's (at least `floor`) norm.

    Norms are over whole tensors, as in the reference (optax's own works unit by unit; Brock et al. 2021, arXiv
    2102.06171). Tensors that stack members or rewards are clipped one by one: an ensemble trains as its members alone.
    """

    def clip_one(grad, param):
        norm = lambda x: jnp.sqrt(jnp.sum(jnp.square(x)))
        upper = clip * jnp.maximum(floor, norm(param))
        return grad / jnp.maximum(1.0, norm(grad) / upper)

    def clip_all(grads: Any, agent: Any) -> Any:
        one = lambda stacked, grad, param: (jax.vmap(clip_one) if stacked else clip_one)(grad, param)
        return jax.tree.map(one, _stacked(agent), grads, agent)

    return optax.stateless(clip_all)


def optimizer(hypers: Hypers) -> Any:
    """LaProp (Ziyin et al. 2020, arXiv 2002.04839) after adaptive gradient clipping, with linear warm-up.

    Past the clipping nothing asks which tensor a number belongs to: all go in one vector, through a tenth of the
    operations that would otherwise be compiled and run.
    """
    warmup = lambda count: -hypers.lr * jnp.minimum(1.0, count / jnp.maximum(1.0, hypers.warmup))
    laprop = optax.chain(
        optax.scale_by_rms(decay=0.999, eps=1e-20, eps_in_sqrt=False, bias_correction=True),
        optax.ema(0.9, debias=True),
        optax.scale_by_schedule(warmup),
    )
    return optax.chain(adaptive_clip(hypers.agc), optax.flatten(laprop))
