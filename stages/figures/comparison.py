"""The picture of a comparison: for each environment the curves, the final scores and what is probably better.

Host side only; matplotlib is imported where it draws.

Axes: S seeds, P log points.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.figures.curves import DPI, GREY, INK, dress, write_figure
from stages.report.compare import LENGTH, Comparison, Group, Pair, described, differing_settings, final_scores
from stages.report.read import EVALUATION, Result
from stages.report.statistics import Estimate, Floats, iqm_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#1f5a94", "#d1603d", "#3a8f5c", "#8a5ba8", "#c9920e", "#3f9fb0", "#b0476f", "#6d6d6d")
VISITED = "novelty/visited_states"
MOST_DOTS = 200  # of one run's seeds


def plot_comparison(path: Path, comparison: Comparison) -> None:
    """A row of panels for each environment, as a PNG.

    Curves are interquartile means over seeds with their 95 % bootstrap intervals, of the tasker's evaluation where all
    runs have it; final scores, where a run has come to its end, are every seed's, with the same of them.

    Raises:
        RunFolderError: the file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    groups = comparison.groups
    colours = colours_of(groups)
    scored = any(line.seeds for group in groups for line in group.lines)
    visited = any(VISITED in run.metrics for run in comparison.runs)
    better = any(group.pairs for group in groups)
    heights = [max(3.0, 0.9 + 0.34 * max(len(group.runs), len(group.pairs))) for group in groups]
    widths = [4.6] + [2.6] * scored + [3.0] * visited + [2.9] * better
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    figure = Figure(figsize=(sum(widths), sum(heights) + 0.6), dpi=DPI, layout=layout, facecolor="white")
    panels = figure.subplots(len(groups), len(widths), squeeze=False, width_ratios=widths, height_ratios=heights)
    for row, group in zip(panels, groups, strict=True):
        panels_left = list(row[1:])
        _draw_curves(row[0], group, colours)
        if scored:
            _draw_finals(panels_left.pop(0), group, colours)
        if visited:
            _draw_visited(panels_left.pop(0), group.runs, colours)
        if better:
            _draw_pairs(panels_left.pop(0), group.pairs)
    handles, labels = [], []
    for axes in panels[:, 0]:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            if label not in labels:
                handles, labels = [*handles, handle], [*labels, label]
    columns = max(1, min(len(labels), int(110 / (6 + max(map(len, labels), default=1)))))
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)
    write_figure(path, figure)


def colours_of(groups: Sequence[Group]) -> dict[str, str]:
    """A colour for each run by its name: the same in every environment for what is learned in the same way.

    Where there are more ways than colours, those of one environment still differ, as long as colours last for it alone.
    """
    varied = {name for group in groups for name in differing_settings(group.runs)} - LENGTH
    colours: dict[str, str] = {}
    assigned: dict[tuple[str, int], str] = {}  # (settings, which of the environment's runs) -> colour
    for group in groups:
        methods = [described(run, sorted(varied)) for run in group.runs]
        keys = [(method, methods[:index].count(method)) for index, method in enumerate(methods)]
        used = {assigned[key] for key in keys if key in assigned}
        for run, key in zip(group.runs, keys, strict=True):
            free = [c for c in COLOURS if c not in assigned.values()] or [c for c in COLOURS if c not in used]
            colours[run.name] = assigned.setdefault(key, free[0] if free else COLOURS[len(assigned) % len(COLOURS)])
            used.add(colours[run.name])
    return colours


def _draw_curves(axes: Axes, group: Group, colours: Mapping[str, str]) -> None:
    _dress_steps(axes, group.runs)
    axes.set_title(textwrap.fill(group.env, 52), loc="left", fontsize=10, color=INK, parse_math=False)
    axes.set_ylabel("evaluation score" if group.curve == EVALUATION else "training score", fontsize=9)
    for run in group.runs:
        _draw_band(axes, run, run.curve(group.curve), colours[run.name])
        if run.adapt_step is not None:
            axes.axvline(run.adapt_step, color=colours[run.name], linewidth=1, linestyle=":")


def _draw_visited(axes: Axes, runs: Sequence[Result], colours: Mapping[str, str]) -> None:
    counted = [run for run in runs if VISITED in run.metrics]
    if not counted:
        return _draw_nothing(axes, "no countable states")
    _dress_steps(axes, counted)
    axes.set_title("states visited", loc="left", fontsize=10, color=INK)
    for run in counted:
        _draw_band(axes, run, run.metrics[VISITED], colours[run.name])
    axes.set_ylim(bottom=0)
    return None


def _draw_band(axes: Axes, run: Result, values: Floats, colour: str) -> None:
    """The interquartile mean over seeds [S, P] and its interval; a point alone is a dot."""
    if not run.steps.size:
        return
    curve = iqm_curve(values)
    axes.fill_between(run.steps, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(run.steps, curve.iqm, color=colour, linewidth=1.8, marker="o", markersize=2.5, label=run.name)


def _draw_finals(axes: Axes, group: Group, colours: Mapping[str, str]) -> None:
    """Every seed's score as a dot, and the interquartile mean with its interval above them."""
    scored = [(run, line) for run, line in zip(group.runs, group.lines, strict=True) if line.seeds]
    if not scored:
        return _draw_nothing(axes, "no final score yet")
    for y, (run, line) in enumerate(scored):
        scores, colour = final_scores(run), colours[run.name]
        scores = np.sort(scores[np.isfinite(scores)])
        shown = scores[np.linspace(0, len(scores) - 1, min(len(scores), MOST_DOTS)).astype(int)]
        axes.scatter(shown, np.full(shown.size, y + 0.17), s=12, color=colour, alpha=0.45, linewidth=0)
        _draw_estimate(axes, line.estimates["iqm"], y - 0.12, colour)
    _dress_rows(axes, [run.name for run, _ in scored])
    axes.set_title("final scores", loc="left", fontsize=10, color=INK)
    return None


def _draw_pairs(axes: Axes, pairs: Sequence[Pair]) -> None:
    if not pairs:
        return _draw_nothing(axes, "nothing to compare with")
    for y, pair in enumerate(pairs):
        _draw_estimate(axes, pair.probability, y, INK)
    axes.axvline(0.5, color=GREY, linewidth=1, linestyle=":")
    axes.set_xlim(-0.03, 1.03)
    _dress_rows(axes, [f"{pair.ours}\nover {pair.theirs}" for pair in pairs])
    axes.set_title("probability of improvement", loc="left", fontsize=10, color=INK)
    return None


def _draw_estimate(axes: Axes, estimate: Estimate, y: float, colour: str) -> None:
    if np.isfinite(estimate.value):
        axes.plot([estimate.low, estimate.high], [y, y], color=colour, linewidth=3, alpha=0.45)
        axes.plot([estimate.value], [y], color=colour, marker="o", markersize=6)


def _dress_rows(axes: Axes, names: Sequence[str]) -> None:
    """One name for each line, from above."""
    dress(axes)
    shown = ["\n".join(map(_shortened, name.split("\n"))) for name in names]
    axes.set_yticks(range(len(names)), shown, fontsize=8, parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)


def _shortened(line: str) -> str:
    return line if len(line) < 25 else "..." + line[-22:]


def _dress_steps(axes: Axes, runs: Sequence[Result]) -> None:
    from matplotlib.ticker import EngFormatter

    dress(axes)
    axes.set_xlim(0, 1.02 * max(1, *(run.done for run in runs)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("environment steps per seed", fontsize=9)


def _draw_nothing(axes: Axes, why: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=9)
