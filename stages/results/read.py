"""Read: a run's folder -> its scores and metrics as arrays. Errors name in one line what is missing.

Axes: S seeds, P log points.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypedDict

import msgspec
import numpy as np
from numpy.typing import NDArray

from envs.scales import scale_of
from stages.cli.arguments import DEFAULTS, env_title
from stages.cli.settings_file import JsonObject, Settings, flat
from stages.results.statistics import Floats
from stages.store.files import RunFolderError, full_path, parse_json, printable, read_json
from stages.store.folder import RunFolder, read_config

TRAINING, EVALUATION = "episode/score", "eval/score"
EXPLORED = ("visited_states", "novelty_correlation", "goal_episode", "solved_episode")
"""What summary.json has of each seed's exploring."""
PER_SEED = (
    *("seeds", "score", "zero_shot", "untrained", "training_score", "evaluation_score", "best_score", "best_step"),
    *("visited_states", "visited_pairs", "novelty_correlation", "goal_episode", "solved_episode"),
)
"""What summary.json has of each seed, in lists."""
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Number = Annotated[float, msgspec.Meta(ge=-(2.0**128), le=2.0**128)]
"""What a 32-bit float can hold: a file may have larger numbers, whose sums would be infinite."""
Numbers = list[Number | None] | None


class RowHead(TypedDict):
    """The keys that every row of metrics.jsonl has; the values of all other keys are numbers or null."""

    step: Count
    seed: Count
    phase: str


class Summary(TypedDict, total=False):
    """What is read of summary.json."""

    finished: bool
    seeds: list[Count]
    settings: dict[str, str]
    diverged: dict[Annotated[str, msgspec.Meta(pattern="^[0-9]+$")], int]
    score: Numbers
    zero_shot: Numbers
    untrained: Numbers
    training_score: Numbers
    evaluation_score: Numbers
    best_score: Numbers
    best_step: Numbers
    states: Count | None
    visited_states: Numbers
    visited_pairs: Numbers
    novelty_correlation: Numbers
    goal_episode: Numbers
    solved_episode: Numbers
    events: dict[str, list[Number | None]]
    crafter_score: list[Number | None]
    wall_seconds: Number
    compile_seconds: Number
    peak_memory_mb: Number


@dataclass(frozen=True, eq=False)
class Result:
    """A run as read from its files. It may still be training, or have been stopped."""

    path: Path
    name: str  # among the runs that are looked at
    settings: Settings  # config.json, by paths such as config.replay.batch_size
    summary: Settings  # of the names of Summary, at least; empty before the first log point
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
        """Rows that each seed was asked to collect."""
        return self.settings["config.steps"] + self.settings.get("config.adapt_steps", 0)

    @property
    def done(self) -> int:
        """Rows that each seed has collected."""
        return int(self.steps[-1]) if self.steps.size else 0

    @property
    def adapt_step(self) -> int | None:
        """The step at which mode task began, after exploring."""
        turns = [int(a) for a, p, q in zip(self.steps, self.phases, self.phases[1:], strict=False) if p != q]
        return turns[0] if turns else None

    def per_seed(self, name: str) -> Floats:
        """A list of summary.json with a number for each seed, [S]; empty where it has none.

        While a run in rounds trains, the list has the seeds of the current round; those of other rounds are NaN.
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
        # A seed whose lines end earlier than others', since its round is training, is not carried beyond its last line.
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
    """Read runs, each with the shortest end of its path that distinguishes it as its name.

    Args:
        paths: folders of runs. In a folder that is no run itself, such as a sweep's, all runs are read.

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
    """The folder if it is a run, else all runs in it. A run that several links lead to is in the list once.

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
    config = read_config(path)
    settings = DEFAULTS | flat(config)
    settings |= {key: printable(value) for key, value in settings.items() if isinstance(value, str)}
    seeds = list(range(config["seed_start"], config["seed_start"] + config["seeds"]))
    rows = read_metrics(path / RunFolder.METRICS)
    if foreign := {row["seed"] for row in rows} - set(seeds):
        file = str(path / RunFolder.METRICS)
        raise RunFolderError(f"cannot read {file!r} (it has seed {min(foreign)}, and config.json has not)")
    return Result(path, printable(name), settings, read_summary(path, seeds), seeds, *tabulated(rows, seeds))


def read_summary(folder: Path, seeds: Sequence[int]) -> Settings:
    """The summary.json of a run of these seeds; empty before its first log point. Raises RunFolderError."""
    path = folder / RunFolder.SUMMARY
    summary: Settings = read_json(path, Summary) or {}
    if not summary:
        return summary
    count = len(summary.get("seeds", seeds))
    lengths = {name: len(summary[name]) for name in PER_SEED if summary.get(name) is not None}
    if wrong := [name for name, length in lengths.items() if length != count]:
        raise RunFolderError(f"cannot read {str(path)!r} ({wrong[0]} is of {lengths[wrong[0]]} seeds, and not {count})")
    if summary.get("states") is None and lengths.keys() & set(EXPLORED):
        raise RunFolderError(f"cannot read {str(path)!r} (it lacks the number of states)")
    if summary.get("finished") and "score" not in lengths:
        raise RunFolderError(f"cannot read {str(path)!r} (it is of a finished run, and lacks the scores)")
    return summary


def read_metrics(path: Path) -> list[JsonObject]:
    """The rows of metrics.jsonl. A last line that is not complete yet is left out. Raises RunFolderError."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise RunFolderError(f"cannot read {str(path)!r} ({error.strerror})") from error
    rows = [parse_json(line, f"{path}, line {i}") for i, line in enumerate(lines, 1)]
    for i, row in enumerate(rows, 1):
        try:
            head = msgspec.convert(row, RowHead)
            msgspec.convert({name: value for name, value in row.items() if name not in head}, dict[str, Number | None])
        except ValueError as error:
            raise RunFolderError(f"cannot read {str(path)!r}, line {i} ({error})") from error
    return rows


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
