"""behavior.py: every loss against a slow plain-numpy one, credit by hand, and where gradients go.

Axes: H horizon, T time, B windows, n = T B starts, A actions, F feat, I bins.
"""

import dataclasses
import functools
from typing import NamedTuple

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

from envs.environment import ActionSpace
from stages.behavior import Behavior, BehaviorTarget, Objective, Replayed, behavior_loss, update_target
from stages.config import Hypers, ModelConfig
from stages.fast import blocks
from stages.imagine import Trajectory
from stages.returns import ReturnScale
from tests.by_hand import slow_head, softmax
from tests.conftest import arbitrary

H, T, B, F, BINS = 4, 4, 2, 6, 15
n = T * B
SIZES = ModelConfig(deter=2, stoch=2, classes=2, units=8, layers=2, bins=BINS)  # deter + stoch * classes = F
DISCRETE, CONTINUOUS = ActionSpace("discrete", 3), ActionSpace("continuous", 2)
HYPERS = Hypers(
    lam=0.9,
    discount_horizon=20.0,
    return_rate=0.1,
    slow_regularizer=0.7,
    unimix=0.3,
    policy_unimix=0.05,
    continuous_entropy=0.3,
)
ENTROPY = 0.03  # the bonus
arrays = functools.partial(jax.tree.map, np.asarray)


class Imagined(NamedTuple):
    """Imagined experience of all starts, not in blocks."""

    feat: jax.Array  # [L, n, F]
    action: jax.Array  # [L, n, A]
    reward: jax.Array  # [L, n]
    cont: jax.Array  # [L, n]


