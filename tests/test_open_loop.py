"""open_loop.py: the model run forward, against single steps, and errors by hand.

Axes: T rows, N environments.
"""

import dataclasses

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from envs.environment import ObsSpace
from stages.config import Hypers
from stages.decode import make_decoder
from stages.measure import WINDOWS, foresight
from stages.open_loop import AHEAD, CONTEXT, episode_step, errors, open_loop, open_loop_errors, play_rows, posterior
from stages.replay import Clock, choose
from stages.rssm import Latent, imagine_step
from stages.world_model import action_vector
from tests.conftest import SMALL, arbitrary, observations, pick

T, N, KEY, HYPERS = 14, 3, jr.key(5), Hypers(unimix=0.02)


@pytest.fixture(scope="module")
def rows(env, mix_agent):
    """Catch: episodes of 10 rows."""
    play = lambda agent, key: play_rows(env, agent, agent.tasker, HYPERS, N, T, False, key=key)
    return jax.jit(play)(mix_agent, KEY).rows


def test_rows_are_whole_episodes_one_after_the_other(rows):
    first = np.arange(T) % 10 == 0
    np.testing.assert_array_equal(rows.is_first, np.repeat(first[:, None], N, 1))
    np.testing.assert_array_equal(rows.is_last[:-1], rows.is_first[1:])
    assert rows.obs.shape == (T, N, 10, 5) and (np.asarray(rows.obs).sum((2, 3)) <= 2).all()


def test_place_counts_from_each_first_row():
    is_first = np.array([[1, 0, 0, 1, 0, 1, 1, 0], [1, 1, 0, 0, 0, 0, 0, 0]], bool).T
    wanted = np.array([[0, 1, 2, 0, 1, 0, 0, 1], [0, 0, 1, 2, 3, 4, 5, 6]]).T
    np.testing.assert_array_equal(episode_step(jnp.asarray(is_first)), wanted)


def test_a_row_that_is_seen_has_the_posterior_state_and_one_that_is_not_follows_by_the_prior(mix_agent, rows):
    model = mix_agent.model
    observed = np.ones((T, N), bool)
    observed[4:7, 0] = observed[8:, 2] = False
    observed[10, 2] = True  # an episode's first row
    latent = jax.jit(lambda rows, observed: open_loop(model, rows, observed, 0.02, key=KEY))(
        rows, jnp.asarray(observed)
    )
    known, action = posterior(model, rows), action_vector(model, rows.action)
    uniform = jr.uniform(KEY, (T, N, model.rssm.stoch))
    step = jax.jit(lambda *before: imagine_step(model.rssm, *before, 0.02))
    for n in range(N):
        for t in range(T):
            if observed[t, n]:
                wanted = Latent(known.deter[t, n], known.stoch[t, n])
            else:
                before = Latent(latent.deter[t - 1, n], latent.stoch[t - 1, n])
                wanted = step(before, action[t - 1, n], uniform[t, n])
            np.testing.assert_allclose(latent.deter[t, n], wanted.deter, atol=1e-5)
            np.testing.assert_array_equal(latent.stoch[t, n], wanted.stoch)


# ---- errors --------------------------------------------------------------------------------------------------------


def by_a_decoder(space, seed=0):
    """(its raw outputs, observations, their errors), of 6 states, as numpy."""
    decoder = arbitrary(lambda: make_decoder(space, SMALL, key=jr.key(0)), seed)
    states = Latent(jr.normal(jr.key(1), (6, SMALL.deter)), jr.normal(jr.key(2), (6, SMALL.stoch, SMALL.classes)))
    obs = observations(space, (6,))
    return np.asarray(decoder(states), np.float64), np.asarray(obs), errors(decoder, states, obs)


