"""replay.py against a plain list, with rows that hold their own number: consecutive means one more each.

Axes: N environments, C capacity, B windows, T trained rows of a window, D deter, S categoricals.
"""

import collections
import dataclasses
import functools
import math
import re
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from stages import replay
from stages.replay import Row, StepCounters, Windows
from tests.conftest import to_device

N, D, S = 3, 2, 2
EPISODE = 5  # rows
close = chex.assert_trees_all_close
equal = chex.assert_trees_all_equal
arrays = functools.partial(jax.tree.map, np.asarray)


read_windows = jax.jit(replay.read_windows, static_argnums=2)
write_back = jax.jit(replay.write_back)
sample_pairs = jax.jit(replay.sample_pairs, static_argnums=(1, 2, 3))


@jax.jit
def row_of(step) -> Row:
    """Row number `step` of N environments; obs[n] = (step, n), everything else a function of it."""
    step, env = jnp.asarray(step, jnp.int32), jnp.arange(N)
    return Row(
        obs=jnp.stack([jnp.full(N, step), env], -1).astype(jnp.int32),
        action=(2 * step + env).astype(jnp.int32),
        reward=(step + env / 8).astype(jnp.float32),
        is_first=jnp.full(N, step % EPISODE == 0),
        is_last=jnp.full(N, step % EPISODE == EPISODE - 1),
        is_terminal=(step % EPISODE == EPISODE - 1) & (env == 0),
        deter=(step + env[:, None] * jnp.ones(D) / 8).astype(jnp.float32),
        stoch=((step + env[:, None] + jnp.arange(S)) % 250).astype(jnp.uint8),
    )


@functools.partial(jax.jit, static_argnums=(0,))
def filled(capacity: int, steps) -> Row:
    """A ring that has seen rows 0 ... steps - 1."""
    add = lambda step, ring: replay.add(ring, row_of(step), step)
    return jax.lax.fori_loop(0, steps, add, replay.empty(row_of(0), capacity))


def counters_at(step: int, online_cursor: int = 0) -> StepCounters:
    return StepCounters(jnp.int32(step), jnp.int32(online_cursor))


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def draw(counters: StepCounters, capacity: int, batch: int, length: int, online: bool, key):
    """(windows, counters after)."""
    windows = replay.sample_windows(counters, capacity, N, batch, length, online, key=key)
    return windows, replay.advance_cursor(counters, capacity, N, batch, length)


# ---- the ring ------------------------------------------------------------------------------------------------------


def test_empty_has_a_place_for_every_row_and_keeps_compact_types():
    ring = replay.empty(row_of(0), 7)
    assert replay.capacity_of(ring) == 7
    for slots, row in zip(jax.tree.leaves(ring), jax.tree.leaves(row_of(0)), strict=True):
        chex.assert_shape(slots, (7, *row.shape))
        assert slots.dtype == row.dtype and not slots.any()
    assert ring.is_first.dtype == ring.is_last.dtype == ring.is_terminal.dtype == jnp.bool_
    assert ring.stoch.dtype == jnp.uint8


@pytest.mark.parametrize("dtype", [jnp.bool_, jnp.uint8, jnp.int32, jnp.float32])
def test_observations_keep_their_storage_type(dtype):
    row = Row(**{**vars(row_of(0)), "obs": jnp.ones((N, 4, 4), dtype)})
    ring = replay.add(replay.empty(row, 5), row, jnp.int32(0))
    assert ring.obs.dtype == dtype
    assert read_windows(ring, Windows(jnp.zeros(2, int), jnp.zeros(2, int)), 2).obs.dtype == dtype


@pytest.mark.parametrize("steps", [0, 1, 6, 7, 8, 20])
def test_the_ring_holds_what_a_list_would(steps):
    ring, slots = jax.tree.map(np.asarray, filled(7, steps)), [None] * 7
    for step in range(steps):
        slots[step % 7] = row_of(step)
    for position, row in enumerate(slots):
        held = jax.tree.map(lambda x, p=position: x[p], ring)
        equal(held, jax.tree.map(np.zeros_like, row_of(0)) if row is None else row)


