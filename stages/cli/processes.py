"""Processes: several processes that train one sweep, each on its own devices, and the messages between them.

Seeds are independent, so processes exchange nothing while they train. The few numbers that are logged go through the
key-value store of `jax.distributed`'s coordinator. Unlike a collective, that takes no device memory and no compilation,
and a failing process can notify those that wait for it.

Axes: W processes, P slots of one process (sweep/rounds.py).
"""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from stages.cli import meeting
from stages.cli.terminal import say
from stages.config import ConfigError

BEAT_S = 5.0  # seconds between two heartbeats of a process, sent by a thread
SILENCE_S = 60.0  # a process without a heartbeat for this long counts as dead; a slow one is waited for
STORE = ("key_value_set_bytes", "blocking_key_value_get_bytes", "get_live_nodes")  # methods of jax's client
DEPARTURE_S = 20  # seconds that process 0 waits for the others to leave
FAREWELL_S = 2.0  # further seconds, for those that could not reach process 0 to disconnect
EXIT_KEY = "dreamsweep/exit"


class ProcessError(RuntimeError):
    """Another process of the run has failed. The message is one line that says which."""


class Processes:
    """The processes of a run; without arguments, this one alone.

    All processes call `exchange`, `exchange_json` and `gather` equally often and in the same order. Use it as a context
    manager: if one process leaves with an exception, the others get a ProcessError at their next exchange.
    Process 0 leaves last, since jax aborts a process that is connected to, or disconnecting from, a coordinator that is
    gone. So each other process holds a second connection to process 0 until it has disconnected from the coordinator.
    """

    def __init__(
        self,
        index: int = 0,
        count: int = 1,
        store: Any = None,
        disconnect: Callable[[], None] = jax.distributed.shutdown,
    ):
        self.index, self.count = index, count
        self._disconnect = disconnect
        self._dead: set[int] = set()
        self._store, self._turn = store, 0
        self._beats: dict[int, tuple[bytes, float]] = {}  # process waited for -> its last heartbeat, and when
        self._over = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="beat", daemon=True)
        self._exit: socket.socket | None = None  # the socket by which process 0 sees that the others have disconnected

    @property
    def leads(self) -> bool:
        """Whether this process prints and writes."""
        return self.index == 0

    def exchange(self, message: bytes) -> list[bytes]:
        """One message of each process, in their order; an empty one means failure. Raises ProcessError."""
        if self.count == 1:
            return [message]
        self._send(message)
        messages = [self._receive(i) for i in range(self.count)]
        self._turn += 1
        for index, received in enumerate(messages):
            if not received:
                raise ProcessError(f"process {index} of {self.count} has stopped; its own output says why")
        return messages

    def exchange_json(self, value: object) -> list[Any]:
        """One value of each process, as JSON has it, in their order. Raises ProcessError."""
        return [json.loads(message) for message in self.exchange(json.dumps(value).encode())]

    def gather(self, tree: PyTree) -> PyTree:
        """Arrays [P, ...] of each process, of equal shapes -> numpy [W * P, ...], in the order of processes."""
        leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, tree))
        layout = np.dtype([(f"leaf{i}", x.dtype, x.shape) for i, x in enumerate(leaves)])
        messages = self.exchange(b"".join(x.tobytes() for x in leaves))
        records = [np.frombuffer(message, layout)[0] for message in messages]
        return structure.unflatten(np.concatenate([record[name] for record in records]) for name in layout.names or ())

    def on_this_machine(self) -> int:
        """How many of the processes share this machine's memory."""
        host = socket.gethostname().encode()
        return self.exchange(host).count(host)

    def __enter__(self) -> "Processes":
        if self.count > 1:
            self._beating.start()
            if self.leads:
                self._exit = socket.create_server(("", 0), backlog=self.count)
                address = [socket.gethostname(), self._exit.getsockname()[1]]
                self._store.key_value_set_bytes(EXIT_KEY, json.dumps(address).encode(), allow_overwrite=True)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._over.set()
        if self.count == 1:
            return
        self._beating.join(DEPARTURE_S)
        with contextlib.suppress(Exception):  # the coordinator is gone: the first exception matters more
            if kind is not None:
                self._send(b"")
            if self.leads:
                self._let_others_go()
            else:
                with self._seen_by_leader():
                    self._disconnect()

    @contextlib.contextmanager
    def _seen_by_leader(self) -> Iterator[None]:
        """Hold a connection to process 0 until the block, or this process, ends."""
        with contextlib.ExitStack() as opened:
            with contextlib.suppress(Exception):  # not reached: process 0 then sees by the coordinator alone who left
                address = json.loads(self._store.blocking_key_value_get_bytes(EXIT_KEY, int(1000 * BEAT_S)))
                opened.enter_context(socket.create_connection(tuple(address), timeout=BEAT_S))
            yield

    def _let_others_go(self) -> None:
        """Wait until the others have disconnected, for a limited time."""
        assert self._exit is not None  # made on entering
        living = sorted(set(range(self.count)) - self._dead)

        def wait() -> None:
            with contextlib.suppress(Exception):  # returns once every process that still lives has asked
                self._store.get_live_nodes(living)

        waiting = threading.Thread(target=wait, name="departure", daemon=True)
        waiting.start()
        waiting.join(DEPARTURE_S)
        with self._exit as server, contextlib.suppress(TimeoutError):
            server.settimeout(FAREWELL_S)
            for _ in living[1:]:
                with server.accept()[0] as connection, contextlib.suppress(OSError):
                    connection.settimeout(DEPARTURE_S)
                    connection.recv(1)  # returns once the other side is closed

    def _key(self, index: int) -> str:
        return f"dreamsweep/{self._turn}/{index}"

    def _send(self, message: bytes) -> None:
        self._store.key_value_set_bytes(self._key(self.index), message, allow_overwrite=True)

    def _receive(self, index: int) -> bytes:
        """The message of a process; waits as long as that process is alive. Raises ProcessError."""
        while True:
            try:
                return self._store.blocking_key_value_get_bytes(self._key(index), int(2000 * BEAT_S))
            except Exception as error:  # jax's own, told apart by its words alone
                if "DEADLINE_EXCEEDED" not in str(error):
                    why = " ".join(str(error).split())[:200]
                    raise ProcessError(
                        f"process 0 of {self.count}, the coordinator, cannot be reached: {why}"
                    ) from error
            if self._silent(index):
                self._dead.add(index)
                raise ProcessError(
                    f"process {index} of {self.count} has died; the same command in all processes goes on from the "
                    "last checkpoint"
                )

    def _silent(self, index: int) -> bool:
        """Whether a process has not been heard of for SILENCE_S."""
        try:
            beat = self._store.blocking_key_value_get_bytes(self._beat_key(index), 1000)
        except Exception:  # it has not begun to beat
            beat = b""
        time_s = time.monotonic()
        last, since = self._beats.get(index, (None, time_s))
        if beat != last:
            since = time_s
        self._beats[index] = beat, since
        return time_s - since > SILENCE_S

    def _beat(self) -> None:
        """Send heartbeats until this process leaves."""
        count = 0
        while not self._over.wait(BEAT_S if count else 0):
            count += 1
            with contextlib.suppress(Exception):  # the coordinator has gone: whoever waits for a message says so
                self._store.key_value_set_bytes(self._beat_key(self.index), b"%d" % count, allow_overwrite=True)

    def _beat_key(self, index: int) -> str:
        return f"dreamsweep/beat/{index}"


