"""Read: a run's folder -> its scores and metrics as arrays. Whatever is missing is said in one line.

Axes: S seeds, P log points.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from envs.scales import scale_of
from stages.cli.arguments import DEFAULTS, env_title
from stages.cli.settings_file import Settings, flat
from stages.report.statistics import Floats
from stages.store.files import RunFolderError, full_path, read_json
from stages.store.folder import RunFolder, read_config

TRAINING, EVALUATION = "episode/score", "eval/score"
EXPLORED = ("visited_states", "novelty_correlation", "goal_episode", "solved_episode")
"""What summary.json has of each seed's exploring."""
SETTINGS = {name: value for name, value in DEFAULTS.items() if name not in ("seeds", "seed_start")}
"""What a run is read on top of: all but what tells a run's config.json from another file."""


@dataclass(frozen=True, eq=False)
class Result:
    """A run as its files tell it. It may be at work still, or have been stopped."""

    path: Path
    name: str  # among the runs that are looked at
    settings: Settings  # config.json, by paths such as config.replay.batch_size
    summary: Settings  # empty before the run's end
    seeds: list[int]  # [S]
    steps: NDArray[np.int64]  # [P], of one seed
    phases: list[str]  # [P]
    metrics: Mapping[str, Floats]  # name -> [S, P]; NaN where there is none

    @property
    def env(self) -> str:
        """The environment with its settings, for people."""
        return env_title(self.settings["config.env"], self._env_args.items())

    @property
    def scale(self) -> tuple[float, float] | None:
        """Lowest and highest return, where they are known."""
        return scale_of(self.settings["config.env"], self._env_args)

    @property
    def finished(self) -> bool:
        """Whether it came to its end, with a final evaluation."""
        return bool(self.summary.get("finished"))

    @property
    def planned(self) -> int:
        """Env steps of a seed that it was asked for."""
        return self.settings["config.steps"] + self.settings.get("config.adapt_steps", 0)

    @property
    def done(self) -> int:
        """Env steps of a seed so far."""
        return int(self.steps[-1]) if self.steps.size else 0

    @property
    def adapt_step(self) -> int | None:
        """The step from which mode task went on with what was explored."""
        turns = [int(a) for a, p, q in zip(self.steps, self.phases, self.phases[1:], strict=False) if p != q]
        return turns[0] if turns else None

    def per_seed(self, name: str) -> Floats:
        """A list of summary.json with a number for each seed, [S]; empty where it has none.

        While a run in rounds is at work it has those of the present round: the others' are NaN.
        """
        values, seeds = self.summary.get(name), self.summary.get("seeds")
        if values is None or seeds is None:
            return np.array(values or [], np.float64)
        numbers = dict(zip(seeds, np.array(values, np.float64), strict=True))
        return np.array([numbers.get(seed, np.nan) for seed in self.seeds])

    def curve(self, name: str) -> Floats:
        """A metric [S, P]. A score is carried forward where no episode of the seed ended since."""
        values = self.metrics.get(name, np.full((len(self.seeds), self.steps.size), np.nan))
        if name != TRAINING or not values.size:
            return values
        last = np.maximum.accumulate(np.where(np.isfinite(values), np.arange(values.shape[1]), 0), axis=1)
        started = np.logical_or.accumulate(np.isfinite(values), axis=1)
        # A seed whose lines end earlier than others' (its round is at work) is not carried to where it has not been.
        trained = np.isfinite(self.metrics["episode/count"])
        trained &= ~np.isfinite(self.metrics.get("diverged", np.full_like(values, np.nan)))
        return np.where(started & trained, np.take_along_axis(values, last, 1), np.nan)

    @property
    def diverged(self) -> dict[int, int]:
        """Seeds that diverged, with the env step at which each did."""
        steps = self.metrics.get("diverged", np.full((len(self.seeds), 1), np.nan))
        return {
            seed: int(np.nanmax(row)) for seed, row in zip(self.seeds, steps, strict=True) if np.isfinite(row).any()
        }

    @property
    def _env_args(self) -> dict[str, str]:
        return dict(self.settings.get("config.env_args") or [])


