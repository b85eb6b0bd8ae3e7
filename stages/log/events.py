"""Events: in how many of a run's episodes each thing happened, and Crafter's score of achievements.

Source of the score: Hafner (2022), "Benchmarking the Spectrum of Agent Capabilities", section 3.3.

Axes: S seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.results.statistics import mean_of

Counts = NDArray[np.int64]
METRIC = "event/"
"""In front of an event's name in metrics.jsonl, where it is a share of the episodes that ended since the last line."""
MOST_SHOWN = 12


@dataclass
class EventLog:
    """Episodes of each seed that have ended, and of them those in which each event happened; [S], empty before any."""

    episodes: Counts = field(default_factory=lambda: np.zeros(0, np.int64))  # counted without events, too
    happened: dict[str, Counts] = field(default_factory=dict)

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add what rows of metrics.jsonl say, one for each seed."""
        names = [name.removeprefix(METRIC) for name in rows[0] if name.startswith(METRIC)]
        episodes = np.array([row["episode/count"] for row in rows], np.int64)
        before = self.happened or {name: np.zeros_like(episodes) for name in names}
        shares = {name: np.array([row[METRIC + name] for row in rows], np.float64) for name in names}
        counts = {name: np.rint(np.nan_to_num(share) * episodes).astype(np.int64) for name, share in shares.items()}
        self.happened = {name: before[name] + counts[name] for name in names}
        self.episodes = self.episodes + episodes if self.episodes.size else episodes

    def rates(self) -> dict[str, NDArray[np.float64]]:
        """The share of a seed's episodes in which each event happened, [S]; NaN without an episode."""
        with np.errstate(invalid="ignore"):
            return {name: counts / self.episodes for name, counts in self.happened.items()}

    def summary(self, achievements: Sequence[str]) -> dict[str, Any]:
        """What summary.json says of events; nothing where the environment has none."""
        if not self.happened:
            return {}
        rates = self.rates()
        about: dict[str, Any] = {"events": {name: rate.tolist() for name, rate in rates.items()}}
        if achievements:
            about["crafter_score"] = crafter_score(np.stack([rates[name] for name in achievements])).tolist()
        return about

    def lines(self, achievements: Sequence[str]) -> list[str]:
        """For the terminal: the share of episodes of every event that happened, over all seeds, most frequent first."""
        episodes = int(self.episodes.sum())
        if not self.happened or not episodes:
            return []
        shares = {name: counts.sum() / episodes for name, counts in self.happened.items()}
        seen = sorted((name for name in shares if shares[name] > 0), key=lambda name: -shares[name])
        listed = ", ".join(f"{name} {shares[name]:.1%}" for name in seen[:MOST_SHOWN])
        rest = f" and {len(seen) - MOST_SHOWN} more" if len(seen) > MOST_SHOWN else ""
        lines = [f"events, by share of {episodes:,} episodes: {listed or 'none'}{rest} (of {len(shares)} events)"]
        if achievements:
            score = mean_of(self.summary(achievements)["crafter_score"])
            lines.append(f"Crafter's score: {score:.2f} %, mean over seeds")
        return lines


def crafter_score(rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp(mean of ln(1 + s)) - 1 over achievements, s being success rates in %: rates [achievements, S] -> [S], in %.

    Rare achievements weigh as much as frequent ones: from 0 to 1 % counts as much as from 49 to 99 %.
    """
    return np.expm1(np.log1p(100 * rates).mean(0))
