"""Checkpoints: the whole state of a round on disk, written beside training, and what of it is good after a crash.

One folder a round and process, `checkpoints/round-0000/process-0/STEP`, by orbax: a checkpoint is there whole or not at
all. It holds every array of the state (parameters, optimiser, targets, replay, environments, keys), the clock, as JSON
the log so far with the run's arguments and versions, and checksums of its files, which are compared before anything is
read. Processes agree on the newest that all of them have.
"""

import contextlib
import functools
import hashlib
import json
import logging
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from stages.cli.processes import Processes
from stages.config import Hypers
from stages.store.folder import RunFolderError, plain, write_json

FOLDER = "checkpoints"
CHECKSUMS = "checksums.json"
"""SHA-256 of each file of a checkpoint, by its path there. Older checkpoints have none."""
TEMPORARY = ".orbax-checkpoint-tmp"
"""What the name of a checkpoint has behind it until the checkpoint is whole; orbax's."""
REWRITTEN = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""Files that orbax writes once the checksums are known: they say when a checkpoint was written, and where."""
ROOM = {".ring.": 0, ".coverage.where": -1}
"""Parts of the state with room for each row that the run will collect, and what stands where none is yet."""
NEWER = {f"[0].hypers.{name}": value for name, value in vars(Hypers()).items()}
"""What hyperparameters that a checkpoint is too old to hold are in it: their defaults."""
OLDER = {"[0].hypers.bootstrap", "[0].hypers.intrinsic_scale_lr"}
"""Hyperparameters that a checkpoint may still hold: config.json says whether its run left them alone."""


class Place(NamedTuple):
    """Which checkpoint: the round, from 0, and the env step of a seed."""

    round: int
    step: int


class Checkpoints:
    """The checkpoints of a run, as this process sees them."""

    def __init__(self, folder: Path, processes: Processes, keep: int, reads: bool = False):
        """
        Args:
            folder: the run's, which all processes reach.
            keep: how many of a round are kept; 0: none is written.
            reads: they are only looked at. Nothing is made or tidied up then: a run may be at work there.
        """
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax says there what it raises, too
        _quiet_closed_loops()
        self.folder, self.processes, self.keep, self.reads = folder / FOLDER, processes, keep, reads
        self._managers: dict[int, Any] = {}
        self._intact: set[Place] = set()  # checkpoints whose files have been compared with their checksums

    def newest(self) -> Place | None:
        """The one written last of those that every process has whole; None without one.

        It need not be the last round's: a finished sweep that is prolonged begins again with its first.
        """
        mine = []
        for path in sorted(self.folder.glob(f"round-*/process-{self.processes.index}")):
            round = int(path.parent.name.removeprefix("round-"))
            mine += [(round, step) for step in self._manager(round).all_steps()]
        everyone = [{tuple(place) for place in each} for each in self.processes.exchange_json(mine)]
        common = set.intersection(*everyone)
        if any(everyone) and not common:
            raise RunFolderError(
                f"the checkpoints in {str(self.folder)!r} are not of one step in all {self.processes.count} processes; "
                "start as many processes as before on the same machines, or remove the folder to begin again"
            )
        written = lambda place: (self._manager(place[0]).metadata(place[1]).commit_timestamp_nsecs or 0, place)
        return Place(*max(common, key=written)) if common else None

    def newest_of_rounds(self) -> list[Place]:
        """The newest of each round that this process has, whatever others have."""
        paths = sorted(self.folder.glob(f"round-*/process-{self.processes.index}"))
        rounds = [int(path.parent.name.removeprefix("round-")) for path in paths]
        return [Place(r, step) for r in rounds if (step := self._manager(r).latest_step()) is not None]

    def progress(self, place: Place) -> dict[str, Any]:
        """The JSON of a checkpoint. Raises RunFolderError."""
        import orbax.checkpoint as ocp

        self._check_files(place)
        with _explained(self._path(place)):
            found = self._manager(place.round).restore(
                place.step, args=ocp.args.Composite(progress=ocp.args.JsonRestore())
            )
            return found["progress"]

    def restore(self, place: Place, shapes: Any, part: bool = False) -> Any:
        """The arrays of a checkpoint, as `shapes` has them: a tree of jax.ShapeDtypeStruct with shardings.

        What has room for each row of the run (ROOM) may be larger than the saved one; hyperparameters may have come
        after it (NEWER), or gone (OLDER).

        Args:
            part: `shapes` are of a part of the state, and the rest of it is not read.

        Raises:
            RunFolderError: the checkpoint is damaged, or of a state of other parts, shapes or types.
        """
        import orbax.checkpoint as ocp

        wanted, args = named(shapes), None
        if part:
            item = {name: jax.eval_shape(_raw, x) for name, x in wanted.items() if x.size}
            as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in item}
            args = ocp.args.PyTreeRestore(item, restore_args=as_numpy, partial_restore=True)
        return _as_in(self._path(place), self._arrays(place, args), shapes)

    def _arrays(self, place: Place, args: Any = None) -> dict[str, Any]:
        """The arrays of a checkpoint by their names, those that `args` asks for. Raises RunFolderError."""
        import orbax.checkpoint as ocp

        self._check_files(place)
        with _explained(self._path(place)):
            wanted = ocp.args.Composite(state=args or ocp.args.StandardRestore())
            saved = self._manager(place.round).restore(place.step, args=wanted)["state"]
        # What is asked for and not there comes back as it was asked for.
        return {name: x for name, x in saved.items() if isinstance(x, np.ndarray | jax.Array)}

    def save(self, place: Place, state: Any, progress: dict[str, Any]) -> None:
        """Write a checkpoint; returns once the arrays are copied, and writing goes on beside training.

        First waits until the one before is written in all processes, so that they always have one in common. Where the
        disk may be too small, returns once all is written: what is logged meanwhile would find it full.

        Raises:
            RunFolderError: the one before, or this one, could not be written. Nothing of it is left then.
        """
        import orbax.checkpoint as ocp

        if not self.keep:
            return
        self.wait()
        manager = self._manager(place.round)
        if place.step in manager.all_steps():
            return
        arrays = {name: np.asarray(_raw(x)) for name, x in named(state).items() if x.size}
        args = ocp.args.Composite(state=ocp.args.StandardSave(arrays), progress=ocp.args.JsonSave(plain(progress)))
        with self._removed_on_failure(place):
            manager.save(place.step, args=args)
            if shutil.disk_usage(self.folder).free < 2 * sum(x.nbytes for x in arrays.values()):
                manager.wait_until_finished()

    def wait(self) -> None:
        """Wait until what has been saved is on disk, here and in all processes. Raises RunFolderError."""
        failure = ""
        for round, manager in list(self._managers.items()):
            try:
                with self._removed_on_failure(Place(round, manager.latest_step() or 0)):
                    manager.wait_until_finished()
            except RunFolderError as error:
                failure = str(error)
        if failures := [each for each in self.processes.exchange_json(failure) if each]:
            raise RunFolderError(failures[0])

    def prune(self, round: int) -> None:
        """Keep only the newest of a round that is over. Raises RunFolderError."""
        if not self.keep:
            return
        manager = self._manager(round)
        for step in sorted(manager.all_steps())[:-1]:
            with _explained(self._path(Place(round, step)), "removed", "remove it by hand"):
                manager.delete(step)

    def try_saving(self) -> None:
        """Write a small checkpoint beside the others, and remove it.

        Raises:
            RunFolderError: none can be written here. In all processes, if not in the first one.
        """
        if not self.keep:
            return
        beside = self.folder.with_name(f".{FOLDER}-{self.processes.index}")
        trial = Checkpoints(beside, self.processes, keep=1)
        try:
            if str(beside) != str(beside).encode(errors="replace").decode():
                raise RunFolderError(f"the name {str(self.folder.parent)!r} is not UTF-8, as this locale reads it")
            trial.save(Place(0, 0), {"zero": np.zeros(1)}, {})
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
        """Let go of the folder, once all is written."""
        for manager in self._managers.values():
            manager.close()
        self._managers.clear()

    @contextlib.contextmanager
    def _removed_on_failure(self, place: Place) -> Iterator[None]:
        """What saving raises, as one line; then nothing of the checkpoint is left, and orbax looks at the folder anew:
        it takes those for removed whose removal the failed one should have been followed by."""
        try:
            with _explained(self._path(place), "written", "free the disk"):
                yield
        except RunFolderError:
            manager = self._managers.pop(place.round, None)
            with contextlib.suppress(Exception):  # it raises the same again
                manager.close()
            for path in self._process_path(place.round).glob(f"*{TEMPORARY}*"):
                shutil.rmtree(path, ignore_errors=True)
            raise

    def _check_files(self, place: Place) -> None:
        """Compare the files of a checkpoint with their checksums, once. Raises RunFolderError where one is another."""
        path = self._path(place)
        if place in self._intact or not (path / CHECKSUMS).exists():
            return
        try:
            checksums = json.loads((path / CHECKSUMS).read_bytes())
            damaged = [name for name, written in checksums.items() if _checksum(path / name) != written]
        except (OSError, ValueError, AttributeError):
            damaged = [CHECKSUMS]
        if damaged:
            before = max((step for step in self._manager(place.round).all_steps() if step < place.step), default=None)
            remedy = "put it back from a copy, or remove the folder to begin again without it"
            if before is not None:
                remedy = f"remove the folder to go on from the checkpoint at {before} steps"
            raise RunFolderError(
                f"the checkpoint {str(path)!r} cannot be read: its file {damaged[0]!r} is damaged or missing; {remedy}"
            )
        self._intact.add(place)

    def _write_checksums(self, round: int) -> None:
        """Add the checksums to a checkpoint that is written, and that orbax has not given its name yet."""
        (path,) = self._process_path(round).glob(f"*{TEMPORARY}*")
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.name not in REWRITTEN)
        write_json(path / CHECKSUMS, {file.relative_to(path).as_posix(): _checksum(file) for file in files})

    def _path(self, place: Place) -> Path:
        return self._process_path(place.round) / str(place.step)

    def _process_path(self, round: int) -> Path:
        return self.folder / f"round-{round:04}" / f"process-{self.processes.index}"

    def _manager(self, round: int) -> Any:
        """Orbax's manager of a round's checkpoints; a process is on its own there, whatever others do."""
        import orbax.checkpoint as ocp

        if round not in self._managers:
            several, path = ocp.options.MultiprocessingOptions(), self._process_path(round)
            if self.processes.count > 1:
                _each_for_itself()
                several = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
            # Orbax's threads tell each other that a folder is made by keys in the store of all processes, numbered by
            # each process's own count of operations: one process would delete what another still waits for.
            alone = ocp.options.AsyncOptions(
                create_directories_asynchronously=False,
                post_finalization_callback=functools.partial(self._write_checksums, round),
            )
            options = ocp.CheckpointManagerOptions(
                max_to_keep=None if self.reads else max(1, self.keep),
                async_options=alone,
                create=False,
                cleanup_tmp_directories=not self.reads,
                read_only=self.reads,
                multiprocessing_options=several,
            )
            with _explained(path, "opened", "choose another --logdir, or ask for permission to use it"):
                if not self.reads:
                    path.mkdir(parents=True, exist_ok=True)
                self._managers[round] = ocp.CheckpointManager(path, options=options)
        return self._managers[round]


def _each_for_itself() -> None:
    """Orbax takes all processes of a job for writers of one checkpoint, and process 0 for the writer of all that is not
    a jax.Array of all of them. Here each process has checkpoints of its own: orbax is told that it is process 0.

    Raises:
        RunFolderError: this version of orbax asks in another way.
    """
    refusal = RunFolderError(
        "this version of orbax-checkpoint cannot save each process of a distributed run: install version 0.12.8, or "
        "give --checkpoint-keep 0 to save nothing"
    )
    try:
        from orbax.checkpoint._src.multihost import multihost
    except ImportError:
        raise refusal from None
    if not hasattr(multihost, "process_index"):
        raise refusal
    multihost.process_index = lambda: 0


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their path, such as ".agent.model.rssm.prior"."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _raw(x: Any) -> Any:
    """Random keys as numbers; all else as it is."""
    return jr.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def _as_in(path: Path, saved: Mapping[str, Any], shapes: Any) -> Any:
    """A checkpoint's arrays by their names, as a tree like `shapes`. Raises RunFolderError where they are others."""
    wanted = named(shapes)
    newer = {name: value for name, value in NEWER.items() if name in wanted and name not in saved}
    saved = {name: x for name, x in saved.items() if name not in OLDER}
    saved |= {name: np.full(wanted[name].shape, value, np.float32) for name, value in newer.items()}
    if unlike := sorted(saved.keys() ^ {name for name, x in wanted.items() if x.size}):
        raise RunFolderError(f"the checkpoint {str(path)!r} is of another state: {unlike[0]} is not in both")
    leaves = [_fitted(path, name, saved.get(name), like) for name, like in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def _fitted(path: Path, name: str, saved: Any, like: jax.ShapeDtypeStruct) -> jax.Array:
    """A saved array in its place on the devices; a ring's with room for more rows, if there shall be more."""
    is_key = jnp.issubdtype(like.dtype, jax.dtypes.prng_key)
    raw = jax.eval_shape(jr.key_data, like) if is_key else like
    saved = np.zeros(raw.shape, raw.dtype) if saved is None else np.asarray(saved)
    if saved.dtype != raw.dtype or not _grows(name, saved.shape, raw.shape):
        raise RunFolderError(
            f"the checkpoint {str(path)!r} is of another state: {name} is {saved.dtype}{list(saved.shape)} there, and "
            f"{raw.dtype}{list(raw.shape)} in this run"
        )
    if saved.shape != raw.shape:
        room = [(0, wanted - there) for there, wanted in zip(saved.shape, raw.shape, strict=True)]
        saved = np.pad(saved, room, constant_values=next(empty for part, empty in ROOM.items() if part in name))
    if is_key:
        # An environment's keys may be of another kind than jax's default; a dtype has no public name for its own.
        return jax.device_put(jr.wrap_key_data(saved, impl=like.dtype._impl), like.sharding)
    return jax.device_put(saved, like.sharding)


def _grows(name: str, saved: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether an array fits: one with room for each row, [seeds, capacity, ...], may have gained capacity."""
    if saved == wanted or not any(part in name for part in ROOM):
        return saved == wanted
    alike = len(saved) == len(wanted) > 1 and (saved[0], *saved[2:]) == (wanted[0], *wanted[2:])
    return alike and saved[1] <= wanted[1]


def _checksum(file: Path) -> str:
    """SHA-256 of a file in hexadecimal; empty without the file."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""


@functools.cache
def _quiet_closed_loops() -> None:
    """From now on nothing is said of arrays that were on their way when another one failed.

    They report to orbax's event loop, which is closed by then: a traceback each, beside the one line that matters.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            before(unraisable)

    sys.unraisablehook = hook


@contextlib.contextmanager
def _explained(path: Path, verb: str = "read", advice: str = "remove that folder to go on from the one before") -> Any:
    """What orbax raises, and it may be anything, as one line."""
    try:
        yield
    except RunFolderError:
        raise
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        system = re.search(r"([^:]+) \[os_error_code=", why)  # the end of a line that names each file twice
        why = system[1].strip() if system else why[:300]
        raise RunFolderError(f"the checkpoint {str(path)!r} cannot be {verb}: {why}; {advice}") from error
