"""The command line: `python run.py --seeds 32` trains a sweep of DreamerV3 agents that explore or not.

`--help` lists every setting and command. The training loop is stages/loop/training_loop.py.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import sys
import time
from collections.abc import Callable

import stages.cli.quiet  # noqa: F401, before all that imports jax
from stages.cli import terminal
from stages.cli.parse import parse
from stages.cli.validate import check_pictures
from stages.commands.command import command
from stages.config import ConfigError
from stages.sweep.start import check_machines, start_jax


def main(argv: list[str], start: Callable[[], None] = lambda: None) -> int:
    """Train what the command line asks for; returns the exit code.

    Args:
        start: called before jax makes its first array.
    """
    # jax and all that needs it are imported here, so that --help stays fast.
    from envs import EnvError, make
    from stages.cli.processes import ProcessError, Processes, join_cluster
    from stages.cli.signals import Signals, Stopped
    from stages.commands.grid import leave_grid
    from stages.loop.training_loop import train_program
    from stages.store.files import RunFolderError
    from stages.sweep.trials import describe, programs_of

    started = time.monotonic()
    terminal.replace_unencodable()
    try:
        start()
        arguments = parse(argv)
        check_pictures()
        cluster = (arguments.coordinator, arguments.processes, arguments.process)
        with Signals() as signals, join_cluster(*cluster) if arguments.is_distributed else Processes() as processes:
            check_machines(arguments, processes)
            name = f"{arguments.config.env.replace(':', '-')}-{arguments.config.mode}-{time.strftime('%Y%m%d-%H%M%S')}"
            arguments = dataclasses.replace(arguments, logdir=arguments.logdir or os.path.join("runs", name))
            programs = programs_of(argv, arguments)
            if arguments.sweep and processes.leads:
                terminal.say(describe(programs))
            environments = [(p.arguments.config.env, p.arguments.config.env_args) for p in programs]
            for name, args in {*environments} - {environments[0]}:
                make(name, dict(args))  # what cannot be made is found before the first program trains
            for program in programs:
                train_program(program, processes, signals, started)
                started = time.monotonic()
            if arguments.sweep and processes.leads:
                leave_grid(arguments.logdir)
    except (ConfigError, EnvError, RunFolderError, ProcessError) as error:
        terminal.say(f"run.py: error: {error}", error=True)
        return 2
    except Stopped as stopped:
        return stopped.code
    finally:
        terminal.discard_unflushed()
    return 0


def program() -> int:
    """Do what the words on the command line say; returns the exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # until a run listens, Ctrl-C ends all at once:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # without a traceback, and though jax is at work
    try:
        code = command(sys.argv[1:])  # compare, report, eval, video, export, envs
        return main(sys.argv[1:], start_jax) if code is None else code
    except OSError as error:  # tyro's, of --help or of flags that it cannot read: all other printing ends nothing
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        if error.errno == errno.ENOSPC:
            terminal.say(f"run.py: error: {error.strerror}", error=True)
        is_read = error.errno == errno.EPIPE and not {"-h", "--help"}.isdisjoint(sys.argv)
        return 0 if is_read else 2


if __name__ == "__main__":
    sys.exit(program())
