"""episodic.py against loops in numpy: which earlier states count, how much, and what is multiplied.

Axes: T rows, B windows, L imagined states, c starts of a block, F feat, P numbers.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from envs.environment import ActionSpace, ObsSpace
from stages.config import Config, EnsembleConfig, Hypers, ModelConfig
from stages.decode import decode_mean
from stages.episodic import episodic_memory, imagined_novelty, modulator, replayed_novelty
from stages.imagine import Trajectory
from stages.intrinsic import ConstantReward, Disagreement
from stages.replay import Row
from stages.rewards import INTRINSIC_REWARDS, Batch, explorer_rewards
from stages.rssm import Latent, latent_of
from stages.world_model import WorldModel
from tests.conftest import arbitrary, draw

T, B, L, C, P = 5, 2, 4, 5, 6
SIZES = ModelConfig(deter=2, stoch=1, classes=2, units=2, hidden=2, blocks=1, layers=1, bins=3)
OBS, ACTIONS = ObsSpace((P,), "binary"), ActionSpace("discrete", 2)
CONFIG = Config(mode="explore", model=SIZES, ensemble=EnsembleConfig(members=2, layers=1))
EPISODIC = dataclasses.replace(CONFIG, episodic_novelty=True)
MODEL = arbitrary(lambda: WorldModel(CONFIG, OBS, ACTIONS, key=jr.key(0)))
CONSTANT = ConstantReward(CONFIG, OBS, ACTIONS, key=jr.key(0))
DISAGREEMENT = arbitrary(lambda: Disagreement(CONFIG, OBS, ACTIONS, key=jr.key(0)))
HYPERS = Hypers(episodic_sharpness=2.0, novelty_limit=3.0)
IS_FIRST = np.array([[0, 1], [0, 0], [1, 0], [0, 0], [0, 1]], bool)  # [T, B]
ROWS, IMAGINED = draw(T, B, SIZES.feat), draw(2, L, C, SIZES.feat, seed=2)  # two blocks of T B / 2 starts
TAKEN = jnp.zeros((T, B, 2))  # actions


class FeatureReward(ConstantReward):
    """The first number of the feature."""

    def __call__(self, model, feat, action, hypers):
        return feat[..., 0]


FEATURE = FeatureReward(CONFIG, OBS, ACTIONS, key=jr.key(0))


IS_LAST = np.array([[0, 0], [1, 0], [0, 0], [0, 1], [0, 0]], bool)


def rows_of(is_first=IS_FIRST) -> Row:
    """Rows [T, B] of which the flags matter."""
    latent = jnp.zeros((T, B, 2)), jnp.zeros((T, B, 1), jnp.uint8)
    flags = jnp.asarray(is_first), jnp.asarray(IS_LAST), jnp.zeros((T, B), bool)
    return Row(jnp.zeros((T, B, P)), TAKEN[..., 0], jnp.zeros((T, B)), *flags, *latent)


def memory_of(intrinsic, feat=ROWS, is_first=IS_FIRST, model=MODEL):
    feat = jnp.asarray(feat)
    return episodic_memory(model, intrinsic.obs_numbers, feat, rows_of(is_first), intrinsic(model, feat, TAKEN, HYPERS))


MEMORY = memory_of(CONSTANT)


def read(feat: np.ndarray) -> np.ndarray:
    """What a state is compared by: the decoded observation at a mean square of 1."""
    numbers = np.asarray(decode_mean(MODEL.decoder, latent_of(MODEL.rssm, jnp.asarray(feat))))
    return numbers * np.sqrt(P) / np.sqrt(np.square(numbers).sum(-1, keepdims=True) + 0.01)


def alike(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.exp(-0.5 * 2.0**2 * np.square(x - y).mean()))


def earlier(time: int, window: int) -> list[np.ndarray]:
    """The rows of the same episode before this one."""
    numbers = []
    for t in range(time, 0, -1):
        if IS_FIRST[t, window]:
            break
        numbers.append(read(ROWS[t - 1, window]))
    return numbers


@pytest.fixture(scope="module")
def imagined() -> np.ndarray:
    """[2, L, C]"""
    starts = jnp.arange(2 * C).reshape(2, C)
    of_block = lambda feat, start: imagined_novelty(MEMORY, MODEL, CONSTANT.obs_numbers, feat, start, HYPERS)
    return np.asarray(jax.jit(jax.vmap(of_block))(jnp.asarray(IMAGINED), starts))


def test_a_replayed_row_counts_the_rows_of_its_episode_before_it():
    factor = np.asarray(jax.jit(replayed_novelty)(MEMORY, HYPERS))
    chex.assert_shape(factor, (T, B))
    for t in range(T):
        for b in range(B):
            count = sum(alike(read(ROWS[t, b]), row) for row in earlier(t, b))
            np.testing.assert_allclose(factor[t, b], 1 / np.sqrt(1 + count), rtol=1e-5)
    assert factor[0, 0] == factor[2, 0] == factor[4, 1] == 1.0 and (factor < 1).sum() == 6


@pytest.mark.parametrize("block", [0, 1])
def test_an_imagined_state_counts_those_before_it_and_the_rows_before_its_start(imagined, block):
    for c in range(C):
        time, window = divmod(block * C + c, B)
        for step in range(L):
            state = read(IMAGINED[block, step, c])
            before = earlier(time, window) + [read(IMAGINED[block, s, c]) for s in range(step)]
            count = sum(alike(state, other) for other in before)
            np.testing.assert_allclose(imagined[block, step, c], 1 / np.sqrt(1 + count), rtol=1e-5)


def test_the_nth_visit_of_one_state_is_paid_one_over_root_n():
    same = jnp.broadcast_to(jnp.asarray(ROWS[:1, :1]), ROWS.shape)
    memory = memory_of(CONSTANT, same, np.zeros((T, B), bool))
    visits = 1 + np.arange(T)
    np.testing.assert_allclose(replayed_novelty(memory, HYPERS), np.repeat(visits[:, None] ** -0.5, B, 1), rtol=1e-5)


def test_a_reward_above_the_average_of_the_rows_raises_episodic_novelty_up_to_a_limit():
    """NGU's eq. 1 with L = 3, in numpy."""
    memory, reward = memory_of(FEATURE), IMAGINED[..., 0]
    leads_on = ROWS[..., 0][~IS_LAST]  # an episode's last action leads nowhere
    mean, std = leads_on.mean(), leads_on.std()
    np.testing.assert_allclose([memory.reward_mean, memory.reward_std], [mean, std], rtol=1e-5)
    by_hand = np.minimum(np.maximum(1 + (reward - mean) / std, 1), 3)
    np.testing.assert_allclose(modulator(memory, jnp.asarray(reward), HYPERS), by_hand, rtol=1e-5)
    assert (by_hand == 1).any() and (by_hand == 3).any() and ((by_hand > 1) & (by_hand < 3)).any()
    constant = modulator(MEMORY, jnp.ones((L, C)), HYPERS)  # no deviation at all
    np.testing.assert_array_equal(constant, 1.0)


