"""evaluate.py: whole first episodes of a scripted environment, and nothing after them.

Axes: E episodes.
"""

import dataclasses
from typing import final

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from envs.environment import ActionSpace, Environment, ObsSpace, Timestep
from stages.agent import Agent
from stages.config import Hypers
from stages.evaluate import eval_episode_count, evaluate
from tests.conftest import arbitrary

E, HYPERS, KEY = 12, Hypers(policy_unimix=0.0), jr.key(3)
OBS, ACTIONS = ObsSpace((2,), "real"), ActionSpace("discrete", 2)


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Script(Environment):
    """An episode lasts as many steps as its reset draws; step k pays k, and none after the episode's last a number."""

    shortest: int
    longest: int
    time_limit: int
    by_action: bool  # pay 1 for action 0 and 0 for action 1, instead of k
    name: str = "Script"
    obs_space: ObsSpace = OBS
    action_space: ActionSpace = ACTIONS

    def drawn(self, key):
        """Steps of the episode that begins with this key."""
        return jr.randint(key, (), self.shortest, self.longest + 1)

    def reset(self, key):
        return (jnp.zeros((), jnp.int32), self.drawn(key)), self._row(jnp.zeros(()), jnp.zeros(()), True, False)

    def step(self, key, state, action):
        del key
        time, length = state[0] + 1, state[1]
        reward = jnp.where(action == 0, 1.0, 0.0) if self.by_action else time.astype(jnp.float32)
        beyond = time > length
        seen, reward = (jnp.where(beyond, jnp.nan, x) for x in (time.astype(jnp.float32), reward))
        return (time, length), self._row(seen, reward, False, time >= length)

    def _row(self, time, reward, first, last):
        return Timestep(jnp.stack([time, 1.0 - time]), reward, jnp.array(first), jnp.asarray(last), jnp.asarray(last))


def untrained(config, env):
    """An agent of any numbers."""
    return arbitrary(lambda: Agent(config, env.obs_space, env.action_space, key=jr.key(0)))


def play(env, config, agent=None, key=KEY, **settings):
    """(scores, lengths) of E episodes, as numpy."""
    config = dataclasses.replace(config, mode="mix", eval_episodes=E, **settings)
    agent = agent or untrained(config, env)
    scores, lengths, _ = jax.jit(lambda agent, key: evaluate(env, agent, config, HYPERS, key=key))(agent, key)
    chex.assert_shape([scores, lengths], (E,))
    chex.assert_type([scores, lengths], jnp.float32)
    return np.asarray(scores), np.asarray(lengths)


def first_steps(env):
    """Steps of each environment's first episode, drawn by hand from the key that evaluate was given."""
    return np.array([int(env.drawn(key)) for key in jr.split(jr.split(KEY)[0], E)])


def by_hand(steps, cut=10**9):
    """(scores, lengths): 1 + 2 + ... over the steps before the episode's end or the cut, and a row more than those."""
    scores, lengths = [], []
    for limit in steps:
        score, taken = 0, 0
        while taken < min(limit, cut):
            taken += 1
            score += taken
        scores.append(score)
        lengths.append(taken + 1)
    return scores, lengths


RANDOM = Script(1, 7, time_limit=7, by_action=False)  # while the longest one lasts, the short ones step on


def test_each_first_episode_counts_once_and_whole(config):
    steps = first_steps(RANDOM)
    assert len(set(steps)) > 3
    assert 2 * steps.min() + 2 < steps.max()
    np.testing.assert_array_equal(play(RANDOM, config), by_hand(steps))


def test_only_first_episodes_begin(config, monkeypatch):
    """Another reset would be compiled for episodes that nobody counts."""
    traced, reset = [], Script.reset
    monkeypatch.setattr(Script, "reset", lambda env, key: traced.append(key) or reset(env, key))
    jax.eval_shape(lambda key: evaluate(RANDOM, untrained(config, RANDOM), config, HYPERS, key=key), KEY)
    assert len(traced) == 1


