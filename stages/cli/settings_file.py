"""Settings files: `--config FILE` -> the words of a command line, which those that are typed come after."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from envs.suggest import did_you_mean
from stages.config import ConfigError

JsonObject = dict[str, Any]
"""What a file of JSON holds."""
Settings = Mapping[str, Any]
"""Settings by their paths, such as config.replay.batch_size, with JSON's values."""
RUN_ONLY = {"config_file", "logdir", "process", "processes", "coordinator", "distributed", "versions"}
"""What a run's config.json says of one run on one cluster."""


def words_of(file: str, known: Sequence[str]) -> list[str]:
    """The settings of a file, as flags.

    Args:
        file: JSON or, if it is named .toml, TOML: settings by their names, groups as tables, such as
            {"preset": "tiny", "env": "DeepSea-bsuite", "env_args": {"size": 10}, "hypers": {"lr": 1e-3}}; or the
            config.json that a run leaves.
        known: the names of all settings, such as replay.train_ratio.

    Raises:
        ConfigError: the file cannot be read, or has a setting that there is none of.
    """
    try:
        text = Path(file).expanduser().read_text()
        settings = tomllib.loads(text) if file.endswith(".toml") else json.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read --config {file!r}: {' '.join(str(error).split())}") from error
    if not isinstance(settings, Mapping):
        raise ConfigError(f"--config {file!r} must hold settings by their names, not {type(settings).__name__}")
    settings = {name: value for name, value in settings.items() if name not in RUN_ONLY}
    inner = settings.pop("config", {})  # as a run's config.json has them
    settings = {**settings, **inner} if isinstance(inner, Mapping) else settings
    pairs = settings.pop("env_args", {})
    flags = [f"--env.{name}={value}" for name, value in (pairs.items() if isinstance(pairs, Mapping) else pairs)]
    for name, value in flat(settings).items():
        if name not in known:
            raise ConfigError(f"--config {file!r}: there is no setting {name!r}{advice(name, known)}")
        values = value if isinstance(value, list) else [value]
        flags += [f"--{name.replace('_', '-')}={item}" for item in values]
    return flags


def flat(settings: Settings, prefix: str = "") -> JsonObject:
    """Nested mappings -> values by their path, such as config.replay.batch_size."""
    pairs: JsonObject = {}
    for name, value in settings.items():
        pairs |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return pairs


def advice(name: str, known: Sequence[str]) -> str:
    """What to do about an unknown setting, to follow the line that names it."""
    return f"; {did_you_mean(name, known) or '--help lists all settings'}"
