"""measure/heads.py: rows of a kind, and the heads' errors at them, against loops over rows and single steps.

Axes: C capacity, N environments.
"""

import dataclasses

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from stages.config import Hypers
from stages.imagine import stored_latent
from stages.measure.heads import HEADS_AHEAD, ROWS_PER_KIND, draw_rows, head_errors
from stages.replay import Row
from stages.rssm import imagine_step
from stages.world_model import action_vector
from tests.conftest import to_device
from tests.rewarded import MODEL, rows_of

C, N, KEY, LENGTH = 36, 3, jr.key(5), max(HEADS_AHEAD)
KINDS = ["reward_error", "reward_elsewhere", "continue_at_terminal", "terminal_elsewhere"]
# A continue head of 0.6 says that the episode goes on for certain.
HYPERS = Hypers(unimix=0.02, discount_horizon=2.5)
SPOILED = {"reward": 1e6, "is_first": False, "is_last": True, "is_terminal": True, "deter": np.nan}


@pytest.fixture(scope="module")
def history() -> Row:
    """Rows in the order in which they came, [60, N]. Episodes have 1 to 12 rows; two of three end by themselves."""
    rng, rows = np.random.default_rng(3), rows_of((60, N))
    is_first, is_terminal = np.zeros((2, 60, N), bool)
    is_last = np.zeros((60, N), bool)
    for n in range(N):
        ends = np.cumsum(np.roll([7, 3, 12, 6, 1, 9, 5, 12, 8], n)) - 1
        ends = ends[ends < 60]
        is_last[ends, n] = is_terminal[ends[np.arange(ends.size) % 3 < 2], n] = True
    is_first[0], is_first[1:] = True, is_last[:-1]
    reward = np.where(rng.random((60, N)) < 0.3, rng.normal(size=(60, N)), 0) * ~is_first
    flags = {"is_first": is_first, "is_last": is_last, "is_terminal": is_terminal}
    deter = rng.normal(size=(60, N, MODEL.rssm.deter))
    return dataclasses.replace(
        rows, reward=to_device(reward, np.float32), deter=to_device(deter, np.float32), **jax.device_put(flags)
    )


def ring_of(history: Row, step: int) -> Row:
    """What a ring has of the first `step` rows. Where it has none stands what would show if it was read."""

    def leaf(name, rows):
        spoiled = SPOILED.get(name, 0)
        ring = np.full((C, *rows.shape[1:]), spoiled, rows.dtype)
        for number in range(step):
            ring[number % C] = rows[number]
        return to_device(ring)

    return Row(**{name: leaf(name, np.asarray(rows)) for name, rows in vars(history).items()})


def kinds_of(ring: Row, step: int) -> np.ndarray:
    """[4, C, N], in the order of KINDS."""
    there = np.arange(C)[:, None] < step
    reward, terminal = np.asarray(ring.reward), np.asarray(ring.is_terminal)
    return np.stack([reward != 0, reward == 0, terminal, ~terminal]) & there


@pytest.fixture(scope="module")
def measured():
    return jax.jit(lambda ring, step: head_errors(MODEL, ring, step, HYPERS, key=KEY))


@pytest.mark.parametrize("step", [13, 36, 55])
def test_errors_are_means_over_the_rows_that_were_drawn(history, measured, step):
    """The ring is hardly filled, just full, or has wrapped."""
    ring = ring_of(history, step)
    key_rows, key_ahead = jr.split(KEY)
    index, is_drawn = jax.jit(lambda kinds: draw_rows(kinds, ROWS_PER_KIND, key=key_rows))(kinds_of(ring, step))
    index, is_drawn = np.asarray(index), np.asarray(is_drawn)
    uniform = np.asarray(jr.uniform(key_ahead, (LENGTH + 1, index.size, MODEL.rssm.stoch)))
    walk = jax.jit(lambda *before: imagine_step(MODEL.rssm, *before, HYPERS.unimix))
    read = jax.jit(lambda latent: (MODEL.reward.mean(MODEL.reward(latent.feat)), MODEL.cont(latent.feat)))
    known = jax.tree.map(np.asarray, (stored_latent(MODEL, history), action_vector(MODEL, history.action)))
    real = np.asarray(history.reward)
    first, goes_on = np.asarray(history.is_first), ~np.asarray(history.is_terminal)
    each = {(kind, ahead): [] for kind in KINDS for ahead in HEADS_AHEAD}
    shares = []
    state = lambda number, n: jax.tree.map(lambda x: x[number, n], known[0])

    def note(kind, ahead, latent, number, n):
        expected, logit = read(latent)
        share = 1 / (1 + np.exp(-float(logit))) / 0.6
        shares.append(share)
        reward = abs(float(expected) - float(real[number, n]))
        each[kind, ahead].append(reward if "reward" in kind else abs(min(share, 1) - goes_on[number, n]))

    oldest = max(0, step - C)
    for k, kind in enumerate(KINDS):
        for r in np.flatnonzero(is_drawn[k]):
            position, n = divmod(int(index[k, r]), N)
            number = oldest + (position - oldest) % C  # of the row, since the run began
            note(kind, 0, state(number, n), number, n)
            if number - LENGTH < oldest or first[number - LENGTH + 1 : number + 1, n].any():
                continue
            latent = state(number - LENGTH, n)
            for h in range(1, LENGTH + 1):
                latent = walk(latent, known[1][number - LENGTH + h - 1, n], uniform[h, k * index.shape[1] + r])
            note(kind, LENGTH, latent, number, n)
    assert all(len(each[kind, 0]) > len(each[kind, LENGTH]) > 0 for kind in KINDS)
    assert min(shares) < 1 < max(shares)
    found = measured(ring, jnp.int32(step))
    for kind in KINDS:
        means = [np.mean(each[kind, ahead]) for ahead in HEADS_AHEAD]
        np.testing.assert_allclose(getattr(found, kind), means, rtol=1e-4, err_msg=kind)


