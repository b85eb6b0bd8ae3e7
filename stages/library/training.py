"""Training: the loop of run.py without its files and its lines: agents and numbers come back as arrays.

Axes: S seeds, P log points.
"""

import dataclasses
import time
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

import envs
from envs import own
from envs.environment import Environment
from stages.cli.arguments import Arguments, check
from stages.cli.processes import Processes
from stages.config import Config, ConfigError, Hypers
from stages.library.agents import joined
from stages.log.round_log import RoundLog
from stages.log.run_log import RunLog, RunSetup
from stages.loop.training_loop import train_rounds
from stages.replay import StepCounters
from stages.report.read import tabulated
from stages.report.statistics import Floats
from stages.store.load import AgentBatch, take_seeds
from stages.sweep.start import local_devices
from stages.sweep.trials import Trial
from stages.train import TrainState


class Training(NamedTuple):
    """What `train` returns; numbers as numpy, NaN where there is none."""

    agents: AgentBatch  # their `seeds` are S numbers; every array of theirs is [S, ...]
    steps: NDArray[np.int64]  # [P], env steps of a seed
    phases: list[str]  # [P], the mode: after exploring, adapt_steps are in mode task
    metrics: dict[str, Floats]  # by their names in metrics.jsonl, such as "episode/score", [S, P]
    score: Floats  # [S], mean of the tasker's evaluation episodes at the end
    untrained: Floats  # [S], the same before the first update
    zero_shot: Floats | None  # [S], the same at the end of mode explore; None in other modes


def _trained(env: Environment, config: Config, log: RoundLog, state: TrainState, clock: StepCounters) -> AgentBatch:
    """A round's agents at its end, without padding."""
    parts = take_seeds((state.agent, state.hypers, state.env_params), np.arange(len(log.round.seeds)))
    config = config if log.phase == 0 else dataclasses.replace(config, mode="task")
    step = int(clock.step) * config.envs
    return AgentBatch(env, config, log.round.seeds, step, True, log.diverged_at, *parts)


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
) -> Training:
    """Train `seeds` agents, as `run.py` with the same settings does, to the bit; nothing is printed or written.

    jax is used as it is. What `run.py` does before it starts, `stages.sweep.start.start_jax()` does here too, if it is
    called before jax makes its first array: a virtual device for each core, and a cache for compiled programs.

    Args:
        config: of `configure`.
        hypers: of `configure`.
        seeds: how many; their numbers begin at `seed_start`.
        env: an environment that was made already: an `envs.Environment`, a gymnax environment, or (gymnax environment,
            parameters); None makes `config.env`.
        log_points: P, at most; of each phase.
        devices: to share the seeds out over; 0 takes all.
        parallel: seeds side by side, the others in further rounds; "auto": as many as fit.
        memory: GB that all may take (on accelerators: of each device); 0: 80 % of what is free.

    Raises:
        ConfigError: an argument that cannot work, or not even one seed fits into the memory.
        EnvError: the environment cannot be made, or is none.
    """
    if not isinstance(config, Config) or not isinstance(hypers, Hypers):
        raise ConfigError("config and hypers must be what `configure` returned: config, hypers = configure(...)")
    integers = {"seeds": seeds, "seed_start": seed_start, "log_points": log_points, "devices": devices}
    for name, value in (integers | ({} if parallel == "auto" else {"parallel": parallel})).items():
        if not isinstance(value, int | np.integer) or isinstance(value, bool):
            raise ConfigError(f"{name} must be a whole number, not {value!r}")
    if not isinstance(memory, int | float) or isinstance(memory, bool):
        raise ConfigError(f"memory must be a number of GB, not {memory!r}")
    if devices > len(local_devices()):
        raise ConfigError(f"devices must be at most {len(local_devices())}, as many as there are, not {devices}")
    arguments = Arguments(
        seeds=seeds,
        seed_start=seed_start,
        log_points=log_points,
        devices=devices,
        parallel=parallel,
        memory=memory,
        config=config,
        hypers=hypers,
    )
    check(arguments)
    env = envs.make(config.env, dict(config.env_args)) if env is None else own.checked("env", env)
    setup = RunSetup.of(arguments, [Trial("", arguments)], env, Processes())
    log, groups = RunLog(setup, time.time(), table=[]), []

    def keep(ended: RoundLog, state: TrainState, clock: StepCounters) -> None:
        groups.append(_trained(env, config, ended, state, clock))

    train_rounds(env, log, on_round_end=keep)
    agents, merged = joined(groups), RoundLog.of_all(log.rounds)
    steps, phases, metrics = tabulated(log.table or [], agents.seeds)
    zero_shot = merged.zero_shot if config.mode == "explore" else None
    return Training(agents, steps, phases, metrics, merged.final, merged.untrained, zero_shot)
