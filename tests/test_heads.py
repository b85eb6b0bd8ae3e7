"""networks/heads.py: actors against the closed forms of what they sample, two-hot and continue heads against numpy.

Axes: A actions, F feat, I bins.
"""

import dataclasses

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

from envs.environment import ActionSpace
from stages.config import ModelConfig
from stages.networks.heads import Actor, ContinueHead, OutcomeHead, TwoHotHead
from tests.by_hand import dense, linear, softmax, two_hot_by_hand
from tests.conftest import arbitrary, scrambled, to_device

SIZES = ModelConfig(deter=4, stoch=1, classes=2, units=8, layers=2)
F = SIZES.feat
TABLE = dataclasses.replace(SIZES, units=F, layers=0)  # no hidden layer
DISCRETE, CONTINUOUS = ActionSpace("discrete", 3), ActionSpace("continuous", 2)
close = chex.assert_trees_all_close


# ---- actors --------------------------------------------------------------------------------------------------------


def fixed_actor(actions, bias):
    """An actor whose raw outputs are `bias`, whatever it sees."""
    actor = arbitrary(lambda: Actor(TABLE, actions, key=jr.key(0)))
    linear = lambda a: a.head.out if actions.kind == "discrete" else a.head.out.parts.module
    where, bias = lambda a: (linear(a).weight, linear(a).bias), np.reshape(np.float32(bias), linear(actor).bias.shape)
    return eqx.tree_at(where, actor, jax.device_put((np.zeros(linear(actor).weight.shape, np.float32), bias)))


def test_discrete_acting_is_one_hot_in_the_policys_proportions():
    many, ratio = 10_000, 0.1
    actor = fixed_actor(DISCRETE, [0.0, 1.0, 2.0])
    action = actor(jnp.zeros((many, F)), ratio).sample((jnp.arange(many) + 0.5) / many)
    chex.assert_shape(action, (many, 3))
    np.testing.assert_array_equal(np.sort(action, -1), np.tile([0, 0, 1], (many, 1)))
    expected = 0.9 * np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum() + 0.1 / 3
    np.testing.assert_allclose(action.mean(0), expected, atol=2 / many)


def test_discrete_noise_is_one_uniform_number():
    noise = fixed_actor(DISCRETE, [0.0] * 3).noise((500, 4), key=jr.key(0))
    chex.assert_shape(noise, (500, 4))
    assert stats.kstest(np.ravel(noise), "uniform").pvalue > 1e-3


def test_continuous_acting_is_mean_plus_std_times_normal_noise():
    actor = fixed_actor(CONTINUOUS, [0.5, -3.0, 0.0, -2.0])
    noise = actor.noise((2000,), key=jr.key(0))
    chex.assert_shape(noise, (2000, 2))
    assert stats.kstest(np.ravel(noise), "norm").pvalue > 1e-3
    action = actor(jnp.zeros((2000, F)), 0.0).sample(noise)
    std = 0.1 + 0.9 / (1 + np.exp([-2.0, 0.0]))
    np.testing.assert_allclose(action, np.tanh([0.5, -3.0]) + std * np.asarray(noise), rtol=1e-5, atol=1e-6)


def test_acting_sends_no_gradient_to_the_actor():
    for actions, noise in ((DISCRETE, jnp.full((1,), 0.3)), (CONTINUOUS, jnp.ones((1, 2)))):
        actor = arbitrary(lambda actions=actions: Actor(SIZES, actions, key=jr.key(0)))
        acted = lambda a, noise=noise: jnp.square(a(jnp.ones((1, F)), 0.01).sample(noise)).sum()
        grads = jax.jit(jax.grad(acted))(actor)
        assert jax.tree.structure(grads) == jax.tree.structure(actor)
        assert not any(np.asarray(x).any() for x in jax.tree.leaves(grads))


def test_greedy_acting_takes_the_likeliest():
    discrete, continuous = fixed_actor(DISCRETE, [0.0, 1.0, 0.9]), fixed_actor(CONTINUOUS, [0.5, -3.0, 0.0, 5.0])
    np.testing.assert_array_equal(discrete(jnp.zeros((2, F)), 0.01).mode(), [[0, 1, 0]] * 2)
    np.testing.assert_allclose(continuous(jnp.zeros((2, F)), 0.01).mode(), [np.tanh([0.5, -3.0])] * 2, rtol=1e-5)


def test_a_policy_of_half_precision_features_is_float32():
    feat = jnp.zeros((2, F), jnp.bfloat16)
    for actions, noise in ((DISCRETE, jnp.full((2,), 0.3)), (CONTINUOUS, jnp.ones((2, 2)))):
        actor = arbitrary(lambda actions=actions: Actor(SIZES, actions, key=jr.key(0)))

        def outputs(feat, noise, actor=actor):
            policy = actor(feat, 0.01)
            return policy, policy.sample(noise), policy.mode()

        chex.assert_type(jax.tree.leaves(jax.eval_shape(outputs, feat, noise)), jnp.float32)


