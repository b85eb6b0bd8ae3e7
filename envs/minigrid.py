"""MiniGrid's tasks of navix (https://github.com/epignatelli/navix, 4.0): how they are made, and their countable states.

jax-envelope differs from navix in three ways, which are undone here. It gives every task 100 steps and removes navix's
time limit, on which the penalty for late goals depends. It declares `symbolic_first_person` with 256 classes, of which
there are 11. And every state carries the picture that rendering starts from, 0.2 MB for a board of 8 x 8; here only
where observations are pictures.
"""

import dataclasses
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Int, PyTree

from envs.envelope_adapter import Defaults, Envelope, EnvelopeEnvironment
from envs.environment import ObsSpace, Space, State, StateSpace
from envs.errors import BadOverride
from envs.overrides import Value
from envs.tiles import minigrid_tiles

OBSERVATIONS = (
    "symbolic", "symbolic_first_person", "categorical", "categorical_first_person", "rgb", "rgb_first_person",
)  # fmt: skip
"""Functions of navix.observations that can be chosen by name."""


def minigrid_defaults(own_id: str) -> Defaults:
    """(settings with their defaults, time limit in steps)."""
    env = importlib.import_module("navix").make(own_id)
    return {"observation_fn": env.observation_fn.__name__, "penalty_coeff": env.penalty_coeff}, int(env.max_steps)


def create_minigrid(own_id: str, values: dict[str, Value], time_limit: int) -> Envelope:
    """envelope's environment of a navix id. Errors: `BadOverride` for an observation that is none of `OBSERVATIONS`."""
    kwargs: dict[str, Any] = dict(values)
    if (chosen := values.get("observation_fn")) is not None:
        if chosen not in OBSERVATIONS:
            raise BadOverride(f"navix::{own_id}: observation_fn must be one of {', '.join(OBSERVATIONS)}, not {chosen}")
        kwargs["observation_fn"] = getattr(importlib.import_module("navix.observations"), str(chosen))
    adapter = importlib.import_module("envelope.adapters.navix_envelope").NavixEnvelope
    env = adapter.from_name(own_id, kwargs | {"max_steps": time_limit, "disable_autoreset": True})
    if env.navix_env.observation_fn.__name__ == "symbolic_first_person":
        symbolic = importlib.import_module("navix.environments.environment").MAX_CATEGORICAL_VALUE
        declared = env.navix_env.observation_space
        space = type(declared).create(symbolic, declared.shape, declared.dtype)
        env = env.replace(navix_env=env.navix_env.replace(observation_space=space))
    return env


def without_pictures(env: EnvelopeEnvironment) -> EnvelopeEnvironment:
    """A navix environment whose states have no picture to start from, if it never draws one."""
    if _is_picture(env.obs_space):
        return env
    cache = importlib.import_module("navix.rendering.cache").RenderingCache(patches=jnp.zeros((0,), jnp.uint8))
    strip = lambda state: state.replace(
        inner_state=state.inner_state.replace(state=state.inner_state.state.replace(cache=cache))
    )
    return dataclasses.replace(env, trim=strip)


# ---- countable states ----------------------------------------------------------------------------------------------


def with_states(env: EnvelopeEnvironment, own_id: str) -> EnvelopeEnvironment:
    """A navix environment with events, countable states, tiles, and the goal: navix pays at the goal, and nowhere else.

    A state is the agent's cell. Where there is a key it is cell, direction and what became of the key: it lies
    somewhere, it is carried, or it was used.
    """
    world = env.inner.unwrapped.navix_env
    height, width = world.height, world.width
    size, cells = height * width, (height - 2) * (width - 2)
    entities = jax.eval_shape(lambda: _entities(env.reset(jr.key(0))[0]))
    if "key" in entities:
        index = lambda state: (_key_stage(state) * 4 + _player(state).direction) * size + _cell(state, width)
        states = StateSpace(3 * 4 * size, reachable_states(own_id, height - 2, width - 2) or 12 * cells, index)
    else:
        count = reachable_states(own_id, height - 2, width - 2) or cells
        states = StateSpace(size, count, lambda state: _cell(state, width), (height, width))
    tiles = None if _is_picture(env.obs_space) else minigrid_tiles
    return dataclasses.replace(env, states=states, goal=0.0, happened=_happened, tiles=tiles)


def _is_picture(space: Space) -> bool:
    return isinstance(space, ObsSpace) and space.kind == "image"


def _happened(before: State, after: State) -> dict[str, Array]:
    """What navix says of the step, such as "key_pickup" and "door_open"; bumping into walls is left out."""
    del before  # navix forgets a step's events with the next
    wrapped: Any = after
    events = wrapped.unwrapped.state.events
    return {"_".join(pair): events.happened(pair) for pair in events.events if pair[0] not in ("wall", "grid")}


def reachable_states(own_id: str, rows: int, columns: int) -> int:
    """How many states an agent can act in, with so many rows and columns within the outer walls; 0 where it is not
    known, and all within the walls count.

    The goal ends the episode, and so is none, unless it moves from episode to episode.
    """
    task = own_id.removeprefix("Navix-").removesuffix("-v0")
    if task.startswith("DoorKey-"):  # until the door is open the agent is left of it; on its right are wall and column
        return 4 * (2 * rows * (columns - 2) + rows * columns - ("Random" not in task))
    if task == "KeyCorridorS3R1":  # a row of room, door, room, locked door and the goal's room
        return 4 * (3 + 3 + 4)
    if task.startswith("FourRooms"):  # where its walls cross, and two cells next to that, no doorway ever is
        return rows * columns - 3
    return rows * columns - 1 if task.startswith("Empty-") else 0


def _entities(state: State) -> dict[str, PyTree]:
    """Every entity of navix's world, each with its number in front."""
    wrapped: Any = state
    return wrapped.unwrapped.state.entities


def _player(state: State) -> PyTree[Array]:
    return jax.tree.map(lambda x: x[0], _entities(state)["player"])


def _cell(state: State, width: int) -> Int[Array, ""]:
    row, column = _player(state).position
    return jnp.asarray(row * width + column, jnp.int32)


def _key_stage(state: State) -> Int[Array, ""]:
    """0: a key lies somewhere, 1: something is carried, 2: the door has taken the key."""
    carried = _player(state).pocket >= 0
    gone = (_entities(state)["key"].position[..., 1] < 0).all()  # a key that lies nowhere is carried or was used
    return carried + 2 * (gone & ~carried)
