"""Signals: Ctrl-C, SIGTERM and SIGHUP end a run at the end of the chunk at work, a second one at once.

Python runs signal handlers between bytecodes of the main thread, and that one waits inside jax for minutes. So the
signal's number goes through a pipe (signal.set_wakeup_fd) to a thread, which notes it, says what will happen, and ends
the process where there is nothing to save.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable

from stages.cli.terminal import say

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143} | ({signal.SIGHUP: 129} if hasattr(signal, "SIGHUP") else {})


class Stopped(Exception):
    """The run has ended early, as a signal asked, and has kept what it needs to go on. `code` is the exit code."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


class Signals:
    """While entered, notes signals instead of letting them end the process.

    `asked` is the exit code of the first signal, 0 before it. Until `between_chunks` is called there is no state to
    save, and a signal ends the process at once, after `on_abort`.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.on_abort: Callable[[], object] = lambda: None
        self._when = ""
        self._before: dict[int, signal.Handlers | Callable | int | None] = {}
        self._thread: threading.Thread | None = None

    def between_chunks(self, seconds: float | None = None) -> None:
        """From now on a signal is looked at after each chunk, which lasts about so many seconds (if known)."""
        about = "" if seconds is None else f", in at most about {seconds:.0f} s"
        self._when = f"will stop at the end of the chunk at work{about}, with a checkpoint; once more to stop at once"

    def __enter__(self) -> "Signals":
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread may ask for signals; whoever runs us in another one has them
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        for number in EXIT_CODES:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                self._before[number] = signal.signal(number, lambda *_: None)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is None:
            return
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._write)  # ends the thread
        self._thread.join()
        os.close(self._read)

    def _watch(self) -> None:
        while read := os.read(self._read, 1):
            if read[0] in self._before:
                self._receive(signal.Signals(read[0]))

    def _receive(self, number: signal.Signals) -> None:
        code = EXIT_CODES[number]
        if self.asked or not self._when:
            say(f"run.py: {number.name}: stopped at once; what was saved before stays good", error=True)
            with contextlib.suppress(Exception):
                self.on_abort()
            os._exit(code)  # jax's threads are at work: an orderly exit would wait for them, or crash in them
        self.asked = code
        say(f"run.py: {number.name}: {self._when}", error=True)