@pytest.mark.parametrize("bin", [7, 8])
def test_what_the_reward_head_expects_is_summed_over_the_same_rows(config, bin):
    """A head that is sure of one bin, whatever it sees: the middle one is 0, the next one symexp(20 / 7)."""
    agent, where = untrained(config, RANDOM), lambda agent: agent.model.reward.head.out
    sure = jnp.full(config.model.bins, -1e4).at[bin].set(1e4)
    out = eqx.tree_at(lambda out: (out.weight, out.bias), where(agent), (jnp.zeros_like(where(agent).weight), sure))
    agent = eqx.tree_at(where, agent, out)
    config = dataclasses.replace(config, mode="mix", eval_episodes=E)
    played = jax.jit(lambda agent, key: evaluate(RANDOM, agent, config, HYPERS, key=key))(agent, KEY)
    assert config.model.bins == 15 and len(set(played.length.tolist())) > 3
    np.testing.assert_allclose(played.expected_score, np.expm1((bin - 7) * 20 / 7) * played.length, rtol=1e-5)


@pytest.mark.parametrize("cut", [1, 3])
def test_eval_steps_cut_episodes_and_count_what_they_have(config, cut):
    np.testing.assert_array_equal(play(RANDOM, config, eval_steps=cut), by_hand(first_steps(RANDOM), cut))


def test_more_eval_steps_than_an_episode_has_cut_nothing(config):
    np.testing.assert_array_equal(play(RANDOM, config, eval_steps=50), by_hand(first_steps(RANDOM)))


def test_the_environments_time_limit_bounds_what_never_ends(config):
    endless = Script(10**6, 10**6, time_limit=5, by_action=False)
    np.testing.assert_array_equal(play(endless, config), by_hand([10**6] * E, 5))


def test_another_key_plays_other_episodes(config):
    assert (play(RANDOM, config)[1] != play(RANDOM, config, key=jr.key(4))[1]).any()


# ---- the policy ----------------------------------------------------------------------------------------------------

STEPS = 20
PAID = Script(STEPS, STEPS, time_limit=STEPS, by_action=True)


def leaning(config, probs):
    """An agent whose tasker takes action 0 with the given probability, and whose explorer never does."""
    config = dataclasses.replace(config, mode="mix")
    agent = arbitrary(lambda: Agent(config, PAID.obs_space, PAID.action_space, key=jr.key(0)))
    where = lambda a: [x for b in (a.tasker, a.explorer) for x in (b.actor.head.out.weight, b.actor.head.out.bias)]
    weight = jnp.zeros_like(agent.tasker.actor.head.out.weight)
    biases = jnp.log(jnp.array([probs, 1 - probs])), jnp.array([-50.0, 50.0])
    return eqx.tree_at(where, agent, [weight, biases[0], weight, biases[1]])


def test_greedy_evaluation_takes_the_taskers_likeliest_action(config):
    scores, lengths = play(PAID, config, leaning(config, 0.6), eval_greedy=True)
    np.testing.assert_array_equal(scores, STEPS)
    np.testing.assert_array_equal(lengths, STEPS + 1)


def test_otherwise_it_samples_the_tasker(config):
    scores, lengths = play(PAID, config, leaning(config, 0.6), eval_greedy=False)
    spread = np.sqrt(0.6 * 0.4 / (STEPS * E))
    assert abs(scores.mean() / STEPS - 0.6) < 4 * spread
    assert len(set(scores)) > 1
    np.testing.assert_array_equal(lengths, STEPS + 1)


def test_catch_pays_once_in_ten_rows(config, env):
    scores, lengths = play(env, config)
    np.testing.assert_array_equal(np.abs(scores), 1)
    np.testing.assert_array_equal(lengths, 10)


@pytest.mark.parametrize(
    ("time_limit", "settings", "episodes"),
    [(1_000, {}, 64), (1_001, {}, 63), (10_000, {}, 6), (100_000, {}, 1), (10_000, {"eval_steps": 5_000}, 64)],
)
def test_where_the_time_limit_is_long_fewer_episodes_are_played(config, time_limit, settings, episodes):
    env = Script(1, time_limit, time_limit, by_action=False)
    config = dataclasses.replace(config, mode="mix", eval_episodes=64, **settings)
    assert eval_episode_count(env, config) == episodes
    agent = jax.eval_shape(lambda: Agent(config, OBS, ACTIONS, key=KEY))
    scores, lengths, _ = jax.eval_shape(lambda agent: evaluate(env, agent, config, HYPERS, key=KEY), agent)
    assert scores.shape == lengths.shape == (episodes,)
