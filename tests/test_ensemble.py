"""ensemble.py: members that are not one another, their targets, what is masked, where gradients stop, and the members'
own updates, against plain numpy. What they read and are asked is in tests/test_obs_numbers.py.

Axes: M members, T rows, B windows, n pairs, F feat, A actions, Y target dimensions.
"""

import dataclasses

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from stages.agent import Agent, Targets
from stages.config import Config, EnsembleConfig, Hypers
from stages.encode import preprocess_obs
from stages.ensemble import (
    Ensemble,
    disagreement,
    ensemble_inputs,
    ensemble_loss,
    ensemble_target,
    init_opt_state,
    predict,
    update_ensemble,
)
from stages.loss import agent_loss
from stages.replay import Row
from tests.by_hand import slow_head
from tests.conftest import AS_IN_A_RUN, arbitrary, observations, pick, to_device
from tests.ensembles import (
    HYPERS,
    MODEL,
    SIZES,
    SPACES,
    VECTOR,
    A,
    B,
    F,
    M,
    T,
    Y,
    leveled,
    made,
    made_up,
    made_up_rows,
    model_of,
    observed,
)
from tests.programs import in_one_program


def read(feat, action):
    """What a member reads of features and actions, unless told otherwise."""
    return jnp.concatenate([feat, HYPERS.action_scale * action], -1)


def disagree(ensemble, feat, action):
    return disagreement(ensemble, MODEL, feat, action, HYPERS)


@pytest.fixture(scope="module")
def ensemble():
    return made()


@pytest.fixture(scope="module")
def rows():
    return made_up_rows()


def loss_on(ensemble, feat, action, target, is_first):
    """ensemble_loss of features and targets."""
    lead = is_first.shape
    stored = jnp.zeros((*lead, 1)), jnp.zeros((*lead, 1), jnp.uint8)
    rows = Row(*[jnp.zeros((*lead, *VECTOR.shape))] * 3, is_first, *[is_first] * 2, *stored)
    return ensemble_loss(ensemble, MODEL, observed(feat, target), rows, action, HYPERS)


@pytest.fixture(scope="module")
def loss_of(ensemble):
    """ensemble_loss, compiled, as an array."""
    loss = jax.jit(lambda *rows: loss_on(ensemble, *rows))
    return lambda rows: np.asarray(loss(rows.feat, rows.action, rows.target, rows.is_first))


def stacked(ensemble, members, which=0):
    """One member, `members` times over."""
    return jax.tree.map(lambda x: np.stack([np.asarray(x)[which]] * members), ensemble)


def reached(tree) -> bool:
    return any((np.asarray(x) != 0).any() for x in jax.tree.leaves(tree))


# ---- members -------------------------------------------------------------------------------------------------------


def test_every_member_begins_elsewhere(ensemble):
    for leaf in (ensemble.members.module.mlp.layers[0].linear.weight, ensemble.members.module.out.weight):
        assert leaf.shape[0] == M
        for one in range(M):
            for other in range(one):
                assert (leaf[one] != leaf[other]).all()


def test_members_predict_by_themselves(ensemble, rows):
    predictions = jax.jit(lambda e: predict(e, read(rows.feat, rows.action), HYPERS))
    together = predictions(ensemble)
    chex.assert_shape(together, (M, T, B, Y))
    for m in range(M):
        np.testing.assert_allclose(together[m], predictions(stacked(ensemble, 1, m))[0], rtol=1e-5, atol=1e-6)


def test_different_members_disagree_everywhere(ensemble, rows):
    assert (disagree(ensemble, rows.feat, rows.action) > 0.01).all()


@pytest.fixture(scope="module")
def agreeing():
    """Disagreement of identical members, by spread and number of members: hurried, and optimised as in a run."""
    rng = np.random.default_rng(2)
    feat = (10 * rng.normal(size=(2000, F))).astype(np.float32)
    action = np.eye(A, dtype=np.float32)[rng.integers(0, A, 2000)]
    ensembles = {spread: made_up(spread=spread) for spread in ("std", "var")}
    same = {(spread, m): stacked(ensemble, m) for spread, ensemble in ensembles.items() for m in (2, 3, 5, 7, 8)}
    calls = {case: (disagree, ensemble, feat, action) for case, ensemble in same.items()}
    return [in_one_program(calls, options) for options in (None, AS_IN_A_RUN)]


