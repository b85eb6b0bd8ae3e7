"""Curves: the learning curves of a sweep as a picture.

Host side only, without jax. matplotlib is imported by the functions that draw, so that `--help` stays fast.

Axes: S seeds, P points of a curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.figures.look import BLUE, DASHED, GREY, INK, RED, dress_steps, legend_below, new_figure, wrapped
from stages.results.statistics import LEAST_SEEDS, iqm_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


SIZE_INCHES = (7.2, 4.4)
MOST_MARKED = 12
BOLD: dict[str, Any] = {"color": BLUE, "linewidth": 2, "marker": "o", "markersize": 4}
THIN: dict[str, Any] = {"color": BLUE, "linewidth": 0.8, "marker": "o", "markersize": 2}


def curves_figure(
    steps: ArrayLike,
    scores: ArrayLike,
    *,
    title: str,
    ylabel: str,
    adapt_step: int | None = None,
    untrained: ArrayLike = (),
    diverged: Sequence[int] = (),
) -> Figure:
    """Learning curves: seeds faint, the IQM bold, its interval shaded where there are enough seeds for one.

    A score that is not finite leaves a gap; a point between two gaps is drawn as a dot.

    Args:
        steps: [P], of one seed.
        scores: [S, P], in the unit that `ylabel` names.
        title, ylabel: plain text (no mathtext); long ones are wrapped.
        adapt_step: the step at which mode task began after exploring, as a vertical line; None without one.
        untrained: [S], scores before the first update, whose mean is a dashed horizontal line; empty without one.
        diverged: [S], the step at which each seed did, marked by a red cross; 0 for those that did not.

    Raises:
        ValueError: `scores` is not [S, P] for these steps.
    """
    steps, scores = np.asarray(steps, np.float64), np.asarray(scores, np.float64)
    if steps.ndim != 1 or scores.ndim != 2 or not scores.shape[0] or scores.shape[1] != steps.size:
        raise ValueError(f"curves_figure wants steps [P] and scores [S, P]; got {steps.shape} and {scores.shape}")
    scores = np.where(np.isfinite(scores), scores, np.nan)

    figure = new_figure(*SIZE_INCHES)
    axes = figure.add_subplot()
    dress_steps(axes, max([0.0, *steps, adapt_step or 0.0]))
    axes.set_ylabel(wrapped(ylabel, 40), parse_math=False)
    _draw_scores(axes, steps, scores)
    _draw_diverged(axes, steps, scores, diverged)
    if np.isfinite(before := np.asarray(untrained, np.float64)).any():
        axes.axhline(float(before[np.isfinite(before)].mean()), **DASHED, label="untrained", zorder=2.5)
    if adapt_step is not None:
        _draw_adapt_step(axes, adapt_step)
    above = 7 if adapt_step is None else 19
    axes.set_title(wrapped(title, 72), loc="left", pad=above, parse_math=False, fontsize=11, color=INK)
    legend_below(figure, *axes.get_legend_handles_labels())
    return figure


def _draw_scores(axes: Axes, steps: NDArray[np.float64], scores: NDArray[np.float64]) -> None:
    """The seeds, the band and the IQM. One seed alone is its own IQM, and few seeds have no band."""
    S = scores.shape[0]
    if not np.isfinite(scores).any():
        axes.text(0.5, 0.5, "no score yet", transform=axes.transAxes, ha="center", va="center", color=GREY)
        axes.set_yticks([])
        return
    if S == 1:
        axes.plot(steps, scores[0], markevery=_dots(scores[0]), **BOLD)
        axes.plot([], [], color=BLUE, linewidth=2, label="1 seed")
        return
    faint = float(np.clip(5 / S, 0.02, 0.45))  # the more seeds, the fainter each
    for score in scores:
        axes.plot(steps, score, markevery=_dots(score), alpha=faint, **THIN)
    curve = iqm_curve(scores)
    if S >= LEAST_SEEDS:
        alone = _alone(curve.iqm)
        axes.fill_between(steps, curve.low, curve.high, color=BLUE, alpha=0.22, linewidth=0)
        axes.vlines(steps[alone], curve.low[alone], curve.high[alone], color=BLUE, alpha=0.22, linewidth=5)
    axes.plot(steps, curve.iqm, color="white", alpha=0.7, linewidth=4.5)  # a rim, against a crowd of seeds
    axes.plot(steps, curve.iqm, markevery=_dots(curve.iqm), zorder=3, **BOLD)
    # The legend's own handles: neither the seeds' faintness nor the dots belong into it.
    axes.plot([], [], color=BLUE, linewidth=2, label="interquartile mean")
    if S >= LEAST_SEEDS:
        axes.fill_between([], [], [], color=BLUE, alpha=0.22, linewidth=0, label="its 95 % bootstrap interval")
    axes.plot([], [], color=BLUE, alpha=0.45, linewidth=0.8, label=f"{S} seeds")


def _draw_diverged(
    axes: Axes, steps: NDArray[np.float64], scores: NDArray[np.float64], diverged: Sequence[int]
) -> None:
    """A cross where a seed diverged, at the score that it had by then; on the axis if it had none."""
    label = f"{np.count_nonzero(diverged)} diverged"
    for score, step in zip(scores, diverged, strict=False):
        if step:
            before = score[(steps <= step) & np.isfinite(score)]
            transform = axes.transData if before.size else axes.get_xaxis_transform()
            height = before[-1] if before.size else 0.0
            axes.plot([step], [height], "x", color=RED, transform=transform, clip_on=False, label=label, zorder=4)
            label = "_"  # one entry in the legend


def _alone(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Points with no neighbour to join, which a line would not show: [P] -> [P]."""
    present = np.pad(np.isfinite(values), 1)
    return present[1:-1] & ~present[:-2] & ~present[2:]


def _dots(values: NDArray[np.float64]) -> list[int]:
    """Indices to draw as dots: those alone, or every one where they are few."""
    return np.flatnonzero(np.isfinite(values) if values.size <= MOST_MARKED else _alone(values)).tolist()


def _draw_adapt_step(axes: Axes, step: float) -> None:
    """A vertical line, labelled above the axes and within their width."""
    axes.axvline(step, color=GREY, linewidth=1, linestyle=":", zorder=2.4)
    label, (x_min, x_max) = "adapts from here", axes.get_xlim()
    half = 0.00625 * len(label) + 0.01  # of 8.5 pt text, a little generous, as a fraction of the axes' width
    place = float(np.clip((step - x_min) / (x_max - x_min), half, 1 - half)), 1
    axes.annotate(
        label,
        place,
        (0, 3),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=8.5,
        color=GREY,
        annotation_clip=False,
    )
