"""The log of a run: lines on the terminal, metrics.jsonl, summary.json, and at the end curves.png and the table.

With several processes, all gather what is logged, and the first one prints and writes it. Of several trials, each has a
folder of its own, as if it were a run alone.

The training loop calls `log_start`, `log_plan`, for each round `log_round`, after each chunk
`chunk_rows`, `with_measurements` and `log_chunk`, and at the end `log_finish`.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from envs.environment import StateSpace
from stages.cli import terminal
from stages.cli.arguments import Arguments
from stages.cli.processes import Processes
from stages.cli.settings_file import JsonObject
from stages.config import Config, ConfigError
from stages.log.lines import agent_name, plan_lines, progress_line, round_line, start_lines
from stages.log.measured import measured_columns
from stages.log.round_log import RoundLog, metric_rows
from stages.log.sink import Tracker, series
from stages.log.summary import print_finished, write_finished, write_unfinished
from stages.measure.measurement import Measurement
from stages.replay import StepCounters
from stages.store.folder import RunFolder
from stages.sweep.memory import Devices, peak_memory_mb
from stages.sweep.rounds import Plan, Round
from stages.sweep.trials import Trial
from stages.train import Progress

MetricRow = JsonObject
"""A row of metrics.jsonl: a seed's metrics at a log point."""


@dataclass(frozen=True)
class RunSetup:
    """What a run is, from its start to its end."""

    arguments: Arguments
    trials: list[Trial]  # one, without a name, of a run that is no sweep
    processes: Processes = field(default_factory=Processes)
    states: StateSpace | None = None  # of the environment
    has_goal: bool = False  # whether the environment has one
    achievements: tuple[str, ...] = ()  # its events that Crafter's score counts
    folder: RunFolder | None = None  # None: nothing is printed or written, or another process does
    folders: list[RunFolder] = field(default_factory=list)  # of each trial; empty where `folder` is None


@dataclass
class RunLog:
    """How far a run has come. `to_json` gives it to a checkpoint; `resume` goes on from there."""

    setup: RunSetup
    started: float  # of time.time, earlier by the seconds that the run took before it was stopped
    rounds: list[RoundLog] = field(default_factory=list)  # so far
    current: int = -1  # index of the present one
    planned_rounds: int = 1
    compile_seconds: float = 0.0
    tracker: Tracker = field(default_factory=Tracker)
    table: list[MetricRow] | None = None  # every row so far, where the caller wants them; metrics.jsonl has them

    @property
    def round(self) -> RoundLog:
        """The present round's log."""
        return self.rounds[self.current]

    @property
    def wall_seconds(self) -> float:
        """Seconds since the run began, with those before it was stopped."""
        return round(time.time() - self.started, 2)

    def to_json(self, iterations: Sequence[int]) -> JsonObject:
        """The log so far, with the run's arguments and versions, as JSON may hold it.

        Args:
            iterations: of a chunk, in each phase.
        """
        return {
            "rounds": [dataclasses.asdict(log) for log in self.rounds],
            "iterations": list(iterations),
            "processes": self.setup.processes.count,
            "trials": [trial.name for trial in self.setup.trials],
            "width": len(self.round.round.mine),
            "metrics_sizes": [folder.metrics_size for folder in self.setup.folders],
            "seconds": time.time() - self.started,
            "arguments": dataclasses.asdict(self.setup.arguments),
            "versions": versions(),
        }

    def resume(self, saved: JsonObject) -> None:
        """Go on from what `to_json` gave; lines of metrics.jsonl after it are cut off."""
        self.rounds = [RoundLog.from_json(log) for log in saved["rounds"]]
        self.started -= saved["seconds"]
        if self.setup.folder is not None:
            for folder, size in zip(self.setup.folders, saved["metrics_sizes"], strict=True):
                folder.cut_metrics(size)
            present, past = versions(), saved["versions"]
            if changed := ", ".join(f"{k} {v} (now {present.get(k)})" for k, v in past.items() if present.get(k) != v):
                terminal.warn(f"the checkpoint was made with {changed}; results may differ")

    def restart(self) -> None:
        """Begin from nothing; what a run without a checkpoint has logged here is cut off.

        Raises:
            ConfigError: a finished run is to go on, and has nothing to go on from.
        """
        folder = self.setup.folder
        if folder is None:
            return
        if (folder.summary or {}).get("finished"):
            raise ConfigError(
                f"the run in {str(folder.path)!r} is finished and holds no checkpoint to go on from: choose another "
                "--logdir"
            )
        if any(trial.metrics_size for trial in self.setup.folders):
            terminal.say(f"{folder.path} holds no checkpoint of the run: it begins again")
            for trial in self.setup.folders:
                trial.cut_metrics(0)

    def on_abort(self) -> None:
        """Nothing will run: remove the empty folders."""
        if self.setup.folder is not None:
            for folder in dict.fromkeys([*self.setup.folders, self.setup.folder]):
                folder.discard()

    def on_stop(self) -> None:
        """A signal ends the run; its files are those of its last log point."""
        self.tracker.close()
        if self.setup.folder is not None:
            config = self.setup.arguments.config
            terminal.say(
                f"stopped at {self.round.step:,} of {config.steps + config.adapt_steps:,} steps; the same command with "
                f"--logdir {self.setup.folder.path} goes on"
            )


