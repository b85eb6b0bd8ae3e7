"""loss.py: every loss' borders as one table, the credit of disagreement, what context is, what reward-free means.

Axes: T rows, B windows, H horizon, n = T B starts, A actions.
"""

import dataclasses
import functools
from unittest import mock

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from stages import loss as loss_stage
from stages.agent import Agent, Targets
from stages.behavior import Imagined
from stages.config import EnsembleConfig, Hypers
from stages.ensemble import disagreement
from stages.loss import agent_loss, arrive, loss_scales
from stages.replay import Row
from tests.conftest import arbitrary

T, B, H, A = 4, 2, 3, 3
MODEL = ("recon", "reward", "cont", "dyn", "rep")
BEHAVIOR = ("policy", "value", "repval")
EXPLORE = ("ensemble", *(f"explorer_{name}" for name in BEHAVIOR))
NAMES = {"task": (*MODEL, *BEHAVIOR), "explore": (*MODEL, *BEHAVIOR, *EXPLORE), "mix": (*MODEL, *BEHAVIOR, *EXPLORE)}
HYPERS = Hypers(free_nats=0.0, intrinsic_scale=0.7, extrinsic_scale=0.4, intrinsic_floor=1e-3, return_floor=2.0)
arrays = functools.partial(jax.tree.map, np.asarray)


@dataclasses.dataclass
class Lost:
    """What one call of agent_loss gave, and what it gave to behavior_loss on the way."""

    total: np.ndarray
    grads: Agent
    outcome: loss_stage.Outcome
    imagined: list  # of tasker, and explorer; its blocks joined
    replayed: list
    weights: list
    noise: list  # in blocks


class Case:
    """agent_loss in one mode: the agent, made-up rows, and a compiled gradient with a weight for each loss."""

    def __init__(self, config, env, mode, block=0):
        sizes = dataclasses.replace(config.model, layers=1)
        ensemble = EnsembleConfig(members=3, layers=1)
        self.mode, self.sizes = mode, sizes
        self.config = dataclasses.replace(config, mode=mode, horizon=H, model=sizes, ensemble=ensemble, block=block)
        agent = arbitrary(lambda: Agent(self.config, env.obs_space, env.action_space, key=jr.key(0)))
        # The outermost bins are hundreds of millions away: believe in small rewards.
        peak = -4.0 * jnp.abs(jnp.arange(sizes.bins) - sizes.bins // 2)
        self.agent = eqx.tree_at(lambda a: a.model.reward.head.out.bias, agent, replace_fn=lambda bias: bias + peak)
        self.targets = Targets.of(self.agent)
        self.rows = made_up(sizes, env)
        self._run = jax.jit(jax.value_and_grad(self._loss, has_aux=True))

    def _loss(self, agent, rows, weights, targets):
        given = []

        def spy(behavior, target, dream, known, starts, replayed, weights, hypers):
            dreams = [dream(known, start) for start in apart(starts)]
            given.append((joined(dreams), replayed, weights, starts[1]))
            return behavior_loss(behavior, target, dream, known, starts, replayed, weights, hypers)

        behavior_loss = loss_stage.behavior_loss
        with (
            mock.patch.object(loss_stage, "behavior_loss", spy),
            mock.patch.object(loss_stage, "loss_scales", lambda *_: weights),
        ):
            total, outcome = agent_loss(agent, targets, rows, self.config, HYPERS, key=jr.key(9))
        return total, (outcome, given)

    def __call__(self, rows=None, **weights) -> Lost:
        """Losses that `weights` does not name count 0; without any, each counts 1."""
        every = {name: float(weights.get(name, not weights)) for name in NAMES[self.mode]}
        value, grads = self._run(self.agent, self.rows if rows is None else rows, every, self.targets)
        total, (outcome, given) = value
        return Lost(*arrays((total, grads, outcome)), *map(list, zip(*arrays(given), strict=True)))

    @functools.cached_property
    def lost(self) -> Lost:
        """With each loss' weight at 1."""
        return self()


def apart(tree):
    """Blocks one by one."""
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(len(jax.tree.leaves(tree)[0]))]


def joined(dreams) -> Imagined:
    """One dream of all blocks' starts."""
    axes = Imagined(feat=1, action=1, reward=2, cont=1)  # where the starts are
    return jax.tree.map(lambda axis, *x: jnp.concatenate(x, axis), axes, *dreams)


