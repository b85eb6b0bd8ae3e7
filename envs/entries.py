"""A suite's observations entry by entry, and its actions as one vector.

A suite describes an observation as a tree of entries, each with bounds, which decide the kind of the entry here.
Entries of [height, width, 3] are images if they have bytes, or floats in [0, 1]. All other floats are real. Integers of
two values are binary, those of up to MOST_ENTRY_CLASSES values categorical, counted from the lowest, and those of more
values real. No information is lost as long as a suite keeps to its bounds.

Several discrete actions of one entry become one action if they have few combinations, else several choices at once.

Axes: A action dimensions, D choices.
"""

import dataclasses
import math
from collections.abc import Mapping

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from envs.environment import ActionSpace, ObsSpace
from envs.errors import EnvError
from envs.gymnax_spaces import LARGEST_BOUND

MOST_ENTRY_CLASSES = 64
MOST_ACTIONS = 64  # up to so many combinations, several discrete actions become one action


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """One entry of an observation, as its suite declares it, and what it is here."""

    low: np.ndarray
    high: np.ndarray  # inclusive, [*shape] like `low`
    dtype: np.dtype
    rescale: bool = False  # whether real numbers with finite bounds are brought to [-1, 1]

    @property
    def space(self) -> ObsSpace:
        """The space that the agent sees. Classes of integers span the whole entry, from the lowest to the highest."""
        if self._image_scale:
            return ObsSpace(self.low.shape, "image")
        if np.issubdtype(self.dtype, np.integer):
            classes = int(self.high.max(initial=0)) - int(self.low.min(initial=0)) + 1
            if classes == 2:
                return ObsSpace(self.low.shape, "binary")
            if 2 < classes <= MOST_ENTRY_CLASSES:
                return ObsSpace(self.low.shape, "categorical", classes)
        return ObsSpace(self.low.shape, "real")

    @property
    def rescalable(self) -> bool:
        """Whether it is of real numbers that all have finite bounds."""
        low, high = self.low.astype(np.float64), self.high.astype(np.float64)
        bounded = (low < high).all() and max(np.abs(low).max(initial=0), np.abs(high).max(initial=0)) <= LARGEST_BOUND
        return self.space.kind == "real" and bool(bounded)

    def __call__(self, value: Array) -> Array:
        """Value of the suite -> the entry in storage type."""
        value, space = jnp.asarray(value), self.space
        if space.kind == "image":
            return jnp.round(value * self._image_scale).astype(jnp.uint8)
        if space.kind != "real":
            return (value.astype(jnp.int32) - int(self.low.min(initial=0))).astype(space.dtype)
        if self.rescale and self.rescalable:
            center, reach = (self.high + self.low) / 2, (self.high - self.low) / 2
            value = (value - jnp.asarray(center, jnp.float32)) / jnp.asarray(reach, jnp.float32)
        return value.astype(space.dtype)

    @property
    def _image_scale(self) -> int:
        """The factor from a picture to bytes: 1, or 255 for floats in [0, 1]; 0 if the entry is no picture."""
        if self.low.ndim != 3 or self.low.shape[-1] != 3 or self.low.any():
            return 0
        if self.dtype == np.uint8 and (self.high == 255).all():
            return 1
        return 255 if np.issubdtype(self.dtype, np.floating) and (self.high == 1).all() else 0


def rescaled(name: str, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Entries with the real ones that have finite bounds brought to [-1, 1]. Errors: `EnvError` where none has."""
    if not any(entry.rescalable for entry in entries.values()):
        raise EnvError(f"{name}: its observations are no real numbers with finite bounds, and so are not rescaled")
    return {key: dataclasses.replace(entry, rescale=True) for key, entry in entries.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Actions:
    """Converts an action of this program to a suite's action."""

    space: ActionSpace
    shape: tuple[int, ...]
    dtype: np.dtype
    sizes: tuple[int, ...] = ()  # of each discrete dimension, the last of which changes fastest
    center: np.ndarray | None = None  # [*shape], continuous only
    reach: np.ndarray | None = None  # [*shape], half of the range; continuous only

    def __call__(self, action: Array) -> Array:
        """An int32 scalar or [D], or float32 [A] which is clipped to [-1, 1] -> the suite's action."""
        chex.assert_shape(action, self.space.struct.shape)
        if self.center is None or self.reach is None:
            chex.assert_type(action, int)
            if not self.shape or self.space.choices:
                return jnp.asarray(action, self.dtype).reshape(self.shape)
            return jnp.stack(jnp.unravel_index(action, self.sizes)).reshape(self.shape).astype(self.dtype)
        clipped = jnp.clip(jnp.asarray(action, jnp.float32), -1.0, 1.0).reshape(self.shape)
        return (jnp.asarray(self.center) + jnp.asarray(self.reach) * clipped).astype(self.dtype)


def discrete_actions(name: str, sizes: np.ndarray, dtype: np.dtype) -> Actions:
    """Actions of discrete dimensions [*shape], each with its number of choices. Errors: `EnvError`."""
    flat = tuple(int(size) for size in sizes.reshape(-1))
    count = math.prod(flat)
    if not flat or min(flat) < 1:
        raise EnvError(f"{name}: there must be 1 action or more, not {count}")
    several = len(flat) > 1 and count > MOST_ACTIONS
    space = ActionSpace.of_choices(*flat) if several else ActionSpace("discrete", count)
    return Actions(space, sizes.shape, dtype, flat)


@dataclasses.dataclass(frozen=True, eq=False)
class ActionTree:
    """Several choices at once -> a suite's action of several discrete entries."""

    space: ActionSpace
    entries: tuple[Actions, ...]
    structure: jax.tree_util.PyTreeDef  # of the suite's action

    def __call__(self, action: Array) -> PyTree[Array]:
        """int32 [D], the choices of one entry after another -> the suite's action."""
        chex.assert_shape(action, self.space.struct.shape)
        chex.assert_type(action, int)
        ends = np.cumsum([len(entry.sizes) for entry in self.entries])
        parts = jnp.split(action, ends[:-1])
        values = (
            part.reshape(entry.shape).astype(entry.dtype) for part, entry in zip(parts, self.entries, strict=True)
        )
        return jax.tree.unflatten(self.structure, values)


def several_actions(name: str, entries: tuple[Actions, ...], structure: jax.tree_util.PyTreeDef) -> ActionTree:
    """Actions of several entries, all discrete. Errors: `EnvError` where some are continuous."""
    if not all(entry.sizes for entry in entries):
        raise EnvError(
            f"{name}: an action has several entries, some of them continuous; agents here give discrete ones"
        )
    choices = (size for entry in entries for size in entry.sizes)
    return ActionTree(ActionSpace.of_choices(*choices), entries, structure)


def continuous_actions(name: str, low: np.ndarray, high: np.ndarray, dtype: np.dtype) -> Actions:
    """Actions of numbers [*shape] within bounds. Errors: `EnvError`."""
    if not low.size or not (np.isfinite(low).all() and np.isfinite(high).all() and (low <= high).all()):
        raise EnvError(f"{name}: continuous actions must have finite bounds, low <= high, not {low} to {high}")
    center, reach = np.asarray((high + low) / 2, np.float32), np.asarray((high - low) / 2, np.float32)
    return Actions(ActionSpace("continuous", low.size), low.shape, dtype, center=center, reach=reach)