def test_a_saturated_discrete_policy_keeps_a_floor_under_every_action():
    ratio, size = 0.01, 3
    dist = fixed_actor(DISCRETE, [1e4, -1e4, 0.0])(jnp.zeros((1, F)), ratio)
    expected = np.array([[1 - ratio + ratio / size, ratio / size, ratio / size]])
    np.testing.assert_allclose(dist.probs, expected, rtol=1e-5)
    entropy = dist.entropy()
    np.testing.assert_allclose(entropy, stats.entropy(expected, axis=-1), rtol=1e-4)
    assert entropy[0] > 0.04
    chex.assert_tree_all_finite(dist)


def test_a_bounded_normal_stays_within_its_bounds():
    for raw, mean, std in ((-1e4, -1.0, 0.1), (1e4, 1.0, 1.0), (0.0, 0.0, 0.1 + 0.9 / (1 + np.exp(-2)))):
        dist = fixed_actor(CONTINUOUS, [raw] * 4)(jnp.zeros((1, F)), 0.01)
        np.testing.assert_allclose(dist.mean, np.full((1, 2), mean), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(dist.std, np.full((1, 2), std), rtol=1e-5)


def test_a_fresh_actor_is_nearly_indifferent():
    dist = jax.jit(lambda: Actor(SIZES, DISCRETE, key=jr.key(0))(jr.normal(jr.key(1), (50, F)), 0.01))()
    np.testing.assert_allclose(dist.probs, np.full((50, 3), 1 / 3), atol=0.03)


# ---- two-hot and continue heads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("depth, bins", [(1, 255), (3, 255), (1, 15)])
def test_the_first_prediction_is_exactly_zero(run, depth, bins):
    head = jax.jit(lambda key: TwoHotHead(7, 6, depth, bins, key=key))(jr.key(0))
    feat = to_device(100 * np.random.default_rng(0).normal(size=(2, 3, 7)), np.float32)
    logits, mean = run(lambda head, feat: (head(feat), head.mean(head(feat))))(head, feat)
    chex.assert_trees_all_equal(logits, jnp.zeros((2, 3, bins)))
    chex.assert_trees_all_equal(mean, jnp.zeros((2, 3)))
    assert len(head.head.mlp.layers) == depth


VALUES = jnp.float32([-1e5, -3.3, 0, 0.01, 1, 777])


def test_mean_reads_back_a_two_hot():
    head = arbitrary(lambda: TwoHotHead(7, 6, 1, 255, key=jr.key(0)))
    logits = np.log(1e-30 + np.stack([two_hot_by_hand(float(x), 255) for x in VALUES]))
    close(head.mean(jnp.float32(logits)), VALUES, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bins", [15, 255])
def test_two_hot_loss_is_cross_entropy_to_each_target(bins):
    head, rng = arbitrary(lambda: TwoHotHead(7, 6, 1, bins, key=jr.key(0))), np.random.default_rng(0)
    logits = jnp.float32(rng.normal(size=(6, bins)))
    logp = np.float64(logits) - np.log(np.exp(np.float64(logits)).sum(-1, keepdims=True))
    first, second = (
        -np.array([two_hot_by_hand(float(x), bins) @ row for x, row in zip(values, logp, strict=True)])
        for values in (VALUES, VALUES[::-1])
    )
    close(head.loss(logits, VALUES), first, rtol=1e-5)
    both = jax.jit(lambda weight: head.loss(logits, VALUES, VALUES[::-1], weights=(1.0, weight)))
    close(both(jnp.float32(0.3)), first + 0.3 * second, rtol=1e-5)


def test_two_hot_loss_sends_gradient_to_the_logits_alone():
    head = arbitrary(lambda: TwoHotHead(7, 6, 1, 15, key=jr.key(0)))
    loss = lambda *args: head.loss(*args, weights=(1.0, 0.5)).sum()
    grads = jax.jit(jax.grad(loss, (0, 1, 2)))(jnp.zeros((6, 15)), VALUES, VALUES[::-1])
    by_hand = 1.5 / 15 - np.stack([two_hot_by_hand(float(x), 15) for x in VALUES])
    by_hand = by_hand - 0.5 * np.stack([two_hot_by_hand(float(x), 15) for x in VALUES[::-1]])
    close(grads, (by_hand, np.zeros(6), np.zeros(6)), rtol=1e-5, atol=1e-6)


def test_two_hot_head_learns_a_value_from_its_zero_start():
    head, feat = jax.jit(lambda key: TwoHotHead(3, 6, 1, 15, key=key))(jr.key(0)), jnp.float32([1, -2, 3])
    loss = lambda head: head.loss(head(feat), jnp.float32(40.0))
    step = jax.jit(lambda head: jax.tree.map(lambda x, g: x - 0.2 * g, head, jax.grad(loss)(head)))
    for _ in range(200):
        head = step(head)
    # The floor is the two-hot target's own entropy; the tail of the outer bins, up to e^20, fades last.
    target = two_hot_by_hand(40.0, 15)
    floor = -(target[target > 0] * np.log(target[target > 0])).sum()
    assert jax.jit(loss)(head) < floor + 0.05


def test_continue_head_agrees_with_numpy():
    head = scrambled(lambda: ContinueHead(7, 6, key=jr.key(0)))
    feat = np.random.default_rng(0).normal(size=(2, 3, 7)).astype(np.float32)
    (layer,) = head.head.mlp.layers
    logits = jax.jit(lambda head, feat: head(feat))(head, feat)
    chex.assert_shape(logits, (2, 3))
    close(logits, linear(head.head.out, dense(layer, np.float64(feat)))[..., 0], rtol=1e-4, atol=1e-4)


# ---- reward and end as one distribution ------------------------------------------------------------------------------

OUTCOME_BINS = 15


@pytest.fixture(scope="module")
def outcome():
    return scrambled(lambda: OutcomeHead(7, 6, OUTCOME_BINS, key=jr.key(0)))


@pytest.fixture(scope="module")
def outcome_logits(outcome):
    """Of four features, in numpy: [4, 2, I]."""
    feat = np.random.default_rng(0).normal(size=(4, 7)).astype(np.float32)
    (layer,) = outcome.head.mlp.layers
    expected = linear(outcome.head.out, dense(layer, np.float64(feat))).reshape(4, 2, OUTCOME_BINS)
    expected[:, 1] -= 5
    close(jax.jit(lambda head, feat: head(feat))(outcome, feat), expected, rtol=1e-4, atol=1e-4)
    return expected


def all_probs(logits):
    """Of bins x {goes on, ends}, [4, 2, I]."""
    return softmax(logits.reshape(4, -1)).reshape(logits.shape)


def test_an_outcome_has_the_marginals_of_one_distribution(outcome, outcome_logits):
    points = np.linspace(-20, 20, OUTCOME_BINS)
    probs, bins = all_probs(outcome_logits), np.sign(points) * np.expm1(np.abs(points))
    said = jax.jit(lambda x: (outcome.mean(x), jax.nn.sigmoid(outcome.continue_logit(x))))(np.float32(outcome_logits))
    close(said, ((probs * bins).sum((1, 2)), probs[:, 0].sum(1)), rtol=1e-3, atol=1e-4)


def test_both_losses_are_the_cross_entropy_of_the_whole_distribution(outcome, outcome_logits):
    """To targets of which two go on, with a discount of 0.9, and two end."""
    reward, goes_on = jnp.float32([-3.3, 0.0, 1.0, 40.0]), jnp.float32([0.9, 0.9, 0.0, 0.0])

    def whole(logits):
        logit = outcome.continue_logit(logits)
        return (outcome.loss(logits, reward, goes_on) + jax.nn.softplus(logit) - goes_on * logit).sum()

    loss, slope = jax.jit(jax.value_and_grad(whole))(jnp.float32(outcome_logits))
    two_hot = np.stack([two_hot_by_hand(float(x), OUTCOME_BINS) for x in reward])
    share = np.stack([goes_on, 1 - goes_on], 1)  # [4, 2]
    target = share[..., None] * two_hot[:, None]
    probs = all_probs(outcome_logits)
    close(loss, -(target * np.log(probs)).sum(), rtol=1e-4)
    close(slope, probs - target, rtol=1e-3, atol=1e-5)


def test_a_fresh_outcome_head_expects_no_reward_and_hardly_an_end():
    head = jax.jit(lambda key: OutcomeHead(7, 6, OUTCOME_BINS, key=key))(jr.key(0))
    logits = head(100 * jr.normal(jr.key(1), (5, 7)))
    close((head.mean(logits), head.continue_logit(logits)), (np.zeros(5), np.full(5, 5.0)), atol=1e-6, rtol=1e-5)


def test_what_pays_only_at_an_end_is_expected_with_its_probability():
    """Learned from features that tell nothing: one row of four pays 1 and ends, so 0.25 is expected, as is an end."""
    head, feat = jax.jit(lambda key: OutcomeHead(3, 6, OUTCOME_BINS, key=key))(jr.key(0)), jnp.ones((4, 3))
    reward, goes_on = jnp.float32([0, 0, 0, 1]), jnp.float32([1, 1, 1, 0])

    def loss(head):
        logits = head(feat)
        logit = head.continue_logit(logits)
        return (head.loss(logits, reward, goes_on) + jax.nn.softplus(logit) - goes_on * logit).mean()

    @jax.jit
    def learned(head):
        step = lambda _, head: jax.tree.map(lambda x, g: x - 0.2 * g, head, jax.grad(loss)(head))
        head = jax.lax.fori_loop(0, 20_000, step, head)
        logits = head(feat[0])
        return head.mean(logits), jax.nn.sigmoid(-head.continue_logit(logits))

    expected, ends = learned(head)
    assert abs(ends - 0.25) < 0.01 and abs(expected - ends) < 0.01
