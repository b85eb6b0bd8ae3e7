"""Load: a run's folder -> its trained agents, by config.json and the newest checkpoints alone.

Nothing is trained, and nothing in the folder is changed: the run may still be training. Axes: S seeds.
"""

import contextlib
import dataclasses
import functools
import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import jax
import jax.random as jr
import numpy as np
from jaxtyping import ArrayLike, PRNGKeyArray, PyTree

import envs
from envs.envelope_suite import is_suites
from envs.environment import Environment
from envs.own import is_own
from stages import train
from stages.agent import Agent
from stages.behavior import Behavior
from stages.cli.processes import Processes
from stages.cli.saved_settings import settings_of
from stages.cli.validate import check_env_module
from stages.config import Config, ConfigError, Hypers
from stages.store.best import best_points
from stages.store.checkpoint import FOLDER, CheckpointId, Checkpoints, stored
from stages.store.files import RunFolderError, full_path
from stages.store.fingerprint import check_spaces
from stages.store.folder import RunFolder, read_config
from stages.uniform import RandomPolicy

MOST_READS = 20
"""How often reading starts again because a run that is training has replaced a checkpoint."""
POLICIES = ("task", "explore", "random")


@dataclass(frozen=True, eq=False)
class AgentBatch:
    """Agents of seeds that were trained side by side, from their newest checkpoint: the last ones, or the best."""

    env: Environment  # without env_params, the parameters that it drew for each seed
    config: Config  # of the phase that they were in: mode task, after exploring
    seeds: list[int]  # [S]
    step: int  # rows that each seed has collected
    finished: bool  # they took all the steps that the run was asked for
    diverged: dict[int, int]  # seeds that diverged, with the row at which each did
    agent: Agent  # [S, ...]
    hypers: Hypers  # [S]
    env_params: PyTree  # [S, ...]
    best_steps: list[int] | None = None  # [S], env step of each seed's best agent; None: these are the newest agents
    environment: Mapping[str, str] = field(default_factory=dict)  # the environment's fingerprint when they were saved

    @property
    def agent_steps(self) -> dict[int, int]:
        """Seed -> the env step at which its agent was kept."""
        return dict(zip(self.seeds, self.best_steps or [self.step] * len(self.seeds), strict=True))


class Loaded(NamedTuple):
    """A run that was loaded."""

    path: Path
    config: Config  # as the run was started
    groups: list[AgentBatch]
    missing: list[int]  # seeds without a checkpoint, as their round has not saved one yet


class Part(NamedTuple):
    """The parts of a TrainState that are read, [S, ...]. Names are TrainState's: checkpoints store arrays by path."""

    agent: Agent | None  # None where the best agents are read instead
    hypers: Hypers
    env_params: PyTree
    diverged: jax.Array | np.ndarray  # rows of each environment when the seed diverged; 0: it has not


def load_run(run: str | os.PathLike[str], trust: bool = False, best: bool = False) -> Loaded:
    """All seeds of a run that have a checkpoint.

    Args:
        trust: import the module that the run's config.json names, where its environment is a user's own.
        best: load each seed's agent of its highest evaluation score; the run needs --checkpoint-best.

    Raises:
        RunFolderError: there is no run, or no checkpoint, or it cannot be read; or it holds no best agents.
        ConfigError: the run was made by another version of this program, or its environment had other spaces; or the
            environment is a user's own and is not trusted.
        EnvError: its environment cannot be made.
    """
    path = full_path(run)
    saved = read_config(path)
    if saved.get("sweep") and (trials := sorted(config.parent.name for config in path.glob(f"*/{RunFolder.CONFIG}"))):
        raise RunFolderError(f"{str(path)!r} is a sweep of {len(trials)} trials: name one, such as {trials[0]!r} in it")
    config, hypers = settings_of(saved)
    _check_trusted(config.env, trust, path)
    env = envs.make(config.env, dict(config.env_args))
    if best and not saved.get("checkpoint_best"):
        raise RunFolderError(
            f"{str(path)!r} holds no best agents: only runs with --checkpoint-best keep them; leave --best out"
        )
    # Trials of one program are saved together, in the folder around theirs.
    saved_in = path.parent if not (path / FOLDER).exists() and (path.parent / FOLDER).exists() else path
    trial = path.name if saved_in != path else ""
    processes = sorted({process for _, process in stored(saved_in / FOLDER)})
    what = _Wanted(env, config, hypers, trial, best)
    groups = [group for index in processes for group in _groups(saved_in, index, what)]
    if not groups:
        why = "one is written at the end of a chunk, every --checkpoint-minutes, and at the end of a round"
        if saved.get("checkpoint_keep") == 0:
            why = "the run was started with --checkpoint-keep 0; train it again without that"
        raise RunFolderError(f"{str(path)!r} holds no checkpoint: {why}")
    asked = range(saved["seed_start"], saved["seed_start"] + saved["seeds"])
    loaded = {seed for group in groups for seed in group.seeds}
    return Loaded(path, config, groups, [seed for seed in asked if seed not in loaded])


def _check_trusted(env: str, trust: bool, path: Path) -> None:
    """Raise ConfigError if the run's folder names code to import and call, and the user has not given `trust`."""
    check_env_module(env)
    if is_own(env) and not is_suites(env) and not trust:
        raise ConfigError(
            f"the run in {str(path)!r} has the environment {env!r}: to look at the run imports that module and calls "
            "what it names; give --trust (trust=True in Python) if you trust the folder"
        )


