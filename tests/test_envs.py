"""envs/: the row contract on every id, gymnax's own `step` as a witness, episodes by hand, settings, errors.

Axes: T rows, N envs.
"""

import functools
import pathlib
import subprocess
import sys

import equinox as eqx
import gymnax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import envs
from envs import gymnax_spaces
from envs.scales import SCALES, scale_of
from tests.played import one_line, play

N, T = 3, 60
CASES = [*((name, ()) for name in envs.ids()), ("FourRooms-misc", (("use_visual_obs", True),))]
LABELS = ["-".join([name, *(key for key, _ in overrides)]) for name, overrides in CASES]


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_rank_promotion("raise"):
        yield


class Witness(eqx.Module):
    """What gymnax's own `step` says, from the same state, key and action."""

    obs: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array


def sample_action(env, key):
    """Beyond the range on purpose where continuous: the adapter clips."""
    if env.action_space.kind == "discrete":
        return jr.randint(key, (), 0, env.action_space.size)
    return jr.uniform(key, (env.action_space.size,), minval=-1.5, maxval=1.5)


make = functools.cache(envs.make)  # with its defaults


@functools.cache
def witnessed(name, overrides):
    """Rows [N, T] and what gymnax says of each, where the row before was not the last of its episode."""
    env = envs.make(name, dict(overrides)) if overrides else make(name)
    theirs, params = gymnax.make(name, **dict(overrides))
    space = theirs.action_space(params)

    def their_action(action):
        if env.action_space.kind == "discrete":
            return action
        low, high = jnp.broadcast_to(space.low, space.shape), jnp.broadcast_to(space.high, space.shape)
        return low + (jnp.clip(action, -1, 1) + 1) / 2 * (high - low)

    def their_step(state, action, key):
        with jax.numpy_rank_promotion("allow"):
            return theirs.step(key, state, their_action(action), params)

    def body(carry, key):
        key_action, key_advance = jr.split(key)
        action = sample_action(env, key_action)
        _, _, reward, terminated, truncated, info = their_step(carry[0], action, key_advance)
        witness = Witness(info["final_observation"], reward, terminated, truncated)
        carry = envs.env_step(env, key_advance, *carry, action)
        return carry, (carry[1], witness)

    def one(key):
        key_reset, key_scan = jr.split(key)
        first = env.reset(key_reset)
        _, (rows, witness) = jax.lax.scan(body, first, jr.split(key_scan, T))
        return first[1], rows, witness

    return env, jax.device_get(jax.jit(jax.vmap(one))(jr.split(jr.key(0), N)))


@pytest.mark.parametrize(("name", "overrides"), CASES, ids=LABELS)
def test_rows_of_every_environment(name, overrides):
    env, (first, rows, _) = witnessed(name, overrides)
    assert env.name == name
    assert hash(env) == hash(env)
    assert isinstance(env.time_limit, int)
    assert env.time_limit >= 1
    rows = jax.tree.map(lambda a, b: np.concatenate([a[:, None], b], axis=1), first, rows)
    assert rows.obs.shape == (N, T + 1, *env.obs_space.shape)
    assert rows.obs.dtype == env.obs_space.dtype
    assert rows.reward.dtype == np.float32
    assert rows.is_first.dtype == rows.is_last.dtype == rows.is_terminal.dtype == np.bool_
    assert np.isfinite(rows.reward).all()
    assert np.isfinite(rows.obs.astype(np.float32)).all()
    if env.obs_space.kind == "categorical":
        assert rows.obs.min() >= 0
        assert rows.obs.max() < env.obs_space.classes

    assert rows.is_first[:, 0].all()
    np.testing.assert_array_equal(rows.is_first[:, 1:], rows.is_last[:, :-1])
    assert (rows.reward[rows.is_first] == 0).all()
    assert not (rows.is_last & rows.is_first).any()
    assert not (rows.is_terminal & ~rows.is_last).any()


@pytest.mark.parametrize(("name", "overrides"), CASES, ids=LABELS)
def test_gymnax_agrees(name, overrides):
    """Its observation comes uncast: a board with more than 0 and 1 on it would differ from our booleans."""
    _, (_, rows, witness) = witnessed(name, overrides)
    stepped = ~rows.is_first
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    close(rows.obs[stepped].astype(np.float32), witness.obs[stepped].astype(np.float32))
    close(rows.reward[stepped], witness.reward[stepped].astype(np.float32))
    np.testing.assert_array_equal(rows.is_terminal[stepped], witness.terminated[stepped])
    np.testing.assert_array_equal(rows.is_last[stepped], (witness.terminated | witness.truncated)[stepped])


