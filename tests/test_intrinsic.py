"""intrinsic.py: what each reward pays and measures; what learns and what stays; that
whatever was seen often pays less than what was not."""

import dataclasses
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from stages.ensemble import disagreement
from stages.intrinsic import ConstantReward, Disagreement
from stages.rnd import RND
from tests.conftest import tree_equal
from tests.rewarded import ACTIONS, CONFIG, COUNTS, HYPERS, MODEL, OBS, A, B, T, feat_of, n, observed_of, rows_of

REWARDS = {"disagreement": Disagreement, "constant": ConstantReward, "rnd": RND}
every_reward = pytest.mark.parametrize("name", REWARDS)


@pytest.fixture(scope="module")
def made():
    """Each reward, and what each of its methods gives; one program for all."""
    pairs, window = rows_of((2, n)), rows_of((T, B), seed=1)
    feat, action = feat_of(window), jax.nn.one_hot(window.action, A)
    observed = observed_of(window)

    def run(key):
        results = {}
        for name, cls in REWARDS.items():
            reward = cls(CONFIG, OBS, ACTIONS, key=key)
            state = reward.init_opt_state(HYPERS)
            loss = lambda reward: reward.loss(MODEL, observed, window, action, HYPERS)
            results[name] = {
                "reward": reward,
                "paid": reward(MODEL, feat, action, HYPERS),
                "novelty": reward.novelty_signal(MODEL, feat, action, HYPERS),
                "loss": loss(reward),
                "grad": jax.grad(lambda reward, loss=loss: loss(reward).sum())(reward),
                "model_grad": jax.grad(
                    lambda model, r=reward: (
                        r.loss(model, observed, window, action, HYPERS).sum() + r(model, feat, action, HYPERS).sum()
                    )
                )(MODEL),
                "updated": reward.update(state, MODEL, pairs, COUNTS, HYPERS),
                "untrained": reward.reinitialize(CONFIG, OBS, ACTIONS, key=jr.key(7)),
            }
        return results

    results = jax.jit(run)(jr.key(3))
    return {name: SimpleNamespace(**result) for name, result in results.items()} | {
        "inputs": SimpleNamespace(pairs=pairs, window=window, feat=feat, action=action)
    }


def test_disagreement_pays_what_its_ensemble_disagrees(made):
    inputs, own = made["inputs"], made["disagreement"]
    paid = disagreement(own.reward.ensemble, MODEL, inputs.feat, inputs.action, HYPERS)
    np.testing.assert_allclose(own.paid, paid, rtol=1e-4)
    np.testing.assert_array_equal(own.novelty, own.paid)
    assert (np.asarray(own.paid) > 0).all()


def test_a_constant_pays_one_and_measures_the_disagreement_that_it_does_not_pay(made):
    constant, other = made["constant"], made["disagreement"]
    np.testing.assert_array_equal(constant.paid, np.ones((T, B)))
    np.testing.assert_allclose(constant.novelty, other.novelty, rtol=1e-5)
    # Its ensemble, of the same key, learns as the one that is paid for.
    chex.assert_trees_all_close(constant.updated[0].unpaid, other.updated[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(constant.loss, other.loss, rtol=1e-5)


FROZEN = {
    "disagreement": lambda r: (r.ensemble.prior, r.ensemble.numbers),
    "constant": lambda r: (r.unpaid.ensemble.prior, r.unpaid.ensemble.numbers),
    "rnd": lambda r: (r.target, r.numbers),
}
LEARNED = {
    "disagreement": lambda r: r.ensemble.members,
    "constant": lambda r: r.unpaid.ensemble.members,
    "rnd": lambda r: r.predictor,
}


@every_reward
def test_what_learns_and_what_stays(made, name):
    own = made[name]
    for other in (own.updated[0], own.untrained):
        assert tree_equal(FROZEN[name](other), FROZEN[name](own.reward))
        weights = zip(jax.tree.leaves(LEARNED[name](other)), jax.tree.leaves(LEARNED[name](own.reward)), strict=True)
        assert any((x != y).any() for x, y in weights)
    assert all((x != 0).any() for x in jax.tree.leaves(LEARNED[name](own.grad)))
    assert all((x == 0).all() for x in jax.tree.leaves(FROZEN[name](own.grad)))
    assert own.reward.updates == 2


@every_reward
def test_nothing_of_a_reward_moves_the_model(made, name):
    assert all((x == 0).all() for x in jax.tree.leaves(made[name].model_grad))


@pytest.mark.parametrize("name", ["disagreement", "rnd"])
def test_what_was_seen_often_pays_less(made, name):
    """1,000 updates on pairs of actions 0 and 1; action 2 was never chosen."""
    pairs, own = made["inputs"].pairs, made[name]
    pairs = dataclasses.replace(pairs, action=pairs.action % 2)

    def step(carry, _):
        reward, state = carry
        reward, state, _ = reward.update(state, MODEL, pairs, COUNTS, HYPERS)
        return (reward, state), None

    carry = (own.reward, own.reward.init_opt_state(HYPERS))
    (reward, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=1000))(carry)
    feat = feat_of(jax.tree.map(lambda x: x[0], pairs))
    paid = lambda reward, action: np.asarray(reward(MODEL, feat, jax.nn.one_hot(action, A), HYPERS)).mean()
    chosen, new = paid(reward, pairs.action[0]), paid(reward, jnp.full(n, 2))
    assert chosen < 0.5 * new and chosen < 0.5 * paid(own.reward, pairs.action[0])
