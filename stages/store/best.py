"""Best: each seed's agent as it was where its evaluation scored most, kept beside the state in every checkpoint.

Axes: S seeds, P evaluations.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool
from numpy.typing import NDArray

from stages.agent import Agent


class BestPoints(NamedTuple):
    """Where each seed scored most."""

    step: list[int]  # [S], env steps; the earliest of equal scores
    score: NDArray[np.float64]  # [S]; NaN of a seed without a finite score


def best_points(steps: Sequence[int], scores: Sequence[Sequence[float | None] | NDArray[np.float64]]) -> BestPoints:
    """The best of evaluations at these steps, [P], with scores [P, S]."""
    table = np.array(scores, np.float64)
    index = np.where(np.isnan(table), -np.inf, table).argmax(0)
    return BestPoints([steps[i] for i in index], table[index, np.arange(table.shape[1])])


@jax.jit
def keep_best(improved: Bool[Array, " S"], agent: Agent, best: Agent) -> Agent:
    """The agents [S, ...] of the seeds that improved, and the best so far of the others, as new arrays."""
    return jax.tree.map(lambda new, old: jnp.where(improved.reshape(-1, *[1] * (new.ndim - 1)), new, old), agent, best)
