"""Statistics over seeds: the interquartile mean and its bootstrap interval. Numpy only, on the host.

The interquartile mean (IQM) is the mean of the middle half of the seeds: robust to a lucky or a broken seed,
yet less wasteful than the median. Definition and bootstrap follow rliable: Agarwal et al. 2021, "Deep
Reinforcement Learning at the Edge of the Statistical Precipice", arXiv 2108.13264. With one task, its
stratified bootstrap is the plain bootstrap over seeds that stands here.

Axes: S seeds, P points of a curve, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
BOOTSTRAP_SEED = 0  # fixed, so that the same scores always print the same interval
CHUNK_ELEMENTS = 4_000_000  # of a chunk of the bootstrap, over seeds, points and resamples: 32 MB of float64


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
    random, each = np.random.default_rng(BOOTSTRAP_SEED), np.empty((P, resamples))
    width = max(1, CHUNK_ELEMENTS // max(1, S * P))
    for start in range(0, resamples, width):
        draws = random.integers(0, S, size=(min(width, resamples - start), S))  # [r, S]
        each[:, start : start + width] = _iqm(scores.T[:, draws])  # [P, S] -> [P, r, S] -> [P, r]
    low, high = _interval(each)
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
    present = np.isfinite(values).any(-1)
    ends = np.full((2, values.shape[0]), np.nan)
    ends[:, present] = np.nanpercentile(values[present], [tail, 100 - tail], axis=-1)
    return ends[0], ends[1]
