"""ensemble.py: members that are not one another, what they are asked, what is masked, and where gradients stop.

Axes: M members, T rows, B windows, F feat, A actions, Y target dimensions.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from stages.agent import Agent, Targets
from stages.config import Config, EnsembleConfig, Hypers, ModelConfig
from stages.ensemble import Ensemble, disagreement, ensemble_loss, predict, target_of
from stages.loss import agent_loss
from stages.networks.distributions import Categorical
from stages.replay import Row
from stages.rssm import Latent
from stages.world_model import Observed
from tests.conftest import AS_IN_A_RUN, arbitrary

M, T, B, A, Y = 3, 5, 2, 3, 4
SIZES = ModelConfig(deter=2, stoch=2, classes=2, units=8)
F = SIZES.feat


def made(members=M, layers=1, units=0, spread="std", model=SIZES):
    """An ensemble of these sizes, which predicts embeddings of Y numbers."""
    sizes = EnsembleConfig(members=members, layers=layers, units=units, target="embed", spread=spread)
    config = Config(mode="explore", model=model, ensemble=sizes)
    return jax.jit(lambda key: Ensemble(config, A, Y, key=key))(jr.key(0))


@pytest.fixture(scope="module")
def ensemble():
    return made()


@dataclasses.dataclass
class Rows:
    """Made-up rows; an episode begins at row 2 of window 0."""

    feat: jax.Array
    action: jax.Array
    target: jax.Array
    is_first: jax.Array


@pytest.fixture(scope="module")
def rows():
    keys = jr.split(jr.key(1), 3)
    action = jax.nn.one_hot(jr.randint(keys[1], (T, B), 0, A), A)
    is_first = jnp.zeros((T, B), bool).at[2, 0].set(True)
    return Rows(jr.normal(keys[0], (T, B, F)), action, jr.normal(keys[2], (T, B, Y)), is_first)


def observed(feat, target):
    """A window with these features and embeddings."""
    deter, stoch = feat[..., :2], feat[..., 2:].reshape(*feat.shape[:-1], 2, 2)
    other = Categorical(jnp.full_like(stoch, 0.5), jnp.log(jnp.full_like(stoch, 0.5)))
    return Observed(Latent(deter, stoch), target, other, other)


def loss_on(ensemble, feat, action, target, is_first):
    """ensemble_loss of features and targets."""
    return ensemble_loss(ensemble, observed(feat, target), action, is_first)


@pytest.fixture(scope="module")
def loss_of(ensemble):
    """ensemble_loss, compiled, as an array."""
    loss = jax.jit(lambda *rows: loss_on(ensemble, *rows))
    return lambda rows: np.asarray(loss(rows.feat, rows.action, rows.target, rows.is_first))


def stacked(ensemble, members, which=0):
    """One member, `members` times over."""
    return jax.tree.map(lambda x: jnp.stack([x[which]] * members), ensemble)


def reached(tree) -> bool:
    return any((np.asarray(x) != 0).any() for x in jax.tree.leaves(tree))


# ---- members -------------------------------------------------------------------------------------------------------


def test_every_member_begins_elsewhere(ensemble):
    for leaf in (ensemble.members.each.mlp.layers[0].linear.weight, ensemble.members.each.out.weight):
        assert leaf.shape[0] == M
        for one in range(M):
            for other in range(one):
                assert (leaf[one] != leaf[other]).all()


def test_members_predict_by_themselves(ensemble, rows):
    predictions = predict(ensemble, rows.feat, rows.action)
    chex.assert_shape(predictions, (M, T, B, Y))
    for m in range(M):
        alone = predict(stacked(ensemble, 1, m), rows.feat, rows.action)[0]
        np.testing.assert_allclose(predictions[m], alone, rtol=1e-5, atol=1e-6)


def test_different_members_disagree_everywhere(ensemble, rows):
    assert (disagreement(ensemble, rows.feat, rows.action) > 0.01).all()


@pytest.mark.parametrize("spread", ["std", "var"])
@pytest.mark.parametrize("members", [2, 3, 5, 7, 8])
def test_identical_members_agree_exactly(members, spread):
    feat = 10 * jr.normal(jr.key(2), (2000, F))
    action = jnp.eye(A)[jr.randint(jr.key(3), (2000,), 0, A)]
    same = stacked(made(spread=spread), members)
    for options in (None, AS_IN_A_RUN):  # however much the compiler reorders
        np.testing.assert_array_equal(jax.jit(disagreement, compiler_options=options)(same, feat, action), 0)


@pytest.mark.parametrize("spread", ["std", "var"])
def test_disagreement_is_the_spread_over_members_averaged_over_dimensions(rows, spread):
    ensemble = made(spread=spread)
    predictions = np.asarray(predict(ensemble, rows.feat, rows.action), np.float64)
    expected = getattr(np, spread)(predictions, axis=0).mean(-1)
    np.testing.assert_allclose(disagreement(ensemble, rows.feat, rows.action), expected, rtol=1e-4)


def test_disagreement_depends_on_the_action(ensemble, rows):
    other = disagreement(ensemble, rows.feat, jnp.roll(rows.action, 1, -1))
    assert (np.abs(other - disagreement(ensemble, rows.feat, rows.action)) > 1e-5).all()


# ---- loss and mask -------------------------------------------------------------------------------------------------


def test_loss_is_half_the_squared_error_of_the_next_target_averaged_over_members(ensemble, rows, loss_of):
    predictions = np.asarray(predict(ensemble, rows.feat, rows.action), np.float64)
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
    for m in range(M):
        alone = jax.jit(jax.grad(loss))(stacked(ensemble, 1, m))
        expected = jax.tree.map(lambda x: x[0] / M, alone)
        mine = jax.tree.map(lambda x: x[m], gradients[0])  # noqa: B023
        chex.assert_trees_all_close(mine, expected, rtol=1e-4, atol=1e-6)


def test_no_gradient_reaches_inputs_or_target(gradients):
    chex.assert_trees_all_equal(gradients[1:], jax.tree.map(jnp.zeros_like, gradients[1:]))


def test_disagreement_sends_no_gradient(ensemble, rows):
    total = lambda *given: disagreement(*given).sum()
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


def test_the_ensembles_loss_moves_nothing_else_of_the_agent(config, env):
    config = dataclasses.replace(config, mode="explore", horizon=1)
    scales = {f.name: 0.0 for f in dataclasses.fields(Hypers) if f.name.startswith("scale_")}
    hypers = Hypers(**scales | {"scale_ensemble": 1.0})

    agent, targets, batch = agent_and_batch(config, env)
    loss = lambda agent: agent_loss(agent, targets, batch, config, hypers, key=jr.key(5))[0]
    grads = jax.jit(jax.grad(loss))(agent)
    assert all(reached(leaf) for leaf in jax.tree.leaves(grads.novelty))
    for part in (grads.model, grads.tasker, grads.explorer):
        assert not reached(part)


@pytest.mark.parametrize(("target", "size"), [("probs", 20), ("stoch", 20), ("embed", 8), ("deter", 16)])
def test_every_target_has_its_size(config, env, target, size):
    sizes = dataclasses.replace(config.model, stoch=5, classes=4, units=8, deter=16)
    config = dataclasses.replace(
        config, mode="explore", horizon=1, model=sizes, ensemble=EnsembleConfig(members=2, layers=1, target=target)
    )

    def run():
        agent, targets, batch = agent_and_batch(config, env)
        return agent.novelty, agent_loss(agent, targets, batch, config, Hypers(), key=jr.key(5))[0]

    ensemble, loss = jax.eval_shape(run)  # the error's subtraction fails on two different sizes
    assert ensemble.members.each.out.weight.shape == (2, 8, size)
    assert loss.shape == ()


def test_every_target_is_what_its_name_says(rows):
    window = observed(rows.feat, rows.target)
    flat = lambda x: x.reshape(T, B, -1)
    expected = {
        "probs": flat(window.post.probs),
        "stoch": flat(window.latent.stoch),
        "embed": rows.target,
        "deter": rows.feat[..., :2],
    }
    for name, target in expected.items():
        named = Ensemble(Config(model=SIZES, ensemble=EnsembleConfig(target=name)), A, Y, key=jr.key(0))
        chex.assert_trees_all_equal(target_of(named, window), target)


# ---- learning ------------------------------------------------------------------------------------------------------


def test_disagreement_falls_where_there_was_data():
    sizes = EnsembleConfig(members=5, layers=2, units=32, target="embed")
    wide = Config(mode="explore", model=SIZES, ensemble=sizes)

    def inputs(key, low, high):
        key_feat, key_action = jr.split(key)
        feat = jnp.pad(jr.uniform(key_feat, (256, 2), minval=low, maxval=high), ((0, 0), (0, F - 2)))
        return feat, jax.nn.one_hot(jr.randint(key_action, (256,), 0, 2), 2)

    known, unknown = inputs(jr.key(1), 0.0, 1.0), inputs(jr.key(2), -2.0, -1.0)
    after = lambda feat, action: jnp.stack([jnp.sin(3 * feat[:, 0]), feat[:, 1] * action[:, 0]], -1)
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

    begun = Ensemble(wide, 2, 2, key=jr.key(0))
    spread = jax.jit(lambda ensemble, data: disagreement(ensemble, *data).mean())
    fitted = fit(begun)
    assert spread(fitted, known) < 0.2 * spread(begun, known)
    assert spread(fitted, known) < 0.2 * spread(fitted, unknown)