@pytest.mark.parametrize("spread", ["std", "var"])
@pytest.mark.parametrize("members", [2, 3, 5, 7, 8])
def test_identical_members_agree_exactly(agreeing, members, spread):
    for results in agreeing:  # however much the compiler reorders
        np.testing.assert_array_equal(results[spread, members], 0)


@pytest.mark.parametrize("spread", ["std", "var"])
def test_disagreement_is_the_spread_over_members_averaged_over_dimensions(rows, spread):
    ensemble, inputs = made_up(spread=spread), read(rows.feat, rows.action)
    both = jax.jit(lambda e: (predict(e, inputs, HYPERS), disagree(e, rows.feat, rows.action)))
    predictions, disagreements = both(ensemble)
    expected = getattr(np, spread)(np.asarray(predictions, np.float64), axis=0).mean(-1)
    np.testing.assert_allclose(disagreements, expected, rtol=1e-4)


def test_disagreement_depends_on_the_action(ensemble, rows):
    other = disagree(ensemble, rows.feat, jnp.roll(rows.action, 1, -1))
    assert (np.abs(other - disagree(ensemble, rows.feat, rows.action)) > 1e-5).all()


# ---- loss and mask -------------------------------------------------------------------------------------------------


def test_loss_is_half_the_squared_error_of_the_next_target_averaged_over_members(ensemble, rows, loss_of):
    predictions = np.asarray(predict(ensemble, read(rows.feat, rows.action), HYPERS), np.float64)
    expected = np.zeros((T, B))
    for t in range(T - 1):
        for b in range(B):
            if not rows.is_first[t + 1, b]:
                errors = [0.5 * ((predictions[m, t, b] - rows.target[t + 1, b]) ** 2).sum() for m in range(M)]
                expected[t, b] = np.mean(errors)
    np.testing.assert_allclose(loss_of(rows), expected, rtol=1e-4)


def test_zeros_of_the_loss_by_hand(loss_of, rows):
    # The pair 1 -> 2 of window 0 crosses a border, and row 4 has no successor.
    expected = [[1, 1], [0, 1], [1, 1], [1, 1], [0, 0]]
    np.testing.assert_array_equal(loss_of(rows) != 0, np.array(expected, bool))


def changed(loss_of, rows, **other):
    """Which losses differ after a change to some rows."""
    return loss_of(dataclasses.replace(rows, **other)) != loss_of(rows)


def only(*where):
    """Table [T, B] that is true there."""
    table = np.zeros((T, B), bool)
    for at in where:
        table[at] = True
    return table


@pytest.mark.parametrize("b", range(B))
@pytest.mark.parametrize("t", range(T))
def test_a_target_is_asked_for_one_row_earlier_unless_an_episode_begins_with_it(loss_of, rows, t, b):
    expected = only() if t == 0 or (t, b) == (2, 0) else only((t - 1, b))
    np.testing.assert_array_equal(changed(loss_of, rows, target=rows.target.at[t, b].add(1.0)), expected)


@pytest.mark.parametrize("b", range(B))
@pytest.mark.parametrize("t", range(T))
def test_a_feature_and_action_foretell_the_next_row_unless_an_episode_begins_there(loss_of, rows, t, b):
    expected = only() if t == T - 1 or (t, b) == (1, 0) else only((t, b))
    action = rows.action.at[t, b].set(jnp.roll(rows.action[t, b], 1))
    np.testing.assert_array_equal(changed(loss_of, rows, action=action), expected)
    np.testing.assert_array_equal(changed(loss_of, rows, feat=rows.feat.at[t, b].add(1.0)), expected)


def test_nonsense_across_a_border_does_no_harm(ensemble, rows):
    target = rows.target.at[2, 0].set(jnp.inf)
    loss = lambda e: loss_on(e, rows.feat, rows.action, target, rows.is_first).sum()
    chex.assert_tree_all_finite(jax.jit(loss)(ensemble))


# ---- gradients -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gradients(ensemble, rows):
    """Of the summed loss, with respect to (ensemble, feat, action, target)."""
    loss = lambda *given: loss_on(*given, rows.is_first).sum()
    return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(ensemble, rows.feat, rows.action, rows.target)