@pytest.mark.parametrize("name", envs.ids())
def test_reset_and_step_have_one_type(name):
    """Same structure, shapes and strong dtypes: each can be a carry. The scans above hold `advance` to it."""
    env = make(name)
    key = jr.key(0)
    action = jax.eval_shape(functools.partial(sample_action, env), key)
    fresh = jax.eval_shape(env.reset, key)
    stepped = jax.eval_shape(env.step, key, fresh[0], action)
    assert all(not leaf.weak_type for leaf in jax.tree.leaves((fresh, stepped)))
    assert eqx.tree_equal(fresh, stepped)


def test_catch_row_by_row():
    """The ball falls 9 rows while the paddle, from column 2, goes right until the wall: 2, 3, 4, 4, ..."""
    rows = play(make("Catch-bsuite"), jnp.full(45, 2), jr.key(2))
    np.testing.assert_array_equal(np.flatnonzero(rows.is_first), [0, 10, 20, 30, 40])
    np.testing.assert_array_equal(np.flatnonzero(rows.is_last), [9, 19, 29, 39])
    np.testing.assert_array_equal(rows.is_terminal, rows.is_last)
    outcomes = set()
    for start in (0, 10, 20, 30):
        (ball,) = np.flatnonzero(rows.obs[start, 0])
        for t in range(10):
            board = np.zeros((10, 5), bool)
            board[t, ball] = board[9, min(2 + t, 4)] = True
            np.testing.assert_array_equal(rows.obs[start + t], board)
        outcome = 1.0 if ball == 4 else -1.0
        np.testing.assert_array_equal(rows.reward[start : start + 10], [0.0] * 9 + [outcome])
        outcomes.add(outcome)
    assert outcomes == {1.0, -1.0}


