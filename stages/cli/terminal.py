"""Terminal: lines for whoever reads along. Whatever becomes of the reader, printing never ends a run."""

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
    """Print another character, from now on, for each that the terminal does not have.

    A stream that was closed before the program began leads nowhere from now on. Else the next file that is opened
    would be taken for it.
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
    """From now on nothing is printed where nothing can be: not by the interpreter either, which flushes at its end."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except (OSError, ValueError):
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def console() -> Console:
    """rich's console on standard output. Its own would end the program where nobody reads; use it inside `printing`."""
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
