"""The program from Python: settings, training without a folder, and agents that act in loops that are not ours.

Axes: S seeds, N environments, T rows.
"""

import dataclasses
import inspect

import equinox as eqx
import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from gymnax.wrappers import LogWrapper

import run
from envs import EnvError
from envs.environment import ActionSpace, ObsSpace
from stages import library
from stages.agent import Agent
from stages.config import ConfigError
from stages.evaluate import evaluate
from stages.library import training
from stages.library.policy import _stored
from stages.measure.open_loop import play_rows
from stages.results.read import read_runs
from stages.store.files import RunFolderError
from stages.store.load import AgentBatch
from tests.conftest import arbitrary, pick, tree_equal
from tests.corridor import ACTIONS, OBS, Corridor
from tests.runs import ROUNDS, TINY

pytestmark = pytest.mark.usefixtures("compiled_once")

T = 12


class NumpyCorridor:
    """The same, as a user might have it."""

    def reset(self):
        self.cell = self.time = 0
        return np.eye(4)[0]

    def step(self, action):
        self.cell, self.time = min(max(self.cell + 2 * action - 1, 0), 3), self.time + 1
        return np.eye(4)[self.cell], float(self.cell == 3), self.cell == 3 or self.time == 6


@pytest.fixture(scope="module")
def agents():
    """Three seeds with arbitrary weights and every behaviour, as if they were trained in the corridor."""
    arguments = run.parse([*TINY, "--mode", "mix"])
    make = lambda key: Agent(arguments.config, OBS, ACTIONS, key=key)
    agent = arbitrary(lambda: jax.vmap(make)(jr.split(jr.key(0), 3)))
    hypers = jax.tree.map(lambda x: jnp.full(3, x, jnp.float32), arguments.hypers)
    return AgentBatch(Corridor(), arguments.config, [5, 6, 7], 40, True, {}, agent, hypers, None)


# ---- settings ------------------------------------------------------------------------------------------------------


def test_settings_are_those_of_the_same_command_line():
    words = (
        "--preset micro --env DeepSea-bsuite --env.size 6 --mode mix --steps 2e3 --model.units 16 "
        "--replay.train-ratio 8 --ensemble.spread var --hypers.lr 0.01 --eval-greedy True"
    )
    arguments = run.parse(words.split())
    assert library.configure(
        "micro",
        env="DeepSea-bsuite",
        env_args={"size": 6},
        mode="mix",
        steps=2e3,
        model={"units": 16},
        replay={"train_ratio": 8},
        ensemble={"spread": "var"},
        hypers={"lr": 0.01},
        eval_greedy=True,
    ) == (arguments.config, arguments.hypers)


