"""An environment of jax-envelope, already made, behind our interface.

It carries its own random key in its state, so that steps draw nothing from ours. Where its observation or its action
has several entries, they become one array (envs/entries.py).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, final

import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from envs.entries import Actions, Entry, Observations, continuous_actions, discrete_actions, observations
from envs.environment import ActionSpace, Environment, ObsSpace, State, StateSpace, Timestep
from envs.errors import EnvError
from envs.gymnax_suite import check_equal, common_dtype, own_broadcasting, strong

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
    obs_space: ObsSpace
    action_space: ActionSpace
    time_limit: int  # env steps
    inner: Any  # envelope's environment
    observe: Observations
    act: Actions
    state_dtypes: Any  # one dtype for each leaf of the state
    trim: Callable[[PyTree], PyTree] = _whole  # what is kept of a first state
    states: StateSpace | None = None
    goal: float | None = None
    happened: Callable[[PyTree, PyTree], dict[str, Array]] = _nothing  # (state before, after) -> the step's events
    achievements: tuple[str, ...] = ()

    def reset(self, key: PRNGKeyArray) -> tuple[State, Timestep]:
        with own_broadcasting():
            state, info = self.inner.init(key)
            return self._row(self.trim(state), info, None)

    def step(self, key: PRNGKeyArray, state: State, action: Array) -> tuple[State, Timestep]:
        del key  # the state has its own
        chex.assert_shape(action, () if self.action_space.kind == "discrete" else (self.action_space.size,))
        if self.action_space.kind == "discrete":
            chex.assert_type(action, int)
        with own_broadcasting():
            after, info = self.inner.step(state, self.act(action))
            return self._row(after, info, state)

    def _row(self, state: PyTree, info: Any, before: PyTree | None) -> tuple[State, Timestep]:
        """The row of `state`; `before` is None at a reset."""
        is_first = before is None
        terminated, truncated = (
            jnp.zeros((), jnp.bool_) if is_first else jnp.asarray(x, jnp.bool_)
            for x in (info.terminated, info.truncated)
        )
        reward = jnp.zeros((), jnp.float32) if is_first else jnp.asarray(info.reward, jnp.float32)
        return strong(state, self.state_dtypes), Timestep(
            obs=self.observe(_seen(info.obs)),
            reward=reward,
            is_first=jnp.array(is_first),
            is_last=terminated | truncated,
            is_terminal=terminated,
            events=self.happened(state if is_first else before, state),
        )


def adapt(name: str, inner: Any, time_limit: int, bounded: bool, rescale: bool) -> EnvelopeEnvironment:
    """Read off the spaces and the state's dtypes, without running anything.

    Args:
        bounded: whether the suite declares bounds of observations. The others' are any numbers, of which brax would
            have to run a reset to say how many there are.
        rescale: whether real observations are brought to [-1, 1].

    Errors: `EnvError`.
    """
    key = jax.eval_shape(lambda: jr.key(0))
    act = _actions(name, inner.action_space)
    action = jax.ShapeDtypeStruct((), jnp.int32)
    if act.space.kind == "continuous":
        action = jax.ShapeDtypeStruct((act.space.size,), jnp.float32)
    with own_broadcasting():
        first, seen = jax.eval_shape(inner.init, key)
        later, stepped = jax.eval_shape(lambda state, action: inner.step(state, act(action)), first, action)
    check_equal(name, "an observation", seen.obs, stepped.obs, dtypes=False)
    check_equal(name, "a state", first, later, dtypes=False)
    for part in ("reward", "terminated", "truncated"):
        if getattr(stepped, part).shape != ():
            raise EnvError(f"{name}: step gives {part} of shape {list(getattr(stepped, part).shape)}, not one number")
    observe = observations(name, _entries(_seen(seen.obs), inner.observation_space if bounded else None))
    if rescale:
        if observe.rescalable is None:
            raise EnvError(f"{name}: its observations are no real numbers with finite bounds, and so are not rescaled")
        observe = dataclasses.replace(observe, obs_range=observe.rescalable)
    dtypes = jax.tree.map(common_dtype, first, later)
    return EnvelopeEnvironment(name, observe.space, act.space, time_limit, inner, observe, act, dtypes)


def _seen(obs: PyTree) -> PyTree:
    """An observation without what is meant for a critic alone."""
    return {name: entry for name, entry in obs.items() if name != PRIVILEGED} if isinstance(obs, dict) else obs


def _entries(obs: PyTree, space: Any) -> tuple[Entry, ...]:
    """The entries of an observation; `space` is envelope's, or None where all are any numbers."""
    leaves = jax.tree_util.tree_leaves_with_path(obs)
    if space is None:
        declared = [(-np.inf, np.inf, np.dtype(np.float32)) for _ in leaves]
    else:
        is_space = lambda x: hasattr(x, "n") or hasattr(x, "low")
        declared = [_bounds(leaf) for leaf in jax.tree.leaves(getattr(space, "tree", space), is_leaf=is_space)]
    return tuple(
        Entry(
            jax.tree_util.keystr(path).strip("."),
            np.broadcast_to(np.asarray(low), leaf.shape),
            np.broadcast_to(np.asarray(high), leaf.shape),
            np.dtype(dtype),
        )
        for (path, leaf), (low, high, dtype) in zip(leaves, declared, strict=True)
    )


def _bounds(space: Any) -> tuple[np.ndarray, np.ndarray, np.dtype]:
    """Lowest and highest value (inclusive) and dtype of one entry."""
    if hasattr(space, "n"):
        n = np.asarray(space.n)
        return np.zeros(n.shape, np.int64), np.asarray(n.astype(np.int64) - 1), np.dtype(space.dtype)
    return np.asarray(space.low), np.asarray(space.high), np.dtype(space.dtype)


def _actions(name: str, space: Any) -> Actions:
    """How our action becomes the suite's. Errors: `EnvError`."""
    if hasattr(space, "tree"):
        raise EnvError(f"{name}: an action has several entries, and agents here give one: {space}".replace("\n", " "))
    if hasattr(space, "n"):
        return discrete_actions(name, np.asarray(space.n), np.dtype(space.dtype))
    low, high = np.asarray(space.low), np.asarray(space.high)
    if np.issubdtype(np.dtype(space.dtype), np.integer):
        if low.any():
            raise EnvError(f"{name}: actions are whole numbers from {low} on; agents here choose from 0 on")
        return discrete_actions(name, high + 1, np.dtype(space.dtype))
    return continuous_actions(name, low, high, np.dtype(space.dtype))