def log_start(log: RunLog, seeds: Sequence[int], devices: Devices) -> None:
    """The first lines; compiling begins."""
    log.compile_seconds = -time.time()
    run = log.setup
    if run.folder is not None:
        trials, processes = len(run.trials), run.processes.count
        _say(start_lines(run.arguments, trials, seeds, devices, processes, run.folder.path))


def log_plan(log: RunLog, plan: Plan) -> None:
    """All is compiled: say what will run side by side, write config.json, and open the tracker."""
    log.compile_seconds += time.time()
    log.planned_rounds = len(plan.rounds)
    run = log.setup
    if run.folder is None:
        return
    _say(plan_lines(plan, log.compile_seconds))
    config = dataclasses.asdict(run.arguments) | {"versions": versions()}
    run.folder.write_config(config)
    if run.trials[0].name:
        for trial, folder in zip(run.trials, run.folders, strict=True):
            folder.write_config(dataclasses.asdict(trial.arguments) | {"versions": versions()})
    # One round's steps go on where they ended; several rounds' begin again, and nothing may be forgotten.
    last = log.rounds[-1].step if log.rounds and log.planned_rounds == 1 else 0
    log.tracker = Tracker.open(run.arguments.log, run.folder.path, config, last)


def log_round(log: RunLog, index: int, round: Round) -> RoundLog:
    """A round begins, or goes on; returns its log."""
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


def chunk_rows(
    log: RunLog, progress: Progress, config: Config, clock: StepCounters, iterations: int, since: float
) -> list[MetricRow]:
    """Rows of metrics.jsonl, of all processes' seeds. Reading the numbers waits for the chunk to end.

    Args:
        config: of the phase.
        iterations: of the chunk.
        since: when it began, of time.time.
    """
    everyone = log.setup.processes.gather(progress)
    return metric_rows(everyone, log.round.round.seeds, config, int(clock.step), iterations, since)


def with_measurements(log: RunLog, rows: list[MetricRow], measured: Measurement) -> list[MetricRow]:
    """`rows` with what was measured of each seed, [P, ...] of this process."""
    run = log.setup
    half = run.arguments.config.steps // 2
    columns = measured_columns(measured, log.round, rows[0]["step"], half, run.has_goal, run.processes)
    return [row | {name: values[index] for name, values in columns.items()} for index, row in enumerate(rows)]