@pytest.mark.parametrize(
    ("preset", "settings", "words"),
    [
        ("tyni", {}, "did you mean tiny"),
        ("tiny", {"stps": 3}, "'stps'; did you mean steps"),
        ("tiny", {"model": {"unit": 3}}, "'model.unit'; did you mean units"),
        ("tiny", {"hypers": {"learning_rate": 3}}, "hypers.learning_rate"),
        ("tiny", {"steps": 2.5}, "steps must be a whole number"),
        ("tiny", {"steps": "many"}, "steps must be"),
        ("tiny", {"steps": True}, "steps must be"),
        ("tiny", {"hypers": {"lr": [1]}}, "hypers.lr must be a number"),
        ("tiny", {"env": 3}, "env must be of type str"),
        ("tiny", {"mode": "tsak"}, "mode must be one of task, explore"),
        ("tiny", {"model": 3}, "model is a group"),
        ("tiny", {"replay": {"batch_size": 0}}, "must be positive"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(preset, settings, words):
    with pytest.raises(ConfigError, match=words) as caught:
        library.configure(preset, **settings)
    assert "\n" not in str(caught.value)


# ---- training ------------------------------------------------------------------------------------------------------


def test_training_is_the_runs_to_the_bit(recorded, tmp_path, capsys, monkeypatch):
    """Three seeds in rounds of two, through both phases; each has an environment of its own."""
    arguments, (folder, _) = run.parse(ROUNDS), recorded(*ROUNDS)
    monkeypatch.chdir(tmp_path)
    config, hypers = arguments.config, arguments.hypers
    training = library.train(config, hypers, 3, seed_start=5, log_points=2, devices=1, parallel=2)
    assert capsys.readouterr() == ("", "") and not list(tmp_path.iterdir())

    loaded, [files] = library.load(folder), read_runs([folder])
    assert loaded.seeds == training.agents.seeds == [5, 6, 7] and loaded.config == training.agents.config
    assert loaded.step == training.agents.step and loaded.finished
    for part in ("agent", "hypers", "env_params"):
        assert tree_equal(getattr(loaded, part), getattr(training.agents, part)), part

    np.testing.assert_array_equal(training.steps, files.steps)
    assert training.phases == files.phases and training.metrics.keys() == files.metrics.keys()
    for name, values in files.metrics.items():
        if not name.startswith("fps/") and name != "wall_seconds":
            np.testing.assert_array_equal(training.metrics[name], values, name)
    for name in ("score", "untrained", "zero_shot"):
        np.testing.assert_array_equal(getattr(training, name), files.summary[name])


def test_progress_is_told_at_every_log_point_and_the_run_is_saved(tmp_path, capsys):
    """Two rounds of two phases of two points: of seeds 5 and 6, then of 7."""
    arguments, told = run.parse(ROUNDS), []
    how: dict = {"seed_start": 5, "log_points": 2, "devices": 1, "parallel": 2}
    folder = tmp_path / "saved"
    training = library.train(arguments.config, arguments.hypers, 3, **how, on_progress=told.append, save=folder)
    assert [(p.seeds, p.phase, p.share) for p in told] == [
        (seeds, phase, share) for seeds in ([5, 6], [7]) for phase in ("explore", "task") for share in (0.5, 1.0)
    ]
    assert [p.step for p in told[:4]] == training.steps.tolist() and told[3].seconds == 0
    both = [(a.metrics["eval/score"], b.metrics["eval/score"]) for a, b in zip(told[:4], told[4:], strict=True)]
    scores = np.stack([np.concatenate(pair) for pair in both], 1)
    np.testing.assert_array_equal(scores, training.metrics["eval/score"])

    loaded, [files] = library.load(folder), read_runs([folder])
    for part in ("agent", "hypers", "env_params"):
        assert tree_equal(getattr(loaded, part), getattr(training.agents, part)), part
    for name in ("seeds", "step", "finished", "config"):
        assert getattr(loaded, name) == getattr(training.agents, name), name
    assert files.finished and files.metrics.keys() == training.metrics.keys()
    np.testing.assert_array_equal(files.summary["score"], training.score)
    assert {"curves.png", "novelty.png"} < {path.name for path in folder.iterdir()}
    assert capsys.readouterr() == ("", "")
    with pytest.raises(RunFolderError, match="is not empty; choose another folder to save in"):
        library.train(arguments.config, arguments.hypers, save=folder)
    with pytest.raises(RunFolderError, match=r"no checkpoint can be saved: the name 'a\[1\]'"):
        library.train(arguments.config, arguments.hypers, save=tmp_path / "a[1]")
    with pytest.raises(ConfigError, match=r"set config\.env, and leave env out"):
        library.train(arguments.config, arguments.hypers, env=Corridor(), save=tmp_path / "another")


def test_what_the_progress_raises_ends_the_training():
    arguments = run.parse(ROUNDS)

    def enough(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        library.train(arguments.config, arguments.hypers, 2, log_points=2, devices=1, on_progress=enough)


def test_arguments_that_cannot_work_are_refused():
    config, hypers = library.configure()
    with pytest.raises(ConfigError, match="--seeds must be 1 or more"):
        library.train(config, hypers, 0)
    with pytest.raises(ConfigError, match="--log-points"):
        library.train(config, hypers, log_points=0)
    with pytest.raises(RunFolderError, match="no run's folder"):
        library.load("nowhere")


def as_called(function):
    """As a user calls it: the tests' own check of every type would come first."""
    return inspect.unwrap(function)


class Reached(Exception):
    """The environment that training would have begun in."""


@pytest.fixture
def until_training(monkeypatch):
    """`train` ends where training begins."""

    def reach(env, *rest, **options):
        raise Reached(env)

    monkeypatch.setattr(training, "train_rounds", reach)


WRONG = [
    (
        dataclasses.replace(Corridor(), obs_space=ObsSpace((5,), "real")),
        r"reset gives .* .obs float32\[4\].* be .obs flo",
    ),
    (dataclasses.replace(Corridor(), obs_space=ObsSpace((4,), "binary")), r"float32\[4\].* must be .obs bool\[4\]"),
    (dataclasses.replace(Corridor(), time_limit=0), "time_limit must be"),
    (dataclasses.replace(Corridor(), obs_space=ObsSpace((0, 4), "real")), "a tuple of 1 or more each"),
    (dataclasses.replace(Corridor(), obs_space=ObsSpace((8, 8), "image")), "height, width and channels"),
    (dataclasses.replace(Corridor(), action_space=ActionSpace("discrete", 10**9)), "1 to 65,536 actions"),
    ("Catch-bsuite", "of type str; it must be an envs.Environment, a gymnax environment, or"),
    (gymnasium.make("CartPole-v1"), "it must be an envs.Environment"),
    ((LogWrapper(gymnax.make("CartPole-v1")[0]), None), "is a LogWrapper.* give the CartPole in it"),
]


@pytest.mark.parametrize(("env", "words"), WRONG, ids=range(len(WRONG)))
def test_an_environment_is_checked_before_anything_is_trained(until_training, env, words):
    with pytest.raises(EnvError, match=words) as caught:
        library.train(*library.configure(), env=env)
    assert "\n" not in str(caught.value)


def test_a_gymnax_environment_is_adapted(until_training):
    corridor, (inner, params) = Corridor(), gymnax.make("CartPole-v1")
    with pytest.raises(Reached) as caught:
        library.train(*library.configure(), env=corridor)
    assert caught.value.args == (corridor,)
    for env in (inner, (inner, params)):
        with pytest.raises(Reached) as caught:
            library.train(*library.configure(), env=env)
        assert caught.value.args[0].obs_space == OBS and caught.value.args[0].time_limit == 500


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"config": "tiny"}, "config and hypers must be what `configure` returned"),
        ({"hypers": {"lr": 1e-3}}, "config and hypers must be what `configure` returned"),
        *(
            ({name: value}, f"{name} must be")
            for name in ("seeds", "seed_start", "log_points")
            for value in ("3", 2.5, True)
        ),
        ({"seeds": [0, 1]}, "seeds must be a whole number"),
        ({"parallel": "all"}, "parallel must be"),
        ({"devices": 99}, "devices must be at most 4"),
        ({"memory": "1 GB"}, "memory must be a number of GB"),
    ],
)
def test_arguments_of_another_kind_are_refused(until_training, arguments, words):
    config, hypers = library.configure()
    with pytest.raises(ConfigError, match=words) as caught:
        as_called(library.train)(**{"config": config, "hypers": hypers} | arguments)
    assert "\n" not in str(caught.value)


