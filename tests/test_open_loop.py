"""open_loop.py: the model run forward, against single steps, and errors by hand.

Axes: T rows, N environments.
"""

import dataclasses

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from envs.environment import ActionSpace, DictSpace, ObsSpace, map_entries
from stages.config import Config, Hypers
from stages.decode import make_decoder
from stages.imagine import open_loop, stored_latent
from stages.measure.open_loop import (
    CONTEXT,
    changed_accuracy,
    episode_step,
    open_loop_errors,
    play_rows,
    prediction_errors,
)
from stages.replay import Row
from stages.rssm import Latent, imagine_step
from stages.world_model import WorldModel, action_vector
from tests.conftest import SMALL, arbitrary, observations, to_device

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
    known, action = stored_latent(model, rows), action_vector(model, rows.action)
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
    return np.asarray(decoder(states), np.float64), np.asarray(obs), prediction_errors(decoder, states, obs)


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
    every = prediction_errors(mix_agent.model.decoder, stored_latent(mix_agent.model, rows), rows.obs)
    np.testing.assert_allclose(observed.loss[:2], np.asarray(every.loss)[[CONTEXT, CONTEXT + 4]].mean(1), rtol=1e-5)
    assert np.isfinite(ours.loss[:2]).all() and np.isnan(ours.loss[2]) and np.isnan(observed.loss[2])
    assert (np.asarray(ours.loss)[:2] != np.asarray(observed.loss)[:2]).all()  # it did not look


# ---- what changes --------------------------------------------------------------------------------------------------

MIXED = DictSpace({
    "camera": ObsSpace((4, 4, 3), "image"),
    "lamp": ObsSpace((3,), "binary"),
    "speed": ObsSpace((2,), "real"),
    "tiles": ObsSpace((2, 2), "categorical", 5),
})  # fmt: skip


def two_rows(space, model) -> Row:
    """Made-up rows [2, N]; the second one of environment 1 begins an episode."""
    rng, never = np.random.default_rng(0), np.zeros((2, N), bool)
    is_first = never.copy()
    is_first[1, 1] = True
    obs = map_entries(space, lambda entry: observations(entry, (2, N)))
    action = to_device(rng.integers(0, model.actions.size, (2, N)), jnp.int32)
    deter = to_device(rng.normal(size=(2, N, SMALL.deter)), jnp.float32)
    stoch = to_device(rng.integers(0, SMALL.classes, (2, N, SMALL.stoch)), jnp.uint8)
    return Row(obs, action, jnp.zeros((2, N)), *map(to_device, (is_first, never, never)), deter, stoch)


@pytest.mark.parametrize("present", [1, 2])
def test_only_binary_and_categorical_numbers_that_change_count(present):
    model = arbitrary(lambda: WorldModel(Config(model=SMALL), MIXED, ActionSpace("discrete", 3), key=KEY))
    rows = two_rows(MIXED, model)
    found = jax.jit(lambda rows, present: changed_accuracy(model, rows, 0.02, present, key=KEY))(
        rows, jnp.int32(present)
    )
    uniform = jr.uniform(KEY, (N, model.rssm.stoch))
    known = jax.tree.map(lambda x: x[0], (stored_latent(model, rows), action_vector(model, rows.action)))
    predict = jax.jit(lambda *before: model.decoder(imagine_step(model.rssm, *before, 0.02)))
    right, obs = [], jax.tree.map(np.asarray, rows.obs)
    for n in (0, 2):
        raw = jax.tree.map(np.asarray, predict(*jax.tree.map(lambda x, n=n: x[n], known), uniform[n]))
        for name, likeliest in (("lamp", raw["lamp"] > 0), ("tiles", raw["tiles"].argmax(-1))):
            before, after = obs[name][:, n]
            right += (likeliest == after)[before != after].tolist()
    assert 0 < np.mean(right) < 1
    np.testing.assert_allclose(found, np.mean(right) if present == 2 else np.nan, rtol=1e-6)


@pytest.mark.parametrize("space", [ObsSpace((2,), "real"), ObsSpace((2,), "binary")], ids=["reals", "no change"])
def test_where_nothing_changes_there_is_no_share(space):
    model = arbitrary(lambda: WorldModel(Config(model=SMALL), space, ActionSpace("discrete", 3), key=KEY))
    rows = two_rows(space, model)
    if space.kind == "binary":
        rows = dataclasses.replace(rows, obs=jnp.zeros_like(rows.obs))
    assert np.isnan(jax.jit(lambda rows: changed_accuracy(model, rows, 0.02, jnp.int32(2), key=KEY))(rows))
