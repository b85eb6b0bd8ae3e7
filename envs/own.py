"""Custom environments, named "package.module:factory".

The module is imported. The factory, a function or a class in it, is called with the settings that are given. It returns
an `envs.Environment`, a gymnax environment, or (gymnax environment, parameters). The part after the colon may also be
an id that the module registers with `gymnax.register`.
"""

import contextlib
import importlib
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from numbers import Integral
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
from jax.tree_util import PyTreeDef
from jaxtyping import Array, PyTree

from envs import gymnax_suite
from envs.environment import (
    STORAGE,
    ActionSpace,
    DictSpace,
    Environment,
    Obs,
    ObsSpace,
    Space,
    State,
    Timestep,
    env_step,
    map_entries,
    obs_entries,
    zip_entries,
)
from envs.errors import EnvError, UnavailableEnvironment, UnknownEnvironment
from envs.overrides import INT32_MOST, Value, coerce_all, defaults_of
from envs.states import GymnaxEnv, GymnaxParams
from envs.suggest import did_you_mean

LARGEST_ACTION_SPACE = 65_536  # actions, or entries of a continuous one
TRIED_ROWS = 200
"""Rows in which integers are compared with their classes."""


def is_own(name: str) -> bool:
    """Whether a name has a colon, as `package.module:factory` has. `SUITE::ID` has two: ask `is_suites` first."""
    return ":" in name


def make_own(name: str, overrides: Mapping[str, Value]) -> Environment:
    """Make the environment of `name`, "package.module:factory".

    Overrides: arguments of the factory that have a plain default; of a gymnax environment its parameters, too.
    Errors: `UnknownEnvironment` without such a module or attribute; `BadOverride`; `UnavailableEnvironment` where the
    module or the factory raises; `EnvError` where what is made is no environment, or one that no agent here can act in.
    """
    module_name, _, attribute = name.partition(":")
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", module_name) or not attribute:
        raise UnknownEnvironment(f"no environment is named {name!r}; write one of your own as package.module:factory")
    module = _import(name, module_name)
    factory: Any = getattr(module, attribute, None)
    with _explained(name, module):
        if factory is None and attribute in gymnax_suite.ids():  # importing the module registered it
            return gymnax_suite.make(attribute, overrides)
        if not callable(factory):
            raise _not_a_factory(name, module, attribute)
        made: Any = factory()
        if not isinstance(made, Environment):
            build = lambda _, **arguments: _pair(name, factory(**arguments))
            _pair(name, made)
            env = gymnax_suite.build(name, build, overrides, factory)
            _check_spaces(name, env.obs_space, env.action_space)
            _check_classes(name, env)
            return env
        if overrides:
            plain = {key: value for key, value in defaults_of(factory).items() if isinstance(value, Value)}
            made = factory(**coerce_all(name, overrides, plain))
        _check(name, made)
        return made


def checked(name: str, made: object) -> Environment:
    """Check an environment, and adapt it if it is gymnax's, as `make_own` does. `name` is for messages.

    Errors: `EnvError`.
    """
    with _explained(name, None):
        if not isinstance(made, Environment):
            pair = _pair(name, made)
            made = gymnax_suite.build(name, lambda _: pair, {})
            _check_spaces(name, made.obs_space, made.action_space)
            _check_classes(name, made)
        else:
            _check(name, made)
        return made


@contextlib.contextmanager
def _explained(name: str, module: ModuleType | None) -> Iterator[None]:
    """Raise whatever the custom module raises as one line. Errors: `UnavailableEnvironment`."""
    try:
        yield
    except EnvError:
        raise
    except Exception as error:
        raise UnavailableEnvironment(f"{name} cannot be made: {_said(error, module)}") from error


