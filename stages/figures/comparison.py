"""The picture of a comparison: for each environment curves, final scores and probabilities of improvement.

Host side only; matplotlib is imported where it draws.

Axes: S seeds, P log points.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.figures.look import (
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
from stages.report.compare import LENGTH, Comparison, Group, Pair, described, differing_settings, final_scores
from stages.results.read import EVALUATION, Result
from stages.results.statistics import LEAST_SEEDS, Estimate, Floats, iqm_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#1f5a94", "#d1603d", "#3a8f5c", "#8a5ba8", "#c9920e", "#3f9fb0", "#b0476f", "#6d6d6d")
VISITED = "novelty/visited_states"
MOST_DOTS = 200  # of one run's seeds
CURVES_HEIGHT = 3.1


def plot_comparison(path: Path, comparison: Comparison) -> None:
    """Two rows of panels for each environment: curves above, final scores and improvement below.

    Curves are interquartile means over seeds with 95 % bootstrap intervals; few seeds are drawn one by one. The curves
    are of the tasker's evaluation if all runs have it, else of training. Final scores are those of every seed of a
    finished run, with their interquartile mean and interval. The probability of improvement is drawn for three runs or
    more.

    Raises:
        RunFolderError: the file cannot be written.
    """
    colours = group_colours(comparison.groups)
    rows = [row for group in comparison.groups for row in _rows(group, colours)]
    figure = new_figure(PICTURE_WIDTH, sum(height for height, _ in rows) + 0.6)
    parts = np.asarray(figure.subfigures(len(rows), 1, squeeze=False, height_ratios=[height for height, _ in rows]))
    handles, labels = [], []
    for part, (_, panels) in zip(parts[:, 0], rows, strict=True):
        for axes, draw in zip(part.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            draw(axes)
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                if label not in labels:
                    handles, labels = [*handles, handle], [*labels, label]
    legend_below(figure, handles, labels)
    write_figure(path, figure)


PanelRow = tuple[float, list[Callable[["Axes"], None]]]
"""Height in inches, and what draws each panel."""


def _rows(group: Group, colours: Mapping[str, str]) -> list[PanelRow]:
    """The rows of panels of one environment."""
    above: list[Callable[[Axes], None]] = [lambda axes: _draw_curves(axes, group, colours)]
    below: list[Callable[[Axes], None]] = []
    if counted := [run for run in group.runs if VISITED in run.metrics]:
        above.append(lambda axes: _draw_visited(axes, counted, colours))
    if any(line.seeds for line in group.lines):
        below.append(lambda axes: _draw_finals(axes, group, colours))
    if len(group.pairs) > 1:
        below.append(lambda axes: _draw_pairs(axes, group.pairs))
    height = 1.0 + 0.36 * max(len(group.runs), len(group.pairs) if len(group.pairs) > 1 else 0)
    return [(CURVES_HEIGHT, above)] + ([(height, below)] if below else [])


def group_colours(groups: Sequence[Group]) -> dict[str, str]:
    """Run name -> colour. Runs with the same settings have the same colour in every environment.

    If there are more settings than colours, colours repeat across environments, but within one only if it needs more.
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
    dress_steps(axes, max(run.done for run in group.runs))
    settings_together = re.sub(r"(?<!,) (?!\()", "\u00a0", group.env)  # lines break between settings, not in one
    axes.set_title(wrapped(settings_together, 40), loc="left", fontsize=10, color=INK, parse_math=False)
    axes.set_ylabel("evaluation score" if group.curve == EVALUATION else "training score", fontsize=9)
    for run in group.runs:
        _draw_band(axes, run, run.curve(group.curve), colours[run.name])
        if run.adapt_step is not None:
            axes.axvline(run.adapt_step, color=colours[run.name], linewidth=1, linestyle=":")


def _draw_visited(axes: Axes, runs: Sequence[Result], colours: Mapping[str, str]) -> None:
    dress_steps(axes, max(run.done for run in runs))
    axes.set_title("states visited", loc="left", fontsize=10, color=INK)
    for run in runs:
        _draw_band(axes, run, run.metrics[VISITED], colours[run.name])
    axes.set_ylim(bottom=0)
    axes.locator_params("y", integer=True)


def _draw_band(axes: Axes, run: Result, values: Floats, colour: str) -> None:
    """The interquartile mean over seeds [S, P] with its interval, or each seed if few; a single point is a dot."""
    if not run.steps.size:
        return
    curve = iqm_curve(values)
    if len(values) >= LEAST_SEEDS:
        axes.fill_between(run.steps, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
    else:
        axes.plot(run.steps, values.T, color=colour, alpha=0.45, linewidth=0.8)
    axes.plot(run.steps, curve.iqm, color=colour, linewidth=1.8, marker="o", markersize=2.5, label=run.name)


def _draw_finals(axes: Axes, group: Group, colours: Mapping[str, str]) -> None:
    """Every seed's score as a small dot, and below them the interquartile mean, with its interval if it has one."""
    scored = [(run, line) for run, line in zip(group.runs, group.lines, strict=True) if line.seeds]
    for y, (run, line) in enumerate(scored):
        scores, colour = final_scores(run), colours[run.name]
        scores = np.sort(scores[np.isfinite(scores)])
        shown = scores[np.linspace(0, len(scores) - 1, min(len(scores), MOST_DOTS)).astype(int)]
        axes.scatter(shown, np.full(shown.size, y - 0.17), s=12, color=colour, alpha=0.45, linewidth=0)
        _draw_estimate(axes, line.estimates["iqm"], y + 0.12, colour, line.seeds)
    _dress_rows(axes, [run.name for run, _ in scored])
    axes.set_title("final scores: seeds small, interquartile mean large", loc="left", fontsize=10, color=INK)


def _draw_pairs(axes: Axes, pairs: Sequence[Pair]) -> None:
    for y, pair in enumerate(pairs):
        _draw_estimate(axes, pair.probability, y, INK, pair.seeds)
    axes.axvline(0.5, color=GREY, linewidth=1, linestyle=":")
    axes.set_xlim(-0.03, 1.03)
    _dress_rows(axes, [f"{pair.ours}\nover {pair.theirs}" for pair in pairs])
    axes.set_title("probability of improvement", loc="left", fontsize=10, color=INK)


def _draw_estimate(axes: Axes, estimate: Estimate, y: float, colour: str, seeds: int) -> None:
    if not np.isfinite(estimate.value):
        return
    if seeds >= LEAST_SEEDS:
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
