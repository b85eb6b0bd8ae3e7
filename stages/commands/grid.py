"""Grid: the results of a sweep over all of its trials: a table, a picture and one long table."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from stages.cli import terminal
from stages.cli.arguments import mode_title
from stages.figures.curves import BLUE, DPI, GREY, INK, dress, write_figure
from stages.report.compare import differing_settings, novelty_of
from stages.report.export import write_table
from stages.report.read import Result, read_runs
from stages.report.score_table import decimals, number
from stages.report.statistics import Interval, summarise
from stages.report.tables import Table, explored, markdown, print_tables
from stages.store.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CELLS = 12  # of a side of the map: beyond, its numbers are too small to read


class Cell(NamedTuple):
    """A finished trial."""

    settings: dict[str, str]
    interval: Interval  # of its seeds' final scores
    novelty: Mapping[str, float]  # medians over seeds, where states can be counted


@dataclass(frozen=True)
class Grid:
    """A sweep's trials, the best first."""

    title: str
    names: list[str]  # of the swept settings
    cells: list[Cell]
    unfinished: list[str]


def leave_grid(folder: str | os.PathLike[str]) -> None:
    """sweep.md, sweep.png and results.csv in a sweep's folder, and the table on the terminal.

    Raises:
        RunFolderError: a run cannot be read, or the disk refuses.
    """
    path, runs = Path(os.path.expanduser(folder)).absolute(), read_runs([folder])
    grid = grid_of(runs)
    table = table_of(grid)
    with terminal.printing():
        print_tables([table])
    write_whole(path / "sweep.md", markdown([table]).encode())
    write_table(path / "results.csv", runs, differing_settings(runs))
    plot_grid(path / "sweep.png", grid)
    terminal.say(f"see {path}: sweep.md, sweep.png, results.csv, and a folder of each trial")


def grid_of(runs: Sequence[Result]) -> Grid:
    """The sweep that these runs are the trials of."""
    cells, names = [], {}
    for run in runs:
        settings = run.summary.get("settings", {})
        names |= dict.fromkeys(settings)
        if run.finished and settings:
            cells.append(Cell(settings, summarise(run.per_seed("score"), run.seeds), novelty_of(run)))
    cells.sort(key=lambda cell: -cell.interval.iqm if math.isfinite(cell.interval.iqm) else math.inf)
    first, steps = runs[0], max((run.done for run in runs if run.finished), default=runs[0].done)
    title = f"{first.env}, {mode_title(first.settings)}: final scores after {steps:,} steps a seed"
    return Grid(title, list(names), cells, [run.name for run in runs if not run.finished])


def table_of(grid: Grid) -> Table:
    """A line for each trial, as the grid has them."""
    extreme = max(
        (abs(x) for c in grid.cells for x in (c.interval.worst, c.interval.best) if math.isfinite(x)), default=0
    )
    digits = max(decimals(max(extreme, 1.0)) - 1, 0)
    counted = any(cell.novelty for cell in grid.cells)
    rows = []
    for settings, interval, novelty in grid.cells:
        low, high = number(interval.ci_low, digits), number(interval.ci_high, digits)
        scores = [number(interval.iqm, digits), f"{low} to {high}", number(interval.worst, digits), str(interval.count)]
        values = [settings.get(name, "") for name in grid.names]
        rows.append([*values, *scores, *(explored(novelty) if counted else [])])
    columns = [*grid.names, "IQM", "95 % interval", "worst", "seeds"]
    columns += ["states", "goal", "solved", "rank corr."] if counted else []
    notes = [f"not finished: {', '.join(grid.unfinished)}"] if grid.unfinished else []
    return Table(grid.title, columns, rows, notes)


# ---- the picture ----------------------------------------------------------------------------------------------------


def plot_grid(path: Path, grid: Grid) -> None:
    """A map of two settings that were combined; else a panel for each setting, score against value.

    Raises:
        RunFolderError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    values = [_values(grid, name) for name in grid.names]
    complete = len(values) == 2 and math.prod(map(len, values)) == len(grid.cells)
    mapped = complete and max(map(len, values)) <= MOST_CELLS and min(map(len, values)) > 1
    panels = 1 if mapped else max(1, len(grid.names))
    wide = max(4.5, 1.3 * len(values[1]) + 2) if mapped else 4.2 * panels
    tall = max(3.2, 0.7 * len(values[0]) + 1.6) if mapped else 3.6
    figure = Figure(figsize=(wide, tall), dpi=DPI, layout="constrained", facecolor="white")
    figure.suptitle(grid.title, fontsize=10, color=INK, x=0.01, ha="left", parse_math=False, wrap=True)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    if mapped:
        _draw_map(axes[0], grid, *values)
    else:
        for panel, name in zip(axes, grid.names, strict=False):
            _draw_setting(panel, grid, name)
    write_figure(path, figure)


def _values(grid: Grid, name: str) -> list[str]:
    """A setting's values, in their order: as numbers if they are."""
    values = dict.fromkeys(cell.settings[name] for cell in grid.cells if name in cell.settings)
    return sorted(values, key=lambda value: (0, float(value), "") if _is_number(value) else (1, 0.0, value))


def _draw_map(axes: Axes, grid: Grid, rows: list[str], columns: list[str]) -> None:
    """Each combination's IQM as a colour and a number, its interval below."""
    iqm, texts = np.full((len(rows), len(columns)), np.nan), {}
    first, second = grid.names
    for cell in grid.cells:
        cell_index = rows.index(cell.settings[first]), columns.index(cell.settings[second])
        iqm[cell_index] = cell.interval.iqm
        texts[cell_index] = f"{cell.interval.iqm:.3g}\n{cell.interval.ci_low:.2g} to {cell.interval.ci_high:.2g}"
    image = axes.imshow(iqm, cmap="viridis", aspect="auto")
    for (row, column), text in texts.items():
        low, high = np.nanmin(iqm), np.nanmax(iqm)
        dark = iqm[row, column] < low + 0.6 * (high - low)
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else INK)
    axes.figure.colorbar(image, ax=axes, label="interquartile mean", shrink=0.9).ax.tick_params(labelsize=8)
    axes.set_xticks(range(len(columns)), columns, fontsize=8, parse_math=False)
    axes.set_yticks(range(len(rows)), rows, fontsize=8, parse_math=False)
    axes.set_xlabel(second, fontsize=9, color=INK)
    axes.set_ylabel(first, fontsize=9, color=INK)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _draw_setting(axes: Axes, grid: Grid, name: str) -> None:
    """Every trial's IQM and interval at its value of one setting."""
    values = _values(grid, name)
    numeric = all(map(_is_number, values))
    position = float if numeric else (lambda value: float(values.index(value)))
    for cell in grid.cells:
        x, interval = position(cell.settings[name]), cell.interval
        if math.isfinite(interval.iqm):
            axes.plot([x, x], [interval.ci_low, interval.ci_high], color=BLUE, linewidth=3, alpha=0.35)
            axes.plot([x], [interval.iqm], color=BLUE, marker="o", markersize=5)
    dress(axes)
    numbers = [float(value) for value in values] if numeric else []
    if numeric and min(numbers) > 0 and max(numbers) >= 10 * min(numbers):
        axes.set_xscale("log")
    elif numeric:
        axes.locator_params("x", nbins=5)  # a panel is narrow: more labels would touch
    else:
        axes.set_xticks(range(len(values)), values, fontsize=8, rotation=20, ha="right", parse_math=False)
    axes.set_xlabel(name, fontsize=9, color=INK)
    axes.set_ylabel("IQM of final scores, 95 % interval", fontsize=9, color=GREY)


def _is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False
