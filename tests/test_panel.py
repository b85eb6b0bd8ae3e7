"""The panel: its command lines, its numbers against hand-made runs, and the environments that it brings."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from envs import env_step, registry
from envs.errors import EnvError
from stages.cli.parse import parse
from stages.results.read import Result

sys.path.insert(0, str(Path(__file__).parents[1] / "docs" / "experiments"))  # run by hand, so not a package

import episodes
import panel


def result(**metrics: list[list[float]]) -> Result:
    """A run of two seeds and three log points."""
    arrays = {name.replace("__", "/"): np.array(values, np.float64) for name, values in metrics.items()}
    return Result(Path(), "made up", {}, {}, [0, 1], np.array([10, 20, 30]), ["random"] * 3, arrays)


def test_every_command_line_is_accepted():
    runs = [run for run in panel.planned("full", list(panel.SETTINGS), list(panel.TASKS)) if not run.first_seed]
    assert {run.mode for run in runs} == set(panel.MODES)
    for run in runs:
        asked = parse([*run.words().split(), "--logdir", "unused"])
        assert (asked.config.mode, asked.config.steps, asked.seeds) == (run.mode, run.rows, panel.SEEDS)


def test_fast_form_is_a_part_of_the_panel():
    for task in panel.TASKS.values():
        assert set(task.fast) <= set(task.modes)
    assert 7 <= sum(bool(task.fast) for task in panel.TASKS.values()) <= len(panel.TASKS) / 2


def test_full_form_has_every_task_with_eight_seeds_and_a_control():
    runs = panel.planned("full", ["default"], list(panel.TASKS))
    for name, task in panel.TASKS.items():
        for mode in (*task.modes, "random"):
            seeds = [run.first_seed for run in runs if (run.task, run.mode) == (name, mode)]
            assert seeds == [0, panel.SEEDS]
    assert len({run.folder(Path()) for run in runs}) == len(runs)


def test_normalised_score_by_hand():
    # From -200 at random to -118 at best: half of the way at -159.
    np.testing.assert_allclose(panel.normalised(np.array([-200.0, -159.0, -118.0]), -200.0, -118.0), [0, 0.5, 1])


def test_random_score_weighs_log_points_by_their_episodes():
    none = float("nan")
    run = result(episode__count=[[1, 3, 0], [0, 0, 4]], episode__score=[[8, 4, none], [none, none, 1]])
    assert panel.random_score([run]) == pytest.approx((8 + 3 * 4 + 4 * 1) / 8)


def test_goals_and_the_first_of_them_by_hand():
    none = float("nan")
    run = result(
        episode__count=[[2, 2, 1], [1, 1, 1]],
        episode__score=[[0.5, 0, 1], [0, 0, 0]],
        novelty__goal_episode=[[none, 3, 3], [none, none, none]],
    )
    np.testing.assert_allclose(panel.goals_per_1000_rows([run], 1.0), [1000 * 2 / 30, 0])
    np.testing.assert_allclose(panel.first_goal_rows([run, run]), [20, np.inf, 20, np.inf])


def test_panel_number_is_the_mean_over_runs_of_the_mean_over_seeds():
    assert panel.stratified([np.zeros(4), np.ones(8)]).startswith("0.500 (0.500 to 0.500)")


@pytest.mark.parametrize("reward", [0.01, 1.0, 1e4])
def test_discrete_matching_pays_for_the_symbol_that_is_shown(reward):
    env = registry.make("docs.experiments.matching:discrete", {"reward": reward})
    state, timestep = env.reset(jr.key(0))
    shown = int(np.argmax(timestep.obs))
    assert float(env.step(jr.key(1), state, np.int32(shown))[1].reward) == pytest.approx(reward)
    assert float(env.step(jr.key(1), state, np.int32((shown + 1) % 4))[1].reward) == 0.0


def test_continuous_matching_pays_for_closeness():
    env = registry.make("docs.experiments.matching:continuous")
    state, timestep = env.reset(jr.key(0))
    inward = -np.sign(timestep.obs)  # so that the action stays within its bounds
    for offset, paid in (([0, 0], 1.0), ([0.3, 0.4], 0.5), ([0.9, 0.8], 0.0)):
        action = timestep.obs + inward * np.array(offset, np.float32)
        assert float(env.step(jr.key(1), state, action)[1].reward) == pytest.approx(paid, abs=1e-6)


def test_matching_ends_after_ten_rounds():
    env = registry.make("docs.experiments.matching:discrete")
    state, timestep = env.reset(jr.key(0))
    ends = []
    for row in range(10):
        state, timestep = env.step(jr.key(row), state, np.int32(0))
        ends.append(bool(timestep.is_last))
    assert ends == [False] * 9 + [True]


# ---- MiniGrid ------------------------------------------------------------------------------------------------------

MINIGRID = "docs.experiments.minigrid:navix"
LEFT, RIGHT, FORWARD, PICKUP, DROP, TOGGLE, DONE = range(7)


@pytest.fixture(scope="module")
def minigrid():
    pytest.importorskip("navix")
    from docs.experiments import minigrid

    return minigrid


def picture(minigrid, timestep):
    """The view as names of kinds, [7][7]."""
    kinds = np.asarray(timestep.obs).reshape(7, 7, len(minigrid.KINDS))
    assert (kinds.sum(-1) == 1).all()
    return np.array(minigrid.KINDS)[kinds.argmax(-1)]


def test_minigrid_view_of_a_closed_room(minigrid):
    env = registry.make(MINIGRID, {"id": "Empty-8x8"})
    _, timestep = env.reset(jr.key(0))  # at the upper left, facing right: walls on the left and six cells away
    view = picture(minigrid, timestep)
    assert env.obs_space.shape == (392,)
    assert (view[:, :2] == "unseen").all()
    assert (view[:, 2] == "wall").all()
    assert (view[0, 2:] == "wall").all() and (view[0, :2] == "unseen").all()
    assert (view[1:6, 3:] == "floor").all()


def minigrid_sight(clear):
    """MiniGrid's own loops: rows from near to far, in each to the right and then to the left."""
    seen = np.zeros((7, 7), bool)
    seen[6, 3] = True
    for row in range(6, -1, -1):
        for columns, side in ((range(6), 1), (range(6, 0, -1), -1)):
            for column in columns:
                if seen[row, column] and clear[row, column]:
                    seen[row, column + side] = True
                    if row:
                        seen[row - 1, [column, column + side]] = True
    return seen


