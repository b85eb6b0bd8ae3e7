"""Terminal: what a run prints. Printing never ends a run, even where a pipe is closed or a disk is full."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported where a table is printed, so that `--help` stays fast
    from rich.console import Console


def replace_unencodable() -> None:
    """From now on, print a replacement for each character that the terminal's encoding lacks.

    A stream that was closed before the program began is opened on the null device. Otherwise the next file that is
    opened would get its number, and be written to.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Printing inside it cannot end a run: where the reader is gone, or the disk behind it full, lines are dropped."""
    try:
        yield
    except (OSError, ValueError):  # ValueError: the stream is closed
        discard_unflushed()


def discard_unflushed() -> None:
    """Send streams that cannot be written to the null device: the interpreter would fail as it flushes them at exit."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except (OSError, ValueError):
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def console() -> Console:
    """rich's console on standard output, which raises where a pipe is closed (rich exits). Use it inside `printing`."""
    from rich.console import Console

    class Printer(Console):
        def on_broken_pipe(self) -> None:
            raise

    return Printer()


def say(line: str, error: bool = False) -> None:
    """A line to standard output, or to standard error, at once."""
    with printing():
        print(line, file=sys.stderr if error else sys.stdout, flush=True)


def warn(line: str) -> None:
    """A line of warning to standard error."""
    say(f"run.py: warning: {line}", error=True)
