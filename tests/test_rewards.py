"""rewards.py by hand: what each behaviour maximises, when a reward arrives, sums, blocks. What agent_loss makes of them
stands in test_loss.py, the intrinsic rewards in test_intrinsic.py."""

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
    Reward,
    centre,
    explorer_rewards,
    imagined_rewards,
    replayed_rewards,
    shift_to_arrival,
    tasker_rewards,
)
from stages.rnd import RND
from stages.world_model import WorldModel
from tests.conftest import arbitrary

SIZES = ModelConfig(deter=2, stoch=1, classes=2, units=2, hidden=2, blocks=1, layers=1, bins=3)
OBS, ACTIONS = ObsSpace((3,), "real"), ActionSpace("discrete", 2)
MODEL = arbitrary(lambda: WorldModel(Config(model=SIZES), OBS, ACTIONS, key=jr.key(0)))
HYPERS = Hypers(
    intrinsic_scale=0.25, extrinsic_scale=3.0, return_floor=2.0, intrinsic_floor=1e-3, mix_intrinsic_floor=0.3
)
DREAMER = Objective(1.0, "returns", 2.0, debias=False)  # DreamerV3's divisor, and no weight


class FeatureReward(ConstantReward):
    """Twice the first number of the feature: easy to follow by hand."""

    def __call__(self, model, feat, action, hypers):
        return 2 * feat[..., 0]


SMALL = Config(mode="explore", model=SIZES, ensemble=EnsembleConfig(members=2, layers=1))
FEATURE = FeatureReward(SMALL, OBS, ACTIONS, key=jr.key(0))
CONSTANT = ConstantReward(SMALL, OBS, ACTIONS, key=jr.key(0))


def rows_of(is_first, reward=0.0) -> Row:
    """Rows [T, B] of which only the flags that begin episodes, and the rewards, are looked at."""
    is_first = jnp.asarray(is_first, bool)
    lead, never = is_first.shape, jnp.zeros(is_first.shape, bool)
    reward = jnp.broadcast_to(jnp.asarray(reward, jnp.float32), lead)
    latent = jnp.zeros((*lead, 2)), jnp.zeros((*lead, 1), jnp.uint8)
    return Row(jnp.zeros((*lead, 3)), jnp.zeros(lead, jnp.int32), reward, is_first, never, never, *latent)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"mode": "task"}, ()),
        ({"mode": "random"}, ()),
        ({"mode": "explore"}, ("disagreement",)),
        ({"mode": "mix"}, ("disagreement", "extrinsic")),
        ({"mode": "mix", "explorer_critics": "sum"}, ("sum",)),
        ({"mode": "explore", "explorer_critics": "sum"}, ("disagreement",)),
        ({"mode": "explore", "explorer_reward": "constant"}, ("constant",)),
        ({"mode": "explore", "explorer_reward": "rnd"}, ("rnd",)),
        ({"mode": "mix", "explorer_reward": "rnd"}, ("rnd", "extrinsic")),
        ({"mode": "mix", "explorer_reward": "count"}, ("count", "extrinsic")),
        # The phase that adapts keeps the run's settings, but for its mode.
        ({"mode": "task", "explorer_reward": "constant"}, ()),
    ],
    ids=str,
)
def test_what_the_explorer_is_paid(settings, names):
    assert tuple(reward.name for reward in explorer_rewards(Config(**settings), HYPERS)) == names
    # The tasker is paid alike in all modes.
    assert tasker_rewards(Config(**settings), HYPERS) == (Reward("extrinsic", {"extrinsic": 1.0}, DREAMER),)


@pytest.mark.parametrize("norm", ["advantages", "rms"])
def test_extrinsic_advantages_may_be_divided_by_what_they_are_themselves(norm):
    own = Objective(1.0, norm, 0.5, debias=True)
    hypers = Hypers(task_floor=0.5, extrinsic_floor=0.7, return_floor=2.0, extrinsic_scale=3.0)
    config = Config(mode="mix", task_norm=norm)
    assert tasker_rewards(config, hypers)[0].objective == own
    assert explorer_rewards(config, hypers)[-1].objective == DREAMER._replace(weight=3.0)
    config = Config(mode="mix", extrinsic_norm=norm)
    assert tasker_rewards(config, hypers)[0].objective == DREAMER
    assert explorer_rewards(config, hypers)[-1].objective == own._replace(weight=3.0, floor=0.7)


