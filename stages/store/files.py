"""Files that are written whole or not at all, and read again. Host side only."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

LEFTOVER_S = 600.0
"""Files that are being written are gone after moments; older ones are of processes that were killed."""


class RunFolderError(ValueError):
    """The run's folder cannot be used or written. The message is one line that says what to do."""


def make_folders(folder: Path, made: list[Path]) -> None:
    """`mkdir -p` that notes in `made` what was not there before."""
    for path in reversed([folder, *folder.parents]):
        if path.exists():
            continue
        with contextlib.suppress(FileExistsError):  # another process was faster, or a dangling link: seen below
            path.mkdir()
            made.append(path)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


def prove_writable(folder: Path) -> None:
    """Write a file and remove it: root passes permission checks, but not a full or read-only disk."""
    probe = temporary_path(folder / "probe")
    try:
        with open(probe, "wb") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    finally:
        with contextlib.suppress(FileNotFoundError):
            probe.unlink()


def full_path(path: str | os.PathLike[str]) -> Path:
    """An absolute path without links. Raises RunFolderError where there is none: the working directory is gone, say."""
    try:
        return Path(os.path.expanduser(path)).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise RunFolderError(f"cannot find {os.fspath(path)!r}: {reason}; give the folder by its full path") from error


def read_json(path: Path, kind: object = dict[str, Any], advice: str = "") -> dict[str, Any] | None:
    """The object in a file of JSON; None where the file is missing.

    Args:
        kind: its type, as `msgspec.convert` takes it. Names that a TypedDict does not have are kept as they are.
        advice: the end of the message.

    Raises:
        RunFolderError: it cannot be read, or is of another type.
    """
    try:
        return parse_json(path.read_bytes(), str(path), kind, advice)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RunFolderError(f"cannot read {str(path)!r} ({error.strerror}){advice}") from error


def parse_json(text: bytes, source: str, kind: object = dict[str, Any], advice: str = "") -> dict[str, Any]:
    """As `read_json`, of a text and where it is from."""
    try:
        value = json.loads(text)
        return value | msgspec.convert(value, kind)
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"cannot read {source!r} ({' '.join(str(error).split())}){advice}") from error


def printable(text: str) -> str:
    """A text without what UTF-8 cannot hold: a folder's name may be of any bytes."""
    return text.encode(errors="replace").decode()


def temporary_path(path: Path) -> Path:
    """What `path` is called while it is being written; `remove_leftovers` knows such names."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes were writing in a folder."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):  # another process was faster, or it is not ours
            if time.time() - path.lstat().st_mtime > LEFTOVER_S:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_whole(path: Path, content: bytes) -> None:
    """Replace `path` in one step: a reader, or a crash, sees the old file or the new one.

    Raises:
        RunFolderError: the disk refuses; or a device, a folder or a pipe stands there.
    """
    temporary = temporary_path(path)
    try:
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "no regular file stands there, and nothing else is replaced")
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
        raise write_error(path, error) from error


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """`write_whole` of a value as JSON, indented."""
    write_whole(path, encode_json(value, indent=2))


def make_folder(path: str | os.PathLike[str], made: list[Path] | None = None) -> Path:
    """A folder to write to, new or not; `made` gets those that were not there before. Raises RunFolderError."""
    folder = Path(os.path.expanduser(path))
    try:
        folder = folder.absolute()  # fails where the working directory is gone
        make_folders(folder, [] if made is None else made)
        remove_leftovers(folder)
        prove_writable(folder)
    except (OSError, ValueError) as error:
        raise write_error(folder, error) from error
    return folder


def encode_json(value: Mapping[str, object], indent: int | None = None) -> bytes:
    """A value as a line of JSON, or indented."""
    return (json.dumps(plain(value), allow_nan=False, indent=indent) + "\n").encode()


def plain(value: Any) -> Any:
    """A value as JSON can hold it: arrays as lists, what is not finite as null."""
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


def disk_is_full(error: RunFolderError) -> bool:
    """Whether that is what the refusal says."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT)


def write_error(path: Path, error: OSError | ValueError) -> RunFolderError:
    """The refusal in one line: which path, why, and what to do."""
    code, reason = (error.errno, error.strerror) if isinstance(error, OSError) else (None, None)
    reason, advice = " ".join((reason or str(error)).split()), _ADVICE.get(code or 0, "choose another --logdir")
    return RunFolderError(f"cannot write {str(path)!r}: {reason}; {advice}")


def checksum(file: Path) -> str:
    """SHA-256 of a file in hexadecimal; empty without the file."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""
