"""What a sweep tells: statistics over seeds, the table and the curves.

Host side only: numpy, no jax. rich and matplotlib are imported by the functions that draw, so that `--help`
stays fast.

The interquartile mean (IQM) is the mean of the middle half of the seeds: robust to a lucky or a broken seed,
yet less wasteful than the median. Definition and bootstrap follow rliable: Agarwal et al. 2021, "Deep
Reinforcement Learning at the Edge of the Statistical Precipice", arXiv 2108.13264. With one task, its
stratified bootstrap is the plain bootstrap over seeds that stands here.

Axes: S seeds, P points of a curve, R resamples.
"""

from __future__ import annotations

import functools
import io
import math
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.folder import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Console
    from rich.table import Table

CONFIDENCE = 0.95
BOOTSTRAP_SEED = 0  # fixed, so that the same scores always print the same interval
CHUNK_ELEMENTS = 4_000_000  # R * S * P of one bootstrap chunk: 32 MB of float64


# ---- statistics over seeds ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """Scores of a sweep in one record, in the score's own unit (an episode's return, mostly).

    Every number is taken over the `count` seeds with a finite score. The others (NaN: no episode finished, or
    the agent diverged; or infinite) are named in `nonfinite`. If no seed is left the scores are NaN and the
    seeds' numbers None.
    """

    mean: float
    median: float
    iqm: float
    ci_low: float  # 95 % percentile-bootstrap interval of the IQM over seeds
    ci_high: float
    worst: float
    worst_seed: int | None
    best: float
    best_seed: int | None
    count: int  # seeds with a finite score
    nonfinite: tuple[int, ...] = ()  # the seeds left out of every number above


class Curve(NamedTuple):
    """IQM over seeds at every point, and its 95 % bootstrap interval, in the score's own unit."""

    iqm: NDArray[np.float64]  # [P]
    low: NDArray[np.float64]  # [P]
    high: NDArray[np.float64]  # [P]