def moderate(critic):
    """A critic that believes in small values: the outermost bins are hundreds of millions away."""
    peak = -4.0 * jnp.abs(jnp.arange(BINS) - BINS // 2)
    return eqx.tree_at(lambda c: c.head.out.bias, critic, critic.head.out.bias + peak)


def make(actions):
    """A behaviour with weights of all kinds, another one's critic as the slow one, and a scale in mid-course."""
    behavior = arbitrary(lambda: Behavior(SIZES, actions, key=jr.key(0)), seed=1)
    behavior = eqx.tree_at(lambda b: b.critic, behavior, moderate(behavior.critic))
    slow = moderate(arbitrary(lambda: behavior, seed=2).critic)
    return behavior, BehaviorTarget(slow, ReturnScale(jnp.float32(-1.0), jnp.float32(4.0), jnp.float32(0.4)))


@functools.partial(jax.jit, static_argnums=0)
def experience(actions):
    """Made-up trajectories and rows: an episode ends by itself in one window and by a time limit in the other."""
    keys = jr.split(jr.key(4), 6)
    if actions.kind == "discrete":
        action = jax.nn.one_hot(jr.randint(keys[0], (H + 1, n), 0, actions.size), actions.size)
    else:
        action = jr.normal(keys[0], (H + 1, n, actions.size))
    feat, cont = jr.normal(keys[1], (H + 1, n, F)), jr.uniform(keys[2], (H + 1, n), minval=0.3, maxval=0.99)
    imagined = Imagined(feat, action, 3 * jr.normal(keys[3], (H + 1, n)), cont)
    is_last = jnp.array([[False, False], [True, False], [False, True], [False, False]])
    is_terminal = is_last.at[2, 1].set(False)
    replayed = Replayed(jr.normal(keys[4], (T, B, F)), 3 * jr.normal(keys[5], (T, B)), is_last, is_terminal)
    return imagined, replayed


def in_blocks(imagined, count):
    """Trajectory and reward in `count` blocks of consecutive starts, as behavior_loss takes them."""
    feat, action, reward, cont = (blocks.split(x, count, axis) for x, axis in zip(imagined, (1, 1, 1, 1), strict=True))
    return Trajectory(feat, action, cont), reward


def given_loss(behavior, target, imagined, replayed, objective, hypers, count=1):
    """behavior_loss of imagined experience in `count` blocks."""
    return behavior_loss(behavior, target, *in_blocks(imagined, count), replayed, objective, hypers)


CASES = {
    "returns": (DISCRETE, Objective("paid", ENTROPY, "returns", 1.0, False)),
    "returns, below the floor": (DISCRETE, Objective("paid", ENTROPY, "returns", 6.0, False)),
    "advantages, continuous": (CONTINUOUS, Objective("paid", ENTROPY, "advantages", 1e-8, True)),
    "advantages, a shorter horizon": (
        DISCRETE,
        Objective("paid", ENTROPY, "advantages", 1e-8, True, discount_ratio=0.9),
    ),
    "root mean square": (DISCRETE, Objective("paid", ENTROPY, "rms", 1e-8, True)),
    "root mean square, below the floor": (DISCRETE, Objective("paid", ENTROPY, "rms", 50.0, True)),
}


@functools.cache
def arguments_of(name):
    """Arguments of given_loss."""
    actions, objective = CASES[name]
    return (*make(actions), *experience(actions), objective, HYPERS)


@functools.cache
def case(name, count=1):
    """What behavior_loss gives for trajectories in `count` blocks, and the behaviour's gradients by loss."""
    *arguments, objective, hypers = arguments_of(name)

    def run(behavior, *arguments):
        losses = lambda behavior: given_loss(behavior, *arguments, objective, hypers, count)
        total = lambda name: lambda behavior: losses(behavior)[0][name].sum()
        return losses(behavior), {name: jax.grad(total(name))(behavior) for name in LOSSES}

    return arrays(jax.jit(run)(*arguments))


LOSSES = ("policy", "value", "repval")
every_case = pytest.mark.parametrize("name", CASES)
every_loss = pytest.mark.parametrize("loss", LOSSES)
every_count = pytest.mark.parametrize("count", [1, 4])  # of blocks


# ---- the slow implementation ---------------------------------------------------------------------------------------


def slow_bins():
    even = np.linspace(-20, 20, BINS)
    return np.sign(even) * np.expm1(np.abs(even))


def two_hot_nats(logits, value):
    """Cross-entropy of one distribution to one value, shared out between the two bins around it."""
    bins, logp = slow_bins(), np.log(softmax(logits))
    high = int(np.clip(np.searchsorted(bins, value), 1, BINS - 1))
    share = (value - bins[high - 1]) / (bins[high] - bins[high - 1])
    return -(1 - share) * logp[high - 1] - share * logp[high]


def slow_return(reward, value, live, last, lam, t):
    """The definition, forward: over every number of steps after t, and recursion only in the reader's mind."""
    if t == len(reward) - 1:
        return value[t]
    mix = 0.0 if last[t + 1] else lam
    after = slow_return(reward, value, live, last, lam, t + 1)
    return reward[t + 1] + live[t + 1] * ((1 - mix) * value[t + 1] + mix * after)


def slow_percentiles(pairs, percent):
    """Of sorted (number, weight): the first number at which the weights so far are that percentage of all."""
    total, found = sum(weight for _, weight in pairs), []
    for share in percent:
        so_far = 0.0
        for number, weight in pairs:
            so_far += weight
            if so_far >= share / 100 * total:
                found.append(number)
                break
    return found


def slow_policy(actor, feat, action):
    """(log-probability, entropy) of one action at one feature."""
    raw = slow_head(actor.head, feat)
    action = np.asarray(action, np.float64)
    if actor.actions.kind == "discrete":
        probs = (1 - HYPERS.policy_unimix) * softmax(raw) + HYPERS.policy_unimix / len(raw)
        return np.log(probs[int(action.argmax())]), stats.entropy(probs)
    half = len(raw) // 2
    std = 0.1 + 0.9 / (1 + np.exp(-(raw[half:] + 2)))
    dist = stats.norm(np.tanh(raw[:half]), std)
    return dist.logpdf(action).sum(), dist.entropy().sum()


def slow_loss(behavior, target, imagined, replayed, objective, hypers, believed=None):
    """behavior_loss, one number at a time; returns (losses, scale, metrics).

    Values that returns are made of are those of `believed`, a critic that stays where it is when another is moved.
    """
    believed = behavior.critic if believed is None else believed
    imagined, replayed = arrays(imagined), arrays(replayed)
    logits = slow_head(behavior.critic.head, imagined.feat)
    value = softmax(slow_head(believed.head, imagined.feat)) @ slow_bins()
    slow_value = softmax(slow_head(target.slow.head, imagined.feat)) @ slow_bins()
    returns = np.zeros((H, n))
    for i in range(n):
        for t in range(H):
            live = objective.discount_ratio * imagined.cont[:, i]
            returns[t, i] = slow_return(imagined.reward[:, i], value[:, i], live, np.zeros(H + 1), hypers.lam, t)

    gain, reached = returns - value[:H], np.cumprod(imagined.cont, 0)[:H]
    old = [float(x) for x in (target.scale.low, target.scale.high, target.scale.weight)]
    new = [np.percentile(returns, 5), np.percentile(returns, 95), 1.0]
    if objective.norm == "advantages":  # those of states that are reached count
        new = [*slow_percentiles(sorted(zip(gain.ravel(), reached.ravel(), strict=True)), (5, 95)), 1.0]
    low, high, weight = (0.9 * o + 0.1 * x for o, x in zip(old, new, strict=True))
    if objective.norm == "rms":
        rms = np.sqrt((reached * gain**2).sum() / reached.sum())
        low, high, weight = 0.0, max(rms, 0.9 * old[1] + 0.1 * rms), 1.0
    divisor = max(objective.floor, (high - low) / (weight if objective.debias else 1))

    losses = {"policy": np.zeros((H, n)), "value": np.zeros((H, n)), "repval": np.zeros((T - 1, B))}
    advantages, entropies = np.zeros((2, H, n))
    bonus = ENTROPY * (0.3 if behavior.actor.actions == CONTINUOUS else 1.0)
    for t in range(H):
        for i in range(n):
            advantage = gain[t, i] / divisor
            logp, entropy = slow_policy(behavior.actor, imagined.feat[t, i], imagined.action[t, i])
            advantages[t, i], entropies[t, i] = advantage, entropy
            losses["policy"][t, i] = -reached[t, i] * (logp * advantage + bonus * entropy)
            fit, stay = (two_hot_nats(logits[t, i], x) for x in (returns[t, i], slow_value[t, i]))
            losses["value"][t, i] = reached[t, i] * (fit + hypers.slow_regularizer * stay)

    logits_rows = slow_head(behavior.critic.head, replayed.feat)
    slow_rows = softmax(slow_head(target.slow.head, replayed.feat)) @ slow_bins()
    for b in range(B):
        boot = [returns[0, t * B + b] for t in range(T)]
        discount = objective.discount_ratio * (1 - 1 / hypers.discount_horizon)
        live = [0.0 if replayed.is_terminal[t, b] else discount for t in range(T)]
        for t in range(T - 1):
            if replayed.is_last[t, b]:
                continue
            goal = slow_return(replayed.reward[:, b], boot, live, replayed.is_last[:, b], hypers.lam, t)
            fit, stay = (two_hot_nats(logits_rows[t, b], x) for x in (goal, slow_rows[t, b]))
            losses["repval"][t, b] = fit + hypers.slow_regularizer * stay
    losses |= {name: losses[name].mean() for name in ("policy", "value")}
    metrics = {
        "adv_mag": np.abs(advantages).mean(),
        "ent": entropies.mean(),
        "ret": returns.mean(),
        "ret_scale": high - low,
        "val": value.mean(),
        "weight": np.cumprod(imagined.cont, 0).mean(),
    }
    return losses, (low, high, weight), metrics


@functools.cache
def slow_case(name):
    return slow_loss(*arguments_of(name))


@every_case
@every_count
@every_loss
def test_loss_is_the_slow_ones(name, count, loss):
    losses = case(name, count)[0][0]
    assert set(losses) == set(LOSSES)
    expected = slow_case(name)[0][loss]
    chex.assert_shape(losses[loss], np.shape(expected))
    assert np.abs(expected).max() > 0.005
    np.testing.assert_allclose(losses[loss], expected, rtol=2e-4, atol=1e-5)


@every_case
@every_count
@every_loss
def test_gradient_is_the_slow_ones_slope(name, count, loss):
    behavior, *others = arguments_of(name)
    rng, step = np.random.default_rng(3), 1e-5
    way = jax.tree.map(lambda x: rng.normal(size=x.shape), behavior)
    moved = lambda step: jax.tree.map(lambda x, d: np.asarray(x, np.float64) + step * d, behavior, way)
    up, down = (slow_loss(moved(s), *others, believed=behavior.critic)[0][loss].sum() for s in (step, -step))
    grads = case(name, count)[1][loss]
    slope = sum((g * d).sum() for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(way), strict=True))
    assert abs(slope) > 0.005
    np.testing.assert_allclose(slope, (up - down) / (2 * step), rtol=1e-3)


