"""collect.py: rows against environments stepped by hand, the latent that each row carries, and episode sums.

Axes: S steps, N environments, A actions.
"""

import dataclasses
import functools

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from envs import registry
from envs.environment import ActionSpace, ObsSpace
from stages import rssm
from stages.agent import Agent, collector
from stages.collect import act, collect, env_action, init_actor_state, take_turns
from stages.config import Config, Hypers
from stages.rssm import Latent, initial_latent
from stages.world_model import WorldModel, action_vector
from tests.conftest import SMALL, arbitrary

S, N, HYPERS = 25, 2, Hypers(policy_unimix=0.2)


def before(actor_state):
    """What an agent acts on: its state and action at the row before, and the row that it sees."""
    return actor_state.latent, actor_state.action, actor_state.timestep.obs, actor_state.timestep.is_first


class Case:
    """S steps of N environments: the actors before each step, the rows [S, N, ...], and the episodes of each step."""

    def __init__(self, config, env):
        self.env, self.config = env, config
        self.agent = arbitrary(lambda: Agent(config, env.obs_space, env.action_space, key=jr.key(0)))
        self.key_start, self.keys = jr.key(1), jr.split(jr.key(2), S)
        step = jax.jit(lambda agent, actor_state, key: collect(env, agent, agent.tasker, actor_state, HYPERS, key=key))
        actor_state = jax.jit(lambda key: init_actor_state(env, self.agent.model, N, key=key))(self.key_start)
        self.rollouts, rows, self.episodes = [actor_state], [], []
        for key in self.keys:
            actor_state, row, episodes = step(self.agent, actor_state, key)
            self.rollouts.append(actor_state)
            rows.append(row)
            self.episodes.append(episodes)
        self.rows = jax.tree.map(lambda *x: np.stack(x), *rows)


@pytest.fixture(scope="module")
def case(config, env):
    """Catch, whose episodes end by themselves, and a pendulum that a time limit stops after 5 steps."""
    pendulum = registry.make("Pendulum-v1", {"max_steps_in_episode": 5})
    return functools.cache(lambda name: Case(config, {"Catch": env, "Pendulum": pendulum}[name]))


both = pytest.mark.parametrize("name", ["Catch", "Pendulum"])


