"""Other suites through jax-envelope: navix against itself stepped by hand and tables by hand; settings; error lines.

navix and jax-envelope are in the extra `navix`; what needs them is skipped without. No other suite is needed.
"""

import dataclasses
import importlib.util
import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import envs
from envs import envelope_suite
from tests.played import one_line, play

needs_navix = pytest.mark.skipif(
    sys.version_info < (3, 12) or not all(map(importlib.util.find_spec, ("envelope", "navix"))),
    reason="needs the extra navix",
)
LEFT, RIGHT, FORWARD, PICKUP, DROP, TOGGLE = range(6)
EMPTY, DOOR_KEY = "navix::Navix-Empty-5x5-v0", "navix::Navix-DoorKey-5x5-v0"


@needs_navix
def test_a_walk_to_the_goal_by_hand():
    """From (1, 1), facing east, to the goal in (3, 3): 5 steps; then another episode."""
    env = envs.make(EMPTY)
    assert env.obs_space == envs.ObsSpace((5, 5, 3), "categorical", 11)
    assert env.action_space == envs.ActionSpace("discrete", 7)
    assert (env.time_limit, env.goal, env.name) == (100, 0.0, EMPTY)  # 4 * 5 * 5
    rows = play(env, jnp.array([FORWARD, FORWARD, RIGHT, FORWARD, FORWARD, LEFT, FORWARD]), jr.key(0))
    np.testing.assert_array_equal(rows.reward, [0, 0, 0, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(rows.is_first, [1, 0, 0, 0, 0, 0, 1, 0])
    np.testing.assert_array_equal(rows.is_last, [0, 0, 0, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(rows.is_terminal, rows.is_last)
    np.testing.assert_array_equal(rows.events["goal_reach"], rows.reward == 1)
    board = np.full((5, 5, 3), (2, 5, 0))  # walls are 2, grey; the floor is 1; the goal 8, green; the agent 10
    board[1:4, 1:4], board[3, 3] = (1, 0, 0), (8, 1, 0)
    for row, (cell, direction) in enumerate([((1, 1), 0), ((1, 2), 0), ((1, 3), 0), ((1, 3), 1), ((2, 3), 1)]):
        seen = board.copy()
        seen[cell] = 10, 0, direction
        np.testing.assert_array_equal(rows.obs[row], seen)
    np.testing.assert_array_equal(rows.obs[6], rows.obs[0])


@needs_navix
def test_a_time_limit_is_no_end_and_late_goals_can_pay_less():
    short = envs.make(EMPTY, {"max_steps_in_episode": "3"})
    rows = play(short, jnp.array([FORWARD, FORWARD, LEFT, FORWARD]), jr.key(0))
    np.testing.assert_array_equal(rows.is_last, [0, 0, 0, 1, 0])
    assert short.time_limit == 3 and not rows.is_terminal.any()
    late = envs.make(EMPTY, {"penalty_coeff": "0.9", "max_steps_in_episode": 50})
    rows = play(late, jnp.array([FORWARD, FORWARD, RIGHT, FORWARD, FORWARD]), jr.key(0))
    np.testing.assert_allclose(rows.reward[5], 1 - 0.9 * 5 / 50, rtol=1e-6)  # MiniGrid's reward


@needs_navix
@pytest.mark.parametrize("observation", ["symbolic", "symbolic_first_person"])
def test_navix_agrees_step_by_step(observation):
    """navix's own reset and step from the same key, 60 random actions of DoorKey, until an episode ends."""
    import navix
    from navix import observations

    env = envs.make(DOOR_KEY, {"observation_fn": observation})
    actions = jr.randint(jr.key(5), (60,), 0, 7)
    theirs = navix.make("Navix-DoorKey-5x5-v0", observation_fn=getattr(observations, observation))

    def body(carry, action):
        state, timestep = env.step(jr.key(9), carry[0], action)  # the key is not used: states carry their own
        witness = theirs.step(carry[1], action)
        return (state, witness), (timestep, witness.observation, witness.reward, witness.step_type)

    first = env.reset(jr.key(1))
    begun = theirs.reset(jr.key(1))
    np.testing.assert_array_equal(first[1].obs, begun.observation)
    _, (rows, obs, reward, step_type) = jax.jit(lambda c: jax.lax.scan(body, c, actions))((first[0], begun))
    until = int(np.argmax(np.append(step_type, 1) > 0)) + 1
    assert until > 30 and rows.obs.max() <= 10
    np.testing.assert_array_equal(rows.obs[:until], obs[:until])
    np.testing.assert_array_equal(rows.reward[:until], reward[:until])
    np.testing.assert_array_equal(rows.is_last[:until], step_type[:until] > 0)
    np.testing.assert_array_equal(rows.is_terminal[:until], step_type[:until] == 2)


@needs_navix
def test_states_are_cells_or_cell_direction_and_key():
    empty = envs.make(EMPTY).states
    assert empty is not None and (empty.size, empty.count, empty.grid) == (25, 8, (5, 5))
    env = envs.make(DOOR_KEY)
    states = env.states
    assert states is not None and (states.size, states.count) == (3 * 4 * 25, 4 * (2 * 3 * 1 + 9 - 1))
    state, _ = env.reset(jr.key(0))
    assert int(states.index(state)) == 6  # (1, 1), facing east, the key lies
    turned, _ = env.step(jr.key(0), state, jnp.array(RIGHT))
    assert int(states.index(turned)) == 25 + 6
    gone = _with(turned, key=-1)
    assert int(states.index(_with(gone, pocket=3))) == (4 + 1) * 25 + 6
    assert int(states.index(gone)) == (8 + 1) * 25 + 6
    pictures = [leaf for leaf in jax.tree.leaves(state) if getattr(leaf, "size", 0) > 1000]
    assert not pictures  # what rendering starts from stays out


def _with(state, key=None, pocket=None):
    """A state of DoorKey with the key out of the world, or with something carried."""
    entities = dict(state.unwrapped.state.entities)
    if key is not None:
        moved = jnp.full_like(entities["key"].position, key)
        entities["key"] = entities["key"].replace(position=moved)
    if pocket is not None:
        entities["player"] = entities["player"].replace(pocket=jnp.full_like(entities["player"].pocket, pocket))
    inner = state.inner_state
    return dataclasses.replace(state, inner_state=inner.replace(state=inner.state.replace(entities=entities)))


@needs_navix
def test_it_trains_end_to_end():
    from stages import library

    config, hypers = library.configure("tiny", steps=150, envs=2, eval_episodes=2, eval_steps=20, model={"layers": 1})
    env = envs.make(EMPTY, {"max_steps_in_episode": 20})
    training = library.train(config, hypers, seeds=1, env=env)
    assert np.isfinite(training.metrics["train/loss/recon"]).any()
    assert training.score.shape == (1,) and 0 <= training.score[0] <= 1
    reached, scores = training.metrics["event/goal_reach"], training.metrics["episode/score"]
    np.testing.assert_allclose(reached, scores, rtol=1e-6)  # 1 at the goal, and nothing else pays


@needs_navix
@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("navix::Navix-Doorkey-5x5", {}, "no environment is named 'navix::Navix-Doorkey-5x5'; did you mean navix::Nav"),
        (
            EMPTY,
            {"gama": 1},
            f"{EMPTY} has no setting 'gama'; it accepts: max_steps_in_episode (int, 100), observation",
        ),
        (EMPTY, {"penalty_coeff": "much"}, "penalty_coeff must be a finite number, not 'much'"),
        (EMPTY, {"max_steps": 3}, "has no setting 'max_steps'"),
        (EMPTY, {"observation_fn": "none"}, "observation_fn must be one of symbolic, symbolic_first_person, "),
        (EMPTY, {"rescale_observations": "true"}, "its observations are no real numbers with finite bounds"),
    ],
)
def test_navix_error_lines(name, overrides, words):
    with pytest.raises(envs.EnvError) as info:
        envs.make(name, overrides)
    assert words in one_line(info)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("navx::Navix-Empty-5x5-v0", "navx::Navix-Empty-5x5-v0: no suite is named 'navx'; did you mean navix or"),
        ("::", "it is one of navix, craftax, mujoco_playground, brax, jumanji"),
        ("gymnax::CartPole-v1", "gymnax's ids are given without a suite: 'CartPole-v1'"),
    ],
)
def test_an_unknown_suite_finds_its_neighbours(name, words):
    with pytest.raises(envs.UnknownEnvironment) as info:
        envs.make(name)
    assert words in one_line(info)


def test_a_missing_extra_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(envelope_suite.sys, "version_info", (3, 12, 1))
    monkeypatch.setattr(envelope_suite.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(envs.UnavailableEnvironment) as info:
        envs.make("mujoco_playground::CartpoleBalance")
    assert "the extra 'playground', which is not installed: pip install -e '.[playground]'" in one_line(info)
    monkeypatch.setattr(envelope_suite.sys, "version_info", (3, 11, 9))
    with pytest.raises(envs.UnavailableEnvironment) as info:
        envs.make("brax::ant")
    assert "needs Python 3.12 or newer, and this is 3.11.9: make an environment with it, then pip" in one_line(info)