@every_case
@every_count
def test_the_scale_is_an_average_of_percentiles_or_of_the_root_mean_square(name, count):
    scale = case(name, count)[0][1]
    np.testing.assert_allclose([scale.low, scale.high, scale.weight], slow_case(name)[1], rtol=1e-4)


@every_case
@every_count
def test_metrics_are_means(name, count):
    metrics, expected = case(name, count)[0][2], slow_case(name)[2]
    assert metrics.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(metrics[key], value, rtol=1e-4, atol=1e-5, err_msg=key)


# ---- credit --------------------------------------------------------------------------------------------------------

STEP, CHOSEN = 1, 2  # in what follows, the action that is paid, and when


@functools.partial(jax.jit, static_argnames="lam")
def policy_gradient(arrival, lam):
    """The loss' gradient [H+1, A] on a table of logits by step, where one trajectory is paid 1 on `arrival`.

    The critic says 0 of everything; each step's feature is its own one-hot; uniform policy; action CHOSEN throughout.
    """
    sizes = ModelConfig(deter=H - 1, stoch=1, classes=2, units=H + 1, layers=0, bins=BINS)
    actor_critic = Behavior(sizes, DISCRETE, key=jr.key(0))
    actor_critic = eqx.tree_at(lambda b: b.actor.head.out.weight, actor_critic, jnp.zeros((H + 1, 3)))
    feat = jnp.eye(H + 1)[:, None]
    action = jnp.zeros((H + 1, 1, 3)).at[..., CHOSEN].set(1.0)
    reward = jnp.zeros((H + 1, 1)).at[arrival].set(1.0)
    imagined = Imagined(feat, action, reward, jnp.ones((H + 1, 1)))
    replayed = Replayed(feat[:1], jnp.zeros((1, 1)), jnp.zeros((1, 1), bool), jnp.zeros((1, 1), bool))
    objective = Objective("paid", 0.0, "returns", 1.0, False)
    hypers = Hypers(lam=lam, policy_unimix=0.0)

    def loss(behavior):
        target = BehaviorTarget.of(behavior)
        losses, _, _ = given_loss(behavior, target, imagined, replayed, objective, hypers)
        return H * losses["policy"]

    return jax.grad(loss)(actor_critic).actor.head.out.weight


