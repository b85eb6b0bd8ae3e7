"""Environments of one's own, "module:factory": what is accepted, what is refused, and a whole run of one."""

import json
import signal
import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import envs
import run
from envs import own, registry
from envs.errors import BadOverride, EnvError, UnavailableEnvironment, UnknownEnvironment
from stages.commands.command import command
from stages.finite import all_finite, tree_where
from stages.sweep import start
from tests.conftest import tree_equal
from tests.runs import TINY, ask, at_chunk, rows

MODULE = '''
import gymnax
import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces

from envs import ActionSpace, Environment, ObsSpace, Timestep
from tests.signals import Signals

number, ZERO = 3, jnp.zeros((), jnp.int32)


class Corridor(Environment):
    """Cells from left to right; the last one pays 1 and ends the episode."""

    name, time_limit, action_space = "Corridor", 6, ActionSpace("discrete", 2)

    def __init__(self, cells=4, dtype=jnp.bool_):
        self.cells, self.dtype = cells, dtype
        self.obs_space = ObsSpace((cells,), "binary")

    def reset(self, key):
        return (ZERO, ZERO, key), self.row(ZERO, True, False)  # a key of its own, which it does not need

    def step(self, key, state, action):
        cell, time = jnp.clip(state[0] + 2 * action - 1, 0, self.cells - 1), state[1] + 1
        end = (cell == self.cells - 1) | (time == self.time_limit)
        return (cell, time, jax.random.fold_in(state[2], 1)), self.row(cell, False, end)

    def row(self, cell, first, last):
        end = cell == self.cells - 1
        obs = (jnp.arange(self.cells) == cell).astype(self.dtype)
        return Timestep(obs, end.astype(jnp.float32), jnp.array(first), jnp.asarray(last), end)


def wrong_type():
    return Corridor(dtype=jnp.float32)


def no_spaces():
    corridor = Corridor()
    corridor.obs_space = (4,)
    return corridor


def broken():
    return 1 / 0


@struct.dataclass
class State(environment.EnvState):
    total: jax.Array


@struct.dataclass
class Params(environment.EnvParams):
    speed: float = 0.5
    max_steps_in_episode: int = 5


class Pusher(environment.Environment):
    """A number that actions push; a gymnax environment."""

    actions = spaces.Box(-2.0, 2.0, (1,), jnp.float32)

    def __init__(self, size: int = 3):
        super().__init__()
        self.size = size

    @property
    def default_params(self):
        return Params()

    def step_env(self, key, state, action, params):
        state = State(time=state.time + 1, total=state.total + params.speed * action[0])
        return self.get_obs(state), state, -jnp.abs(state.total), self.is_terminal(state, params), {}

    def reset_env(self, key, params):
        state = State(time=0, total=jax.random.uniform(key))
        return self.get_obs(state), state

    def get_obs(self, state, params=None, key=None):
        return jnp.full(self.size, state.total)

    def is_terminal(self, state, params):
        return jnp.array(False)

    def is_terminated(self, state, params):
        return jnp.array(False)

    def is_truncated(self, state, params):
        return state.time >= params.max_steps_in_episode

    def action_space(self, params=None):
        return self.actions

    def observation_space(self, params):
        return spaces.Box(-jnp.inf, jnp.inf, (self.size,), jnp.float32)


def slow():
    return Pusher(), Params(speed=0.25)


def endless():
    pusher = Pusher()
    pusher.actions = spaces.Box(-jnp.inf, jnp.inf, (1,), jnp.float32)
    return pusher


def picture():
    class Picture(Pusher):
        def get_obs(self, state, params=None, key=None):
            return jnp.zeros((8, 8, 3), jnp.uint8)

    return Picture()


def two_observations():
    class Two(Pusher):
        def get_obs(self, state, params=None, key=None):
            return {"a": jnp.zeros(3), "b": jnp.zeros(3)}

    return Two()


if "Pusher-own" not in gymnax.registered_envs:
    gymnax.register("Pusher-own", Pusher)
'''


