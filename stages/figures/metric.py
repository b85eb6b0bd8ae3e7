"""The small picture of one metric over a run, for the report.

Axes: S seeds, P log points.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stages.figures.look import BLUE, GREY, dress, scale_steps
from stages.results.statistics import Floats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_STROKES = 8  # with more seeds a band stands for them
ARRIVALS = ("novelty/goal_episode", "novelty/solved_episode")
"""Metrics that a seed has from its arrival on: before it, the seed counts as later than all others."""
LOG_SCALE_RATIO = 300.0  # a positive metric whose largest value is so many times its smallest has a logarithmic scale


def metric_figure(steps: Floats, values: Floats, marker: float | None = None, arrival: bool = False) -> Figure:
    """Draw the median over seeds, with every seed if they are few, else with the range from 10 to 90 %.

    Args:
        steps: [P].
        values: [S, P]; what is not finite leaves a gap.
        marker: the step of a vertical line.
        arrival: whether the metric says when a seed arrived somewhere: then a seed without a number is later than all
            others, and the median ends where half of the seeds have not arrived.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    values = np.where(np.isfinite(values), values, np.nan)
    figure = Figure(figsize=(3.3, 1.75))
    axes = figure.add_axes((0.17, 0.16, 0.8, 0.78))
    dress(axes)
    axes.tick_params(labelsize=8)
    scale_steps(axes, float(steps[-1]))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    has_value = np.isfinite(values).any(0)
    steps, values = steps[has_value], values[:, has_value]
    low, median, high = _percentiles(np.where(np.isfinite(values), values, np.inf) if arrival else values)
    if arrival:  # the band is open above as long as a tenth of the seeds has not arrived
        high = np.where(np.isfinite(low) & ~np.isfinite(high), np.nanmax(values), high)
    if len(values) <= MOST_STROKES:
        for seed_values in values:
            axes.plot(steps, seed_values, color=BLUE, alpha=0.35, linewidth=0.8)
    else:
        axes.fill_between(steps, low, high, color=BLUE, alpha=0.2, linewidth=0)
    axes.plot(steps, median, color=BLUE, linewidth=1.8, marker="o" if steps.size == 1 else None, markersize=3)
    if marker is not None:
        axes.axvline(marker, color=GREY, linewidth=1, linestyle=":")
    if (median > 0).all() and median.max() > LOG_SCALE_RATIO * median.min():
        axes.set_yscale("log")
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4))
        large = EngFormatter(sep="")
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:.4g}" if abs(y) < 1e4 else large(y))
    return figure


def _percentiles(values: Floats) -> tuple[Floats, Floats, Floats]:
    """10, 50 and 90 % over seeds, [S, P] -> three of [P]; NaN where the percentile is infinite."""
    low, high = np.nanpercentile(values, [10, 90], axis=0, method="nearest")
    low, median, high = (np.where(np.isfinite(x), x, np.nan) for x in (low, np.nanmedian(values, axis=0), high))
    return low, median, high
