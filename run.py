"""Train a sweep of DreamerV3 agents, with Plan2Explore if asked: `python run.py --seeds 32`.

Arguments -> Config, Hypers -> rounds of a sweep -> files in the run's folder. `--help` lists every setting.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from stages.config import ConfigError, Hypers
from stages.results.commands import command
from stages.runs import terminal
from stages.runs.arguments import Arguments, parse
from stages.runs.start import local_devices, start_jax

if TYPE_CHECKING:  # jax and all that needs it are imported where they are used, so that --help stays fast
    from envs.environment import Environment
    from stages.replay import Clock
    from stages.runs.keeper import Keeping
    from stages.runs.log import RunLog
    from stages.runs.processes import Processes
    from stages.runs.rounds import Evaluator, Phase, Round
    from stages.runs.signals import Signals
    from stages.runs.trials import Program
    from stages.train import TrainState


def run(program: Program, env: Environment, processes: Processes, keeper: Keeping, log: RunLog) -> None:
    """Plan which seeds fit side by side, train them round by round, and leave the run's files."""
    import jax

    from stages.runs.rounds import phases_of, plan, until

    arguments, trials, rung = program.arguments, program.trials, program.rung
    seeds = list(range(arguments.seed_start, arguments.seed_start + arguments.seeds))
    devices = jax.local_devices()[: arguments.devices or None]
    new = lambda width: phases_of(env, arguments.config, devices, width, arguments.log_points, keeper.chunks)
    build = lambda width: program.phases(width, new)
    parallel, allowed = keeper.side_by_side or arguments.parallel, arguments.memory * 1e9
    log.on_start(seeds, devices)
    try:
        planned = plan(
            seeds, devices, processes, build, trials=program.trained, parallel=parallel, allowed=allowed, rung=rung
        )
    except BaseException:
        log.on_abort()
        raise
    log.on_plan(planned)
    keeper.on_plan(planned.phases)
    for index, each in enumerate(planned.rounds, log.first):
        hypers = each.hypers([trial.arguments.hypers for trial in trials])
        train_round(until(planned.phases, rung), index, each, hypers, processes, keeper, log)
    log.on_finish()
    keeper.close()


def train_round(
    phases: list[Phase], index: int, round: Round, hypers: Hypers, processes: Processes, keeper: Keeping, log: RunLog
) -> None:
    """Phases of one round's seeds, from their first step or where they were left, to their last evaluation."""
    from stages.runs.rounds import Evaluator

    evaluate, logged = Evaluator(round, processes), log.on_round(index, round)
    if logged.finished(phases):
        return
    if saved := keeper.restore(index):
        state, clock = saved
    else:
        sweep = phases[0].sweep
        state, clock, _ = sweep.prefill(sweep.init(round.mine, hypers))
        logged.untrained = evaluate(sweep, state, clock)
    for phase in phases[logged.phase :]:
        if phase is not phases[logged.phase]:
            state = phase.sweep.adapt(state)
            logged.on_adapt()
        state, clock = train_phase(phase, state, clock, evaluate, keeper, log)
        if phase.sweep.config.mode == "explore":
            logged.zero_shot = logged.evaluation.scores[-1]
    logged.final = evaluate(phases[-1].sweep, state, clock)
    keeper.on_round_end(index, state, clock)


def train_phase(
    phase: Phase, state: TrainState, clock: Clock, evaluate: Evaluator, keeper: Keeping, log: RunLog
) -> tuple[TrainState, Clock]:
    """Collect and train in equal chunks; log and save after each."""
    sweep, logged, begun, first = phase.sweep, log.round, time.time(), log.round.done
    while logged.done < phase.total:
        at = time.time()
        state, clock, progress = sweep.advance(state, clock, phase.iterations)
        rows = log.rows(progress, sweep.config, clock, phase.iterations, at)
        rows = log.on_measured(rows, sweep.measure(state, log.round.round.mine, int(clock.step)))
        scores = evaluate(sweep, state, clock) if log.exploring else None
        done = logged.done + phase.iterations
        left = (time.time() - begun) / (done - first) * (phase.total - done)
        log.on_chunk(sweep.config, rows, scores, phase.iterations, done / phase.total, left)
        keeper.on_chunk(state, clock)
    assert sweep.traces["advance"] <= 1, sweep.traces
    return state, clock


def train_program(program: Program, processes: Processes, signals: Signals, started: float) -> None:
    """Make the environment, enter the folder, and run to the rung, unless the run that is there has come so far."""
    from envs import make
    from stages.runs.keeper import Keeper, enter
    from stages.runs.log import RunLog

    config = program.arguments.config
    env = make(config.env, dict(config.env_args))
    entered = enter(program, processes)
    try:
        log = RunLog(program.arguments, entered.folder, processes, started, trials=program.trials, rung=program.rung)
        log.folders = entered.trials
        log.states, log.has_goal = env.states, env.goal is not None
        if entered.finished:
            log.on_found()
        else:
            run(program, env, processes, Keeper(program.arguments, entered.path, processes, signals, log), log)
    finally:
        entered.close()


def main(argv: list[str], start: Callable[[], None] = lambda: None) -> int:
    """The whole program; returns the exit code.

    Args:
        start: called before jax makes its first array.
    """
    from envs import EnvError
    from stages.results.grid import leave_grid
    from stages.runs.folder import RunFolderError
    from stages.runs.halving import rung_by_rung
    from stages.runs.processes import ProcessError, Processes, join
    from stages.runs.signals import Signals, Stopped
    from stages.runs.trials import describe, programs_of

    started = time.time()
    terminal.forgive()
    try:
        start()
        arguments = parse(argv)
        place = (arguments.coordinator, arguments.processes, arguments.process)
        with Signals() as signals, join(*place) if arguments.several else Processes() as processes:
            _check_machines(arguments, processes)
            name = f"{arguments.config.env.replace(':', '-')}-{arguments.config.mode}-{time.strftime('%Y%m%d-%H%M%S')}"
            arguments = dataclasses.replace(arguments, logdir=arguments.logdir or os.path.join("runs", name))
            programs = programs_of(argv, arguments)
            if arguments.sweep and processes.leads:
                terminal.say(describe(programs))
            for going in rung_by_rung(programs, arguments.halving):
                for program in going:
                    train_program(program, processes, signals, started)
                    started = time.time()
            if arguments.sweep and processes.leads:
                leave_grid(arguments.logdir)
    except (ConfigError, EnvError, RunFolderError, ProcessError) as error:
        terminal.say(f"run.py: error: {error}", error=True)
        return 2
    except Stopped as stopped:
        return stopped.code
    finally:
        terminal.drop_unread()
    return 0


def _check_machines(arguments: Arguments, processes: Processes) -> None:
    """Raises ConfigError for devices that are not there, and for processes that were started for different runs."""
    there = local_devices()
    if arguments.devices > len(there):
        raise ConfigError(f"--devices {arguments.devices}: there are only {len(there)} ({there[0].platform})")
    if len(set(processes.exchange(repr(dataclasses.replace(arguments, process=-1)).encode()))) > 1:
        raise ConfigError("the processes were not started with the same arguments")


if __name__ == "__main__":
    code = command(sys.argv[1:])  # compare, report, eval, video, export
    sys.exit(main(sys.argv[1:], start_jax) if code is None else code)