def made_up(sizes, env) -> Row:
    """Rows [T+1, B] with a terminal end before row 3 of window 0."""
    keys, lead = jr.split(jr.key(1), 5), (T + 1, B)
    never = jnp.zeros(lead, bool)
    return Row(
        jr.bernoulli(keys[0], 0.3, (*lead, *env.obs_space.shape)),
        jr.randint(keys[1], lead, 0, A),
        2 * jr.normal(keys[2], lead),
        never.at[3, 0].set(True),
        never.at[2, 0].set(True),
        never.at[2, 0].set(True),
        jr.normal(keys[3], (*lead, sizes.deter)),
        jr.randint(keys[4], (*lead, sizes.stoch), 0, sizes.classes).astype(jnp.uint8),
    )


@pytest.fixture(scope="module")
def case(config, env):
    """Case by mode, compiled once each."""
    return functools.cache(lambda mode, block=0: Case(config, env, mode, block))


every_mode = pytest.mark.parametrize("mode", NAMES)
exploring = pytest.mark.parametrize("mode", ["explore", "mix"])


# ---- names and sums ------------------------------------------------------------------------------------------------


@every_mode
def test_losses_are_those_that_have_a_scale(config, env, mode):
    config = dataclasses.replace(config, mode=mode)

    def run():
        agent = Agent(config, env.obs_space, env.action_space, key=jr.key(0))
        return agent_loss(agent, Targets.of(agent), made_up(config.model, env), config, HYPERS, key=jr.key(1))

    total, outcome = jax.eval_shape(run)
    assert total.shape == ()
    assert {name for name in outcome.metrics if name.startswith("loss/")} == {f"loss/{name}" for name in NAMES[mode]}
    assert loss_scales(HYPERS, mode != "task").keys() == set(NAMES[mode])


def test_scales_are_the_hypers_by_name():
    hypers = Hypers(*map(float, range(len(dataclasses.fields(Hypers)))))
    scales = loss_scales(hypers, True)
    for name in (*MODEL, *BEHAVIOR, "ensemble"):
        assert scales[name] == getattr(hypers, f"scale_{name}")
    for name in BEHAVIOR:
        assert scales[f"explorer_{name}"] == scales[name]
    defaults = loss_scales(Hypers(), False)
    assert defaults == {n: {"rep": 0.1, "repval": 0.3}.get(n, 1.0) for n in NAMES["task"]}


@every_mode
def test_the_loss_is_the_weighted_sum_of_means(case, mode):
    weights = {name: 0.5 + i for i, name in enumerate(NAMES[mode])}
    lost = case(mode)(**weights)
    expected = sum(weight * lost.outcome.metrics[f"loss/{name}"] for name, weight in weights.items())
    np.testing.assert_allclose(lost.total, expected, rtol=1e-4)
    chex.assert_tree_all_finite((lost.grads, lost.outcome))


# ---- borders -------------------------------------------------------------------------------------------------------

PARTS = {
    "encoder": lambda a: a.model.encoder,
    "rssm": lambda a: a.model.rssm,
    "decoder": lambda a: a.model.decoder,
    "reward": lambda a: a.model.reward,
    "cont": lambda a: a.model.cont,
    "actor": lambda a: a.tasker.actor,
    "critics": lambda a: a.tasker.critics,
    "explorer_actor": lambda a: a.explorer and a.explorer.actor,
    "explorer_critics": lambda a: a.explorer and a.explorer.critics,
    "ensemble": lambda a: a.ensemble,
}
STATE = {"encoder", "rssm"}
REACHES = {
    "recon": STATE | {"decoder"},
    "reward": STATE | {"reward"},
    "cont": STATE | {"cont"},
    "dyn": STATE,
    "rep": STATE,
    "policy": {"actor"},
    "value": {"critics"},
    "repval": STATE | {"critics"},
    "ensemble": {"ensemble"},
    "explorer_policy": {"explorer_actor"},
    "explorer_value": {"explorer_critics"},
    "explorer_repval": {"explorer_critics"},
}
REWARD_FREE = {"reward": {"reward"}, "cont": {"cont"}, "repval": {"critics"}}


@pytest.mark.parametrize(("mode", "name"), [(mode, name) for mode in NAMES for name in NAMES[mode]])
def test_each_loss_moves_its_own_parts_and_no_other(case, mode, name):
    grads = case(mode)(**{name: 1.0}).grads
    reached = {part for part, of in PARTS.items() if any((x != 0).any() for x in jax.tree.leaves(of(grads)))}
    assert reached == (REACHES | (REWARD_FREE if mode == "explore" else {}))[name]


@every_mode
def test_every_weight_learns_from_some_loss(case, mode):
    paths = jax.tree_util.tree_leaves_with_path(case(mode).lost.grads)
    assert [jax.tree_util.keystr(path) for path, leaf in paths if not (leaf != 0).any()] == []


