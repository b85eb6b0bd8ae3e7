"""The log of a run: what it is, how far it has come, and how it goes on from a checkpoint."""

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from envs.environment import Environment, StateSpace
from stages.cli import terminal
from stages.cli.arguments import Arguments
from stages.cli.processes import Processes
from stages.cli.settings_file import JsonObject
from stages.config import ConfigError
from stages.evaluate import eval_episode_count
from stages.log.lines import Pace
from stages.log.round_log import RoundLog
from stages.log.sink import Tracker
from stages.networks.distributions import max_entropy
from stages.results.records import from_json
from stages.store.folder import RunFolder
from stages.sweep.trials import Trial

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
    eval_episodes: int = 0  # of one evaluation of a seed
    max_entropy: float = math.nan  # of a policy, nats; NaN of continuous actions
    folder: RunFolder | None = None  # None: nothing is printed or written, or another process does
    folders: list[RunFolder] = field(default_factory=list)  # of each trial; empty where `folder` is None

    @staticmethod
    def of(
        arguments: Arguments,
        trials: list[Trial],
        env: Environment,
        processes: Processes,
        folder: RunFolder | None = None,
        folders: Sequence[RunFolder] = (),
    ) -> "RunSetup":
        """The setup of a run in this environment."""
        return RunSetup(
            arguments, trials, processes, env.states, env.goal is not None, env.achievements,
            eval_episode_count(env, arguments.config), max_entropy(env.action_space), folder, list(folders),
        )  # fmt: skip


@dataclass
class RunLog:
    """How far a run has come. `to_json` gives it to a checkpoint; `resume` goes on from there."""

    setup: RunSetup
    started: float  # of time.monotonic, earlier by the seconds that the run took in sessions before
    rounds: list[RoundLog] = field(default_factory=list)  # so far
    current: int = -1  # index of the present one
    planned_rounds: int = 1
    planned_steps: int = 0  # of a seed, in all phases
    compile_seconds: float = 0.0  # of this session and of those before
    tracker: Tracker = field(default_factory=Tracker)
    table: list[MetricRow] | None = None  # every row so far, where the caller wants them; metrics.jsonl has them
    on_point: Callable[[list[MetricRow], Pace], object] | None = None  # told of each log point

    @property
    def round(self) -> RoundLog:
        """The present round's log."""
        return self.rounds[self.current]

    @property
    def wall_seconds(self) -> float:
        """Seconds since the run began, with those before it was stopped."""
        return round(time.monotonic() - self.started, 2)

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
            "metrics_waiting": [b"".join(folder.waiting).decode() for folder in self.setup.folders],
            "seconds": time.monotonic() - self.started,
            "compile_seconds": self.compile_seconds,
            "arguments": dataclasses.asdict(self.setup.arguments),
            "versions": versions(),
        }

    def resume(self, saved: JsonObject) -> None:
        """Go on from what `to_json` gave; lines of metrics.jsonl after it are cut off."""
        self.rounds = [from_json(log, RoundLog) for log in saved["rounds"]]
        self.started -= saved["seconds"]
        self.compile_seconds = saved.get("compile_seconds", 0.0)
        if self.setup.folder is not None:
            sizes = saved["metrics_sizes"]
            waiting = saved.get("metrics_waiting", [""] * len(sizes))
            for folder, size, lines in zip(self.setup.folders, sizes, waiting, strict=True):
                folder.cut_metrics(size)
                folder.waiting[:] = [lines.encode()]
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
            keeps = self.setup.arguments.checkpoint_keep > 0
            what = "goes on" if keeps else "begins again: --checkpoint-keep 0 keeps no checkpoint"
            terminal.say(
                f"stopped at {self.round.step:,} of {self.planned_steps:,} steps; the same command with "
                f"--logdir {self.setup.folder.path} {what}"
            )


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    from importlib.metadata import version

    names = ("jax", "jaxlib", "equinox", "optax", "gymnax", "numpy")
    return {"python": sys.version.split()[0]} | {name: version(name) for name in names}