REWARD_CLASSES = [("disagreement", Disagreement), ("constant", ConstantReward), ("rnd", RND), ("count", CountBonus)]


@pytest.mark.parametrize("mode", ["task", "random", "explore", "mix"])
@pytest.mark.parametrize(("name", "cls"), REWARD_CLASSES)
def test_an_agent_has_the_intrinsic_reward_of_its_config(mode, name, cls):
    import equinox as eqx

    assert INTRINSIC_REWARDS[name] is cls and cls.name == name
    for updates in (0, 2):
        ensemble = EnsembleConfig(members=2, layers=1, updates=updates, target="stoch")
        config = Config(mode=mode, model=SIZES, ensemble=ensemble, explorer_reward=name)
        agent = eqx.filter_eval_shape(lambda c=config: Agent(c, OBS, ACTIONS, key=jr.key(0)))
        if mode in ("task", "random"):
            assert agent.intrinsic is None and agent.explorer is None
        else:
            assert type(agent.intrinsic) is cls and agent.intrinsic.updates == updates


@pytest.mark.parametrize("norm", ["returns", "advantages"])
def test_weights_and_divisors_are_the_hypers(norm):
    mix, explore = Config(mode="mix", intrinsic_norm=norm), Config(mode="explore", intrinsic_norm=norm)
    intrinsic, extrinsic = explorer_rewards(mix, HYPERS)
    assert intrinsic.objective == Objective(0.25, norm, 0.3, debias=True)
    assert extrinsic.objective == Objective(3.0, "returns", 2.0, debias=False)
    (alone,) = explorer_rewards(explore, HYPERS)
    assert alone.objective == Objective(0.25, norm, 1e-3, debias=True)
    (constant,) = explorer_rewards(Config(mode="explore", intrinsic_norm=norm, explorer_reward="constant"), HYPERS)
    (summed,) = explorer_rewards(Config(mode="mix", intrinsic_norm=norm, explorer_critics="sum"), HYPERS)
    assert constant.objective == summed.objective == DREAMER
    episodic = Config(mode="explore", intrinsic_norm=norm, explorer_reward="constant", episodic_novelty=True)
    assert (
        explorer_rewards(episodic, HYPERS)[0].objective == alone.objective
    )  # a constant, and so episodic novelty alone
    assert summed.weights == {"intrinsic": 0.25, "extrinsic": 3.0}


def test_an_intrinsic_reward_may_have_a_discount_of_its_own():
    hypers = Hypers(discount_horizon=100.0, intrinsic_horizon=20.0)
    for mode in ("explore", "mix"):
        shortening = [reward.objective.shortening for reward in explorer_rewards(Config(mode=mode), hypers)]
        np.testing.assert_allclose(shortening, [0.95 / 0.99, 1.0][: len(shortening)], rtol=1e-6)
    assert explorer_rewards(Config(mode="mix"), HYPERS)[0].objective.shortening == 1.0