CHANGED = '''
import gymnax
from gymnax.wrappers import FlattenObservationWrapper, LogWrapper

from mine import *
from mine import Params, Pusher, State


def changed(step=lambda *row: row, reset=lambda *row: row, limit=5, shown=None, obs_space=None, actions=None):
    """Pusher with something else about it."""

    class Changed(Pusher):
        @property
        def default_params(self):
            return Params(max_steps_in_episode=limit)

        def step_env(self, key, state, action, params):
            return step(*super().step_env(key, state, jnp.atleast_1d(action), params))

        def reset_env(self, key, params):
            return reset(*super().reset_env(key, params))

        def get_obs(self, state, params=None, key=None):
            return super().get_obs(state) if shown is None else shown(state)

        def observation_space(self, params):
            return obs_space or super().observation_space(params)

        def action_space(self, params=None):
            return actions or self.actions

    return Changed()


box = lambda low, high, shape=(2,), dtype=jnp.float32: spaces.Box(low, high, shape, dtype)
shows = lambda shown, *bounds: changed(shown=shown, obs_space=box(*bounds))
vector_reward = lambda: changed(step=lambda obs, state, reward, *rest: (obs, state, reward[None], *rest))
vector_end = lambda: changed(step=lambda obs, state, reward, end, info: (obs, state, reward, end[None], info))
four_values = lambda: changed(step=lambda *row: row[:4])
other_shape = lambda: changed(reset=lambda obs, state: (obs[:2], state))
other_dtype = lambda: changed(reset=lambda obs, state: (obs.astype(jnp.int32), state))
other_state = lambda: changed(step=lambda obs, state, *row: (obs, state.replace(total=state.total[None]), *row))
no_actions = lambda: changed(actions=spaces.Discrete(0))
no_steps = lambda: changed(limit=0)
many_steps = lambda: changed(limit=10**10)
endless_steps = lambda: changed(limit=float("inf"))
whole_actions = lambda: changed(actions=box(0, 4, dtype=jnp.int32))
reversed_actions = lambda: changed(actions=box(jnp.ones(2), jnp.zeros(2)))
logged = lambda: LogWrapper(Pusher())
flattened = lambda: (FlattenObservationWrapper(Pusher()), Params())

beyond = lambda: shows(lambda state: jnp.array([0, 9 * (state.time == 3)]), 0, 1, (2,), jnp.int32)
truths = lambda: shows(lambda state: state.total > jnp.zeros(2), 0, 1, (2,), jnp.bool_)
gray = lambda: shows(lambda state: jnp.full((12, 10), 200, jnp.uint8), 0, 255, (12, 10), jnp.uint8)
codes = lambda: shows(lambda state: jnp.full((3, 3), 2, jnp.uint8), 0, 3, (3, 3), jnp.uint8)


class Beyond(Corridor):
    """Says that there are two cells, and has four."""

    def __init__(self):
        super().__init__()
        self.obs_space = ObsSpace((), "categorical", 2)

    def row(self, cell, first, last):
        return Timestep(cell, jnp.zeros(()), jnp.array(first), jnp.asarray(last), jnp.array(False))


@struct.dataclass
class Keyed(State):
    key: jax.Array


def keyed():
    """Draws what it adds from a key in its state, as Craftax does."""

    class KeyedPusher(Pusher):
        def step_env(self, key, state, action, params):
            key, draw = jax.random.split(state.key)
            state = Keyed(time=state.time + 1, total=jax.random.uniform(draw), key=key)
            return self.get_obs(state), state, state.total, jnp.array(False), {}

        def reset_env(self, key, params):
            state = Keyed(time=0, total=jnp.zeros(()), key=key)
            return self.get_obs(state), state

    return KeyedPusher()
'''


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    """The modules, in the working directory; none is on the path otherwise."""
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "changed.py").write_text(CHANGED)
    (tmp_path / "faulty.py").write_text("import json\n1 / 0\n")
    (tmp_path / "needy.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield
    for name in ("mine", "changed", "faulty", "needy"):
        sys.modules.pop(name, None)


def test_an_environment_of_ours_comes_as_it_is():
    env = registry.make("mine:Corridor", {"cells": "3"})
    assert isinstance(env, envs.Environment) and env.obs_space == envs.ObsSpace((3,), "binary")


@pytest.mark.parametrize("name", ["mine:Pusher", "mine:slow", "mine:Pusher-own"])
def test_a_gymnax_environment_is_adapted(name):
    env = registry.make(name)
    assert env.obs_space == envs.ObsSpace((3,), "real") and env.action_space == envs.ActionSpace("continuous", 1)
    assert env.time_limit == 5
    state, first = env.reset(jr.key(0))
    _, later = env.step(jr.key(1), state, jnp.ones(1))
    speed = 0.25 if name == "mine:slow" else 0.5
    np.testing.assert_allclose(later.obs, first.obs + 2 * speed, rtol=1e-6)  # an action of 1 is its range's end


def test_settings_are_the_factorys_arguments_and_the_parameters():
    env = registry.make("mine:Pusher", {"size": "2", "max_steps_in_episode": "9"})
    assert env.obs_space.shape == (2,) and env.time_limit == 9
    assert registry.make("mine:slow", {"max_steps_in_episode": 9}).time_limit == 9


@pytest.mark.parametrize(
    ("name", "space"),
    [
        ("mine:picture", envs.ObsSpace((8, 8, 3), "image")),
        ("changed:gray", envs.ObsSpace((12, 10, 1), "image")),
        ("changed:codes", envs.ObsSpace((3, 3), "categorical", 4)),
        ("changed:truths", envs.ObsSpace((2,), "binary")),
    ],
)
def test_what_observations_are_taken_for(name, space):
    env = registry.make(name)
    state, first = env.reset(jr.key(0))
    _, later = env.step(jr.key(1), state, jnp.ones(1))
    assert env.obs_space == space
    for row in (first, later):
        assert (row.obs.shape, row.obs.dtype) == (space.shape, space.dtype)


def test_a_state_may_hold_random_keys():
    """Several environments side by side, through a step and a reset; a choice between states holds their keys too."""
    env = registry.make("changed:keyed")
    states, rows = jax.vmap(env.reset)(jr.split(jr.key(0), 3))
    for step in range(env.time_limit + 1):
        keys = jr.split(jr.key(step), 3)
        states, rows = jax.vmap(lambda *args: envs.env_step(env, *args))(keys, states, rows, jnp.ones((3, 1)))
    assert rows.is_first.all()
    assert tree_equal(states.key, jax.vmap(lambda key: jr.split(key)[1])(keys))
    picked = tree_where(jnp.array(False), jax.tree.map(jnp.zeros_like, rows), rows)
    assert tree_equal(tree_where(jnp.array(True), states, states), states) and tree_equal(picked, rows)
    assert all_finite(states)


def test_an_environment_that_was_made_is_checked_as_one_that_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    from mine import Corridor, Params, Pusher, wrong_type

    corridor = Corridor()
    assert own.checked("env", corridor) is corridor
    assert own.checked("env", (Pusher(), Params(speed=0.25))).params.speed == 0.25
    for made, words in (
        (wrong_type(), r"reset gives .* .obs float32\[4\].* must be .obs bool\[4\]"),
        ("Catch-bsuite", "of type str; it must be an envs.Environment"),
        ((Corridor(), 3), "of type Corridor; it must be"),
    ):
        with pytest.raises(EnvError, match=words) as caught:
            own.checked("env", made)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "overrides", "error", "words"),
    [
        ("nowhere.at.all:make", {}, UnknownEnvironment, "no module 'nowhere'"),
        ("mine:Coridor", {}, UnknownEnvironment, "has no 'Coridor'.*did you mean Corridor"),
        (":make", {}, UnknownEnvironment, "write one of your own as package.module:factory"),
        ("mine:", {}, UnknownEnvironment, "package.module:factory"),
        ("mine.py:Corridor", {}, UnknownEnvironment, "no module 'mine.py'"),
        ("some/mine:Corridor", {}, UnknownEnvironment, "package.module:factory"),
        ("faulty:make", {}, UnavailableEnvironment, "ZeroDivisionError"),
        ("needy:make", {}, UnavailableEnvironment, "nowhere_to_be_found.*install it"),
        ("mine:number", {}, EnvError, "of type int"),
        ("mine:State", {}, UnavailableEnvironment, "TypeError"),
        ("mine:Params", {}, EnvError, "of type Params; it must be an envs.Environment"),
        ("mine:broken", {}, UnavailableEnvironment, r"ZeroDivisionError: division by zero \(mine.py, line \d+\)"),
        ("mine:wrong_type", {}, EnvError, r"reset gives .* .obs float32\[4\].* must be .obs bool\[4\]"),
        ("mine:no_spaces", {}, EnvError, "obs_space must be an envs.ObsSpace"),
        ("mine:endless", {}, EnvError, "finite bounds"),
        ("mine:two_observations", {}, EnvError, "one array, not dict"),
        ("changed:vector_reward", {}, EnvError, r"step gives a reward of float32\[1\].* must be one number"),
        ("changed:vector_end", {}, EnvError, r"step gives terminated of bool\[1\]"),
        ("changed:four_values", {}, EnvError, "step_env gives 4 values; since gymnax 1.0 they are"),
        ("changed:other_shape", {}, EnvError, r"an observation of float32\[2\], and step one of float32\[3"),
        ("changed:other_dtype", {}, EnvError, r"an observation of int32\[3\], and step one of float32\[3"),
        ("changed:other_state", {}, EnvError, r"a state of float32\[\], and step one of float32\[1\]"),
        ("changed:no_actions", {}, EnvError, "1 action or more, not 0"),
        ("changed:no_steps", {}, EnvError, "max_steps_in_episode must be 1 to 2,147,483,647 steps .* not 0"),
        ("changed:many_steps", {}, EnvError, "max_steps_in_episode must be 1 to .* not 10000000000"),
        ("changed:endless_steps", {}, EnvError, "max_steps_in_episode must be 1 to .* not inf"),
        ("changed:whole_actions", {}, EnvError, "a Box of floats"),
        ("changed:reversed_actions", {}, EnvError, "low <= high"),
        ("changed:logged", {}, EnvError, "is a LogWrapper.* give the Pusher in it"),
        ("changed:flattened", {}, EnvError, "is a FlattenObservationWrapper.* give the Pusher in it"),
        ("changed:beyond", {}, EnvError, "goes from 0 to 9, but its space says 0 to 1"),
        ("changed:Beyond", {}, EnvError, "goes from 0 to [23], but its space says 0 to 1"),
        ("mine:Corridor", {"cels": 3}, BadOverride, "no setting 'cels'; it accepts: cells"),
        ("mine:Corridor", {"cells": "many"}, BadOverride, "cells must be a whole number"),
        ("mine:Pusher", {"speeed": 3}, BadOverride, "no setting 'speeed'; it accepts: size .* speed"),
    ],
)
def test_what_is_no_environment_says_so_in_one_line(name, overrides, error, words):
    with pytest.raises(error, match=words) as caught:
        registry.make(name, overrides)
    assert "\n" not in str(caught.value)