def join_cluster(coordinator: str = "", count: int = 0, index: int = -1) -> Processes:
    """Meet the other processes; before jax makes its first array. Waits until all have come.

    Args:
        coordinator: HOST:PORT of process 0; empty: detected, as are `count` 0 and `index` -1.

    Raises:
        ConfigError: nothing was given and no cluster is detected, nobody answers, or the numbers make no sense; in all
            processes that have come. After `meeting.ARRIVAL_S` at most.
    """
    if coordinator:
        meeting.address(coordinator)
    if count < 0 or not -1 <= index < (count or 2**31):
        raise ConfigError(f"--process {index} is not one of {count} --processes; they are counted from 0")
    if coordinator and index == 0 and count:
        say(f"waiting at {coordinator} until all {count} processes have come ...")
        meeting.await_others(coordinator, count)
    elif coordinator and index > 0:
        say(f"waiting for process 0 at {coordinator} ...")
        meeting.announce(coordinator, count, index)
        meeting.reach(coordinator).close()  # by now it is jax that listens there
    # Without these jax ends all processes with a stack trace if one dies, and its handler of SIGTERM replaces ours.
    for name, value in {"jax_enable_recoverability": True, "jax_enable_preemption_service": False}.items():
        with contextlib.suppress(AttributeError):  # a version without it
            jax.config.update(name, value)
    try:
        jax.distributed.initialize(
            coordinator or None, count or None, None if index < 0 else index, initialization_timeout=meeting.ARRIVAL_S
        )
    except Exception as error:
        why = " ".join(str(error).split())
        raise ConfigError(
            "--distributed found no cluster (Slurm, Open MPI, Kubernetes, TPU) that answers: give --coordinator "
            f"HOST:PORT --processes N --process I ({why})"
        ) from error
    return Processes(jax.process_index(), jax.process_count(), _store())


def _store() -> Any:
    """The key-value client of jax.distributed's coordinator. jax has no public name for it. Raises ConfigError."""
    try:
        from jax._src import distributed

        store = distributed.global_state.client
        if all(callable(getattr(store, name)) for name in STORE):
            return store
    except (ImportError, AttributeError):
        pass
    raise ConfigError(
        f"--distributed: jax {jax.__version__} does not have the key-value store that processes log through; take "
        "jax 0.10 or 0.11, or start a run of its own on each machine, with --seed-start"
    )