@both
def test_rows_are_those_of_an_environment_stepped_by_hand(case, name):
    env, rows = case(name).env, case(name).rows
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    for n in range(N):
        state, seen = reset(jr.split(case(name).key_start, N)[n])
        for t in range(S):
            np.testing.assert_allclose(rows.obs[t, n], seen.obs, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(rows.reward[t, n], seen.reward, rtol=1e-5, atol=1e-6)
            for flag in ("is_first", "is_last", "is_terminal"):
                assert getattr(rows, flag)[t, n] == getattr(seen, flag)
            key_step, key_reset = jr.split(jr.split(jr.split(case(name).keys[t])[1], N)[n])
            if seen.is_last:
                state, seen = reset(key_reset)
            else:
                state, seen = step(key_step, state, jnp.asarray(rows.action[t, n]))


def test_catch_by_hand(case):
    """The ball falls a row a step, the paddle goes where the action says, and the last row says who won."""
    rows = case("Catch").rows
    for n in range(N):
        for t in range(S):
            age = t % 10
            board = rows.obs[t, n]
            if age == 0:
                ball, paddle = int(board[0].argmax()), 2
            expected = np.zeros((10, 5), bool)
            expected[age, ball] = expected[9, paddle] = True
            np.testing.assert_array_equal(board, expected)
            assert rows.reward[t, n] == (0 if age < 9 else 1 if ball == paddle else -1)
            assert (rows.is_first[t, n], rows.is_last[t, n], rows.is_terminal[t, n]) == (age == 0, age == 9, age == 9)
            paddle = int(np.clip(paddle + rows.action[t, n] - 1, 0, 4))


def test_a_time_limit_ends_an_episode_without_a_terminal_row(case):
    rows = case("Pendulum").rows
    age = np.arange(S) % 6
    for n in range(N):
        np.testing.assert_array_equal(rows.is_first[:, n], age == 0)
        np.testing.assert_array_equal(rows.is_last[:, n], age == 5)
    assert not rows.is_terminal.any()
    assert (rows.reward[age != 0] < 0).all()


@both
def test_after_a_last_row_comes_a_first_one_without_reward(case, name):
    rows = case(name).rows
    assert rows.is_last.sum() >= 2 * N
    np.testing.assert_array_equal(rows.is_first[1:], rows.is_last[:-1])
    np.testing.assert_array_equal(rows.reward[rows.is_first], 0)
    assert (rows.reward[rows.is_last] != 0).all()


@both
def test_episodes_count_what_their_rows_sum_to(case, name):
    rows = case(name).rows
    for t, episodes in enumerate(case(name).episodes):
        count = score = length = 0.0
        for n in np.flatnonzero(rows.is_last[t]):
            begin = np.flatnonzero(rows.is_first[: t + 1, n])[-1]
            count, score, length = count + 1, score + rows.reward[begin : t + 1, n].sum(), length + t + 1 - begin
        np.testing.assert_allclose([episodes.count, episodes.score, episodes.length], [count, score, length], rtol=1e-5)
        assert episodes.tasker_count is episodes.tasker_score is None  # nobody takes turns
    assert sum(float(e.count) for e in case(name).episodes) == N * (S // (10 if name == "Catch" else 6))


@both
def test_a_row_has_the_latent_and_the_action_that_were_decided(case, name):
    agent, rows = case(name).agent, case(name).rows
    think = jax.jit(
        lambda actor_state, key: act(agent.model, agent.tasker, *before(actor_state), HYPERS, False, key=key)
    )
    for t in range(12):
        latent, action = think(case(name).rollouts[t], jr.split(case(name).keys[t])[0])
        np.testing.assert_allclose(rows.deter[t], latent.deter, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(rows.stoch[t], np.argmax(latent.stoch, -1))
        expected = np.argmax(action, -1) if name == "Catch" else action
        np.testing.assert_allclose(rows.action[t], expected, rtol=1e-4, atol=1e-5)


@both
def test_each_deter_follows_from_the_stored_row_before_it(case, name):
    model, rows, classes = case(name).agent.model, case(name).rows, case(name).config.model.classes
    nothing = Latent(jnp.zeros(rows.deter.shape[-1]), jnp.zeros((rows.stoch.shape[-1], classes)))
    sizes = case(name).config.model
    step = lambda latent, action: rssm.imagine_step(model.rssm, latent, action, jnp.zeros(sizes.stoch), HYPERS.unimix)
    follow = jax.jit(lambda latent, action: step(latent, action).deter)
    for n in range(N):
        for t in range(S):
            latent, action = nothing, jnp.zeros(case(name).env.action_space.size)
            if not rows.is_first[t, n]:
                latent = Latent(jnp.asarray(rows.deter[t - 1, n]), jnp.eye(classes)[rows.stoch[t - 1, n]])
                taken = rows.action[t - 1, n]
                action = jnp.eye(3)[taken] if name == "Catch" else jnp.asarray(taken)
            np.testing.assert_allclose(rows.deter[t, n], follow(latent, action), rtol=1e-4, atol=1e-5)


@both
@pytest.mark.parametrize("is_first", [True, False])
def test_the_past_is_forgotten_at_a_first_row_and_only_there(case, name, is_first):
    agent, actor_state = case(name).agent, case(name).rollouts[3]
    one = eqx.tree_at(lambda r: r.timestep.is_first, actor_state, jnp.full((N,), is_first))
    latent = Latent(actor_state.latent.deter + 1, jnp.roll(actor_state.latent.stoch, 1, -1))
    other = dataclasses.replace(one, latent=latent, action=actor_state.action + 0.5)
    think = jax.jit(
        lambda actor_state: act(agent.model, agent.tasker, *before(actor_state), HYPERS, False, key=jr.key(5))
    )
    same = (np.asarray(think(one)[0].deter) == think(other)[0].deter).all()
    assert same == is_first


@both
@pytest.mark.parametrize("greedy", [False, True])
def test_acting_samples_the_policy_or_takes_its_mode(case, name, greedy):
    """At the posterior state that it observed, in the model's type."""
    agent, actor_state, key = case(name).agent, case(name).rollouts[3], jr.key(5)
    choose = lambda actor_state: act(agent.model, agent.tasker, *before(actor_state), HYPERS, greedy, key=key)
    latent, action = jax.jit(choose)(actor_state)
    policy = agent.tasker.actor(latent.feat, HYPERS.policy_unimix)
    noise = agent.tasker.actor.noise((N,), key=jr.split(key)[1])
    expected = policy.mode() if greedy else policy.sample(noise)
    np.testing.assert_allclose(action, expected, rtol=1e-4, atol=1e-5)


@both
@pytest.mark.parametrize("greedy", [False, True])
def test_acting_keeps_the_models_type(case, name, greedy):
    env, config = case(name).env, case(name).config
    half = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="bfloat16"))
    agent = arbitrary(lambda: Agent(half, env.obs_space, env.action_space, key=jr.key(0)))
    actor_state = jax.eval_shape(lambda key: init_actor_state(env, agent.model, N, key=key), jr.key(1))
    choose = lambda actor_state: act(agent.model, agent.tasker, *before(actor_state), HYPERS, greedy, key=jr.key(5))
    latent, action = jax.eval_shape(choose, actor_state)
    chex.assert_type([latent.deter, latent.stoch, actor_state.latent.deter], jnp.bfloat16)
    chex.assert_type([action, actor_state.action], jnp.float32)


def test_a_continuous_action_is_not_rounded_to_the_models_type(case):
    """bfloat16 has 8 bits: rounded, an action would be another one than its log-probability is taken of."""
    env, config = case("Pendulum").env, case("Pendulum").config
    half = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="bfloat16"))
    agent = arbitrary(lambda: Agent(half, env.obs_space, env.action_space, key=jr.key(0)))

    @jax.jit
    def action_and_sample(key):
        actor_state = init_actor_state(env, agent.model, N, key=key)
        latent, action = act(agent.model, agent.tasker, *before(actor_state), HYPERS, False, key=key)
        noise = agent.tasker.actor.noise((N,), key=jr.split(key)[1])
        return action, agent.tasker.actor(latent.feat, HYPERS.policy_unimix).sample(noise)

    action, sample = action_and_sample(jr.key(5))
    np.testing.assert_array_equal(action, sample)
    assert (action != action.astype(jnp.bfloat16).astype(jnp.float32)).any()


