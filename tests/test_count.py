"""count.py against a hand table of bonuses, plain numpy and optax; where it is refused."""

import dataclasses

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from stages import library
from stages.cli.validate import check_countable, validate
from stages.config import ConfigError
from stages.count import CountBonus
from stages.presets import preset
from tests.by_hand import slow_head
from tests.conftest import to_device, tree_equal
from tests.rewarded import ACTIONS, CONFIG, COUNTS, HYPERS, MODEL, OBS, A, feat_of, n, rows_of, slow_inputs

PAIRS = rows_of((2, n))
FEAT = feat_of(jax.tree.map(lambda x: x[0], PAIRS))
# Read from the latent, in which no two rows are alike: what these heads decode of them hardly differs.
READS = dataclasses.replace(CONFIG, ensemble=dataclasses.replace(CONFIG.ensemble, input="feat", units=64))
ENDED = 1  # the pair whose first row is an episode's last
TABLE = {0: 1.0, 1: 0.70711, 3: 0.5, 8: 1 / 3, 15: 0.25, 24: 0.2, 99: 0.1}  # visits: bonus
UPDATE = jax.jit(lambda bonus, state, counts: bonus.update(state, MODEL, PAIRS, counts, HYPERS))


@pytest.fixture(scope="module")
def bonus():
    return eqx.filter_jit(CountBonus)(CONFIG, OBS, ACTIONS, key=jr.key(3))


@jax.jit
def paid(bonus):
    """What every action pays at the pairs' first rows, [n, A]."""
    of_action = lambda action: bonus(MODEL, FEAT, jnp.broadcast_to(action, (n, A)), HYPERS)
    return jax.vmap(of_action, out_axes=1)(jnp.eye(A))


def expected_bonus(counts):
    return np.vectorize(TABLE.get)(np.asarray(counts.visits))


def test_it_pays_1_before_it_has_learned(bonus):
    np.testing.assert_array_equal(paid(bonus), 1)


def test_it_learns_the_table_of_bonuses_where_an_action_was_chosen():
    bonus = CountBonus(READS, OBS, ACTIONS, key=jr.key(3))

    def step(carry, _):
        updated, state, loss = carry[0].update(carry[1], MODEL, PAIRS, COUNTS, HYPERS)
        return (updated, state), loss

    carry = (bonus, bonus.init_opt_state(HYPERS))
    (learned, _), losses = jax.jit(lambda carry: jax.lax.scan(step, carry, length=2000))(carry)
    acted = np.arange(n) != ENDED
    np.testing.assert_allclose(paid(learned)[acted], expected_bonus(COUNTS)[acted], atol=0.02)
    first = np.where(acted[:, None], (1 - expected_bonus(COUNTS)) ** 2, 0).mean()
    np.testing.assert_allclose(losses[0], first, rtol=1e-4)
    assert losses[-1] < 1e-3 * losses[0]
    fresh = learned.reinitialize(READS, OBS, ACTIONS, key=jr.key(7))
    np.testing.assert_array_equal(paid(fresh), 1)
    assert tree_equal(fresh.numbers, bonus.numbers)


def test_it_pays_no_less_than_0_and_no_more_than_1(bonus):
    for weight in (-5.0, 5.0):
        wide = eqx.tree_at(lambda b: b.predictor.out.bias, bonus, jnp.full(1, weight))
        np.testing.assert_array_equal(paid(wide), float(weight > 0))


def test_an_update_is_adam_on_all_actions_of_the_rows_in_which_one_was_chosen(bonus):
    # Of a network that has learned something, so that every layer has a gradient.
    bonus = eqx.tree_at(lambda b: b.predictor.out.weight, bonus, jr.normal(jr.key(4), (16, 1)))
    read = np.stack([slow_inputs(FEAT, np.tile(np.eye(A)[action], (n, 1))) for action in range(A)], 1)
    target, acted = expected_bonus(COUNTS), np.arange(n) != ENDED
    error = (1 + slow_head(bonus.predictor, read)[..., 0] - target) ** 2
    inputs, target = to_device(read, jnp.float32), to_device(target, jnp.float32)

    def loss(predictor):
        return (acted[:, None] * jnp.square(1 + predictor(inputs)[..., 0] - target)).mean()

    adam = optax.adam(HYPERS.ensemble_lr, b1=0.9, b2=0.99)
    grads = jax.jit(jax.grad(loss))(bonus.predictor)
    updates, _ = adam.update(grads, adam.init(bonus.predictor))
    updated, _, lost = UPDATE(bonus, bonus.init_opt_state(HYPERS), COUNTS)
    np.testing.assert_allclose(lost, (error * acted[:, None]).mean(), rtol=1e-4)
    expected = eqx.apply_updates(bonus.predictor, updates)
    chex.assert_trees_all_close(updated.predictor, expected, rtol=1e-3, atol=1e-5)
    others = COUNTS._replace(visits=COUNTS.visits.at[ENDED].add(7))
    again, _, _ = UPDATE(bonus, bonus.init_opt_state(HYPERS), others)
    assert tree_equal(again, updated), "no action follows an episode's last row"


def test_nothing_of_it_moves_the_model(bonus):
    bonus = eqx.tree_at(lambda b: b.predictor.out.weight, bonus, jr.normal(jr.key(4), (16, 1)))
    pay = lambda model, feat: bonus(model, feat, jnp.ones((n, A)), HYPERS).sum()
    assert all((x == 0).all() for x in jax.tree.leaves(jax.jit(jax.grad(pay, (0, 1)))(MODEL, FEAT)))


def test_it_is_refused_where_nothing_would_learn_or_nothing_is_counted():
    config, hypers = preset("tiny", "explore")
    count = dataclasses.replace(config, explorer_reward="count")
    validate(count, hypers)
    with pytest.raises(ConfigError, match=r"^--explorer-reward count needs --ensemble\.updates 1 or more: .*$"):
        validate(dataclasses.replace(count, ensemble=dataclasses.replace(config.ensemble, updates=0)), hypers)
    with pytest.raises(ConfigError, match="explore or mix"):
        validate(dataclasses.replace(count, mode="task"), hypers)
    check_countable(count, "FourRooms-misc", True)
    check_countable(dataclasses.replace(count, mode="task"), "Catch-bsuite", False)  # a run that adapts


def test_the_library_refuses_it_where_states_cannot_be_counted():
    config, hypers = library.configure("tiny", env="Catch-bsuite", mode="mix", explorer_reward="count")
    with pytest.raises(ConfigError, match="and Catch-bsuite has none: take rnd"):
        library.train(config, hypers)
