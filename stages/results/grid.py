"""Grid: what a sweep has found: a table, a picture and one long table, over all of its trials.

With `--halving` trials stop at rungs: their scores are of different steps, which stand beside each, and those that came
further stand first.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.results.compare import differing_settings, novelty_of
from stages.results.export import write_table
from stages.results.read import Result, read_runs
from stages.results.rungs_figure import Climb, draw_climbs, shade
from stages.results.tables import Table, explored, markdown, print_tables
from stages.runs import terminal
from stages.runs.figures import DPI, GREY, INK, decimals, dress, number, write_figure
from stages.runs.folder import write_whole
from stages.runs.statistics import Interval, summarise

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CELLS = 12  # of a side of the map: beyond, its numbers are too small to read


class Cell(NamedTuple):
    """A trial that has come to its end, or was stopped."""

    settings: dict[str, str]
    interval: Interval  # of its seeds' last scores
    novelty: Mapping[str, float]  # medians over seeds, where states can be counted
    climb: Climb  # with `--halving`, its rungs; and its end


@dataclass(frozen=True)
class Grid:
    """A sweep's trials; those that came furthest first, of them the best."""

    title: str
    names: list[str]  # of the swept settings
    cells: list[Cell]
    unfinished: list[str]

    @property
    def halved(self) -> bool:
        """Whether trials were stopped at rungs."""
        return any(not cell.climb.finished for cell in self.cells)

    @property
    def last(self) -> int:
        """The last rung, from 0."""
        return max((len(cell.climb.steps) for cell in self.cells), default=1) - 1


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
        if (run.finished or run.stopped) and settings:
            cells.append(Cell(settings, summarise(run.per_seed("score"), run.seeds), novelty_of(run), climb_of(run)))
    order = lambda cell: -cell.interval.iqm if math.isfinite(cell.interval.iqm) else math.inf
    cells.sort(key=lambda cell: (-len(cell.climb.steps), order(cell)))
    first, most = runs[0], max((run.done for run in runs if run.finished), default=runs[0].done)
    what = f"final scores after {most:,} steps a seed"
    if any(run.stopped for run in runs):
        what = f"scores after at most {most:,} steps a seed, by halving"
    title = f"{first.env}, {first.settings['config.mode']}: {what}"
    return Grid(title, list(names), cells, [run.name for run in runs if not run.finished and not run.stopped])


def climb_of(run: Result) -> Climb:
    """The run's evaluations at its rungs, and at its end."""
    steps, scores = run.rungs
    ends = [(run.done, run.per_seed("score"))] if run.finished else []
    mean = lambda values: float(np.mean(values[np.isfinite(values)])) if np.isfinite(values).any() else math.nan
    way = [*zip(steps, scores, strict=True), *ends]
    name = ",".join(f"{key}={value}" for key, value in run.summary.get("settings", {}).items())
    return Climb(name, [step for step, _ in way], [mean(values) for _, values in way], run.finished)


def table_of(grid: Grid) -> Table:
    """A line for each trial, as the grid has them."""
    extreme = max(
        (abs(x) for c in grid.cells for x in (c.interval.worst, c.interval.best) if math.isfinite(x)), default=0
    )
    places = max(decimals(max(extreme, 1.0)) - 1, 0)
    counted = any(cell.novelty for cell in grid.cells)
    rows = []
    for settings, interval, novelty, climb in grid.cells:
        low, high = number(interval.ci_low, places), number(interval.ci_high, places)
        scores = [number(interval.iqm, places), f"{low} to {high}", number(interval.worst, places), str(interval.count)]
        way = [_until(climb), number(climb.scores[-1], places)] if grid.halved else []
        own = [settings.get(name, "") for name in grid.names]
        rows.append([*own, *way, *scores, *(explored(novelty) if counted else [])])
    columns = [*grid.names, *(["steps", "mean"] if grid.halved else []), "IQM", "95 % interval", "worst", "seeds"]
    columns += ["states", "goal", "solved", "rank corr."] if counted else []
    notes = [f"not finished: {', '.join(grid.unfinished)}"] if grid.unfinished else []
    return Table(grid.title, columns, rows, notes + _saved(grid))


def _until(climb: Climb) -> str:
    """The steps that a trial was trained for, in words."""
    return f"{climb.steps[-1]:,}" + ("" if climb.finished else " (stopped)")


def _saved(grid: Grid) -> list[str]:
    """What halving has saved, in a line."""
    if not grid.halved:
        return []
    ends = [cell.climb.steps[-1] for cell in grid.cells]
    stopped = [cell for cell in grid.cells if not cell.climb.finished]
    at = " or ".join(f"{step:,}" for step in sorted({cell.climb.steps[-1] for cell in stopped}))
    share = 1 - sum(ends) / (max(ends) * len(ends))
    return [
        f"--halving stopped {len(stopped)} of {len(ends)} trials after {at} steps a seed, by their mean score then; "
        f"scores of different steps do not compare. {share:.0%} of all agent-steps were not trained"
    ]


# ---- the picture ----------------------------------------------------------------------------------------------------