def log_chunk(
    log: RunLog, config: Config, rows: list[MetricRow], tasker: np.ndarray | None, iterations: int, share: float,
    seconds: float,
) -> None:  # fmt: skip
    """One log point: metrics.jsonl, summary.json, curves, a line of progress.

    Args:
        config: of the phase.
        rows: what `chunk_rows` returned.
        tasker: the tasker's evaluation scores, [seeds], in a run that explores.
        iterations: of the chunk.
        share: of the phase that is done.
        seconds: until the phase's end, about.
    """
    run, current = log.setup, log.round
    diverged = current.add_chunk(rows, tasker, iterations, config.schedule[1])
    if tasker is not None:
        rows = [row | {"eval/score": float(score)} for row, score in zip(rows, tasker, strict=True)]
    if log.table is not None:
        log.table += rows
    if run.folder is None:
        return
    prefix = f"round{log.current + 1}/" if log.planned_rounds > 1 else ""
    for index, (trial, folder) in enumerate(zip(run.trials, run.folders, strict=True)):
        if trial_rows := [rows[slot] for slot in current.round.slots(index)]:
            folder.append_metrics(trial_rows)
            if log.tracker.sink is not None:
                log.tracker.write(current.step, series(trial_rows, prefix, trial.name))
    _write_unfinished(log, run.folder)
    steps = run.arguments.config.steps + (run.arguments.config.adapt_steps if current.adapt_step is not None else 0)
    speed = rows[0]["fps/policy"] * len(rows)
    scores = current.training.scores[-1]
    terminal.say(progress_line(config.mode, share, current.step, steps, scores, tasker, speed, seconds))
    if diverged:
        names = [f"{agent_name(run.trials, current.round, i)} at step {current.diverged[i]:,}" for i in diverged]
        terminal.warn(
            f"{', '.join(names)}: a loss, gradient, observation or reward was not finite; frozen there (try a lower lr)"
        )


def log_finish(log: RunLog) -> None:
    """The files of each trial, over the seeds of all rounds together; of a run that is no sweep the table."""
    run = log.setup
    if run.folder is None:
        return
    log.tracker.close()
    merged, names = RoundLog.of_all(log.rounds), [trial.name for trial in run.trials]
    cost = {"compile_seconds": round(log.compile_seconds, 2), "wall_seconds": log.wall_seconds}
    cost |= {"peak_memory_mb": round(peak_memory_mb(), 1), "versions": versions()}
    about = {"finished": True, "side_by_side": len(merged.round.mine) * run.processes.count}
    about |= {"processes": run.processes.count, "rounds": len(log.rounds), **cost}
    for index, (trial, folder) in enumerate(zip(run.trials, run.folders, strict=True)):
        of_trial = merged.of_trial(index)
        write_finished(folder, trial, of_trial, run.states, run.achievements, about)
        if names == [""]:
            print_finished(trial, of_trial, run.states, run.has_goal, run.achievements)
    if names != [""]:
        run.folder.write_summary({"finished": True, "trials": names, **cost})
    terminal.say(
        f"{merged.step:,} env steps and {merged.updates:,} updates a seed in {cost['wall_seconds']:.0f} s "
        f"({log.compile_seconds:.0f} s compiling), {cost['peak_memory_mb']:,.0f} MB; see {run.folder.path}"
    )


def _write_unfinished(log: RunLog, folder: RunFolder) -> None:
    """summary.json says how far the run has come, should it be killed before its end."""
    run, current = log.setup, log.round
    about = {"round": log.current + 1, "rounds": log.planned_rounds, "wall_seconds": log.wall_seconds}
    about |= {"versions": versions()}
    for index, (trial, trial_folder) in enumerate(zip(run.trials, run.folders, strict=True)):
        if current.round.slots(index):
            write_unfinished(trial_folder, trial, current.of_trial(index), run.states, run.achievements, about)
    if run.trials[0].name:
        folder.write_summary({"finished": False, "trials": [trial.name for trial in run.trials]})


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        terminal.say(line)


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    from importlib.metadata import version

    names = ("jax", "jaxlib", "equinox", "optax", "gymnax", "numpy")
    return {"python": sys.version.split()[0]} | {name: version(name) for name in names}
