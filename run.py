"""Train a sweep of DreamerV3 agents, with Plan2Explore if asked: `python run.py --seeds 32`.

Arguments -> Config, Hypers -> rounds of a sweep -> files in the run's folder. `--help` lists every setting.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from typing import TYPE_CHECKING

from stages.config import ConfigError, Hypers
from stages.runs.arguments import Arguments, parse
from stages.runs.start import start_jax

if TYPE_CHECKING:  # jax and all that needs it are imported where they are used, so that --help stays fast
    from envs.environment import Environment
    from stages.replay import Clock
    from stages.runs.log import RunLog
    from stages.runs.processes import Processes
    from stages.runs.rounds import Evaluator, Phase, Round
    from stages.train import TrainState


def run(arguments: Arguments, env: Environment, processes: Processes, log: RunLog) -> None:
    """Plan which seeds fit side by side, train them round by round, and leave the run's files."""
    import jax

    from stages.runs.rounds import phases_of, plan

    seeds = list(range(arguments.seed_start, arguments.seed_start + arguments.seeds))
    devices = jax.local_devices()[: arguments.devices or None]
    build = lambda width: phases_of(env, arguments.config, devices, width, arguments.log_points)
    limits = {"parallel": arguments.parallel, "allowed": arguments.memory * 1e9}
    log.on_start(seeds, devices)
    try:
        planned = plan(seeds, devices, processes, build, **limits)
    except BaseException:
        log.on_abort()
        raise
    log.on_plan(planned)
    for each in planned.rounds:
        train_round(planned.phases, each, arguments.hypers, processes, log)
    log.on_finish()


def train_round(phases: list[Phase], round: Round, hypers: Hypers, processes: Processes, log: RunLog) -> None:
    """All phases of one round's seeds, from their first step to their last evaluation."""
    from stages.runs.rounds import Evaluator

    (sweep, *_), *later = phases
    evaluate = Evaluator(round, processes)
    logged = log.on_round(round)
    state, clock, _ = sweep.prefill(sweep.init(round.mine, hypers))
    logged.untrained = evaluate(sweep, state)
    state, clock = train_phase(phases[0], state, clock, evaluate, log)
    if sweep.config.mode == "explore":
        logged.zero_shot = logged.evaluation.scores[-1]
    for phase in later:
        logged.adapt_step, state = logged.step, phase.sweep.adapt(state)
        state, clock = train_phase(phase, state, clock, evaluate, log)
    logged.final = evaluate(phases[-1].sweep, state)


def train_phase(
    phase: Phase, state: TrainState, clock: Clock, evaluate: Evaluator, log: RunLog
) -> tuple[TrainState, Clock]:
    """Collect and train in equal chunks; log after each."""
    sweep, begun = phase.sweep, time.time()
    for chunk in range(1, phase.chunks + 1):
        at = time.time()
        state, clock, progress = sweep.advance(state, clock, phase.iterations)
        rows = log.rows(progress, sweep.config, clock, phase.iterations, at)
        rows = log.on_measured(rows, sweep.measure(state, log.round.round.mine, int(clock.step)))
        scores = evaluate(sweep, state) if log.exploring else None
        left = (time.time() - begun) / chunk * (phase.chunks - chunk)
        log.on_chunk(sweep.config, rows, scores, phase.iterations, chunk / phase.chunks, left)
    assert sweep.traces["advance"] == 1, sweep.traces
    return state, clock


def main(argv: list[str]) -> int:
    """The whole program; returns the exit code."""
    from envs import EnvError, make
    from stages.runs.folder import RunFolder, RunFolderError
    from stages.runs.log import RunLog
    from stages.runs.processes import ProcessError, Processes, join

    started = time.time()
    try:
        arguments = parse(argv)
        place = (arguments.coordinator, arguments.processes, arguments.process)
        with join(*place) if arguments.several else Processes() as processes:
            _check_machines(arguments, processes)
            env = make(arguments.config.env, dict(arguments.config.env_args))
            name = f"{arguments.config.env}-{arguments.config.mode}-{time.strftime('%Y%m%d-%H%M%S')}"
            folder = RunFolder.create(arguments.logdir or os.path.join("runs", name)) if processes.leads else None
            log = RunLog(arguments, folder, processes, started, states=env.states, has_goal=env.goal is not None)
            run(arguments, env, processes, log)
    except (ConfigError, EnvError, RunFolderError, ProcessError) as error:
        print(f"run.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("run.py: interrupted; metrics up to the last printed line are in the run's folder", file=sys.stderr)
        return 130
    return 0


def _check_machines(arguments: Arguments, processes: Processes) -> None:
    """Raises ConfigError for devices that are not there, and for processes that were started for different runs."""
    import jax

    there = jax.local_devices()
    if arguments.devices > len(there):
        raise ConfigError(f"--devices {arguments.devices}: there are only {len(there)} ({there[0].platform})")
    if len(set(processes.exchange(repr(dataclasses.replace(arguments, process=-1)).encode()))) > 1:
        raise ConfigError("the processes were not started with the same arguments")


if __name__ == "__main__":
    start_jax()
    sys.exit(main(sys.argv[1:]))
