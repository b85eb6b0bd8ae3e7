"""Other suites' environments through jax-envelope, behind our interface: "navix::Navix-DoorKey-8x8-v0".

jax-envelope (https://github.com/keraJLi/envelope, 0.6, Python 3.12) has one interface over the suites of `SUITES`,
which neither resets by itself nor takes a time limit for an end. It falls short in places, which are mended here:

- navix: see envs/minigrid.py.
- craftax: see envs/craftax_suite.py.
- brax: asking for the observation's size runs a reset, operation by operation.
- jumanji: an environment without a time limit of its own has none: `DEFAULT_LIMIT` is given.

Importing a suite takes seconds: it happens inside the functions.
"""

import dataclasses
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import TypeVar

from envs import craftax_suite, minigrid
from envs.envelope_adapter import Defaults, Envelope, adapt_envelope
from envs.environment import Environment
from envs.errors import BadOverride, EnvError, UnavailableEnvironment, UnknownEnvironment
from envs.gymnax_suite import RESCALE
from envs.overrides import TIME_LIMIT, Value, coerce_all, defaults_of
from envs.suggest import did_you_mean

T = TypeVar("T")

SUITES: Mapping[str, str] = {
    "navix": "navix",
    "craftax": "craftax",
    "mujoco_playground": "playground",
    "brax": "brax",
    "jumanji": "jumanji",
}
"""Name of a suite and of its package -> the extra that installs it."""
SEPARATOR = "::"
LIMITS = {"max_steps", "max_timesteps", "episode_length", "time_limit"}
"""What suites call a time limit; here it is always `TIME_LIMIT`."""
BOUNDED = {"navix", "craftax", "jumanji"}  # suites that declare bounds of observations; the others' are any numbers
DEFAULT_LIMIT = 1000  # of an environment without a time limit of its own
DOWNLOADS: Mapping[str, str] = {
    "jumanji::Sokoban-v0": "jumanji downloads its levels from huggingface.co",
}
"""Ids that are made from a download, with what it is."""
MENAGERIE = "mujoco_playground downloads its robots, the MuJoCo Menagerie, from github.com"


def is_suites(name: str) -> bool:
    """Whether a name says which suite it is from, SUITE::ID."""
    return SEPARATOR in name


def suite_ids(suite: str) -> tuple[str, ...]:
    """All ids of an installed suite, SUITE::ID. Errors: `EnvError` where it is not known or not installed."""
    _check_installed(suite, suite)
    return _quietly(lambda: importlib.import_module("envelope").registered_environments(suite))


def make_envelope(name: str, overrides: Mapping[str, Value]) -> Environment:
    """Make the environment SUITE::ID.

    Overrides: settings of the suite's factory, parameters or configuration that have a plain default, the time limit
    `max_steps_in_episode`, and `rescale_observations` where real observations have finite bounds.
    Errors: `UnknownEnvironment`; `UnavailableEnvironment` where the suite is not installed or fails, for one where a
    download fails; `BadOverride`; `EnvError` where no agent here can act in it.
    """
    suite, _, own_id = name.partition(SEPARATOR)
    _check_installed(name, suite)
    known = suite_ids(suite)
    if name not in known:
        advice = did_you_mean(name, known) or f"{suite} has {', '.join(known)}"
        raise UnknownEnvironment(f"no environment is named {name!r}; {advice}")
    try:
        return _quietly(lambda: _make(name, suite, own_id, overrides))
    except EnvError:
        raise
    except Exception as error:  # another's program: it may be anything
        words = " ".join(str(error).split())[:300]
        why = f"{type(error).__name__}: {words}" if words else type(error).__name__
        fetched = DOWNLOADS.get(name, MENAGERIE if suite == "mujoco_playground" and "git" in words else "")
        if fetched:
            raise UnavailableEnvironment(f"{name} cannot be used: {fetched}, which failed ({why})") from error
        if overrides:
            raise BadOverride(f"{suite} cannot make {name} with {dict(overrides)}: {why}") from error
        raise UnavailableEnvironment(f"{name} cannot be made: {why}") from error


