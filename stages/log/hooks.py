"""Hooks: the functions with which the training loop prints, and writes metrics.jsonl, summary.json and pictures.

With several processes, all gather what is logged, and the first one prints and writes it. Each of several trials has a
folder of its own, like a run.

The loop calls `log_start` and `log_plan` once, and `log_round` for each round. Before the untrained and the final
evaluation it calls `announce_evaluation`. After each chunk it calls `chunk_rows`, `with_measurements` and `log_chunk`.
At the end it calls `log_finish`.
"""

import dataclasses
from collections.abc import Sequence

from stages.cli import terminal
from stages.cli.settings_file import JsonObject
from stages.config import Config
from stages.evaluate import TaskerScores
from stages.log.lines import Pace, agent_name, explored_words, plan_lines, progress_line, round_line, start_lines
from stages.log.measured import measured_columns
from stages.log.round_log import RoundLog, metric_rows
from stages.log.run_log import MetricRow, RunLog, versions
from stages.log.sink import Tracker, series
from stages.log.summary import full_disk_warns, print_finished, write_finished, write_unfinished
from stages.measure.measurement import Measurement
from stages.replay import StepCounters
from stages.report.advice import advice_line
from stages.results.read import read_run
from stages.store.folder import RunFolder
from stages.sweep.memory import Devices, peak_memory_mb
from stages.sweep.rounds import Plan, Round
from stages.train import Progress


def log_start(log: RunLog, seeds: Sequence[int], devices: Devices) -> None:
    """Print the first lines, before compiling begins."""
    run = log.setup
    if run.folder is not None:
        trials, processes = len(run.trials), run.processes.count
        lines = start_lines(run.arguments, trials, seeds, devices, processes, run.folder.path)
        terminal.say("\n".join(lines))


def log_plan(log: RunLog, plan: Plan, compile_seconds: float) -> None:
    """Print what will run side by side, write config.json, and open the tracker, once all is compiled.

    Args:
        compile_seconds: of this session.
    """
    log.compile_seconds += compile_seconds
    log.planned_rounds = len(plan.rounds)
    run = log.setup
    if run.folder is None:
        return
    log.planned_steps, config = plan.steps, run.arguments.config
    terminal.say("\n".join(plan_lines(plan, config.steps + config.adapt_steps, compile_seconds)))
    config = dataclasses.asdict(run.arguments) | {"versions": versions()}
    for folder in {run.folder, *run.folders}:
        if (old := folder.summary or {}).get("finished"):  # given more steps: from here on it is not finished
            folder.write_summary(old | {"finished": False})
    run.folder.write_config(config)
    if run.trials[0].name:
        for trial, folder in zip(run.trials, run.folders, strict=True):
            folder.write_config(dataclasses.asdict(trial.arguments) | {"versions": versions()})
    # A tracker may drop steps after the resumed one. With several rounds steps repeat, so it must not drop any.
    last = log.rounds[-1].step if log.rounds and log.planned_rounds == 1 else 0
    log.tracker = Tracker.open(run.arguments.log, run.folder.path, config, last)


def log_round(log: RunLog, index: int, round: Round) -> RoundLog:
    """Begin or resume a round; returns its log."""
    log.current = index
    if index == len(log.rounds):
        log.rounds.append(RoundLog(round))
    log.round.round = round
    if log.setup.folder is not None:
        if log.planned_rounds > 1:
            terminal.say(round_line(log.setup.trials, index, log.planned_rounds, round))
        if log.round.step:
            terminal.say(f"going on from the checkpoint at {log.round.step:,} steps")
    return log.round


def announce_evaluation(log: RunLog, agents: str) -> None:
    """Print that an evaluation begins: it may take as long as a chunk.

    Args:
        agents: untrained or trained.
    """
    run = log.setup
    if run.folder is not None:
        asked, played = run.arguments.config.eval_episodes, run.eval_episodes
        bound = f" (not {asked}: the time limit is long; --eval-steps N plays all, of N steps at most)"
        terminal.say(f"evaluating {agents} agents: {played} episodes a seed{bound * (played < asked)}")


def chunk_rows(
    log: RunLog, progress: Progress, config: Config, counters: StepCounters, iterations: int, since: float
) -> list[MetricRow]:
    """Rows of metrics.jsonl, of all processes' seeds. Reading the numbers waits for the chunk to end.

    Args:
        config: of the phase.
        iterations: of the chunk.
        since: when it began, of time.monotonic.
    """
    everyone = log.setup.processes.gather(progress)
    return metric_rows(everyone, log.round.round.seeds, config, int(counters.step), iterations, since)


def with_measurements(log: RunLog, rows: list[MetricRow], measured: Measurement) -> list[MetricRow]:
    """`rows` with what was measured of each seed, [P, ...] of this process."""
    run = log.setup
    half = run.arguments.config.steps // 2
    columns = measured_columns(measured, log.round, rows[0]["step"], half, run.has_goal, run.processes)
    return [row | {name: values[index] for name, values in columns.items()} for index, row in enumerate(rows)]


