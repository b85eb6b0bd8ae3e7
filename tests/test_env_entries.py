"""A suite's observations entry by entry, and its actions: tables by hand, and a suite made here."""

from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from envs import ActionSpace, DictSpace, EnvError, ObsSpace, env_step
from envs.entries import Entry, continuous_actions, discrete_actions, rescaled, several_actions
from envs.envelope_adapter import adapt_envelope


def entry(low, high, dtype, shape=()):
    bounds = (np.broadcast_to(np.asarray(bound), shape) for bound in (low, high))
    return Entry(*bounds, np.dtype(dtype))


@pytest.mark.parametrize(
    ("declared", "space", "value", "seen"),
    [
        (entry(-1.0, 3.0, np.float32), ObsSpace((), "real"), 2.5, 2.5),
        (entry(0, 1, np.int8, (2,)), ObsSpace((2,), "binary"), [1, 0], [True, False]),
        (entry(-1, 2, np.int32), ObsSpace((), "categorical", 4), -1, 0),  # counted from its lowest
        (entry(0, [1, 4], np.int32, (2,)), ObsSpace((2,), "categorical", 5), [1, 3], [1, 3]),
        (entry(0, 63, np.uint8, (4, 4, 3)), ObsSpace((4, 4, 3), "categorical", 64), np.full((4, 4, 3), 9), 9),
        (entry(0, 64, np.int32), ObsSpace((), "real"), 64, 64.0),
    ],
)
def test_an_entry_is_of_the_kind_that_its_bounds_say(declared, space, value, seen):
    assert declared.space == space
    now = declared(jnp.asarray(value, declared.dtype))
    assert (now.shape, now.dtype) == (space.shape, space.dtype)
    np.testing.assert_array_equal(now, np.broadcast_to(np.asarray(seen, space.dtype), space.shape))


def test_images_are_bytes_whether_they_come_as_bytes_or_as_shares():
    picture = np.random.default_rng(0).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    as_bytes, shares = entry(0, 255, np.uint8, (4, 4, 3)), entry(0.0, 1.0, np.float32, (4, 4, 3))
    for declared, value in ((as_bytes, picture), (shares, (picture / 255).astype(np.float32))):
        assert declared.space == ObsSpace((4, 4, 3), "image")
        np.testing.assert_array_equal(declared(jnp.asarray(value)), picture)


def test_numbers_within_finite_bounds_can_be_rescaled():
    speed = entry([-1.0, 0.0], [3.0, 1.0], np.float32, (2,))
    endless, direction = entry(-np.inf, np.inf, np.float32), entry(-1, 2, np.int32)
    entries = rescaled("it", {"speed": speed, "endless": endless, "direction": direction})
    np.testing.assert_array_equal(entries["speed"](jnp.array([3.0, 0.25])), [1.0, -0.5])
    assert entries["endless"](jnp.array(7.0)) == 7 and entries["direction"](jnp.array(2)) == 3
    with pytest.raises(EnvError, match="it: its observations are no real numbers with finite bounds"):
        rescaled("it", {"endless": endless, "direction": direction})


def test_several_choices_are_one_and_the_last_changes_fastest():
    act = discrete_actions("it", np.array([2, 3]), np.dtype(np.int32))
    assert (act.space.kind, act.space.size) == ("discrete", 6)
    pairs = [act(jnp.asarray(action, jnp.int32)).tolist() for action in range(6)]
    assert pairs == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert discrete_actions("it", np.array(100), np.dtype(np.int32)).space.size == 100  # one choice has no limit


def test_choices_of_many_combinations_stay_several():
    act = discrete_actions("it", np.array([[10], [10]]), np.dtype(np.int8))
    assert act.space == ActionSpace("multi_discrete", 20, (10, 10))
    chosen = act(jnp.array([3, 9]))
    assert chosen.tolist() == [[3], [9]] and chosen.dtype == jnp.int8
    with pytest.raises(AssertionError):
        act(jnp.array(3))


def test_an_action_of_several_entries_is_one_choice_after_another():
    move, aim = (discrete_actions("it", np.array(sizes), np.dtype(np.int32)) for sizes in (4, [2, 3]))
    act = several_actions("it", (aim, move), jax.tree.structure({"aim": 0, "move": 0}))
    assert act.space == ActionSpace.of_choices(2, 3, 4)
    chosen = act(jnp.array([1, 2, 3]))
    assert chosen["aim"].tolist() == [1, 2] and chosen["move"].tolist() == 3
    push = continuous_actions("it", np.array([0.0]), np.array([1.0]), np.dtype(np.float32))
    with pytest.raises(EnvError, match="it: an action has several entries, some of them continuous"):
        several_actions("it", (move, push), jax.tree.structure((0, 0)))