@exploring
def test_every_member_and_every_critic_learns(case, mode):
    grads = case(mode).lost.grads
    rewards = {"explore": 1, "mix": 2}[mode]
    for count, part in ((3, grads.ensemble), (rewards, grads.explorer.critics), (1, grads.tasker.critics)):
        for leaf in jax.tree.leaves(part):
            assert (np.abs(leaf).reshape(count, -1).max(-1) > 0).all()


# ---- rewards -------------------------------------------------------------------------------------------------------


def test_arrive_by_hand():
    reward = jnp.array([[1.0, 10.0], [2.0, 20.0]])
    np.testing.assert_array_equal(arrive(reward), [[0, 0], [1, 10], [2, 20]])


def disagree(case, feat, action):
    return np.asarray(disagreement(case.agent.ensemble, jnp.asarray(feat), jnp.asarray(action), "std"))


@exploring
def test_imagined_disagreement_pays_the_action_it_was_about(case, mode):
    dream = case(mode).lost.imagined[1]
    chex.assert_shape(dream.reward, ({"explore": 1, "mix": 2}[mode], H + 1, T * B))
    np.testing.assert_array_equal(dream.reward[0, 0], 0)
    for t in range(H):
        expected = disagree(case(mode), dream.feat[t], dream.action[t])
        assert (expected > 0).all()
        np.testing.assert_allclose(dream.reward[0, t + 1], expected, rtol=1e-4)


@exploring
def test_replayed_disagreement_pays_the_action_it_was_about_and_no_reset(case, mode):
    lost, rows = case(mode).lost, case(mode).rows
    rewards = lost.replayed[1].reward[0]
    np.testing.assert_array_equal(rewards == 0, [[True, True], [False, False], [True, False], [False, False]])
    action = np.eye(A, dtype=np.float32)[np.asarray(rows.action[1:])]
    expected = disagree(case(mode), lost.replayed[1].feat, action)
    for t in range(T - 1):
        for b in range(B):
            if not rows.is_first[1:][t + 1, b]:
                np.testing.assert_allclose(rewards[t + 1, b], expected[t, b], rtol=1e-4)
    np.testing.assert_allclose(lost.outcome.metrics["explorer_disagreement"], rewards.mean(), rtol=1e-4)