# ---- acting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [(), (1,)], ids=["one", "batch"])
@pytest.mark.parametrize("greedy", [False, True], ids=["sampled", "greedy"])
def test_a_python_loop_acts_as_the_programs_own_does(agents, lead, greedy):
    """In a numpy environment, row by row with the same keys, beside open_loop.play_rows."""
    key = jr.key(3)
    agent, hypers = pick((agents.agent, agents.hypers), 1)
    play_of = lambda agent, hypers: play_rows(agents.env, agent, agent.tasker, hypers, 1, T, greedy, key=key)
    rows = jax.jit(play_of)(agent, hypers).rows
    assert greedy or set(np.ravel(rows.action)) == {0, 1}

    policy, env = library.policy_of(agents, 6, greedy=greedy), NumpyCorridor()
    state, obs, is_first, last = policy.reset(lead), env.reset(), True, False
    for t, key_step in enumerate(jr.split(jr.split(key)[1], T)):
        np.testing.assert_array_equal(rows.obs[t, 0], obs)
        shaped = lambda x: np.reshape(x, (*lead, *np.shape(x)))
        action, state = policy.act(state, shaped(obs), shaped(is_first), key=jr.split(key_step)[0])
        assert action.shape == lead and action.dtype == jnp.int32
        np.testing.assert_array_equal(action, np.reshape(rows.action[t, 0], lead))
        np.testing.assert_allclose(state.latent.deter.reshape(-1), rows.deter[t, 0], rtol=1e-4, atol=1e-5)
        if is_first := last:
            obs, last = env.reset(), False
        else:
            obs, _, last = env.step(int(action.reshape(())))


