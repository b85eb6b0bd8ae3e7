"""The picture of a sweep: final scores over the settings, and a learning curve of each trial.

Host side only; matplotlib is imported where it draws.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.figures.look import (
    BLUE,
    DASHED,
    GREY,
    INK,
    PICTURE_WIDTH,
    dress,
    dress_steps,
    legend_below,
    new_figure,
    wrapped,
    write_figure,
)
from stages.report.grid import Grid
from stages.results.read import EVALUATION, TRAINING
from stages.results.statistics import LEAST_SEEDS, iqm_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import ListedColormap, Normalize

MOST_CELLS = 12  # on a side of the map: with more its numbers are too small to read
MOST_NAMES = 8  # of trials that are named beside their curves
BRIGHTEST = 0.88  # of the colours' range: brighter ones cannot be seen on white
STYLES = ("-", (0, (4, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))  # of curves that may have one colour


def plot_grid(path: Path, grid: Grid) -> None:
    """A map of two settings that were combined, else a panel for each setting; below, each trial's learning curve.

    Colours are interquartile means of final scores, and the untrained score is marked on their scale.

    Raises:
        RunFolderError: the file cannot be written.
    """
    values = [_values(grid, name) for name in grid.names]
    complete = len(values) == 2 and math.prod(map(len, values)) == len(grid.cells)
    mapped = complete and max(map(len, values)) <= MOST_CELLS and min(map(len, values)) > 1
    panels = 1 if mapped else max(1, len(grid.names))
    heights = [max(2.4, 0.5 * len(values[0]) + 1.0) if mapped else 2.9, 2.9]
    figure = new_figure(PICTURE_WIDTH, sum(heights) + 0.4)
    figure.suptitle(wrapped(grid.title, 100), fontsize=11, color=INK, x=0.01, ha="left", parse_math=False)
    above, below = np.asarray(figure.subfigures(2, 1, height_ratios=heights))
    axes, scale = above.subplots(1, panels, squeeze=False)[0], _scale(grid)
    if mapped:
        _draw_map(axes[0], grid, scale, *values)
    else:
        for panel, name in zip(axes, grid.names, strict=False):
            _draw_setting(panel, grid, name)
    curves = below.subplots()
    _draw_curves(curves, grid, scale)
    legend_below(figure, *curves.get_legend_handles_labels())
    write_figure(path, figure)


def _scale(grid: Grid) -> Normalize:
    """Colours from the lowest to the highest of the trials' scores and the untrained score, which may lie between."""
    from matplotlib.colors import Normalize

    scores = [score for score in (*(cell.summary.iqm for cell in grid.cells), grid.untrained) if math.isfinite(score)]
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    return Normalize(low, high if high > low else low + 1.0, clip=True)


def _colours() -> ListedColormap:
    """Colours from dark to bright, without the brightest, which are invisible on white."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["viridis"](np.linspace(0, BRIGHTEST, 256)))


def _draw_curves(axes: Axes, grid: Grid, scale: Normalize) -> None:
    """The interquartile mean of each trial's seeds over steps, in the colour of its final score."""
    from matplotlib.cm import ScalarMappable

    colours = _colours()
    dress_steps(axes, max((cell.run.done for cell in grid.cells), default=0))
    evaluated = all(EVALUATION in cell.run.metrics for cell in grid.cells)
    for index, cell in enumerate(grid.cells):
        if cell.run.steps.size:
            curve = iqm_curve(cell.run.curve(EVALUATION if evaluated else TRAINING))
            colour = colours(float(scale(cell.summary.iqm))) if math.isfinite(cell.summary.iqm) else GREY
            label = f"{cell.run.name}: {cell.summary.iqm:.3g}" if len(grid.cells) <= MOST_NAMES else "_"
            style = STYLES[index % len(STYLES)]
            axes.plot(cell.run.steps, curve.iqm, color=colour, linewidth=1.8, linestyle=style, label=label)
    if math.isfinite(grid.untrained):
        axes.axhline(grid.untrained, **DASHED, label="untrained")
    axes.set_ylabel(f"{'evaluation' if evaluated else 'training'} score (IQM)", fontsize=9, color=INK)
    known = math.isfinite(grid.untrained)
    bar = axes.figure.colorbar(ScalarMappable(scale, colours), ax=axes, shrink=0.9).ax
    bar.set_ylabel("final score (IQM)" + ("; arrow: untrained" if known else ""), fontsize=8)
    bar.tick_params(labelsize=8)
    if known:
        at_the_left = bar.get_yaxis_transform()
        bar.plot([-0.4], [grid.untrained], ">", color=INK, markersize=5, transform=at_the_left, clip_on=False)


def _values(grid: Grid, name: str) -> list[str]:
    """A setting's values, in their order: as numbers if they are."""
    values = dict.fromkeys(cell.settings[name] for cell in grid.cells if name in cell.settings)
    return sorted(values, key=lambda value: (0, float(value), "") if _is_number(value) else (1, 0.0, value))


def _draw_map(axes: Axes, grid: Grid, scale: Normalize, rows: list[str], columns: list[str]) -> None:
    """Each combination's IQM as a colour and a number, its interval below if it has one."""
    iqm, texts = np.full((len(rows), len(columns)), np.nan), {}
    first, second = grid.names
    for cell in grid.cells:
        cell_index = rows.index(cell.settings[first]), columns.index(cell.settings[second])
        iqm[cell_index] = cell.summary.iqm
        enough = cell.summary.count >= LEAST_SEEDS
        between = f"\n{cell.summary.ci_low:.2g} to {cell.summary.ci_high:.2g}" if enough else ""
        texts[cell_index] = f"{cell.summary.iqm:.3g}{between}"
    axes.imshow(iqm, cmap=_colours(), norm=scale, aspect="auto")
    for (row, column), text in texts.items():
        dark = float(scale(iqm[row, column])) < 0.7
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else INK)
    axes.set_xticks(range(len(columns)), columns, fontsize=8, parse_math=False)
    axes.set_yticks(range(len(rows)), rows, fontsize=8, parse_math=False)
    axes.set_xlabel(second, fontsize=9, color=INK)
    axes.set_ylabel(first, fontsize=9, color=INK)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _draw_setting(axes: Axes, grid: Grid, name: str) -> None:
    """Every trial's IQM at its value of one setting, its interval if it has one, and the untrained score."""
    values = _values(grid, name)
    numeric = all(map(_is_number, values))
    position = float if numeric else (lambda value: float(values.index(value)))
    for cell in grid.cells:
        x, summary = position(cell.settings[name]), cell.summary
        if math.isfinite(summary.iqm):
            if summary.count >= LEAST_SEEDS:
                axes.plot([x, x], [summary.ci_low, summary.ci_high], color=BLUE, linewidth=3, alpha=0.35)
            axes.plot([x], [summary.iqm], color=BLUE, marker="o", markersize=5)
    if math.isfinite(grid.untrained):
        axes.axhline(grid.untrained, **DASHED)
    dress(axes)
    numbers = [float(value) for value in values] if numeric else []
    if numeric and min(numbers) > 0 and max(numbers) >= 10 * min(numbers):
        axes.set_xscale("log")
    elif numeric:  # a panel is narrow: more labels would touch
        axes.locator_params("x", nbins=5, integer=all(number.is_integer() for number in numbers))
    else:
        axes.set_xticks(range(len(values)), values, fontsize=8, rotation=20, ha="right", parse_math=False)
    axes.set_xlabel(name, fontsize=9, color=INK)
    axes.set_ylabel("IQM of final scores", fontsize=9, color=INK)


def _is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False