def _import(name: str, module_name: str) -> ModuleType:
    """Import a module, also from the working directory: Python itself adds only the script's folder."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not error.name or not f"{module_name}.".startswith(f"{error.name}."):
            raise UnavailableEnvironment(f"{name} cannot be imported: {error}; install it") from error
        raise UnknownEnvironment(
            f"{name}: there is no module {error.name!r}; start from the folder that it is in, or install it"
        ) from error
    except Exception as error:
        raise UnavailableEnvironment(f"{name} cannot be imported: {_said(error, None)}") from error


def _not_a_factory(name: str, module: ModuleType, attribute: str) -> EnvError:
    factories = [name for name, value in vars(module).items() if callable(value)]
    advice = did_you_mean(attribute, factories, cutoff=0.6) or "name a function or class that makes the environment"
    if not hasattr(module, attribute):
        return UnknownEnvironment(f"{name}: {module.__name__} has no {attribute!r}, nor registers it; {advice}")
    kind = type(getattr(module, attribute)).__name__
    return EnvError(f"{name} is of type {kind} and cannot be called; {advice}")


def _pair(name: str, made: object) -> tuple[GymnaxEnv, GymnaxParams]:
    """A gymnax environment with its parameters, of what a factory returned. Errors: `EnvError`."""
    from gymnax.environments.environment import Environment as GymnaxEnvironment

    inner, params = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    wrapped = getattr(inner, "_env", None)
    if not isinstance(inner, GymnaxEnvironment) and isinstance(wrapped, GymnaxEnvironment):
        raise EnvError(
            f"{name} is a {type(inner).__name__}, which changes gymnax's reset and step; episodes begin anew and are "
            f"logged here without it: give the {type(wrapped).__name__} in it"
        )
    if not isinstance(inner, GymnaxEnvironment):
        raise EnvError(
            f"{name} is of type {type(inner).__name__}; it must be an envs.Environment, a gymnax environment, or "
            "(gymnax environment, parameters)"
        )
    return inner, inner.default_params if params is None else params


def _check(name: str, env: Environment) -> None:
    """Whether reset and step give what the environment's spaces say, by shapes alone. Errors: `EnvError`."""
    obs, actions = getattr(env, "obs_space", None), getattr(env, "action_space", None)
    if not isinstance(obs, ObsSpace | DictSpace) or not isinstance(actions, ActionSpace):
        raise EnvError(f"{name}: obs_space must be an envs.ObsSpace or envs.DictSpace, and action_space an ActionSpace")
    _check_spaces(name, obs, actions)
    if type(limit := getattr(env, "time_limit", None)) is not int or not 1 <= limit <= INT32_MOST:
        raise EnvError(f"{name}: time_limit must be a whole number of steps, 1 to {INT32_MOST:,}, not {limit!r}")
    key = jax.eval_shape(lambda: jax.random.key(0))
    bound = lambda key: env.with_params(env.sample_params(key))
    first = jax.eval_shape(lambda key: bound(key).reset(key), key)
    later = jax.eval_shape(
        lambda key, state, action: bound(key).step(key, state, action), key, first[0], actions.struct
    )
    truth = jnp.zeros((), jnp.bool_)
    zeros = lambda: map_entries(obs, lambda entry: jnp.zeros(entry.shape, entry.dtype))
    events = _checked_events(name, env, first[1])
    no_events = lambda: {name: jnp.zeros((), event.dtype) for name, event in events.items()}
    row = jax.eval_shape(lambda: Timestep(zeros(), jnp.zeros(()), truth, truth, truth, no_events()))
    for verb, found, wanted in (("reset", first[1], row), ("step", later[1], row), ("step", later[0], first[0])):
        if _shapes(found) != _shapes(wanted):
            part = "timestep" if wanted is row else "state"
            raise EnvError(f"{name}: {verb} gives a {part} of {_listed(found)}, but it must be {_listed(wanted)}")
    _check_classes(name, env)


