"""Orbax's quirks: its errors in one line, its processes, its messages.

Orbax takes all processes of a job for writers of one checkpoint; here each process writes its own. It looks for what it
has written by patterns in which the path stands as it is, and tensorstore reads a backslash as a slash.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from stages.store.files import RunFolderError, printable

PATTERN = "*?["
"""Characters of a path that orbax takes for a pattern."""


def check_path(path: Path, writes: bool) -> None:
    """Raises RunFolderError for a path at which orbax would write, or read, something else."""
    misread = PATTERN * writes + "\\" * (os.sep != "\\")
    for name in path.parts:
        if found := [character for character in misread if character in name]:
            raise RunFolderError(f"the name {name!r} has a {found[0]!r}, and orbax would take it for another path")
        if writes and name != printable(name):
            raise RunFolderError(f"the name {name!r} is not UTF-8, as this locale reads it")


def act_as_process_zero() -> None:
    """Tell orbax that this process is process 0, which writes all that is not a jax.Array of all processes.

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


@functools.cache
def silence_closed_loops() -> None:
    """Silence the arrays that were being written when another one failed: orbax's event loop is closed by then, and
    each would print a traceback beside the one line that matters."""
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            before(unraisable)

    sys.unraisablehook = hook


@contextlib.contextmanager
def explained(
    path: Path, verb: str = "read", advice: str = "remove that folder to go on from the one before"
) -> Iterator[None]:
    """Raise whatever orbax raises as a RunFolderError of one line."""
    try:
        yield
    except RunFolderError:
        raise
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        system = re.search(r"os_error_code='(\d+)'", why)  # in a line that names each file twice
        why = os.strerror(int(system[1])) if system else why[:300]
        raise RunFolderError(f"the checkpoint {str(path)!r} cannot be {verb}: {why}; {advice}") from error