def test_minigrid_sight_equals_its_loops(minigrid):
    rng = np.random.default_rng(0)
    maps = rng.random((200, 7, 7)) < rng.uniform(0.3, 1, (200, 1, 1))
    maps[:, 6, 3] = True
    seen = jax.jit(jax.vmap(minigrid.visible))(maps)
    np.testing.assert_array_equal(seen, [minigrid_sight(clear) for clear in maps])


def test_minigrid_key_door_and_goal(minigrid):
    """A scripted way through DoorKey-5x5, by what navix's state says of where things are."""
    env = registry.make(MINIGRID, {"id": "DoorKey-5x5"})
    step = jax.jit(env.step)
    state, timestep = env.reset(jr.key(0))
    assert env.time_limit == 250
    stage = lambda state: int(env.states.index(state)) // (4 * 25)
    position = lambda state, name: np.asarray(state.entities[name].position[0])

    def face(state, direction):
        while int(state.entities["player"].direction[0]) != direction:
            state, _ = step(jr.key(0), state, np.int32(RIGHT))
        return state

    def act(state, direction, action):
        return step(jr.key(0), face(state, direction), np.int32(action))

    key, door = position(state, "key"), position(state, "door")
    assert stage(state) == 0 and key[1] == 1 and door[1] == 2
    while position(state, "player")[0] < key[0] - 1:  # down the first column, facing the key
        state, timestep = act(state, 1, FORWARD)
    assert picture(minigrid, step(jr.key(0), face(state, 1), np.int32(DONE))[1])[5, 3] == "key"
    state, timestep = act(state, 1, PICKUP)
    assert stage(state) == 1
    assert picture(minigrid, timestep)[6, 3] == "key"  # what is carried shows in the agent's cell
    while (down := door[0] - position(state, "player")[0]) != 0:
        state, timestep = act(state, 1 if down > 0 else 3, FORWARD)
    state, timestep = act(state, 0, DONE)
    assert picture(minigrid, timestep)[5, 3] == "locked door"
    state, timestep = act(state, 0, TOGGLE)
    assert picture(minigrid, timestep)[5, 3] == "open door"
    assert stage(state) == 2 and float(timestep.reward) == 0.0
    for direction, count in ((0, 2), (1, 3 - door[0])):
        for _ in range(count):
            state, timestep = act(state, direction, FORWARD)
    assert float(timestep.reward) == 1.0 and bool(timestep.is_last) and bool(timestep.is_terminal)


