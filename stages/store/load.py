"""Load: a run's folder -> its trained agents, by config.json and the newest checkpoints alone.

Nothing is trained, and nothing in the folder is touched: the run may be at work there. Axes: S seeds.
"""

import dataclasses
import functools
import operator
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import ArrayLike

import envs
from envs.environment import Environment
from stages import train
from stages.agent import Agent
from stages.behavior import Behavior
from stages.cli.arguments import settings_of
from stages.cli.processes import Processes
from stages.config import Config, ConfigError, Hypers
from stages.store.checkpoint import FOLDER, Checkpoints
from stages.store.fingerprint import check_spaces
from stages.store.folder import RunFolder, RunFolderError, read_config
from stages.uniform import RandomPolicy

POLICIES = ("task", "explore", "random")


@dataclass(frozen=True, eq=False)
class Trained:
    """Seeds of a run that were trained side by side, as their newest checkpoint has them."""

    env: Environment  # without what it drew for each seed: env_params
    config: Config  # of the phase that they were in: mode task, after exploring
    seeds: list[int]  # [S]
    step: int  # env steps of a seed so far
    finished: bool  # they took all the steps that the run was asked for
    diverged: dict[int, int]  # seeds that diverged, with the env step at which each did
    agent: Agent  # [S, ...]
    hypers: Hypers  # [S]
    env_params: Any  # [S, ...]


class Loaded(NamedTuple):
    """A run that is looked at."""

    path: Path
    config: Config  # as the run was started
    groups: list[Trained]
    missing: list[int]  # seeds without a checkpoint: their round has not come to its first


class Part(NamedTuple):
    """What of a TrainState is read, [S, ...]. Its names are that one's: a checkpoint knows its arrays by their path."""

    agent: Agent
    hypers: Hypers
    env_params: Any
    diverged: jax.Array | np.ndarray  # rows of each environment


def load(run: str | os.PathLike[str]) -> Loaded:
    """All seeds of a run that have a checkpoint.

    Raises:
        RunFolderError: there is no run, or no checkpoint, or it cannot be read.
        ConfigError: the run was made by another version of this program, or its environment had other spaces.
        EnvError: its environment cannot be made.
    """
    path = Path(os.path.expanduser(run)).absolute()
    saved = read_config(path)
    if saved.get("sweep") and (trials := sorted(each.parent.name for each in path.glob(f"*/{RunFolder.CONFIG}"))):
        raise RunFolderError(f"{str(path)!r} is a sweep of {len(trials)} trials: name one, such as {trials[0]!r} in it")
    config, hypers = settings_of(saved)
    env = envs.make(config.env, dict(config.env_args))
    # Trials of one program are saved together, in the folder around theirs.
    whole = path.parent if not (path / FOLDER).exists() and (path.parent / FOLDER).exists() else path
    trial = path.name if whole != path else ""
    processes = {int(each.name.removeprefix("process-")) for each in (whole / FOLDER).glob("round-*/process-*")}
    groups = [group for index in sorted(processes) for group in _groups(whole, index, env, config, hypers, trial)]
    if not groups:
        why = "is written at the end of a chunk, every --checkpoint-minutes, and at the end of a round"
        if saved.get("checkpoint_keep") == 0:
            why = "was written, since the run was started with --checkpoint-keep 0: train it again without that"
        raise RunFolderError(f"{str(path)!r} holds no checkpoint; one {why}")
    asked = range(saved["seed_start"], saved["seed_start"] + saved["seeds"])
    there = {seed for group in groups for seed in group.seeds}
    return Loaded(path, config, groups, [seed for seed in asked if seed not in there])


def group_of(loaded: Loaded, seed: int) -> Trained:
    """The group that a seed is in. Raises ConfigError."""
    for group in loaded.groups:
        if seed in group.seeds:
            return group
    there = sorted(seed for group in loaded.groups for seed in group.seeds)
    raise ConfigError(f"--seed {seed} has no checkpoint in {str(loaded.path)!r}; choose one of {there}")


def player_of(agent: Agent, policy: str) -> Behavior | RandomPolicy:
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
def take_seeds(tree: Any, places: ArrayLike) -> Any:
    """The seeds at P places of a tree of arrays, [S, ...] -> [P, ...], or the one at a place, [...].

    As one program: array by array, it would be hundreds.
    """
    return jax.tree.map(operator.itemgetter(places), tree)


def _groups(path: Path, process: int, env: Environment, config: Config, hypers: Hypers, trial: str) -> list[Trained]:
    """What one process of the run has saved of a trial, round by round."""
    checkpoints, groups = Checkpoints(path, Processes(process), keep=0, reads=True), []
    there: set[int] = set()
    try:
        # The last rounds first: those of a later rung go on with what earlier ones have left.
        for place in reversed(checkpoints.newest_of_rounds()):
            progress = checkpoints.progress(place)
            check_spaces(progress.get("environment", {}), env, path)
            log = progress["rounds"][place.round]
            mine = log["round"]["mine"]
            own = slice(process * len(mine), (process + 1) * len(mine))
            everyone = log["round"]["seeds"][own]  # without padding
            index = progress.get("trials", [""]).index(trial)  # a copy has one
            trials = log["round"].get("trials", [])[own] or [0] * len(everyone)
            agents = zip(trials, everyone, strict=True)
            places = np.flatnonzero([each == index and seed not in there for each, seed in agents])
            if not places.size:
                continue
            seeds = [everyone[place] for place in places]
            there.update(seeds)
            phase = config if log["phase"] == 0 else dataclasses.replace(config, mode="task")
            shapes = jax.eval_shape(functools.partial(_part, env, config, hypers, len(mine), log["phase"] > 0))
            (part,) = checkpoints.restore(place, (shapes,), part=True)
            agent, own_hypers, env_params, diverged = take_seeds(part, places)
            steps = {seed: int(at) * config.envs for seed, at in zip(seeds, np.asarray(diverged), strict=True) if at}
            finished = place.step >= config.steps + config.adapt_steps
            groups.append(Trained(env, phase, seeds, place.step, finished, steps, agent, own_hypers, env_params))
    finally:
        checkpoints.close()
    return groups[::-1]


def _part(env: Environment, config: Config, hypers: Hypers, width: int, adapted: bool) -> Part:
    """What is read of so many seeds; for its shapes alone."""
    own = jax.tree.map(lambda x: jnp.full(width, x, jnp.float32), hypers)
    init = jax.vmap(lambda hypers, key: train.init(env, config, hypers, key=key))
    state = init(own, jr.split(jr.key(0), width))
    state = jax.vmap(train.adapt)(state) if adapted else state
    return Part(state.agent, state.hypers, state.env_params, state.diverged)
