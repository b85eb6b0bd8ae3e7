"""Countable states: indices of known states, how many can be reached, goals; and a mapping of each seed."""

import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import envs
from envs import registry
from envs.states import SPACES, flood


@pytest.mark.parametrize(
    ("name", "settings", "size", "count"),
    [
        ("DeepSea-bsuite", {"size": 5}, 25, 15),
        ("DeepSea-bsuite", {"size": 5, "max_steps_in_episode": 3}, 25, 6),
        ("FourRooms-misc", {}, 169, 103),  # 104 cells, one of which is the goal
        ("FourRooms-misc", {"use_visual_obs": True}, 169, 103),
        ("FourRooms-misc", {"resample_goal_pos": True}, 169, 104),
        ("FrozenLake-misc", {}, 16, 11),  # 4 holes and the goal
        ("FrozenLake-misc", {"map_name": "8x8"}, 64, 53),  # 10 holes and the goal
        ("MetaMaze-misc", {}, 121, 65),  # 5 rows of 9 cells, and 4 of 5 between posts
        ("CartPole-v1", {}, 162, 162),
        ("MountainCar-v0", {}, 252, 200),
        ("MountainCar-v0", {"gravity": 0.002}, 252, 252),
        ("MountainCarContinuous-v0", {}, 252, 211),
        ("Pendulum-v1", {}, 384, 370),
        ("Acrobot-v1", {}, 144, 130),
    ],
)
def test_how_many_states_there_are(name, settings, size, count):
    states = envs.make(name, settings).states
    assert (states.size, states.count) == (size, count)
    assert states.grid in ((0, 0),) or states.grid[0] * states.grid[1] == size


def test_every_other_environment_has_none():
    for name in registry.ids():
        assert (envs.make(name).states is not None) == (name in SPACES)


def walk(env, steps, seed=0, many=32):
    """Environment states and timesteps [many, steps, ...] under random actions, the rows at which actions are taken."""

    def one(key):
        def body(carry, key):
            key_action, key_step = jr.split(key)
            action = jr.randint(key_action, (), 0, env.action_space.size)
            if env.action_space.kind == "continuous":
                action = jr.choice(key_action, jnp.array([-1.0, 1.0]), (env.action_space.size,))
            return envs.env_step(env, key_step, *carry, action), carry

        key_reset, key_scan = jr.split(key)
        return jax.lax.scan(body, env.reset(key_reset), jr.split(key_scan, steps))[1]

    return jax.device_get(jax.jit(jax.vmap(one))(jr.split(jr.key(seed), many)))


@pytest.mark.parametrize("name", sorted(SPACES))
def test_indices_lie_in_their_range_and_no_more_are_met_than_there_are(name):
    env = envs.make(name)
    state, rows = walk(env, 300)
    index = np.asarray(jax.vmap(jax.vmap(env.states.index))(state))
    assert index.dtype == np.int32 and index.min() >= 0 and index.max() < env.states.size
    met = set(index[~rows.is_last].tolist())
    assert len(met) <= env.states.count and not met & set(env.states.walls)
    assert len(met) >= {"Acrobot-v1": 5, "MountainCar-v0": 10, "MountainCarContinuous-v0": 10}.get(name, 11)


def test_deep_sea_counts_the_cells_that_its_board_shows():
    env = envs.make("DeepSea-bsuite", {"size": 4})
    state, rows = walk(env, 200)
    index = np.asarray(jax.vmap(jax.vmap(env.states.index))(state))
    acting = ~rows.is_last
    np.testing.assert_array_equal(index[acting], rows.obs.reshape(*acting.shape, 16)[acting].argmax(-1))
    assert not rows.obs[rows.is_last].any(), "below the last row the board is empty: no state"
    triangle = {4 * row + column for row in range(4) for column in range(row + 1)}
    assert set(index[acting].tolist()) == triangle and set(env.states.walls) == set(range(16)) - triangle


def test_mazes_count_the_cells_that_the_observation_tells():
    for settings, cell in (
        ({}, lambda obs: 13 * obs[..., 0] + obs[..., 1]),
        ({"use_visual_obs": True}, lambda obs: obs[..., 1].swapaxes(-1, -2).reshape(*obs.shape[:-3], -1).argmax(-1)),
    ):
        env = envs.make("FourRooms-misc", settings)
        state, rows = walk(env, 100, many=4)
        index = np.asarray(jax.vmap(jax.vmap(env.states.index))(state))
        np.testing.assert_array_equal(index, cell(rows.obs))
    lake = envs.make("FrozenLake-misc")
    state, rows = walk(lake, 100, many=4)
    np.testing.assert_array_equal(jax.vmap(jax.vmap(lake.states.index))(state), rows.obs)


