"""Settings: a preset and what shall differ from it -> Config and Hypers, checked."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from envs.suggest import did_you_mean
from stages.cli.settings_file import Settings
from stages.cli.validate import validate
from stages.config import Config, ConfigError, Hypers, Mode
from stages.presets import Recipe, preset


def configure(preset_name: str = "tiny", recipe: Recipe = "default", /, **settings: Any) -> tuple[Config, Hypers]:
    """The settings of a run: those of a preset, but for what is given.

    Args:
        preset_name: a key of `stages.presets.PRESETS`.
        recipe: published gives the exploring modes Plan2Explore's published form, and `tiny` DreamerV3's divisor of
            advantages.
        settings: fields of `Config` by their names, such as `env="DeepSea-bsuite"`, `mode="mix"`, `steps=2_000`; groups
            as mappings of theirs, `model={"units": 64}`, and so `ensemble`, `replay`, `hypers` and `env_args`.

    Returns:
        (Config, Hypers), as the command line makes them of the same settings.

    Raises:
        ConfigError: an unknown name, a value of another type, or settings that cannot work together.
    """
    mode = settings.get("mode", "task")
    config, hypers = preset(preset_name, mode if mode in get_args(Mode) else "task", recipe)
    env_args = settings.pop("env_args", dict(config.env_args))
    hypers = _changed(hypers, _mapping("hypers", settings.pop("hypers", {})), "hypers.")
    settings["env_args"] = tuple(sorted((key, str(value)) for key, value in _mapping("env_args", env_args).items()))
    config = _changed(config, settings, "")
    validate(config, hypers)
    return config, hypers


def _changed(record: Any, values: Settings, prefix: str) -> Any:
    """A record of settings with these values; groups of it are given as mappings. Raises ConfigError."""
    types, changes = get_type_hints(type(record), include_extras=False), {}
    known = [field.name for field in dataclasses.fields(record)]
    for name, value in values.items():
        if name not in known:
            advice = did_you_mean(name, known) or f"choose one of {', '.join(known)}"
            raise ConfigError(f"unknown setting {prefix + name!r}; {advice}")
        before = getattr(record, name)
        if dataclasses.is_dataclass(before):
            changes[name] = _changed(before, _mapping(name, value), f"{prefix}{name}.")
        else:
            changes[name] = value if name == "env_args" else _fitting(prefix + name, value, types[name])
    return dataclasses.replace(record, **changes)


def _fitting(name: str, value: Any, wanted: Any) -> object:
    """A value of the wanted type: 2e4 will do for a whole number. Raises ConfigError."""
    if get_origin(wanted) is Literal:
        if value not in get_args(wanted):
            raise ConfigError(f"{name} must be one of {', '.join(get_args(wanted))}, not {value!r}")
        return value
    if wanted in (bool, str) or isinstance(value, bool | str):
        if type(value) is not wanted:
            raise ConfigError(f"{name} must be of type {wanted.__name__}, not {value!r}")
        return value
    try:
        number = wanted(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or (wanted is int and number != value):
        raise ConfigError(f"{name} must be a {'whole ' if wanted is int else ''}number, not {value!r}")
    return number


def _mapping(name: str, value: object) -> Settings:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} is a group of settings: give a mapping of names to values, not {value!r}")
    return value
