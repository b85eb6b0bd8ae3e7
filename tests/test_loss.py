"""loss.py: every loss' borders as one table, the credit of disagreement, what context is, what reward-free means.

Axes: T rows, B windows, H horizon, n = T B starts, A actions.
"""

import dataclasses
import functools
from typing import NamedTuple
from unittest import mock

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from stages import loss as loss_stage
from stages import rewards
from stages.agent import Agent, Targets, trainable
from stages.config import EnsembleConfig, Hypers
from stages.ensemble import disagreement
from stages.fast.blocks import count as count_blocks
from stages.imagine import draw_noise, imagine
from stages.loss import agent_loss, loss_scales
from stages.replay import Row
from stages.world_model import action_vector
from tests.conftest import arbitrary

T, B, H, A = 4, 2, 3, 3
MODEL = ("recon", "reward", "cont", "dyn", "rep")
BEHAVIOR = ("policy", "value", "repval")
EXPLORE = ("ensemble", *(f"explorer_{name}" for name in BEHAVIOR))
NAMES = {"task": (*MODEL, *BEHAVIOR), "explore": (*MODEL, *BEHAVIOR, *EXPLORE), "mix": (*MODEL, *BEHAVIOR, *EXPLORE)}
HYPERS = Hypers(
    policy_unimix=0.02,
    free_nats=0.0,
    intrinsic_floor=1e-3,
    return_floor=2.0,
)
KEY = jr.key(9)
arrays = functools.partial(jax.tree.map, np.asarray)


@dataclasses.dataclass
class Lost:
    """What one call of agent_loss gave."""

    total: np.ndarray
    grads: Agent
    aux: loss_stage.LossAux


class Experience(NamedTuple):
    """What a behaviour learned from, of all starts."""

    feat: np.ndarray  # [L, n, F]
    action: np.ndarray  # [L, n, A]
    cont: np.ndarray  # [L, n]
    reward: np.ndarray  # [L, n]
    replayed: np.ndarray  # [T, B]