def test_a_python_loop_scores_what_evaluate_does(agents):
    key, episodes = jr.key(4), 6
    config = dataclasses.replace(agents.config, eval_episodes=episodes)
    agent, hypers = pick((agents.agent, agents.hypers), 2)
    scores, lengths, _ = jax.jit(lambda a, h: evaluate(agents.env, a, config, h, key=key))(agent, hypers)

    policy, act = library.policy_of(agents, 7), jax.jit(library.Policy.act)
    envs = [NumpyCorridor() for _ in range(episodes)]
    obs, state = np.stack([env.reset() for env in envs]), policy.reset((episodes,))
    done, total, rows, first = np.zeros(episodes, bool), np.zeros(episodes), np.zeros(episodes), True
    for step in range(7):
        key_act = jr.split(jr.fold_in(jr.split(key)[1], step))[0]
        action, state = act(policy, state, obs, np.full(episodes, first), key=key_act)
        rows, first = rows + ~done, False
        for i in np.flatnonzero(~done):
            obs[i], reward, ends = envs[i].step(int(action[i]))
            total[i] += reward
            if ends:
                rows[i], done[i] = rows[i] + 1, True
    np.testing.assert_array_equal(total, scores)
    np.testing.assert_array_equal(rows, lengths)


@pytest.mark.parametrize("policy", ["task", "explore", "random"])
def test_a_seed_alone_acts_as_among_all(agents, policy):
    """All seeds by vmap, N environments each; then each on its own with its key."""
    s, n = len(agents.seeds), 2
    rng = np.random.default_rng(0)
    obs = np.eye(4, dtype=np.float32)[rng.integers(0, 4, (3, s, n))]
    keys = jr.split(jr.key(1), (3, s))
    policies = library.policy_of(agents, policy=policy)
    states, act = policies.reset((s, n)), jax.jit(jax.vmap(library.Policy.act))
    alone = [(library.policy_of(agents, seed, policy=policy), policies.reset((n,))) for seed in agents.seeds]
    for t in range(3):
        first = np.full((s, n), t == 0)
        actions, states = act(policies, states, obs[t], first, key=keys[t])
        assert actions.shape == (s, n)
        for i, (one, state) in enumerate(alone):
            action, state = one.act(state, obs[t, i], first[i], key=keys[t, i])
            np.testing.assert_array_equal(actions[i], action)
            np.testing.assert_allclose(states.latent.deter[i], state.latent.deter, rtol=1e-5, atol=1e-6)
            alone[i] = one, state


def test_acting_goes_into_a_scan(agents):
    policy = library.policy_of(agents, 5)

    def step(state, key):
        action, state = policy.act(state, jnp.zeros((2, 4)), jnp.zeros(2, bool), key=key)
        return state, action

    _, actions = jax.jit(lambda keys: jax.lax.scan(step, policy.reset((2,)), keys))(jr.split(jr.key(0), 5))
    assert actions.shape == (5, 2)


def test_what_cannot_act_says_so_in_one_line(agents):
    policy = library.policy_of(agents, 5)
    for obs, is_first in ((np.zeros(3), False), (np.zeros((2, 4)), False), (np.zeros(4), np.array([False]))):
        wrong = (
            r"is_first is \[1\], but the state is of \[\]" if np.ndim(is_first) else r"the agent was trained on \[4\]"
        )
        with pytest.raises(ConfigError, match=wrong) as caught:
            policy.act(policy.reset(), obs, is_first, key=jr.key(0))
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="no seed 8"):
        library.policy_of(agents, 8)
    with pytest.raises(ConfigError, match="one of task, explore, random"):
        library.policy_of(agents, policy="tasker")
    task = dataclasses.replace(agents, agent=eqx.tree_at(lambda a: a.explorer, agents.agent, None))
    with pytest.raises(ConfigError, match="no explorer"):
        library.policy_of(task, policy="explore")
    with pytest.raises(ConfigError, match=r"agents must be what `load` returned, or `train\(...\).agents`"):
        as_called(library.policy_of)(agents.agent)


def policy_in(obs_space, action_space=ACTIONS):
    """A policy with arbitrary weights."""
    arguments = run.parse(TINY)
    agent = arbitrary(lambda: Agent(arguments.config, obs_space, action_space, key=jr.key(0)))
    return library.Policy(agent.model, agent.tasker, arguments.hypers, greedy=False)


