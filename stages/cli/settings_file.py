"""Settings files: `--config FILE` -> words of a command line, placed before those that are typed."""

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
SWITCHES = {"checkpoint_best"}  # flags that take no value
RUN_ONLY = {"config_file", "logdir", "process", "processes", "coordinator", "distributed", "versions"}
"""What a run's config.json says of one run on one cluster."""


def words_of(file: str, known: Sequence[str]) -> list[str]:
    """The settings of a file, as flags.

    Args:
        file: .json or .toml, in UTF-8: settings by their names, groups as tables, such as
            {"preset": "tiny", "env": "DeepSea-bsuite", "env_args": {"size": 10}, "hypers": {"lr": 1e-3}}; or the
            config.json that a run leaves.
        known: the names of all settings, such as replay.train_ratio.

    Raises:
        ConfigError: the file cannot be read, or has a setting that there is none of.
    """
    suffix = Path(file).suffix.lower()
    if suffix not in (".json", ".toml"):
        raise ConfigError(f"--config {file!r}: settings are read from .json and .toml files")
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8-sig")  # Windows editors begin with a mark
        settings = tomllib.loads(text) if suffix == ".toml" else json.loads(text)
        if not isinstance(settings, Mapping):
            raise ConfigError(f"--config {file!r} must hold settings by their names, not {type(settings).__name__}")
        settings = {name: value for name, value in settings.items() if name not in RUN_ONLY}
        if isinstance(settings.get("config"), Mapping):  # as a run's config.json has them
            settings |= settings.pop("config")
        pairs = settings.pop("env_args", {})
        settings = flat(settings)
    except ConfigError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: nested without end, or ~nobody
        raise ConfigError(f"cannot read --config {file!r}: {' '.join(str(error).split())}") from error
    try:
        flags = [f"--env.{name}={value}" for name, value in dict(pairs).items()]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--config {file!r}: env_args must be values by their names, not {pairs!r}") from error
    for name, value in settings.items():
        if name not in known:
            raise ConfigError(f"--config {file!r}: there is no setting {name!r}{advice(name, known)}")
        if name in SWITCHES and isinstance(value, bool):
            flags += [f"--{name.replace('_', '-')}"] * value
            continue
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