def test_the_explorer_is_paid_the_product(imagined):
    rows = rows_of()
    batch = Batch(rows, TAKEN, Latent(rows.deter, jnp.zeros((T, B, 1, 2))), jnp.asarray(ROWS))
    trajectory = Trajectory(jnp.asarray(IMAGINED), jnp.zeros((2, L, C, 2)), jnp.ones((2, L, C)))
    rewards, memory = (
        jax.jit(lambda: explorer_rewards(MODEL, FEATURE, trajectory, batch, EPISODIC, HYPERS))(),
        memory_of(FEATURE),
    )
    arrived = modulator(memory, jnp.asarray(IMAGINED[:, :-1, :, 0]), HYPERS) * imagined[:, 1:]
    np.testing.assert_allclose(rewards.imagined[:, 1:], arrived, rtol=1e-5)
    assert (np.asarray(rewards.imagined[:, 0]) == 0).all()  # nothing arrives with a start
    arrived = np.zeros((T, B))
    arrived[1:] = modulator(memory, jnp.asarray(ROWS[:-1, :, 0]), HYPERS)
    arrived = np.where(IS_FIRST, 0, arrived * np.asarray(replayed_novelty(memory, HYPERS)))
    np.testing.assert_allclose(rewards.replayed, arrived, rtol=1e-5)


def test_no_gradient_leaves():
    def total(model):
        memory = memory_of(DISAGREEMENT, model=model)
        feat, start = jnp.asarray(IMAGINED[0]), jnp.arange(C)
        ahead = imagined_novelty(memory, model, CONSTANT.obs_numbers, feat, start, HYPERS)
        return replayed_novelty(memory, HYPERS).sum() + ahead.sum() + memory.reward_mean + memory.reward_std

    gradient = jax.jit(jax.grad(total))(MODEL)
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", INTRINSIC_REWARDS)
def test_every_intrinsic_reward_says_what_it_reads(name):
    reward = jax.eval_shape(lambda: INTRINSIC_REWARDS[name](CONFIG, OBS, ACTIONS, key=jr.key(0)))
    assert reward.obs_numbers.normalize(OBS, jnp.ones((3, P))).shape == (3, P)
