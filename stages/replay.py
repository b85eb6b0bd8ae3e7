"""Replay on the device: a ring of rows, sampled in windows, with latents written back.

Axes: N environments, C capacity (rows of one environment), B windows, T trained rows of a window.
The ring belongs to one seed. The `StepCounters` are shared by all seeds and stay outside their vmap, so that a write
compiles to a slice and not to a scatter. Source: DreamerV3's embodied/core/replay.py (online queue, replay context).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped, UInt8

from envs.environment import Obs

NEWEST_ROWS = 64
"""How many newest rows, of all environments together, a quarter of the sampled pairs is drawn from."""


class Row(eqx.Module):
    """One step of one environment. action[t] was chosen at obs[t]; reward[t] arrived with obs[t]."""

    obs: Obs  # [..., *obs], in the space's storage type
    action: Shaped[Array, "..."]  # [...] int32, or [..., A] float32
    reward: Float[Array, "..."]
    is_first: Bool[Array, "..."]
    is_last: Bool[Array, "..."]
    is_terminal: Bool[Array, "..."]
    deter: Float[Array, "... D"]
    stoch: UInt8[Array, "... S"]  # classes


class StepCounters(eqx.Module):
    """What all seeds share: rows added so far to each environment, and the next window of the online queue."""

    step: Int[Array, ""]
    online_cursor: Int[Array, ""]

    @staticmethod
    def zero() -> "StepCounters":
        return StepCounters(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


class Windows(eqx.Module):
    """Where a batch came from: ring position of each window's first row (its context) and its environment."""

    start: Int[Array, " B"]
    env: Int[Array, " B"]


ReplayBuffer = Row  # a ring is a Row whose leaves are [C, N, ...]


def empty(row: Row, capacity: int) -> ReplayBuffer:
    """A ring of `capacity` rows for each environment, shaped like `row` [N, ...]."""
    return jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), row)


def capacity_of(ring: ReplayBuffer) -> int:
    """C."""
    return ring.reward.shape[0]


def add(ring: ReplayBuffer, row: Row, step: Int[Array, ""], is_kept: Bool[Array, ""] | bool = True) -> ReplayBuffer:
    """Write row number `step` [N, ...] over the oldest one, if `is_kept`. `step` must not be batched."""
    return jax.tree.map(lambda rows, x: write_row(rows, x, step, is_kept), ring, row)


def write_row(
    rows: Shaped[Array, "C ..."], row: Shaped[Array, "..."], step: Int[Array, ""], is_kept: Bool[Array, ""] | bool
) -> Shaped[Array, "C ..."]:
    """`add` for one array. Where the new row is not kept, the old one is written once more: a choice between two rings
    would copy them."""
    position = step % rows.shape[0]
    old = lax.dynamic_index_in_dim(rows, position, keepdims=False)
    return lax.dynamic_update_index_in_dim(rows, jnp.where(is_kept, row, old), position, 0)


def online_windows(step: Int[Array, ""], envs: int, length: int) -> Int[Array, ""]:
    """How many windows the online queue has been given: one of each environment for every T rows, T+1 rows long, so
    that each row is trained on once through the queue."""
    return envs * jnp.maximum(0, (step - 1) // length)


def advance_cursor(counters: StepCounters, capacity: int, envs: int, batch: int, length: int) -> StepCounters:
    """The counters after one batch."""
    first = _next_online(counters, capacity, envs, length)
    return StepCounters(
        counters.step, jnp.minimum(first + batch, jnp.maximum(first, online_windows(counters.step, envs, length)))
    )


def sample_windows(
    counters: StepCounters, capacity: int, envs: int, batch: int, length: int, online: bool, *, key: PRNGKeyArray
) -> Windows:
    """B windows of T+1 rows: those that wait in the online queue, then windows drawn uniformly from the ring.

    None straddles the write head: a uniform window starts at one of the `filled - T` oldest rows.
    """
    key_start, key_env = jr.split(key)
    filled = jnp.minimum(counters.step, capacity)
    oldest = counters.step - filled
    # A float could not tell starts apart in a ring of more than 2^24 rows.
    start = oldest + jr.randint(key_start, (batch,), 0, jnp.maximum(1, filled - length))
    env = jr.randint(key_env, (batch,), 0, envs)
    if online:
        number = _next_online(counters, capacity, envs, length) + jnp.arange(batch)
        fresh = number < online_windows(counters.step, envs, length)
        start = jnp.where(fresh, number // envs * length, start)
        env = jnp.where(fresh, number % envs, env)
    return Windows(start % capacity, env)


def _next_online(counters: StepCounters, capacity: int, envs: int, length: int) -> Int[Array, ""]:
    """The online queue's next window. Those that the ring has overwritten before their turn are skipped."""
    oldest = jnp.maximum(0, counters.step - capacity)
    return jnp.maximum(counters.online_cursor, -(-oldest // length) * envs)


def sample_pairs(counters: StepCounters, capacity: int, envs: int, count: int, *, key: PRNGKeyArray) -> Windows:
    """`count` windows of two rows: a quarter of them from the newest NEWEST_ROWS, the others uniform over all.

    None straddles the write head; an episode's end may (the row after it is_first).
    """
    key_start, key_env = jr.split(key)
    filled = jnp.minimum(counters.step, capacity)
    starts = jnp.maximum(1, filled - 1)  # rows that another one follows
    newest = jnp.minimum(starts, max(1, NEWEST_ROWS // envs))
    first = jnp.where(jnp.arange(count) < count // 4, starts - newest, 0)
    start = counters.step - filled + jr.randint(key_start, (count,), first, starts)
    return Windows(start % capacity, jr.randint(key_env, (count,), 0, envs))


def read_windows(ring: ReplayBuffer, windows: Windows, length: int) -> Row:
    """The windows' rows, [T+1, B, ...]; row 0 is context."""
    index = (windows.start + jnp.arange(length + 1)[:, None]) % capacity_of(ring), windows.env[None]
    return jax.tree.map(lambda x: x[index], ring)


def write_back(
    ring: ReplayBuffer, windows: Windows, deter: Float[Array, "T B D"], stoch: UInt8[Array, "T B S"]
) -> ReplayBuffer:
    """Replace the stored latents of the windows' trained rows by fresh ones (the context row keeps its own).

    A row that several windows hold is written once, and on every device alike: by the window in which it has the most
    rows before it, and among equal ones by the last.
    """
    length, capacity = deter.shape[0], capacity_of(ring)
    position = (windows.start + 1 + jnp.arange(length)[:, None]) % capacity
    index = jnp.where(_overwritten(windows, length, capacity), capacity, position)  # there is no row C: it is dropped
    write = lambda x, fresh: x.at[index, windows.env[None]].set(fresh, mode="drop")
    return eqx.tree_at(lambda r: (r.deter, r.stoch), ring, (write(ring.deter, deter), write(ring.stoch, stoch)))


def _overwritten(windows: Windows, length: int, capacity: int) -> Bool[Array, "T B"]:
    """Trained rows t of windows b that another window c of the batch writes."""
    t, order = jnp.arange(length)[:, None, None], jnp.arange(windows.start.shape[0])
    # Row t of window b is this row of window c, if it lies within it.
    row = (t + windows.start[:, None] - windows.start) % capacity  # [T, B, B]
    same = (row < length) & (windows.env[:, None] == windows.env)
    return (same & ((row > t) | ((row == t) & (order > order[:, None])))).any(-1)