def test_environments_of_a_seed_differ(case):
    assert (case("Pendulum").rows.obs[:, 0] != case("Pendulum").rows.obs[:, 1]).any(-1).all()


def test_stored_types(case, config):
    sizes, lead = config.model, (S, N)
    for name, obs, action in (("Catch", ((10, 5), bool), ((), np.int32)), ("Pendulum", ((3,), "f"), ((1,), "f"))):
        rows = case(name).rows
        for leaf, (shape, dtype) in ((rows.obs, obs), (rows.action, action)):
            chex.assert_shape(leaf, (*lead, *shape))
            assert leaf.dtype == np.dtype(dtype)
        chex.assert_shape([rows.reward, rows.is_first, rows.is_last, rows.is_terminal], lead)
        chex.assert_shape(rows.deter, (*lead, sizes.deter))
        chex.assert_shape(rows.stoch, (*lead, sizes.stoch))
        assert rows.stoch.dtype == np.uint8
        assert rows.reward.dtype == np.float32


def test_continuous_actions_are_stored_as_they_were_drawn(case):
    action = case("Pendulum").rows.action
    assert len(np.unique(action)) == action.size
    model = case("Pendulum").agent.model
    np.testing.assert_array_equal(env_action(model, jnp.array([0.25, -1.5], jnp.bfloat16)), [0.25, -1.5])
    chex.assert_type(env_action(model, jnp.array([0.25], jnp.bfloat16)), jnp.float32)