@pytest.mark.parametrize(
    ("name", "fields", "index"),
    [
        ("MountainCar-v0", {"position": -1.2, "velocity": -0.07}, 0),
        ("MountainCar-v0", {"position": -0.45, "velocity": 0.001}, 7 * 14 + 7),
        ("MountainCar-v0", {"position": 0.6, "velocity": 0.07}, 251),
        ("Pendulum-v1", {"theta": 0.01, "theta_dot": 0.5}, 12 * 16 + 8),
        ("Pendulum-v1", {"theta": 0.01 + 4 * np.pi, "theta_dot": -8.0}, 12 * 16),  # angles are not wrapped by gymnax
        ("Acrobot-v1", {"joint_angle1": -3.1, "joint_angle2": 0.1}, 6),
        ("CartPole-v1", {"x": -2.0, "x_dot": -1.0, "theta": -0.2, "theta_dot": -1.0}, 0),
        ("CartPole-v1", {"x": 0.0, "x_dot": 0.0, "theta": 0.001, "theta_dot": 0.0}, ((1 * 3 + 1) * 6 + 3) * 3 + 1),
        ("CartPole-v1", {"x": 2.0, "x_dot": 1.0, "theta": 0.2, "theta_dot": 1.0}, 161),
    ],
)
def test_bins_by_hand(name, fields, index):
    env = envs.make(name)
    state = env.reset(jr.key(0))[0].replace(**{k: jnp.float32(v) for k, v in fields.items()})
    assert int(env.states.index(state)) == index


def test_mountain_cars_bins_by_searching_its_physics():
    """Breadth first in plain numpy from every start, a state kept for each of 14 x 14 parts of a bin."""
    position, velocity = np.linspace(-0.6, -0.4, 4000), np.zeros(4000)
    bins = lambda parts: (
        np.clip(np.floor((position + 1.2) / 1.8 * 18 * parts), 0, 18 * parts - 1) * 14 * parts
        + np.clip(np.floor((velocity + 0.07) / 0.14 * 14 * parts), 0, 14 * parts - 1)
    ).astype(int)
    seen, met = np.zeros(252 * 20**2, bool), set(bins(1))
    for _ in range(199):
        force = np.repeat([-0.001, 0.0, 0.001], position.size)
        position, velocity = np.tile(position, 3), np.tile(velocity, 3)
        velocity = np.clip(velocity + force - 0.0025 * np.cos(3 * position), -0.07, 0.07)
        position = np.clip(position + velocity, -1.2, 0.6)
        velocity = np.where((position == -1.2) & (velocity < 0), 0, velocity)
        on = ~((position >= 0.5) & (velocity >= 0))
        position, velocity = position[on], velocity[on]
        fine, first = np.unique(bins(20), return_index=True)
        first = first[~seen[fine]]
        seen[fine] = True
        position, velocity = position[first], velocity[first]
        met |= set(bins(1))
    assert len(met) == envs.make("MountainCar-v0").states.count


def test_flood_stops_at_walls_and_borders():
    free = np.array([[1, 1, 0, 1], [0, 1, 0, 1], [1, 0, 1, 1]], bool)
    np.testing.assert_array_equal(flood(free, (0, 0)), [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]])


def test_goals():
    goals = {name: env.goal for name in registry.ids() if (env := envs.make(name)).goal is not None}
    assert goals == {
        "DeepSea-bsuite": 0.5, "MountainCar-v0": -200, "MountainCarContinuous-v0": 0, "Acrobot-v1": -500,
        "FourRooms-misc": 0, "FrozenLake-misc": 0, "MetaMaze-misc": 0,
    }  # fmt: skip
    assert envs.make("DeepSea-bsuite", {"deterministic": False}).goal is None
    assert envs.make("MountainCar-v0", {"max_steps_in_episode": 300}).goal == -300


# ---- parameters that are drawn once for a seed ----------------------------------------------------------------------


def test_an_environment_without_parameters_is_itself(env):
    assert env.sample_params(jr.key(0)) is None and env.with_params(None) is env


def test_each_key_has_a_mapping_that_decides_which_action_goes_right():
    sea = envs.make("DeepSea-bsuite", {"size": 6, "action_map_per_seed": "true"})
    mapping = sea.sample_params(jr.key(3))
    chex.assert_shape(mapping, (6, 6))
    assert (mapping != sea.sample_params(jr.key(4))).any()
    np.testing.assert_array_equal(mapping, sea.sample_params(jr.key(3)))
    bound = sea.with_params(mapping)
    for episode in range(2):  # of other keys: the mapping stays
        state, timestep = bound.reset(jr.key(episode))
        for cell in range(6):
            assert timestep.obs[cell, cell]
            state, timestep = bound.step(jr.key(9), state, mapping[cell, cell])
        assert timestep.is_terminal and float(timestep.reward) == pytest.approx(1 - 0.01 / 6)
    with pytest.raises(AssertionError, match="with_params"):
        sea.reset(jr.key(0))


def test_mappings_are_fair():
    sea = envs.make("DeepSea-bsuite", {"size": 8, "action_map_per_seed": True})
    mappings = np.asarray(jax.vmap(sea.sample_params)(jr.split(jr.key(0), 400)))
    assert set(np.unique(mappings)) == {0, 1} and np.abs(mappings.mean(0) - 0.5).max() < 0.12


def test_it_is_off_unless_asked_for():
    off = envs.make("DeepSea-bsuite", {"action_map_per_seed": "no"})
    assert off.sample_params(jr.key(0)) is None
