"""What is measured on: an environment that costs nothing, and the configurations of sizes.py."""

import dataclasses

import jax.numpy as jnp
import jax.random as jr
import sizes

from envs.environment import ActionSpace, Environment, ObsSpace, Timestep
from stages.config import Config, Hypers
from stages.presets import preset


class Vector(Environment):
    """Random numbers, and a reward every other step; the reference's is the same (reference.py)."""

    name = "made-up"
    obs_space = ObsSpace((sizes.OBS,), "real")
    action_space = ActionSpace("discrete", sizes.ACTIONS)
    time_limit = sizes.EPISODE

    def reset(self, key):
        """Begin an episode."""
        return self._at(key, jnp.zeros((), jnp.int32))

    def step(self, key, state, action):
        """One step, whatever the action."""
        del action
        return self._at(key, state + 1)

    def _at(self, key, now):
        last = now >= self.time_limit
        reward = (now % 2).astype(jnp.float32)
        return now, Timestep(jr.normal(key, (sizes.OBS,)), reward, now == 0, last, last)


def configuration(size: str, mode: str, **changes: int) -> tuple[Config, Hypers]:
    """A size of sizes.py, or else a preset. Changes: envs, horizon, capacity, batch_size, batch_length."""
    config, hypers = preset(size.removesuffix("-long"))
    batch = dict(zip(("batch_size", "batch_length"), sizes.REPLAYS.get(size, ()), strict=False))
    batch |= {name: changes.pop(name) for name in ("batch_size", "batch_length", "capacity") if name in changes}
    replay = dataclasses.replace(config.replay, **{"capacity": 1024} | batch)
    horizon = sizes.HORIZONS.get(size, config.horizon)
    config = dataclasses.replace(config, mode=mode, steps=10**9, replay=replay, **{"horizon": horizon} | changes)
    return config, hypers