class Case:
    """agent_loss in one mode: the agent, made-up rows, and a compiled gradient with a weight for each loss."""

    def __init__(self, config, env, mode, block=0, **settings):
        sizes = dataclasses.replace(config.model, layers=1)
        ensemble = EnsembleConfig(members=3, layers=1)
        self.mode, self.sizes = mode, sizes
        changed = {"mode": mode, "horizon": H, "model": sizes, "ensemble": ensemble, "imagine_batch": block}
        self.config = dataclasses.replace(config, **changed | settings)
        agent = arbitrary(lambda: Agent(self.config, env.obs_space, env.action_space, key=jr.key(0)))
        # The outermost bins are hundreds of millions away: believe in small rewards.
        peak = -4.0 * jnp.abs(jnp.arange(sizes.bins) - sizes.bins // 2)
        self.agent = eqx.tree_at(lambda a: a.model.reward.head.out.bias, agent, replace_fn=lambda bias: bias + peak)
        self.targets = Targets.of(self.agent)
        self.rows = made_up(sizes, env)
        self._run = jax.jit(jax.value_and_grad(self._loss, has_aux=True))

    def _loss(self, agent, rows, weights, targets):
        with mock.patch.object(loss_stage, "loss_scales", lambda *_: weights):
            return agent_loss(agent, targets, rows, self.config, HYPERS, key=KEY)

    def __call__(self, rows=None, **weights) -> Lost:
        """Losses that `weights` does not name count 0; without any, each counts 1."""
        every = {name: float(weights.get(name, not weights)) for name in NAMES[self.mode]}
        (total, aux), grads = self._run(self.agent, self.rows if rows is None else rows, every, self.targets)
        return Lost(*arrays((total, grads, aux)))

    @functools.cached_property
    def lost(self) -> Lost:
        """With each loss' weight at 1."""
        return self()

    @functools.cached_property
    def experience(self) -> dict[str, Experience]:
        """Imagined from the latents that agent_loss returned, with the stages alone and the same random numbers."""
        latent = jax.tree.map(jnp.asarray, self.lost.aux.latent)
        start = jax.tree.map(lambda x: x.reshape(T * B, *x.shape[2:]), latent)
        rows = jax.tree.map(lambda x: x[1:], self.rows)
        parts = jax.jit(functools.partial(self._experience, latent, start, rows), static_argnums=0)
        names = ("tasker", "explorer") if self.agent.explorer is not None else ("tasker",)
        return {name: Experience(*arrays(parts(name))) for name in names}

    def _experience(self, latent, start, rows, name):
        model, actor = self.agent.model, getattr(self.agent, name).actor
        key = dict(zip(("tasker", "explorer"), jr.split(jr.split(KEY)[1]), strict=True))[name]
        noise = draw_noise(model, actor, H, T * B, key=key)
        out = imagine(model, actor, start, noise, HYPERS.unimix, HYPERS.policy_unimix, block_size=T * B)
        batch = rewards.Batch(rows, action_vector(model, rows.action), latent, latent.feat)
        if name == "tasker":
            values = rewards.tasker_rewards(model, out, batch)
        else:
            values = rewards.explorer_rewards(model, self.agent.intrinsic, out, batch, self.config, HYPERS)
        return out.feat[0], out.action[0], out.cont[0], values.imagined[0], values.replayed


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
    return functools.cache(lambda mode, block=0, **settings: Case(config, env, mode, block, **settings))


every_mode = pytest.mark.parametrize("mode", NAMES)
exploring = pytest.mark.parametrize("mode", ["explore", "mix"])


# ---- names and sums ------------------------------------------------------------------------------------------------


@every_mode
def test_losses_are_those_that_have_a_scale(config, env, mode):
    config = dataclasses.replace(config, mode=mode)
    agent = shapes_of(config, env)

    def run(agent):
        return agent_loss(agent, Targets.of(agent), made_up(config.model, env), config, HYPERS, key=jr.key(1))

    total, aux = jax.eval_shape(run, agent)
    assert total.shape == ()
    assert {name for name in aux.metrics if name.startswith("loss/")} == {f"loss/{name}" for name in NAMES[mode]}
    assert loss_scales(HYPERS, agent).keys() == set(NAMES[mode])


def shapes_of(config, env) -> Agent:
    """An agent's shapes; nothing is computed."""
    return jax.eval_shape(lambda: Agent(config, env.obs_space, env.action_space, key=jr.key(0)))


def test_scales_are_the_hypers_by_name(config, env):
    hypers = Hypers(*map(float, range(len(dataclasses.fields(Hypers)))))
    scales = loss_scales(hypers, shapes_of(dataclasses.replace(config, mode="mix"), env))
    for name in (*MODEL, *BEHAVIOR, "ensemble", "explorer_repval"):
        assert scales[name] == getattr(hypers, f"scale_{name}")
    for name in ("policy", "value"):
        assert scales[f"explorer_{name}"] == scales[name]
    defaults = loss_scales(Hypers(), shapes_of(dataclasses.replace(config, mode="task"), env))
    assert defaults == {n: {"rep": 0.1, "repval": 0.3}.get(n, 1.0) for n in NAMES["task"]}


@pytest.mark.parametrize("mode", ["explore", "mix"])
def test_an_ensemble_with_updates_of_its_own_has_no_loss_here_and_is_not_moved_with_the_agent(config, env, mode):
    own = dataclasses.replace(config.ensemble, updates=1, target="projected")
    config = dataclasses.replace(config, mode=mode, ensemble=own)

    def run():
        agent = Agent(config, env.obs_space, env.action_space, key=jr.key(0))
        trained, fixed = eqx.partition(agent, trainable(agent))
        targets, batch = Targets.of(agent), made_up(config.model, env)

        def loss(trained):
            return agent_loss(eqx.combine(trained, fixed), targets, batch, config, HYPERS, key=jr.key(1))

        return jax.grad(loss, has_aux=True)(trained)

    grads, aux = jax.eval_shape(run)
    assert jax.tree.leaves(grads.intrinsic) == [] and grads.explorer is not None
    names = {name.removeprefix("loss/") for name in aux.metrics if name.startswith("loss/")}
    assert names == set(NAMES[mode]) - {"ensemble"} == loss_scales(HYPERS, shapes_of(config, env)).keys()


@every_mode
def test_the_loss_is_the_weighted_sum_of_means(case, mode):
    weights = {name: 0.5 + i for i, name in enumerate(NAMES[mode])}
    lost = case(mode)(**weights)
    expected = sum(weight * lost.aux.metrics[f"loss/{name}"] for name, weight in weights.items())
    np.testing.assert_allclose(lost.total, expected, rtol=1e-4)
    chex.assert_tree_all_finite((lost.grads, lost.aux))


# ---- borders -------------------------------------------------------------------------------------------------------

PARTS = {
    "encoder": lambda a: a.model.encoder,
    "rssm": lambda a: a.model.rssm,
    "decoder": lambda a: a.model.decoder,
    "reward": lambda a: a.model.reward,
    "cont": lambda a: a.model.cont,
    "actor": lambda a: a.tasker.actor,
    "critic": lambda a: a.tasker.critic,
    "explorer_actor": lambda a: a.explorer and a.explorer.actor,
    "explorer_critic": lambda a: a.explorer and a.explorer.critic,
    "intrinsic": lambda a: a.intrinsic,
}
STATE = {"encoder", "rssm"}
REACHES = {
    "recon": STATE | {"decoder"},
    "reward": STATE | {"reward"},
    "cont": STATE | {"cont"},
    "dyn": STATE,
    "rep": STATE,
    "policy": {"actor"},
    "value": {"critic"},
    "repval": STATE | {"critic"},
    "ensemble": {"intrinsic"},
    "explorer_policy": {"explorer_actor"},
    "explorer_value": {"explorer_critic"},
    "explorer_repval": {"explorer_critic"},
}
REWARD_FREE = {"reward": {"reward"}, "cont": {"cont"}, "repval": {"critic"}}


def reached(grads) -> set[str]:
    """The parts that a gradient moves."""
    return {part for part, of in PARTS.items() if any((x != 0).any() for x in jax.tree.leaves(of(grads)))}


@pytest.mark.parametrize(("mode", "name"), [(mode, name) for mode in NAMES for name in NAMES[mode]])
def test_each_loss_moves_its_own_parts_and_no_other(case, mode, name):
    grads = case(mode)(**{name: 1.0}).grads
    assert reached(grads) == (REACHES | (REWARD_FREE if mode == "explore" else {}))[name]


@exploring
def test_the_ensembles_loss_moves_every_weight_of_it_and_nothing_else_of_the_agent(case, mode):
    grads = case(mode)(ensemble=1.0).grads
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(grads.intrinsic)) and jax.tree.leaves(grads.intrinsic)
    for part in (grads.model, grads.tasker, grads.explorer):
        assert not any((leaf != 0).any() for leaf in jax.tree.leaves(part))


