"""The training loop: rounds of seeds side by side, each round through its phases in equal chunks.

`python run.py` calls `train_program`, which trains into a folder. The library calls `train_rounds`, which needs none.
"""

import time
from collections.abc import Callable

import jax

import envs
from envs.environment import Environment
from stages.cli import terminal
from stages.cli.processes import Processes
from stages.cli.signals import Signals
from stages.cli.validate import check_countable
from stages.config import Hypers
from stages.log.hooks import (
    announce_evaluation,
    chunk_rows,
    log_chunk,
    log_finish,
    log_plan,
    log_round,
    log_start,
    with_measurements,
)  # fmt: skip
from stages.log.lines import Pace
from stages.log.round_log import RoundLog
from stages.log.run_log import RunLog, RunSetup
from stages.loop.checkpoint_policy import CheckpointPolicy
from stages.loop.open_run import open_run
from stages.replay import StepCounters
from stages.sweep.rounds import Evaluator, Phase, Round, phases_of, plan
from stages.sweep.trials import Program
from stages.train import TrainState

OnRoundEnd = Callable[[RoundLog, TrainState, StepCounters], None]


def train_program(program: Program, processes: Processes, signals: Signals, started: float) -> None:
    """Make the environment, open the run's folder, and train to the end unless that run is finished.

    Raises:
        ConfigError, EnvError, RunFolderError, Stopped: as the functions below.
    """
    config = program.arguments.config
    env = envs.make(config.env, dict(config.env_args))
    check_countable(config, env.name, env.states is not None)
    opened = open_run(program, processes)
    try:
        setup = RunSetup.of(program.arguments, program.trials, env, processes, opened.folder, opened.trials)
        if not opened.finished:
            log = RunLog(setup, started)
            train_rounds(env, log, CheckpointPolicy(program.arguments, env, opened.path, processes, signals, log))
        elif opened.folder is not None:
            terminal.say(f"the run in {opened.path} is finished; raise --steps to go on, or choose another --logdir")
    finally:
        opened.close()


def train_rounds(
    env: Environment,
    log: RunLog,
    checkpoint_policy: CheckpointPolicy | None = None,
    on_round_end: OnRoundEnd | None = None,
) -> None:
    """Plan which seeds fit side by side, train them round by round, and log their metrics.

    Args:
        checkpoint_policy: saves checkpoints, and resumes from them; None: nothing is saved.
        on_round_end: called with each round's log, last state and counters.

    Raises:
        ConfigError: not even one seed fits into memory.
        Stopped: a signal has stopped the run, and its state is saved.
    """
    setup, arguments = log.setup, log.setup.arguments
    trials = range(len(setup.trials)) if len(setup.trials) > 1 else ()
    seeds = list(range(arguments.seed_start, arguments.seed_start + arguments.seeds))
    devices = jax.local_devices()[: arguments.devices or None]
    chunk_iterations = checkpoint_policy.chunk_iterations if checkpoint_policy else []
    parallel = (checkpoint_policy.parallel if checkpoint_policy else 0) or arguments.parallel

    def build(width: int) -> list[Phase]:
        return phases_of(env, arguments.config, devices, width, arguments.log_points, chunk_iterations)

    log_start(log, seeds, devices)
    since = time.monotonic()
    try:
        planned = plan(
            seeds, devices, setup.processes, build, trials=trials, parallel=parallel, allowed=arguments.memory * 1e9
        )
    except BaseException:
        log.on_abort()
        raise
    log_plan(log, planned, time.monotonic() - since)
    if checkpoint_policy:
        checkpoint_policy.on_plan(planned.phases)
    for index, round in enumerate(planned.rounds):
        hypers = round.hypers([trial.arguments.hypers for trial in setup.trials])
        if not log_round(log, index, round).finished(planned.phases):
            train_round(planned.phases, round, hypers, log, checkpoint_policy, on_round_end)
    log_finish(log)
    if checkpoint_policy:
        checkpoint_policy.close()


def train_round(
    phases: list[Phase],
    round: Round,
    hypers: Hypers,
    log: RunLog,
    checkpoint_policy: CheckpointPolicy | None = None,
    on_round_end: OnRoundEnd | None = None,
) -> None:
    """Train a round's seeds through the phases, from their first step or their checkpoint, to their last evaluation."""
    evaluate, round_log = Evaluator(round, log.setup.processes), log.round
    if checkpoint_policy and (saved := checkpoint_policy.restore(log.current)):
        state, counters = saved
    else:
        compiled = phases[0].compiled
        state, counters, _ = compiled.prefill(compiled.init(round.mine, hypers))
        announce_evaluation(log, "untrained")
        round_log.untrained = evaluate(compiled, state, counters).score
    if checkpoint_policy:
        checkpoint_policy.on_training()
    for phase in phases[round_log.phase :]:
        if phase is not phases[round_log.phase]:
            state = phase.compiled.adapt(state)
            round_log.on_adapt()
            if checkpoint_policy:
                checkpoint_policy.on_adapt()
        state, counters = train_phase(phase, state, counters, evaluate, log, checkpoint_policy)
        if phase.compiled.config.mode == "explore":
            round_log.zero_shot = round_log.evaluation.scores[-1]
    announce_evaluation(log, "trained")
    round_log.final = evaluate(phases[-1].compiled, state, counters).score
    if checkpoint_policy:
        checkpoint_policy.on_round_end(log.current, state, counters)
    if on_round_end:
        on_round_end(round_log, state, counters)


def train_phase(
    phase: Phase,
    state: TrainState,
    counters: StepCounters,
    evaluate: Evaluator,
    log: RunLog,
    checkpoint_policy: CheckpointPolicy | None = None,
) -> tuple[TrainState, StepCounters]:
    """Collect and train in equal chunks; log and save after each. Consumes `state`."""
    compiled, round_log, phase_since, done_before = phase.compiled, log.round, time.monotonic(), log.round.done
    arguments = log.setup.arguments
    evaluates = arguments.config.mode != "task" or arguments.checkpoint_best  # the tasker, at every log point
    while round_log.done < phase.total_iterations:
        chunk_since = time.monotonic()
        state, counters, progress = compiled.train_chunk(state, counters, phase.chunk_iterations)
        rows = chunk_rows(log, progress, compiled.config, counters, phase.chunk_iterations, chunk_since)
        rows = with_measurements(log, rows, compiled.measure(state, round_log.round.mine, int(counters.step)))
        scores = evaluate(compiled, state, counters) if evaluates else None
        iteration_rows = compiled.config.schedule[0] * compiled.config.envs
        done, seconds = round_log.done + phase.chunk_iterations, time.monotonic() - phase_since
        pace = Pace.of(done, done_before, phase.total_iterations, iteration_rows, seconds)
        log_chunk(log, compiled.config, rows, scores, phase.chunk_iterations, pace)
        if checkpoint_policy:
            checkpoint_policy.on_chunk(state, counters)
    assert compiled.traces["train_chunk"] <= 1, compiled.traces
    return state, counters
