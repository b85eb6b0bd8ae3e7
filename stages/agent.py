"""Agent: everything that learns, and what follows it without gradient."""

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import PRNGKeyArray

from envs.environment import ActionSpace, ObsSpace
from stages.behavior import Behavior, BehaviorTarget
from stages.config import Config, Mode
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
