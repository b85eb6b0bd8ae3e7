"""README's corridor, as a module that the panel can name: `--env docs.experiments.corridor:Corridor --env.cells 8`."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from envs import ActionSpace, Environment, ObsSpace, State, Timestep

ZERO = jnp.zeros((), jnp.int32)


class Corridor(Environment):
    """Cells from left to right; action 1 goes right, 0 left. The state is (cell, steps taken)."""

    name, time_limit, action_space = "Corridor", 20, ActionSpace("discrete", 2)

    def __init__(self, cells: int = 8):
        self.cells, self.obs_space = cells, ObsSpace((cells,), "binary")

    def reset(self, key: PRNGKeyArray) -> tuple[State, Timestep]:
        del key
        return (ZERO, ZERO), self._timestep(ZERO, is_first=True, truncated=jnp.array(False))

    def step(self, key: PRNGKeyArray, state: State, action: Array) -> tuple[State, Timestep]:
        del key
        cell, time = jnp.clip(state[0] + 2 * action - 1, 0, self.cells - 1), state[1] + 1
        return (cell, time), self._timestep(cell, is_first=False, truncated=time == self.time_limit)

    def _timestep(self, cell: Int[Array, ""], is_first: bool, truncated: Bool[Array, ""]) -> Timestep:
        terminated = cell == self.cells - 1
        reward = terminated.astype(jnp.float32)
        return Timestep(jnp.arange(self.cells) == cell, reward, jnp.array(is_first), terminated | truncated, terminated)
