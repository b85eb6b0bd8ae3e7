"""Statistics over seeds and tasks, each with its bootstrap interval. Numpy only, on the host.

The interquartile mean (IQM) is the mean of the middle half of the seeds. It is robust to outliers and uses more seeds
than the median. Definition and bootstrap follow rliable (Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge
of the Statistical Precipice", arXiv 2108.13264). The seeds of each task are resampled separately (stratified); for one
task this is the plain bootstrap over seeds.

Axes: T tasks, S and Q seeds, P points of a curve, R resamples.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
LEAST_SEEDS = 5
"""The fewest seeds for which an interval is shown: with fewer it spans the whole range."""
BOOTSTRAP_SEED = 0  # fixed, so that the same scores always print the same interval
CHUNK_ELEMENTS = 4_000_000  # of a chunk of the bootstrap, over seeds, points and resamples: 32 MB of float64


@dataclass(frozen=True)
class ScoreSummary:
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


class Estimate(NamedTuple):
    """A number with its 95 % bootstrap interval; NaN without data."""

    value: float
    low: float
    high: float


class Curve(NamedTuple):
    """IQM over seeds at every point, and its 95 % bootstrap interval, in the score's own unit."""

    iqm: Floats  # [P]
    low: Floats  # [P]
    high: Floats  # [P]


