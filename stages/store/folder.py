"""The run's folder: configuration, metrics and summary on disk. No file is ever half-written. Host side only."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from stages.cli.arguments import MOST_SEEDS, Arguments
from stages.cli.settings_file import JsonObject, Settings, flat
from stages.store.files import RunFolderError, encode_json, make_folder, read_json, write_error, write_json


@dataclass(frozen=True)
class RunFolder:
    """A run's folder: `config.json`, `metrics.jsonl` and `summary.json` below `path`.

    JSON knows neither NaN nor infinities: both are written as null. Arrays and numpy scalars are written as lists and
    numbers.
    """

    path: Path
    made: tuple[Path, ...] = ()  # the folders that `open` made for it, parents first
    lock: int = -1  # open file, locked while a run uses the folder; the lock ends with the process
    waiting: list[bytes] = field(default_factory=list, compare=False)  # lines of metrics.jsonl that the disk refused

    CONFIG = "config.json"
    METRICS = "metrics.jsonl"
    SUMMARY = "summary.json"
    LOCK = ".lock"

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Make the folder and its parents, and check that it can be written, before anything compiles.

        The folder may exist, and may hold a run to resume (`config`). It is locked for this process until `close`. If
        opening fails, the folders that it made are removed.

        Raises:
            RunFolderError: the path is empty or not a folder, another run uses it, it holds part of a run without its
                configuration, or it cannot be written.
        """
        if not os.fspath(path):
            raise RunFolderError("the run's folder has an empty name; choose another --logdir")
        made: list[Path] = []
        folder, lock = Path(path), -1
        try:
            folder = make_folder(path, made)
            lock = _lock(folder / cls.LOCK)
            if not (folder / cls.CONFIG).exists():
                _refuse_a_run(folder, (cls.METRICS, cls.SUMMARY))
        except BaseException as error:
            cls(folder, tuple(made), lock).discard()
            if isinstance(error, OSError):
                raise write_error(folder, error) from error
            raise
        return cls(folder, tuple(made), lock)

    def close(self) -> None:
        """Release the folder's lock."""
        if self.lock >= 0:
            os.close(self.lock)

    def discard(self) -> None:
        """Remove the folders that `open` made, except those that are no longer empty."""
        if self.made and self.lock >= 0:
            with contextlib.suppress(OSError):
                (self.path / self.LOCK).unlink()
        for path in reversed(self.made):
            with contextlib.suppress(OSError):
                path.rmdir()

    @property
    def config(self) -> JsonObject | None:
        """The configuration of the run that is here, as JSON has it; None without one. Raises RunFolderError."""
        return self._read(self.CONFIG)

    @property
    def summary(self) -> JsonObject | None:
        """The summary of the run that is here, as JSON has it; None without one. Raises RunFolderError."""
        return self._read(self.SUMMARY)

    def _read(self, name: str) -> JsonObject | None:
        return read_json(self.path / name, advice=": choose another --logdir")

    def write_config(self, config: Settings) -> None:
        """Write `config.json`, whole or not at all. Raises RunFolderError if the disk refuses."""
        write_json(self.path / self.CONFIG, config)

    def write_summary(self, summary: Settings) -> None:
        """Write `summary.json`, whole or not at all. Raises RunFolderError if the disk refuses."""
        write_json(self.path / self.SUMMARY, summary)

    def append_metrics(self, rows: Sequence[Settings]) -> None:
        """Append one line per row (one row per seed and log point) to `metrics.jsonl`, all of them or none.

        When the call returns, the operating system has the lines. A half-written last line, which a killed process may
        leave, is cut off first.

        Raises:
            RunFolderError: the file cannot be written. It still ends with the last whole line before this call, and
                these lines are written by the next call.
        """
        self.waiting.append(b"".join(encode_json(row) for row in rows))  # first: a bad row must not cost the file
        path = self.path / self.METRICS
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
            try:
                _append(file, b"".join(self.waiting))
            finally:
                os.close(file)
        except OSError as error:
            raise write_error(path, error) from error
        self.waiting.clear()

    @property
    def metrics_size(self) -> int:
        """Bytes of metrics.jsonl."""
        path = self.path / self.METRICS
        return path.stat().st_size if path.exists() else 0

    def cut_metrics(self, size: int) -> None:
        """Cut metrics.jsonl to its first `size` bytes: lines that were logged after a checkpoint are logged again.

        Raises:
            RunFolderError: the file is shorter than that, or the disk refuses.
        """
        path = self.path / self.METRICS
        if self.metrics_size < size:
            raise RunFolderError(
                f"{str(path)!r} has {self.metrics_size:,} bytes, and had {size:,} at the checkpoint: put the whole "
                "file back, or choose another --logdir"
            )
        try:
            if path.exists():
                os.truncate(path, size)
        except OSError as error:
            raise write_error(path, error) from error


