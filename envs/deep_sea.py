"""Deep Sea in which every seed has an action mapping of its own.

In each cell one of the two actions goes right. gymnax's DeepSea has one mapping for all seeds (or, with
`sample_action_map`, a new one at every reset, so that nothing can be learned). Here a mapping is drawn once for a seed,
for all its environments, its training and its evaluations. It replaces gymnax's settings of the mapping.
Source: the `mapping_seed` of bsuite's DeepSea (Osband et al. 2020, "Behaviour Suite for Reinforcement Learning").
"""

import dataclasses
from typing import Any, final

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Int, PRNGKeyArray

from envs.environment import ActionSpace, Environment, ObsSpace, Space, State, StateSpace, Timestep

SETTING = "action_map_per_seed"


@final
@dataclasses.dataclass(frozen=True, eq=False)
class DeepSeaPerSeed(Environment):
    """gymnax's Deep Sea behind our interface, with the mapping of `with_params` in place of its own."""

    plain: Environment
    name: str
    obs_space: Space  # an array [size, size]
    action_space: ActionSpace
    time_limit: int
    states: StateSpace | None
    goal: float | None
    mapping: Int[Array, "size size"] | None = None  # the action that goes right in each cell

    def sample_params(self, key: PRNGKeyArray) -> Int[Array, "size size"]:
        """A mapping: in each cell, either action is as likely to be the one that goes right."""
        assert isinstance(self.obs_space, ObsSpace)
        return jr.bernoulli(key, 0.5, self.obs_space.shape).astype(jnp.int32)

    def with_params(self, params: Int[Array, "size size"]) -> "DeepSeaPerSeed":
        """This sea with the mapping `params`."""
        return dataclasses.replace(self, mapping=params)

    def reset(self, key: PRNGKeyArray) -> tuple[State, Timestep]:
        """Begin an episode. Errors: AssertionError without a mapping."""
        assert self.mapping is not None, "an environment that draws parameters is reset with them: with_params"
        state, timestep = self.plain.reset(key)
        state: Any = state
        return state.replace(action_mapping=self.mapping), timestep

    def step(self, key: PRNGKeyArray, state: State, action: Array) -> tuple[State, Timestep]:
        """Take one step; the mapping is part of the state."""
        return self.plain.step(key, state, action)


def per_seed(plain: Environment) -> DeepSeaPerSeed:
    """gymnax's Deep Sea, behind our interface -> the same with a mapping for each seed."""
    spaces = plain.name, plain.obs_space, plain.action_space, plain.time_limit
    return DeepSeaPerSeed(plain, *spaces, plain.states, plain.goal)
