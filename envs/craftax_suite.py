"""Craftax (https://github.com/MichaelTMatthews/Craftax, 1.6): how it is made, and its achievements as events.

jax-envelope compiles an environment's reset and step when it is made, to learn the form of what is not used here: more
than a minute. So its class is given its parts.
"""

import dataclasses
import functools
import importlib
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from envs.envelope_adapter import Defaults, Envelope, EnvelopeEnvironment
from envs.environment import State
from envs.overrides import Value
from envs.tiles import craftax_tiles


def _env(own_id: str) -> Any:
    return importlib.import_module("craftax.craftax_env").make_craftax_env_from_name(own_id, auto_reset=False)


def craftax_defaults(own_id: str) -> Defaults:
    """(parameters with their defaults, time limit in steps)."""
    params = _env(own_id).default_params
    return {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}, int(params.max_timesteps)


def create_craftax(own_id: str, values: dict[str, Value], time_limit: int) -> Envelope:
    """envelope's environment of a Craftax id. Its own time limit would look like an end, and so it has none."""
    env, container = _env(own_id), importlib.import_module("envelope").Container
    params = env.default_params.replace(max_timesteps=jnp.inf, **values)
    adapter = importlib.import_module("envelope.adapters.craftax_envelope").CraftaxEnvelope
    return adapter(craftax_env=env, env_params=params, _max_steps=time_limit, _empty_backend_info=container())


def with_achievements(env: EnvelopeEnvironment, own_id: str) -> EnvelopeEnvironment:
    """A Craftax environment whose events are its achievements: 22 of Craftax-Classic, 67 of Craftax; and its tiles."""
    package = "craftax_classic" if "Classic" in own_id else "craftax"
    achievement = importlib.import_module(f"craftax.{package}.constants").Achievement
    names = {member.value: member.name.lower() for member in achievement}

    def happened(before: State, after: State) -> dict[str, Array]:
        unlocked = _achievements(after) & ~_achievements(before)
        return {name: unlocked[index] for index, name in names.items()}

    tiles = functools.partial(craftax_tiles, own_id=own_id) if "Symbolic" in own_id else None
    return dataclasses.replace(env, happened=happened, achievements=tuple(names.values()), tiles=tiles)


def _achievements(state: State) -> Array:
    """Which achievements the episode has, bool."""
    wrapped: Any = state
    return jnp.asarray(wrapped.unwrapped.env_state.achievements, jnp.bool_)