@pytest.mark.parametrize("penalty", [0.0, 0.9])
def test_minigrid_reward_with_and_without_a_penalty_for_time(minigrid, penalty):
    env = registry.make(MINIGRID, {"id": "Empty-8x8", "penalty": penalty})
    state, timestep = env.reset(jr.key(0))
    for action in [FORWARD] * 5 + [RIGHT] + [FORWARD] * 5:
        assert not timestep.is_last
        state, timestep = env.step(jr.key(0), state, np.int32(action))
    assert float(timestep.reward) == pytest.approx(1 - penalty * 11 / 256)


def test_minigrid_time_limit_ends_an_episode_without_a_terminal_state(minigrid):
    env = registry.make(MINIGRID, {"id": "DoorKey-6x6", "time_limit": 3})
    carry = env.reset(jr.key(0))
    rows = []
    for _ in range(5):
        carry = env_step(env, jr.key(1), *carry, jnp.asarray(DONE))
        rows.append((bool(carry[1].is_first), bool(carry[1].is_last), bool(carry[1].is_terminal)))
    assert rows == [(False, False, False)] * 2 + [(False, True, False), (True, False, False), (False, False, False)]


@pytest.mark.parametrize("name, count", [("FourRooms", 286), ("KeyCorridorS3R1", 40), ("DoorKey-6x6", 124)])
def test_minigrid_states_are_in_range(minigrid, name, count):
    env = registry.make(MINIGRID, {"id": name})
    assert env.states.count == count

    def body(carry, key):
        carry = env_step(env, key, *carry, jr.randint(key, (), 0, 7))
        return carry, (env.states.index(carry[0]), carry[1].is_last)

    indices, ends = jax.jit(lambda key: jax.lax.scan(body, env.reset(key), jr.split(key, 2000))[1])(jr.key(0))
    visited = np.unique(np.asarray(indices)[~np.asarray(ends)])
    assert visited.min() >= 0 and visited.max() < env.states.size and 20 < visited.size <= env.states.count


def test_minigrid_refuses_another_id(minigrid):
    del minigrid
    with pytest.raises(EnvError, match="DoorKey-9x9"):
        registry.make(MINIGRID, {"id": "DoorKey-9x9"})


def test_distinct_states_of_episodes_by_hand(monkeypatch):
    monkeypatch.setattr(episodes, "BEGINNING", 3)
    states = np.array([4, 4, 5, 4, 6, -1, 7, -1, 2, 2, 2, -1, 9, 9])  # the last one has not ended
    assert episodes.distinct_states(states) == [(3, 2), (1, 1), (1, 1)]
    assert episodes.distinct_states(np.array([-1, -1, 3, 1])) == []
