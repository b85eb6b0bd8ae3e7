"""measurement.py: the model run forward, rows of states, disagreement without states, against loops and by hand.

Disagreement by state stands in test_coverage.py, beside the visits that it is held against.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from stages import train
from stages.config import Hypers
from stages.ensemble import disagreement
from stages.imagine import stored_latent
from stages.measure.measurement import (
    RECENT_ROWS,
    ROWS_PER_STATE,
    WINDOWS,
    measure_baselines,
    measure_open_loop,
    rows_of_states,
)
from stages.measure.open_loop import AHEAD, play_rows, prediction_errors
from stages.replay import StepCounters, sample_windows
from stages.rssm import Latent, imagine_step
from stages.world_model import action_vector
from tests.conftest import pick

KEY, HYPERS = jr.key(5), Hypers(unimix=0.02)


# ---- foresight -----------------------------------------------------------------------------------------------------

CAPACITY = 40


@pytest.fixture(scope="module")
def ring(env, mix_agent):
    """Catch, 40 rows of 2 environments. Those of the second are one long episode, those of the first begin a new one
    every 7 rows."""
    play = lambda agent, key: play_rows(env, agent, agent.tasker, HYPERS, 2, CAPACITY, False, key=key)
    rows = jax.jit(play)(mix_agent, KEY).rows
    is_first = np.stack([np.arange(CAPACITY) % 7 == 0, np.zeros(CAPACITY)], 1).astype(bool)
    return dataclasses.replace(rows, is_first=jnp.asarray(is_first))


@pytest.fixture(scope="module")
def foresee():
    return jax.jit(lambda model, ring, step: measure_open_loop(model, ring, step, HYPERS, key=KEY))


@pytest.mark.parametrize("step", [25, 53])
def test_foresight_is_the_mean_over_windows_as_far_as_their_episode_goes(mix_agent, ring, foresee, step):
    """Against a loop over windows, rows and steps; the ring is filled to 25 rows, or has wrapped."""
    model, length = mix_agent.model, max(AHEAD)
    key = jr.fold_in(KEY, 0)
    uniform = jr.uniform(key, (length + 1, WINDOWS, model.rssm.stoch))
    windows = jax.jit(
        lambda: sample_windows(
            StepCounters(jnp.int32(step), jnp.int32(0)), CAPACITY, 2, WINDOWS, length, online=False, key=KEY
        )
    )()
    walk = jax.jit(lambda *before: imagine_step(model.rssm, *before, HYPERS.unimix))
    wrong = jax.jit(lambda latent, obs: prediction_errors(model.decoder, latent, obs).loss)
    known, first = (stored_latent(model, ring), action_vector(model, ring.action), ring.obs), np.asarray(ring.is_first)
    ahead, seen = ([[] for _ in AHEAD] for _ in range(2))
    oldest = max(0, step - CAPACITY)
    for w, (start, n) in enumerate(zip(np.asarray(windows.start), np.asarray(windows.env), strict=True)):
        assert (start - oldest) % CAPACITY + length < min(step, CAPACITY), "no window straddles the write head"
        latent, action, _ = pick(known, (start, n))
        for h in range(1, length + 1):
            at = (start + h) % CAPACITY
            if first[at, n]:
                break
            latent = walk(latent, action, pick(uniform, (h, w)))
            state, action, obs = pick(known, (at, n))
            if h in AHEAD:
                ahead[AHEAD.index(h)].append(wrong(latent, obs))
                seen[AHEAD.index(h)].append(wrong(state, obs))
    assert WINDOWS > len(ahead[0]) > len(ahead[1]) > len(ahead[2]) > 0
    found = foresee(model, ring, jnp.int32(step))
    np.testing.assert_allclose(found.open_loop, [np.mean(each) for each in ahead], rtol=1e-4)
    np.testing.assert_allclose(found.posterior, [np.mean(each) for each in seen], rtol=1e-4)


def test_foresight_of_a_short_ring_goes_as_far_as_its_rows(mix_agent, ring, foresee):
    whole = dataclasses.replace(ring, is_first=jnp.zeros_like(ring.is_first))
    found = foresee(mix_agent.model, whole, jnp.int32(6))  # 5 rows follow the first one
    assert np.isfinite(found.open_loop[:2]).all() and np.isnan(found.open_loop[2]) and np.isnan(found.posterior[2])
    known = jax.tree.map(lambda x: x[jnp.array([1, 5])], (stored_latent(mix_agent.model, ring), ring.obs))
    every = prediction_errors(mix_agent.model.decoder, *known).loss
    low, high = np.asarray(every).min(1) - 1e-6, np.asarray(every).max(1) + 1e-6
    assert ((low <= found.posterior[:2]) & (found.posterior[:2] <= high)).all(), "rows 1 and 5 of either environment"


@pytest.mark.parametrize("step", [1, 2, 25, 53])
def test_what_changes_in_a_row_and_how_much_of_it_is_predicted(mix_agent, ring, foresee, step):
    """Against a loop over windows and numbers; the ring has hardly a row, is half full, or has wrapped."""
    model, length = mix_agent.model, max(AHEAD)
    windows = jax.jit(
        lambda: sample_windows(
            StepCounters(jnp.int32(step), jnp.int32(0)), CAPACITY, 2, WINDOWS, length, online=False, key=KEY
        )
    )()
    uniform = jr.uniform(jr.fold_in(KEY, 2), (WINDOWS, model.rssm.stoch))
    predict = jax.jit(lambda *before: model.decoder(imagine_step(model.rssm, *before, HYPERS.unimix)))
    known = (stored_latent(model, ring), action_vector(model, ring.action))
    obs, first, right = np.asarray(ring.obs), np.asarray(ring.is_first), []
    for w, (start, n) in enumerate(zip(np.asarray(windows.start), np.asarray(windows.env), strict=True)):
        following = (start + 1) % CAPACITY
        if step > 1 and not first[following, n]:
            likeliest = np.asarray(predict(*pick(known, (start, n)), pick(uniform, w))) > 0
            changed = obs[start, n] != obs[following, n]
            right += (likeliest == obs[following, n])[changed].tolist()
    found = foresee(model, ring, jnp.int32(step)).changed
    if step == 1:
        assert np.isnan(found)
    else:
        assert 0 < np.mean(right) < 1
        np.testing.assert_allclose(found, np.mean(right), rtol=1e-6)


# ---- rows of states -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_rows_of_states_by_hand(seed):
    """State 0 has 20 rows, state 1 has 3, state 2 none, state 3 has 1: 8 of them, all three, nothing, the one."""
    rng = np.random.default_rng(seed)
    where = rng.permutation(np.repeat([0, 1, 3, -1], [20, 3, 1, 8])).reshape(16, 2).astype(np.int32)
    rows, present = jax.jit(lambda w, k: rows_of_states(w, 4, key=k))(jnp.asarray(where), jr.key(seed))
    rows, flat = np.asarray(rows), where.ravel()
    np.testing.assert_array_equal(present, [True, True, False, True])
    assert all((flat[rows[x]] == x).all() for x in (0, 1, 3))
    assert len(set(rows[0])) == ROWS_PER_STATE == 8
    assert set(rows[1]) == set(np.flatnonzero(flat == 1)) and set(rows[3]) == set(np.flatnonzero(flat == 3))


def test_an_empty_ring_has_no_state():
    rows, present = rows_of_states(jnp.full((5, 2), -1), 3, key=jr.key(0))
    assert not present.any() and (rows >= 0).all() and (rows < 10).all()


# ---- where states cannot be counted ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uncounted(env, config, hypers):
    """(config, an exploring seed of Catch after prefill, its counters, measure_baselines compiled)."""
    config = dataclasses.replace(config, mode="explore")
    state = jax.jit(lambda key: train.init(env, config, hypers, key=key))(jr.key(1))
    state, counters, _ = jax.jit(lambda s: train.collect_steps(env, config, s, StepCounters.zero(), 23))(state)
    take = jax.jit(lambda s, step, key: measure_baselines(env, config, s.agent, s.ring, step, s.hypers, key=key))
    return config, state, counters, take


def test_disagreement_at_the_newest_rows_by_hand(uncounted):
    _, state, counters, take = uncounted
    ring, agent, each = jax.tree.map(np.asarray, state.ring), state.agent, []

    @jax.jit
    def expected(deter, stoch, action):
        return disagreement(agent.intrinsic.ensemble, agent.model, Latent(deter, stoch).feat, action, state.hypers)

    one_hot = lambda index, classes: np.eye(classes, dtype=np.float32)[index]
    assert int(counters.step) == 23 < RECENT_ROWS
    for t in range(23):
        for n in range(2):
            if not ring.is_last[t, n]:
                stoch = one_hot(ring.stoch[t, n], agent.model.rssm.classes)
                each.append(float(expected(ring.deter[t, n], stoch, one_hot(ring.action[t, n], 3))))
    assert len(each) == 2 * 23 - 2 * 2  # Catch's episodes have ten rows
    np.testing.assert_allclose(take(state, counters.step, jr.key(0)).collected, np.mean(each), rtol=1e-4)


def test_an_untrained_ensemble_sees_as_much_before_training_and_more_than_one_whose_members_agree(uncounted):
    _, state, counters, take = uncounted
    seeds = [take(state, counters.step, jr.key(seed)) for seed in range(8)]
    assert {float(one.collected) for one in seeds} == {float(seeds[0].collected)}
    assert 0.5 < float(seeds[0].collected) / np.mean([one.untrained for one in seeds]) < 2
    same = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), state.agent.intrinsic.ensemble.members)
    agreed = take(eqx.tree_at(lambda s: s.agent.intrinsic.ensemble.members, state, same), counters.step, jr.key(0))
    assert agreed.collected == agreed.random == 0 and agreed.untrained == seeds[0].untrained


def test_random_rows_are_not_the_explorers(uncounted):
    """Another explorer changes nothing of them; other keys do."""
    _, state, counters, take = uncounted
    other = eqx.tree_at(lambda s: s.agent.explorer, state, jax.tree.map(jnp.ones_like, state.agent.explorer))
    first, again, fresh = (
        take(state, counters.step, jr.key(0)),
        take(other, counters.step, jr.key(0)),
        take(state, counters.step, jr.key(1)),
    )
    assert first.random == again.random > 0 and first.random != fresh.random


def test_an_empty_ring_has_no_disagreement(uncounted):
    _, state, _, take = uncounted
    assert np.isnan(take(state, jnp.int32(0), jr.key(0)).collected)