def _check_spaces(name: str, space: Space, actions: ActionSpace) -> None:
    """Whether every observation and action has a size. Errors: `EnvError`."""
    for entry in obs_entries(space).values():
        shape = entry.shape if isinstance(entry.shape, tuple) else (0,)
        if entry.kind not in STORAGE or not all(isinstance(n, Integral) and n >= 1 for n in shape):
            raise EnvError(
                f"{name}: an ObsSpace must have a shape of whole numbers, a tuple of 1 or more each, and a kind of "
                f"{', '.join(STORAGE)}, not {entry}"
            )
        if entry.kind == "image" and len(shape) != 3:
            raise EnvError(f"{name}: an image must have height, width and channels, not {list(shape)}")
    if not isinstance(actions.size, Integral) or not 1 <= actions.size <= LARGEST_ACTION_SPACE:
        raise EnvError(f"{name}: an ActionSpace must have 1 to {LARGEST_ACTION_SPACE:,} actions, not {actions.size}")


def _checked_events(name: str, env: Environment, timestep: Timestep) -> dict[str, jax.ShapeDtypeStruct]:
    """The events of a timestep, each one number, with all achievements among them. Errors: `EnvError`."""
    events = getattr(timestep, "events", {})
    if not isinstance(events, dict) or any(getattr(x, "shape", None) != () for x in events.values()):
        raise EnvError(f"{name}: events must be a dictionary of names with one flag or count each, not {events}")
    if missing := sorted(set(env.achievements) - events.keys()):
        raise EnvError(
            f"{name}: {missing[0]!r} is an achievement and no event; events are {', '.join(events) or 'none'}"
        )
    return events


def _check_classes(name: str, env: Environment) -> None:
    """Whether categorical observations are within their classes, in a few episodes of random actions: an integer beyond
    them would be seen as nothing at all. Errors: `EnvError`."""
    actions = env.action_space
    if all(entry.kind != "categorical" for entry in obs_entries(env.obs_space).values()):
        return

    def play(key: Array) -> tuple[Obs, Obs]:
        key_params, key_reset, key_rows = jr.split(key, 3)
        bound = env.with_params(env.sample_params(key_params))

        def row(carry: tuple[State, Timestep], key: Array) -> tuple[tuple[State, Timestep], Obs]:
            key_action, key_step = jr.split(key)
            action = jr.uniform(key_action, actions.struct.shape, minval=-1.0)
            if actions.kind != "continuous":
                options = jnp.asarray(actions.choices or actions.size)
                action = jr.randint(key_action, actions.struct.shape, 0, options)
            state, timestep = env_step(bound, key_step, *carry, action)
            return (state, timestep), timestep.obs

        first = bound.reset(key_reset)
        obs = jax.lax.scan(row, first, jr.split(key_rows, TRIED_ROWS))[1]
        obs = jax.tree.map(lambda xs, x: jnp.append(xs, x), obs, first[1].obs)
        return jax.tree.map(jnp.min, obs), jax.tree.map(jnp.max, obs)

    for entry_name, entry, least, most in zip_entries(env.obs_space, *jax.jit(play)(jr.key(0))):
        if entry.kind == "categorical" and (least < 0 or most >= entry.classes):
            subject = f"entry {entry_name!r} of an observation" if entry_name else "an observation"
            raise EnvError(
                f"{name}: {subject} goes from {least} to {most}, but its space says 0 to {entry.classes - 1}: correct "
                "its bounds"
            )


def _shapes(tree: PyTree) -> tuple[PyTreeDef, list[object]]:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(x.shape, x.dtype) for x in leaves]


def _listed(tree: PyTree) -> str:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return ", ".join(f"{jax.tree_util.keystr(path)} {x.dtype}{list(x.shape)}".strip() for path, x in leaves)


def _said(error: Exception, module: ModuleType | None) -> str:
    """An exception in one line, with the last line of the module's own that it went through."""
    words = " ".join(str(error).split())[:300]
    file = getattr(module, "__file__", None)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    where = f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{': ' if words else ''}{words}{where}"
