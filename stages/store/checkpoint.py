"""Checkpoints: the whole state of a round on disk, written while training goes on.

Orbax writes them to one folder for each round and process, `checkpoints/round-0000/process-0/STEP`. A checkpoint is
either complete or does not exist. It holds every array of the state (parameters, optimiser, targets, replay,
environments, keys) and the counters. It holds the log so far as JSON, with the run's arguments and versions. Checksums
of its files are compared before anything is read. Processes resume from the newest checkpoint that all of them have.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from jaxtyping import ArrayLike, PyTree

from stages.cli.processes import Processes
from stages.cli.settings_file import JsonObject
from stages.store.arrays import leaves_by_path, match_shapes, without_key_type
from stages.store.files import RunFolderError, checksum, plain, read_json, temporary_path, write_json
from stages.store.orbax_quirks import act_as_process_zero, check_path, explained, silence_closed_loops

if TYPE_CHECKING:  # imported where it is used, since it takes seconds
    from orbax.checkpoint import CheckpointManager
    from orbax.checkpoint.args import CheckpointArgs

FOLDER = "checkpoints"
CHECKSUMS = "checksums.json"
"""SHA-256 of each file of a checkpoint, by its path there. Older checkpoints have none."""
TEMPORARY = ".orbax-checkpoint-tmp"
"""Orbax's suffix to the name of a checkpoint that is not complete yet."""
REWRITTEN = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""Files that orbax rewrites after the checksums are computed: they have the checkpoint's time and path."""


class CheckpointId(NamedTuple):
    """A checkpoint's round, from 0, and the env steps that each of its seeds had made."""

    round: int
    step: int


