"""rewards.py by hand: the table of modes, when a reward arrives, sums, blocks. What agent_loss makes of them, and what
disagreement is, stand in test_loss.py and test_ensemble.py."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from envs.environment import ActionSpace, ObsSpace
from stages.config import Config, EnsembleConfig, Hypers, ModelConfig
from stages.imagine import Trajectory
from stages.replay import Row
from stages.rewards import (
    BEHAVIORS,
    CONSTANT,
    DISAGREEMENT,
    TASK,
    Reward,
    behaviors,
    imagined_constant,
    imagined_rewards,
    learns_with_model,
    network_of,
    replayed_constant,
    replayed_on_arrival,
    replayed_rewards,
    shift_to_arrival,
    total,
)
from stages.world_model import WorldModel
from tests.conftest import arbitrary

SIZES = ModelConfig(deter=2, stoch=1, classes=2, units=2, hidden=2, blocks=1, layers=1, bins=3)
MODEL = arbitrary(  # of which no reward here reads a number
    lambda: WorldModel(Config(model=SIZES), ObsSpace((3,), "real"), ActionSpace("discrete", 2), key=jr.key(0))
)
HYPERS = Hypers(
    intrinsic_scale=0.25, extrinsic_scale=3.0, return_floor=2.0, intrinsic_floor=1e-3, mix_intrinsic_floor=0.3
)


def rows_of(is_first, reward=0.0) -> Row:
    """Rows [T, B] of which only the flags that begin episodes, and the rewards, are looked at."""
    is_first = jnp.asarray(is_first, bool)
    lead, never = is_first.shape, jnp.zeros(is_first.shape, bool)
    reward = jnp.broadcast_to(jnp.asarray(reward, jnp.float32), lead)
    latent = jnp.zeros((*lead, 2)), jnp.zeros((*lead, 1), jnp.uint8)
    return Row(jnp.zeros((*lead, 3)), jnp.zeros(lead, jnp.int32), reward, is_first, never, never, *latent)


def named(rewards):
    return {behavior: tuple(reward.name for reward in each) for behavior, each in rewards.items()}


@pytest.mark.parametrize(
    ("settings", "rewards"),
    [
        ({"mode": "task"}, {"tasker": ("extrinsic",)}),
        ({"mode": "random"}, {"tasker": ("extrinsic",)}),
        ({"mode": "explore"}, {"tasker": ("extrinsic",), "explorer": ("disagreement",)}),
        ({"mode": "mix"}, {"tasker": ("extrinsic",), "explorer": ("disagreement", "extrinsic")}),
        ({"mode": "mix", "explorer_critics": "sum"}, {"tasker": ("extrinsic",), "explorer": ("sum",)}),
        ({"mode": "explore", "explorer_reward": "constant"}, {"tasker": ("extrinsic",), "explorer": ("constant",)}),
    ],
    ids=str,
)
def test_what_each_behaviour_is_paid(settings, rewards):
    found = behaviors(Config(**settings))
    assert named(found) == rewards
    # The tasker is paid alike in all modes: no weight, and DreamerV3's divisor.
    (task,) = found["tasker"]
    assert task is TASK and (task.scale(HYPERS), task.floor(HYPERS), task.norm(Config())) == (1.0, 2.0, "returns")


def test_a_network_is_learned_where_an_intrinsic_reward_is_and_nowhere_else():
    assert BEHAVIORS.keys() == {"task", "explore", "mix", "random"}
    assert {mode: network_of(mode) is not None for mode in BEHAVIORS} == {
        "task": False, "random": False, "explore": True, "mix": True,
    }  # fmt: skip
    assert network_of("explore") is network_of("mix") is DISAGREEMENT.network is CONSTANT.network
    for updates in (0, 1, 4):
        assert learns_with_model(Config(ensemble=EnsembleConfig(updates=updates))) == (updates == 0)


def test_weights_and_divisors_are_the_hypers():
    disagreement, extrinsic = behaviors(Config(mode="mix"))["explorer"]
    assert (disagreement.scale(HYPERS), disagreement.floor(HYPERS), disagreement.debias) == (0.25, 0.3, True)
    (alone,) = behaviors(Config(mode="explore"))["explorer"]
    assert (alone.scale(HYPERS), alone.floor(HYPERS), alone.debias) == (0.25, 1e-3, True)
    assert (extrinsic.scale(HYPERS), extrinsic.floor(HYPERS), extrinsic.debias) == (3.0, 2.0, False)
    for norm in ("returns", "advantages"):
        assert disagreement.norm(Config(intrinsic_norm=norm)) == norm
        assert extrinsic.norm(Config(intrinsic_norm=norm)) == "returns"


def test_a_reward_arrives_one_step_after_the_action_it_pays():
    np.testing.assert_array_equal(shift_to_arrival(jnp.array([5.0, 7.0])), [0, 5, 7])
    paid = jnp.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]])
    # Window 0 goes on; window 1 is reset at row 2, which nothing earned. The last row's is beyond the window.
    rows = rows_of([[0, 1], [0, 0], [0, 1], [0, 0]])
    np.testing.assert_array_equal(replayed_on_arrival(paid, rows), [[0, 0], [1, 10], [2, 0], [3, 30]])


def test_a_constant_is_one_for_every_action():
    trajectory = Trajectory(jnp.zeros((4, 2, 3)), jnp.zeros((4, 2, 1)), jnp.full((4, 2), 0.5))
    np.testing.assert_array_equal(imagined_constant(MODEL, None, trajectory, HYPERS), [[0, 0], [1, 1], [1, 1], [1, 1]])
    rows = rows_of([[0, 1], [0, 0], [0, 1]])
    paid = replayed_constant(MODEL, None, rows, jnp.zeros((3, 2, 4)), jnp.zeros((3, 2, 1)), HYPERS)
    np.testing.assert_array_equal(paid, [[0, 0], [1, 1], [1, 0]])


def made_up(name, factor, scale, network=None) -> Reward:
    """A reward that is `factor` times the first number of a feature, in imagination and on replayed rows."""
    return TASK._replace(
        name=name,
        imagined=lambda model, network, trajectory, hypers: factor * trajectory.feat[..., 0],
        replayed=lambda model, network, rows, feat, action, hypers: factor * feat[..., 0] + rows.reward,
        scale=scale,
        network=network,
    )


def test_a_sum_is_of_each_reward_times_its_weight_as_it_comes():
    network = object()
    parts = (
        made_up("a", 2.0, lambda h: h.intrinsic_scale, network),
        made_up("b", 10.0, lambda h: h.extrinsic_scale),
    )
    both, feat = total(parts), jnp.arange(6.0).reshape(3, 2, 1)
    assert (both.name, both.scale(HYPERS), both.floor(HYPERS), both.norm(Config())) == ("sum", 1.0, 2.0, "returns")
    assert both.network is network
    trajectory = Trajectory(feat, feat, feat[..., 0])
    by_hand = (0.25 * 2 + 3 * 10) * np.arange(6.0).reshape(3, 2)
    np.testing.assert_allclose(both.imagined(MODEL, None, trajectory, HYPERS), by_hand)
    rows = rows_of(np.zeros((3, 2)), reward=1.0)
    np.testing.assert_allclose(both.replayed(MODEL, None, rows, feat, feat, HYPERS), by_hand + 0.25 + 3)


def test_rewards_keep_their_order_in_every_block():
    rewards = (made_up("a", 1.0, TASK.scale), made_up("b", -2.0, TASK.scale))
    feat = jnp.arange(24.0).reshape(2, 3, 4, 1)  # two blocks of four starts, three states of each
    found = imagined_rewards(rewards, MODEL, None, Trajectory(feat, feat, feat[..., 0]), HYPERS)
    np.testing.assert_array_equal(found, np.stack([feat[..., 0], -2 * feat[..., 0]], 1))
    rows, feat = rows_of(np.zeros((3, 4)), reward=0.5), feat[0]
    found = replayed_rewards(rewards, MODEL, None, rows, feat, feat, HYPERS)
    np.testing.assert_array_equal(found, np.stack([feat[..., 0] + 0.5, -2 * feat[..., 0] + 0.5]))
