"""The adapter to gymnax (https://github.com/RobertTLange/gymnax, 1.0.1).

gymnax's `step` resets by itself, so this calls `step_env`, `reset_env` and `is_truncated`, which do not.
gymnax's spaces do not always say what comes out (Catch declares int32 and gives floats, FourRooms the
reverse, GaussianBandit leaves its space, Pong declares 0..2), so shapes and dtypes are taken from an abstract
call. Some of its environments do not clip their actions (Reacher, Swimmer; PointRobot shows the unclipped one
in its observation), so this does.
Importing gymnax takes seconds: it happens inside the functions.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, final

import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from envs import deep_sea
from envs.environment import ActionSpace, Environment, ObsSpace, Space, State, StateSpace, Timestep
from envs.errors import BadOverride, EnvError, UnavailableEnvironment
from envs.overrides import INT32_MOST, TIME_LIMIT, Value, apply_overrides
from envs.states import goal_of, state_space

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

UNAVAILABLE: Mapping[str, str] = {
    "MNISTBandit-bsuite": "gymnax downloads the MNIST images to make it, and nothing is downloaded here",
}

# Settings that gymnax has not, with their defaults; RESCALE is offered where observations have finite bounds.
OWN_SETTINGS: Mapping[str, Mapping[str, Value]] = {"DeepSea-bsuite": {deep_sea.SETTING: False}}
RESCALE = "rescale_observations"
LARGEST_BOUND = 1e6  # gymnax declares the largest float where there is none

MOST_CLASSES = 1024  # an integer with a larger bound is a number, not a category

# gymnax adds arrays of different ranks (Swimmer), which our own code may not: it runs under its own rule.
own_broadcasting = functools.partial(jax.numpy_rank_promotion, "allow")


def ids() -> tuple[str, ...]:
    """The ids that `make` accepts, in gymnax's order; `UNAVAILABLE` ones are left out."""
    import gymnax

    return tuple(name for name in gymnax.registered_envs if name not in UNAVAILABLE)


def make(name: str, overrides: Mapping[str, Value]) -> Environment:
    """Make the environment registered as `name`, one of `ids()`.

    Errors: `UnavailableEnvironment` for an id that needs a download; `BadOverride`, see `envs.overrides`, and
    where gymnax itself refuses a value.
    """
    if name in UNAVAILABLE:
        raise UnavailableEnvironment(f"{name} cannot be used: {UNAVAILABLE[name]}; choose another one")
    import gymnax

    return build(name, gymnax.make, overrides)


def build(
    name: str,
    make: Callable[..., tuple[Any, Any]],
    overrides: Mapping[str, Value],
    factory: Callable[..., Any] | None = None,
) -> Environment:
    """What `make(name, **arguments)`, (gymnax environment, parameters), is behind our interface.

    `factory`: whose arguments they are, see `apply_overrides`. Errors: `BadOverride`; `EnvError` where its spaces are
    none that an agent here can have.
    """
    if not overrides:
        return _adapt(name, *make(name))
    try:
        own = dict(OWN_SETTINGS.get(name, {}))
        if _obs_range(_adapt(name, *make(name))) is not None:
            own[RESCALE] = False
        inner, params, own = apply_overrides(name, make, overrides, own, factory)
        env = _adapt(name, inner, params)
        if own.get(RESCALE):
            env = dataclasses.replace(env, obs_range=_obs_range(env))
        return deep_sea.per_seed(env) if own.get(deep_sea.SETTING) else env
    except EnvError:
        raise
    except (ArithmeticError, AssertionError, IndexError, TypeError, ValueError) as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise BadOverride(f"gymnax cannot make {name} with {dict(overrides)}: {reason}") from error


