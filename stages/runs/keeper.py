"""Keeper: where a run goes on, when it saves, and when it stops because a signal asks."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from stages.config import ConfigError
from stages.replay import Clock
from stages.runs.arguments import Arguments, check_same_run
from stages.runs.checkpoint import Checkpoints, Place
from stages.runs.folder import RunFolder, RunFolderError
from stages.runs.halving import reached
from stages.runs.log import RunLog
from stages.runs.processes import Processes
from stages.runs.rounds import Phase
from stages.runs.signals import Signals, Stopped
from stages.runs.trials import Program
from stages.train import TrainState


class Entered(NamedTuple):
    """The run's folder."""

    folder: RunFolder | None  # None in processes that do not write
    trials: list[RunFolder]  # of each trial; the run's own where there is one; empty in processes that do not write
    path: Path
    finished: bool  # the run that is there has come to its end

    def close(self) -> None:
        """Let others have the folders."""
        for each in {*self.trials, self.folder} - {None}:
            each.close()


def enter(program: Program, processes: Processes) -> Entered:
    """Open the run's folder, new or with the same run in it, and those of its trials.

    Raises:
        RunFolderError: the folder cannot be used, or another run is at work there.
        ConfigError: the run that is there was made with other arguments.
    """
    entered = Entered(None, [], Path(), False)
    if processes.leads:
        arguments = program.arguments
        folder = RunFolder.open(arguments.logdir)
        entered = Entered(folder, [], folder.path, False)
        try:
            if there := folder.config:
                more = check_same_run(arguments, there)
                if more and program.rung.halves:
                    raise ConfigError(
                        f"the sweep in {arguments.logdir} was halved on its way to fewer steps, which --steps and "
                        "--adapt-steps cannot raise; choose another --logdir"
                    )
                done = (folder.summary or {}).get("finished") if program.rung.last else reached(program)
                entered = entered._replace(finished=not more and bool(done))
            for trial in program.trials:
                entered.trials.append(RunFolder.open(folder.path / trial.name) if trial.name else folder)
        except BaseException:
            entered.close()
            raise
    path, finished = processes.exchange_json([str(entered.path), entered.finished])[0]
    return entered._replace(path=Path(path), finished=finished)


class Keeping(Protocol):
    """What the training loop tells of a run's state: `on_plan`, for each round `restore` and `on_round_end`, after each
    chunk `on_chunk`, and at the end `close`."""

    chunks: list[int]
    """Iterations of a chunk, in each phase, of the run that goes on; empty for a new one."""
    side_by_side: int
    """Seeds that it trains at once, in all processes; 0 for a new one."""

    def on_plan(self, phases: list[Phase]) -> None: ...

    def restore(self, index: int) -> tuple[TrainState, Clock] | None: ...

    def on_chunk(self, state: TrainState, clock: Clock) -> None: ...

    def on_round_end(self, index: int, state: TrainState, clock: Clock) -> None: ...

    def close(self) -> None: ...


class Keeper:
    """Saves the state between chunks, beside training. A save that fails costs the save, and not the run."""

    def __init__(self, arguments: Arguments, folder: Path, processes: Processes, signals: Signals, log: RunLog):
        """
        Raises:
            RunFolderError: the newest checkpoint cannot be read, or is missing where trials shall go on from a rung.
            ConfigError: the run had another number of processes or other rungs, or is a copy of its agents alone.
        """
        self._minutes, self._processes, self._signals, self._log = arguments.checkpoint_minutes, processes, signals, log
        self._checkpoints = Checkpoints(folder, processes, arguments.checkpoint_keep)
        self._phases: list[Phase] = []
        self._saved_at = self._chunk_at = time.time()
        signals.on_abort = log.on_abort
        newest = self._checkpoints.newest()
        self.chunks: list[int] = []
        self.side_by_side = 0
        if not newest:
            if log.rung.number:
                raise RunFolderError(f"{str(folder)!r} holds no checkpoint to go on from; choose another --logdir")
            log.restart()
            return
        saved = self._checkpoints.progress(newest)
        if saved.get("agents_only"):
            raise ConfigError(
                f"{str(folder)!r} is an exported copy and holds agents alone: training cannot go on with it; choose "
                "another --logdir"
            )
        if saved["processes"] != processes.count:
            raise ConfigError(
                f"the run was made by {saved['processes']} processes, not {processes.count}: start as many"
            )
        if tuple(saved.get("rungs", [1])) != log.rung.shares:  # a run from before there were any has one
            raise ConfigError(
                f"the run in {str(folder)!r} was made by a sweep with another --halving (or with none): give it the "
                "same again, or choose another --logdir"
            )
        log.load(saved)
        self.chunks = saved["iterations"]
        if log.rounds[newest.round].round.rung == log.rung.number:
            self.side_by_side = saved["width"] * processes.count

    def on_plan(self, phases: list[Phase]) -> None:
        """All is compiled: from now on there is something to save."""
        self._phases = phases
        self._saved_at = self._chunk_at = time.time()
        self._signals.between_chunks()

    def restore(self, index: int) -> tuple[TrainState, Clock] | None:
        """State and clock of round `index` where it was left, or where its agents were at the rung before; None if they
        have not begun. Raises RunFolderError."""
        logged = self._log.round
        if not logged.step:
            return None
        state, clock = self._phases[0].sweep.shapes(len(logged.round.mine))
        if logged.phase:
            state = self._phases[logged.phase].sweep.adapted(state)
        if logged.step > logged.begun:
            return self._checkpoints.restore(Place(index, logged.step), (state, clock))
        before = [each for each in enumerate(self._log.rounds) if each[1].round.rung == logged.round.rung - 1]
        there = {
            agent: (Place(at, each.step), place) for at, each in before for place, agent in enumerate(each.round.agents)
        }
        return self._checkpoints.gather([there[agent] for agent in logged.round.my_agents], (state, clock))

    def on_chunk(self, state: TrainState, clock: Clock) -> None:
        """Save if it is time. Raises Stopped, once all is saved, where a signal has asked any process to stop."""
        now = time.time()
        self._signals.between_chunks(now - self._chunk_at)
        mine = [self._signals.asked, now - self._saved_at >= 60 * self._minutes]
        everyone = self._processes.exchange_json(mine)
        asked, due = max(code for code, _ in everyone), everyone[0][1]
        if due or asked:
            self._save(state, clock)
        if asked:
            self._wait()
            self._log.on_stop()
            raise Stopped(asked)
        self._chunk_at = time.time()

    def on_round_end(self, index: int, state: TrainState, clock: Clock) -> None:
        """A round is over: keep its last state alone. Raises RunFolderError where others cannot go on from it."""
        if self._save(state, clock) and self._wait():
            self._checkpoints.prune(index)
        elif not self._log.rung.last:
            raise RunFolderError("trials go on from what is saved at a rung: free the disk; the same command goes on")

    def close(self) -> None:
        """All is written."""
        self._checkpoints.close()

    def _save(self, state: TrainState, clock: Clock) -> bool:
        """Whether the disk let it begin."""
        place = Place(self._log.current, self._log.round.step)
        progress = self._log.saved([each.iterations for each in self._phases])
        saved = self._tried(lambda: self._checkpoints.save(place, (state, clock), progress))
        self._saved_at = time.time()
        return saved

    def _wait(self) -> bool:
        """Whether all that was saved is on disk."""
        return self._tried(self._checkpoints.wait)

    def _tried(self, act: Callable[[], None]) -> bool:
        """Whether the disk let it; a warning says why not."""
        try:
            act()
        except RunFolderError as error:
            self._log.warn(f"not saved: {error}")
            return False
        return True