def test_a_run_of_one_trains_goes_on_and_plays_by_its_name(compiled_once, tmp_path, capsys, monkeypatch):
    """With several entries and choices; every stage: collecting, losses, members, evaluation, open loop, film."""
    monkeypatch.setattr(start, "start_jax", lambda: None)  # the tests' jax has started
    words = [*TINY, "--env", "mine:Signals", "--env.lamps", "3", "--mode", "mix", "--seeds", "1", "--devices", "1"]
    words += ["--envs", "2", "--steps", "40"]
    with monkeypatch.context() as patch:
        at_chunk(patch, 1, lambda: ask(signal.SIGTERM))
        assert run.main(words) == 143
    [folder] = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("mine-Signals-mix-")
    assert run.main([*words, "--logdir", str(folder)]) == 0
    assert "going on from the checkpoint" in capsys.readouterr().out
    assert json.loads((folder / "summary.json").read_text())["env"] == "mine:Signals"
    last = rows(folder)[-1]
    parts = [last[f"train/recon_{name}"] for name in ("camera", "gauge", "lamp")]
    np.testing.assert_allclose(sum(parts), last["train/loss/recon"], rtol=1e-5)
    assert command(["eval", str(folder), "--episodes", "2", "--trust"]) == 0
    assert command(["video", str(folder), "--rows", "4", "--trust"]) == 0
    assert list(folder.glob("*.gif"))
    for name in ("mine:Nothing", "nobody:make"):
        assert run.main([*TINY, "--env", name, "--logdir", str(tmp_path / "other")]) == 2
        assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "other").exists()