@every_mode
def test_every_weight_learns_from_some_loss(case, mode):
    paths = jax.tree_util.tree_leaves_with_path(case(mode).lost.grads)
    assert [jax.tree_util.keystr(path) for path, leaf in paths if not (leaf != 0).any()] == []


@exploring
def test_every_member_learns(case, mode):
    for leaf in jax.tree.leaves(case(mode).lost.grads.intrinsic):
        assert (np.abs(leaf).reshape(3, -1).max(-1) > 0).all()


# ---- rewards -------------------------------------------------------------------------------------------------------


@every_mode
def test_behaviours_learn_from_the_experience_that_the_stages_give(case, mode):
    metrics = case(mode).lost.aux.metrics
    for name, experience in case(mode).experience.items():
        prefix, paid = {"tasker": ("", "extrinsic"), "explorer": ("explorer_", "disagreement")}[name]
        np.testing.assert_allclose(
            metrics[f"{prefix}weight"], np.cumprod(experience.cont, 0, dtype=np.float64).mean(), rtol=1e-4
        )
        # No return has the reward of a first state, and the explorer's is 0 there.
        imagined, replayed = experience.reward[1:].mean(), experience.replayed[1:].mean()
        np.testing.assert_allclose(metrics[f"{prefix}rew_{paid}"], imagined, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(metrics[f"{prefix}replay_rew_{paid}"], replayed, rtol=1e-4)


@every_mode
def test_metrics_tell_of_every_reward(case, mode):
    reported = set(case(mode).lost.aux.metrics)
    paid = ("extrinsic",) if mode == "task" else ("extrinsic", "explorer_disagreement")
    expected = set()
    for prefix, reward in (name.rpartition("_")[::2] for name in paid):
        lead = f"{prefix}_" if prefix else ""
        expected |= {f"{lead}{metric}_{reward}" for metric in ("ret", "ret_scale", "val", "rew", "replay_rew")}
    assert {name for name in reported if name.endswith(("_extrinsic", "_disagreement"))} == expected


def disagree(case, feat, action):
    agent = case.agent
    return np.asarray(
        disagreement(agent.intrinsic.ensemble, agent.model, jnp.asarray(feat), jnp.asarray(action), HYPERS)
    )


@exploring
def test_imagined_disagreement_pays_the_action_it_was_about(case, mode):
    explorer = case(mode).experience["explorer"]
    chex.assert_shape(explorer.reward, (H + 1, T * B))
    np.testing.assert_array_equal(explorer.reward[0], 0)
    for t in range(H):
        expected = disagree(case(mode), explorer.feat[t], explorer.action[t])
        assert (expected > 0).all()
        np.testing.assert_allclose(explorer.reward[t + 1], expected, rtol=1e-4)


@exploring
def test_replayed_disagreement_pays_the_action_it_was_about_and_no_reset(case, mode):
    rows, latent = case(mode).rows, case(mode).lost.aux.latent
    paid = case(mode).experience["explorer"].replayed
    np.testing.assert_array_equal(paid == 0, [[True, True], [False, False], [True, False], [False, False]])
    action = np.eye(A, dtype=np.float32)[np.asarray(rows.action[1:])]
    feat = np.concatenate([latent.deter, latent.stoch.reshape(T, B, -1)], -1)
    expected = disagree(case(mode), feat, action)
    for t in range(T - 1):
        for b in range(B):
            if not rows.is_first[1:][t + 1, b]:
                np.testing.assert_allclose(paid[t + 1, b], expected[t, b], rtol=1e-4)


@every_mode
def test_the_tasker_is_paid_what_the_reward_head_expects_on_arrival(case, mode):
    tasker, head = case(mode).experience["tasker"], case(mode).agent.model.reward
    expected = head.mean(head(jnp.asarray(tasker.feat)))
    np.testing.assert_allclose(tasker.reward, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(tasker.replayed, case(mode).rows.reward[1:])


def test_enlarged_rewards_are_learned_as_rewards_of_one_are(case):
    """With rewards of `largest` times as much, losses are the same, and metrics of rewards are in the rewards' unit."""
    plain, largest = case("mix"), 1 / 64
    seen = (jnp.float32(-largest), jnp.float32(largest / 2))
    agent = eqx.tree_at(lambda a: a.model.reward_range, plain.agent, seen, is_leaf=lambda x: x is None)
    rows = dataclasses.replace(plain.rows, reward=largest * plain.rows.reward)
    weights = dict.fromkeys(NAMES["mix"], 1.0)
    total, aux = arrays(jax.jit(plain._loss)(agent, rows, weights, plain.targets))
    np.testing.assert_allclose(total, plain.lost.total, rtol=1e-5)
    assert aux.metrics.keys() == plain.lost.aux.metrics.keys()
    in_reward_unit = [f"{name}_extrinsic" for name in ("rew", "replay_rew", "ret", "val")]
    for name, value in plain.lost.aux.metrics.items():
        factor = largest if name in in_reward_unit else 1.0
        np.testing.assert_allclose(aux.metrics[name], factor * value, rtol=1e-4, atol=1e-6, err_msg=name)


# ---- a constant, the control -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def constant(case):
    """Mode explore whose explorer is paid 1 a step."""
    return case("explore", explorer_reward="constant")


def test_a_constant_pays_every_action_and_no_reset(constant):
    explorer = constant.experience["explorer"]
    np.testing.assert_array_equal(explorer.reward, np.broadcast_to(np.arange(H + 1)[:, None] > 0, (H + 1, T * B)))
    np.testing.assert_array_equal(explorer.replayed, [[0, 0], [1, 1], [0, 1], [1, 1]])


@pytest.mark.parametrize("name", EXPLORE)
def test_with_a_constant_each_loss_moves_its_own_parts_and_no_other(constant, name):
    assert reached(constant(**{name: 1.0}).grads) == REACHES[name]


def test_a_constant_changes_nothing_but_the_explorer(case, constant):
    paid, grads = case("explore").lost.grads, constant.lost.grads
    others = lambda grads: (grads.model, grads.tasker, jax.tree.leaves(grads.intrinsic))
    chex.assert_trees_all_close(others(grads), others(paid), rtol=1e-4, atol=1e-6)
    assert not np.allclose(grads.explorer.critic.head.out.weight, paid.explorer.critic.head.out.weight)


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
    chex.assert_trees_all_equal((other.explorer, other.intrinsic), (grads.explorer, grads.intrinsic))
    assert not same(other.model.reward, grads.model.reward)
    assert not same(other.tasker.critic, grads.tasker.critic)


@pytest.mark.parametrize("mode", ["task", "mix"])
def test_elsewhere_rewards_do_change_the_model(case, mode):
    grads, other = case(mode).lost.grads, case(mode)(other_reward(case(mode))).grads
    assert not same(other.model.encoder, grads.model.encoder)
    assert not same(other.model.rssm, grads.model.rssm)
    if mode == "mix":
        assert same((other.explorer, other.intrinsic), (grads.explorer, grads.intrinsic))


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
    gap = np.abs(other.aux.latent.deter - case("explore").lost.aux.latent.deter)[0].max(-1)
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


@exploring
def test_explorer_and_tasker_imagine_apart(case, mode):
    tasker, explorer = case(mode).experience["tasker"], case(mode).experience["explorer"]
    np.testing.assert_array_equal(tasker.feat[0], explorer.feat[0])
    assert (tasker.feat[1:] != explorer.feat[1:]).any((0, 2)).all()


@every_mode
def test_new_scales_are_of_the_behaviours_that_exist(case, mode):
    aux = case(mode).lost.aux
    assert aux.tasker_scale.low.shape == () and (aux.explorer_scale is None) == (mode == "task")


# ---- blocks --------------------------------------------------------------------------------------------------------


# Whatever the other modes compute, these do.
@pytest.mark.parametrize(
    ("mode", "block", "blocks"), [("mix", 1, T * B), ("mix", 3, T * B // 2), ("explore", 3, T * B // 2)]
)
def test_blocks_change_no_number(case, mode, block, blocks):
    one, lost = case(mode).lost, case(mode, block).lost
    assert count_blocks(T * B, block) == blocks and count_blocks(T * B, case(mode).config.imagine_batch) == 1
    np.testing.assert_allclose(lost.total, one.total, rtol=1e-5)
    chex.assert_trees_all_close(lost.grads, one.grads, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(lost.aux, one.aux, rtol=1e-4, atol=1e-5)