def test_choices_are_of_a_multi_discrete_space_alone():
    for kind, size, choices in (("discrete", 5, (2, 3)), ("multi_discrete", 6, (2, 3)), ("multi_discrete", 2, (2, 0))):
        with pytest.raises(ValueError, match="sum to its size"):
            ActionSpace(kind, size, choices)


def test_continuous_actions_are_clipped_and_brought_to_their_range():
    act = continuous_actions("it", np.array([[0.0, -2.0]]), np.array([[1.0, 2.0]]), np.dtype(np.float32))
    np.testing.assert_array_equal(act(jnp.array([-3.0, 0.5])), [[0.0, 1.0]])
    with pytest.raises(EnvError, match="it: continuous actions must have finite bounds"):
        continuous_actions("it", np.array([-np.inf]), np.array([1.0]), np.dtype(np.float32))


class Info(eqx.Module):
    """What envelope says of a row."""

    obs: dict
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array


class Drift:
    """An environment as envelope's are: a dictionary of entries, two choices, and a typed random key in its state."""

    observation_space = SimpleNamespace(
        tree={
            "noise": SimpleNamespace(low=np.float32(0), high=np.float32(1), dtype=np.dtype(np.float32)),
            "where": SimpleNamespace(n=np.array(5), dtype=np.dtype(np.int32)),
        }
    )
    action_space = SimpleNamespace(n=np.array([2, 3]), dtype=np.dtype(np.int32))

    def init(self, key):
        return {"key": key, "where": 0}, self.info(key, 0, 0)  # a Python number, where steps give an array

    def step(self, state, action):
        key = jr.fold_in(state["key"], 1)
        where = jnp.minimum(state["where"] + action[0] * action[1], 4)
        return {"key": key, "where": where}, self.info(key, where, where)

    def info(self, key, where, reward):
        obs = {"where": jnp.asarray(where, jnp.int32), "noise": jr.uniform(key)}
        return Info(obs, reward, jnp.asarray(where == 4), jnp.asarray(reward == 3))


def test_a_typed_key_in_the_state_goes_through_resets_and_steps():
    """Actions 5, 5, 4, 5, 0: two cells on, two on (an end), a reset, two on, none."""
    env = adapt_envelope("drift", Drift(), 9, bounded=True, rescale=False)
    entries = {"noise": ObsSpace((), "real"), "where": ObsSpace((), "categorical", 5)}
    assert env.obs_space == DictSpace(entries) and env.action_space.size == 6

    def body(carry, action):
        carry = env_step(env, jr.key(7), *carry, action)
        return carry, carry

    first = env.reset(jr.key(3))
    _, (states, rows) = jax.jit(lambda first: jax.lax.scan(body, first, jnp.array([5, 5, 4, 5, 0])))(first)
    np.testing.assert_array_equal(states["where"], [2, 4, 0, 2, 2])
    np.testing.assert_array_equal(rows.obs["where"], states["where"])
    np.testing.assert_array_equal(rows.reward, [2, 4, 0, 2, 2])
    np.testing.assert_array_equal(rows.is_first, [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(rows.is_last, [0, 1, 0, 0, 0])
    np.testing.assert_array_equal(rows.is_terminal, rows.is_last)
    key = jr.key(3)
    for row in range(2):
        key = jr.fold_in(key, 1)
        np.testing.assert_array_equal(jr.key_data(states["key"][row]), jr.key_data(key))
        np.testing.assert_allclose(rows.obs["noise"][row], jr.uniform(key), rtol=1e-6)
    np.testing.assert_array_equal(jr.key_data(states["key"][2]), jr.key_data(jr.split(jr.key(7))[1]))
    stepped = jax.eval_shape(env.step, jr.key(0), first[0], jnp.zeros((), jnp.int32))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), stepped) == jax.tree.map(lambda x: (x.shape, x.dtype), first)
    assert not any(getattr(x, "weak_type", False) for x in jax.tree.leaves((first, stepped)))


def test_a_truncation_is_last_and_not_terminal():
    env = adapt_envelope("drift", Drift(), 9, bounded=True, rescale=False)
    state, _ = env.reset(jr.key(0))
    step = jax.jit(env.step)
    state, _ = step(jr.key(0), state, jnp.array(4))
    _, timestep = step(jr.key(0), state, jnp.array(5))  # 1 + 2: the fake's time limit
    assert timestep.is_last and not timestep.is_terminal
