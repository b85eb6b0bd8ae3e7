"""The picture of novelty: visits and intrinsic reward of each state, early, in the middle and late in a run.

Host side only; matplotlib is imported where it draws.

Axes: X states, S seeds, P points of a run.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from envs.environment import StateSpace
from stages.figures.look import BLUE, DASHED, GREY, INK, PICTURE_WIDTH, dress_steps, new_figure, wrapped, write_figure
from stages.results.novelty import BINS, Map, NoveltyLog

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm
    from matplotlib.figure import SubFigure

WALL = "#c9c9c9"
DECADES = 4  # range of the colour scale of disagreement, in powers of ten
SHADES = ("#b2182b", "#e08214", "#c9a400", "#4d9a4d", "#2b7bba", "#54278f")  # from never visited to often
LABELS = ("never", "1 to 3", "4 to 15", "16 to 63", "64 to 255", "256 or more")


def plot_novelty(
    path: str | os.PathLike[str], log: NoveltyLog, states: StateSpace, *, title: str, seed: int,
    reward: str = "disagreement",
) -> None:  # fmt: skip
    """Draw the maps of one seed, where states have a map, and the sweep's curves below them.

    Maps: visits of each state, and below them the disagreement, averaged over actions; each row has one logarithmic
    scale. Curves: states visited, and the intrinsic reward by visits of the pair; medians over seeds.

    Args:
        path: the picture's file, replaced in one step.
        log: with at least one point, of one trial.
        states: of the environment.
        title: plain text, wrapped.
        seed: the number of the seed that the maps are of.
        reward: name of the measured intrinsic reward. Only disagreement is drawn as a map.

    Raises:
        RunFolderError: the file cannot be written.
    """
    maps = [m for three in log.maps.values() for m in (three.early, three.middle, three.late)]
    measured = bool(np.isfinite(log.correlation).any())
    rows = (1 + (measured and reward == "disagreement")) if states.grid[0] and maps else 0
    heights = [2.3 * rows + 0.3, 3.0] if rows else [3.2]
    figure = new_figure(PICTURE_WIDTH, sum(heights) + 0.5)
    figure.suptitle(wrapped(title, 90), fontsize=11, color=INK, x=0.01, ha="left", parse_math=False)
    parts = np.asarray(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights))[:, 0]
    if rows:
        _draw_maps(parts[0], maps, states, rows, seed)
    axes = parts[-1].subplots(1, 1 + measured, squeeze=False)[0]
    _draw_coverage(axes[0], log, states)
    if measured:
        _draw_bins(axes[1], log, reward)
    write_figure(path, figure)


def _draw_maps(figure: SubFigure, maps: list[Map], states: StateSpace, rows: int, seed: int) -> None:
    """A row of visits and a row of disagreement, each with one scale of colours; a column for each point."""
    from matplotlib.colors import LogNorm

    axes = np.asarray(figure.subplots(rows, len(maps), squeeze=False))
    visited = [np.where(point.visits > 0, point.visits, np.nan) for point in maps]
    most = max(2, *(int(point.visits.max()) for point in maps))
    drawn = [(f"visits (seed {seed})", visited, "viridis", LogNorm(1, most))]
    drawn.append(("disagreement", [point.reward for point in maps], "plasma", disagreement_scale(maps)))
    for row, (label, values, colours, scale) in zip(axes, drawn, strict=False):
        look = {"cmap": colours, "norm": scale}
        images = [_draw_map(panel, numbers, states, look) for panel, numbers in zip(row, values, strict=True)]
        for panel, point in zip(row, maps, strict=True):
            panel.set_title(f"after {point.step:,} steps", fontsize=9, color=INK)
        bar = figure.colorbar(images[-1], ax=list(row), shrink=0.9, label=label)
        bar.ax.tick_params(labelsize=8)
    unseen = "white: not visited" + (", or no row in replay" if rows > 1 else "")
    walls = "; grey: wall or out of reach" if states.walls else ""
    figure.supxlabel(unseen + walls, fontsize=8, color=GREY, x=0.01, ha="left")


def disagreement_scale(maps: Sequence[Map]) -> LogNorm:
    """One logarithmic scale for all points, from at most DECADES below the largest disagreement up to it."""
    from matplotlib.colors import LogNorm

    seen = np.concatenate([point.reward for point in maps])
    seen = seen[np.isfinite(seen) & (seen > 0)]
    high = float(seen.max()) if seen.size else 1.0
    low = max(float(seen.min()) if seen.size else 0.1, high / 10**DECADES)
    return LogNorm(low, high if high > low else 10 * low, clip=True)


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
    dress_steps(axes, max(log.steps))
    for index, curve in enumerate(curves):
        label = "_" if index or len(curves) == 1 else f"{len(curves)} seeds"
        axes.plot(log.steps, curve, color=BLUE, alpha=0.3, linewidth=0.8, label=label)
    median = "median" if len(curves) > 1 else "1 seed"
    axes.plot(log.steps, np.median(curves, 0), color=BLUE, linewidth=2, label=median)
    axes.axhline(states.count, **DASHED, label=f"{states.count:,} can be reached")
    axes.set_ylim(0, 1.06 * max(states.count, curves.max()))
    axes.locator_params("y", integer=True)
    axes.set_ylabel("states visited", color=INK, fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="best")


def _draw_bins(axes: Axes, log: NoveltyLog, reward: str) -> None:
    """Mean intrinsic reward of pairs by how often they were tried, median over seeds."""
    dress_steps(axes, max(log.steps))
    for name, colour, label in zip(BINS, SHADES, LABELS, strict=True):
        curves = log.curve(f"reward_{name}")
        has_value = np.isfinite(curves).any(0)
        if has_value.any():
            steps, median = np.array(log.steps)[has_value], np.nanmedian(curves[:, has_value], 0)
            axes.plot(steps, median, color=colour, linewidth=1.6, marker="o", markersize=3, label=label)
    axes.set_yscale("log")  # the reward falls by orders of magnitude
    axes.set_ylabel(f"{reward} by visits of the pair", color=INK, fontsize=9)
    axes.legend(title="visits", frameon=False, fontsize=8, title_fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
