"""priority.py against slow loops: windows' priorities, frequencies of draws, importance weights, what is written back.

Axes: C capacity, N environments, B windows, T trained rows of a window.
"""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from stages import priority, replay
from stages.replay import Clock, Windows

N = 3


def clock_at(step: int, online_cursor: int = 0) -> Clock:
    return Clock(jnp.int32(step), jnp.int32(online_cursor))


def some(capacity: int, steps: int, seed: int = 0, known: float = 0.7) -> np.ndarray:
    """Priorities of a ring that has seen so many rows, some of them not yet replayed."""
    rng = np.random.default_rng(seed)
    table = np.where(rng.random((capacity, N)) < known, rng.exponential(0.01, (capacity, N)), -1.0)
    table[min(steps, capacity) :] = -1.0
    return table.astype(np.float32)


def slow_windows(table, step, length) -> dict[tuple[int, int], float]:
    """(start, environment) of every window that the ring holds whole -> its priority."""
    capacity, largest = len(table), table.max() if table.max() > 0 else 1.0
    row = lambda t, n: max(1e-6 * largest, largest if table[t % capacity, n] < 0 else table[t % capacity, n])
    return {
        (start % capacity, n): sum(row(start + t, n) for t in range(1, length + 1))
        for start in range(max(0, step - capacity), step - length)
        for n in range(N)
    }


RINGS = [(11, 4, 3), (11, 9, 3), (11, 11, 3), (11, 12, 4), (11, 30, 7), (40, 25, 8), (7, 7, 6), (9, 30, 1)]


@pytest.mark.parametrize("capacity, step, length", RINGS)
@pytest.mark.parametrize("known", [0.0, 0.7, 1.0])
def test_a_windows_priority_is_the_sum_over_its_trained_rows(capacity, step, length, known):
    table = some(capacity, step, known=known)
    expected = np.zeros((capacity, N))
    for at, value in slow_windows(table, step, length).items():
        expected[at] = value
    found = priority.of_windows(jnp.asarray(table), clock_at(step), length)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_rows_without_any_disagreement_can_still_be_drawn():
    table = jnp.zeros((20, N)).at[3, 0].set(2.0)
    each = priority.of_windows(table, clock_at(20), 4)
    assert (each[:16] > 0).all() and not each[16:].any()
    even = priority.of_windows(jnp.zeros((20, N)), clock_at(20), 4)
    np.testing.assert_allclose(even[:16], even[0, 0], rtol=1e-5)