@pytest.mark.parametrize("action", range(3))
def test_discrete_actions_are_stored_as_an_index(case, action):
    stored = env_action(case("Catch").agent.model, jnp.eye(3)[action])
    assert stored == action and stored.dtype == jnp.int32


def test_choices_are_stored_as_an_index_each():
    """There and back: indices [2, 2] of 2 and 3 options, and the vectors that the model reads."""
    actions = ActionSpace.of_choices(2, 3)
    model = arbitrary(lambda: WorldModel(Config(model=SMALL), ObsSpace((2,), "real"), actions, key=jr.key(0)))
    vectors = jnp.array([[0.0, 1, 0, 0, 1], [1, 0, 1, 0, 0]])
    stored = env_action(model, vectors)
    assert stored.dtype == jnp.int32
    np.testing.assert_array_equal(stored, [[1, 2], [0, 0]])
    np.testing.assert_array_equal(action_vector(model, stored), vectors)


def test_who_acts_in_each_mode(config, env):
    for mode, who in (("task", "tasker"), ("explore", "explorer")):
        config = dataclasses.replace(config, mode=mode)
        agent = arbitrary(lambda c=config: Agent(c, env.obs_space, env.action_space, key=jr.key(0)))
        assert collector(agent, mode) is getattr(agent, who)


def test_explorer_and_tasker_take_turns_that_last_an_episode(mix_agent):
    """Actors that are sure of an action each: 0 is the explorer's, 2 the tasker's."""
    sure = lambda actor, action: eqx.tree_at(
        lambda a: (a.head.out.weight, a.head.out.bias),
        actor,
        (jnp.zeros_like(actor.head.out.weight), 100.0 * jax.nn.one_hot(action, 3)),
    )
    turns = collector(mix_agent, "mix")
    actors = lambda t: (t.explorer.actor, t.tasker.actor)
    turns = eqx.tree_at(actors, turns, (sure(turns.explorer.actor, 0), sure(turns.tasker.actor, 2)))
    latent = initial_latent(mix_agent.model.rssm, (400,), mix_agent.model.dtype)

    @jax.jit
    def step(is_first, tasker_acts, key):
        hypers = dataclasses.replace(Hypers(), tasker_share=0.3)
        return take_turns(turns, latent, is_first, tasker_acts, hypers, key=key)

    action, acts = step(jnp.ones(400, bool), jnp.zeros(400, bool), jr.key(0))
    np.testing.assert_array_equal(action.argmax(-1), np.where(acts, 2, 0))
    assert abs(acts.mean() - 0.3) < 0.07
    later, still = step(jnp.zeros(400, bool), acts, jr.key(1))
    np.testing.assert_array_equal(still, acts)  # no first row: no new turn
    np.testing.assert_array_equal(later, action)
    _, drawn = step(jnp.arange(400) < 200, acts, jr.key(2))
    np.testing.assert_array_equal(drawn[200:], acts[200:])
    assert (drawn[:200] != acts[:200]).any()


def test_the_taskers_episodes_are_counted_apart(mix_agent, env):
    """In Catch the last of an episode's 10 rows has all of its reward."""
    turns = collector(mix_agent, "mix")

    def step(actor_state, key):
        later, row, episodes = collect(env, mix_agent, turns, actor_state, Hypers(tasker_share=0.5), key=key)
        return later, (row.is_last, row.reward, later.tasker_acts, episodes)

    @jax.jit
    def play(key):
        return jax.lax.scan(step, init_actor_state(env, mix_agent.model, 4, key=key), jr.split(key, 30))[1]

    is_last, reward, acts, episodes = jax.device_get(play(jr.key(3)))
    np.testing.assert_array_equal(episodes.count, 4.0 * (np.arange(30) % 10 == 9))
    np.testing.assert_array_equal(episodes.tasker_count, (is_last & acts).sum(1))
    np.testing.assert_array_equal(episodes.tasker_score, (reward * (is_last & acts)).sum(1))
    assert 0 < episodes.tasker_count.sum() < episodes.count.sum()
