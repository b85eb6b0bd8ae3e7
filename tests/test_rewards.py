"""rewards.py by hand: what each behaviour maximises, when a reward arrives, blocks. What agent_loss makes of them
stands in test_loss.py, the intrinsic rewards in test_intrinsic.py."""

import dataclasses

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from envs.environment import ActionSpace, ObsSpace
from stages.agent import Agent
from stages.behavior import Objective
from stages.config import Config, EnsembleConfig, Hypers, ModelConfig
from stages.count import CountBonus
from stages.imagine import Trajectory
from stages.intrinsic import ConstantReward, Disagreement
from stages.replay import Row
from stages.rewards import (
    INTRINSIC_REWARDS,
    Batch,
    Rewards,
    centre,
    explorer_objective,
    explorer_rewards,
    shift_to_arrival,
    tasker_objective,
    tasker_rewards,
)
from stages.rnd import RND
from stages.rssm import Latent
from stages.world_model import WorldModel
from tests.conftest import arbitrary, draw

SIZES = ModelConfig(deter=2, stoch=1, classes=2, units=2, hidden=2, blocks=1, layers=1, bins=3)
OBS, ACTIONS = ObsSpace((3,), "real"), ActionSpace("discrete", 2)
MODEL = arbitrary(lambda: WorldModel(Config(model=SIZES), OBS, ACTIONS, key=jr.key(0)))
HYPERS = Hypers(return_floor=2.0, intrinsic_floor=1e-3)
DREAMER = Objective("extrinsic", HYPERS.entropy, "returns", 2.0, debias=False)  # with DreamerV3's divisor


class FeatureReward(ConstantReward):
    """Twice the first number of the feature: easy to follow by hand."""

    def __call__(self, model, feat, action, hypers):
        return 2 * feat[..., 0]


SMALL = Config(mode="explore", model=SIZES, ensemble=EnsembleConfig(members=2, layers=1))
FEATURE = FeatureReward(SMALL, OBS, ACTIONS, key=jr.key(0))
CONSTANT = ConstantReward(SMALL, OBS, ACTIONS, key=jr.key(0))


def batch_of(is_first, feat, reward=0.0) -> Batch:
    """Rows [T, B] of which only the flags that begin episodes, the features and the rewards are looked at."""
    is_first = jnp.asarray(is_first, bool)
    lead, never = is_first.shape, jnp.zeros(is_first.shape, bool)
    reward = jnp.broadcast_to(jnp.asarray(reward, jnp.float32), lead)
    latent = jnp.zeros((*lead, 2)), jnp.zeros((*lead, 1), jnp.uint8)
    rows = Row(jnp.zeros((*lead, 3)), jnp.zeros(lead, jnp.int32), reward, is_first, never, never, *latent)
    stored = Latent(latent[0], jnp.zeros((*lead, 1, 2)))
    return Batch(rows, jnp.zeros((*lead, 2)), stored, jnp.asarray(feat))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"mode": "task"}, None),
        ({"mode": "random"}, None),
        ({"mode": "explore"}, "disagreement"),
        ({"mode": "mix"}, "disagreement"),
        ({"mode": "explore", "explorer_reward": "constant"}, "constant"),
        ({"mode": "mix", "explorer_reward": "constant"}, "constant"),
        ({"mode": "explore", "explorer_reward": "rnd"}, "rnd"),
        ({"mode": "mix", "explorer_reward": "count"}, "count"),
        # The phase that adapts keeps the run's settings, but for its mode.
        ({"mode": "task", "explorer_reward": "constant"}, None),
    ],
    ids=str,
)
def test_what_the_explorer_is_paid(settings, name):
    config = Config(**settings)
    assert name == (explorer_objective(config, HYPERS).reward_name if config.explores else None)
    # The tasker is paid alike in all modes.
    assert tasker_objective(config, HYPERS) == DREAMER


@pytest.mark.parametrize("norm", ["advantages", "rms"])
def test_the_taskers_advantages_may_be_divided_by_what_they_are_themselves(norm):
    objective = tasker_objective(Config(mode="mix", task_norm=norm), Hypers(entropy=0.2, task_floor=0.5))
    assert objective == Objective("extrinsic", 0.2, norm, 0.5, debias=True)


REWARD_CLASSES = [("disagreement", Disagreement), ("constant", ConstantReward), ("rnd", RND), ("count", CountBonus)]


@pytest.mark.parametrize("mode", ["task", "random", "explore", "mix"])
@pytest.mark.parametrize(("name", "cls"), REWARD_CLASSES)
def test_an_agent_has_the_intrinsic_reward_of_its_config(mode, name, cls):
    import equinox as eqx

    assert INTRINSIC_REWARDS[name] is cls and cls.name == name
    for updates in (0, 2):
        ensemble = EnsembleConfig(members=2, layers=1, updates=updates, target="projected")
        config = Config(mode=mode, model=SIZES, ensemble=ensemble, explorer_reward=name)
        agent = eqx.filter_eval_shape(lambda c=config: Agent(c, OBS, ACTIONS, key=jr.key(0)))
        if mode in ("task", "random"):
            assert agent.intrinsic is None and agent.explorer is None
        else:
            assert type(agent.intrinsic) is cls and agent.intrinsic.updates == updates


