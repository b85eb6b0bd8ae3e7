"""Training: the loop of run.py without its files and its lines: agents and numbers come back as arrays.

Axes: S seeds, P log points.
"""

import dataclasses
import time
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

import envs
import run
from envs.environment import Environment
from stages.config import Config, Hypers
from stages.library.agents import joined
from stages.replay import Clock
from stages.results.read import tabulated
from stages.runs.arguments import Arguments, check
from stages.runs.load import Trained, take_seeds
from stages.runs.log import RunLog
from stages.runs.processes import Processes
from stages.runs.round_log import RoundLog
from stages.runs.rounds import Phase
from stages.runs.trials import Program
from stages.train import TrainState

Floats = NDArray[np.float64]


class Training(NamedTuple):
    """What `train` returns; numbers as numpy, NaN where there is none."""

    agents: Trained  # their `seeds` are S numbers; every array of theirs is [S, ...]
    steps: NDArray[np.int64]  # [P], env steps of a seed
    phases: list[str]  # [P], the mode: after exploring, adapt_steps are in mode task
    metrics: dict[str, Floats]  # by their names in metrics.jsonl, such as "episode/score", [S, P]
    score: Floats  # [S], mean of the tasker's evaluation episodes at the end
    untrained: Floats  # [S], the same before the first update
    zero_shot: Floats | None  # [S], the same at the end of mode explore; None in other modes


class _Kept:
    """Keeps each round's agents as they are at its end; to the training loop it is what `runs.keeper.Keeper` is."""

    def __init__(self, env: Environment, config: Config, log: RunLog):
        self._env, self._config, self._log = env, config, log
        self.chunks: list[int] = []
        self.side_by_side = 0
        self.groups: list[Trained] = []

    def on_plan(self, phases: list[Phase]) -> None:
        del phases

    def restore(self, index: int) -> None:
        del index

    def on_chunk(self, state: TrainState, clock: Clock) -> None:
        del state, clock

    def on_round_end(self, index: int, state: TrainState, clock: Clock) -> None:
        log, config = self._log.rounds[index], self._config
        places = np.arange(len(log.round.seeds))  # without padding
        parts = take_seeds((state.agent, state.hypers, state.env_params), places)
        config = config if log.phase == 0 else dataclasses.replace(config, mode="task")
        step = int(clock.step) * config.envs
        self.groups.append(Trained(self._env, config, log.round.seeds, step, True, log.diverged_at, *parts))

    def close(self) -> None:
        pass


def train(
    config: Config,
    hypers: Hypers,
    seeds: int = 1,
    *,
    seed_start: int = 0,
    env: Environment | None = None,
    log_points: int = 20,
    devices: int = 0,
    parallel: Literal["auto"] | int = "auto",
    memory: float = 0.0,
) -> Training:
    """Train `seeds` agents, as `run.py` with the same settings does, to the bit; nothing is printed or written.

    jax is used as it is. What `run.py` does before it starts, `stages.runs.start.start_jax()` does here too, if it is
    called before jax makes its first array: a virtual device for each core, and a cache for compiled programs.

    Args:
        config: of `configure`.
        hypers: of `configure`.
        seeds: how many; their numbers begin at `seed_start`.
        env: an environment that was made already; None makes `config.env`.
        log_points: P, at most; of each phase.
        devices: to share the seeds out over; 0 takes all.
        parallel: seeds side by side, the others in further rounds; "auto": as many as fit.
        memory: GB that all may take (on accelerators: of each device); 0: 80 % of what is free.

    Raises:
        ConfigError: an argument that cannot work, or not even one seed fits into the memory.
        EnvError: the environment cannot be made.
    """
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
    env = envs.make(config.env, dict(config.env_args)) if env is None else env
    log = RunLog(arguments, None, Processes(), time.time(), states=env.states, has_goal=env.goal is not None, table=[])
    kept = _Kept(env, config, log)
    run.run(Program("", arguments, log.trials), env, log.processes, kept, log)
    agents, whole = joined(kept.groups), RoundLog.of_all(log.rounds)
    steps, phases, metrics = tabulated(log.table or [], agents.seeds)
    zero_shot = whole.zero_shot if config.mode == "explore" else None
    return Training(agents, steps, phases, metrics, whole.final, whole.untrained, zero_shot)
