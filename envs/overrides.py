"""Settings of an environment given as text or plain values, as a command line or a file gives them.

A gymnax environment has two places for settings: the arguments of its class (shapes, maps) and the fields of
its parameters (physics, time limit). A user need not know which is which.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping

from envs.errors import BadOverride
from envs.states import GymnaxEnv, GymnaxParams

Value = str | int | float | bool

TRUE, FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}
INT32_MOST = 2**31 - 1  # it is compared with counters of 32 bits
MOST_SIZE = 1000  # of a map's side and the like: arrays of its square are made at once
TIME_LIMIT = "max_steps_in_episode"


def apply_overrides(
    name: str,
    build: Callable[..., tuple[GymnaxEnv, GymnaxParams]],
    overrides: Mapping[str, Value],
    extra: Mapping[str, Value],
    factory: Callable | None = None,
) -> tuple[GymnaxEnv, GymnaxParams, dict[str, Value]]:
    """Build an environment and its parameters with `overrides`, and return them and the values of `extra` settings.

    `build(name, **arguments)` returns (environment, parameters), as `gymnax.make` does. The arguments are those of
    `factory`, or of the environment's class without one. `extra` are further settings with their defaults, which the
    caller acts on. Each override is coerced to the type of the default it replaces. Whole numbers are sizes, counts and
    durations: at least 1, or 0 where the default is 0.
    Errors: `BadOverride` for a key that is neither, or whose default is no plain value (an array, a list),
    and for a bad value.
    """
    plain, params = build(name)
    arguments = defaults_of(factory or type(plain))
    fields = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    accepted = {
        key: default for key, default in (arguments | fields | dict(extra)).items() if isinstance(default, Value)
    }
    values = coerce_all(name, overrides, accepted)
    for key, value in values.items():
        if key in arguments and type(value) is int and not key.endswith("seed") and value > MOST_SIZE:
            raise BadOverride(f"{name}: {key} must be at most {MOST_SIZE:,}, not {value:,}")
    if TIME_LIMIT in values:
        # Whole, but of the default's type: BernoulliBandit's is 100.0, and its code relies on a float.
        limit = accepted[TIME_LIMIT]
        values[TIME_LIMIT] = type(limit)(coerce(f"{name}: {TIME_LIMIT}", overrides[TIME_LIMIT], int(limit)))
    # Built anew: a default may follow from an argument, as DeepSea's time limit from its size.
    inner, params = build(name, **{k: v for k, v in values.items() if k in arguments})
    params = params.replace(**{k: v for k, v in values.items() if k in fields and k not in arguments})
    return inner, params, {k: values.get(k, default) for k, default in extra.items()}


def defaults_of(factory: Callable) -> dict[str, object]:
    """The arguments of a function or class, with their defaults."""
    return {key: argument.default for key, argument in inspect.signature(factory).parameters.items()}


def coerce_all(name: str, overrides: Mapping[str, Value], accepted: Mapping[str, Value]) -> dict[str, Value]:
    """Each override in the type of the default that it replaces. Errors: `BadOverride`."""
    for key in overrides:
        if key not in accepted:
            listing = ", ".join(f"{k} ({type(v).__name__}, {v!r})" for k, v in accepted.items()) or "none"
            raise BadOverride(f"{name} has no setting {key!r}; it accepts: {listing}")
    return {key: coerce(f"{name}: {key}", value, accepted[key]) for key, value in overrides.items()}


def coerce(label: str, value: Value, default: Value) -> Value:
    """Turn `value` into the type of `default`: "no" a bool, "1e3" an int. `label` starts the message."""
    kind = type(default)
    try:
        if kind is bool:
            text = str(value).lower()
            if text not in TRUE | FALSE:
                raise ValueError
            return text in TRUE
        if kind is str:
            return str(value)
        if isinstance(value, bool) or not math.isfinite(float(value)):
            raise ValueError
        if kind is float:
            return float(value)
        if float(value) != int(float(value)):
            raise ValueError
    except ValueError as error:
        kinds = {bool: "true or false", int: "a whole number", float: "a finite number"}
        raise BadOverride(f"{label} must be {kinds[kind]}, not {value!r}") from error
    number, least = int(float(value)), min(1, int(default))
    if not least <= number <= INT32_MOST:
        raise BadOverride(f"{label} must be a whole number from {least} to {INT32_MOST}, not {value!r}")
    return number
