"""Rounds: how many seeds fit side by side, and how a sweep's seeds are assigned to rounds and processes.

A round is P slots of each process, whose seeds are trained side by side from their first step to their last evaluation.
All rounds run the same executables. A slot without a seed trains the last seed once more (padding), and its results
are dropped. With several trials (settings), every trial has all seeds, and a slot is a seed of a trial.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import jax
import numpy as np

from envs.environment import Environment
from stages.cli.processes import Processes
from stages.config import Config, ConfigError, Hypers
from stages.evaluate import TaskerScores
from stages.replay import StepCounters
from stages.sweep import memory
from stages.sweep.memory import Devices, format_bytes
from stages.sweep.sweep import CompiledPhase, mesh_for
from stages.train import TrainState


@dataclass(frozen=True)
class Round:
    """Seeds that are trained at the same time."""

    seeds: list[int]  # of all processes, without padding
    mine: list[int]  # [P], this process's, with padding
    trials: list[int] = field(default_factory=list)  # of each of `seeds`; empty: there is one trial
    mine_trials: list[int] = field(default_factory=list)  # of each of `mine`

    def slots(self, trial: int) -> list[int]:
        """The indices of a trial's seeds among `seeds`."""
        if not self.trials:
            return list(range(len(self.seeds)))
        return [slot for slot, number in enumerate(self.trials) if number == trial]

    def hypers(self, trial_hypers: Sequence[Hypers]) -> Hypers:
        """The hyperparameters of each of `mine`, [P], from those of each trial."""
        records = [trial_hypers[trial] for trial in self.mine_trials or [0] * len(self.mine)]
        return jax.tree.map(lambda *values: np.array(values, np.float32), *records)


class Phase(NamedTuple):
    """A part of a round in one mode: `chunks` calls of `chunk_iterations` iterations each (Config.schedule)."""

    compiled: CompiledPhase
    chunk_iterations: int
    chunks: int

    @property
    def total_iterations(self) -> int:
        """Iterations of the whole phase."""
        return self.chunk_iterations * self.chunks


class Fit(NamedTuple):
    """What fits side by side in one process."""

    width: int  # P; 0: not even the minimum fits
    phases: list[Phase]  # compiled for it
    need: float  # bytes that it needs
    all_need: float  # bytes that all seeds of the process side by side would have needed


class Plan(NamedTuple):
    """The compiled phases and the rounds of a run."""

    phases: list[Phase]  # compiled
    rounds: list[Round]
    parameters: dict[str, int]  # of a seed, by part
    description: str  # a line: what runs side by side, and why
    steps: int = 0  # of a seed, in all phases


class Evaluator:
    """Evaluations of one round's seeds. The env step alone decides which random stream draws the episodes."""

    def __init__(self, round: Round, processes: Processes):
        self.round, self.processes = round, processes

    def __call__(self, compiled: CompiledPhase, state: TrainState, counters: StepCounters) -> TaskerScores:
        """The tasker's mean scores over evaluation episodes."""
        played = compiled.evaluate(state, self.round.mine, int(counters.step))
        means = self.processes.gather([np.asarray(x).mean(1) for x in (played.score, played.expected_score)])
        return TaskerScores(*(mean[: len(self.round.seeds)] for mean in means))


