"""gymnax's spaces, time limits and shapes -> ours, read off without running anything. Errors: `EnvError`."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from envs.environment import ObsSpace
from envs.errors import EnvError
from envs.overrides import INT32_MOST, TIME_LIMIT
from envs.states import GymnaxParams, GymnaxSpace

# Float observations that hold nothing but 0 and 1. The spaces do not tell: a Box(0, 1) may be a board or a
# clock (UmbrellaChain's third entry). Held to the truth by rollouts in tests/test_envs.py.
BINARY = frozenset({
    "Asterix-MinAtar",
    "Breakout-MinAtar",
    "Freeway-MinAtar",
    "Seaquest-MinAtar",
    "SpaceInvaders-MinAtar",
    "Catch-bsuite",
    "DeepSea-bsuite",
    "SimpleBandit-bsuite",  # always [[1]]
    "FourRooms-misc",  # the map of use_visual_obs; the default, four integers, is categorical
    "Pong-misc",
})  # fmt: skip
LARGEST_BOUND = 1e6  # suites declare the largest float where there is none
MOST_CLASSES = 1024  # an integer with a larger bound is a number, not a category


def check_equal(name: str, part: str, reset: PyTree, step: PyTree, dtypes: bool = True) -> None:
    """Whether reset and step give one form of something, shapes and `dtypes`. Errors: `EnvError`."""
    if jax.tree.structure(reset) != jax.tree.structure(step):
        raise EnvError(f"{name}: reset and step give {part} of different structure: they must be the same")
    for before, after in zip(jax.tree.leaves(reset), jax.tree.leaves(step), strict=True):
        if before.shape != after.shape or (dtypes and before.dtype != after.dtype):
            raise EnvError(
                f"{name}: reset gives {part} of {describe_array(before)}, and step one of {describe_array(after)}: "
                "they must be the same"
            )


def describe_array(x: object) -> str:
    """Type and shape of an array."""
    return f"{x.dtype}{list(x.shape)}" if isinstance(x, jax.ShapeDtypeStruct) else type(x).__name__


def common_dtype(reset: jax.ShapeDtypeStruct, step: jax.ShapeDtypeStruct) -> Any:
    """The dtype that holds what reset and step give."""
    return reset.dtype if reset.dtype == step.dtype else jnp.promote_types(reset.dtype, step.dtype)


def time_limit_of(name: str, params: GymnaxParams) -> int:
    """Steps of an episode at most. Errors: `EnvError`."""
    limit: Any = getattr(params, TIME_LIMIT, None)
    try:
        steps = math.ceil(limit)  # BernoulliBandit's is a float
    except (TypeError, ValueError, OverflowError):
        steps = 0
    if not 1 <= steps <= INT32_MOST:
        raise EnvError(f"{name}: {TIME_LIMIT} must be 1 to {INT32_MOST:,} steps in its parameters, not {limit!r}")
    return steps


def obs_space_of(name: str, obs: PyTree, declared: GymnaxSpace) -> ObsSpace:
    """Bytes [H, W, C], and [H, W] up to 255, are an image; integers within a small bound categories; bools, and boards
    in `BINARY`, binary; all else is real.

    Errors: `EnvError`.
    """
    if not isinstance(obs, jax.ShapeDtypeStruct):
        raise EnvError(f"{name}: an observation must be one array, not {type(obs).__name__}")
    if obs.dtype == jnp.bool_:
        return ObsSpace(obs.shape, "binary")
    if obs.dtype == jnp.uint8 and len(obs.shape) == 3:
        return ObsSpace(obs.shape, "image")
    if jnp.issubdtype(obs.dtype, jnp.integer):
        discrete = hasattr(declared, "n")
        low, high = (0, declared.n - 1) if discrete else (np.min(declared.low), np.max(declared.high))
        if obs.dtype == jnp.uint8 and len(obs.shape) == 2 and high == 255:
            return ObsSpace((*obs.shape, 1), "image")
        if low >= 0 and high < MOST_CLASSES:
            return ObsSpace(obs.shape, "categorical", int(high) + 1)
    elif name in BINARY:
        return ObsSpace(obs.shape, "binary")
    return ObsSpace(obs.shape, "real")
