"""Checkpoint policy: which checkpoint a run resumes from, when it saves, and when it stops on a signal."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from envs.environment import Environment
from stages.agent import Agent, without_explorer
from stages.cli import terminal
from stages.cli.arguments import Arguments
from stages.cli.processes import Processes
from stages.cli.signals import Signals, Stopped
from stages.config import ConfigError
from stages.log.run_log import RunLog
from stages.replay import StepCounters
from stages.store.best import keep_best
from stages.store.checkpoint import CheckpointId, Checkpoints
from stages.store.files import RunFolderError
from stages.store.fingerprint import COMPUTATION, check_spaces, fingerprint
from stages.store.folder import RunFolder
from stages.sweep.rounds import Phase
from stages.train import TrainState


class CheckpointPolicy:
    """Saves the state between chunks, while training goes on. A failed save does not stop training. If it was the last
    save of a round, `close` raises."""

    def __init__(
        self,
        arguments: Arguments,
        env: Environment,
        folder: Path,
        processes: Processes,
        signals: Signals,
        log: RunLog,
    ):
        """
        Raises:
            RunFolderError: the newest checkpoint cannot be read, or none can be saved in this folder.
            ConfigError: the run had another number of processes or an environment with other spaces, or the folder is
                a copy that holds agents alone.
        """
        self._minutes, self._processes, self._signals, self._log = arguments.checkpoint_minutes, processes, signals, log
        self._checkpoints = Checkpoints(folder, processes, arguments.checkpoint_keep)
        self._folder, self._keeps_best = folder, arguments.checkpoint_best
        self._best: Agent | None = None  # of the round at work, [P, ...]
        self._environment = fingerprint(env)
        self._phases: list[Phase] = []
        self._unsaved_rounds: list[int] = []  # rounds whose last state could not be saved
        self._saved_at = self._chunk_at = time.monotonic()
        signals.on_abort = log.on_abort
        try:
            self._checkpoints.try_saving()
        except BaseException:
            log.on_abort()
            raise
        # Of a resumed run: the iterations of a chunk in each phase, and the seeds side by side in all processes.
        self.chunk_iterations: list[int] = []  # empty: the run is new
        self.parallel = 0  # 0: the run is new
        if newest := self._checkpoints.newest():
            self._resume(newest, env)
        else:
            log.restart()

    def _resume(self, newest: CheckpointId, env: Environment) -> None:
        """Take the log and the sizes of chunks and rounds from the newest checkpoint."""
        saved, processes = self._checkpoints.progress(newest), self._processes
        if saved.get("agents_only"):
            raise ConfigError(
                f"{str(self._folder)!r} is an exported copy and holds agents alone: training cannot go on with it; "
                "choose another --logdir"
            )
        if saved["processes"] != processes.count:
            raise ConfigError(
                f"the run was made by {saved['processes']} processes, not {processes.count}: start as many"
            )
        check_spaces(saved["environment"], env, self._folder)
        if saved["environment"][COMPUTATION] != self._environment[COMPUTATION] and processes.leads:
            terminal.warn(
                "the environment's code, or jax, has changed since the run was saved: it goes on with the new one"
            )
        self._log.resume(saved)
        self.chunk_iterations = saved["iterations"]
        self.parallel = saved["width"] * processes.count

    def on_plan(self, phases: list[Phase]) -> None:
        """Note the phases, once all programs are compiled."""
        self._phases = phases
        self._saved_at = time.monotonic()

    def on_training(self) -> None:
        """A round's training begins: from now on a signal stops the run at the end of a chunk, after a save.

        Raises:
            Stopped: a signal came before this round's first chunk. Nothing is saved here: older checkpoints remain.
        """
        self._signals.between_chunks()
        if asked := max(self._processes.exchange_json(self._signals.asked)):
            self._log.on_stop()
            raise Stopped(asked)
        self._chunk_at = time.monotonic()

    def restore(self, index: int) -> tuple[TrainState, StepCounters] | None:
        """State and counters of round `index` at its newest checkpoint; None if it has none. Raises RunFolderError."""
        round_log, self._best = self._log.round, None
        if not round_log.step:
            return None
        state, counters = self._phases[0].compiled.shapes(len(round_log.round.mine))
        if round_log.phase:
            state = self._phases[round_log.phase].compiled.adapted_shapes(state)
        best = (state.agent,) if self._keeps_best else ()
        restored = self._checkpoints.restore(CheckpointId(index, round_log.step), (state, counters, *best))
        self._best = restored[2] if self._keeps_best else None
        return restored[:2]

    def on_adapt(self) -> None:
        """The next phase begins: drop the explorer from the best agents."""
        self._best = None if self._best is None else without_explorer(self._best)

    def _update_best(self, agent: Agent) -> None:
        """Keep the current agents of those seeds whose last evaluation is their best so far."""
        width, improved = len(self._log.round.round.mine), self._log.round.improved()
        slots = np.arange(width) + self._processes.index * width
        local = improved[np.minimum(slots, improved.size - 1)]  # padding trains the last seed once more
        self._best = keep_best(local, agent, agent if self._best is None else self._best)

    def on_chunk(self, state: TrainState, counters: StepCounters) -> None:
        """Save if it is time. If a signal has asked any process to stop, save and raise Stopped."""
        self._check_folder()
        if self._keeps_best:
            self._update_best(state.agent)
        chunk_end = time.monotonic()
        self._signals.between_chunks(chunk_end - self._chunk_at)
        local = [self._signals.asked, chunk_end - self._saved_at >= 60 * self._minutes]
        by_process = self._processes.exchange_json(local)
        asked, due = max(code for code, _ in by_process), by_process[0][1]
        if due or asked:
            self._save(state, counters)
        if asked:
            self._wait()
            self._log.on_stop()
            raise Stopped(asked)
        self._chunk_at = time.monotonic()

    def on_round_end(self, index: int, state: TrainState, counters: StepCounters) -> None:
        """Save the state at a round's end, and remove the round's other checkpoints. `close` raises if a save fails."""
        self._check_folder()
        saved = self._save(state, counters)
        written = self._wait()  # in every process, whether or not its own save began
        if all(self._processes.exchange_json(saved and written)):
            self._succeeds(lambda: self._checkpoints.prune(index))
        else:
            self._unsaved_rounds.append(index)

    def close(self) -> None:
        """Close the checkpoints. Raises RunFolderError if the last agents of a round could not be saved."""
        self._checkpoints.close()
        if self._unsaved_rounds:
            rounds = len(self._log.rounds)
            agents = f"the agents of {len(self._unsaved_rounds)} of {rounds} rounds" if rounds > 1 else "the agents"
            raise RunFolderError(
                f"{agents} could not be saved at the end, see the warnings: metrics and scores are whole, but eval and "
                "video have an earlier checkpoint, if any; free the disk, and train again into another --logdir"
            )

    def _check_folder(self) -> None:
        """Raise RunFolderError if the run's folder is gone: a checkpoint would recreate it without its other files."""
        if self._log.setup.folder is not None and not (self._folder / RunFolder.CONFIG).exists():
            raise RunFolderError(f"{str(self._folder)!r} was removed or moved while the run was at work in it")

    def _save(self, state: TrainState, counters: StepCounters) -> bool:
        """Begin a save; returns whether that succeeded."""
        self._wait()  # a failure of the save before must not make this one fail
        checkpoint = CheckpointId(self._log.current, self._log.round.step)
        progress = self._log.to_json([phase.chunk_iterations for phase in self._phases]) | {
            "environment": self._environment
        }
        best = () if self._best is None else (self._best,)
        saved = self._succeeds(lambda: self._checkpoints.save(checkpoint, (state, counters, *best), progress))
        self._saved_at = time.monotonic()
        return saved

    def _wait(self) -> bool:
        """Whether all that was saved is on disk."""
        return self._succeeds(self._checkpoints.wait)

    def _succeeds(self, action: Callable[[], None]) -> bool:
        """Call `action`; returns whether it succeeded. A failure is printed as a warning."""
        try:
            action()
        except RunFolderError as error:
            terminal.warn(f"not saved: {error}")
            return False
        return True
