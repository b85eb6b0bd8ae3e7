"""Environments of one's own, "module:factory": what is accepted, what is refused, and a whole run of one."""

import json
import signal
import sys

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import envs
import run
from envs import registry
from envs.errors import BadOverride, EnvError, UnavailableEnvironment, UnknownEnvironment
from stages.results.commands import command
from stages.runs import start
from tests.test_resume import ask, at_chunk
from tests.test_run import TINY

MODULE = '''
import gymnax
import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces

from envs import ActionSpace, Environment, ObsSpace, Timestep

number, ZERO = 3, jnp.zeros((), jnp.int32)


class Corridor(Environment):
    """Cells from left to right; the last one pays 1 and ends the episode."""

    name, time_limit, action_space = "Corridor", 6, ActionSpace("discrete", 2)

    def __init__(self, cells=4, dtype=jnp.bool_):
        self.cells, self.dtype = cells, dtype
        self.obs_space = ObsSpace((cells,), "binary")

    def reset(self, key):
        return (ZERO, ZERO), self.row(ZERO, True, False)

    def step(self, key, state, action):
        cell, time = jnp.clip(state[0] + 2 * action - 1, 0, self.cells - 1), state[1] + 1
        return (cell, time), self.row(cell, False, (cell == self.cells - 1) | (time == self.time_limit))

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


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    """The modules, in the working directory; none is on the path otherwise."""
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "faulty.py").write_text("import json\n1 / 0\n")
    (tmp_path / "needy.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield
    for name in ("mine", "faulty", "needy"):
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


def test_bytes_of_three_axes_are_an_image():
    assert registry.make("mine:picture").obs_space == envs.ObsSpace((8, 8, 3), "image")


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
        ("mine:Params", {}, EnvError, "returned Params; it must return an envs.Environment"),
        ("mine:broken", {}, UnavailableEnvironment, r"ZeroDivisionError: division by zero \(mine.py, line \d+\)"),
        ("mine:wrong_type", {}, EnvError, r"reset gives .* .obs float32\[4\].* must be .obs bool\[4\]"),
        ("mine:no_spaces", {}, EnvError, "obs_space must be an envs.ObsSpace"),
        ("mine:endless", {}, EnvError, "finite bounds"),
        ("mine:two_observations", {}, EnvError, "one array, not dict"),
        ("mine:Corridor", {"cels": 3}, BadOverride, "no setting 'cels'; it accepts: cells"),
        ("mine:Corridor", {"cells": "many"}, BadOverride, "cells must be a whole number"),
        ("mine:Pusher", {"speeed": 3}, BadOverride, "no setting 'speeed'; it accepts: size .* speed"),
    ],
)
def test_what_is_no_environment_says_so_in_one_line(name, overrides, error, words):
    with pytest.raises(error, match=words) as caught:
        registry.make(name, overrides)
    assert "\n" not in str(caught.value)


def test_a_run_of_one_trains_goes_on_and_plays_by_its_name(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(start, "start_jax", lambda: None)  # the tests' jax has started
    words = [*TINY, "--env", "mine:Corridor", "--env.cells", "3", "--seeds", "1", "--envs", "2", "--devices", "1"]
    words += ["--steps", "40"]
    with monkeypatch.context() as patch:
        at_chunk(patch, 1, lambda: ask(signal.SIGTERM))
        assert run.main(words) == 143
    [folder] = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("mine-Corridor-task-")
    assert run.main([*words, "--logdir", str(folder)]) == 0
    assert "going on from the checkpoint" in capsys.readouterr().out
    assert json.loads((folder / "summary.json").read_text())["env"] == "mine:Corridor"
    assert command(["eval", str(folder), "--episodes", "2"]) == 0
    assert command(["video", str(folder), "--rows", "4"]) == 0
    for name in ("mine:Nothing", "nobody:make"):
        assert run.main([*TINY, "--env", name, "--logdir", str(tmp_path / "other")]) == 2
        assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "other").exists()
