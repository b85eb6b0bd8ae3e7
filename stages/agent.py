"""Agent: everything that learns, and what follows it without gradient."""

from typing import Any

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import PRNGKeyArray

from envs.environment import ActionSpace, ObsSpace
from stages.behavior import Behavior, BehaviorTarget, update_target
from stages.config import Config, Hypers, Mode
from stages.returns import ReturnScale
from stages.rewards import behaviors, learns_with_model, network_of
from stages.uniform import Uniform
from stages.world_model import WorldModel


class Agent(eqx.Module):
    """World model and tasker; and for exploration the explorer and the network of its intrinsic reward."""

    model: WorldModel
    tasker: Behavior
    explorer: Behavior | None
    novelty: Any  # Plan2Explore's Ensemble, or what another intrinsic reward learns with; None without one

    def __init__(self, config: Config, obs: ObsSpace, actions: ActionSpace, *, key: PRNGKeyArray):
        key_model, key_tasker, key_explorer, key_novelty = jr.split(key, 4)
        self.model = WorldModel(config, obs, actions, key=key_model)
        rewards = {name: len(each) for name, each in behaviors(config).items()}
        self.tasker = Behavior(config.model, actions, rewards["tasker"], key=key_tasker)
        self.explorer = None
        if "explorer" in rewards:
            self.explorer = Behavior(config.model, actions, rewards["explorer"], key=key_explorer)
        network = network_of(config.mode)
        self.novelty = None
        if network:
            self.novelty = network.make(config, obs, actions.size, key=key_novelty)


class Targets(eqx.Module):
    """Slow critics and return scales of both behaviours."""

    tasker: BehaviorTarget
    explorer: BehaviorTarget | None

    @staticmethod
    def of(agent: Agent) -> "Targets":
        """The targets at the start of training."""
        explorer = None if agent.explorer is None else BehaviorTarget.of(agent.explorer)
        return Targets(BehaviorTarget.of(agent.tasker), explorer)


def update_targets(targets: Targets, agent: Agent, scales: dict[str, ReturnScale], hypers: Hypers) -> Targets:
    """Slow critics one step towards the critics; return scales replaced by each behaviour's new ones."""
    tasker, explorer = update_target(targets.tasker, agent.tasker, scales["tasker"], hypers.slow_rate), None
    if targets.explorer is not None and agent.explorer is not None:
        explorer = update_target(targets.explorer, agent.explorer, scales["explorer"], hypers.slow_rate)
    return Targets(tasker, explorer)


def learned(config: Config, agent: Agent) -> Agent:
    """What the one optimiser moves: all of the agent, but not a network that learns by updates of its own."""
    return agent if learns_with_model(config) else replace_novelty(agent, None)


def replace_novelty(agent: Agent, novelty: Any) -> Agent:
    """The agent with this network."""
    return eqx.tree_at(lambda a: a.novelty, agent, novelty, is_leaf=lambda x: x is None)


def collector(agent: Agent, mode: Mode) -> Behavior | Uniform:
    """The behaviour that acts in the environment."""
    if mode == "random":
        return Uniform(agent.model.actions)
    return agent.tasker if mode == "task" or agent.explorer is None else agent.explorer


def parameter_counts(agent: Agent) -> dict[str, int]:
    """Parameters of each part, read off the tree: a path of two fields, such as model.rssm. Shapes will do."""
    counts: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(agent):
        part = ".".join(key.name for key in path[:2])
        counts[part] = counts.get(part, 0) + leaf.size
    return counts
