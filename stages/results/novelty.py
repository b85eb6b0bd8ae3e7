"""Novelty: a sweep's coverage, and whether the intrinsic reward falls with visits. On the host.

A reward that measures novelty is the larger, the fewer visits a (state, action) pair has. Their rank correlation is -1
at best, and 0 if the reward is unrelated to visits.

Axes: S seeds, X states, U actions that are told apart (coverage.action_count), P points of a run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.cli.settings_file import JsonObject
from stages.results.statistics import Floats

Ints = NDArray[np.integer]

BINS = {"never": (0, 0), "1_3": (1, 3), "4_15": (4, 15), "16_63": (16, 63), "64_255": (64, 255), "256": (256, np.inf)}
"""Name -> fewest and most visits of a bin of pairs."""


def rank_correlation(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation of [n] and [n], ties averaged; NaN where one of them does not vary."""
    from scipy import stats

    if len(np.unique(x)) < 2 or len(np.unique(y)) < 2:
        return math.nan
    return float(np.asarray(stats.spearmanr(x, y))[0])  # scipy's versions type it in different ways


def novelty_metrics(visits: ArrayLike, reward: ArrayLike) -> dict[str, Floats]:
    """Each seed's coverage, and its intrinsic reward by visits.

    Args:
        visits: [S, X, U].
        reward: the measured intrinsic reward, [S, X, U]; pairs with NaN are left out.

    Returns:
        name -> [S]. visited_states, visited_pairs; correlation (Spearman's, of the reward with visits; -1 is best);
        reward_BIN, the mean of the reward over the pairs of a bin of visits. NaN where there is nothing
        to average.
    """
    per_seed = [_metrics(*pair) for pair in zip(np.asarray(visits), np.asarray(reward, np.float64), strict=True)]
    return {name: np.array([metrics[name] for metrics in per_seed]) for name in per_seed[0]}


def _metrics(visits: Ints, reward: Floats) -> dict[str, float]:
    """The same of one seed, [X, U]."""
    known = np.isfinite(reward)
    tried, paid = visits[known], reward[known]
    metrics = {
        "visited_states": float((visits.sum(1) > 0).sum()),
        "visited_pairs": float((visits > 0).sum()),
        "correlation": rank_correlation(tried, paid),
    }
    for name, (low, high) in BINS.items():
        inside = (tried >= low) & (tried <= high)
        metrics[f"reward_{name}"] = float(paid[inside].mean()) if inside.any() else float("nan")
    return metrics


def median_episode(episodes: ArrayLike) -> float:
    """The median over seeds of the episode in which each first reached something, [S]; NaN or 0 if it has not.

    A seed that has not reached it counts as later than all others. So the median is infinite if half of the seeds have
    not, and a run in which only few seeds have reached it gains nothing.
    """
    values = np.asarray(episodes, np.float64)
    return float(np.median(np.where(values > 0, values, np.inf))) if values.size else math.nan


def baseline_metrics(collected: ArrayLike, untrained: ArrayLike, random: ArrayLike) -> dict[str, Floats]:
    """Each seed's intrinsic reward where states cannot be counted, and the ratio collected / untrained; name -> [S].

    The ratio falls from 1 as the reward learns the collected rows. If the explorer seeks high rewards, the mean at its
    newest rows is above that at rows of random actions.
    """
    means = {"collected": collected, "untrained": untrained, "random": random}
    metrics = {f"reward_{name}": np.asarray(values, np.float64) for name, values in means.items()}
    with np.errstate(invalid="ignore", divide="ignore"):
        share = metrics["reward_collected"] / metrics["reward_untrained"]
    return metrics | {"untrained_share": share}


