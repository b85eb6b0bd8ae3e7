"""An environment of one's own for several tests."""

import dataclasses
from typing import final

import jax
import jax.numpy as jnp

from envs.environment import ActionSpace, Environment, ObsSpace, Timestep

OBS, ACTIONS = ObsSpace((4,), "real"), ActionSpace("discrete", 2)


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Corridor(Environment):
    """Four cells from left to right; action 1 goes on, 0 back. An episode ends in the last cell, or after six steps."""

    name: str = "Corridor"
    obs_space: ObsSpace = OBS
    action_space: ActionSpace = ACTIONS
    time_limit: int = 6

    def reset(self, key):
        del key
        return (jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)), self._row(jnp.zeros((), jnp.int32), True, False)

    def step(self, key, state, action):
        del key
        cell, time = jnp.clip(state[0] + 2 * action - 1, 0, 3), state[1] + 1
        return (cell, time), self._row(cell, False, (cell == 3) | (time == 6))

    def _row(self, cell, first, last):
        obs, reward = jax.nn.one_hot(cell, 4), (cell == 3).astype(jnp.float32)
        return Timestep(obs, reward, jnp.array(first), jnp.asarray(last), cell == 3)
