"""Agent: everything that learns, and what follows it without gradient."""

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import PRNGKeyArray

from envs.environment import ActionSpace, Space
from stages.behavior import Behavior, BehaviorTarget, update_target
from stages.config import Config, Hypers, Mode
from stages.intrinsic import IntrinsicReward
from stages.returns import ReturnScale
from stages.rewards import INTRINSIC_REWARDS
from stages.uniform import RandomPolicy
from stages.world_model import WorldModel


class Agent(eqx.Module):
    """World model and tasker; and for exploration the explorer and its intrinsic reward."""

    model: WorldModel
    tasker: Behavior
    explorer: Behavior | None
    intrinsic: IntrinsicReward | None

    def __init__(self, config: Config, obs: Space, actions: ActionSpace, *, key: PRNGKeyArray):
        key_model, key_tasker, key_explorer, key_intrinsic = jr.split(key, 4)
        self.model = WorldModel(config, obs, actions, key=key_model)
        self.tasker = Behavior(config.model, actions, key=key_tasker)
        self.explorer = self.intrinsic = None
        if config.explores:
            self.explorer = Behavior(config.model, actions, key=key_explorer)
            self.intrinsic = INTRINSIC_REWARDS[config.explorer_reward](config, obs, actions, key=key_intrinsic)


class Targets(eqx.Module):
    """Slow critic and return scale of each behaviour."""

    tasker: BehaviorTarget
    explorer: BehaviorTarget | None

    @staticmethod
    def of(agent: Agent) -> "Targets":
        """The targets at the start of training."""
        explorer = None if agent.explorer is None else BehaviorTarget.of(agent.explorer)
        return Targets(BehaviorTarget.of(agent.tasker), explorer)


def update_targets(
    targets: Targets, agent: Agent, tasker_scale: ReturnScale, explorer_scale: ReturnScale | None, hypers: Hypers
) -> Targets:
    """Slow critics one step towards the critics; return scales replaced."""
    tasker, explorer = update_target(targets.tasker, agent.tasker, tasker_scale, hypers.slow_rate), None
    if targets.explorer is not None and agent.explorer is not None and explorer_scale is not None:
        explorer = update_target(targets.explorer, agent.explorer, explorer_scale, hypers.slow_rate)
    return Targets(tasker, explorer)


def trainable(agent: Agent) -> Agent:
    """A filter for `eqx.partition`: what the agent's optimiser updates. That is all of the agent, but for the range
    of rewards, and for an intrinsic reward with an optimiser of its own."""
    selected = jax.tree.map(lambda _: True, agent)
    if agent.model.reward_range is not None:
        selected = eqx.tree_at(lambda a: a.model.reward_range, selected, False)
    if agent.intrinsic is not None and agent.intrinsic.updates > 0:
        selected = eqx.tree_at(lambda a: a.intrinsic, selected, False)
    return selected


def without_explorer(agent: Agent) -> Agent:
    """The agent without explorer and intrinsic reward, for a phase in mode task."""
    return eqx.tree_at(lambda a: (a.explorer, a.intrinsic), agent, (None, None), is_leaf=lambda x: x is None)


def replace_intrinsic(agent: Agent, intrinsic: IntrinsicReward | None) -> Agent:
    """The agent with this intrinsic reward."""
    return eqx.tree_at(lambda a: a.intrinsic, agent, intrinsic, is_leaf=lambda x: x is None)


class Turns(eqx.Module):
    """The explorer and the tasker by turns: each episode is played by one of them (`collect.take_turns`)."""

    explorer: Behavior
    tasker: Behavior


Collector = Behavior | RandomPolicy | Turns


def collector(agent: Agent, mode: Mode) -> Collector:
    """Who acts in the environment."""
    if mode == "random":
        return RandomPolicy(agent.model.actions)
    if mode == "task" or agent.explorer is None:
        return agent.tasker
    return Turns(agent.explorer, agent.tasker) if mode == "mix" else agent.explorer


def parameter_counts(agent: Agent) -> dict[str, int]:
    """The number of parameters of each part, by a path of two fields such as model.rssm. `agent` may be of shapes."""
    # The range of rewards is remembered, and is no parameter.
    agent = eqx.tree_at(lambda a: a.model.reward_range, agent, None, is_leaf=lambda x: x is None)
    counts: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(agent):
        part = ".".join(key.name for key in path[:2])
        counts[part] = counts.get(part, 0) + leaf.size
    return counts
