"""open_loop.py: the model run forward, against single steps, and errors by hand.

Axes: T rows, N environments.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from envs.environment import ObsSpace
from stages.config import Hypers
from stages.decode import make_decoder
from stages.imagine import open_loop, posterior
from stages.measure.open_loop import (
    CONTEXT,
    episode_step,
    errors,
    open_loop_errors,
    play_rows,
)
from stages.rssm import Latent, imagine_step
from stages.world_model import action_vector
from tests.conftest import SMALL, arbitrary, observations

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