def _check_installed(name: str, suite: str) -> None:
    """Errors: `UnknownEnvironment`, `UnavailableEnvironment`."""
    if suite == "gymnax":
        raise UnknownEnvironment(f"gymnax's ids are given without a suite: {name.partition(SEPARATOR)[2]!r}")
    if suite not in SUITES:
        advice = did_you_mean(suite, SUITES) or f"it is one of {', '.join(SUITES)}"
        raise UnknownEnvironment(f"{name}: no suite is named {suite!r}; {advice}")
    command = f"pip install -e '.[{SUITES[suite]}]'"
    if sys.version_info < (3, 12):
        version = ".".join(str(part) for part in sys.version_info[:3])
        raise UnavailableEnvironment(
            f"{name} needs Python 3.12 or newer, and this is {version}: make an environment with it, then {command}"
        )
    if importlib.util.find_spec("envelope") is None or importlib.util.find_spec(suite) is None:
        raise UnavailableEnvironment(f"{name} needs the extra {SUITES[suite]!r}, which is not installed: {command}")


def _quietly(work: Callable[[], T]) -> T:
    """What `work` gives; suites warn of their own dependencies and of what is on purpose here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return work()


def _make(name: str, suite: str, own_id: str, overrides: Mapping[str, Value]) -> Environment:
    backend = BACKENDS[suite]
    settings, limit = backend.defaults(own_id)
    plain = {key: value for key, value in settings.items() if isinstance(value, Value) and key not in LIMITS}
    accepted = {TIME_LIMIT: limit or DEFAULT_LIMIT} | plain
    if suite in BOUNDED:
        accepted[RESCALE] = False
    values = coerce_all(name, overrides, accepted)
    time_limit, rescale = int(values.pop(TIME_LIMIT, accepted[TIME_LIMIT])), values.pop(RESCALE, False)
    inner = importlib.import_module("envelope").TruncationWrapper(
        env=backend.create(own_id, values, time_limit), max_steps=time_limit
    )
    env = adapt_envelope(name, inner, time_limit, bounded=suite in BOUNDED, rescale=bool(rescale))
    if suite == "navix":
        return minigrid.with_states(minigrid.without_pictures(env), own_id)
    return craftax_suite.with_achievements(env, own_id) if suite == "craftax" else env


# ---- the suites ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Backend:
    """How a suite's environment is made; ids are without the suite."""

    defaults: Callable[[str], Defaults]  # id -> (settings with their defaults, time limit)
    create: Callable[[str, dict[str, Value], int], Envelope]  # (id, settings, time limit) -> envelope.Environment


def _envelope(suite: str) -> type[Envelope]:
    """envelope's class for a suite: NavixEnvelope for navix."""
    name = "".join(word.capitalize() for word in suite.split("_")) + "Envelope"
    return getattr(importlib.import_module(f"envelope.adapters.{suite}_envelope"), name)


def _playground_defaults(own_id: str) -> Defaults:
    config = importlib.import_module("mujoco_playground").registry.get_default_config(own_id)
    return dict(config.items()), int(config.episode_length)


def _brax_defaults(own_id: str) -> Defaults:
    return defaults_of(importlib.import_module("brax.envs")._envs[own_id]), 1000  # brax.envs.create's own


def _jumanji_defaults(own_id: str) -> Defaults:
    registration = importlib.import_module("jumanji.registration")
    spec = registration._REGISTRY[own_id]
    settings = defaults_of(registration.load(spec.entry_point)) | spec.kwargs
    limit = getattr(importlib.import_module("jumanji").make(own_id), "time_limit", None)
    return settings, None if limit is None else int(limit)


def _plainly(suite: str) -> Callable[[str, dict[str, Value], int], Envelope]:
    """How a suite is made that takes its settings as they are."""
    return lambda own_id, values, _: _envelope(suite).from_name(own_id, env_kwargs=values)


BACKENDS: Mapping[str, Backend] = {
    "navix": Backend(minigrid.minigrid_defaults, minigrid.create_minigrid),
    "craftax": Backend(craftax_suite.craftax_defaults, craftax_suite.create_craftax),
    "mujoco_playground": Backend(_playground_defaults, _plainly("mujoco_playground")),
    "brax": Backend(_brax_defaults, _plainly("brax")),
    "jumanji": Backend(_jumanji_defaults, _plainly("jumanji")),
}
