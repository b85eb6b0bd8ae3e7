"""An environment of jax-envelope, already made, behind our interface.

It carries its own random key in its state, so that steps draw nothing from ours. envs/entries.py says what its
observations and actions are here.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, final

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from envs.entries import Actions, ActionTree, Entry, continuous_actions, discrete_actions, rescaled, several_actions
from envs.environment import ActionSpace, DictSpace, Environment, Obs, Space, State, StateSpace, Timestep
from envs.errors import EnvError
from envs.gymnax_spaces import check_equal, common_dtype
from envs.gymnax_suite import own_broadcasting, strong

Envelope = EnvelopeSpace = Any  # of jax-envelope, which is an extra
Defaults = tuple[dict[str, Any], int | None]  # a suite's settings with their defaults, and its time limit
PRIVILEGED = "privileged_state"  # what mujoco_playground gives to a critic alone, beside the agent's "state"


def _whole(state: PyTree) -> PyTree:
    return state


def _nothing(before: PyTree, after: PyTree) -> dict[str, Array]:
    del before, after
    return {}


@final
@dataclasses.dataclass(frozen=True, eq=False)
class EnvelopeEnvironment(Environment):
    """A suite's environment through jax-envelope, behind our interface."""

    name: str
    obs_space: Space
    action_space: ActionSpace
    time_limit: int  # env steps
    inner: Envelope
    entries: dict[str, Entry]  # in the order of the leaves of the suite's observation
    act: Actions | ActionTree
    state_dtypes: PyTree  # one dtype for each leaf of the state
    trim: Callable[[PyTree], PyTree] = _whole  # what is kept of a first state
    states: StateSpace | None = None
    goal: float | None = None
    costly_reset: bool = True  # worlds are generated, physics settles
    happened: Callable[[PyTree, PyTree], dict[str, Array]] = _nothing  # (state before, after) -> the step's events
    achievements: tuple[str, ...] = ()
    tiles: Callable[[PyTree[np.ndarray]], np.ndarray] | None = None

    def reset(self, key: PRNGKeyArray) -> tuple[State, Timestep]:
        with own_broadcasting():
            state, info = self.inner.init(key)
            return self._row(self.trim(state), info, None)

    def step(self, key: PRNGKeyArray, state: State, action: Array) -> tuple[State, Timestep]:
        del key  # the state has its own
        with own_broadcasting():
            after, info = self.inner.step(state, self.act(action))
            return self._row(after, info, state)

    def _row(self, state: PyTree, info: PyTree, before: PyTree | None) -> tuple[State, Timestep]:
        """The row of `state`; `before` is None at a reset."""
        is_first = before is None
        terminated, truncated = (
            jnp.zeros((), jnp.bool_) if is_first else jnp.asarray(x, jnp.bool_)
            for x in (info.terminated, info.truncated)
        )
        reward = jnp.zeros((), jnp.float32) if is_first else jnp.asarray(info.reward, jnp.float32)
        state = strong(state, self.state_dtypes)
        return state, Timestep(
            obs=self._observe(info.obs),
            reward=reward,
            is_first=jnp.array(is_first),
            is_last=terminated | truncated,
            is_terminal=terminated,
            events=self.happened(state if is_first else before, state),
        )

    def _observe(self, obs: PyTree) -> Obs:
        """The suite's observation -> ours: a dictionary where it has several entries."""
        leaves = jax.tree.leaves(_seen(obs))
        seen = {name: entry(leaf) for (name, entry), leaf in zip(self.entries.items(), leaves, strict=True)}
        return seen if isinstance(self.obs_space, DictSpace) else next(iter(seen.values()))