def read_runs(paths: Sequence[str | os.PathLike[str]]) -> list[Result]:
    """Runs by their folders, with names that tell them apart: as much of the path as that takes.

    Args:
        paths: of runs; of a folder that is none itself, such as a sweep's, all runs in it are read.

    Raises:
        RunFolderError: there is no run, the same one twice, or a file of it cannot be read.
    """
    if not paths:
        raise RunFolderError("no run is named; give the folders of one or more")
    runs: dict[Path, None] = {}
    for path in paths:
        inside = dict.fromkeys(runs_in(full_path(path)))
        if twice := [run for run in inside if run in runs]:
            raise RunFolderError(f"{str(twice[0])!r} is given twice; name each run once")
        runs |= inside
    folders = list(runs)
    return [_read_run(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]


def read_run(path: str | os.PathLike[str]) -> Result:
    """One run. Raises RunFolderError, also for a folder of several."""
    runs = runs_in(full_path(path))
    if len(runs) > 1:
        raise RunFolderError(f"{os.fspath(path)!r} holds {len(runs)} runs: name one, such as {str(runs[0])!r}")
    return _read_run(runs[0], runs[0].name)


def runs_in(folder: Path) -> list[Path]:
    """The folder itself, or, if it is a sweep's or holds runs, theirs; one to which links lead, once.

    Raises:
        RunFolderError: there is none.
    """
    config = read_json(folder / RunFolder.CONFIG)
    if config is not None and not (config.get("sweep") and any(folder.glob(f"*/{RunFolder.CONFIG}"))):
        return [folder]
    inside = sorted(
        {path.parent.resolve() for path in folder.glob(f"*/{RunFolder.CONFIG}")} - {folder, *folder.parents}
    )
    if not inside:
        read_config(folder)  # says what is missing
    return list(dict.fromkeys(run for path in inside for run in runs_in(path)))


def _names(folders: list[Path]) -> list[str]:
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _read_run(path: Path, name: str) -> Result:
    settings = SETTINGS | flat(read_config(path))
    try:
        seeds = list(range(settings["seed_start"], settings["seed_start"] + settings["seeds"]))
        steps, phases, metrics = _read_metrics(path / RunFolder.METRICS, seeds)
        return Result(path, name, settings, read_json(path / RunFolder.SUMMARY) or {}, seeds, steps, phases, metrics)
    except KeyError as error:
        raise RunFolderError(f"{str(path)!r} is not a run of this program: it lacks {error}") from error


def _read_metrics(path: Path, seeds: list[int]) -> tuple[NDArray[np.int64], list[str], dict[str, Floats]]:
    """`tabulated` metrics.jsonl. A last line that is written just now is left for the next time."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
        rows = [json.loads(line) for line in lines]
    except FileNotFoundError:
        rows = []
    except (OSError, ValueError) as error:
        raise RunFolderError(f"cannot read {str(path)!r}: {' '.join(str(error).split())}") from error
    return tabulated(rows, seeds)


def tabulated(rows: Sequence[Settings], seeds: Sequence[int]) -> tuple[NDArray[np.int64], list[str], dict[str, Floats]]:
    """Rows of metrics.jsonl -> steps [P], phases [P], and name -> [S, P], where NaN stands for null and for no row."""
    phase_at = {row["step"]: row["phase"] for row in rows}
    steps = sorted(phase_at)
    column_of, row_of = {step: i for i, step in enumerate(steps)}, {seed: i for i, seed in enumerate(seeds)}
    metrics: dict[str, Floats] = {}
    for row in rows:
        index = row_of[row["seed"]], column_of[row["step"]]
        for name, value in row.items():
            if name in ("step", "seed", "phase"):
                continue
            if name not in metrics:
                metrics[name] = np.full((len(seeds), len(steps)), np.nan)
            # What is not finite is null.
            metrics[name][index] = np.nan if value is None else float(value)
    return np.array(steps, np.int64), [phase_at[step] for step in steps], metrics
