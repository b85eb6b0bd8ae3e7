"""Trackers: packages to which metrics can go beside metrics.jsonl (`--log`)."""

import importlib.util
from typing import Literal

from stages.config import ConfigError

Kind = Literal["none", "tensorboard", "wandb", "trackio"]
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}


def check_sink(kind: Kind) -> None:
    """Raises ConfigError if the tracker's package is not installed."""
    if kind != "none" and importlib.util.find_spec(PACKAGES[kind]) is None:
        package = PACKAGES[kind]
        raise ConfigError(f"--log {kind} needs {package}, which is not installed: python -m pip install {package}")