@pytest.mark.parametrize("norm", ["returns", "advantages"])
@pytest.mark.parametrize("mode", ["explore", "mix"])
def test_divisors_are_the_configs_and_the_hypers(norm, mode):
    config, hypers = Config(mode=mode, intrinsic_norm=norm), dataclasses.replace(HYPERS, explorer_entropy=0.2)
    objective = explorer_objective(config, hypers)
    assert objective == Objective("disagreement", 0.2, norm, 1e-3, debias=True)
    constant = dataclasses.replace(config, explorer_reward="constant")
    assert explorer_objective(constant, hypers) == DREAMER._replace(reward_name="constant", entropy_scale=0.2)
    episodic = dataclasses.replace(constant, episodic_novelty=True)  # a constant, and so episodic novelty alone
    assert explorer_objective(episodic, hypers) == objective._replace(reward_name="constant")


def test_an_intrinsic_reward_may_have_a_discount_of_its_own():
    hypers = Hypers(discount_horizon=100.0, intrinsic_horizon=20.0)
    for mode in ("explore", "mix"):
        objective = explorer_objective(Config(mode=mode), hypers)
        np.testing.assert_allclose(objective.discount_ratio, 0.95 / 0.99, rtol=1e-6)
    assert explorer_objective(Config(mode="mix"), HYPERS).discount_ratio == 1.0


def test_a_centred_reward_by_hand():
    assert explorer_objective(Config(mode="mix", intrinsic_centred=True), HYPERS).centred
    assert not explorer_objective(Config(mode="mix"), HYPERS).centred
    # [blocks, L, c]: nothing arrives at the start. The first trajectory ends at its start with
    # a probability of a half: 1 and 3 count half, and the mean of 1, 3, 2 and 6 is (0.5 + 1.5 + 2 + 6) / 3.
    imagined = jnp.array([[[0.0], [1.0], [3.0]], [[0.0], [2.0], [6.0]]])
    cont = jnp.array([[[0.5], [1.0], [1.0]], [[1.0], [1.0], [0.2]]])
    replayed, is_first = jnp.array([[0.0, 5.0], [10.0, 0.0]]), jnp.array([[1, 0], [0, 1]], bool)
    made, rows = centre(Rewards(imagined, replayed), cont, is_first)
    level = 10 / 3
    np.testing.assert_allclose(
        made[:, :, 0], [[0, 1 / level - 1, 3 / level - 1], [0, 2 / level - 1, 6 / level - 1]], rtol=1e-6, atol=1e-6
    )
    np.testing.assert_allclose(rows, [[0, 0.5], [2, 0]], atol=1e-6)
    agreed = centre(Rewards(jnp.zeros_like(imagined), replayed), cont, is_first).imagined
    assert np.isfinite(agreed).all()  # members that agree everywhere


def test_a_reward_arrives_one_step_after_the_action_it_pays():
    np.testing.assert_array_equal(shift_to_arrival(jnp.array([5.0, 7.0])), [0, 5, 7])
    feat = jnp.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]])[..., None] / 2
    # Window 0 goes on; window 1 is reset at row 2, which nothing earned. The last row's is beyond the window.
    batch = batch_of([[0, 1], [0, 0], [0, 1], [0, 0]], feat)
    trajectory = Trajectory(jnp.zeros((1, 3, 8, 1)), jnp.zeros((1, 3, 8, 2)), jnp.ones((1, 3, 8)))
    rewards = explorer_rewards(MODEL, FEATURE, trajectory, batch, SMALL, HYPERS)
    np.testing.assert_array_equal(rewards.replayed, [[0, 0], [1, 10], [2, 0], [3, 30]])


def test_a_constant_is_one_for_every_action():
    trajectory = Trajectory(jnp.zeros((1, 4, 2, 4)), jnp.zeros((1, 4, 2, 2)), jnp.full((1, 4, 2), 0.5))
    batch = batch_of([[0, 1], [0, 0], [0, 1]], jnp.zeros((3, 2, 4)))
    rewards = explorer_rewards(MODEL, CONSTANT, trajectory, batch, SMALL, HYPERS)
    np.testing.assert_array_equal(rewards.imagined, [[[0, 0], [1, 1], [1, 1], [1, 1]]])
    np.testing.assert_array_equal(rewards.replayed, [[0, 0], [1, 1], [1, 0]])


def test_the_tasker_is_paid_what_arrived_and_what_the_head_expects():
    feat = draw(2, 3, 4, 4)
    batch = batch_of(np.zeros((3, 2)), jnp.zeros((3, 2, 4)), reward=[[1.0, 2.0]] * 3)
    rewards = tasker_rewards(MODEL, Trajectory(jnp.asarray(feat), jnp.zeros((2, 3, 4, 2)), jnp.ones((2, 3, 4))), batch)
    np.testing.assert_array_equal(rewards.replayed, [[1, 2]] * 3)
    np.testing.assert_allclose(
        rewards.imagined, MODEL.reward.mean(MODEL.reward(jnp.asarray(feat))), rtol=1e-5, atol=1e-5
    )


def test_rewards_keep_their_order_in_every_block():
    feat = jnp.arange(96.0).reshape(2, 3, 4, 4) / 100  # two blocks of four starts, three states of each
    batch = batch_of(np.zeros((4, 2)), jnp.zeros((4, 2, 4)))
    rewards = explorer_rewards(MODEL, FEATURE, Trajectory(feat, feat[..., :2], feat[..., 0]), batch, SMALL, HYPERS)
    expected = np.zeros((2, 3, 4))
    expected[:, 1:] = 2 * feat[:, :-1, :, 0]
    np.testing.assert_allclose(rewards.imagined, expected, rtol=1e-5, atol=1e-5)