class Map(NamedTuple):
    """Visits and reward of each state, of a trial's first seed at one point; they are drawn as maps."""

    step: int
    visits: Ints  # [X], of all actions
    reward: Floats  # [X], mean over actions; NaN where there is none

    @staticmethod
    def of(step: int, visits: ArrayLike, reward: ArrayLike) -> Map:
        """From visits and the measured reward, [X, U], after `step` env steps of the seed."""
        # A state has the reward of all its actions, or of none.
        return Map(step, np.asarray(visits).sum(1), np.asarray(reward, np.float64).mean(1))


@dataclass
class Maps:
    """Three maps of one seed, of the phase that explores."""

    early: Map
    middle: Map  # the last one up to half of the phase
    late: Map  # the last one


@dataclass
class NoveltyLog:
    """A round's measurements: metrics of every seed at every point, and maps of each trial's first seed."""

    steps: list[int] = field(default_factory=list)  # [P]
    metrics: list[dict[str, Floats]] = field(default_factory=list)  # [P] of name -> [S]
    goal_episode: Ints = field(default_factory=lambda: np.zeros(0, np.int64))  # [S], 0: not yet
    solved_episode: Ints = field(default_factory=lambda: np.zeros(0, np.int64))  # [S], 0: not yet
    maps: dict[int, Maps] = field(default_factory=dict)  # by trial; of a seed that the leading process trains

    def add(self, step: int, metrics: dict[str, Floats], goal_episode: Ints, solved_episode: Ints) -> None:
        """One point, after `step` env steps of a seed: name -> [S] as of `novelty_metrics`, and episodes [S]."""
        self.steps.append(step)
        self.metrics.append(metrics)
        self.goal_episode, self.solved_episode = goal_episode, solved_episode

    def add_map(self, new: Map, half: int, trial: int = 0) -> None:
        """The map of a trial's first seed at that point. `half`: half of the phase's steps."""
        before = self.maps.get(trial)
        middle = new if before is None or new.step <= half else before.middle
        self.maps[trial] = Maps(new if before is None else before.early, middle, new)

    def curve(self, name: str) -> Floats:
        """A metric at every point, [S, P]."""
        return np.stack([point[name] for point in self.metrics], 1)

    @property
    def correlation(self) -> Floats:
        """Each seed's last correlation that is not NaN, [S]; NaN if there is none."""
        last = np.full(len(self.goal_episode), np.nan)
        for point in self.metrics:
            last = np.where(np.isfinite(point["correlation"]), point["correlation"], last)
        return last


def coverage_summary(log: NoveltyLog | None, states: int | None) -> JsonObject:
    """What summary.json says of each seed's coverage, in lists [S]; all None where states cannot be counted."""
    names = ("visited_states", "visited_pairs", "novelty_correlation", "goal_episode", "solved_episode")
    if log is None or not log.metrics:
        return {"states": states} | dict.fromkeys(names)
    last = log.metrics[-1]
    values = (
        [int(count) for count in last["visited_states"]],
        [int(count) for count in last["visited_pairs"]],
        log.correlation.tolist(),
        [int(episode) or None for episode in log.goal_episode],
        [int(episode) or None for episode in log.solved_episode],
    )
    return {"states": states} | dict(zip(names, values, strict=True))


def novelty_line(log: NoveltyLog, states: int, has_goal: bool, novelty: str = "disagreement") -> str:
    """The sweep's coverage in a line for the terminal. `novelty`: name of the reward that is compared with visits."""
    seeds = len(log.goal_episode)
    parts = [f"visited {np.median(log.metrics[-1]['visited_states']):,g} of {states:,} states"]
    if np.isfinite(log.correlation).any():
        parts.append(f"rank correlation of {novelty} with visits {np.nanmedian(log.correlation):.2f}")
    if has_goal:
        median = median_episode(log.goal_episode)
        reached = np.count_nonzero(log.goal_episode)
        when = f", first in episode {median:,g}" if math.isfinite(median) else ", median not yet" if reached else ""
        parts.append(f"goal reached by {reached} of {seeds} seeds{when}")
    return "; ".join(parts) + (" (medians over all seeds)" if seeds > 1 else "")
