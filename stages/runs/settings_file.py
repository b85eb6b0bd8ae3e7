"""Settings files: `--config FILE` -> the words of a command line, which those that are typed come after; and what the
config.json of an older run has to say to this version."""

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.config import ConfigError

NOT_TAKEN = {"config_file", "logdir", "process", "processes", "coordinator", "distributed", "versions"}
"""What a run's config.json says of one run on one cluster."""
GONE = {
    "config.adaptive_intrinsic_scale": False,
    "config.ensemble.trunk": 0,
    "config.replay.priority": 0.0,
    "config.replay.correct": False,
    "hypers.bootstrap": 1.0,
    "hypers.intrinsic_scale_lr": 3e-4,
}
"""Settings that were measured, never helped and went (docs/exploration.md), by their paths in config.json, and what
they were in a run that left them alone: such a run is one of this version."""


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
    settings = {name: value for name, value in without_gone(settings).items() if name not in NOT_TAKEN}
    inner = settings.pop("config", {})  # as a run's config.json has them
    settings = {**settings, **inner} if isinstance(inner, Mapping) else settings
    pairs = settings.pop("env_args", {})
    words = [f"--env.{name}={value}" for name, value in (pairs.items() if isinstance(pairs, Mapping) else pairs)]
    for name, value in flat(settings).items():
        if name not in known:
            raise ConfigError(f"--config {file!r}: there is no setting {name!r}{advice(name, known)}")
        values = value if isinstance(value, list) else [value]
        words += [f"--{name.replace('_', '-')}={each}" for each in values]
    return words


def without_gone(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings as a run's config.json has them -> the same without those of GONE that the run left alone."""
    kept: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            kept[name] = without_gone(value, f"{prefix}{name}.")
        elif prefix + name not in GONE or GONE[prefix + name] != value:
            kept[name] = value
    return kept


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings as nested mappings -> by their path, such as config.replay.batch_size."""
    pairs: dict[str, Any] = {}
    for name, value in settings.items():
        pairs |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return pairs


def advice(name: str, known: Sequence[str]) -> str:
    """What to do about a name that is no setting's; it follows the line that says so."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else "; --help lists all settings"