def plot_grid(path: Path, grid: Grid) -> None:
    """A map of two settings that were combined; else a panel for each setting, score against value. Where trials were
    stopped at rungs, their way there first.

    Raises:
        RunFolderError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    values = [_values(grid, name) for name in grid.names]
    whole = len(values) == 2 and math.prod(map(len, values)) == len(grid.cells)
    mapped = whole and max(map(len, values)) <= MOST_CELLS and min(map(len, values)) > 1
    panels = 1 if mapped else max(1, len(grid.names))
    wide = max(4.5, 1.3 * len(values[1]) + 2) if mapped else 4.2 * panels
    tall = max(3.2, 0.7 * len(values[0]) + 1.6) if mapped else 3.6
    beside = [5.0 / (wide / panels)] if grid.halved else []
    if grid.halved:
        wide, tall = wide + 5.0, max(tall, 3.8)
    figure = Figure(figsize=(wide, tall), dpi=DPI, layout="constrained", facecolor="white")
    figure.suptitle(grid.title, fontsize=10, color=INK, x=0.01, ha="left", parse_math=False, wrap=True)
    widths = {"width_ratios": [*beside, *[1.0] * panels]}
    first, *axes = figure.subplots(1, len(beside) + panels, squeeze=False, gridspec_kw=widths)[0]
    if grid.halved:
        draw_climbs(first, [cell.climb for cell in grid.cells])
    else:
        axes = [first, *axes]
    if mapped:
        _draw_map(axes[0], grid, *values)
    else:
        for each, name in zip(axes, grid.names, strict=False):
            _draw_setting(each, grid, name)
    write_figure(path, figure)


def _values(grid: Grid, name: str) -> list[str]:
    """A setting's values, in their order: as numbers if they are."""
    found = dict.fromkeys(cell.settings[name] for cell in grid.cells if name in cell.settings)
    return sorted(found, key=lambda value: (0, float(value), "") if _is_number(value) else (1, 0.0, value))


def _draw_map(axes: Axes, grid: Grid, rows: list[str], columns: list[str]) -> None:
    """Each combination's IQM as a colour and a number, its interval below; the colour says how far it was trained where
    some were stopped."""
    iqm, words = np.full((len(rows), len(columns)), np.nan), {}
    first, second = grid.names
    for cell in grid.cells:
        at = rows.index(cell.settings[first]), columns.index(cell.settings[second])
        iqm[at] = cell.interval.iqm
        words[at] = f"{cell.interval.iqm:.3g}\n{cell.interval.ci_low:.2g} to {cell.interval.ci_high:.2g}"
    if grid.halved:
        _draw_rungs(axes, grid, rows, columns, words)
    else:
        _draw_scores(axes, iqm, words)
    axes.set_xticks(range(len(columns)), columns, fontsize=8, parse_math=False)
    axes.set_yticks(range(len(rows)), rows, fontsize=8, parse_math=False)
    axes.set_xlabel(second, fontsize=9, color=INK)
    axes.set_ylabel(first, fontsize=9, color=INK)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


Words = Mapping[tuple[int, int], str]


def _draw_rungs(axes: Axes, grid: Grid, rows: list[str], columns: list[str], words: Words) -> None:
    """How far each combination was trained as a colour, and what it scored there in words."""
    colours = np.ones((len(rows), len(columns), 3))
    first, second = grid.names
    for cell in grid.cells:
        at, climb = (rows.index(cell.settings[first]), columns.index(cell.settings[second])), cell.climb
        colours[at] = shade(len(climb.steps) - 1, grid.last)
        text = f"{words[at]}\n{'after' if climb.finished else 'stopped at'} {climb.steps[-1]:,}"
        colour = "white" if colours[at].mean() < 0.6 else INK
        axes.text(at[1], at[0], text, ha="center", va="center", fontsize=7.5, color=colour)
    axes.imshow(colours, aspect="auto")
    axes.set_title("last IQM and its 95 % interval; the darker, the longer trained", fontsize=8, color=GREY, loc="left")


def _draw_scores(axes: Axes, iqm: NDArray[np.float64], words: Words) -> None:
    """The scores as colours, with what is said of each."""
    image = axes.imshow(iqm, cmap="viridis", aspect="auto")
    for (row, column), text in words.items():
        low, high = np.nanmin(iqm), np.nanmax(iqm)
        dark = iqm[row, column] < low + 0.6 * (high - low)
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else INK)
    axes.figure.colorbar(image, ax=axes, label="interquartile mean", shrink=0.9).ax.tick_params(labelsize=8)


def _draw_setting(axes: Axes, grid: Grid, name: str) -> None:
    """Every trial's IQM and interval at its value of one setting; the longer trained, the darker where some stopped."""
    values = _values(grid, name)
    numeric = all(map(_is_number, values))
    at = float if numeric else (lambda value: float(values.index(value)))
    for cell in grid.cells:
        x, interval = at(cell.settings[name]), cell.interval
        if math.isfinite(interval.iqm):
            colour = shade(len(cell.climb.steps) - 1, grid.last)
            axes.plot([x, x], [interval.ci_low, interval.ci_high], color=colour, linewidth=3, alpha=0.35)
            axes.plot([x], [interval.iqm], color=colour, marker="o" if cell.climb.finished else "x", markersize=5)
    dress(axes)
    numbers = [float(value) for value in values] if numeric else []
    if numeric and min(numbers) > 0 and max(numbers) >= 10 * min(numbers):
        axes.set_xscale("log")
    elif numeric:
        axes.locator_params("x", nbins=5)  # a panel is narrow: more labels would touch
    else:
        axes.set_xticks(range(len(values)), values, fontsize=8, rotation=20, ha="right", parse_math=False)
    axes.set_xlabel(name, fontsize=9, color=INK)
    when = "last" if grid.halved else "final"
    if grid.halved:
        axes.set_title("the darker, the longer trained", fontsize=8, color=GREY, loc="left")
    axes.set_ylabel(f"IQM of {when} scores, 95 % interval", fontsize=9, color=GREY)


def _is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False