def group_of(loaded: Loaded, seed: int) -> AgentBatch:
    """The group that a seed is in. Raises ConfigError."""
    for group in loaded.groups:
        if seed in group.seeds:
            return group
    seeds = sorted(seed for group in loaded.groups for seed in group.seeds)
    raise ConfigError(f"--seed {seed} has no checkpoint in {str(loaded.path)!r}; choose one of {seeds}")


def select_behavior(agent: Agent, policy: str) -> Behavior | RandomPolicy:
    """Who plays: the tasker, the explorer, or chance. Raises ConfigError where there is no explorer."""
    if policy == "random":
        return RandomPolicy(agent.model.actions)
    if policy == "task":
        return agent.tasker
    if agent.explorer is None:
        raise ConfigError(
            "the run has no explorer: only modes explore and mix train one, and --adapt-steps leaves it behind; choose "
            "--policy task"
        )
    return agent.explorer


@jax.jit
def take_seeds(tree: PyTree, slots: ArrayLike) -> PyTree:
    """The seeds in P slots of a tree of arrays, [S, ...] -> [P, ...], or the seed in one slot, [...].

    Jitted as one program: indexing array by array would compile hundreds.
    """
    return jax.tree.map(operator.itemgetter(slots), tree)


class _Wanted(NamedTuple):
    """What is read of a run's checkpoints."""

    env: Environment
    config: Config
    hypers: Hypers
    trial: str
    best: bool


def _groups(path: Path, process: int, wanted: _Wanted) -> list[AgentBatch]:
    """The agents of a trial that one process of the run has saved, round by round.

    Reading starts again if the run replaces a checkpoint meanwhile.
    """
    for _ in range(MOST_READS):
        with contextlib.closing(Checkpoints(path, Processes(process), keep=0, reads=True)) as checkpoints:
            newest = checkpoints.newest_of_rounds()
            try:
                groups = [_group(checkpoints, checkpoint, path, wanted) for checkpoint in newest]
                return [group for group in groups if group is not None]
            except RunFolderError:
                with contextlib.closing(Checkpoints(path, Processes(process), keep=0, reads=True)) as present:
                    if present.newest_of_rounds() == newest:
                        raise
    raise RunFolderError(
        f"the run at work in {str(path)!r} replaces its checkpoints faster than they are read: wait for its end, or go "
        "on with it with a higher --checkpoint-keep"
    )


def _group(checkpoints: Checkpoints, checkpoint: CheckpointId, path: Path, wanted: _Wanted) -> AgentBatch | None:
    """The seeds of a trial in a checkpoint; None where there are none. Raises RunFolderError, ConfigError."""
    env, config, hypers, trial, best = wanted
    process, progress = checkpoints.processes.index, checkpoints.progress(checkpoint)
    environment = progress.get("environment", {})
    check_spaces(environment, env, path)
    log = progress["rounds"][checkpoint.round]
    width, adapted = len(log["round"]["mine"]), log["phase"] > 0
    local = slice(process * width, (process + 1) * width)
    local_seeds = log["round"]["seeds"][local]  # without padding
    trials = log["round"].get("trials", [])[local] or [0] * len(local_seeds)
    index = progress.get("trials", [""]).index(trial)  # an exported copy has "" alone
    slots = np.flatnonzero(np.equal(trials, index))
    if not slots.size:
        return None
    part, best_steps = _part(env, config, hypers, width, adapted), log.get("best_steps")  # in a copy of best agents
    if best and best_steps is None:
        # The checkpoint has the state, the counters and the best agents.
        without, _, agent = checkpoints.restore(checkpoint, (part._replace(agent=None), None, part.agent), part=True)
        part, evaluation = without._replace(agent=agent), log["evaluation"]
        points = best_points(evaluation["steps"], evaluation["scores"])
        best_steps = [points.step[local.start + slot] for slot in slots]
    else:
        (part,) = checkpoints.restore(checkpoint, (part,), part=True)
    agent, agent_hypers, env_params, diverged = take_seeds(part, slots)
    seeds = [local_seeds[slot] for slot in slots]
    return AgentBatch(
        env=env,
        config=dataclasses.replace(config, mode="task") if adapted else config,
        seeds=seeds,
        step=checkpoint.step,
        finished=checkpoint.step >= config.steps + config.adapt_steps,
        diverged={seed: int(row) * config.envs for seed, row in zip(seeds, np.asarray(diverged), strict=True) if row},
        agent=agent,
        hypers=agent_hypers,
        env_params=env_params,
        best_steps=best_steps,
        environment=environment,
    )


@functools.lru_cache(maxsize=1)  # tracing takes seconds, and checkpoints of a run at work may have to be read again
def _part(env: Environment, config: Config, hypers: Hypers, width: int, adapted: bool) -> Part:
    """The shapes of what is read of so many seeds."""

    def part_of_seed(key: PRNGKeyArray) -> Part:
        state = train.init(env, config, hypers, key=key)
        state = train.adapt(state) if adapted else state
        return Part(state.agent, state.hypers, state.env_params, state.diverged)

    return jax.eval_shape(lambda: jax.vmap(part_of_seed)(jr.split(jr.key(0), width)))
