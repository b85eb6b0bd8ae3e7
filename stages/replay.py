"""Replay on the device: a ring of rows, sampled in windows, newest first once, with latents written back.

Axes: N environments, C capacity (rows of one environment), B windows, T trained rows of a window.
The ring belongs to one seed. Its clock is shared by all seeds and stays outside their vmap, so that a write compiles to
a slice and not to a scatter. Source: DreamerV3's embodied/core/replay.py (online queue, replay context).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


class Row(eqx.Module):
    """One step of one environment. action[t] was chosen at obs[t]; reward[t] arrived with obs[t]."""

    obs: Array  # [..., *obs], in the space's storage type
    action: Array  # [...] int32, or [..., A] float32
    reward: Float[Array, "..."]
    is_first: Bool[Array, "..."]
    is_last: Bool[Array, "..."]
    is_terminal: Bool[Array, "..."]
    deter: Float[Array, "... D"]
    stoch: Int[Array, "... S"]  # classes, uint8


class Clock(eqx.Module):
    """What all seeds share: rows added so far to each environment, and online windows served so far."""

    step: Int[Array, ""]
    served: Int[Array, ""]

    @staticmethod
    def zero() -> "Clock":
        return Clock(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


class Windows(eqx.Module):
    """Where a batch came from: ring position of each window's first row (its context) and its environment."""

    start: Int[Array, " B"]
    env: Int[Array, " B"]


Replay = Row  # a ring is a Row whose leaves are [C, N, ...]


def empty(row: Row, capacity: int) -> Replay:
    """A ring of `capacity` rows for each environment, shaped like `row` [N, ...]."""
    return jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), row)


def capacity_of(ring: Replay) -> int:
    """C."""
    return ring.reward.shape[0]


def add(ring: Replay, row: Row, step: Int[Array, ""]) -> Replay:
    """Write row number `step` [N, ...] over the oldest one. `step` must not be batched."""
    position = step % capacity_of(ring)
    return jax.tree.map(lambda r, x: lax.dynamic_update_index_in_dim(r, x, position, 0), ring, row)


def online_windows(step: Int[Array, ""], envs: int, length: int) -> Int[Array, ""]:
    """How many windows the online queue has been given: one of each environment for every T rows, T+1 rows long, so
    that each row is trained on once through the queue."""
    return envs * jnp.maximum(0, (step - 1) // length)


def serve(clock: Clock, capacity: int, envs: int, batch: int, length: int) -> Clock:
    """The clock after one batch. Windows that the ring has overwritten before their turn are skipped."""
    oldest = jnp.maximum(0, clock.step - capacity)
    first = jnp.maximum(clock.served, -(-oldest // length) * envs)
    return Clock(clock.step, jnp.minimum(first + batch, jnp.maximum(first, online_windows(clock.step, envs, length))))


def choose(
    clock: Clock, capacity: int, envs: int, batch: int, length: int, online: bool, *, key: PRNGKeyArray
) -> Windows:
    """B windows of T+1 rows: unserved newest ones first, uniform over all others. None straddles the write head.

    Uniform windows start at one of the `filled - T` rows that T more follow; positions are counted from the oldest row.
    """
    key_start, key_env = jr.split(key)
    filled = jnp.minimum(clock.step, capacity)
    oldest = clock.step - filled
    # A float could not tell starts apart in a ring of more than 2^24 rows.
    start = oldest + jr.randint(key_start, (batch,), 0, jnp.maximum(1, filled - length))
    env = jr.randint(key_env, (batch,), 0, envs)
    if online:
        first = jnp.maximum(clock.served, -(-oldest // length) * envs)
        queued = first + jnp.arange(batch)
        fresh = queued < online_windows(clock.step, envs, length)
        start = jnp.where(fresh, queued // envs * length, start)
        env = jnp.where(fresh, queued % envs, env)
    return Windows(start % capacity, env)


def _positions(ring: Replay, windows: Windows, rows: Int[Array, " R"]) -> tuple[Array, Array]:
    """Ring positions [R, B] of the given rows of each window, and their environments [1, B]."""
    return (windows.start[None] + rows[:, None]) % capacity_of(ring), windows.env[None]


def read(ring: Replay, windows: Windows, length: int) -> Row:
    """The windows' rows, [T+1, B, ...]; row 0 is context."""
    at = _positions(ring, windows, jnp.arange(length + 1))
    return jax.tree.map(lambda x: x[at], ring)


def write_back(ring: Replay, windows: Windows, deter: Float[Array, "T B D"], stoch: Int[Array, "T B S"]) -> Replay:
    """Replace the stored latents of the windows' trained rows by fresh ones (the context row keeps its own)."""
    at = _positions(ring, windows, 1 + jnp.arange(deter.shape[0]))
    fresh = (ring.deter.at[at].set(deter), ring.stoch.at[at].set(stoch))
    return eqx.tree_at(lambda r: (r.deter, r.stoch), ring, fresh)
