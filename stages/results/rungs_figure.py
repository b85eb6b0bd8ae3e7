"""Rungs' figure: how trials of a sweep with `--halving` scored at each rung, and where each was stopped.

Axes: R rungs that a trial has reached, with its last evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stages.runs.figures import BLUE, GREY, INK, dress

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_NAMED = 5  # of the trials that came to the end; more would lie over each other


class Climb(NamedTuple):
    """A trial's way up."""

    name: str
    steps: list[int]  # [R], env steps of a seed
    scores: list[float]  # [R], means over seeds; NaN where there is none
    finished: bool


def shade(rung: int, last: int) -> tuple[float, float, float]:
    """The colour of trials that came to a rung: the later, the darker; those that were not stopped have BLUE."""
    from matplotlib.colors import to_rgb

    share = (rung + 1) / (last + 1)
    red, green, blue = (1 - (1 - channel) * (0.25 + 0.75 * share**1.5) for channel in to_rgb(BLUE))
    return red, green, blue


def draw_climbs(axes: Axes, climbs: Sequence[Climb]) -> None:
    """Score against steps: a line for each trial, which ends in a cross where the trial was stopped."""
    from matplotlib.patheffects import withStroke

    last = max(len(climb.steps) for climb in climbs) - 1
    order = sorted(climbs, key=lambda climb: (len(climb.steps), climb.finished))
    best = sorted((climb for climb in climbs if climb.finished), key=lambda climb: -np.nan_to_num(climb.scores[-1]))
    for climb in order:
        colour = shade(len(climb.steps) - 1, last)
        axes.plot(climb.steps, climb.scores, color=colour, linewidth=2 if climb.finished else 1.2, zorder=2)
        axes.plot(climb.steps[:-1], climb.scores[:-1], color=colour, marker="o", markersize=4, linestyle="", zorder=3)
        marker = {"marker": "o", "markersize": 6} if climb.finished else {"marker": "x", "markersize": 6}
        axes.plot(
            climb.steps[-1:], climb.scores[-1:], color=colour, linestyle="", markeredgewidth=1.6, zorder=4, **marker
        )
    ends = sorted({climb.steps[-1] for climb in climbs})
    axes.set_xscale("log")
    axes.set_xlim(ends[0] / 1.3, ends[-1] * 1.3)
    axes.set_xticks(ends, [f"{step:,}" for step in ends])
    axes.set_xticks([], minor=True)
    beside: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "fontsize": 7, "color": INK}
    beside["path_effects"] = [withStroke(linewidth=2.5, foreground="white")]  # names lie over lines
    for climb in best[:MOST_NAMED]:
        if np.isfinite(climb.scores[-1]):
            at = (climb.steps[-1], climb.scores[-1])
            axes.annotate(climb.name, at, xytext=(-8, 4), parse_math=False, **beside)
    axes.plot([], [], color=BLUE, marker="o", linewidth=2, label="trained to the end")
    axes.plot([], [], color=GREY, marker="x", markeredgewidth=1.6, linestyle="", label="stopped here")
    axes.legend(fontsize=7, frameon=False, loc="best")
    dress(axes)
    axes.tick_params(labelsize=8)
    axes.set_xlabel("env steps of a seed", fontsize=9, color=INK)
    axes.set_ylabel("evaluation at the rung, mean over seeds", fontsize=9, color=GREY)