def summarise(scores: ArrayLike, seeds: Sequence[int], resamples: int = 2000) -> ScoreSummary:
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
        return ScoreSummary(nan, nan, nan, nan, nan, nan, None, nan, None, count=0, nonfinite=nonfinite)
    worst = int(np.argmin(np.where(finite, scores, np.inf)))
    best = int(np.argmax(np.where(finite, scores, -np.inf)))
    return ScoreSummary(
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
    a curve. A score that is not finite counts as absent: each point's IQM is over the seeds that have one. A
    resample that drew none of them is left out. A point where no seed has a score is NaN.

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
    random, samples = np.random.default_rng(BOOTSTRAP_SEED), np.empty((P, resamples))
    width = max(1, CHUNK_ELEMENTS // max(1, S * P))
    for start in range(0, resamples, width):
        draws = random.integers(0, S, size=(min(width, resamples - start), S))  # [r, S]
        samples[:, start : start + width] = _iqm(scores.T[:, draws])  # [P, S] -> [P, r, S] -> [P, r]
    low, high = _interval(samples)
    return Curve(_iqm(scores.T), low, high)


def iqm(scores: ArrayLike) -> float:
    """The interquartile mean of the finite scores of [S]; NaN without one."""
    scores = np.asarray(scores, np.float64)
    return float(_iqm(np.where(np.isfinite(scores), scores, np.nan)))


def aggregates(tasks: Sequence[ArrayLike], best: float | None = None, resamples: int = 2000) -> dict[str, Estimate]:
    """Final scores of all seeds of all tasks as one number, in four ways.

    Args:
        tasks: [T] of [S], in one unit: of one task, or normalised. A score that is not finite counts as absent. The
            numbers of seeds may differ; a task weighs in the IQM and in the optimality gap by its seeds.
        best: the highest possible score, if known.

    Returns:
        iqm: the mean of the middle half of all scores.
        median: over tasks, of the means over their seeds; of one task, over its seeds.
        mean: over tasks, of the means over their seeds.
        optimality_gap: mean distance of scores below `best`; scores above it count as `best`. NaN without `best`.

    Raises:
        ValueError: there is no task, or one without seeds.

    Source: Agarwal et al. 2021 (arXiv 2108.13264).
    """
    scores = [np.asarray(task, np.float64) for task in tasks]
    if not scores or not all(task.ndim == 1 and task.size for task in scores):
        raise ValueError(f"aggregates wants tasks of scores [S]; got {[task.shape for task in scores]}")
    scores = [np.where(np.isfinite(task), task, np.nan) for task in scores]
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    drawn = [task[rng.integers(0, task.size, size=(resamples, task.size))] for task in scores]
    values, samples = _aggregates([task[None] for task in scores], best), _aggregates(drawn, best)
    return {name: _estimate(values[name][0], samples[name]) for name in values}


def mean_of(values: Sequence[float | None]) -> float:
    """The mean over seeds that have a number; NaN without one."""
    numbers = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(numbers)) if numbers else np.nan


def improvement(ours: Sequence[ArrayLike], theirs: Sequence[ArrayLike], resamples: int = 2000) -> Estimate:
    """Probability that a seed of ours scores more than a seed of theirs, on average over tasks; equal ones count half.

    This is the Mann-Whitney statistic divided by its greatest value. Both sides' seeds are resampled, task by task.

    Args:
        ours: [T] of [S].
        theirs: [T] of [Q], the same tasks. Scores that are not finite are left out; a task without any is, too.

    Source: Agarwal et al. 2021 (arXiv 2108.13264).
    """
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    values, samples = [], []
    for x, y in zip(ours, theirs, strict=True):
        x, y = (np.asarray(task, np.float64) for task in (x, y))
        x, y = x[np.isfinite(x)], y[np.isfinite(y)]
        if not (x.size and y.size):
            continue
        wins = (x[:, None] > y) + 0.5 * (x[:, None] == y)  # [S, Q]
        # How often a resample has each seed is all that its mean depends on: [R, S] and [R, Q].
        times_x, times_y = (rng.multinomial(n, np.full(n, 1 / n), size=resamples) for n in wins.shape)
        values.append(wins.mean())
        samples.append(((times_x @ wins) * times_y).sum(1) / wins.size)
    if not values:
        return Estimate(math.nan, math.nan, math.nan)
    return _estimate(float(np.mean(values)), np.mean(samples, axis=0))


def _aggregates(tasks: list[Floats], best: float | None) -> dict[str, Floats]:
    """Of resamples of every task: [T] of [R, S] -> name -> [R]. NaN as absent."""
    pooled = np.concatenate(tasks, axis=1)
    short = np.full_like(pooled, np.nan) if best is None else best - np.minimum(pooled, best)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice|All-NaN slice", RuntimeWarning)  # NaN is meant
        means = np.stack([np.nanmean(task, axis=1) for task in tasks], axis=1)  # [R, T]
        return {
            "iqm": _iqm(pooled),
            "median": np.nanmedian(means if len(tasks) > 1 else tasks[0], axis=1),
            "mean": np.nanmean(means, axis=1),
            "optimality_gap": np.nanmean(short, axis=1),
        }


def _estimate(value: float, samples: Floats) -> Estimate:
    """A number and the interval of its resamples, [R]."""
    low, high = _interval(samples[None])
    return Estimate(float(value), float(low[0]), float(high[0]))


def _iqm(values: Floats) -> Floats:
    """IQM over the last axis, NaN as absent: [..., S] -> [...]. A quarter, rounded down, is cut per end."""
    ordered = np.sort(values, axis=-1)  # NaN last
    count = np.isfinite(ordered).sum(-1, keepdims=True)
    cut = count // 4
    rank = np.arange(values.shape[-1])
    middle = (rank >= cut) & (rank < count - cut)
    kept = (count - 2 * cut)[..., 0]
    total = np.where(middle, ordered, 0.0).sum(-1)
    return np.where(kept > 0, total / np.maximum(kept, 1), np.nan)


def _interval(values: Floats) -> tuple[Floats, Floats]:
    """The central 95 % over the last axis, NaN as absent: [P, R] -> ([P], [P])."""
    tail = 100 * (1 - CONFIDENCE) / 2
    present = np.isfinite(values).any(-1)
    ends = np.full((2, values.shape[0]), np.nan)
    ends[:, present] = np.nanpercentile(values[present], [tail, 100 - tail], axis=-1)
    return ends[0], ends[1]