@final
@dataclasses.dataclass(frozen=True, eq=False)
class GymnaxEnvironment(Environment):
    """A gymnax environment and its parameters, behind our interface."""

    name: str
    obs_space: Space  # of one array
    action_space: ActionSpace
    time_limit: int  # env steps
    inner: Any  # gymnax's environment, with its own methods for pictures
    params: Any  # gymnax's parameters
    state_dtypes: Any  # one dtype for each leaf of the state
    action_center: np.ndarray  # [A], continuous only
    action_reach: np.ndarray  # [A], half of the range; continuous only
    states: StateSpace | None
    goal: float | None
    obs_range: tuple[np.ndarray, np.ndarray] | None = None  # (centre, half of the range) that is brought to [-1, 1]

    def reset(self, key: PRNGKeyArray) -> tuple[State, Timestep]:
        with own_broadcasting():
            obs, state = self.inner.reset_env(key, self.params)
        return strong(state, self.state_dtypes), Timestep(
            obs=self._own_obs(obs),
            reward=jnp.zeros((), jnp.float32),
            is_first=jnp.array(True),
            is_last=jnp.array(False),
            is_terminal=jnp.array(False),
        )

    def step(self, key: PRNGKeyArray, state: State, action: Array) -> tuple[State, Timestep]:
        own_action = self._own_action(action)
        with own_broadcasting():
            obs, state, reward, terminated, _ = self.inner.step_env(key, state, own_action, self.params)
            truncated = self.inner.is_truncated(state, self.params)
        terminated = jnp.asarray(terminated, jnp.bool_)
        truncated = jnp.asarray(truncated, jnp.bool_)
        return strong(state, self.state_dtypes), Timestep(
            obs=self._own_obs(obs),
            reward=jnp.asarray(reward, jnp.float32),
            is_first=jnp.array(False),
            is_last=terminated | truncated,
            is_terminal=terminated,
        )

    def _own_obs(self, obs: Array) -> Array:
        """From gymnax's observation to ours: in storage type, and within [-1, 1] where that is asked for."""
        assert isinstance(self.obs_space, ObsSpace)
        obs = jnp.asarray(obs, self.obs_space.dtype).reshape(self.obs_space.shape)  # a gray image gets a channel
        if self.obs_range is None:
            return obs
        center, reach = self.obs_range
        return (obs - center) / reach

    def _own_action(self, action: Array) -> Array:
        """From our action to gymnax's: int32 as it is, [-1, 1] to the environment's range."""
        if self.action_space.kind == "discrete":
            chex.assert_shape(action, ())
            chex.assert_type(action, int)
            return jnp.asarray(action, jnp.int32)
        chex.assert_shape(action, (self.action_space.size,))
        clipped = jnp.clip(jnp.asarray(action, jnp.float32), -1.0, 1.0)
        return jnp.asarray(self.action_center) + jnp.asarray(self.action_reach) * clipped


def strong(state: PyTree, dtypes: PyTree) -> State:
    """Give each leaf its one dtype: suites' resets hold Python numbers where their steps hold arrays."""
    return jax.tree.map(lambda x, dtype: x if _is_key(dtype) else jnp.asarray(x, dtype), state, dtypes)


def _is_key(dtype: Any) -> bool:
    """Whether a leaf holds random keys."""
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _obs_range(env: GymnaxEnvironment) -> tuple[np.ndarray, np.ndarray] | None:
    """(centre, half of the range) of real observations, as declared; None without finite bounds."""
    declared, space = env.inner.observation_space(env.params), env.obs_space
    if not isinstance(space, ObsSpace) or space.kind != "real" or not hasattr(declared, "low"):
        return None
    # In double precision: between float32's largest and its negative lies more than float32 holds.
    low, high = (np.asarray(x, np.float64) for x in (declared.low, declared.high))
    if {low.shape, high.shape} - {(), space.shape} or not (low < high).all():
        return None
    if np.abs(low).max() > LARGEST_BOUND or np.abs(high).max() > LARGEST_BOUND:
        return None
    return np.asarray((high + low) / 2, np.float32), np.asarray((high - low) / 2, np.float32)