def test_read_returns_the_rows_of_each_window_in_order():
    ring, slots = filled(7, 20), [row_of(step) for step in (14, 15, 16, 17, 18, 19, 13)]  # the newest is in slot 5
    windows = Windows(jnp.array([6, 0, 1]), jnp.array([2, 0, 1]))
    rows, slots = jax.tree.map(np.asarray, (read_windows(ring, windows, 4), slots))
    chex.assert_tree_shape_prefix(rows, (5, 3))
    for t in range(5):
        for b, (start, env) in enumerate([(6, 2), (0, 0), (1, 1)]):
            by_hand = jax.tree.map(lambda x, e=env: x[e], slots[(start + t) % 7])
            equal(jax.tree.map(lambda x, t=t, b=b: x[t, b], rows), by_hand)


def test_add_under_vmap_over_seeds_is_a_slice_and_not_a_scatter():
    seeds = 4
    row = jax.tree.map(lambda x: jnp.stack([x] * seeds), row_of(3))
    ring = jax.vmap(functools.partial(replay.empty, capacity=7))(row)

    def opcodes(axis, step) -> set[str]:
        """Those of the compiled program (vmap always says scatter; the compiler sees through one of a single row)."""
        add = jax.jit(jax.vmap(replay.add, (0, 0, axis)), donate_argnums=0)
        program = add.lower(ring, row, step).compile().as_text()
        return set(re.findall(r" (scatter|while|dynamic-update-slice)\(", program))

    shared, own = opcodes(None, jnp.int32(3)), opcodes(0, jnp.full(seeds, 3))
    assert shared == {"dynamic-update-slice"}
    # What counters of each seed's own would cost: a scatter, which a CPU runs as a loop over seeds.
    assert {"scatter", "while"} & own


def test_add_under_vmap_writes_every_seeds_own_row():
    rows = jax.tree.map(lambda *x: np.stack(x), row_of(10), row_of(11))
    rings = jax.tree.map(lambda *x: np.stack(x), filled(7, 10), filled(7, 9))
    both = arrays(jax.jit(jax.vmap(replay.add, (0, 0, None)))(rings, rows, jnp.int32(10)))
    for seed in range(2):
        by_hand = jax.tree.map(lambda x, s=seed: x[s].copy(), rings)
        for slots, row in zip(jax.tree.leaves(by_hand), jax.tree.leaves(rows), strict=True):
            slots[3] = row[seed]
        equal(jax.tree.map(lambda x, s=seed: x[s], both), by_hand)


# ---- pairs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 3, 6, 7, 8, 20, 1000])
def test_pairs_are_consecutive_rows_that_the_ring_holds(steps):
    capacity = 7
    ring, counters = filled(capacity, steps), counters_at(steps)
    windows = sample_pairs(counters, capacity, N, 600, key=jr.key(steps))
    rows = read_windows(ring, windows, 1)
    number, env = np.asarray(rows.obs[..., 0]), np.asarray(rows.obs[..., 1])
    assert (np.diff(number, axis=0) == 1).all()  # never across the write head
    assert (env == env[0]).all()
    oldest = max(0, steps - capacity)
    assert {(t, e) for t, e in zip(number[0], env[0], strict=True)} == {
        (t, e) for t in range(oldest, steps - 1) for e in range(N)
    }


