"""intrinsic.py and rnd.py: what each reward pays and measures, against plain numpy; what learns and what stays; that
whatever was seen often pays less than what was not."""

import dataclasses
from types import SimpleNamespace

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from envs.environment import ActionSpace, ObsSpace
from stages.config import Config, EnsembleConfig, Hypers, ModelConfig
from stages.decode import decode_mean
from stages.ensemble import disagreement
from stages.intrinsic import ConstantReward, Disagreement
from stages.networks.distributions import Categorical
from stages.replay import Row
from stages.rnd import RND
from stages.rssm import Latent
from stages.world_model import Observed, WorldModel
from tests.conftest import arbitrary, to_device, tree_equal

T, B, n, A, Q = 4, 3, 12, 3, 5
SIZES = ModelConfig(deter=2, stoch=2, classes=2, units=8, hidden=4, blocks=1, layers=1)
OBS, ACTIONS = ObsSpace((7,), "binary"), ActionSpace("discrete", A)
ENSEMBLE = EnsembleConfig(
    members=3, layers=1, units=16, input="decoded", target="projected", projection=Q, prior_layers=1, updates=2
)
CONFIG = Config(mode="explore", model=SIZES, ensemble=ENSEMBLE)
HYPERS = Hypers(action_scale=3.0, ensemble_lr=3e-3)
MODEL = arbitrary(lambda: WorldModel(CONFIG, OBS, ACTIONS, key=jr.key(0)))
STORED = jnp.asarray(50)  # rows of replay
REWARDS = {"disagreement": Disagreement, "constant": ConstantReward, "rnd": RND}
every_reward = pytest.mark.parametrize("name", REWARDS)


def rows_of(lead, seed=0) -> Row:
    """Made-up rows of binary observations; an episode ends at row 0 of entry 1."""
    rng, never = np.random.default_rng(seed), np.zeros(lead, bool)
    is_last, is_first = never.copy(), never.copy()
    is_last[0, 1], is_first[1, 1] = True, True
    return Row(
        to_device(rng.integers(0, 2, (*lead, 7)).astype(OBS.dtype)),
        to_device(rng.integers(0, A, lead), jnp.int32),
        jnp.zeros(lead),
        to_device(is_first),
        to_device(is_last),
        to_device(is_last),
        to_device(rng.normal(size=(*lead, 2)), jnp.float32),
        to_device(rng.integers(0, 2, (*lead, 2)), jnp.uint8),
    )


def feat_of(rows):
    return Latent.stored(rows.deter, rows.stoch, 2, jnp.float32).feat


@pytest.fixture(scope="module")
def made():
    """Each reward, and what each of its methods gives; one program for all."""
    pairs, window = rows_of((2, n)), rows_of((T, B), seed=1)
    feat, action = feat_of(window), jax.nn.one_hot(window.action, A)
    latent = Latent.stored(window.deter, window.stoch, 2, jnp.float32)
    unused = Categorical(latent.stoch, latent.stoch)  # a distribution, of which target projected reads nothing
    observed = Observed(latent, MODEL.encoder(window.obs, MODEL.dtype), unused, unused)

    def run(key):
        results = {}
        for name, cls in REWARDS.items():
            reward = cls(CONFIG, OBS, ACTIONS, key=key)
            state = reward.init_opt_state(HYPERS)
            loss = lambda reward: reward.loss(MODEL, observed, window, action, HYPERS)
            results[name] = {
                "reward": reward,
                "paid": reward(MODEL, feat, action, HYPERS),
                "novelty": reward.measured(MODEL, feat, action, HYPERS),
                "loss": loss(reward),
                "grad": jax.grad(lambda reward, loss=loss: loss(reward).sum())(reward),
                "model_grad": jax.grad(
                    lambda model, r=reward: (
                        r.loss(model, observed, window, action, HYPERS).sum() + r(model, feat, action, HYPERS).sum()
                    )
                )(MODEL),
                "updated": reward.update(state, MODEL, pairs, STORED, HYPERS),
                "untrained": reward.untrained(CONFIG, OBS, ACTIONS, key=jr.key(7)),
            }
        return results

    results = jax.jit(run)(jr.key(3))
    return {name: SimpleNamespace(**result) for name, result in results.items()} | {
        "inputs": SimpleNamespace(pairs=pairs, window=window, feat=feat, action=action)
    }


def slow_head(head, x):
    """A head's outputs in float64."""
    head, x = jax.tree.map(lambda w: np.asarray(w, np.float64), head), np.asarray(x, np.float64)
    for layer in head.mlp.layers:
        x = x @ layer.linear.weight + layer.linear.bias
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-4) * layer.norm.scale
        x = x / (1 + np.exp(-x))
    return x @ head.out.weight + head.out.bias


def slow_inputs(feat, action):
    """The decoded observation at a mean square of 1, and three times the one-hot action."""
    stoch = feat[..., 2:].reshape(*feat.shape[:-1], 2, 2)
    seen = np.asarray(decode_mean(MODEL.decoder, Latent(feat[..., :2], stoch)), np.float64)
    seen = seen * np.sqrt(7) / np.sqrt((seen**2).sum(-1, keepdims=True) + 0.01)
    return np.concatenate([seen, 3 * np.asarray(action)], -1)


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


def test_rnd_pays_the_squared_error_of_its_predictor(made):
    inputs, own = made["inputs"], made["rnd"]
    read = slow_inputs(inputs.feat, inputs.action)
    error = ((slow_head(own.reward.predictor, read) - slow_head(own.reward.target, read)) ** 2).mean(-1)
    np.testing.assert_allclose(own.paid, error, rtol=1e-4)
    np.testing.assert_array_equal(own.novelty, own.paid)
    # Learned with the agent, it learns where an action was chosen.
    np.testing.assert_allclose(own.loss, np.where(inputs.window.is_last, 0.0, error), rtol=1e-4)


def test_rnds_update_is_adam_on_the_pairs_in_which_an_action_was_chosen(made):
    pairs, own = made["inputs"].pairs, made["rnd"]
    first = jax.tree.map(lambda x: x[0], pairs)
    read = to_device(slow_inputs(feat_of(first), np.eye(A)[first.action]), jnp.float32)
    counts = np.arange(n) != 1

    def loss(predictor):
        return jnp.mean(counts * jnp.square(predictor(read) - own.reward.target(read)).mean(-1))

    adam = optax.adam(HYPERS.ensemble_lr, b1=0.9, b2=0.99)
    value, grads = jax.jit(jax.value_and_grad(loss))(own.reward.predictor)
    updates, _ = adam.update(grads, adam.init(own.reward.predictor))
    updated, _, lost = own.updated
    np.testing.assert_allclose(lost, value, rtol=1e-4)
    expected_predictor = eqx.apply_updates(own.reward.predictor, updates)
    chex.assert_trees_all_close(updated.predictor, expected_predictor, rtol=1e-3, atol=1e-5)
    assert tree_equal((updated.target, updated.numbers), (own.reward.target, own.reward.numbers))


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
        reward, state, _ = reward.update(state, MODEL, pairs, STORED, HYPERS)
        return (reward, state), None

    carry = (own.reward, own.reward.init_opt_state(HYPERS))
    (reward, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=1000))(carry)
    feat = feat_of(jax.tree.map(lambda x: x[0], pairs))
    paid = lambda reward, action: np.asarray(reward(MODEL, feat, jax.nn.one_hot(action, A), HYPERS)).mean()
    chosen, new = paid(reward, pairs.action[0]), paid(reward, jnp.full(n, 2))
    assert chosen < 0.5 * new and chosen < 0.5 * paid(own.reward, pairs.action[0])