def test_every_leaf_of_every_member_has_a_gradient(gradients):
    for leaf in jax.tree.leaves(gradients[0]):
        assert (np.abs(leaf).reshape(M, -1).max(-1) > 0).all()


def test_each_members_gradient_is_its_own(ensemble, rows, gradients):
    loss = lambda e: loss_on(e, rows.feat, rows.action, rows.target, rows.is_first).sum()
    grad = jax.jit(jax.grad(loss))
    for m in range(M):
        alone = grad(stacked(ensemble, 1, m))
        expected = jax.tree.map(lambda x: x[0] / M, alone)
        mine = pick(gradients[0], m)
        chex.assert_trees_all_close(mine, expected, rtol=1e-4, atol=1e-6)


def test_no_gradient_reaches_inputs_or_target(gradients):
    chex.assert_trees_all_equal(gradients[1:], jax.tree.map(jnp.zeros_like, gradients[1:]))


def test_disagreement_sends_no_gradient(ensemble, rows):
    total = lambda *given: disagree(*given).sum()
    grads = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(ensemble, rows.feat, rows.action)
    assert not reached(grads)


# ---- in the agent --------------------------------------------------------------------------------------------------


def agent_and_batch(config, env):
    """An agent, its targets and made-up rows [T+1, B]."""
    agent = arbitrary(lambda: Agent(config, env.obs_space, env.action_space, key=jr.key(0)))
    keys, sizes, lead = jr.split(jr.key(4), 5), config.model, (4, 2)
    flags = [jnp.zeros(lead, bool)] * 3
    batch = Row(
        jr.bernoulli(keys[0], 0.3, (*lead, *env.obs_space.shape)),
        jr.randint(keys[1], lead, 0, env.action_space.size),
        jr.normal(keys[2], lead),
        *flags,
        jr.normal(keys[3], (*lead, sizes.deter)),
        jr.randint(keys[4], (*lead, sizes.stoch), 0, sizes.classes).astype(jnp.uint8),
    )
    return agent, Targets.of(agent), batch


@pytest.mark.parametrize(("target", "size"), [("probs", 20), ("projected", 32)])
def test_every_target_has_its_size(config, env, target, size):
    sizes = dataclasses.replace(config.model, stoch=5, classes=4, units=8, deter=16)
    config = dataclasses.replace(
        config, mode="explore", horizon=1, model=sizes, ensemble=EnsembleConfig(members=2, layers=1, target=target)
    )

    def run():
        agent, targets, batch = agent_and_batch(config, env)
        return agent.intrinsic.ensemble, agent_loss(agent, targets, batch, config, Hypers(), key=jr.key(5))[0]

    ensemble, loss = jax.eval_shape(run)  # the error's subtraction fails on two different sizes
    assert ensemble.members.module.out.weight.shape == (2, 8, size)
    assert loss.shape == ()


def test_the_published_target_is_the_posteriors_probabilities(ensemble, rows):
    post = observed(rows.feat, rows.target).post
    given = ensemble_target(ensemble, MODEL, post, jnp.zeros((T, B, *VECTOR.shape)))
    chex.assert_trees_all_equal(given, rows.target)


# ---- what members read and are asked -------------------------------------------------------------------------------


def test_members_read_features_and_the_action(ensemble, rows):
    inputs = ensemble_inputs(ensemble, MODEL, rows.feat, rows.action, HYPERS)
    np.testing.assert_allclose(inputs, np.concatenate([rows.feat, 3.0 * rows.action], -1), rtol=1e-6)


def test_members_read_in_the_compute_type(ensemble, rows):
    scaled = eqx.tree_at(lambda h: h.action_scale, HYPERS, jnp.float32(3.0))
    feat, action = rows.feat.astype(jnp.bfloat16), rows.action.astype(jnp.bfloat16)
    for which in (ensemble, made_up(input="decoded"), made_up(input="projected")):
        inputs = jax.eval_shape(lambda e: ensemble_inputs(e, MODEL, feat, action, scaled), which)
        assert inputs.dtype == jnp.bfloat16


# ---- priors --------------------------------------------------------------------------------------------------------


def forward(head, x, m):
    """One member's head in plain numpy."""
    return slow_head(jax.tree.map(lambda w: w[m], head), x)


