"""Grid: a sweep's trials as a table, the best first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stages.cli.arguments import mode_title
from stages.report.compare import novelty_of
from stages.report.score_table import decimals, number
from stages.report.tables import NO_INTERVAL, Table, explored
from stages.results.read import Result
from stages.results.statistics import LEAST_SEEDS, ScoreSummary, summarise


class Cell(NamedTuple):
    """A finished trial."""

    settings: dict[str, str]
    summary: ScoreSummary  # of its seeds' final scores
    novelty: Mapping[str, float]  # medians over seeds, where states can be counted
    run: Result


@dataclass(frozen=True)
class Grid:
    """A sweep's trials, the best first."""

    title: str
    names: list[str]  # of the swept settings
    cells: list[Cell]
    unfinished: list[str]
    untrained: float  # mean score over seeds and trials before the first update; NaN if unknown


def grid_of(runs: Sequence[Result]) -> Grid:
    """The grid of these runs, a sweep's trials. Runs without swept settings are left out."""
    cells, names = [], {}
    for run in runs:
        settings = run.summary.get("settings", {})
        names |= dict.fromkeys(settings)
        if run.finished and settings:
            cells.append(Cell(settings, summarise(run.per_seed("score"), run.seeds), novelty_of(run), run))
    cells.sort(key=lambda cell: -cell.summary.iqm if math.isfinite(cell.summary.iqm) else math.inf)
    trials = [cell.run for cell in cells] or runs
    steps = max(run.done for run in trials)
    title = f"{trials[0].env}{_shared_mode(trials)}: final scores after {steps:,} steps a seed"
    untrained = np.concatenate([cell.run.per_seed("untrained") for cell in cells] or [np.zeros(0)])
    untrained = float(untrained[np.isfinite(untrained)].mean()) if np.isfinite(untrained).any() else math.nan
    return Grid(title, list(names), cells, [run.name for run in runs if not run.finished], untrained)


def _shared_mode(trials: Sequence[Result]) -> str:
    """The mode, and the explorer's reward, if all trials share them; starts with a comma. Empty where modes differ."""
    titles = {mode_title(run.settings) for run in trials}
    modes = {run.settings["config.mode"] for run in trials}
    return next((f", {next(iter(texts))}" for texts in (titles, modes) if len(texts) == 1), "")


def table_of(grid: Grid) -> Table:
    """A line for each trial, as the grid has them."""
    extreme = max(
        (abs(x) for c in grid.cells for x in (c.summary.worst, c.summary.best) if math.isfinite(x)), default=0
    )
    digits = max(decimals(max(extreme, 1.0)) - 1, 0)
    counted = any(cell.novelty for cell in grid.cells)
    rows = []
    for settings, summary, novelty, _ in grid.cells:
        between = f"{number(summary.ci_low, digits)} to {number(summary.ci_high, digits)}"
        between = between if summary.count >= LEAST_SEEDS else "-"
        scores = [number(summary.iqm, digits), between, number(summary.worst, digits), str(summary.count)]
        values = [settings.get(name, "") for name in grid.names]
        rows.append([*values, *scores, *(explored(novelty) if counted else [])])
    columns = [*grid.names, "IQM", "95 % interval", "worst", "seeds"]
    columns += ["states", "goal", "solved", "rank corr."] if counted else []
    notes = [f"not finished: {', '.join(grid.unfinished)}"] if grid.unfinished else []
    notes += [NO_INTERVAL] if any(cell.summary.count < LEAST_SEEDS for cell in grid.cells) else []
    return Table(grid.title, columns, rows, notes)