def test_deep_sea_is_terminal_though_its_time_is_up():
    env = envs.make("DeepSea-bsuite", {"size": 4, "randomize_actions": "false"})
    assert env.time_limit == 4
    rows = play(env, jnp.ones(5, jnp.int32), jr.key(0))
    boards = np.zeros((6, 4, 4), bool)
    for t in range(4):
        boards[t, t, t] = True
    boards[5, 0, 0] = True  # row 4 is empty: below the sea
    np.testing.assert_array_equal(rows.obs, boards)
    cost = 0.01 / 4
    np.testing.assert_allclose(rows.reward, [0, -cost, -cost, -cost, 1 - cost, 0], rtol=1e-6)
    np.testing.assert_array_equal(rows.is_first, [1, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(rows.is_last, [0, 0, 0, 0, 1, 0])
    np.testing.assert_array_equal(rows.is_terminal, rows.is_last)


def test_pendulum_is_truncated_and_turns_by_its_own_torque():
    """Action 1 is 2 Nm and action 3 is clipped to it; a time limit of 5 makes row 5 last and not terminal."""
    env = envs.make("Pendulum-v1", {"max_steps_in_episode": 5})
    assert env.time_limit == 5
    actions = np.array([[1.0], [-1.0], [0.5], [3.0], [-7.0], [1.0], [1.0]], np.float32)
    rows = play(env, jnp.asarray(actions), jr.key(3))
    np.testing.assert_array_equal(rows.is_first, [1, 0, 0, 0, 0, 0, 1, 0])
    np.testing.assert_array_equal(rows.is_last, [0, 0, 0, 0, 0, 1, 0, 0])
    assert not rows.is_terminal.any()
    assert rows.reward[6] == 0
    theta, speed = np.arctan2(rows.obs[0, 1], rows.obs[0, 0]), rows.obs[0, 2]
    for t, torque in enumerate([2.0, -2.0, 1.0, 2.0, -2.0]):
        angle = (theta + np.pi) % (2 * np.pi) - np.pi
        cost = angle**2 + 0.1 * speed**2 + 0.001 * torque**2
        np.testing.assert_allclose(rows.reward[t + 1], -cost, rtol=1e-4)
        speed = np.clip(speed + 0.05 * (15 * np.sin(theta) + 3 * torque), -8, 8)
        theta = theta + 0.05 * speed
        obs = [np.cos(theta), np.sin(theta), speed]
        np.testing.assert_allclose(rows.obs[t + 1], obs, rtol=1e-4, atol=1e-5)


def test_actions_are_clipped_where_gymnax_does_not():
    """Reacher's torques are 1 at most; PointRobot moves by 0.1 at most and shows that in entries 3 and 4."""
    reacher = make("Reacher-misc")
    rows = play(reacher, jnp.array([[9.0, -1.0], [0.0, -4.0]]), jr.key(0))
    np.testing.assert_allclose(np.diff(rows.obs[:, 4:6], axis=0), [[0.05, -0.05], [0, -0.05]], atol=1e-6)
    robot = envs.make("PointRobot-misc", {"center_init": True})
    rows = play(robot, jnp.array([[9.0, -1.0], [0.0, 0.5]]), jr.key(0))
    np.testing.assert_allclose(rows.obs[:, :2], [[0, 0], [0.1, -0.1], [0.1, -0.05]], atol=1e-6)
    np.testing.assert_allclose(rows.obs[:, 3:5], [[0, 0], [0.1, -0.1], [0, 0.05]], atol=1e-6)


def test_advance_is_the_step_or_the_reset():
    env = make("CartPole-v1")

    @jax.jit
    def both(key, action):
        state, timestep = env.reset(jr.key(0))
        key_step, key_reset = jr.split(key)
        last = eqx.tree_at(lambda t: t.is_last, timestep, jnp.array(True))
        advanced = [envs.env_step(env, key, state, before, action) for before in (timestep, last)]
        return advanced, [env.step(key_step, state, action), env.reset(key_reset)]

    advanced, expected = both(jr.key(1), jnp.array(1))
    jax.tree.map(np.testing.assert_array_equal, advanced, expected)
    assert not advanced[0][1].is_first and advanced[1][1].is_first


def test_actions_are_guarded():
    discrete, continuous = make("CartPole-v1"), make("Reacher-misc")
    for env, action in (
        (discrete, jnp.zeros(2, jnp.int32)),
        (discrete, jnp.zeros(())),
        (continuous, jnp.zeros(())),
    ):
        state, _ = jax.eval_shape(env.reset, jr.key(0))
        with pytest.raises(AssertionError):
            jax.eval_shape(env.step, jr.key(0), state, action)


def test_kinds_of_spaces():
    kinds = {name: make(name).obs_space for name in envs.ids()}
    assert {n for n, s in kinds.items() if s.kind == "binary"} == gymnax_spaces.BINARY - {"FourRooms-misc"}
    assert {n for n, s in kinds.items() if s.kind == "categorical"} == {"FourRooms-misc", "FrozenLake-misc"}
    assert kinds["FrozenLake-misc"] == envs.ObsSpace((), "categorical", 16)
    assert kinds["FourRooms-misc"] == envs.ObsSpace((4,), "categorical", 12)
    visual = envs.make("FourRooms-misc", {"use_visual_obs": "yes"})
    assert visual.obs_space == envs.ObsSpace((13, 13, 2), "binary")
    with pytest.raises(ValueError, match="classes > 0 goes with kind 'categorical'"):
        envs.ObsSpace((3,), "real", 4)


@pytest.mark.parametrize(
    ("name", "overrides", "shape", "actions", "limit"),
    [
        ("DeepSea-bsuite", {"size": "20"}, (20, 20), 2, 20),
        ("DeepSea-bsuite", {"size": 20, "max_steps_in_episode": "1e1"}, (20, 20), 2, 10),
        ("Catch-bsuite", {"rows": 7, "columns": 3.0}, (7, 3), 3, 1000),
        ("FrozenLake-misc", {"map_name": "8x8", "is_slippery": "False"}, (), 4, 200),
        ("Breakout-MinAtar", {"use_minimal_action_set": 0}, (10, 10, 4), 6, 1000),
        ("UmbrellaChain-bsuite", {"n_distractor": 0, "chain_length": "20"}, (3,), 2, 100),
        ("Swimmer-misc", {"num_urchins": 3}, (12,), 2, 500),
        ("BernoulliBandit-misc", {"max_steps_in_episode": "1e3", "reward_prob": "0.2"}, (4,), 2, 1000),
    ],
)
def test_overrides(name, overrides, shape, actions, limit):
    env = envs.make(name, overrides)
    assert (env.obs_space.shape, env.action_space.size, env.time_limit) == (shape, actions, limit)
    assert jax.eval_shape(env.reset, jr.key(0))[1].obs.shape == shape


def test_observations_with_bounds_are_rescaled_where_asked_for():
    """MountainCar: position -1.2 to 0.6, velocity -0.07 to 0.07; what happens is the same."""
    actions = jnp.array([2] * 60 + [0] * 60)
    plain = play(make("MountainCar-v0"), actions, jr.key(5))
    scaled = play(envs.make("MountainCar-v0", {"rescale_observations": "true"}), actions, jr.key(5))
    position, velocity = plain.obs.T
    np.testing.assert_allclose(scaled.obs, np.stack([(position + 0.3) / 0.9, velocity / 0.07], 1), rtol=1e-4, atol=1e-5)
    assert 0.1 < np.abs(scaled.obs[:, 1]).max() <= 1
    for name in ("reward", "is_first", "is_last", "is_terminal"):
        np.testing.assert_array_equal(getattr(scaled, name), getattr(plain, name))


@pytest.mark.parametrize("name", ["CartPole-v1", "Catch-bsuite", "FourRooms-misc"])
def test_observations_without_finite_bounds_or_that_are_no_reals_are_not_rescaled(name):
    with pytest.raises(envs.BadOverride, match="no setting 'rescale_observations'"):
        envs.make(name, {"rescale_observations": "true"})


def test_an_override_reaches_the_physics():
    weak = envs.make("Pendulum-v1", {"max_torque": "0.5", "g": 0})
    rows = play(weak, jnp.array([[1.0]]), jr.key(0))
    np.testing.assert_allclose(rows.obs[1, 2] - rows.obs[0, 2], 3 * 0.5 * 0.05, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Catch", "no environment is named 'Catch'; did you mean Catch-bsuite"),
        ("cartpole-v0", "did you mean CartPole-v1"),
        ("deepsea-bsuite", "did you mean DeepSea-bsuite"),
        ("", "choose one of CartPole-v1, Pendulum-v1, "),
    ],
)
def test_an_unknown_name_finds_its_neighbours(name, words):
    with pytest.raises(envs.UnknownEnvironment) as info:
        envs.make(name)
    assert words in one_line(info)


def test_what_needs_a_download_says_so():
    with pytest.raises(envs.UnavailableEnvironment) as info:
        envs.make("MNISTBandit-bsuite")
    assert "MNISTBandit-bsuite cannot be used: gymnax downloads the MNIST images" in one_line(info)
    assert "MNISTBandit-bsuite" not in envs.ids()


def test_an_unknown_setting_lists_the_known():
    with pytest.raises(envs.BadOverride) as info:
        envs.make("DeepSea-bsuite", {"sise": 3})
    assert one_line(info) == (
        "DeepSea-bsuite has no setting 'sise'; it accepts: size (int, 8), max_steps_in_episode (int, 8), "
        "deterministic (bool, True), sample_action_map (bool, False), unscaled_move_cost (float, 0.01), "
        "randomize_actions (bool, True), action_map_per_seed (bool, False)"
    )
    with pytest.raises(envs.BadOverride, match="no setting 'action_mapping_key'"):  # an array: no plain value
        envs.make("DeepSea-bsuite", {"action_mapping_key": 3})


@pytest.mark.parametrize(
    ("name", "key", "value", "words"),
    [
        ("DeepSea-bsuite", "size", "big", "DeepSea-bsuite: size must be a whole number, not 'big'"),
        ("DeepSea-bsuite", "size", 2.5, "size must be a whole number, not 2.5"),
        ("DeepSea-bsuite", "size", True, "size must be a whole number, not True"),
        ("DeepSea-bsuite", "size", "0", "size must be a whole number from 1 to 2147483647, not '0'"),
        ("DeepSea-bsuite", "deterministic", "maybe", "deterministic must be true or false, not 'maybe'"),
        ("CartPole-v1", "max_steps_in_episode", -1, "must be a whole number from 1"),
        ("CartPole-v1", "max_steps_in_episode", "1e12", "must be a whole number from 1"),
        ("BernoulliBandit-misc", "max_steps_in_episode", 9.5, "must be a whole number, not 9.5"),
        ("CartPole-v1", "gravity", "nan", "CartPole-v1: gravity must be a finite number, not 'nan'"),
        ("UmbrellaChain-bsuite", "n_distractor", -1, "must be a whole number from 0"),
        ("FrozenLake-misc", "map_name", "9x9", "FrozenLake-misc with {'map_name': '9x9'}: map_name must be"),
        ("Reacher-misc", "num_joints", 3, "gymnax cannot make Reacher-misc with {'num_joints': 3}: Cannot"),
        ("MetaMaze-misc", "maze_size", 4, "gymnax cannot make MetaMaze-misc with {'maze_size': 4}"),
    ],
)
def test_a_bad_value_says_what_is_good(name, key, value, words):
    with pytest.raises(envs.BadOverride) as info:
        envs.make(name, {key: value})
    assert words in one_line(info)


def test_importing_envs_leaves_gymnax_alone():
    code = "import sys, envs; assert not {'gymnax', 'gymnasium', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=pathlib.Path(envs.__file__).parents[1])


def test_scales_are_of_environments_that_are_there_and_of_their_defaults():
    assert set(SCALES) <= set(envs.ids()) and all(low < high for low, high in SCALES.values())
    assert scale_of("DeepSea-bsuite", {"size": "20"}) == (0.0, 0.99)
    assert scale_of("DeepSea-bsuite", {"unscaled_move_cost": "0.1"}) is None and scale_of("Pendulum-v1", {}) is None
