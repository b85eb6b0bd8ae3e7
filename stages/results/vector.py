"""Vector: matplotlib's figures as SVG inside a page, in the page's own colours and letters.

Axes: S seeds, P log points.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import numpy as np

from stages.results.read import Floats
from stages.runs.figures import BLUE, GREY, INK, RED, dress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {INK: "--ink", GREY: "--grey", "#e6e6e6": "--grid", BLUE: "--accent", "#ffffff": "--paper", RED: "--warn"}
FEW_SEEDS = 8
WIDE_RANGE = 300.0  # from which on a positive metric is drawn on a logarithmic scale


def svg(figure: Figure, label: str) -> str:
    """A figure as an <svg> element as wide as its place. `label` is read out instead of it.

    Colours of our pictures become the page's variables (COLOURS), so that one picture is good in light and in dark;
    black text takes the page's.
    """
    import matplotlib

    text = io.StringIO()
    figure.patch.set_alpha(0.0)
    for axes in figure.axes:
        axes.patch.set_alpha(0.0)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):  # text stays text; the same ids always
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    picture = text.getvalue()
    picture = re.sub(r"<metadata>.*?</metadata>", "", picture[picture.index("<svg") :], flags=re.DOTALL)
    for colour, variable in COLOURS.items():
        picture = picture.replace(colour, f"var({variable})")
    head = re.search(r'viewBox="[^"]*"', picture)
    assert head is not None
    named = label.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return (
        f'<svg {head[0]} role="img" aria-label="{named}" xmlns:xlink="http://www.w3.org/1999/xlink">'
        + (picture[picture.index(">") + 1 :])
    )


def metric_figure(steps: Floats, values: Floats, marker: float | None = None) -> Figure:
    """One metric over a run, small: the median over seeds, with every seed where they are few and else 10 to 90 %.

    Args:
        steps: [P].
        values: [S, P]; what is not finite leaves a gap.
        marker: the step of a vertical line.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    values = np.where(np.isfinite(values), values, np.nan)
    figure = Figure(figsize=(3.3, 1.75))
    axes = figure.add_axes((0.17, 0.16, 0.8, 0.78))
    dress(axes)
    axes.tick_params(labelsize=8)
    axes.set_xlim(0, 1.02 * max(1.0, float(steps[-1])))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    there = np.isfinite(values).any(0)
    steps, values = steps[there], values[:, there]
    low, median, high = np.nanpercentile(values, [10, 50, 90], axis=0)
    if len(values) <= FEW_SEEDS:
        for each in values:
            axes.plot(steps, each, color=BLUE, alpha=0.35, linewidth=0.8)
    else:
        axes.fill_between(steps, low, high, color=BLUE, alpha=0.2, linewidth=0)
    axes.plot(steps, median, color=BLUE, linewidth=1.8, marker="o" if steps.size == 1 else None, markersize=3)
    if marker is not None:
        axes.axvline(marker, color=GREY, linewidth=1, linestyle=":")
    if (median > 0).all() and median.max() > WIDE_RANGE * median.min():
        axes.set_yscale("log")
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4))
        large = EngFormatter(sep="")
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:.4g}" if abs(y) < 1e4 else large(y))
    return figure