def log_chunk(
    log: RunLog, config: Config, rows: list[MetricRow], tasker: TaskerScores | None, iterations: int, pace: Pace
) -> None:
    """One log point: metrics.jsonl, summary.json, a line of progress.

    Args:
        config: of the phase.
        rows: what `chunk_rows` returned.
        tasker: of this point's evaluation; None where the tasker is not evaluated at log points.
        iterations: of the chunk.
        pace: of the phase.
    """
    run, current = log.setup, log.round
    scores = None if tasker is None else tasker.score
    diverged = current.add_chunk(rows, scores, iterations, config.schedule[1])
    so_far = {"updates": current.updates, "wall_seconds": log.wall_seconds}
    totals = current.events.episodes.tolist()
    rows = [row | {"episode/total": total} | so_far for row, total in zip(rows, totals, strict=True)]
    if tasker is not None:
        evaluated = zip(rows, tasker.score, tasker.expected, strict=True)
        rows = [row | {"eval/score": float(a), "eval/expected_score": float(b)} for row, a, b in evaluated]
    if log.table is not None:
        log.table += rows
    if log.on_point is not None:
        log.on_point(rows, pace)
    if run.folder is None:
        return
    prefix = f"round{log.current + 1}/" if log.planned_rounds > 1 else ""
    for index, (trial, folder) in enumerate(zip(run.trials, run.folders, strict=True)):
        if trial_rows := [rows[slot] for slot in current.round.slots(index)]:
            with full_disk_warns("it is tried again at the next log point"):
                folder.append_metrics(trial_rows)
            if log.tracker.sink is not None:
                log.tracker.write(current.step, series(trial_rows, prefix, trial.name))
    with full_disk_warns("it is tried again at the next log point"):
        _write_unfinished(log, run.folder)
    steps = config.steps + (config.adapt_steps if current.adapt_step is not None else 0)  # as they were planned
    training, explores = current.training.scores[-1], run.arguments.config.mode != "task"
    explored = explored_words(current.novelty, run.states, run.has_goal) if explores else []
    terminal.say(progress_line(config.mode, pace, (current.step, steps), training, scores, explored))
    if diverged:
        names = [f"{agent_name(run.trials, current.round, i)} at step {current.diverged[i]:,}" for i in diverged]
        terminal.warn(
            f"{', '.join(names)}: a loss, gradient, observation or reward was not finite; frozen there (try a lower lr)"
        )


def log_finish(log: RunLog) -> None:
    """Write each trial's files, over the seeds of all rounds. A run that is no sweep also prints its table."""
    run = log.setup
    if run.folder is None:
        return
    log.tracker.close()
    merged, names = RoundLog.of_all(log.rounds), [trial.name for trial in run.trials]
    cost = cost_of(log)
    about = about_finished(log, cost)
    for index, (trial, folder) in enumerate(zip(run.trials, run.folders, strict=True)):
        of_trial = merged.of_trial(index)
        if names == [""]:
            print_finished(trial, of_trial, run)  # first: the disk may be full
        folder.append_metrics([])  # lines that the disk refused before
        write_finished(folder, trial, of_trial, run, about)
        if names == [""] and (advice := advice_line(read_run(folder.path), run.max_entropy)):
            terminal.say(advice)
    if names != [""]:
        run.folder.write_summary({"finished": True, "trials": names, **cost})
    terminal.say(
        f"{merged.step:,} steps and {merged.updates:,} updates a seed in {cost['wall_seconds']:.0f} s "
        f"({log.compile_seconds:.0f} s compiling), {cost['peak_memory_mb']:,.0f} MB; see {run.folder.path}"
    )


def cost_of(log: RunLog) -> JsonObject:
    """What the run took, and with which versions."""
    cost = {"compile_seconds": round(log.compile_seconds, 2), "wall_seconds": log.wall_seconds}
    return cost | {"peak_memory_mb": round(peak_memory_mb(), 1), "versions": versions()}


def about_finished(log: RunLog, cost: JsonObject) -> JsonObject:
    """What every trial's summary.json says of the whole run at its end."""
    processes = log.setup.processes.count
    about = {"finished": True, "side_by_side": len(log.rounds[-1].round.mine) * processes}
    return about | {"processes": processes, "rounds": len(log.rounds), **cost}


def _write_unfinished(log: RunLog, folder: RunFolder) -> None:
    """Write to summary.json how far the run has come, in case it is killed."""
    run, current = log.setup, log.round
    about = {"round": log.current + 1, "rounds": log.planned_rounds, "wall_seconds": log.wall_seconds}
    about |= {"versions": versions()}
    for index, (trial, trial_folder) in enumerate(zip(run.trials, run.folders, strict=True)):
        if current.round.slots(index):
            write_unfinished(trial_folder, trial, current.of_trial(index), run, about)
    if run.trials[0].name:
        folder.write_summary({"finished": False, "trials": [trial.name for trial in run.trials]})