def summarise(scores: ArrayLike, seeds: Sequence[int], resamples: int = 2000) -> Interval:
    """Summarise the final scores of a sweep.

    Args:
        scores: [S], one final score per seed. A score that is not finite is reported in `nonfinite`.
        seeds: [S], the seeds' numbers, in the same order.
        resamples: R, bootstrap resamples of the seeds.

    Raises:
        ValueError: no scores, not one score per seed, or `resamples` below 1.

    Source: Agarwal et al. 2021 (arXiv 2108.13264); the IQM equals `scipy.stats.trim_mean(x, 0.25)`.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or not scores.size or len(seeds) != scores.size:
        raise ValueError(f"summarise wants a score per seed; got scores {scores.shape}, {len(seeds)} seeds")
    curve = iqm_curve(scores[:, None], resamples)
    finite = np.isfinite(scores)
    nonfinite = tuple(int(seed) for seed, ok in zip(seeds, finite, strict=True) if not ok)
    if not finite.any():
        nan = math.nan
        return Interval(nan, nan, nan, nan, nan, nan, None, nan, None, count=0, nonfinite=nonfinite)
    worst = int(np.argmin(np.where(finite, scores, np.inf)))
    best = int(np.argmax(np.where(finite, scores, -np.inf)))
    return Interval(
        mean=float(scores[finite].mean()),
        median=float(np.median(scores[finite])),
        iqm=float(curve.iqm[0]),
        ci_low=float(curve.low[0]),
        ci_high=float(curve.high[0]),
        worst=float(scores[worst]),
        worst_seed=int(seeds[worst]),
        best=float(scores[best]),
        best_seed=int(seeds[best]),
        count=int(finite.sum()),
        nonfinite=nonfinite,
    )


def iqm_curve(scores: ArrayLike, resamples: int = 2000) -> Curve:
    """Interquartile mean over seeds at every point, with its 95 % percentile-bootstrap interval.

    Whole seeds are resampled (one draw of S seeds serves all points), so the band keeps the correlation along
    a curve. A score that is not finite counts as absent: each point's IQM is over the seeds that have one, a
    resample that drew none of them is left out, and a point where no seed has a score is NaN.

    Args:
        scores: [S, P].
        resamples: R, bootstrap resamples of the seeds.

    Raises:
        ValueError: `scores` is not a matrix with at least one seed, or `resamples` is below 1.

    Source: Agarwal et al. 2021 (arXiv 2108.13264).
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or not scores.shape[0]:
        raise ValueError(f"iqm_curve wants scores [seeds, points] with at least one seed; got {scores.shape}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1; got {resamples}")
    S, P = scores.shape
    scores = np.where(np.isfinite(scores), scores, np.nan)
    draws = np.random.default_rng(BOOTSTRAP_SEED).integers(0, S, size=(resamples, S))  # [R, S]
    low, high = np.full(P, np.nan), np.full(P, np.nan)
    width = max(1, CHUNK_ELEMENTS // (resamples * S))
    for start in range(0, P, width):
        part = slice(start, start + width)
        low[part], high[part] = _interval(_iqm(scores.T[part][:, draws]))  # [p, S] -> [p, R, S] -> [p, R]
    return Curve(_iqm(scores.T), low, high)


def _iqm(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """IQM over the last axis, NaN as absent: [..., S] -> [...]. A quarter, rounded down, is cut per end."""
    ordered = np.sort(values, axis=-1)  # NaN last
    count = np.isfinite(ordered).sum(-1, keepdims=True)
    cut = count // 4
    rank = np.arange(values.shape[-1])
    middle = (rank >= cut) & (rank < count - cut)
    kept = (count - 2 * cut)[..., 0]
    total = np.where(middle, ordered, 0.0).sum(-1)
    return np.where(kept > 0, total / np.maximum(kept, 1), np.nan)


def _interval(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The central 95 % over the last axis, NaN as absent: [P, R] -> ([P], [P])."""
    tail = 100 * (1 - CONFIDENCE) / 2
    known = np.isfinite(values).any(-1)
    ends = np.full((2, values.shape[0]), np.nan)
    ends[:, known] = np.nanpercentile(values[known], [tail, 100 - tail], axis=-1)
    return ends[0], ends[1]


# ---- the table ---------------------------------------------------------------------------------------------


def table(interval: Interval, title: str) -> Table:
    """The sweep's scores as a rich table: mean, median, IQM with its interval, worst and best seed."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    seeds = "seed" if interval.count == 1 else "seeds"
    # Text, not str: a title such as "Catch[bsuite]" is not markup. As wide as the title, so that it is not folded.
    style = {"title_justify": "left", "title_style": "bold", "min_width": len(title)}
    result = Table(title=Text(title), box=box.SIMPLE_HEAD, **style)
    result.add_column(f"over {interval.count} {seeds}")
    result.add_column("score", justify="right")
    result.add_column("", style="dim")
    extreme = max(abs(interval.worst), abs(interval.best))
    show = functools.partial(_number, decimals=_decimals(extreme))
    result.add_row("mean", show(interval.mean))
    result.add_row("median", show(interval.median))
    between = f"95 % interval {show(interval.ci_low)} to {show(interval.ci_high)}" if interval.count > 1 else ""
    result.add_row("interquartile mean", show(interval.iqm), between, style="bold")
    for name, score, seed in (
        ("worst seed", interval.worst, interval.worst_seed),
        ("best seed", interval.best, interval.best_seed),
    ):
        result.add_row(name, show(score), "" if seed is None else f"seed {seed}")
    if interval.nonfinite:
        listed = ", ".join(str(seed) for seed in interval.nonfinite)
        word = "seed" if len(interval.nonfinite) == 1 else "seeds"
        result.add_row("no finite score", "-", f"left out above: {word} {listed}", style="red")
    return result


def print_table(interval: Interval, title: str, console: Console | None = None) -> None:
    """Print `table(interval, title)` to `console`, standard output by default."""
    from rich.console import Console

    (console or Console()).print(table(interval, title))


def _decimals(extreme: float) -> int:
    """Decimals that show four digits of the largest score, so that a column of scores lines up."""
    if not math.isfinite(extreme) or extreme == 0:
        return 0
    return min(max(3 - math.floor(math.log10(extreme)), 0), 9)


def _number(value: float, decimals: int) -> str:
    return "-" if math.isnan(value) else f"{value:,.{decimals}f}"


# ---- the curves --------------------------------------------------------------------------------------------

SIZE_INCHES = (7.2, 4.4)
DPI = 150
FEW_POINTS = 12
BLUE, INK, GREY = "#1f5a94", "#222222", "#777777"
BOLD: dict[str, Any] = {"color": BLUE, "linewidth": 2, "marker": "o", "markersize": 4}
THIN: dict[str, Any] = {"color": BLUE, "linewidth": 0.8, "marker": "o", "markersize": 2}


def plot_curves(
    path: str | os.PathLike[str],
    steps: ArrayLike,
    scores: ArrayLike,
    *,
    title: str,
    ylabel: str,
    markers: Sequence[tuple[float, str]] | None = None,
    baseline: tuple[float, str] | None = None,
) -> None:
    """Draw learning curves as a PNG of 1080 x 660 pixels: seeds faint, the IQM bold, its interval shaded.

    A score that is not finite leaves a gap; a point between two gaps is drawn as a dot.

    Args:
        path: the picture's file, replaced in one step.
        steps: [P], environment steps per seed.
        scores: [S, P], in the unit that `ylabel` names.
        title, ylabel: plain text (no mathtext); long ones are wrapped.
        markers: (step, label) of vertical lines, such as the borders between phases.
        baseline: (score, label) of a dashed horizontal line, such as a random policy's score.

    Raises:
        ValueError: `scores` is not [S, P] for these steps.
        RunFolderError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import EngFormatter

    steps, scores = np.asarray(steps, np.float64), np.asarray(scores, np.float64)
    if steps.ndim != 1 or scores.ndim != 2 or not scores.shape[0] or scores.shape[1] != steps.size:
        raise ValueError(f"plot_curves wants steps [P] and scores [S, P]; got {steps.shape} and {scores.shape}")
    scores = np.where(np.isfinite(scores), scores, np.nan)
    markers = sorted(markers or ())

    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06)  # inches
    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout=layout, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _dress(axes)
    ends = [0.0, *steps, *(step for step, _ in markers)]
    span = (max(ends) - min(ends)) or 1.0
    axes.set_xlim(min(ends) - 0.01 * span, max(ends) + 0.02 * span)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 200k rather than 200000
    axes.set_xlabel("environment steps per seed")
    axes.set_ylabel(textwrap.fill(ylabel, 40), parse_math=False)

    _draw_scores(axes, steps, scores)
    if baseline is not None:
        axes.axhline(baseline[0], color=INK, linewidth=1.1, linestyle=(0, (5, 3)), label=baseline[1], zorder=2.5)
    rows = _draw_markers(axes, markers)
    title = textwrap.fill(title, 72)
    axes.set_title(title, loc="left", pad=7 + 12 * rows, parse_math=False, fontsize=11, color=INK)
    handles, labels = axes.get_legend_handles_labels()
    if handles:  # below the picture, where it hides nothing
        columns = 4 if sum(map(len, labels)) < 75 else 2
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
        for text in legend.get_texts():
            text.set_parse_math(False)

    picture = io.BytesIO()
    canvas.print_png(picture)
    write_whole(Path(path), picture.getvalue())


def _dress(axes: Axes) -> None:
    axes.grid(True, color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(color=GREY, labelcolor=INK, labelsize=9)


def _draw_scores(axes: Axes, steps: NDArray[np.float64], scores: NDArray[np.float64]) -> None:
    """The seeds, the band and the IQM; one seed alone is its own IQM and has no band."""
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
    alone = _alone(curve.iqm)
    axes.fill_between(steps, curve.low, curve.high, color=BLUE, alpha=0.22, linewidth=0)
    axes.vlines(steps[alone], curve.low[alone], curve.high[alone], color=BLUE, alpha=0.22, linewidth=5)
    axes.plot(steps, curve.iqm, color="white", alpha=0.7, linewidth=4.5)  # a rim, against a crowd of seeds
    axes.plot(steps, curve.iqm, markevery=_dots(curve.iqm), zorder=3, **BOLD)
    # The legend's own handles: neither the seeds' faintness nor the dots belong into it.
    axes.plot([], [], color=BLUE, linewidth=2, label="interquartile mean")
    axes.fill_between([], [], [], color=BLUE, alpha=0.22, linewidth=0, label="its 95 % bootstrap interval")
    axes.plot([], [], color=BLUE, alpha=0.45, linewidth=0.8, label=f"{S} seeds")


def _alone(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Points with no neighbour to join, which a line would not show: [P] -> [P]."""
    known = np.pad(np.isfinite(values), 1)
    return known[1:-1] & ~known[:-2] & ~known[2:]


def _dots(values: NDArray[np.float64]) -> list[int]:
    """Indices to draw as dots: those alone, or every one where they are few."""
    return np.flatnonzero(np.isfinite(values) if values.size <= FEW_POINTS else _alone(values)).tolist()


def _draw_markers(axes: Axes, markers: Sequence[tuple[float, str]]) -> int:
    """Vertical lines, labelled above the axes; where labels would meet, one climbs. Returns their rows."""
    left, right = axes.get_xlim()
    ends: list[float] = []  # where each row of labels ends, as a fraction of the axes' width
    for step, label in markers:
        axes.axvline(step, color=GREY, linewidth=1, linestyle=":", zorder=2.4)
        width = 0.0125 * len(label) + 0.02  # of 8.5 pt text, a little generous
        at = (step - left) / (right - left)
        start = min(max(at - width / 2, 0.0), max(1 - width, 0.0))
        row = next((row for row, end in enumerate(ends) if end <= start), len(ends))
        ends[row : row + 1] = [start + width]
        axes.annotate(
            label,
            (start + width / 2, 1),
            (0, 3 + 12 * row),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8.5,
            color=GREY,
            parse_math=False,
            annotation_clip=False,
        )
    return len(ends)
