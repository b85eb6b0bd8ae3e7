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
from collections.abc import Callable, Mapping
from typing import Any, final

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from envs import deep_sea
from envs.entries import Actions, continuous_actions, discrete_actions
from envs.environment import ActionSpace, Environment, ObsSpace, Space, State, StateSpace, Timestep
from envs.errors import BadOverride, EnvError, UnavailableEnvironment
from envs.gymnax_spaces import (
    LARGEST_BOUND,
    check_equal,
    common_dtype,
    describe_array,
    obs_space_of,
    time_limit_of,
)
from envs.overrides import Value, apply_overrides
from envs.states import GymnaxEnv, GymnaxParams, GymnaxSpace, goal_of, state_space

UNAVAILABLE: Mapping[str, str] = {
    "MNISTBandit-bsuite": "gymnax downloads the MNIST images to make it, and nothing is downloaded here",
}
# Settings that gymnax has not, with their defaults; RESCALE is offered where observations have finite bounds.
OWN_SETTINGS: Mapping[str, Mapping[str, Value]] = {"DeepSea-bsuite": {deep_sea.SETTING: False}}
RESCALE = "rescale_observations"
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
    make: Callable[..., tuple[GymnaxEnv, GymnaxParams]],
    overrides: Mapping[str, Value],
    factory: Callable | None = None,
) -> Environment:
    """What `make(name, **arguments)`, (gymnax environment, parameters), is behind our interface.

    `factory`: whose arguments they are, see `apply_overrides`. Errors: `BadOverride`; `EnvError` where its spaces are
    none that an agent here can have.
    """
    if not overrides:
        return _adapt(name, *make(name))
    try:
        extra = dict(OWN_SETTINGS.get(name, {}))
        if _obs_range(_adapt(name, *make(name))) is not None:
            extra[RESCALE] = False
        inner, params, extra = apply_overrides(name, make, overrides, extra, factory)
        env = _adapt(name, inner, params)
        if extra.get(RESCALE):
            env = dataclasses.replace(env, obs_range=_obs_range(env))
        return deep_sea.per_seed(env) if extra.get(deep_sea.SETTING) else env
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
    inner: GymnaxEnv  # gymnax's environment, with its own methods for pictures
    params: GymnaxParams  # gymnax's parameters
    state_dtypes: PyTree  # one dtype for each leaf of the state
    act: Actions  # how our action becomes gymnax's
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
        own_action = self.act(action)
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


def strong(state: PyTree, dtypes: PyTree) -> State:
    """Give each leaf its one dtype: suites' resets hold Python numbers where their steps hold arrays."""
    return jax.tree.map(lambda x, dtype: x if _is_key(dtype) else jnp.asarray(x, dtype), state, dtypes)


def _is_key(dtype: Any) -> bool:
    """Whether a leaf holds random keys."""
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)


def actions_of(name: str, space: GymnaxSpace) -> Actions:
    """How our action becomes one of a gymnax space's. Errors: `EnvError`."""
    if hasattr(space, "n"):
        return discrete_actions(name, np.asarray(space.n), np.dtype(np.int32))
    shape = getattr(space, "shape", None)
    if shape is not None and len(shape) == 1 and shape[0] and jnp.issubdtype(space.dtype, jnp.floating):
        low, high = (np.broadcast_to(np.asarray(x, np.float32), shape) for x in (space.low, space.high))
        return continuous_actions(name, low, high, np.dtype(np.float32))
    raise EnvError(
        f"{name}: actions must be Discrete, or a Box of floats of one dimension with finite bounds, low <= high, not "
        f"{' '.join(str(space).split())}"
    )


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


def _adapt(name: str, inner: GymnaxEnv, params: GymnaxParams) -> GymnaxEnvironment:
    """Read off the spaces, the time limit and the state's dtypes, without running anything. Errors: `EnvError`."""
    time_limit = time_limit_of(name, params)
    act = actions_of(name, inner.action_space(params))
    action = jax.ShapeDtypeStruct(act.shape, act.dtype)
    key = jax.eval_shape(lambda: jr.key(0))
    with own_broadcasting():
        obs, first = jax.eval_shape(lambda k: inner.reset_env(k, params), key)
        stepped = jax.eval_shape(lambda k, s, a: inner.step_env(k, s, a, params), key, first, action)
        if len(stepped) != 5:
            raise EnvError(
                f"{name}: step_env gives {len(stepped)} values; since gymnax 1.0 they are observation, state, reward, "
                "terminated and info"
            )
        next_obs, following, reward, terminated, _ = stepped
        check_equal(name, "an observation", obs, next_obs)
        obs_space = obs_space_of(name, obs, inner.observation_space(params))
        truncated = jax.eval_shape(lambda s: inner.is_truncated(s, params), following)
    for part, x in {"a reward": reward, "terminated": terminated, "is_truncated": truncated}.items():
        if getattr(x, "shape", None) != ():
            raise EnvError(f"{name}: step gives {part} of {describe_array(x)}, but it must be one number, of shape []")
    check_equal(name, "a state", first, following, dtypes=False)
    return GymnaxEnvironment(
        name=name,
        obs_space=obs_space,
        action_space=act.space,
        time_limit=time_limit,
        inner=inner,
        params=params,
        state_dtypes=jax.tree.map(common_dtype, first, following),
        act=act,
        states=state_space(name, inner, params),
        goal=goal_of(name, params),
    )
