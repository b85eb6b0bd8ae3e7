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

    JSON knows neither NaN nor infinities: NaN is written as null, an infinity as the string "Infinity" or
    "-Infinity" (which Python's `float` reads). Arrays and numpy scalars are written as lists and numbers.
    """

    path: Path
    made: tuple[Path, ...] = ()  # the folders that `create` made for it, parents first

    CONFIG = "config.json"
    METRICS = "metrics.jsonl"
    SUMMARY = "summary.json"

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Make the folder (and its parents) and prove that it can be written, before anything heavy runs.

        An existing folder will do if it holds no run. A creation that fails removes the folders that it made.

        Raises:
            RunFolderError: the path is empty or not a folder, holds a run already, or cannot be written.
        """
        if not os.fspath(path):
            raise RunFolderError("the run's folder has an empty name; choose another --logdir")
        folder = Path(os.path.expanduser(path)).absolute()
        made: list[Path] = []
        try:
            _make_folders(folder, made)
            _refuse_a_run(folder, (cls.CONFIG, cls.METRICS, cls.SUMMARY))
            _probe(folder)
        except BaseException as error:
            cls(folder, tuple(made)).discard()
            if isinstance(error, RunFolderError) or not isinstance(error, (OSError, ValueError)):
                raise
            raise _explained(folder, error) from error
        return cls(folder, tuple(made))

    def discard(self) -> None:
        """Remove the folders that `create` made, but for those that hold something by now."""
        for each in reversed(self.made):
            with contextlib.suppress(OSError):
                each.rmdir()

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write `config.json`, whole or not at all. Raises RunFolderError if the disk refuses."""
        write_whole(self.path / self.CONFIG, _encode(config, indent=2))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`, whole or not at all. Raises RunFolderError if the disk refuses."""
        write_whole(self.path / self.SUMMARY, _encode(summary, indent=2))

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


def _make_folders(folder: Path, made: list[Path]) -> None:
    """`mkdir -p` that notes in `made` what was not there before."""
    for each in reversed([folder, *folder.parents]):
        if each.exists():
            continue
        with contextlib.suppress(FileExistsError):  # another process was faster, or a dangling link: seen below
            each.mkdir()
            made.append(each)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


def _refuse_a_run(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        if os.path.lexists(folder / name):
            raise RunFolderError(f"{str(folder)!r} already holds a run ({name}); choose another --logdir, or remove it")


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
    left = memoryview(lines)
    try:
        while left:
            left = left[os.write(file, left) :]
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
        found = os.read(file, end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


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


def _encode(value: Mapping[str, Any], indent: int | None = None) -> bytes:
    return (json.dumps(_plain(value), allow_nan=False, indent=indent) + "\n").encode()


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy's and jax's arrays and scalars
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
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
