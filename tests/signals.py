"""An environment with observations of several entries, and with several choices at once."""

import jax.numpy as jnp
import jax.random as jr

from envs import ActionSpace, DictSpace, Environment, ObsSpace, Timestep


class Signals(Environment):
    """A lamp says which of two ways pays, at any of three speeds; a camera sees a dot that drifts, a gauge its
    distance. The state has a key of its own, which it does not need."""

    name, time_limit, action_space = "Signals", 6, ActionSpace.of_choices(2, 3)
    obs_space = DictSpace({
        "camera": ObsSpace((4, 4, 3), "image"),
        "gauge": ObsSpace((2,), "real"),
        "lamp": ObsSpace((), "categorical", 3),
    })  # fmt: skip

    def __init__(self, lamps: int = 2):
        self.lamps = lamps

    def reset(self, key):
        return self._row(key, jnp.zeros((), jnp.int32), jnp.zeros(()), True)

    def step(self, key, state, action):
        lamp, time, _ = state
        return self._row(key, time + 1, (action[0] == lamp).astype(jnp.float32), False)

    def _row(self, key, time, reward, is_first):
        lamp = jr.randint(key, (), 0, self.lamps)
        camera = (jnp.arange(16).reshape(4, 4, 1) == time) * jnp.full((1, 1, 3), 255, jnp.uint8)
        gauge = jnp.stack([time, lamp]).astype(jnp.float32)
        last = time == self.time_limit
        obs = {"camera": camera.astype(jnp.uint8), "gauge": gauge, "lamp": lamp}
        return (lamp, time, key), Timestep(obs, reward, jnp.array(is_first), last, last)
