"""The run's folder: configuration, metrics and summary on disk, whole or not at all. Host side only."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class RunFolderError(ValueError):
    """The run's folder cannot be used or written. The message is one line that says what to do."""


@dataclass(frozen=True)
class RunFolder:
    """A run's folder: `config.json`, `metrics.jsonl` and `summary.json` below `path`.

    JSON knows neither NaN nor infinities: both are written as null. Arrays and numpy scalars are written as lists and
    numbers.
    """

    path: Path
    made: tuple[Path, ...] = ()  # the folders that `open` made for it, parents first
    lock: int = -1  # open file whose lock says that a run is at work here; it ends with the process

    CONFIG = "config.json"
    METRICS = "metrics.jsonl"
    SUMMARY = "summary.json"
    LOCK = ".lock"

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Make the folder (and its parents) and prove that it can be written, before anything heavy runs.

        An existing folder will do: it may hold a run to go on with (`config` says which). It is this process's alone
        until `close`. An opening that fails removes the folders that it made.

        Raises:
            RunFolderError: the path is empty or not a folder, a run is at work there, it holds part of a run without
                its configuration, or it cannot be written.
        """
        if not os.fspath(path):
            raise RunFolderError("the run's folder has an empty name; choose another --logdir")
        folder = Path(os.path.expanduser(path))
        made: list[Path] = []
        lock = -1
        try:
            folder = folder.absolute()  # fails where the working directory is gone
            _make_folders(folder, made)
            lock = _lock(folder / cls.LOCK)
            if not (folder / cls.CONFIG).exists():
                _refuse_a_run(folder, (cls.METRICS, cls.SUMMARY))
            _probe(folder)
        except BaseException as error:
            cls(folder, tuple(made), lock).discard()
            if isinstance(error, RunFolderError) or not isinstance(error, (OSError, ValueError)):
                raise
            raise _explained(folder, error) from error
        return cls(folder, tuple(made), lock)

    def close(self) -> None:
        """Let others have the folder."""
        if self.lock >= 0:
            os.close(self.lock)

    def discard(self) -> None:
        """Remove the folders that `open` made, but for those that hold something by now."""
        if self.made and self.lock >= 0:
            with contextlib.suppress(OSError):
                (self.path / self.LOCK).unlink()
        for path in reversed(self.made):
            with contextlib.suppress(OSError):
                path.rmdir()

    @property
    def config(self) -> Any:
        """The configuration of the run that is here, as JSON has it; None without one. Raises RunFolderError."""
        return self._read(self.CONFIG)

    @property
    def summary(self) -> dict[str, Any] | None:
        """The summary of the run that is here, as JSON has it; None without one. Raises RunFolderError."""
        return self._read(self.SUMMARY)

    def _read(self, name: str) -> Any:
        return read_json(self.path / name, ": choose another --logdir")

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write `config.json`, whole or not at all. Raises RunFolderError if the disk refuses."""
        write_json(self.path / self.CONFIG, config)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`, whole or not at all. Raises RunFolderError if the disk refuses."""
        write_json(self.path / self.SUMMARY, summary)

    def append_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append one line per row (one row per seed and log step) to `metrics.jsonl`, all of them or none.

        The lines have left this process when the call returns. A half-written last line, as a killed process
        leaves it, is cut off first.

        Raises:
            RunFolderError: the disk refuses; the file still ends with the last whole line before this call.
        """
        lines = b"".join(_encode(row) for row in rows)  # first: a bad row must not cost the file
        path = self.path / self.METRICS
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
            try:
                _append(file, lines)
            finally:
                os.close(file)
        except OSError as error:
            raise _explained(path, error) from error

    @property
    def metrics_size(self) -> int:
        """Bytes of metrics.jsonl."""
        path = self.path / self.METRICS
        return path.stat().st_size if path.exists() else 0

    def cut_metrics(self, size: int) -> None:
        """Take metrics.jsonl back to its first `size` bytes: what was logged after a checkpoint is logged again.

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
            raise _explained(path, error) from error


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


def _make_folders(folder: Path, made: list[Path]) -> None:
    """`mkdir -p` that notes in `made` what was not there before."""
    for path in reversed([folder, *folder.parents]):
        if path.exists():
            continue
        with contextlib.suppress(FileExistsError):  # another process was faster, or a dangling link: seen below
            path.mkdir()
            made.append(path)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


def _refuse_a_run(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        if os.path.lexists(folder / name):
            raise RunFolderError(
                f"{str(folder)!r} holds part of a run ({name}) without its {RunFolder.CONFIG}; choose another "
                "--logdir, or remove it"
            )


def _probe(folder: Path) -> None:
    """Write a file and remove it: root passes permission checks, but not a full or read-only disk."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        with open(probe, "wb") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    finally:
        with contextlib.suppress(FileNotFoundError):
            probe.unlink()


def _append(file: int, lines: bytes) -> None:
    """Append to an open descriptor, or leave it as it was: no buffer to be flushed later by surprise."""
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


def read_json(path: Path, advice: str = "") -> Any:
    """What a file of JSON holds; None where it is missing. Raises RunFolderError, which ends with `advice`."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise RunFolderError(f"cannot read {str(path)!r} ({' '.join(str(error).split())}){advice}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a run that is looked at. Raises RunFolderError where there is no run."""
    config = read_json(folder / RunFolder.CONFIG)
    if config is None:
        inside = sorted(path.parent.name for path in folder.glob(f"*/{RunFolder.CONFIG}"))
        advice = f"it holds {len(inside)}, such as {inside[0]!r}" if inside else "give the folder that a run printed"
        raise RunFolderError(f"{str(folder)!r} is no run's folder ({RunFolder.CONFIG} is missing): {advice}")
    return config


def write_whole(path: Path, content: bytes) -> None:
    """Replace `path` in one step: a reader, or a crash, sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):  # gone after a successful replace
                temporary.unlink()
    except OSError as error:
        raise _explained(path, error) from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """`write_whole` of a value as JSON, indented."""
    write_whole(path, _encode(value, indent=2))


def make_folder(path: str | os.PathLike[str]) -> Path:
    """A folder to write to, new or not. Raises RunFolderError."""
    folder = Path(os.path.expanduser(path)).absolute()
    try:
        _make_folders(folder, [])
        _probe(folder)
    except (OSError, ValueError) as error:
        raise _explained(folder, error) from error
    return folder


def _encode(value: Mapping[str, Any], indent: int | None = None) -> bytes:
    return (json.dumps(plain(value), allow_nan=False, indent=indent) + "\n").encode()


def plain(value: Any) -> Any:
    """`value` as JSON can hold it."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy's and jax's arrays and scalars
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


_ADVICE = {
    errno.ENOSPC: "free space on that disk, or choose another --logdir",
    errno.EDQUOT: "free some of your quota, or choose another --logdir",
    errno.EACCES: "choose another --logdir, or ask for permission to write there",
    errno.EPERM: "choose another --logdir, or ask for permission to write there",
    errno.EROFS: "choose another --logdir, on a disk that can be written",
    errno.ENOTDIR: "a file stands in the way; choose another --logdir, or remove that file",
    errno.ENOENT: "the folder was removed or cannot be made; choose another --logdir",
    errno.ENAMETOOLONG: "choose a shorter --logdir",
}


def _explained(path: Path, error: OSError | ValueError) -> RunFolderError:
    """The refusal in one line: which path, why, and what to do."""
    code = error.errno if isinstance(error, OSError) else None
    reason = " ".join(((error.strerror if isinstance(error, OSError) else None) or str(error)).split())
    advice = _ADVICE.get(code, "choose another --logdir") if code is not None else "choose another --logdir"
    return RunFolderError(f"cannot write {str(path)!r}: {reason}; {advice}")