@pytest.mark.parametrize("entries", [1, 5, 1023, 1024, 3000])
def test_draws_are_in_proportion_to_weights(entries):
    rng, count = np.random.default_rng(entries), 40_000
    weight = rng.exponential(size=entries) * (rng.random(entries) < 0.7)
    weight[0] = 1.0
    draw = jax.jit(priority.draw)
    drawn = np.concatenate([draw(jnp.float32(weight), jr.uniform(key, (4000, 2))) for key in jr.split(jr.key(0), 10)])
    found = np.bincount(drawn, minlength=entries)
    assert not found[weight == 0].any()
    mean = count * weight / weight.sum()
    # Each count is binomial: six standard deviations are never met by chance.
    assert (np.abs(found - mean) <= 6 * np.sqrt(mean) + 1).all()
    halves = np.add.reduceat(found, [0, entries // 2]) if entries > 1 else found
    np.testing.assert_allclose(halves.sum(), count)


def test_one_entry_in_a_million_is_drawn_as_often_as_it_should_be():
    weight, count = jnp.full(2_000_000, 1e-3).at[1_234_567].set(20.0), 20_000  # a hundredth of all
    drawn = jax.jit(priority.draw)(weight, jr.uniform(jr.key(1), (count, 2)))
    found = int((drawn == 1_234_567).sum())
    assert abs(found - count * 20 / 2020) < 6 * np.sqrt(count * 0.01)
    rest = np.asarray(drawn)[np.asarray(drawn) != 1_234_567]
    np.testing.assert_allclose(np.histogram(rest, 8, (0, 2_000_000))[0] / len(rest), 1 / 8, atol=0.015)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def choose(table, clock, batch, length, online, share, key):
    return priority.choose(table, clock, batch, length, online, share, key=key)


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_a_share_of_a_batch_is_by_priority_and_the_rest_uniform(share):
    capacity, step, length, batch = 17, 40, 4, 4000
    table = some(capacity, step)
    windows, _ = choose(jnp.asarray(table), clock_at(step), batch, length, False, share, jr.key(3))
    each = slow_windows(table, step, length)
    found = [(int(s), int(n)) for s, n in zip(windows.start, windows.env, strict=True)]
    first = round((1 - share) * batch)
    uniform = dict.fromkeys(each, 1.0)
    for part, weights in ((found[:first], uniform), (found[first:], each)):
        assert set(part) <= set(each)  # none straddles the write head
        for window, weight in weights.items():
            mean = len(part) * weight / sum(weights.values())
            assert abs(part.count(window) - mean) <= 6 * np.sqrt(mean) + 1


def test_the_online_queue_comes_first():
    length, table = 4, jnp.asarray(some(100, 14))
    for cursor, waiting in ((0, 9), (7, 2), (9, 0)):
        windows, weight = choose(table, clock_at(14, cursor), 12, length, True, 0.5, jr.key(0))
        plain = replay.choose(clock_at(14, cursor), 100, N, 12, length, True, key=jr.split(jr.key(0))[0])
        untouched = max(waiting, 6)
        chex.assert_trees_all_equal(*(jax.tree.map(lambda x, u=untouched: x[:u], w) for w in (windows, plain)))
        np.testing.assert_array_equal(weight[:waiting], 1)
        assert (weight[waiting:] != 1).all()


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_weights_are_one_over_the_mixtures_probability_and_make_means_uniform(share):
    capacity, step, length, batch = 17, 40, 4, 8000
    table = some(capacity, step)
    windows, weight = choose(jnp.asarray(table), clock_at(step), batch, length, False, share, jr.key(5))
    each = slow_windows(table, step, length)
    total, count = sum(each.values()), len(each)
    found = [(int(s), int(n)) for s, n in zip(windows.start, windows.env, strict=True)]
    by_hand = [1 / (count * (share * each[w] / total + (1 - share) / count)) for w in found]
    np.testing.assert_allclose(weight, by_hand, rtol=1e-3)
    value = {w: np.random.default_rng(9).normal(size=count)[i] for i, w in enumerate(each)}
    values = np.array([value[w] for w in found])
    for given in (np.ones(batch), values):
        uniform = np.mean(list(value.values())) if given is values else 1.0
        np.testing.assert_allclose(np.mean(weight * given), uniform, atol=6 * np.std(weight * given) / np.sqrt(batch))
    assert abs(values.mean() - np.mean(list(value.values()))) > 0.001  # it matters


def test_new_rows_are_not_yet_replayed_and_rows_that_are_not_taken_change_nothing():
    table = jnp.arange(15.0).reshape(5, N)
    expected = np.array(table)
    expected[12 % 5] = -1
    np.testing.assert_array_equal(priority.add(table, jnp.int32(12)), expected)
    np.testing.assert_array_equal(priority.add(table, jnp.int32(12), jnp.array(False)), table)
    assert priority.add(None, jnp.int32(12)) is None
    assert (priority.empty(5, N) == -1).all()


def test_add_under_vmap_over_seeds_is_a_slice_and_not_a_scatter():
    add = jax.jit(jax.vmap(priority.add, (0, None)), donate_argnums=0)
    program = add.lower(jnp.zeros((4, 7, N)), jnp.int32(3)).compile().as_text()
    assert set(re.findall(r" (scatter|while|dynamic-update-slice)\(", program)) == {"dynamic-update-slice"}


@pytest.mark.parametrize("taken", [True, False])
def test_write_back_is_of_the_rows_whose_latents_are_written_back(taken):
    """Of all windows that hold a row, the one in which more rows came before it has its say; if as many, the later."""
    capacity, length, rng = 11, 4, np.random.default_rng(0)
    starts, envs = np.array([9, 3, 4, 3, 3]), np.array([2, 1, 1, 1, 0])
    table, fresh = some(capacity, 30), rng.random((length, len(starts))).astype(np.float32)
    expected = np.array(table)
    for t in range(length):
        for b in range(len(starts)):
            expected[(starts[b] + 1 + t) % capacity, envs[b]] = fresh[t, b]
    windows = Windows(jnp.asarray(starts), jnp.asarray(envs))
    found = jax.jit(priority.write_back)(jnp.asarray(table), windows, jnp.asarray(fresh), jnp.array(taken))
    np.testing.assert_array_equal(found, expected if taken else table)