def test_a_prediction_is_what_was_learned_plus_a_frozen_random_network(rows):
    ensemble, inputs = made_up(layers=2, prior_layers=1), read(rows.feat, rows.action)
    assert len(ensemble.members.module.mlp.layers) == 2 and len(ensemble.prior.module.mlp.layers) == 1
    predictions = jax.jit(lambda e: predict(e, inputs, HYPERS))(ensemble)
    for m in range(M):
        by_hand = forward(ensemble.members.module, inputs, m) + 0.6 * forward(ensemble.prior.module, inputs, m)
        np.testing.assert_allclose(predictions[m], by_hand, rtol=1e-4, atol=1e-5)


def test_priors_differ_and_get_no_gradient(rows):
    ensemble = made(prior_layers=1)
    weight = ensemble.prior.module.out.weight
    assert (weight[0] != weight[1]).all()
    loss = lambda e: loss_on(e, rows.feat, rows.action, rows.target, rows.is_first).sum()
    grads = jax.jit(jax.grad(loss))(ensemble)
    assert not reached(grads.prior) and all(reached(leaf) for leaf in jax.tree.leaves(grads.members))


# ---- updates of its own --------------------------------------------------------------------------------------------

n = 12


@pytest.fixture(scope="module")
def pairs():
    """Pairs of rows [2, n]; the second row of pairs 3 and 4 begins an episode."""
    rng = np.random.default_rng(7)
    flags = np.zeros((2, n), bool)
    return Row(
        observations(SPACES["binary"], (2, n)),
        to_device(rng.integers(0, A, (2, n)), jnp.int32),
        jnp.zeros((2, n)),
        to_device(flags).at[1, 3:5].set(True),
        *[to_device(flags)] * 2,
        to_device(rng.normal(size=(2, n, SIZES.deter)), jnp.float32),
        to_device(rng.integers(0, 2, (2, n, SIZES.stoch)), jnp.uint8),
    )


def slow_target(ensemble, pairs):
    """What is predicted of the second rows, in plain numpy."""
    grid = np.asarray(pairs.obs[1], np.float64).reshape(n, -1)
    return leveled("binary", grid) @ np.asarray(ensemble.numbers.projection) / np.sqrt(12)


@pytest.mark.parametrize("source", ["feat", "decoded", "projected"])
def test_own_updates_are_adam_on_the_squared_error(pairs, source):
    space = SPACES["binary"]
    model, ensemble = model_of(space), made_up(space, input=source, target="projected", prior_layers=1)
    feat = np.concatenate([pairs.deter[0], np.eye(2)[np.asarray(pairs.stoch[0])].reshape(n, -1)], -1)
    actions = to_device(np.eye(A)[np.asarray(pairs.action[0])], np.float32)

    inputs_of = jax.jit(lambda ensemble, model, feat: ensemble_inputs(ensemble, model, feat, actions, HYPERS))
    inputs, goal = inputs_of(ensemble, model, feat.astype(np.float32)), slow_target(ensemble, pairs)
    counts = np.array([i not in (3, 4) for i in range(n)])
    step = jax.jit(update_ensemble)
    learned, moments, first = step(ensemble, init_opt_state(ensemble, HYPERS), model, pairs, HYPERS)

    predicted = np.stack(
        [
            forward(ensemble.members.module, inputs, m) + 0.6 * forward(ensemble.prior.module, inputs, m)
            for m in range(M)
        ]
    )
    by_hand = (counts * 0.5 * ((predicted - goal) ** 2).sum(-1)).mean()
    np.testing.assert_allclose(first, by_hand, rtol=1e-4)

    def three_steps(member):
        """Of one member by itself, with a loss and an optimiser written down once more."""
        head, prior = member
        adam = optax.adam(HYPERS.ensemble_lr, b1=0.9, b2=0.99)

        def loss(head):
            error = jnp.square(head(inputs) + 0.6 * prior(inputs) - goal).sum(-1)
            return jnp.mean(counts * error) / 2

        def one(carry, _):
            head, state = carry
            updates, state = adam.update(jax.grad(loss)(head), state)
            return (eqx.apply_updates(head, updates), state), None

        return jax.lax.scan(one, (head, adam.init(head)), length=3)[0][0]

    heads = jax.jit(lambda *members: jax.lax.map(three_steps, members))(ensemble.members.module, ensemble.prior.module)
    for _ in range(2):
        learned, moments, last = step(learned, moments, model, pairs, HYPERS)
    assert last < first
    chex.assert_trees_all_close(learned.members.module, heads, rtol=1e-3, atol=1e-5)
    chex.assert_trees_all_equal(
        (learned.prior, learned.numbers.projection), (ensemble.prior, ensemble.numbers.projection)
    )