def test_binary_errors_by_hand():
    logits, obs, got = by_a_decoder(ObsSpace((2,), "binary"))
    probability = 1 / (1 + np.exp(-logits))
    loss = -np.log(np.where(obs, probability, 1 - probability)).mean(1)
    np.testing.assert_allclose(got.loss, loss, rtol=1e-3, atol=1e-6)
    right = (probability > 0.5) == obs
    assert 0 < right.mean() < 1
    np.testing.assert_array_equal(got.right, right.mean(1))
    np.testing.assert_array_equal(got.exact, right.all(1))


@pytest.mark.parametrize("shape", [(), (3,)])
def test_categorical_errors_by_hand(shape):
    logits, obs, got = by_a_decoder(ObsSpace(shape, "categorical", 4))
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    loss = -np.log(np.take_along_axis(shares, obs[..., None], -1))[..., 0].reshape(6, -1).mean(1)
    np.testing.assert_allclose(got.loss, loss, rtol=1e-3)
    right = (logits.argmax(-1) == obs).reshape(6, -1)
    assert 0 < right.mean() < 1
    np.testing.assert_allclose(got.right, right.mean(1), rtol=1e-6)
    np.testing.assert_array_equal(got.exact, right.all(1))


def test_errors_of_reals_are_of_their_symlog():
    raw, obs, got = by_a_decoder(ObsSpace((2,), "real"))
    symlog = np.sign(obs) * np.log1p(np.abs(obs))
    np.testing.assert_allclose(got.loss, np.square(raw - symlog).mean(1), rtol=1e-3)
    assert np.isnan(got.right).all() and np.isnan(got.exact).all()


def test_only_episodes_that_are_so_long_count(mix_agent, rows):
    ahead = (1, 5, 6)  # rows 5, 9, and 10, which is the next episode's
    ours, observed, count = open_loop_errors(mix_agent.model, rows, ahead, 0.02, key=KEY)
    np.testing.assert_array_equal(count, [N, N, 0])
    every = errors(mix_agent.model.decoder, posterior(mix_agent.model, rows), rows.obs)
    np.testing.assert_allclose(observed.loss[:2], np.asarray(every.loss)[[CONTEXT, CONTEXT + 4]].mean(1), rtol=1e-5)
    assert np.isfinite(ours.loss[:2]).all() and np.isnan(ours.loss[2]) and np.isnan(observed.loss[2])
    assert (np.asarray(ours.loss)[:2] != np.asarray(observed.loss)[:2]).all()  # it did not look


# ---- on replayed rows ----------------------------------------------------------------------------------------------

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
    return jax.jit(lambda model, ring, step: foresight(model, ring, step, HYPERS, key=KEY))


@pytest.mark.parametrize("step", [25, 53])
def test_foresight_is_the_mean_over_windows_as_far_as_their_episode_goes(mix_agent, ring, foresee, step):
    """Against a loop over windows, rows and steps; the ring is filled to 25 rows, or has wrapped."""
    model, length = mix_agent.model, max(AHEAD)
    key = jr.fold_in(KEY, 0)
    uniform = jr.uniform(key, (length + 1, WINDOWS, model.rssm.stoch))
    windows = jax.jit(
        lambda: choose(Clock(jnp.int32(step), jnp.int32(0)), CAPACITY, 2, WINDOWS, length, online=False, key=KEY)
    )()
    walk = jax.jit(lambda *before: imagine_step(model.rssm, *before, HYPERS.unimix))
    wrong = jax.jit(lambda latent, obs: errors(model.decoder, latent, obs).loss)
    known, first = (posterior(model, ring), action_vector(model, ring.action), ring.obs), np.asarray(ring.is_first)
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
    known = jax.tree.map(lambda x: x[jnp.array([1, 5])], (posterior(mix_agent.model, ring), ring.obs))
    every = errors(mix_agent.model.decoder, *known).loss
    low, high = np.asarray(every).min(1) - 1e-6, np.asarray(every).max(1) + 1e-6
    assert ((low <= found.posterior[:2]) & (found.posterior[:2] <= high)).all(), "rows 1 and 5 of either environment"
