"""Rung: how far a sweep's trials train before they are compared. Successive halving has several, another run one."""

import math
from typing import NamedTuple

from stages.config import Config


class Rung(NamedTuple):
    """One of a sweep's rungs: trials are trained to `steps / share` env steps a seed, and then compared."""

    number: int = 0  # from 0, the shortest
    shares: tuple[int, ...] = (1,)  # of all rungs: ETA^k, ..., ETA, 1

    @property
    def share(self) -> int:
        """The run's steps over this rung's."""
        return self.shares[self.number]

    @property
    def last(self) -> bool:
        """Whether it is the end of the run."""
        return self.number == len(self.shares) - 1

    @property
    def halves(self) -> bool:
        """Whether the sweep has further rungs, and so stops some of its trials."""
        return len(self.shares) > 1


END = Rung()
"""Of a run that is trained to its end at once."""


def shares_of(eta: int, trials: int, most: float = math.inf) -> tuple[int, ...]:
    """ETA^k, ..., ETA, 1: as many rungs as leave one of so many trials or more at the last, each with 1/ETA of them.

    Source: successive halving (Jamieson & Talwalkar 2016, arXiv 1502.07943), as Hyperband's inner loop has it
    (Li et al. 2018, arXiv 1603.06560, algorithm 1).

    Args:
        most: no share is larger, so that the first rung is not too early; more trials then come to the end.
    """
    rungs = 1
    while trials >= eta and eta**rungs <= most:
        trials, rungs = trials // eta, rungs + 1
    return tuple(eta**power for power in reversed(range(rungs)))


def chunks_until(config: Config, iterations: int, chunks: int, share: int) -> int:
    """Chunks of `iterations` iterations, of a phase of `chunks`, that come nearest to `config.steps / share`."""
    if share == 1:
        return chunks
    rows = iterations * config.schedule[0] * config.envs
    return max(1, round((config.steps / share - config.prefill * config.envs) / rows))
