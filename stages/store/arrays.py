"""Arrays: a state's arrays by their path, and a checkpoint's arrays as a state again."""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import ArrayLike, PyTree

from stages.config import Hypers
from stages.store.files import RunFolderError

GROWABLE = {".ring.": 0, ".coverage.where": -1}
"""Parts of the state with a slot for each row that the run will collect, and the value of an empty slot."""
HYPER_DEFAULTS = {f"[0].hypers.{name}": value for name, value in vars(Hypers()).items()}
"""The values of hyperparameters that are newer than a checkpoint."""


def leaves_by_path(tree: PyTree) -> dict[str, PyTree]:
    """The leaves of a tree by their path, such as ".agent.model.rssm.prior"."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def without_key_type(x: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """Random keys as integers; other arrays unchanged."""
    return jr.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def match_shapes(path: Path, saved: Mapping[str, ArrayLike], shapes: PyTree) -> PyTree:
    """A checkpoint's arrays by their names, as a tree like `shapes`. Raises RunFolderError where they are others."""
    wanted = leaves_by_path(shapes)
    newer = {name: value for name, value in HYPER_DEFAULTS.items() if name in wanted and name not in saved}
    saved = {**saved} | {name: np.full(wanted[name].shape, value, np.float32) for name, value in newer.items()}
    if unlike := sorted(saved.keys() ^ {name for name, x in wanted.items() if x.size}):
        raise RunFolderError(f"the checkpoint {str(path)!r} is of another state: {unlike[0]} is not in both")
    leaves = [_fitted(path, name, saved.get(name), like) for name, like in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def _fitted(path: Path, name: str, saved: ArrayLike | None, like: jax.ShapeDtypeStruct) -> jax.Array:
    """A saved array in its place on the devices; a ring's with room for more rows, if there shall be more."""
    is_key = jnp.issubdtype(like.dtype, jax.dtypes.prng_key)
    raw = jax.eval_shape(jr.key_data, like) if is_key else like
    saved = np.zeros(raw.shape, raw.dtype) if saved is None else np.asarray(saved)
    if saved.dtype != raw.dtype or not _grows(name, saved.shape, raw.shape):
        raise RunFolderError(
            f"the checkpoint {str(path)!r} is of another state: {name} is {saved.dtype}{list(saved.shape)} there, and "
            f"{raw.dtype}{list(raw.shape)} in this run"
        )
    if saved.shape != raw.shape:
        padding = [(0, size - before) for before, size in zip(saved.shape, raw.shape, strict=True)]
        saved = np.pad(saved, padding, constant_values=next(empty for part, empty in GROWABLE.items() if part in name))
    if is_key:
        # An environment's keys may be of another kind than jax's default; a dtype has no public name for its own.
        return jax.device_put(jr.wrap_key_data(jnp.asarray(saved), impl=like.dtype._impl), like.sharding)
    return jax.device_put(saved, like.sharding)


def _grows(name: str, saved: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether an array fits: one with room for each row, [seeds, capacity, ...], may have gained capacity."""
    if saved == wanted or not any(part in name for part in GROWABLE):
        return saved == wanted
    alike = len(saved) == len(wanted) > 1 and (saved[0], *saved[2:]) == (wanted[0], *wanted[2:])
    return alike and saved[1] <= wanted[1]