def adapt_envelope(name: str, inner: Envelope, time_limit: int, bounded: bool, rescale: bool) -> EnvelopeEnvironment:
    """Read off the spaces and the state's dtypes, without running anything.

    Args:
        bounded: whether the suite declares bounds of observations. The others' are any numbers, of which brax would
            have to run a reset to say how many there are.
        rescale: whether real observations are brought to [-1, 1].

    Errors: `EnvError`.
    """
    key = jax.eval_shape(lambda: jr.key(0))
    act = _actions(name, inner.action_space)
    with own_broadcasting():
        first, seen = jax.eval_shape(inner.init, key)
        later, stepped = jax.eval_shape(lambda state, action: inner.step(state, act(action)), first, act.space.struct)
    check_equal(name, "an observation", seen.obs, stepped.obs, dtypes=False)
    check_equal(name, "a state", first, later, dtypes=False)
    for part in ("reward", "terminated", "truncated"):
        if getattr(stepped, part).shape != ():
            raise EnvError(f"{name}: step gives {part} of shape {list(getattr(stepped, part).shape)}, not one number")
    entries = _entries(_seen(seen.obs), inner.observation_space if bounded else None)
    if not entries:
        raise EnvError(f"{name}: an observation has no entry")
    entries = rescaled(name, entries) if rescale else entries
    spaces = {key: entry.space for key, entry in entries.items()}
    space = DictSpace(spaces) if len(spaces) > 1 else next(iter(spaces.values()))
    dtypes = jax.tree.map(common_dtype, first, later)
    return EnvelopeEnvironment(name, space, act.space, time_limit, inner, entries, act, dtypes)


def _seen(obs: PyTree) -> PyTree:
    """An observation without what is meant for a critic alone."""
    return {name: entry for name, entry in obs.items() if name != PRIVILEGED} if isinstance(obs, dict) else obs


def _entries(obs: PyTree, space: EnvelopeSpace) -> dict[str, Entry]:
    """The entries of an observation by their path; `space` is envelope's, or None where all are any numbers."""
    leaves = jax.tree_util.tree_leaves_with_path(obs)
    declared = [(np.asarray(-np.inf), np.asarray(np.inf), np.dtype(np.float32)) for _ in leaves]
    if space is not None:
        declared = [_bounds(leaf) for leaf in jax.tree.leaves(getattr(space, "tree", space), is_leaf=_is_space)]
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): Entry(
            np.broadcast_to(low, leaf.shape), np.broadcast_to(high, leaf.shape), dtype
        )
        for (path, leaf), (low, high, dtype) in zip(leaves, declared, strict=True)
    }


def _is_space(node: Any) -> bool:
    """Whether a node of a suite's tree of spaces is the space of one entry."""
    return hasattr(node, "n") or hasattr(node, "low")


def _bounds(space: EnvelopeSpace) -> tuple[np.ndarray, np.ndarray, np.dtype]:
    """Lowest and highest value (inclusive) and dtype of one entry."""
    if hasattr(space, "n"):
        n = np.asarray(space.n)
        return np.zeros(n.shape, np.int64), np.asarray(n.astype(np.int64) - 1), np.dtype(space.dtype)
    return np.asarray(space.low), np.asarray(space.high), np.dtype(space.dtype)


def _actions(name: str, space: EnvelopeSpace) -> Actions | ActionTree:
    """How our action becomes the suite's. Errors: `EnvError`."""
    if hasattr(space, "tree"):
        leaves, structure = jax.tree.flatten(space.tree, is_leaf=_is_space)
        return several_actions(name, tuple(_entry_actions(name, leaf) for leaf in leaves), structure)
    return _entry_actions(name, space)


def _entry_actions(name: str, space: EnvelopeSpace) -> Actions:
    """The same for a space of one entry."""
    if hasattr(space, "n"):
        return discrete_actions(name, np.asarray(space.n), np.dtype(space.dtype))
    low, high = np.asarray(space.low), np.asarray(space.high)
    if np.issubdtype(np.dtype(space.dtype), np.integer):
        if low.any():
            raise EnvError(f"{name}: actions are whole numbers from {low} on; agents here choose from 0 on")
        return discrete_actions(name, high + 1, np.dtype(space.dtype))
    return continuous_actions(name, low, high, np.dtype(space.dtype))