def split_chunks(config: Config, rows: int, log_points: int) -> tuple[int, int]:
    """(iterations of a chunk, chunks) that collect so many rows or little more. Chunks are equal: one is compiled."""
    iterations = -(-_iterations(config, rows) // log_points)
    return iterations, _chunks(config, rows, iterations)


def _iterations(config: Config, rows: int) -> int:
    return max(1, -(-rows // (config.schedule[0] * config.envs)))


def _chunks(config: Config, rows: int, iterations: int) -> int:
    return -(-_iterations(config, rows) // iterations)


def phases_of(
    env: Environment,
    config: Config,
    devices: Devices,
    width: int,
    log_points: int,
    chunk_iterations: Sequence[int] = (),
) -> list[Phase]:
    """The phases of a round of `width` seeds on these devices, not compiled yet.

    Args:
        log_points: chunks in each phase, at most.
        chunk_iterations: in each phase, of a resumed run, which keeps its chunks; else empty.
    """
    mesh, task = mesh_for(width, devices), dataclasses.replace(config, mode="task")
    prefilled = config.prefill * config.envs
    wanted = [(config, config.steps - prefilled)] + ([(task, config.adapt_steps)] if config.adapt_steps else [])
    if chunk_iterations:
        split = [(n, _chunks(*phase, n)) for phase, n in zip(wanted, chunk_iterations, strict=True)]
    else:
        split = [split_chunks(*phase, log_points) for phase in wanted]
    # Rows that are collected, which may be more than asked for since chunks are equal: the ring must hold all of them.
    rows = [n * chunks * part.schedule[0] * part.envs for (part, _), (n, chunks) in zip(wanted, split, strict=True)]
    exact = {"steps": prefilled + rows[0], "adapt_steps": sum(rows[1:])}
    return [
        Phase(CompiledPhase(env, dataclasses.replace(phase_config, **exact), mesh), n, chunks)
        for (phase_config, _), (n, chunks) in zip(wanted, split, strict=True)
    ]


def prepare(phases: list[Phase], width: int, usable: float) -> float:
    """Compile all that the phases run, and return the bytes needed: of all devices if they share memory, else of each.

    Nothing is allocated. If a lower bound (the states of all seeds, and what one seed takes beside its state at least)
    is above `usable`, nothing is compiled either, and the bound is returned.
    """
    (first, iterations, _), *adapting = phases
    pools = first.mesh.size if memory.shared(list(first.mesh.devices)) else 1
    state, counters = first.shapes(width)
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) / first.mesh.size * pools
    minimum = held + first.min_bytes_per_seed(state)
    if minimum > usable:
        return minimum
    try:
        needs = [first.prepare(state, counters, iterations)]
        needs += [phase.compiled.prepare(state, counters, phase.chunk_iterations, adapts=True) for phase in adapting]
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):  # a TPU's compiler raises this for a program that does not fit
            raise
        return math.inf
    return max(needs) * pools


def round_width(seeds: int, devices: int, limit: float) -> int:
    """The seeds of a round, P: for the fewest rounds of at most `limit` seeds, equally full, on equally full devices.

    P is a multiple of the devices, or fewer than them. Rounded up, it can exceed `seeds`.
    """
    limit = int(min(_slots_for(seeds, devices), limit))
    limit = limit if limit <= devices else limit // devices * devices
    return _slots_for(-(-seeds // -(-seeds // limit)), devices) if limit else 0


def _slots_for(seeds: int, devices: int) -> int:
    """Slots for so many seeds: equally many on each device where there are more seeds than devices."""
    return seeds if seeds <= devices else -(-seeds // devices) * devices


def fit_width(
    seeds: int,
    devices: Devices,
    build: Callable[[int], list[Phase]],
    usable: Callable[[], float],
    limit: float = math.inf,
    minimum: int = 1,
) -> Fit:
    """The widest round that fits into `usable()` bytes, compiled. Narrower rounds are compiled until one fits.

    Args:
        seeds: of this process.
        build: width -> phases, not compiled.
        usable: bytes; asked again after compiling, since the compiler's leftovers count.
        limit: seeds side by side at most.
        minimum: give up where not even so many fit.
    """
    width, all_need = round_width(seeds, len(devices), limit), 0.0
    while True:
        built = build(width)
        need = prepare(built, width, usable())
        available = usable()
        if not math.isinf(need):
            all_need = max(all_need, need * max(1, seeds / width))
        if need <= available:
            return Fit(width, built, need, all_need)
        if width <= minimum:
            return Fit(0, built, need, all_need)
        guess = width // 2 if math.isinf(need) else int(width * available / need)
        width = round_width(seeds, len(devices), max(minimum, min(guess, width - 1)))


# ---- the sweep's rounds --------------------------------------------------------------------------------------------


def assign(seeds: list[int], width: int, processes: Processes, trials: Sequence[int] = ()) -> list[Round]:
    """Assign the seeds of each trial to rounds of `width` slots for each process, trial by trial."""
    pairs = [(trial, seed) for trial in trials or [0] for seed in seeds]
    block, rounds = width * processes.count, []
    for start in range(0, len(pairs), block):
        in_round = pairs[start : start + block]
        slots = in_round + in_round[-1:] * (block - len(in_round))
        local = slots[processes.index * width :][:width]
        numbers = [[trial for trial, _ in pairs] if trials else [] for pairs in (in_round, local)]
        rounds.append(Round([seed for _, seed in in_round], [seed for _, seed in local], *numbers))
    return rounds


def plan(
    seeds: list[int],
    devices: Devices,
    processes: Processes,
    build: Callable[[int], list[Phase]],
    *,
    trials: Sequence[int] = (),
    parallel: int | Literal["auto"] = "auto",
    allowed: float = 0.0,
) -> Plan:
    """Compile for as many seeds side by side as fit, in all processes.

    Args:
        seeds: of the whole sweep.
        devices: of this process.
        build: width -> phases, not compiled.
        trials: the trials' indices; each trains all of the seeds. Empty: there is one trial.
        parallel: seeds side by side in all processes together; a number is not reduced if it does not fit.
        allowed: bytes that a process may use, of each device where they have their own; 0: a share of what is free.

    Raises:
        ConfigError: not even one seed fits, or not as many as `parallel` wants; in all processes.
    """
    budget = memory.MemoryBudget(devices, processes.on_this_machine() if memory.shared(devices) else 1, allowed)
    agents = len(seeds) * max(1, len(trials))
    process_seeds = -(-agents // processes.count)
    if parallel == "auto":
        fitted = fit_width(process_seeds, devices, build, budget.usable, minimum=_min_width(process_seeds, devices))
    else:
        limit = math.inf if parallel >= agents else max(1, parallel // processes.count)
        minimum = round_width(process_seeds, len(devices), limit)
        fitted = fit_width(process_seeds, devices, build, budget.free, limit, minimum)
    agreed = min(int(answer) for answer in processes.exchange(b"%d" % fitted.width))
    if not agreed:
        raise _memory_error(fitted, budget.describe(), parallel)
    fitted = _narrowed(fitted, agreed, build)
    rounds = assign(seeds, agreed, processes, trials)
    description = _describe(fitted, rounds, processes, budget.describe(), tight=fitted.need > budget.usable())
    compiled, config = fitted.phases[0].compiled, fitted.phases[0].compiled.config
    return Plan(fitted.phases, rounds, compiled.parameters(agreed), description, config.steps + config.adapt_steps)


def _min_width(process_seeds: int, devices: Devices) -> int:
    """Seeds side by side that need the least memory: on accelerators one on each device, which share none."""
    return 1 if memory.shared(devices) else min(process_seeds, len(devices))


def _narrowed(fitted: Fit, width: int, build: Callable[[int], list[Phase]]) -> Fit:
    """Reduce to as many seeds as fit in every process; compiles again if more would have fitted in this process."""
    if width == fitted.width:
        return fitted
    built = build(width)
    return Fit(width, built, prepare(built, width, math.inf), fitted.all_need)


def _memory_error(fitted: Fit, budget: str, parallel: int | Literal["auto"]) -> ConfigError:
    """Why the sweep does not fit, and what to do."""
    if fitted.width:
        return ConfigError("the sweep does not fit into the memory of another process")
    problem = "not even one seed fits" if parallel == "auto" else f"--parallel {parallel} does not fit"
    advice = "or take a smaller --preset" if parallel == "auto" else "or leave --parallel at auto"
    return ConfigError(
        f"{problem}: it needs {format_bytes(fitted.need)}, and {budget}; lower --replay.capacity, --envs or "
        f"--replay.batch-size, {advice}"
    )


def _describe(fitted: Fit, rounds: list[Round], processes: Processes, budget: str, tight: bool) -> str:
    """What will run side by side, and why, in a line."""
    seeds, width = sum(len(round.seeds) for round in rounds), fitted.width * processes.count
    scope = " in each process" if processes.count > 1 else ""
    line = f"seeds side by side: {seeds}; they need {format_bytes(fitted.need)}{scope}, {budget}"
    if len(rounds) > 1:
        line = f"{len(rounds)} rounds of {width}: {seeds} seeds need {format_bytes(fitted.all_need)}{scope}, {budget}"
    return line + (": that is tight, and may fail; a smaller --parallel, or auto, is safe" if tight else "")
