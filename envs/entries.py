"""Observations of several entries as one array, and several discrete actions as one.

A suite describes what it gives as a tree of entries, each with its bounds. What an agent here sees is one array of one
kind, so the entries are flattened, in the order of the tree's leaves (named tuples in their own order, dictionaries by
key), each row by row:

- An entry alone keeps its shape, unless its integers have different numbers of classes and few enough for one-hot.
- Entries that all have the same number of classes become one binary or categorical vector.
- Otherwise integers of up to `MOST_ONE_HOT` classes become one-hot, and all others stay numbers: a binary vector, or a
  real one if there is a number in it.

Nothing is lost: each entry can be read off the array. An image beside other entries is refused.

Axes: A action dimensions.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from envs.environment import ActionSpace, ObsSpace
from envs.errors import EnvError

MOST_CLASSES = 1024  # of an entry alone; an integer with a larger bound is a number, not a category
MOST_ONE_HOT = 64  # classes of an integer beside other entries
MOST_ACTIONS = 64  # combinations of several discrete actions
LARGEST_BOUND = 1e6  # suites declare the largest float where there is none


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """One entry of an observation, as its suite declares it."""

    name: str  # its path in the tree; "" for an observation of one entry
    low: np.ndarray
    high: np.ndarray  # inclusive, [*shape] like `low`
    dtype: np.dtype

    @property
    def classes(self) -> int:
        """How many integers it may be, counted from its lowest; 0 where it is a number."""
        if not np.issubdtype(self.dtype, np.integer):
            return 0
        span = int(self.high.max(initial=0)) - int(self.low.min(initial=0)) + 1
        return span if 2 <= span <= MOST_CLASSES else 0

    @property
    def image_scale(self) -> int:
        """What brings it to bytes of an image: 1, or 255 for one of floats in [0, 1]; 0 where it is no image."""
        if self.low.ndim != 3 or self.low.shape[-1] != 3 or self.low.any():
            return 0
        if self.dtype == np.uint8 and (self.high == 255).all():
            return 1
        return 255 if np.issubdtype(self.dtype, np.floating) and (self.high == 1).all() else 0

    def described(self) -> str:
        """Name, type, shape and bounds, for a message."""
        bounds = f"{self.low.min(initial=0):g} to {self.high.max(initial=0):g}"
        return f"{self.name or 'one'} {self.dtype}{list(self.low.shape)} {bounds}"


@dataclasses.dataclass(frozen=True, eq=False)
class Observations:
    """How a suite's observation becomes ours."""

    entries: tuple[Entry, ...]
    space: ObsSpace
    one_hot: bool  # whether integers of few classes become one-hot
    obs_range: tuple[np.ndarray, np.ndarray] | None = None  # (centre, half of the range) that is brought to [-1, 1]

    def __call__(self, obs: PyTree) -> Array:
        """Observation of the suite -> [*space.shape] in storage type."""
        leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(obs)]
        if self.space.kind == "image":
            return jnp.round(leaves[0] * self.entries[0].image_scale).astype(jnp.uint8)
        parts = [self._part(entry, leaf).reshape(-1) for entry, leaf in zip(self.entries, leaves, strict=True)]
        flat = jnp.concatenate([jnp.asarray(part, self.space.dtype) for part in parts]).reshape(self.space.shape)
        if self.obs_range is None:
            return flat
        center, reach = self.obs_range
        return (flat - center) / reach

    def _part(self, entry: Entry, leaf: Array) -> Array:
        if entry.classes == 0:
            return leaf
        category = leaf.astype(jnp.int32) - int(entry.low.min(initial=0))
        if self.one_hot and entry.classes > 2:
            return jax.nn.one_hot(category, entry.classes) if entry.classes <= MOST_ONE_HOT else leaf
        return category

    @property
    def rescalable(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(centre, half of the range) of real numbers that all have finite bounds; else None."""
        if self.space.kind != "real" or any(entry.classes for entry in self.entries):
            return None
        low = np.concatenate([entry.low.reshape(-1) for entry in self.entries]).astype(np.float64)
        high = np.concatenate([entry.high.reshape(-1) for entry in self.entries]).astype(np.float64)
        if not (low < high).all() or max(np.abs(low).max(), np.abs(high).max()) > LARGEST_BOUND:
            return None
        halves = ((high + low) / 2, (high - low) / 2)
        center, reach = (np.asarray(x, np.float32).reshape(self.space.shape) for x in halves)
        return center, reach


def observations(name: str, entries: tuple[Entry, ...]) -> Observations:
    """How observations of these entries become one array. `name` is for the message. Errors: `EnvError`."""
    images = [entry for entry in entries if entry.image_scale]
    if images and len(entries) > 1:
        listing = "; ".join(entry.described() for entry in entries)
        raise EnvError(
            f"{name}: an observation has an image beside other entries, which no agent here can see at once: {listing}"
        )
    if images:
        return Observations(entries, ObsSpace(images[0].low.shape, "image"), one_hot=False)
    if not entries or sum(entry.low.size for entry in entries) == 0:
        raise EnvError(f"{name}: an observation has no entry")
    alike = len({entry.classes for entry in entries}) == 1 and (len(entries) == 1 or entries[0].classes > 0)
    if alike:
        kind, shape = _kind_of(entries[0].classes), (sum(entry.low.size for entry in entries),)
        shape = entries[0].low.shape if len(entries) == 1 else shape
        classes = entries[0].classes if kind == "categorical" else 0
        return Observations(entries, ObsSpace(shape, kind, classes), one_hot=False)
    width = sum(entry.low.size * (entry.classes if 2 < entry.classes <= MOST_ONE_HOT else 1) for entry in entries)
    binary = all(0 < entry.classes <= MOST_ONE_HOT for entry in entries)
    return Observations(entries, ObsSpace((width,), "binary" if binary else "real"), one_hot=True)


def _kind_of(classes: int) -> Any:
    return {0: "real", 2: "binary"}.get(classes, "categorical")


@dataclasses.dataclass(frozen=True, eq=False)
class Actions:
    """How our action becomes a suite's."""

    space: ActionSpace
    shape: tuple[int, ...]
    dtype: np.dtype
    sizes: tuple[int, ...] = ()  # of each discrete dimension, the last of which changes fastest
    center: np.ndarray | None = None  # [*shape], continuous only
    reach: np.ndarray | None = None  # [*shape], half of the range; continuous only

    def __call__(self, action: Array) -> Array:
        """An int32 scalar, or float32 [A] which is clipped to [-1, 1] -> the suite's action."""
        if self.center is None or self.reach is None:
            if not self.shape:
                return jnp.asarray(action, self.dtype)
            return jnp.stack(jnp.unravel_index(action, self.sizes)).reshape(self.shape).astype(self.dtype)
        clipped = jnp.clip(jnp.asarray(action, jnp.float32), -1.0, 1.0).reshape(self.shape)
        return (jnp.asarray(self.center) + jnp.asarray(self.reach) * clipped).astype(self.dtype)


def discrete_actions(name: str, sizes: np.ndarray, dtype: np.dtype) -> Actions:
    """Actions of discrete dimensions [*shape], each with its number of choices. Errors: `EnvError`."""
    flat = tuple(int(size) for size in sizes.reshape(-1))
    count = math.prod(flat)
    if not flat or min(flat) < 1:
        raise EnvError(f"{name}: there must be 1 action or more, not {count}")
    if len(flat) > 1 and count > MOST_ACTIONS:
        raise EnvError(
            f"{name}: an action is {len(flat)} choices, of {', '.join(map(str, flat))}: {count:,} combinations; "
            f"agents here choose among {MOST_ACTIONS} at most where there are several choices at once"
        )
    return Actions(ActionSpace("discrete", count), sizes.shape, dtype, flat)


def continuous_actions(name: str, low: np.ndarray, high: np.ndarray, dtype: np.dtype) -> Actions:
    """Actions of numbers [*shape] within bounds. Errors: `EnvError`."""
    if not low.size or not (np.isfinite(low).all() and np.isfinite(high).all() and (low <= high).all()):
        raise EnvError(f"{name}: continuous actions must have finite bounds, low <= high, not {low} to {high}")
    center, reach = np.asarray((high + low) / 2, np.float32), np.asarray((high - low) / 2, np.float32)
    return Actions(ActionSpace("continuous", low.size), low.shape, dtype, center=center, reach=reach)
