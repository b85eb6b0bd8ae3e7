"""rnd.py against plain numpy and optax: what it pays, and one of its updates."""

from types import SimpleNamespace

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from stages.rnd import RND
from tests.by_hand import slow_head
from tests.conftest import to_device, tree_equal
from tests.rewarded import (
    ACTIONS,
    CONFIG,
    COUNTS,
    HYPERS,
    MODEL,
    OBS,
    A,
    B,
    T,
    feat_of,
    n,
    observed_of,
    rows_of,
    slow_inputs,
)  # fmt: skip


@pytest.fixture(scope="module")
def made():
    """A reward, and what its methods give; one program for all."""
    pairs, window = rows_of((2, n)), rows_of((T, B), seed=1)
    feat, action = feat_of(window), jax.nn.one_hot(window.action, A)
    observed = observed_of(window)

    @jax.jit
    def run(key):
        reward = RND(CONFIG, OBS, ACTIONS, key=key)
        return {
            "reward": reward,
            "paid": reward(MODEL, feat, action, HYPERS),
            "novelty": reward.novelty_signal(MODEL, feat, action, HYPERS),
            "loss": reward.loss(MODEL, observed, window, action, HYPERS),
            "updated": reward.update(reward.init_opt_state(HYPERS), MODEL, pairs, COUNTS, HYPERS),
        }

    return SimpleNamespace(pairs=pairs, window=window, feat=feat, action=action, **run(jr.key(3)))


def test_it_pays_the_squared_error_of_its_predictor(made):
    read = slow_inputs(made.feat, made.action)
    error = ((slow_head(made.reward.predictor, read) - slow_head(made.reward.target, read)) ** 2).mean(-1)
    np.testing.assert_allclose(made.paid, error, rtol=1e-4)
    np.testing.assert_array_equal(made.novelty, made.paid)
    # Learned with the agent, it learns where an action was chosen.
    np.testing.assert_allclose(made.loss, np.where(made.window.is_last, 0.0, error), rtol=1e-4)


def test_an_update_is_adam_on_the_pairs_in_which_an_action_was_chosen(made):
    pairs, reward = made.pairs, made.reward
    first = jax.tree.map(lambda x: x[0], pairs)
    read = to_device(slow_inputs(feat_of(first), np.eye(A)[first.action]), jnp.float32)
    counts = np.arange(n) != 1

    def loss(predictor):
        return jnp.mean(counts * jnp.square(predictor(read) - reward.target(read)).mean(-1))

    adam = optax.adam(HYPERS.ensemble_lr, b1=0.9, b2=0.99)
    value, grads = jax.jit(jax.value_and_grad(loss))(reward.predictor)
    updates, _ = adam.update(grads, adam.init(reward.predictor))
    updated, _, lost = made.updated
    np.testing.assert_allclose(lost, value, rtol=1e-4)
    expected_predictor = eqx.apply_updates(reward.predictor, updates)
    chex.assert_trees_all_close(updated.predictor, expected_predictor, rtol=1e-3, atol=1e-5)
    assert tree_equal((updated.target, updated.numbers), (reward.target, reward.numbers))