def _adapt(name: str, inner: Any, params: Any) -> GymnaxEnvironment:
    """Read off the spaces, the time limit and the state's dtypes, without running anything. Errors: `EnvError`."""
    time_limit = _time_limit(name, params)
    action_space, low, high = _actions(name, inner.action_space(params))
    action = jax.ShapeDtypeStruct((), jnp.int32)
    if action_space.kind == "continuous":
        action = jax.ShapeDtypeStruct((action_space.size,), jnp.float32)
    key = jax.eval_shape(lambda: jr.key(0))
    with own_broadcasting():
        obs, first = jax.eval_shape(lambda k: inner.reset_env(k, params), key)
        stepped = jax.eval_shape(lambda k, s, a: inner.step_env(k, s, a, params), key, first, action)
        if len(stepped) != 5:
            raise EnvError(
                f"{name}: step_env gives {len(stepped)} values; since gymnax 1.0 they are observation, state, reward, "
                "terminated and info"
            )
        later_obs, later, reward, terminated, _ = stepped
        check_equal(name, "an observation", obs, later_obs)
        obs_space = _obs_space(name, obs, inner.observation_space(params))
        truncated = jax.eval_shape(lambda s: inner.is_truncated(s, params), later)
    for part, x in {"a reward": reward, "terminated": terminated, "is_truncated": truncated}.items():
        if getattr(x, "shape", None) != ():
            raise EnvError(f"{name}: step gives {part} of {_described(x)}, but it must be one number, of shape []")
    check_equal(name, "a state", first, later, dtypes=False)
    return GymnaxEnvironment(
        name=name,
        obs_space=obs_space,
        action_space=action_space,
        time_limit=time_limit,
        inner=inner,
        params=params,
        state_dtypes=jax.tree.map(common_dtype, first, later),
        action_center=(high + low) / 2,
        action_reach=(high - low) / 2,
        states=state_space(name, inner, params),
        goal=goal_of(name, params),
    )


def check_equal(name: str, part: str, reset: Any, step: Any, dtypes: bool = True) -> None:
    """Whether reset and step give one form of something, shapes and `dtypes`. Errors: `EnvError`."""
    if jax.tree.structure(reset) != jax.tree.structure(step):
        raise EnvError(f"{name}: reset and step give {part} of different structure: they must be the same")
    for before, after in zip(jax.tree.leaves(reset), jax.tree.leaves(step), strict=True):
        if before.shape != after.shape or (dtypes and before.dtype != after.dtype):
            raise EnvError(
                f"{name}: reset gives {part} of {_described(before)}, and step one of {_described(after)}: they must "
                "be the same"
            )


def _described(x: Any) -> str:
    """Type and shape of an array."""
    return f"{x.dtype}{list(x.shape)}" if hasattr(x, "shape") else type(x).__name__


def common_dtype(first: Any, later: Any) -> Any:
    """The dtype that holds what reset and step give."""
    return first.dtype if first.dtype == later.dtype else jnp.promote_types(first.dtype, later.dtype)


def _time_limit(name: str, params: Any) -> int:
    """Steps of an episode at most. Errors: `EnvError`."""
    limit: Any = getattr(params, TIME_LIMIT, None)
    try:
        steps = math.ceil(limit)  # BernoulliBandit's is a float
    except (TypeError, ValueError, OverflowError):
        steps = 0
    if not 1 <= steps <= INT32_MOST:
        raise EnvError(f"{name}: {TIME_LIMIT} must be 1 to {INT32_MOST:,} steps in its parameters, not {limit!r}")
    return steps


def _actions(name: str, space: Any) -> tuple[ActionSpace, np.ndarray, np.ndarray]:
    """(space, lowest, highest action [A]); empty ones where it is discrete. Errors: `EnvError`."""
    if hasattr(space, "n"):
        if space.n < 1:
            raise EnvError(f"{name}: there must be 1 action or more, not {space.n}")
        return ActionSpace("discrete", int(space.n)), np.zeros(0, np.float32), np.zeros(0, np.float32)
    shape = getattr(space, "shape", None)
    if shape is not None and len(shape) == 1 and shape[0] and jnp.issubdtype(space.dtype, jnp.floating):
        low, high = (np.broadcast_to(np.asarray(x, np.float32), shape) for x in (space.low, space.high))
        if np.isfinite(low).all() and np.isfinite(high).all() and (low <= high).all():
            return ActionSpace("continuous", shape[0]), low, high
    raise EnvError(
        f"{name}: actions must be Discrete, or a Box of floats of one dimension with finite bounds, low <= high, not "
        f"{' '.join(str(space).split())}"
    )


def _obs_space(name: str, obs: Any, declared: Any) -> ObsSpace:
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