def test_continuous_actions_are_in_their_range():
    """Half of the samples lie beyond it; the model goes on with them as they were drawn, as it was trained."""
    policy = policy_in(OBS, ActionSpace("continuous", 2))
    action, state = policy.act(policy.reset((100,)), np.zeros((100, 4)), np.ones(100, bool), key=jr.key(1))
    assert action.dtype == jnp.float32 and np.abs(action).max() == 1 and np.abs(state.action).max() > 1
    np.testing.assert_array_equal(action, np.clip(state.action.astype(jnp.float32), -1, 1))


IMAGE, CLASSES, BITS = ObsSpace((2, 2, 3), "image"), ObsSpace((4,), "categorical", 5), ObsSpace((4,), "binary")
BAD_OBS = [
    (IMAGE, np.full((2, 2, 3), 0.5), "obs is float64, but the agent was trained on bytes, 0 to 255; scale"),
    (IMAGE, jnp.ones((2, 2, 3)), "obs is float32, but the agent was trained on bytes"),
    (IMAGE, np.full((2, 2, 3), 256), "whole numbers from 0 to 255; obs goes from 256 to 256"),
    (CLASSES, np.ones(4), "obs is float64, but the agent was trained on whole numbers, 0 to 4"),
    (CLASSES, np.array([0, 1, 4, 5]), "whole numbers from 0 to 4; obs goes from 0 to 5"),
    (CLASSES, [0, 1, 4, -1], "whole numbers from 0 to 4; obs goes from -1 to 4"),
    (BITS, [0, 1, 0.5, 0], "whole numbers from 0 to 1; obs goes from 0.0 to 1.0"),
    (BITS, [0, 1, 2, 0], "whole numbers from 0 to 1; obs goes from 0 to 2"),
    (BITS, [0, 1, np.nan, 0], "whole numbers from 0 to 1; obs goes from nan to nan"),
    (OBS, [0, 1, np.nan, 0], "obs is not finite"),
    (OBS, jnp.array([0, 1, jnp.inf, 0]), "obs is not finite"),
    (OBS, np.array([0, 1, 1e300, 0]), "obs is not finite"),
    (OBS, [0, 1, "a", 0], "obs must be an array of numbers, not list"),
    (OBS, [0, [1], 2, 3], "obs must be one array"),
    (OBS, {"obs": np.zeros(4)}, "obs must be an array of numbers, not dict"),
    (OBS, np.zeros(4, complex), "obs must be an array of numbers"),
]


@pytest.mark.parametrize(("space", "obs", "words"), BAD_OBS, ids=range(len(BAD_OBS)))
def test_observations_that_the_agent_was_not_trained_on_are_refused(space, obs, words):
    policy = policy_in(space)
    with pytest.raises(ConfigError, match=words) as caught:
        as_called(library.Policy.act)(policy, policy.reset(), obs, True, key=jr.key(0))
    assert "\n" not in str(caught.value)


def test_types_are_checked_under_jit_and_values_are_not():
    policy = policy_in(IMAGE)
    act = jax.jit(lambda obs: policy.act(policy.reset(), obs, jnp.array(True), key=jr.key(0))[0])
    with pytest.raises(ConfigError, match="obs is float32, but"):
        act(jnp.ones((2, 2, 3)))
    assert act(np.full((2, 2, 3), 7, np.uint8)) == act(np.full((2, 2, 3), 7))
    with pytest.raises(ConfigError, match="is_first must be of bools, not float64"):
        policy.act(policy.reset(), np.zeros((2, 2, 3), np.uint8), 1.0, key=jr.key(0))


@pytest.mark.parametrize(
    ("space", "obs"),
    [
        (IMAGE, np.arange(12).reshape(2, 2, 3)),
        (CLASSES, [0, 1, 4, 2]),
        (BITS, [0.0, 1.0, 1.0, 0.0]),
        (OBS, [0, 1, -2, 3]),
    ],
)
def test_numbers_of_another_type_are_taken_where_they_lose_nothing(space, obs):
    stored = _stored("obs", space, np.asarray(obs))
    assert stored.dtype == space.dtype
    np.testing.assert_array_equal(stored, obs)