def test_a_pair_across_an_episodes_end_teaches_nothing(pairs):
    space = SPACES["binary"]
    model, ensemble = model_of(space), made_up(space, target="projected")
    moments = init_opt_state(ensemble, HYPERS)
    run = jax.jit(lambda pairs: update_ensemble(ensemble, moments, model, pairs, HYPERS))
    at = lambda x, i: x.at[1, i].set(~x[1, i])
    learned = run(pairs)[0]
    chex.assert_trees_all_equal(run(dataclasses.replace(pairs, obs=at(pairs.obs, 3)))[0], learned)
    assert reached(jax.tree.map(jnp.subtract, run(dataclasses.replace(pairs, obs=at(pairs.obs, 5)))[0], learned))


def test_own_updates_follow_real_observations(pairs):
    ensemble = made_up(input="decoded", target="projected", updates=1)
    real = dataclasses.replace(pairs, obs=observations(VECTOR, (2, n)))
    run = jax.jit(update_ensemble)
    learned, _, loss = run(ensemble, init_opt_state(ensemble, HYPERS), MODEL, real, HYPERS)
    assert np.isfinite(loss)
    expected = ensemble.numbers.normalizer.updated(preprocess_obs(VECTOR, real.obs[1]))
    chex.assert_trees_all_close(learned.numbers.normalizer, expected, rtol=1e-5)
    target = ensemble_target(learned, MODEL, None, real.obs[1])
    by_hand = (
        np.asarray(expected(preprocess_obs(VECTOR, real.obs[1]))) @ np.asarray(ensemble.numbers.projection) / np.sqrt(7)
    )
    np.testing.assert_allclose(target, by_hand, rtol=1e-4, atol=1e-5)
    # What was found of an ensemble's grids is not there.
    assert made_up(SPACES["binary"], updates=1).numbers.normalizer is None and made_up().numbers.normalizer is None


# ---- learning ------------------------------------------------------------------------------------------------------


def test_disagreement_falls_where_there_was_data():
    wide = Config(mode="explore", model=SIZES, ensemble=EnsembleConfig(members=5, layers=2, units=32))

    def inputs(key, low, high):
        key_feat, key_action = jr.split(key)
        feat = jnp.pad(jr.uniform(key_feat, (256, 2), minval=low, maxval=high), ((0, 0), (0, F - 2)))
        return feat, jax.nn.one_hot(jr.randint(key_action, (256,), 0, 2), 2)

    known, unknown = inputs(jr.key(1), 0.0, 1.0), inputs(jr.key(2), -2.0, -1.0)
    after = lambda feat, action: jnp.concatenate([jnp.sin(3 * feat[:, :2]), feat[:, :2] * action[:, :1]], -1)
    optimizer = optax.adam(3e-3)

    def update(carry, key):
        ensemble, state = carry
        feat, action = inputs(key, 0.0, 1.0)
        pair = lambda x: jnp.stack([x, x])
        target = pair(after(feat, action))
        loss = lambda e: loss_on(e, pair(feat), pair(action), target, jnp.zeros((2, 256), bool)).mean()
        updates, state = optimizer.update(jax.grad(loss)(ensemble), state)
        return (optax.apply_updates(ensemble, updates), state), None

    @jax.jit
    def fit(ensemble):
        (ensemble, _), _ = jax.lax.scan(update, (ensemble, optimizer.init(ensemble)), jr.split(jr.key(3), 400))
        return ensemble

    begun = Ensemble(wide, VECTOR, 2, key=jr.key(0))
    spread = jax.jit(lambda ensemble, data: disagree(ensemble, *data).mean())
    fitted = fit(begun)
    assert spread(fitted, known) < 0.2 * spread(begun, known)
    assert spread(fitted, known) < 0.2 * spread(fitted, unknown)