@pytest.mark.parametrize("step", [0, 1, 13, 36, 55])
def test_rows_are_of_their_kind_and_there_and_all_of_them_where_they_are_few(history, step):
    kinds = kinds_of(ring_of(history, step), step)
    index, is_drawn = jax.jit(lambda kinds: draw_rows(kinds, ROWS_PER_KIND, key=KEY))(kinds)
    assert index.shape == is_drawn.shape == (4, ROWS_PER_KIND)
    for k in range(4):
        rows, of_kind = np.asarray(index[k])[np.asarray(is_drawn[k])], np.flatnonzero(kinds[k])
        assert len(set(rows)) == len(rows) == min(ROWS_PER_KIND, of_kind.size) and set(rows) <= set(of_kind)
    if step >= C:
        assert kinds[1].sum() > ROWS_PER_KIND > kinds[2].sum(), "a kind of more rows and one of fewer"


def test_rows_are_drawn_uniformly():
    """5 of 20 rows, 2,000 times: each 500 times, with a standard deviation of 19."""
    kinds = np.random.default_rng(0).permutation(np.repeat([True, False], [20, 40])).reshape(1, 20, 3)
    draw = lambda kinds, key: draw_rows(kinds, 5, key=key)
    index, is_drawn = jax.jit(jax.vmap(draw, (None, 0)))(kinds, jr.split(KEY, 2000))
    assert is_drawn.all()
    times = np.bincount(np.asarray(index).ravel(), minlength=60)
    assert (times[~kinds.ravel()] == 0).all() and (np.abs(times[kinds.ravel()] - 500) < 4 * 19.4).all()


def test_a_ring_of_fewer_rows_gives_all_of_them():
    index, is_drawn = jax.jit(lambda kinds: draw_rows(kinds, ROWS_PER_KIND, key=KEY))(np.ones((1, 4, 2), bool))
    assert index.shape == (1, ROWS_PER_KIND) and sorted(np.asarray(index)[is_drawn]) == list(range(8))


@pytest.mark.parametrize("capacity", [5, 60])
def test_a_longer_ring_of_the_same_rows_gives_the_same(capacity):
    """As that of a run which is given more steps."""
    kinds = np.zeros((1, 200, 2), bool)
    kinds[:, :5] = np.random.default_rng(1).random((5, 2)) < 0.7
    draw = jax.jit(lambda kinds: draw_rows(kinds, ROWS_PER_KIND, key=KEY))
    (index, is_drawn), (longer, is_longer) = draw(kinds[:, :capacity]), draw(kinds)
    assert 0 < is_drawn.sum() < 10
    np.testing.assert_array_equal(is_drawn, is_longer)
    np.testing.assert_array_equal(np.asarray(index)[is_drawn], np.asarray(longer)[is_longer])


def test_what_is_not_there_has_no_error(history, measured):
    empty = measured(ring_of(history, 0), jnp.int32(0))
    assert all(np.isnan(values).all() for values in vars(empty).values())
    short = measured(ring_of(history, LENGTH), jnp.int32(LENGTH))  # no row has so many before it
    assert np.isfinite(short.terminal_elsewhere[0]) and np.isfinite(short.reward_elsewhere[0])
    assert all(np.isnan(values[1]) for values in vars(short).values())
    endless = dataclasses.replace(history, is_terminal=jnp.zeros_like(history.is_terminal))
    found = measured(ring_of(endless, 55), jnp.int32(55))
    assert np.isnan(found.continue_at_terminal).all() and np.isfinite(found.terminal_elsewhere).all()
    assert np.isfinite(found.reward_error).all()