@every_mode
def test_the_tasker_is_paid_what_the_reward_head_expects_on_arrival(case, mode):
    dream, head = case(mode).lost.imagined[0], case(mode).agent.model.reward
    np.testing.assert_allclose(dream.reward, head.mean(head(dream.feat))[None], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(case(mode).lost.replayed[0].reward, case(mode).rows.reward[None, 1:])


def test_mix_pays_the_explorer_with_both(case):
    lost, head = case("mix").lost, case("mix").agent.model.reward
    dream = lost.imagined[1]
    np.testing.assert_allclose(dream.reward[1], head.mean(head(dream.feat)), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(lost.replayed[1].reward[1], case("mix").rows.reward[1:])


@every_mode
def test_dreams_go_on_as_the_continue_head_says(case, mode):
    for dream in case(mode).lost.imagined:
        logit = np.asarray(case(mode).agent.model.cont(dream.feat), np.float64)
        np.testing.assert_allclose(dream.cont, 1 / (1 + np.exp(-logit)), rtol=1e-4)


def test_weights_of_each_behaviour(case):
    task = lambda mode: case(mode).lost.weights[0]
    for mode in NAMES:
        chex.assert_trees_all_close(tuple(task(mode)), ((1.0,), (2.0,), (False,), HYPERS.entropy))
    explore, mix = case("explore").lost.weights[1], case("mix").lost.weights[1]
    chex.assert_trees_all_close(tuple(explore), ((0.7,), (1e-3,), (True,), HYPERS.explorer_entropy))
    chex.assert_trees_all_close(tuple(mix), ((0.7, 0.4), (1e-3, 2.0), (True, False), HYPERS.explorer_entropy))


# ---- reward-free ---------------------------------------------------------------------------------------------------


def other_reward(case):
    return dataclasses.replace(case.rows, reward=3 * jr.normal(jr.key(7), case.rows.reward.shape))


def same(a, b) -> bool:
    """Equal to the bit."""
    return all((x == y).all() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_in_explore_no_reward_changes_model_explorer_or_ensemble(case):
    grads, other = case("explore").lost.grads, case("explore")(other_reward(case("explore"))).grads
    for name in ("encoder", "rssm", "decoder", "cont"):
        chex.assert_trees_all_equal(getattr(other.model, name), getattr(grads.model, name))
    chex.assert_trees_all_equal((other.explorer, other.ensemble), (grads.explorer, grads.ensemble))
    assert not same(other.model.reward, grads.model.reward)
    assert not same(other.tasker.critics, grads.tasker.critics)


@pytest.mark.parametrize("mode", ["task", "mix"])
def test_elsewhere_rewards_do_change_the_model(case, mode):
    grads, other = case(mode).lost.grads, case(mode)(other_reward(case(mode))).grads
    assert not same(other.model.encoder, grads.model.encoder)
    assert not same(other.model.rssm, grads.model.rssm)
    if mode == "mix":
        assert not same(other.explorer.critics, grads.explorer.critics)
        assert same(other.ensemble, grads.ensemble)


# ---- context and starts --------------------------------------------------------------------------------------------


def changed(rows, name, at, value):
    leaf = getattr(rows, name)
    return dataclasses.replace(rows, **{name: leaf.at[at].set(value(leaf[at]))})


@pytest.mark.parametrize(
    ("name", "value"),
    [("deter", lambda x: x + 1), ("stoch", lambda x: (x + 1) % 4), ("action", lambda x: (x + 1) % A)],
)
def test_the_context_rows_latent_and_action_matter(case, name, value):
    other = case("explore")(changed(case("explore").rows, name, 0, value))
    gap = np.abs(other.outcome.latent.deter - case("explore").lost.outcome.latent.deter)[0].max(-1)
    assert (gap > 1e-5).all()


@pytest.mark.parametrize("name", ["obs", "reward", "is_first", "is_last", "is_terminal"])
def test_nothing_else_of_the_context_row_does(case, name):
    value = (lambda x: x + 5) if name == "reward" else (lambda x: ~x)
    other = case("explore")(changed(case("explore").rows, name, 0, value))
    chex.assert_trees_all_equal(other.grads, case("explore").lost.grads)


@pytest.mark.parametrize("name", ["deter", "stoch"])
def test_stored_latents_of_trained_rows_do_not_matter(case, name):
    other = case("explore")(changed(case("explore").rows, name, slice(1, None), lambda x: x * 0))
    chex.assert_trees_all_equal(other.grads, case("explore").lost.grads)


def test_a_first_trained_row_forgets_the_context(case):
    begins = changed(case("explore").rows, "is_first", 1, lambda x: x | True)
    one, other = case("explore")(begins), case("explore")(changed(begins, "deter", 0, lambda x: x + 1))
    chex.assert_trees_all_equal(one.grads, other.grads)


@every_mode
def test_imagination_starts_from_every_replayed_state(case, mode):
    lost, sizes = case(mode).lost, case(mode).sizes
    latent = lost.outcome.latent
    chex.assert_shape(latent.deter, (T, B, sizes.deter))
    for dream in lost.imagined:
        chex.assert_shape(dream.action, (H + 1, T * B, A))
        for t in range(T):
            for b in range(B):
                feat = np.concatenate([latent.deter[t, b], latent.stoch[t, b].reshape(-1)])
                np.testing.assert_array_equal(dream.feat[0, t * B + b], feat)


@exploring
def test_explorer_and_tasker_dream_apart(case, mode):
    tasker, explorer = case(mode).lost.imagined
    np.testing.assert_array_equal(tasker.feat[0], explorer.feat[0])
    assert (tasker.feat[1:] != explorer.feat[1:]).any((0, 2)).all()
    one, other = case(mode).lost.noise
    assert (one.latent != other.latent).all() and (one.action != other.action).all()


@every_mode
def test_new_scales_are_of_the_behaviours_that_exist(case, mode):
    outcome = case(mode).lost.outcome
    chex.assert_shape(outcome.tasker_scale.low, (1,))
    if mode == "task":
        assert outcome.explorer_scale is None
    else:
        chex.assert_shape(outcome.explorer_scale.low, ({"explore": 1, "mix": 2}[mode],))


# ---- blocks --------------------------------------------------------------------------------------------------------


@every_mode
@pytest.mark.parametrize(("block", "blocks"), [(1, T * B), (3, T * B // 2)])
def test_blocks_change_no_number(case, mode, block, blocks):
    one, lost = case(mode).lost, case(mode, block).lost
    assert {len(x.latent) for x in one.noise} == {1} and {len(x.latent) for x in lost.noise} == {blocks}
    np.testing.assert_allclose(lost.total, one.total, rtol=1e-5)
    chex.assert_trees_all_close(lost.grads, one.grads, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(lost.outcome, one.outcome, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(lost.imagined, one.imagined, rtol=1e-4, atol=1e-5)