def _lock(path: Path) -> int:
    """An open file with the folder's lock. Raises RunFolderError if another process has it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        import fcntl
    except ImportError:  # not on Windows: there two runs in one folder are not noticed
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(file)
        raise RunFolderError(
            f"another run is at work in {str(path.parent)!r}: choose another --logdir, or wait for it"
        ) from error
    except OSError:  # a file system without locks
        pass
    return file


def _refuse_a_run(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        if os.path.lexists(folder / name):
            raise RunFolderError(
                f"{str(folder)!r} holds part of a run ({name}) without its {RunFolder.CONFIG}; choose another "
                "--logdir, or remove it"
            )


def _append(file: int, lines: bytes) -> None:
    """Append to an open file, or leave it as it was. Nothing is buffered in this process."""
    end = _end_of_last_line(file)
    os.ftruncate(file, end)
    os.lseek(file, end, os.SEEK_SET)
    remaining = memoryview(lines)
    try:
        while remaining:
            remaining = remaining[os.write(file, remaining) :]
    except BaseException:
        with contextlib.suppress(OSError):  # then the next append cuts the tail
            os.ftruncate(file, end)
        raise


def _end_of_last_line(file: int, block: int = 65536) -> int:
    """Bytes up to and including the last newline, searched from the end."""
    end = os.lseek(file, 0, os.SEEK_END)
    while end:
        start = max(0, end - block)
        os.lseek(file, start, os.SEEK_SET)
        newline = os.read(file, end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def check_config(config: JsonObject, folder: Path) -> JsonObject:
    """A run's config.json, every setting of its type. Raises RunFolderError."""
    advice = "put the whole file back, or choose another --logdir"
    try:
        if lacking := [name for name in ("seed_start", "seeds", "config", "hypers") if name not in config]:
            raise ValueError(f"it lacks {lacking[0]!r}")
        arguments = msgspec.convert(config, Arguments)
        if not 1 <= arguments.seeds <= MOST_SEEDS or arguments.seed_start < 0:
            raise ValueError(f"seeds {arguments.seeds} from {arguments.seed_start}")
        flat(config)
    except (ValueError, RecursionError) as error:
        raise RunFolderError(
            f"{RunFolder.CONFIG} in {str(folder)!r} has no settings of a run of this program ({error}): {advice}"
        ) from error
    return config


def read_config(folder: Path) -> JsonObject:
    """The config.json of a run that is looked at. Raises RunFolderError where there is no run."""
    config = read_json(folder / RunFolder.CONFIG)
    if config is None:
        inside = sorted(path.parent.name for path in folder.glob(f"*/{RunFolder.CONFIG}"))
        advice = f"it holds {len(inside)}, such as {inside[0]!r}" if inside else "give the folder that a run printed"
        raise RunFolderError(f"{str(folder)!r} is no run's folder ({RunFolder.CONFIG} is missing): {advice}")
    return check_config(config, folder)