def test_a_centred_reward_by_hand():
    paid = explorer_rewards(Config(mode="mix", intrinsic_centred=True), HYPERS)
    assert [reward.centred for reward in paid] == [True, False]
    # [blocks, R, L, c]: nothing arrives at the start. The mean of 1, 3, 2 and 6 is 3.
    imagined = jnp.array(
        [[[[0.0], [1.0], [3.0]], [[0.0], [5.0], [7.0]]], [[[0.0], [2.0], [6.0]], [[0.0], [8.0], [9.0]]]]
    )
    replayed = jnp.array([[[0.0, 3.0], [6.0, 0.0]], [[1.0, 2.0], [3.0, 4.0]]])
    is_first = jnp.array([[1, 0], [0, 1]], bool)
    made, rows, objectives = centre(paid, imagined, replayed, is_first)
    np.testing.assert_allclose(made[:, 0, :, 0], [[0, -2 / 3, 0], [0, -1 / 3, 1]], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(made[:, 1], imagined[:, 1])
    np.testing.assert_allclose(rows[0], [[0, 0], [1, 0]], atol=1e-6)
    np.testing.assert_array_equal(rows[1], replayed[1])
    assert objectives[1] == paid[1].objective
    # What says when novelty has faded is a disagreement, before and after.
    np.testing.assert_allclose(objectives[0].floor, 0.3 / 3, rtol=1e-6)
    assert objectives[0]._replace(floor=0.3) == paid[0].objective
    level, _, _ = centre(paid, jnp.zeros_like(imagined), replayed, is_first)
    assert np.isfinite(level).all()  # members that agree everywhere
    for config in (Config(mode="mix"), Config(mode="mix", explorer_critics="sum", intrinsic_centred=True)):
        assert not any(reward.centred for reward in explorer_rewards(config, HYPERS))


def test_a_reward_arrives_one_step_after_the_action_it_pays():
    np.testing.assert_array_equal(shift_to_arrival(jnp.array([5.0, 7.0])), [0, 5, 7])
    feat = jnp.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]])[..., None] / 2
    # Window 0 goes on; window 1 is reset at row 2, which nothing earned. The last row's is beyond the window.
    rows = rows_of([[0, 1], [0, 0], [0, 1], [0, 0]])
    paid = replayed_rewards(explorer_rewards(SMALL, HYPERS), MODEL, FEATURE, rows, feat, feat, HYPERS)
    np.testing.assert_array_equal(paid, [[[0, 0], [1, 10], [2, 0], [3, 30]]])


def test_a_constant_is_one_for_every_action():
    rewards = explorer_rewards(SMALL, HYPERS)
    trajectory = Trajectory(jnp.zeros((1, 4, 2, 4)), jnp.zeros((1, 4, 2, 2)), jnp.full((1, 4, 2), 0.5))
    paid = imagined_rewards(rewards, MODEL, CONSTANT, trajectory, HYPERS)
    np.testing.assert_array_equal(paid, [[[[0, 0], [1, 1], [1, 1], [1, 1]]]])
    rows = rows_of([[0, 1], [0, 0], [0, 1]])
    paid = replayed_rewards(rewards, MODEL, CONSTANT, rows, jnp.zeros((3, 2, 4)), jnp.zeros((3, 2, 2)), HYPERS)
    np.testing.assert_array_equal(paid, [[[0, 0], [1, 1], [1, 0]]])


def test_a_sum_is_of_each_reward_times_its_weight_as_it_comes():
    (summed,) = explorer_rewards(Config(mode="mix", explorer_critics="sum"), HYPERS)
    rows = rows_of(np.zeros((3, 2)), reward=[[1.0, 2.0]] * 3)
    feat = jnp.arange(6.0).reshape(3, 2, 1)
    by_hand = 3.0 * np.array([[1.0, 2.0]] * 3)
    by_hand[1:] += 0.25 * 2 * np.arange(4.0).reshape(2, 2)
    np.testing.assert_allclose(replayed_rewards((summed,), MODEL, FEATURE, rows, feat, feat, HYPERS)[0], by_hand)


def test_rewards_keep_their_order_in_every_block():
    rewards = explorer_rewards(Config(mode="mix"), HYPERS)
    feat = jnp.arange(96.0).reshape(2, 3, 4, 4) / 100  # two blocks of four starts, three states of each
    found = imagined_rewards(rewards, MODEL, FEATURE, Trajectory(feat, feat[..., :2], feat[..., 0]), HYPERS)
    intrinsic = np.zeros((2, 3, 4))
    intrinsic[:, 1:] = 2 * feat[:, :-1, :, 0]
    extrinsic = MODEL.reward.mean(MODEL.reward(feat))
    np.testing.assert_allclose(found, np.stack([intrinsic, extrinsic], 1), rtol=1e-5, atol=1e-5)
