"""Prioritised replay: a share of a batch's windows is drawn in proportion to the disagreement about their rows.

A row's priority is the disagreement about its action, as it was when the row was last replayed; rows that were not yet
replayed count as the largest in the ring, so that each soon is. A window's priority is the sum over its trained rows.
One array [C, N] holds them, beside the ring, and each update passes over it once.

Source: Schaul et al. 2016 (arXiv 1511.05952): proportional priorities (eq. 1, their power at 1), the largest one for
new rows, and importance weights (section 3.4, their power at 1). Disagreement stands for the error there, and uniform
windows, which are the rest of the batch, for powers below 1.

Axes: C capacity, N environments, B windows, T trained rows of a window, k entries of a table.
"""

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from stages import replay
from stages.replay import Clock, Windows

Priority = Float[Array, "C N"]
UNKNOWN = -1.0  # of rows that were not yet replayed
LEAST = 1e-6  # of the largest priority: no row may have none, or it would never be replayed and so never change
GROUP = 1024  # entries of a table that are drawn from at once


def empty(capacity: int, envs: int) -> Priority:
    """Before the first row."""
    return jnp.full((capacity, envs), UNKNOWN)


def add(priority: Priority | None, step: Int[Array, ""], taken: Bool[Array, ""] | bool = True) -> Priority | None:
    """Row number `step` of each environment is new, if it is taken. `step` must not be batched."""
    return None if priority is None else replay.put(priority, jnp.full(priority.shape[1], UNKNOWN), step, taken)


def write_back(
    priority: Priority, windows: Windows, fresh: Float[Array, "T B"], taken: Bool[Array, ""] | bool = True
) -> Priority:
    """Replace the priorities of the windows' trained rows by fresh ones, if they are taken."""
    at, env = replay.written_rows(windows, fresh.shape[0], priority.shape[0])
    return priority.at[at, env].set(jnp.where(taken, fresh, priority[at % priority.shape[0], env]), mode="drop")


def of_windows(priority: Priority, clock: Clock, length: int) -> Float[Array, "C N"]:
    """The priority of the window of T + 1 rows that starts at each row, summed over the T behind it; 0 where none may
    start, since the write head would lie within it."""
    capacity = priority.shape[0]
    largest = priority.max()
    largest = jnp.where(largest > 0, largest, 1.0)
    row = jnp.maximum(jnp.where(priority < 0, largest, priority), LEAST * largest)
    # Sums of T rows from sums of 1, 2, 4, ...: a difference of two cumulative sums would be rounded as the ring's sum.
    total, at, part, size = jnp.zeros_like(row), 1, row, 1
    while size <= length:
        if length & size:
            total, at = total + jnp.roll(part, -at, 0), at + size
        part, size = part + jnp.roll(part, -size, 0), 2 * size
    filled = jnp.minimum(clock.step, capacity)
    age = (jnp.arange(capacity) - (clock.step - filled)) % capacity  # counted from the oldest row
    return jnp.where((age < jnp.maximum(1, filled - length))[:, None], total, 0.0)


def draw(weight: Float[Array, " k"], uniform: Float[Array, "B 2"]) -> Int[Array, " B"]:
    """Indices drawn in proportion to their weights, with two uniform numbers in [0, 1) each.

    First a group of 1,024 entries and then one of them: the steps of a single float32 number, and of a cumulative sum
    in float32, are coarser than one weight of a million.
    """
    groups = jnp.pad(weight, (0, -len(weight) % GROUP)).reshape(-1, GROUP)
    group = _inverse(jnp.broadcast_to(groups.sum(-1), (len(uniform), len(groups))), uniform[:, 0])
    return jnp.minimum(group * GROUP + _inverse(groups[group], uniform[:, 1]), len(weight) - 1)


def _inverse(weight: Float[Array, "B k"], uniform: Float[Array, " B"]) -> Int[Array, " B"]:
    """The first index at which the cumulative weight exceeds that share of all."""
    cumulative = jnp.cumsum(weight, -1)
    below = cumulative <= uniform[:, None] * cumulative[:, -1:]
    return jnp.minimum(below.sum(-1, dtype=jnp.int32), weight.shape[-1] - 1)


def choose(
    priority: Priority, clock: Clock, batch: int, length: int, online: bool, share: float, *, key: PRNGKeyArray
) -> tuple[Windows, Float[Array, " B"]]:
    """B windows of T+1 rows, the last `share` of them by priority, and their importance weights.

    The others are `replay.choose`'s: the online queue's first, which comes before priorities if it is long.

    Returns:
        windows
        weights: what a window's losses are multiplied by, so that their mean is that over uniform windows. By priority
            and uniform ones together are a mixture, and a window weighs 1 / (n times its probability there), n windows
            in the ring. The online queue's weigh 1: they are no sample.
    """
    capacity, envs = priority.shape
    key_plain, key_draw = jr.split(key)
    plain = replay.choose(clock, capacity, envs, batch, length, online, key=key_plain)
    queued = replay.queued(clock, capacity, envs, batch, length)[1] if online else jnp.zeros(batch, bool)

    each = of_windows(priority, clock, length)
    index = draw(each.ravel(), jr.uniform(key_draw, (batch, 2)))
    # Rounding may end at a window of no weight: the uniform one then stands.
    drawn = (jnp.arange(batch) >= batch - round(share * batch)) & ~queued & (each.ravel()[index] > 0)
    windows = Windows(jnp.where(drawn, index // envs, plain.start), jnp.where(drawn, index % envs, plain.env))

    part = drawn.sum() / jnp.maximum(1, (~queued).sum())
    relative = each[windows.start, windows.env] / each.sum() * (each > 0).sum()
    return windows, jnp.where(queued, 1.0, 1 / (part * relative + 1 - part))
