"""The picture of novelty: where a run has been and what its ensemble still disagrees about, early, in the middle, late.

Host side only; matplotlib is imported where it draws.

Axes: X states, S seeds, P points of a run.
"""

from __future__ import annotations

import os
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from envs.environment import StateSpace
from stages.figures.curves import BLUE, DPI, GREY, INK, dress, write_figure
from stages.report.novelty import BINS, Map, NoveltyLog

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

WALL = "#c9c9c9"
SHADES = ("#b2182b", "#e08214", "#c9a400", "#4d9a4d", "#2b7bba", "#54278f")  # from never visited to often
LABELS = ("never", "1 to 3", "4 to 15", "16 to 63", "64 to 255", "256 or more")


def plot_novelty(path: str | os.PathLike[str], log: NoveltyLog, states: StateSpace, *, title: str, seed: int) -> None:
    """Draw the maps of one seed, where states have a map, and the sweep's curves below them.

    Maps: visits of each state, on a logarithmic scale, and below them the disagreement, averaged over actions. Curves:
    states visited, and, where there is an ensemble, disagreement by visits of the pair; medians over seeds.

    Args:
        path: the picture's file, replaced in one step.
        log: with at least one point, of one trial.
        states: of the environment.
        title: plain text, wrapped.
        seed: the number of the seed that the maps are of.

    Raises:
        RunFolderError: the file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    maps = [m for three in log.maps.values() for m in (three.early, three.middle, three.late)]
    ensemble = bool(np.isfinite(log.correlation).any())
    rows = (1 + ensemble) if states.grid[0] and maps else 0
    heights = [2.6 * rows, 3.0] if rows else [3.2]
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06)
    figure = Figure(figsize=(9.0, sum(heights) + 0.5), dpi=DPI, layout=layout, facecolor="white")
    figure.suptitle(textwrap.fill(title, 90), fontsize=11, color=INK, x=0.01, ha="left", parse_math=False)
    parts = np.asarray(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights))[:, 0]
    if rows:
        _draw_maps(parts[0], maps, states, rows, seed)
    axes = parts[-1].subplots(1, 1 + ensemble, squeeze=False)[0]
    _draw_coverage(axes[0], log, states)
    if ensemble:
        _draw_bins(axes[1], log)
    write_figure(path, figure)


def _draw_maps(figure: SubFigure, maps: list[Map], states: StateSpace, rows: int, seed: int) -> None:
    """A row of visits, with one scale of colours, and a row of disagreement, with a scale for each map: what counts is
    where it is high at that point. A column for each point."""
    from matplotlib.colors import LogNorm, Normalize

    axes = np.asarray(figure.subplots(rows, len(maps), squeeze=False))
    most_visits = max(2, *(int(point.visits.max()) for point in maps))
    for column, point in enumerate(maps):
        visited = np.where(point.visits > 0, point.visits, np.nan)
        image = _draw_map(axes[0, column], visited, states, {"cmap": "viridis", "norm": LogNorm(1, most_visits)})
        last = column == len(maps) - 1
        if last:
            figure.colorbar(image, ax=list(axes[0]), shrink=0.9, label=f"visits (seed {seed})")
        axes[0, column].set_title(f"after {point.step:,} steps", fontsize=9, color=INK)
        if rows > 1:
            seen = point.disagreement[np.isfinite(point.disagreement)]
            low, top = (float(seen.min()), float(seen.max())) if seen.size else (0.0, 0.0)
            look = {"cmap": "magma", "norm": Normalize(low, top if top > low else low + 1.0)}
            image = _draw_map(axes[1, column], point.disagreement, states, look)
            bar = figure.colorbar(image, ax=axes[1, column], shrink=0.9, label="disagreement" if last else "")
            bar.ax.tick_params(labelsize=8)


def _draw_map(axes: Axes, values: NDArray[np.float64], states: StateSpace, look: dict[str, Any]) -> Any:
    """States as an image: walls grey, states without a value white."""
    from matplotlib.colors import ListedColormap

    axes.set_facecolor("white")
    walls = np.full(states.size, np.nan)
    walls[list(states.walls)] = 1.0
    # Rows of a map count downward, and bins of a number upward.
    origin = "upper" if states.labels[0] == "row" else "lower"
    how: dict[str, Any] = {"interpolation": "nearest", "aspect": "auto", "origin": origin}
    image = axes.imshow(values.reshape(states.grid), **how, **look)
    axes.imshow(walls.reshape(states.grid), cmap=ListedColormap([WALL]), **how)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(GREY)
    if states.grid[0] == states.grid[1]:
        axes.set_box_aspect(1)
    axes.set_ylabel(states.labels[0], fontsize=8, color=GREY)
    axes.set_xlabel(states.labels[1], fontsize=8, color=GREY)
    return image


def _draw_coverage(axes: Axes, log: NoveltyLog, states: StateSpace) -> None:
    """States visited: every seed faint, their median bold, and how many there are."""
    curves = log.curve("visited_states")
    _dress_steps(axes, log)
    for curve in curves:
        axes.plot(log.steps, curve, color=BLUE, alpha=0.3, linewidth=0.8)
    axes.plot(log.steps, np.median(curves, 0), color=BLUE, linewidth=2, label="states visited")
    axes.axhline(
        states.count, color=INK, linewidth=1.1, linestyle=(0, (5, 3)), label=f"{states.count:,} can be reached"
    )
    axes.set_ylim(0, 1.06 * max(states.count, curves.max()))
    axes.set_ylabel("states visited", color=INK, fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="best")


def _draw_bins(axes: Axes, log: NoveltyLog) -> None:
    """Mean disagreement of pairs by how often they were tried, median over seeds."""
    _dress_steps(axes, log)
    for name, colour, label in zip(BINS, SHADES, LABELS, strict=True):
        curves = log.curve(f"disagreement_{name}")
        has_value = np.isfinite(curves).any(0)
        if has_value.any():
            steps, median = np.array(log.steps)[has_value], np.nanmedian(curves[:, has_value], 0)
            axes.plot(steps, median, color=colour, linewidth=1.6, marker="o", markersize=3, label=label)
    axes.set_yscale("log")  # it falls by orders of magnitude, and what counts is the order of the bins
    axes.set_ylabel("disagreement by visits of the pair", color=INK, fontsize=9)
    axes.legend(title="visits", frameon=False, fontsize=8, title_fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def _dress_steps(axes: Axes, log: NoveltyLog) -> None:
    from matplotlib.ticker import EngFormatter

    dress(axes)
    axes.set_xlim(0, 1.02 * max(log.steps))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("environment steps per seed", fontsize=9)
