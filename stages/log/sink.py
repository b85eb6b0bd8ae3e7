"""Sink: a run's metrics to TensorBoard, Weights & Biases or Trackio as well, if asked. metrics.jsonl stays the truth.

Their packages are imported when a run begins, and only the one that is asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stages.cli import terminal
from stages.cli.arguments import TRACKERS, TrackerName
from stages.cli.settings_file import Settings
from stages.results.statistics import summarise
from stages.store.files import write_whole

IDENTITY = ".tracker-id"
"""File of a run's folder: what trackers know the run by, also where the folder has moved."""
SCORES = ("episode/score", "eval/score")


class Sink(NamedTuple):
    """Where numbers go: `write(step, name -> number)` after each chunk, `close` at the end."""

    write: Callable[[int, Mapping[str, float]], object]
    close: Callable[[], object]


def open_sink(kind: TrackerName, folder: Path, config: Settings, last_step: int = 0) -> Sink | None:
    """Begin to log, or go on with the same run.

    Args:
        folder: of the run; its name is the run's name, and it keeps a random id that makes it the same run.
        config: the run's arguments.
        last_step: where the run goes on; TensorBoard forgets what it was told of later steps.
    """
    if kind == "none":
        return None
    package = importlib.import_module(TRACKERS[kind])
    if kind == "tensorboard":
        writer = package.SummaryWriter(str(folder / "tensorboard"), purge_step=last_step + 1 if last_step else None)

        def write(step: int, values: Mapping[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        return Sink(write, writer.close)
    about = {
        "resume": "allow",
        "config": dict(config),
        "project": os.environ.get(f"{kind.upper()}_PROJECT", "dreamsweep"),
    }
    identity = _identity(folder)
    if kind == "wandb":
        about |= {"name": folder.name, "id": identity, "dir": str(folder)}
    else:
        about["name"] = f"{folder.name}-{identity}"  # Trackio knows runs by their names
    run = package.init(**about)
    if kind == "wandb":
        run.define_metric("*", step_metric="env_steps")  # rounds begin again at step 0, which its own step cannot
    return Sink(lambda step, values: run.log({**values, "env_steps": step}), run.finish)


def _identity(folder: Path) -> str:
    """The run's random id, which is drawn once and kept in its folder."""
    file = folder / IDENTITY
    if not file.exists():
        write_whole(file, uuid.uuid4().hex[:12].encode())
    return file.read_text()


@dataclass
class Tracker:
    """A run's sink, if it has one. Whatever goes wrong there costs the sink, and not the run."""

    kind: TrackerName = "none"
    sink: Sink | None = None

    @staticmethod
    def open(kind: TrackerName, folder: Path, config: Settings, last_step: int = 0) -> Tracker:
        """As `open_sink`."""
        tracker = Tracker(kind)
        with tracker._guarded():
            tracker.sink = open_sink(kind, folder, config, last_step)
        return tracker

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by their names, after `step` env steps of a seed."""
        with self._guarded():
            if self.sink is not None:
                self.sink.write(step, values)

    def close(self) -> None:
        """Nothing more will be written."""
        sink, self.sink = self.sink, None
        with self._guarded():
            if sink is not None:
                sink.close()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of a library that only some have, over a network perhaps
            self.sink = None
            why = " ".join(str(error).split()) or type(error).__name__
            terminal.warn(f"no more of this run goes to {self.kind} ({why}); metrics.jsonl has all")


def series(rows: Sequence[Settings], prefix: str = "", trial: str = "") -> dict[str, float]:
    """What a sink is told of a chunk: every metric's mean over seeds, and of scores also the interquartile mean with
    its interval, and each seed's own. Numbers that are not finite are left out.

    Each seed's other metrics are in metrics.jsonl: a thousand seeds would be forty thousand lines of a tracker.

    Args:
        rows: of metrics.jsonl, one for each seed.
        prefix: of all names but those of single seeds, which are told apart by their numbers.
        trial: of several, which stands before all names.
    """
    numbers: dict[str, float] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        if name in ("step", "seed", "phase", "diverged"):
            continue
        values = np.array([row.get(name, np.nan) for row in rows], np.float64)
        finite = values[np.isfinite(values)]
        if not finite.size:
            continue
        numbers[prefix + name] = float(finite.mean())
        if name in SCORES:
            all_seeds = summarise(values, [row["seed"] for row in rows], resamples=500)
            numbers[f"{prefix}{name}/iqm"] = all_seeds.iqm
            numbers[f"{prefix}{name}/iqm_low"] = all_seeds.ci_low
            numbers[f"{prefix}{name}/iqm_high"] = all_seeds.ci_high
            per_seed = zip(rows, values.tolist(), strict=True)
            numbers |= {f"seeds/{name}/{row['seed']}": value for row, value in per_seed if np.isfinite(value)}
    return {f"{trial}/{name}" if trial else name: value for name, value in numbers.items()}
