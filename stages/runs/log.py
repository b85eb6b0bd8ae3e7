"""The log of a run: lines on the terminal, metrics.jsonl, summary.json, and at the end curves.png and the table.

With several processes, all gather what is logged, and the first one prints and writes it. Of several trials, each has a
folder of its own, as if it were a run alone.
"""

import dataclasses
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from envs.environment import StateSpace
from stages.config import Config, ConfigError
from stages.measure import Contrast, Measurement, Novelty
from stages.open_loop import AHEAD
from stages.replay import Clock
from stages.runs import terminal
from stages.runs.arguments import Arguments, beyond_preset, flag_of
from stages.runs.folder import RunFolder
from stages.runs.novelty import Map, contrast_metrics, novelty_metrics
from stages.runs.processes import Processes
from stages.runs.round_log import RoundLog, metric_rows, shortest
from stages.runs.rounds import Plan, Round
from stages.runs.rung import END, Rung
from stages.runs.sink import Sink, open_sink, series
from stages.runs.statistics import summarise
from stages.runs.summary import print_finished, write_finished, write_unfinished
from stages.runs.trials import Trial
from stages.train import Progress


@dataclass
class RunLog:
    """The log of a run, round by round. The training loop calls `on_start`, `on_plan` (or `on_abort`), then for each
    round `on_round` and for each of its chunks `rows` and `on_chunk`, and at the end `on_finish` (or `on_stop`).

    `saved` is the log as JSON, for a checkpoint; `load` goes on from there.
    """

    arguments: Arguments
    folder: RunFolder | None  # None: another process prints and writes
    processes: Processes
    started: float  # of time.time
    rounds: list[RoundLog] = field(default_factory=list)  # so far
    current: int = -1  # index of the present one
    states: StateSpace | None = None  # of the environment
    has_goal: bool = False  # whether the environment has one
    planned_rounds: int = 1
    compile_seconds: float = 0.0
    sink: Sink | None = None  # further place for metrics, if asked for
    trials: list[Trial] = field(default_factory=list)  # what is trained; the run itself if none is given
    folders: list[RunFolder] = field(default_factory=list)  # of each trial; empty in processes that do not write
    rung: Rung = END  # that is trained to
    table: list[dict[str, Any]] | None = None  # every row so far, where someone asks for them; metrics.jsonl has them

    def __post_init__(self):
        self.trials = self.trials or [Trial("", self.arguments)]
        if self.folder is not None:
            self.folders = self.folders or [self.folder]

    @property
    def round(self) -> RoundLog:
        """The present round's log."""
        return self.rounds[self.current]

    @property
    def first(self) -> int:
        """Index of the rung's first round: those of the rungs before it are done."""
        return len(self.of_rung(range(self.rung.number)))

    def of_rung(self, rungs: range) -> list[RoundLog]:
        """The logs of the rounds of these rungs."""
        return [each for each in self.rounds if each.round.rung in rungs]

    def saved(self, iterations: Sequence[int]) -> dict[str, Any]:
        """The log so far, with the run's arguments and versions, as JSON may hold it.

        Args:
            iterations: of a chunk, in each phase.
        """
        return {
            "rounds": [dataclasses.asdict(each) for each in self.rounds],
            "iterations": list(iterations),
            "rungs": list(self.rung.shares),
            "processes": self.processes.count,
            "trials": [trial.name for trial in self.trials],
            "width": len(self.round.round.mine),
            "metrics_sizes": [folder.metrics_size for folder in self.folders],
            "seconds": time.time() - self.started,
            "arguments": dataclasses.asdict(self.arguments),
            "versions": versions(),
        }

    def restart(self) -> None:
        """Begin from nothing; what a run without a checkpoint has logged here is cut off.

        Raises:
            ConfigError: a finished run is to go on, and has nothing to go on from.
        """
        if self.folder is None:
            return
        if (self.folder.summary or {}).get("finished"):
            raise ConfigError(
                f"the run in {str(self.folder.path)!r} is finished and holds no checkpoint to go on from: choose "
                "another --logdir"
            )
        if any(folder.metrics_size for folder in self.folders):
            self.say(f"{self.folder.path} holds no checkpoint of the run: it begins again")
            for folder in self.folders:
                folder.cut_metrics(0)

    def load(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `saved` gave; lines of metrics.jsonl after it are cut off."""
        self.rounds = [RoundLog.load(each) for each in saved["rounds"]]
        self.started -= saved["seconds"]
        if self.folder is not None:
            for folder, size in zip(self.folders, saved["metrics_sizes"], strict=True):
                folder.cut_metrics(size)
            now, then = versions(), saved["versions"]
            if changed := ", ".join(f"{k} {v} (now {now.get(k)})" for k, v in then.items() if now.get(k) != v):
                self.warn(f"the checkpoint was made with {changed}; results may differ")

    @property
    def exploring(self) -> bool:
        """Whether a round's first phase explores: then the tasker is evaluated at every log point."""
        return self.arguments.config.mode != "task"

    def say(self, line: str) -> None:
        """A line to the terminal, at once. Training goes on where nobody reads it."""
        if self.folder is not None:
            terminal.say(line)

    def warn(self, line: str) -> None:
        """A line of warning to standard error."""
        terminal.warn(line)

    def tracked(self, act: Callable[[Path], Any]) -> None:
        """Do something with the sink. Whatever goes wrong there costs the sink, and not the run."""
        if self.folder is None:
            return
        try:
            act(self.folder.path)
        except Exception as error:  # of a library that only some have, over a network perhaps
            self.sink = None
            why = " ".join(str(error).split()) or type(error).__name__
            self.warn(f"no more of this run goes to {self.arguments.log} ({why}); metrics.jsonl has all")

    def close_sink(self) -> None:
        """Nothing more will be said to it."""
        if self.sink is not None:
            close, self.sink = self.sink.close, None
            self.tracked(lambda _: close())

    def on_found(self) -> None:
        """The run that is there has come to its end, or to the rung: nothing is trained."""
        if self.folder is not None and self.rung.last:
            further = "" if self.rung.halves else "raise --steps to go on, or "
            self.say(f"the run in {self.folder.path} is finished; {further}choose another --logdir")

    def on_start(self, seeds: list[int], devices: Sequence[Any]) -> None:
        """The first lines."""
        self.compile_seconds = -time.time()
        if self.rung.number:
            return
        where = f"{len(devices)} {devices[0].platform} device(s)"
        if self.processes.count > 1:
            where += f" of each of {self.processes.count} processes"
        files = f"; files in {self.folder.path}" if self.folder is not None else ""
        trials = f" of each of {len(self.trials)} trials" if len(self.trials) > 1 else ""
        self.say(f"{self.arguments.title}: seeds {seeds[0]} to {seeds[-1]}{trials} on {where}{files}")
        settings = self.arguments.flat
        changed = [
            name for name in beyond_preset(settings) if name not in ("config.env", "config.env_args", "config.mode")
        ]
        if changed:
            listed = ", ".join(f"{flag_of(name)} {settings[name]}" for name in changed)
            self.say(textwrap.fill(f"beside the preset: {listed}", 79, subsequent_indent="  ", break_on_hyphens=False))
        self.say("compiling ...")

    def on_plan(self, plan: Plan) -> None:
        """All is compiled: say what will run side by side."""
        self.compile_seconds += time.time()
        self.planned_rounds = len(plan.rounds)
        counts = plan.parameters
        if self.compile_seconds > 1 or not self.rung.number:
            self.say(f"compiled in {self.compile_seconds:.1f} s")
        self.say(plan.line)
        if not self.rung.number:
            self.say(
                f"{sum(counts.values()):,} parameters a seed: " + ", ".join(f"{k} {v:,}" for k, v in counts.items())
            )
        if self.folder is not None:
            config = dataclasses.asdict(self.arguments) | {"versions": versions()}
            self.folder.write_config(config)
            if self.trials[0].name:
                for trial, folder in zip(self.trials, self.folders, strict=True):
                    folder.write_config(dataclasses.asdict(trial.arguments) | {"versions": versions()})
            # One round's steps go on where they ended; several rounds' begin again, and nothing may be forgotten.
            last = self.rounds[-1].step if self.rounds and self.planned_rounds == 1 else 0
            self.tracked(lambda path: setattr(self, "sink", open_sink(self.arguments.log, path, config, last)))

    def on_abort(self) -> None:
        """Nothing will run: remove the empty folders."""
        if self.folder is not None:
            for folder in dict.fromkeys([*self.folders, self.folder]):
                folder.discard()

    def on_round(self, index: int, round: Round) -> RoundLog:
        """A round begins, or goes on; returns its log."""
        self.current = index
        if index == len(self.rounds):
            before = self.of_rung(range(round.rung - 1, round.rung))
            self.rounds.append(RoundLog.going_on(round, before) if round.rung else RoundLog(round))
        logged = self.round
        logged.round = round
        if self.planned_rounds > 1:
            seeds = f"seeds {round.seeds[0]} to {round.seeds[-1]}"
            if round.trials:
                seeds = f"{self._agent(round, 0)} to {self._agent(round, -1)}"
            self.say(f"round {index + 1 - self.first} of {self.planned_rounds}: {seeds}")
        if logged.step > logged.begun:
            self.say(f"going on from the checkpoint at {logged.step:,} steps")
        return logged

    def rows(
        self, progress: Progress, config: Config, clock: Clock, iterations: int, since: float
    ) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl, of all processes' seeds. Reading the numbers waits for the chunk to end."""
        everyone = self.processes.gather(progress)
        return metric_rows(everyone, self.round.round.seeds, config, int(clock.step), iterations, since)

    def on_measured(self, rows: list[dict[str, Any]], measured: Measurement) -> list[dict[str, Any]]:
        """`rows` with what was measured of each seed, [P, ...] of this process."""
        errors, found = jax.tree.map(shortest, self.processes.gather(measured.foresight)), {}
        for place, ahead in enumerate(AHEAD):
            found[f"open_loop/error_{ahead}"] = errors.open_loop[:, place].tolist()
            found[f"open_loop/posterior_{ahead}"] = errors.posterior[:, place].tolist()
        if measured.contrast is not None:
            found |= self._on_contrast(len(rows), measured.contrast)
        if measured.novelty is not None:
            found |= self._on_novelty(len(rows), rows[0]["step"], measured.novelty)
        return [row | {name: values[place] for name, values in found.items()} for place, row in enumerate(rows)]

    def _on_contrast(self, seeds: int, measured: Contrast) -> dict[str, list[Any]]:
        """Columns of metrics.jsonl for so many seeds, without padding, where states cannot be counted."""
        each = self.processes.gather(measured)
        found = contrast_metrics(*(x[:seeds] for x in (each.collected, each.untrained, each.random)))
        self.round.untrained_share = found["untrained_share"]
        return {f"novelty/{name}": values.tolist() for name, values in found.items()}

    def _on_novelty(self, seeds: int, step: int, measured: Novelty) -> dict[str, list[Any]]:
        """Columns of metrics.jsonl for so many seeds, without padding, where states can be counted."""
        log, own = self.round.novelty, jax.tree.map(np.asarray, measured)
        # Each process computes its own seeds' numbers: what crosses between them is small, whatever the environment.
        everyone = self.processes.gather(
            (novelty_metrics(own.visits, own.disagreement), own.goal_episode, own.solved_episode)
        )
        metrics, goal, solved = jax.tree.map(lambda x: x[:seeds], everyone)
        log.add(step, metrics, goal, solved)
        if self.round.adapt_step is None:  # of the leading process these are the trials' first seeds
            round, half = self.round.round, self.arguments.config.steps // 2
            for trial in dict.fromkeys(round.mine_trials or [0]):
                place = (round.mine_trials or [0]).index(trial)
                log.add_map(Map.of(step, own.visits[place], own.disagreement[place]), half, trial)
        found = {f"novelty/{name}": values.tolist() for name, values in metrics.items()}
        if self.has_goal:
            episode = lambda numbers: [int(number) or None for number in numbers]
            found |= {"novelty/goal_episode": episode(goal), "novelty/solved_episode": episode(solved)}
        return found

    def on_chunk(
        self,
        config: Config,
        rows: list[dict[str, Any]],
        tasker: np.ndarray | None,
        iterations: int,
        done: float,
        left: float,
    ) -> None:
        """One log point: metrics.jsonl, summary.json, curves, a line of progress.

        Args:
            config: of the phase.
            rows: what `rows` returned.
            tasker: the tasker's evaluation scores, [seeds], in a run that explores.
            iterations: of the chunk.
            done: share of the phase that is done.
            left: seconds that the phase will still take, about.
        """
        log, whole = self.round, self.arguments.config.steps
        log.step = rows[0]["step"]
        log.done += iterations
        log.updates += iterations * config.schedule[1]
        newly = log.on_diverged(np.array([row["diverged"] or 0 for row in rows]))
        scores = log.carried_forward(np.array([row["episode/score"] for row in rows]))
        log.training.add(log.step, np.where(log.diverged > 0, np.nan, scores))
        if log.adapt_step is not None:
            whole += self.arguments.config.adapt_steps
        words = [f"{config.mode:>7} {done:4.0%}", f"{log.step:,}/{whole:,} steps"]
        words.append(f"score {_iqm(log.training.scores[-1])}")
        if tasker is not None:
            log.evaluation.add(log.step, tasker)
            rows = [row | {"eval/score": float(score)} for row, score in zip(rows, tasker, strict=True)]
            words.append(f"{'zero-shot' if config.mode == 'explore' else 'tasker'} {_iqm(tasker)}")
        if self.table is not None:
            self.table += rows
        if self.folder is None:
            return
        prefix = f"round{self.current + 1}/" if self.planned_rounds > 1 else ""
        for index, (trial, folder) in enumerate(zip(self.trials, self.folders, strict=True)):
            if own := [rows[place] for place in log.round.places(index)]:
                folder.append_metrics(own)
                if self.sink is not None:
                    write, values = self.sink.write, series(own, prefix, trial.name)
                    self.tracked(lambda _, write=write, values=values: write(log.step, values))
        self._write_unfinished(self.folder)
        speed = rows[0]["fps/policy"] * len(rows)
        self.say("  ".join([*words, f"{speed:,.0f} steps/s", f"{int(left) // 60}:{int(left) % 60:02d} left"]))
        if newly:
            at = ", ".join(f"{self._agent(log.round, place)} at step {log.diverged[place]:,}" for place in newly)
            self.warn(f"{at}: a loss, gradient, observation or reward was not finite; frozen there (try a lower lr)")

    def on_stop(self) -> None:
        """A signal ends the run; its files are those of its last log point."""
        if self.folder is None:
            return
        self.close_sink()
        config = self.arguments.config
        self.say(
            f"stopped at {self.round.step:,} of {config.steps + config.adapt_steps:,} steps; the same command with "
            f"--logdir {self.folder.path} goes on"
        )

    def _write_unfinished(self, folder: RunFolder) -> None:
        """summary.json says how far the run has come, should it be killed before its end."""
        about = {"round": self.current + 1, "rounds": self.planned_rounds, "wall_seconds": self._wall}
        about |= {"versions": versions()}
        for index, (trial, own) in enumerate(zip(self.trials, self.folders, strict=True)):
            if self.round.round.places(index):
                write_unfinished(own, trial, self.round.of_trial(index), self.states, about | self._rungs(own))
        if self.trials[0].name:
            folder.write_summary({"finished": False, "trials": [trial.name for trial in self.trials]})

    def on_finish(self) -> None:
        """The files of each trial that was trained to this rung, over the seeds of all rounds together; of a single one
        the table."""
        if self.folder is None:
            return
        self.close_sink()
        rounds = self.of_rung(range(self.rung.number, self.rung.number + 1))
        log, names, last = RoundLog.of_all(rounds), [trial.name for trial in self.trials], self.rung.last
        cost = {"compile_seconds": round(self.compile_seconds, 2), "wall_seconds": self._wall}
        cost |= {"peak_memory_mb": round(peak_memory_mb(), 1), "versions": versions()}
        beside = {"side_by_side": len(log.round.mine) * self.processes.count, "processes": self.processes.count}
        beside |= {"rounds": len(rounds)}
        for index, (trial, folder) in enumerate(zip(self.trials, self.folders, strict=True)):
            if not log.round.places(index):
                continue
            own = log.of_trial(index)
            rungs = self._rungs(folder, None if last else own)
            write_finished(folder, trial, own, self.states, {"finished": last, **rungs, **beside, **cost})
            if names == [""] and last:
                print_finished(trial, own, self.states, self.has_goal)
        if names != [""]:
            self.folder.write_summary({"finished": last, "trials": names, **cost})
        self.say(
            f"{log.step:,} env steps and {log.updates:,} updates a seed in {cost['wall_seconds']:.0f} s "
            f"({self.compile_seconds:.0f} s compiling), {cost['peak_memory_mb']:,.0f} MB; see {self.folder.path}"
        )

    def _rungs(self, folder: RunFolder, here: RoundLog | None = None) -> dict[str, Any]:
        """What summary.json says of the rungs R at which a trial was compared with others: env steps of a seed [R], and
        scores and whether they had diverged of its seeds [R][S]. It has the earlier ones already; `here` is the trial
        at this one."""
        if not self.rung.halves:
            return {}
        rungs = (folder.summary or {}).get("rungs", {})
        rungs = {name: rungs.get(name, [])[: self.rung.number] for name in ("steps", "scores", "diverged")}
        if here is not None:
            now = {"steps": here.step, "scores": here.final.tolist(), "diverged": (here.diverged > 0).tolist()}
            rungs = {name: [*rungs[name], value] for name, value in now.items()}
        return {"rungs": rungs}

    @property
    def _wall(self) -> float:
        """Seconds since the run began, with what it took before it was stopped."""
        return round(time.time() - self.started, 2)

    def _agent(self, round: Round, place: int) -> str:
        """A place's seed, and its trial if there are several, in words."""
        trial = f" of {self.trials[round.trials[place]].name}" if round.trials else ""
        return f"seed {round.seeds[place]}{trial}"


def _iqm(scores: np.ndarray) -> str:
    """The interquartile mean of finite scores, in words."""
    if not np.isfinite(scores).any():
        return "-"
    return f"{summarise(scores, list(range(len(scores))), resamples=1).iqm:.2f}"


def peak_memory_mb() -> float:
    """Peak memory of this process: the first accelerator's own count, or the resident set."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 1e6
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    from importlib.metadata import version

    names = ("jax", "jaxlib", "equinox", "optax", "gymnax", "numpy")
    return {"python": sys.version.split()[0]} | {name: version(name) for name in names}
