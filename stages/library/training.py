"""Training: run.py's loop from Python. It prints nothing, writes files only if asked, and returns agents and numbers.

jax is not configured here. Call `stages.sweep.start.start_jax()` before jax makes its first array to configure it as
run.py does: a virtual device for each core, and a cache for compiled programs.

Axes: S seeds, P log points.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

import envs
from envs import own
from envs.environment import Environment
from stages.cli.arguments import Arguments, check
from stages.cli.processes import Processes
from stages.cli.validate import check_countable
from stages.config import Config, ConfigError, Hypers
from stages.library.agents import joined
from stages.library.save import empty_folder, save_run
from stages.log.lines import Pace
from stages.log.round_log import RoundLog, SeedValues
from stages.log.run_log import MetricRow, RunLog, RunSetup
from stages.loop.training_loop import train_rounds
from stages.replay import StepCounters
from stages.results.read import tabulated
from stages.results.statistics import Floats
from stages.store.load import AgentBatch, take_seeds
from stages.sweep.start import local_devices
from stages.sweep.trials import Trial
from stages.train import TrainState


class Training(NamedTuple):
    """What `train` returns. Numbers are numpy arrays, with NaN for missing values."""

    agents: AgentBatch  # of all seeds: every array is [S, ...]
    steps: NDArray[np.int64]  # [P], rows of a seed
    phases: list[str]  # [P], the mode: after exploring, adapt_steps are in mode task
    metrics: dict[str, Floats]  # by their names in metrics.jsonl, such as "episode/score", [S, P]
    score: SeedValues  # [S], mean of the tasker's evaluation episodes at the end
    untrained: SeedValues  # [S], the same before the first update
    zero_shot: SeedValues | None  # [S], the same at the end of mode explore; None in other modes


def _trained(env: Environment, config: Config, log: RoundLog, state: TrainState, counters: StepCounters) -> AgentBatch:
    """A round's agents at its end, without padding."""
    parts = take_seeds((state.agent, state.hypers, state.env_params), np.arange(len(log.round.seeds)))
    config = config if log.phase == 0 else dataclasses.replace(config, mode="task")
    step = int(counters.step) * config.envs
    return AgentBatch(env, config, log.round.seeds, step, True, log.diverged_at, *parts)


class TrainingProgress(NamedTuple):
    """The progress of `train` at a log point of a round."""

    phase: str  # the mode
    step: int  # of a seed
    share: float  # of the phase that is done
    seconds: float  # estimated, until the phase's end
    seeds: list[int]  # of the round, [R]
    metrics: dict[str, Floats]  # at this point, by their names in metrics.jsonl, [R]; NaN where there is none


def train(
    config: Config,
    hypers: Hypers,
    seeds: int = 1,
    *,
    seed_start: int = 0,
    env: object = None,
    log_points: int = 20,
    devices: int = 0,
    parallel: Literal["auto"] | int = "auto",
    memory: float = 0.0,
    on_progress: Callable[[TrainingProgress], object] | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Training:
    """Train `seeds` agents. Numbers equal those of `run.py` with the same settings bit for bit; nothing is printed.

    Args:
        config: what `configure` returned.
        hypers: what `configure` returned.
        seeds: how many; their numbers begin at `seed_start`.
        env: an environment object: an `envs.Environment`, a gymnax environment, or (gymnax environment,
            parameters); None makes `config.env`.
        log_points: of each phase, at most.
        devices: to share the seeds out over; 0 takes all.
        parallel: seeds side by side, the others in further rounds; "auto": as many as fit.
        memory: GB that training may take (on accelerators: on each device); 0: 80 % of the free memory.
        on_progress: called at each log point of each round; an exception that it raises ends the training.
        save: an empty or new folder that holds the finished run at the end: `load`, eval, video, report and compare
            read it. Without it nothing is written.

    Raises:
        ConfigError: an argument that cannot work, or not even one seed fits into the memory.
        RunFolderError: the folder to save in is not empty, or cannot be written.
        EnvError: the environment cannot be made, or `env` is no environment.
    """
    where = {"devices": devices, "parallel": parallel, "memory": memory}
    arguments = _arguments(config, hypers, {"seeds": seeds, "seed_start": seed_start, "log_points": log_points}, where)
    folder = None if save is None else _folder(save, env)
    env = envs.make(config.env, dict(config.env_args)) if env is None else own.checked("env", env)
    check_countable(config, env.name, env.states is not None)
    setup = RunSetup.of(arguments, [Trial("", arguments)], env, Processes())
    log, groups = RunLog(setup, time.monotonic(), table=[]), []
    if on_progress is not None:
        log.on_point = lambda rows, pace: on_progress(_progress(rows, pace))

    def keep(ended: RoundLog, state: TrainState, counters: StepCounters) -> None:
        groups.append(_trained(env, config, ended, state, counters))

    train_rounds(env, log, on_round_end=keep)
    if folder is not None:
        save_run(folder, log, groups)
    return _result(log, joined(groups))


def _folder(save: str | os.PathLike[str], env: object) -> Path:
    """The folder to save in. Raises ConfigError where the run's environment could not be made again from it."""
    if env is not None:
        raise ConfigError("save needs an environment that can be made again: set config.env, and leave env out")
    return empty_folder(save)


def _result(log: RunLog, agents: AgentBatch) -> Training:
    """The result of a finished training."""
    merged = RoundLog.of_all(log.rounds)
    steps, phases, metrics = tabulated(log.table or [], agents.seeds)
    zero_shot = merged.zero_shot if log.setup.arguments.config.mode == "explore" else None
    return Training(agents, steps, phases, metrics, merged.final, merged.untrained, zero_shot)


def _arguments(config: object, hypers: object, counts: Mapping[str, Any], where: Mapping[str, Any]) -> Arguments:
    """The same settings as the command line's arguments.

    Args:
        counts: seeds, seed_start and log_points.
        where: devices, parallel and memory.

    Raises:
        ConfigError: an argument that cannot work.
    """
    if not isinstance(config, Config) or not isinstance(hypers, Hypers):
        raise ConfigError("config and hypers must be what `configure` returned: config, hypers = configure(...)")
    integers = {name: value for name, value in {**counts, **where}.items() if name != "memory" and value != "auto"}
    for name, value in integers.items():
        if not isinstance(value, int | np.integer) or isinstance(value, bool):
            raise ConfigError(f"{name} must be a whole number, not {value!r}")
    if not isinstance(where["memory"], int | float) or isinstance(where["memory"], bool):
        raise ConfigError(f"memory must be a number of GB, not {where['memory']!r}")
    if where["devices"] > len(local_devices()):
        raise ConfigError(
            f"devices must be at most {len(local_devices())}, as many as there are, not {where['devices']}"
        )
    arguments = Arguments(config=config, hypers=hypers, **counts, **where)
    check(arguments)
    return arguments


def _progress(rows: Sequence[MetricRow], pace: Pace) -> TrainingProgress:
    """Rows of metrics.jsonl at one point -> what `on_progress` is told."""
    seeds = [row["seed"] for row in rows]
    [step], [phase], columns = tabulated(rows, seeds)
    return TrainingProgress(
        phase, int(step), pace.share, pace.seconds, seeds, {name: x[:, 0] for name, x in columns.items()}
    )