@pytest.mark.parametrize("steps", [900, 5000])
def test_a_quarter_of_the_pairs_is_of_the_newest_rows(steps):
    capacity, count = 1000, 4000
    counters = counters_at(steps)
    windows = sample_pairs(counters, capacity, N, count, key=jr.key(0))
    filled_rows = min(steps, capacity)
    # How many rows lie between a pair and the newest one there can be.
    age = (steps - 2 - np.asarray(windows.start)) % capacity
    newest = 64 // N
    assert (age[: count // 4] < newest).all()
    assert age.max() < filled_rows - 1
    for part, top in ((age[: count // 4], newest), (age[count // 4 :], filled_rows - 1)):
        expected = np.histogram(part, 4, (0, top))[0] / len(part)
        np.testing.assert_allclose(expected, 0.25, atol=0.08 if top == newest else 0.03)


# ---- windows -------------------------------------------------------------------------------------------------------


def check_rows(rows: Row, step: int, capacity: int, length: int) -> None:
    """Rows of one environment each, consecutive, all of them still in the ring."""
    number, env = np.moveaxis(np.asarray(rows.obs), -1, 0)
    chex.assert_shape(number, (length + 1, None))
    assert (np.diff(number, axis=0) == 1).all(), f"torn window at step {step}"
    assert number.min() >= max(0, step - capacity) and number.max() <= step - 1
    assert (env == env[0]).all() and env.min() >= 0 and env.max() < N
    equal(rows.action, 2 * number + env)
    equal(rows.is_first, number % EPISODE == 0)


@pytest.mark.parametrize("capacity, length", [(11, 3), (12, 3), (13, 6), (7, 6)])
@pytest.mark.parametrize("online", [True, False])
def test_windows_never_straddle_the_write_head(capacity, length, online):
    @jax.jit
    def look(ring, counters, keys):
        windows = lambda key: replay.sample_windows(counters, capacity, N, 4, length, online, key=key)
        rows = jax.vmap(lambda key: read_windows(ring, windows(key), length), out_axes=2)(keys)
        after = replay.advance_cursor(counters, capacity, N, 4, length)
        return jax.tree.map(lambda x: x.reshape(x.shape[0], -1, *x.shape[3:]), rows), after

    cursor = 0
    for step in range(length + 1, 4 * capacity):
        rows, after = look(filled(capacity, step), counters_at(step, cursor), jr.split(jr.key(step), 16))
        check_rows(rows, step, capacity, length)
        if step % 3 == 0:  # not a batch for every row, so that the queue is sometimes long and sometimes empty
            cursor = int(after.online_cursor)


@pytest.mark.parametrize("capacity, step", [(11, 4), (11, 9), (11, 11), (11, 12), (11, 30), (1000, 20), (4, 57)])
def test_uniform_windows_start_at_every_valid_row_and_only_there(capacity, step):
    length, count = 3, 6000
    windows, _ = draw(counters_at(step), capacity, count, length, False, jr.key(step))
    rows = read_windows(filled(capacity, step), windows, length)
    starts = collections.Counter((int(t), int(n)) for t, n in np.asarray(rows.obs)[0])
    valid = [(t, n) for t in range(max(0, step - capacity), step - length) for n in range(N)]
    assert set(starts) == set(valid)
    # Each count is binomial: six standard deviations are never met by chance.
    mean = count / len(valid)
    assert all(abs(starts[v] - mean) < 6 * math.sqrt(mean) for v in valid)


def test_windows_may_cross_an_episodes_border():
    windows, _ = draw(counters_at(30), 11, 500, 3, False, jr.key(0))
    rows = read_windows(filled(11, 30), windows, 3)
    at = {int(t) for t in np.argwhere(np.asarray(rows.is_first))[:, 0]}
    assert at == {0, 1, 2, 3}


def test_a_batch_differs_from_key_to_key_and_within_itself():
    one, other = (draw(counters_at(900), 1000, 64, 3, False, jr.key(k))[0] for k in range(2))
    assert (one.start != other.start).any() and (one.env != other.env).any()
    assert len(set(np.asarray(one.start).tolist())) > 40
    assert abs(np.corrcoef(one.start, one.env)[0, 1]) < 0.5


# ---- the online queue ----------------------------------------------------------------------------------------------


class ListQueue:
    """The online queue as a list of (start, environment): one window for every T rows of each environment."""

    def __init__(self, length: int):
        self.length, self.waiting, self.step = length, collections.deque(), 0

    def add(self) -> None:
        """A row arrives; a window is due once its last row, `length` after its first, is there."""
        self.step += 1
        start = self.step - 1 - self.length
        if start >= 0 and start % self.length == 0:
            self.waiting.extend((start, env) for env in range(N))

    def take(self, batch: int, capacity: int) -> list[tuple[int, int]]:
        """The windows that lead the next batch; those whose first row is gone are dropped."""
        self.waiting = collections.deque(w for w in self.waiting if w[0] >= self.step - capacity)
        return [self.waiting.popleft() for _ in range(min(batch, len(self.waiting)))]


@pytest.mark.parametrize(
    "capacity, length, batch, every",
    [
        (100, 3, 4, 2),  # a long ring; batches drain the queue
        (100, 4, 2, 3),  # two windows a batch, while three come for every four rows: the queue grows
        (11, 3, 2, 5),  # a short ring: the queue grows until the oldest windows are overwritten
        (12, 4, 7, 1),
        (7, 6, 3, 5),  # a window lives for one step only
        (9, 3, 1, 1),  # just fast enough
        (11, 3, 4, 40),  # several times round the ring between two batches
    ],
)
def test_each_newest_window_is_served_once_first_and_in_order(capacity, length, batch, every):
    queue, cursor, seen, dropped = ListQueue(length), 0, [], 0
    for step in range(1, 90):
        queue.add()
        if step <= length or step % every:
            continue
        windows, after = draw(counters_at(step, cursor), capacity, batch, length, True, jr.key(step))
        rows = read_windows(filled(capacity, step), windows, length)
        before = len(queue.waiting)
        fresh = queue.take(batch, capacity)
        dropped += before - len(queue.waiting) - len(fresh)
        starts = [tuple(x) for x in np.asarray(rows.obs)[0].tolist()]
        assert starts[: len(fresh)] == fresh, f"at step {step}"
        check_rows(rows, step, capacity, length)
        # The rest of the batch is what uniform sampling would have had in these places.
        plain, _ = draw(counters_at(step, cursor), capacity, batch, length, False, jr.key(step))
        rest = slice(len(fresh), None)
        mine, theirs = (jax.tree.map(lambda x, r=rest: x[r], arrays(batch_of)) for batch_of in (windows, plain))
        equal(mine, theirs)
        seen, cursor = seen + fresh, int(after.online_cursor)
        assert int(after.step) == step
    assert len(seen) == len(set(seen)) > 0
    if capacity == 100 and batch == 4:  # nothing was lost, and every row but each first was trained on once
        assert sorted(seen) == [(t, n) for t in range(0, seen[-1][0] + 1, length) for n in range(N)]
    assert (dropped > 0) == ((capacity, batch) in {(11, 2), (11, 4), (7, 3)})


def test_without_the_online_queue_every_place_of_a_batch_is_uniform():
    first = jax.vmap(lambda key: replay.sample_windows(counters_at(10), 11, N, 2, 3, False, key=key).start[0])
    assert set(np.asarray(jax.jit(first)(jr.split(jr.key(0), 300))).tolist()) == set(range(7))


def test_early_counters_have_no_newest_windows():
    count = [int(replay.online_windows(jnp.int32(step), N, 4)) for step in range(14)]
    assert count == [0] * 5 + [N] * 4 + [2 * N] * 4 + [3 * N]


def test_seeds_share_the_queue_and_not_the_uniform_windows():
    one = lambda key: replay.sample_windows(counters_at(14), 100, N, 30, 4, True, key=key)
    windows = jax.jit(jax.vmap(one))(jr.split(jr.key(0), 2))
    queue = 3 * N  # windows starting at 0, 4 and 8
    equal(windows.start[0, :queue], windows.start[1, :queue])
    equal(windows.env[0, :queue], windows.env[1, :queue])
    assert (windows.start[0, queue:] != windows.start[1, queue:]).any()


# ---- latents written back ------------------------------------------------------------------------------------------


def fresh_latents(length: int, batch: int, seed: int = 0):
    """(deter, stoch) of the trained rows of so many windows, no two alike."""
    rng = np.random.default_rng(seed)
    deter = rng.normal(size=(length, batch, D)).astype(np.float32)
    return deter, rng.integers(0, 250, (length, batch, S)).astype(np.uint8)


def written_by_hand(ring: Row, starts, envs, deter, stoch) -> Row:
    """Of all windows that hold a row, the one in which more rows came before it has its say; if as many, the later."""
    new_deter, new_stoch = np.array(ring.deter), np.array(ring.stoch)
    length, batch = deter.shape[:2]
    # Each overwrites what stands there: what comes last counts. The window's first row is context and keeps its own.
    for t in range(length):
        for b in range(batch):
            position = (int(starts[b]) + 1 + t) % replay.capacity_of(ring)
            new_deter[position, envs[b]], new_stoch[position, envs[b]] = deter[t, b], stoch[t, b]
    return dataclasses.replace(ring, deter=to_device(new_deter), stoch=to_device(new_stoch))


WRITTEN = {
    "inside": ([0, 5], [2, 0]),
    "round the end": ([9, 3], [2, 0]),
    "both round the end": ([8, 10], [2, 0]),
    "the same rows": ([3, 3, 3], [1, 1, 1]),
    "the same rows of two environments": ([3, 3, 3, 3], [1, 2, 1, 2]),
    "shifted by one": ([3, 4], [1, 1]),
    "shifted by one, the later first": ([4, 3], [1, 1]),
    "a chain round the end": ([8, 10, 1, 9], [0, 0, 0, 0]),
    "chains of two environments": ([8, 8, 10, 10, 1, 1, 9, 9, 8], [0, 2, 0, 2, 2, 0, 0, 2, 2]),
    "end to end": ([2, 6], [1, 1]),  # one's last row is the other's context
}


@pytest.mark.parametrize("starts, envs", WRITTEN.values(), ids=WRITTEN)
def test_write_back_changes_the_latents_of_the_trained_rows_and_nothing_else(starts, envs):
    ring, (deter, stoch) = filled(11, 30), fresh_latents(4, len(starts))
    new = write_back(ring, Windows(jnp.array(starts), jnp.array(envs)), deter, stoch)
    equal(new, written_by_hand(ring, starts, envs, deter, stoch))
    chex.assert_trees_all_equal_dtypes(new, ring)


@pytest.mark.parametrize("capacity, length, batch", [(11, 4, 6), (11, 10, 4), (30, 3, 16), (7, 6, 5), (40, 1, 30)])
def test_write_back_of_any_overlaps_under_vmap_writes_what_a_loop_would(capacity, length, batch):
    """Two of the environments, so that overlaps are many; seeds with windows of their own."""
    seeds, ring, rng = 16, filled(capacity, 80), np.random.default_rng(capacity)
    starts, envs = rng.integers(0, capacity, (seeds, batch)), rng.choice([0, 2], (seeds, batch))
    deter, stoch = (np.stack(x) for x in zip(*(fresh_latents(length, batch, s) for s in range(seeds)), strict=True))
    rings = jax.tree.map(lambda x: np.stack([x] * seeds), ring)
    write = jax.vmap(lambda ring, starts, envs, *latents: replay.write_back(ring, Windows(starts, envs), *latents))
    new = arrays(jax.jit(write)(rings, starts, envs, deter, stoch))
    for s in range(seeds):
        by_hand = written_by_hand(ring, starts[s], envs[s], deter[s], stoch[s])
        equal(jax.tree.map(lambda x, s=s: x[s], new), by_hand)


@jax.jit
def overwritten_by(ring, windows, deter, stoch):
    """Of all latents that write_back is given, those that it leaves out; a list of one."""
    given, overwritten = [], replay._overwritten
    with mock.patch.object(replay, "_overwritten", lambda *args: given.append(overwritten(*args)) or given[-1]):
        replay.write_back(ring, windows, deter, stoch)
    return given


@pytest.mark.parametrize("starts, envs", WRITTEN.values(), ids=WRITTEN)
def test_write_back_writes_each_row_once(starts, envs):
    """So that no device may choose in which order they land."""
    (deter, stoch), windows = fresh_latents(4, len(starts)), Windows(jnp.array(starts), jnp.array(envs))
    (lost,) = arrays(overwritten_by(filled(11, 30), windows, deter, stoch))
    kept = [
        ((start + 1 + t) % 11, env)
        for t in range(4)
        for b, (start, env) in enumerate(zip(starts, envs, strict=True))
        if not lost[t, b]
    ]
    every = {((start + 1 + t) % 11, env) for t in range(4) for start, env in zip(starts, envs, strict=True)}
    assert len(kept) == len(set(kept)) and set(kept) == every


def test_what_is_written_back_is_what_the_next_batch_reads():
    ring, windows = filled(11, 30), Windows(jnp.array([9, 3]), jnp.array([2, 0]))
    rows = read_windows(ring, windows, 4)
    deter, stoch = np.asarray(rows.deter), np.asarray(rows.stoch)
    new = write_back(ring, windows, deter[1:] + 1, stoch[1:])
    again = arrays(read_windows(new, windows, 4))
    equal(again.deter[0], deter[0])
    equal(again.deter[1:], deter[1:] + 1)
    equal(again.stoch, stoch)
