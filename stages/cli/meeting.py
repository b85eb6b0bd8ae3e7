"""Meeting: processes of one run come together at the coordinator's port, before jax has it.

jax itself ends all processes without a message where the port is in use, or where their --processes or --process do not
fit together.
"""

import contextlib
import json
import os
import re
import socket
import time

from stages.config import ConfigError

ARRIVAL_S = 300  # all processes have to come within so long


def address(coordinator: str) -> tuple[str, int]:
    """HOST:PORT -> host and port, as sockets take them. Raises ConfigError."""
    match = re.fullmatch(r"\[?(.+?)\]?:(\d+)", coordinator)  # an IPv6 address stands in brackets
    if not match or int(match[2]) >= 2**16:
        raise ConfigError(f"--coordinator must be HOST:PORT, not {coordinator!r}")
    return match[1], int(match[2])


def await_others(coordinator: str, count: int) -> None:
    """Wait for all other processes at the coordinator's port, and let them go on.

    Raises:
        ConfigError: the port is in use; or a process has not come, has come twice, or has another `count`.
    """
    dual, deadline = socket.has_dualstack_ipv6(), time.monotonic() + ARRIVAL_S
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        server = socket.create_server(("", address(coordinator)[1]), family=family, dualstack_ipv6=dual)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise ConfigError(
            f"--coordinator {coordinator}: process 0 cannot listen there ({why}); another program, or another process "
            "0, has the port: choose another one, and start each process once"
        ) from error
    refusal, missing = "", set(range(1, count))
    with server, contextlib.ExitStack() as opened:
        connections = []
        while missing and not refusal:
            server.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                connections.append(opened.enter_context(server.accept()[0]))
                connections[-1].settimeout(5)
                index, other_count = json.loads(connections[-1].makefile().readline(64))
            except TimeoutError:
                if time.monotonic() >= deadline:
                    refusal = f"of {count} processes {sorted(missing)} have not come within {ARRIVAL_S} s"
                continue
            except (OSError, TypeError, ValueError):  # not of this program
                continue
            if other_count != count:
                refusal = f"process {index} was started with --processes {other_count}, and process 0 with {count}"
            elif index not in missing:
                refusal = f"two processes were started with --process {index}"
            missing.discard(index)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(f"{refusal}\n".encode())
    if refusal:
        raise ConfigError(refusal)


def announce(coordinator: str, count: int, index: int) -> None:
    """Tell process 0 that this process has come, and wait until jax may be started. Raises ConfigError."""
    with reach(coordinator) as connection, contextlib.suppress(OSError):
        connection.settimeout(ARRIVAL_S + 10)
        connection.sendall(f"{json.dumps([index, count])}\n".encode())
        if answer := connection.makefile().readline():
            if answer.strip():
                raise ConfigError(answer.strip())
            return
    raise ConfigError(f"process 0 at {coordinator} has stopped before all had come; its own output says why")


def reach(coordinator: str) -> socket.socket:
    """A connection to HOST:PORT, once somebody listens there. Raises ConfigError."""
    endpoint, started = address(coordinator), time.monotonic()
    while True:
        try:
            return socket.create_connection(endpoint, timeout=5)
        except OSError as error:  # also of an unknown host name, which may be known once process 0's machine is up
            if time.monotonic() > started + ARRIVAL_S:
                raise ConfigError(
                    f"--coordinator {coordinator} does not answer ({error}): start process 0 there, and see that its "
                    "port can be reached from here"
                ) from error
        time.sleep(1)