class Checkpoints:
    """The checkpoints of this process in a run's folder."""

    def __init__(self, folder: Path, processes: Processes, keep: int, reads: bool = False):
        """
        Args:
            folder: the run's folder, which all processes can access.
            keep: how many checkpoints of a round are kept; 0: none is written.
            reads: only read checkpoints. Nothing is created or deleted, since a run may be using them.
        """
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax says there what it raises, too
        silence_closed_loops()
        self.folder, self.processes, self.keep, self.reads = folder / FOLDER, processes, keep, reads
        self._managers: dict[int, CheckpointManager] = {}
        self._intact: set[CheckpointId] = set()  # checkpoints whose files have been compared with their checksums

    def newest(self) -> CheckpointId | None:
        """The checkpoint written last of those that every process has complete; None without one.

        Within a round it is the checkpoint of most steps, whatever its time. It need not be of the last round: a
        finished sweep that is given more steps continues with its first round.
        """
        local = [(round, step) for round in self._rounds() for step in self._manager(round).all_steps()]
        by_process = [{tuple(pair) for pair in pairs} for pairs in self.processes.exchange_json(local)]
        common = set.intersection(*by_process)
        if any(by_process) and not common:
            raise RunFolderError(
                f"the checkpoints in {str(self.folder)!r} are not of one step in all {self.processes.count} processes; "
                "start as many processes as before on the same machines, or remove the folder to begin again"
            )

        def commit_time(pair: tuple[int, int]) -> tuple[int, tuple[int, int]]:
            with explained(self._path(CheckpointId(*pair))):
                return self._manager(pair[0]).metadata(pair[1]).commit_timestamp_nsecs or 0, pair

        of_rounds = dict(sorted(common)).items()  # each round's last
        return CheckpointId(*max(of_rounds, key=commit_time)) if common else None

    def newest_of_rounds(self) -> list[CheckpointId]:
        """The newest checkpoint of each round that this process has; other processes are not asked."""
        steps = {round: self._manager(round).latest_step() for round in self._rounds()}
        return [CheckpointId(round, step) for round, step in steps.items() if step is not None]

    def _rounds(self) -> list[int]:
        """The rounds that this process has a folder of."""
        return [round for round, process in stored(self.folder) if process == self.processes.index]

    def progress(self, checkpoint: CheckpointId) -> JsonObject:
        """The JSON of a checkpoint. Raises RunFolderError."""
        import orbax.checkpoint as ocp

        self._check_files(checkpoint)
        with explained(self._path(checkpoint)):
            asked = ocp.args.Composite(progress=ocp.args.JsonRestore())
            return self._manager(checkpoint.round).restore(checkpoint.step, args=asked)["progress"]

    def restore(self, checkpoint: CheckpointId, shapes: PyTree, part: bool = False) -> PyTree:
        """The arrays of a checkpoint in the structure of `shapes`, a tree of jax.ShapeDtypeStruct with shardings.

        Arrays with a slot for each row of the run (GROWABLE) may be larger than the saved ones. Hyperparameters that
        are newer than the checkpoint get their defaults.

        Args:
            part: `shapes` has only a part of the state, and only that part is read.

        Raises:
            RunFolderError: the checkpoint is damaged, or of a state of other parts, shapes or types.
        """
        import orbax.checkpoint as ocp

        wanted, args = leaves_by_path(shapes), None
        if part:
            item = {name: jax.eval_shape(without_key_type, x) for name, x in wanted.items() if x.size}
            as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in item}
            args = ocp.args.PyTreeRestore(item, restore_args=as_numpy, partial_restore=True)
        return match_shapes(self._path(checkpoint), self.arrays(checkpoint, args), shapes)

    def arrays(self, checkpoint: CheckpointId, args: CheckpointArgs | None = None) -> dict[str, ArrayLike]:
        """The arrays of a checkpoint by their names, those that `args` asks for. Raises RunFolderError."""
        import orbax.checkpoint as ocp

        self._check_files(checkpoint)
        with explained(self._path(checkpoint)):
            wanted = ocp.args.Composite(state=args or ocp.args.StandardRestore())
            saved = self._manager(checkpoint.round).restore(checkpoint.step, args=wanted)["state"]
        # Missing entries are returned as they were asked for.
        return {name: x for name, x in saved.items() if isinstance(x, np.ndarray | jax.Array)}

    def save(self, checkpoint: CheckpointId, state: PyTree, progress: JsonObject) -> None:
        """Write a checkpoint. Returns once the arrays are copied; a thread writes them while training goes on.

        First waits until the checkpoint before is written in all processes, so that they always have one in common. If
        the disk may be too small, returns once all is written: lines logged meanwhile would find the disk full.

        Raises:
            RunFolderError: the checkpoint before, or this one, could not be written. Its files are removed.
        """
        import orbax.checkpoint as ocp

        if not self.keep:
            return
        self.wait()
        manager = self._manager(checkpoint.round)
        if checkpoint.step in manager.all_steps():
            return
        arrays = {name: np.asarray(without_key_type(x)) for name, x in leaves_by_path(state).items() if x.size}
        args = ocp.args.Composite(state=ocp.args.StandardSave(arrays), progress=ocp.args.JsonSave(plain(progress)))
        with self._removed_on_failure(checkpoint):
            manager.save(checkpoint.step, args=args)
            if shutil.disk_usage(self.folder).free < 2 * sum(x.nbytes for x in arrays.values()):
                manager.wait_until_finished()

    def wait(self) -> None:
        """Wait until what has been saved is on disk, here and in all processes. Raises RunFolderError."""
        failure = ""
        for round, manager in list(self._managers.items()):
            try:
                with self._removed_on_failure(CheckpointId(round, manager.latest_step() or 0)):
                    manager.wait_until_finished()
            except RunFolderError as error:
                failure = str(error)
        if failures := list(filter(None, self.processes.exchange_json(failure))):
            raise RunFolderError(failures[0])

    def prune(self, round: int) -> None:
        """Remove all checkpoints of a finished round but its newest. Raises RunFolderError."""
        if not self.keep:
            return
        manager = self._manager(round)
        for step in sorted(manager.all_steps())[:-1]:
            with explained(self._path(CheckpointId(round, step)), "removed", "remove it by hand"):
                manager.delete(step)

    def try_saving(self) -> None:
        """Write a small checkpoint beside the others, and remove it.

        Raises:
            RunFolderError: no checkpoint can be written here. `wait` raises a failed write in all processes.
        """
        if not self.keep:
            return
        beside = temporary_path(self.folder.with_name(f"{FOLDER}-{self.processes.index}"))
        trial = Checkpoints(beside, self.processes, keep=1)
        try:
            trial.save(CheckpointId(0, 0), {"zero": np.zeros(1)}, {})
            trial.wait()
        except RunFolderError as error:
            raise RunFolderError(
                f"no checkpoint can be saved: {error}; choose another --logdir, or give --checkpoint-keep 0"
            ) from error
        finally:
            with contextlib.suppress(RunFolderError):
                trial.close()
            shutil.rmtree(beside, ignore_errors=True)

    def close(self) -> None:
        """Wait until all is written, and close the folder."""
        for manager in self._managers.values():
            manager.close()
        self._managers.clear()

    @contextlib.contextmanager
    def _removed_on_failure(self, checkpoint: CheckpointId) -> Iterator[None]:
        """If saving fails, raise one line and delete the partial checkpoint.

        The manager is dropped, so that orbax reads the folder again: after a failed save it takes older checkpoints for
        removed, which they are not.
        """
        try:
            with explained(self._path(checkpoint), "written", "free the disk"):
                yield
        except RunFolderError:
            manager = self._managers.pop(checkpoint.round, None)
            with contextlib.suppress(Exception):  # it raises the same again
                if manager is not None:
                    manager.close()
            for path in self._process_path(checkpoint.round).glob(f"*{TEMPORARY}*"):
                shutil.rmtree(path, ignore_errors=True)
            raise

    def _check_files(self, checkpoint: CheckpointId) -> None:
        """Compare the files of a checkpoint with their checksums, once. Raises RunFolderError where one differs."""
        path = self._path(checkpoint)
        if checkpoint in self._intact or not (path / CHECKSUMS).exists():
            return
        try:
            checksums = read_json(path / CHECKSUMS, dict[str, str]) or {}
            damaged = [name for name, written in checksums.items() if checksum(path / name) != written]
        except RunFolderError:
            damaged = [CHECKSUMS]
        if damaged:
            before = max(
                (step for step in self._manager(checkpoint.round).all_steps() if step < checkpoint.step), default=None
            )
            remedy = "put it back from a copy, or remove the folder to begin again without it"
            if before is not None:
                remedy = f"remove the folder to go on from the checkpoint at {before} steps"
            raise RunFolderError(
                f"the checkpoint {str(path)!r} cannot be read: its file {damaged[0]!r} is damaged or missing; {remedy}"
            )
        self._intact.add(checkpoint)

    def _write_checksums(self, round: int) -> None:
        """Add the checksums to a checkpoint that is written but still has its temporary name."""
        (path,) = self._process_path(round).glob(f"*{TEMPORARY}*")
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.name not in REWRITTEN)
        write_json(path / CHECKSUMS, {file.relative_to(path).as_posix(): checksum(file) for file in files})

    def _path(self, checkpoint: CheckpointId) -> Path:
        return self._process_path(checkpoint.round) / str(checkpoint.step)

    def _process_path(self, round: int) -> Path:
        return self.folder / f"round-{round:04}" / f"process-{self.processes.index}"

    def _manager(self, round: int) -> CheckpointManager:
        """Orbax's manager of a round's checkpoints, which does not communicate with other processes."""
        import orbax.checkpoint as ocp

        if round not in self._managers:
            check_path(self.folder, writes=not self.reads)
            multiprocessing, path = ocp.options.MultiprocessingOptions(), self._process_path(round)
            if self.processes.count > 1:
                act_as_process_zero()
                multiprocessing = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
            # With several processes, orbax's threads signal that a folder exists by keys in a store that all processes
            # share. Each process numbers its keys by itself, so one would delete a key that another waits for.
            no_signals = ocp.options.AsyncOptions(
                create_directories_asynchronously=False,
                post_finalization_callback=functools.partial(self._write_checksums, round),
            )
            options = ocp.CheckpointManagerOptions(
                max_to_keep=None if self.reads else max(1, self.keep),
                async_options=no_signals,
                create=False,
                cleanup_tmp_directories=not self.reads,
                read_only=self.reads,
                multiprocessing_options=multiprocessing,
            )
            with explained(path, "opened", "choose another --logdir, or ask for permission to use it"):
                if not self.reads:
                    path.mkdir(parents=True, exist_ok=True)
                self._managers[round] = ocp.CheckpointManager(path, options=options)
        return self._managers[round]


def stored(folder: Path) -> list[tuple[int, int]]:
    """The rounds and processes that a run has folders of; other entries, such as backup copies, are ignored."""
    names = (re.fullmatch(r"round-(\d+)/process-(\d+)", "/".join(path.parts[-2:])) for path in folder.glob("*/*"))
    return sorted((int(name[1]), int(name[2])) for name in names if name)