def test_a_reward_pays_the_action_before_its_arrival_and_no_other():
    expected = np.zeros((H + 1, 3))
    expected[STEP] = 1 / 3
    expected[STEP, CHOSEN] = -2 / 3  # descent raises it, and lowers the others
    np.testing.assert_allclose(policy_gradient(STEP + 1, lam=0.0), expected, atol=1e-6)


def test_with_lambda_earlier_actions_share_in_it_and_later_ones_do_not():
    grads = policy_gradient(STEP + 1, lam=0.5)
    np.testing.assert_allclose(grads[:, CHOSEN], [-2 / 3 * 0.5, -2 / 3, 0, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(grads[STEP + 1 :], 0)


def test_the_reward_that_came_with_the_start_pays_nobody():
    np.testing.assert_array_equal(policy_gradient(0, lam=0.95), 0)


def test_the_last_step_pays_the_action_before_the_last():
    grads = policy_gradient(H, lam=0.0)
    np.testing.assert_allclose(grads[:, CHOSEN], [0, 0, 0, -2 / 3, 0], atol=1e-6)


@pytest.mark.parametrize("lam", [0.0, 0.95])
def test_an_end_shuts_off_what_comes_after(lam):
    behavior, target, imagined, replayed, objective, _ = arguments_of("returns")
    ended = imagined._replace(cont=imagined.cont.at[2].set(0.0))
    later = ended._replace(
        reward=ended.reward.at[3:].add(5.0), feat=ended.feat.at[2:].add(1.0), action=ended.action.at[2:].set(0.0)
    )
    sooner = ended._replace(reward=ended.reward.at[2].add(5.0))
    hypers = Hypers(lam=lam, return_rate=0.0)
    loss = jax.jit(lambda imagined: given_loss(behavior, target, imagined, replayed, objective, hypers)[0])
    one, other, before = loss(ended), loss(later), loss(sooner)
    for name in ("policy", "value"):
        np.testing.assert_array_equal(one[name], other[name])
        assert one[name] != before[name]


# ---- gradients -----------------------------------------------------------------------------------------------------


@functools.cache
def gradients(loss, stopped=False):
    """Gradients of one summed loss with respect to (behaviour, target, imagined, replayed)."""
    *arguments, objective, hypers = arguments_of("advantages, a shorter horizon")
    flags = lambda x: not jnp.issubdtype(x.dtype, jnp.floating)
    fixed, free = eqx.partition(tuple(arguments), jax.tree.map(flags, tuple(arguments)))

    def total(free, fixed):
        behavior, target, imagined, replayed = eqx.combine(free, fixed)
        if stopped:
            replayed = dataclasses.replace(replayed, feat=jax.lax.stop_gradient(replayed.feat))
        return given_loss(behavior, target, imagined, replayed, objective, hypers, count=2)[0][loss].sum()

    return arrays(jax.jit(jax.grad(total))(free, fixed))


def reached(tree) -> bool:
    return any((x != 0).any() for x in jax.tree.leaves(tree))


@every_loss
def test_no_gradient_reaches_rewards_continues_or_actions(loss):
    _, _, imagined, replayed = gradients(loss)
    assert not reached((imagined.reward, imagined.cont, imagined.action, replayed.reward))


@every_loss
def test_no_gradient_reaches_imagined_features(loss):
    assert not reached(gradients(loss)[2].feat)


@every_loss
def test_no_gradient_reaches_the_slow_critic_or_the_scale(loss):
    assert not reached(gradients(loss)[1])


def test_the_policy_loss_moves_the_actor_alone():
    behavior = gradients("policy")[0]
    assert reached(behavior.actor) and not reached(behavior.critic)


@pytest.mark.parametrize("loss", ["value", "repval"])
def test_the_value_losses_move_every_weight_of_the_critic_and_not_the_actor(loss):
    behavior = gradients(loss)[0]
    assert not reached(behavior.actor)
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(behavior.critic))


def test_the_replayed_value_loss_reaches_its_features_where_something_follows():
    feat = gradients("repval")[3].feat
    reaches = (feat != 0).any(-1)
    # The last row has no successor; nor has an episode's last one.
    np.testing.assert_array_equal(reaches, [[True, True], [False, True], [True, False], [False, False]])


def test_the_replayed_value_loss_reaches_nothing_where_it_was_stopped():
    assert not reached(gradients("repval", stopped=True)[3].feat)
    assert reached(gradients("repval", stopped=True)[0].critic)


@pytest.mark.parametrize("loss", ["policy", "value"])
def test_the_imagined_losses_do_not_read_replayed_features(loss):
    assert not reached(gradients(loss)[3].feat)


# ---- what follows --------------------------------------------------------------------------------------------------


def test_a_target_starts_equal_to_the_critic_and_at_no_scale():
    behavior, _ = make(DISCRETE)
    target = BehaviorTarget.of(behavior)
    chex.assert_trees_all_equal(target.slow, behavior.critic)
    chex.assert_trees_all_equal(target.scale, ReturnScale(*jnp.zeros(3)))


def test_update_target_moves_the_slow_critic_by_the_rate_and_takes_the_scale():
    behavior, target = make(DISCRETE)
    scale = ReturnScale(*jnp.arange(3.0))
    updated = update_target(target, behavior, scale, 0.25)
    mix = lambda s, c: 0.75 * np.asarray(s) + 0.25 * np.asarray(c)
    chex.assert_trees_all_close(updated.slow, jax.tree.map(mix, target.slow, behavior.critic), rtol=1e-5)
    chex.assert_trees_all_equal(updated.scale, scale)
    chex.assert_trees_all_equal(update_target(target, behavior, scale, 0.0).slow, target.slow)
    chex.assert_trees_all_equal(update_target(target, behavior, scale, 1.0).slow, behavior.critic)
