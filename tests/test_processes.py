"""Messages between processes: order, shapes, and that none waits for one that failed. Threads play them."""

import re
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax._src import distributed

from stages.cli import meeting, processes
from stages.cli.processes import ProcessError, Processes, join_cluster
from stages.config import ConfigError
from tests.bench.kills import free_place
from tests.pretended import Store, play
from tests.runs import end_processes, start_process


def test_gather_stacks_processes_in_their_order():
    def act(processes):
        start = 10 * processes.index
        return processes.gather({"a": np.array([start, start + 1]), "b": np.full((2, 3), processes.index, np.float32)})

    for gathered in play(act):
        np.testing.assert_array_equal(gathered["a"], [0, 1, 10, 11, 20, 21])
        np.testing.assert_array_equal(gathered["b"], np.repeat(np.arange(3), 2)[:, None].repeat(3, 1))
        assert gathered["a"].dtype == np.int64 and gathered["b"].dtype == np.float32


def test_turns_do_not_mix():
    assert (
        play(lambda p: [p.exchange(b"%d %d" % (turn, p.index)) for turn in range(3)])
        == [[[b"%d %d" % (turn, index) for index in range(3)] for turn in range(3)]] * 3
    )


def test_who_fails_takes_the_others_along():
    def act(processes):
        processes.exchange(b"all well")
        if processes.index == 1:
            raise OSError("disk full")
        processes.exchange(b"still well")

    first, second, third = play(act)
    assert isinstance(second, OSError)
    for other in (first, third):
        assert isinstance(other, ProcessError) and "process 1 of 3" in str(other)


@pytest.fixture
def quick(monkeypatch):
    """Processes that beat, and lose patience, a hundred times as fast."""
    monkeypatch.setattr(processes, "BEAT_S", 0.05)
    monkeypatch.setattr(processes, "SILENCE_S", 0.6)


def test_who_is_slow_is_waited_for(quick):
    def act(processes):
        if processes.index == 2:
            time.sleep(2.0)
        return processes.exchange(b"%d" % processes.index)

    assert play(act) == [[b"0", b"1", b"2"]] * 3


def test_who_dies_without_a_word_is_noticed(quick, monkeypatch):
    """As by SIGKILL: no more beats, and no empty message."""

    def act(processes):
        processes.exchange(b"all well")
        if processes.index == 1:
            processes._over.set()
            processes._send = lambda message: None
            processes._disconnect = lambda: None
            raise SystemExit
        processes.exchange(b"still well")

    def one(processes):
        try:
            return act(processes)
        except SystemExit:
            return "dead"

    first, second, third = play(one)
    assert second == "dead"
    for other in (first, third):
        assert isinstance(other, ProcessError) and "process 1 of 3 has died; the same command" in str(other)


def test_a_coordinator_that_is_gone_is_one_line():
    def gone(key, timeout_in_ms):
        raise RuntimeError("UNAVAILABLE: connection refused\nand a second line")

    store = Store()
    store.blocking_key_value_get_bytes = gone
    with pytest.raises(ProcessError, match="process 0 of 2, the coordinator, cannot be reached: UNAVAILABLE") as caught:
        Processes(1, 2, store).exchange(b"x")
    assert "\n" not in str(caught.value)


def test_the_coordinator_waits_for_who_is_slow_to_disconnect(monkeypatch):
    """It still waits for the answer when the store says that it has left: jax aborts it if process 0 leaves first."""
    monkeypatch.setattr(processes, "FAREWELL_S", 0.1)
    store, left = Store(2), []

    def disconnect():
        store.disconnect(1)
        time.sleep(1.0)
        left.append(1)

    def leave(index):
        with Processes(index, 2, store, disconnect) as met:
            met.exchange(b"done")
        left.append(f"out {index}")

    with ThreadPoolExecutor() as pool:
        list(pool.map(leave, range(2)))
    assert left[0] == 1 and sorted(left[1:]) == ["out 0", "out 1"]


def test_all_may_fail_at_once():
    assert all(isinstance(each, KeyError) for each in play(lambda processes: {}[processes.index]))


def test_who_leaves_without_an_error_sends_nothing():
    assert play(lambda processes: processes.exchange(b"x") and None) == [None] * 3


def test_alone():
    alone = Processes()
    assert alone.leads and alone.count == 1 and alone.exchange(b"") == [b""] and alone.on_this_machine() == 1
    np.testing.assert_array_equal(alone.gather(np.arange(3)), np.arange(3))


def test_this_machine_is_shared_by_threads():
    assert play(lambda processes: processes.on_this_machine()) == [3, 3, 3]
    assert play(lambda processes: processes.leads) == [True, False, False]


@pytest.mark.parametrize(
    ("place", "says"),
    [
        (("host", 2, 0), "HOST:PORT"),
        (("host:65536", 2, 1), "HOST:PORT"),
        ((":80", 2, 1), "HOST:PORT"),
        (("host:1", 2, 2), "--process 2"),
        (("", -1, 0), "--processes"),
    ],
)
def test_a_place_that_makes_no_sense(place, says):
    with pytest.raises(ConfigError, match=says):
        join_cluster(*place)


@pytest.mark.parametrize(
    ("coordinator", "host"),
    [("node-1.cluster:80", "node-1.cluster"), ("[fe80::1]:80", "fe80::1"), ("10.0.0.1:80", "10.0.0.1")],
)
def test_addresses_as_sockets_take_them(coordinator, host):
    assert meeting.address(coordinator) == (host, 80)


@pytest.mark.parametrize("coordinator", ["nowhere.invalid:80", "localhost:1"])
def test_a_coordinator_that_cannot_be_reached(coordinator, monkeypatch):
    monkeypatch.setattr(meeting, "ARRIVAL_S", 0)
    with pytest.raises(ConfigError, match=f"{coordinator} does not answer"):
        join_cluster(coordinator, 2, 1)


@pytest.mark.parametrize(
    "break_jax",
    [
        lambda patch: patch.delattr(jax._src, "distributed"),
        lambda patch: patch.delattr(distributed, "global_state"),
        lambda patch: patch.setattr(distributed, "global_state", SimpleNamespace()),
        lambda patch: patch.setattr(distributed.global_state, "client", None),
        lambda patch: patch.setattr(distributed.global_state, "client", SimpleNamespace(key_value_set=print)),
    ],
    ids=["no module", "no state", "no client", "no connection", "other methods"],
)
def test_a_jax_without_the_store_is_one_line(monkeypatch, break_jax):
    monkeypatch.setattr(jax.distributed, "initialize", lambda *place, **timeout: None)
    break_jax(monkeypatch)
    monkeypatch.setitem(sys.modules, "jax._src.distributed", getattr(jax._src, "distributed", None))
    with pytest.raises(ConfigError, match=f"^--distributed: jax {re.escape(jax.__version__)} does not have") as raised:
        join_cluster("", 2, 0)
    assert "\n" not in str(raised.value)


def test_the_store_is_that_of_jax(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda *place, **timeout: None)
    monkeypatch.setattr(distributed.global_state, "client", Store())
    assert join_cluster("", 2, 0)._store is distributed.global_state.client


def test_a_coordinator_that_comes_later_is_waited_for(monkeypatch, capsys):
    slept = []
    with socket.socket() as server:
        server.bind(("localhost", 0))  # bound, but nobody listens yet

        def sleep(seconds):  # in place of a thread that listens later: no clock decides this test
            slept.append(seconds)
            if len(slept) == 2:
                server.listen()

        monkeypatch.setattr(meeting.time, "sleep", sleep)
        meeting.reach(f"localhost:{server.getsockname()[1]}").close()
    assert slept == [1, 1]


def meet(*places):
    """What processes of these (--processes, --process) say as they meet at one port: a refusal, or nothing."""
    coordinator = free_place()

    def come(count, index):
        try:
            meeting.await_others(coordinator, count) if index == 0 else meeting.announce(coordinator, count, index)
        except ConfigError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda place: come(*place), places))


def test_processes_that_do_not_fit_are_told_so(monkeypatch):
    monkeypatch.setattr(meeting, "ARRIVAL_S", 5)
    assert meet((3, 0), (3, 2), (3, 1)) == [""] * 3
    assert meet((2, 0), (3, 1)) == ["process 1 was started with --processes 3, and process 0 with 2"] * 2
    assert meet((3, 0), (3, 1), (3, 1)) == ["two processes were started with --process 1"] * 3
    assert meet((3, 0), (3, 1)) == ["of 3 processes [2] have not come within 5 s"] * 2


def test_a_port_that_is_in_use_is_one_line():
    with socket.create_server(("", 0)) as server:
        place = f"localhost:{server.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"^--coordinator {place}: process 0 cannot listen there .*another one"):
            join_cluster(place, 2, 0)


def test_what_is_no_process_of_the_run_is_not_counted(monkeypatch):
    monkeypatch.setattr(meeting, "ARRIVAL_S", 5)
    place = free_place()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(meeting.await_others, place, 2)
        with meeting.reach(place) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\n")
            with pytest.raises(ConfigError, match=r"^of 2 processes \[1\] have not come within 5 s$"):
                waiting.result()


WAITS = """
import sys, time
from stages.cli.processes import join_cluster
from stages.cli.signals import Signals
with Signals() as signals, join_cluster(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])) as processes:
    signals.between_chunks()
    print("training", flush=True)
    while not (asked := max(processes.exchange_json(signals.asked))):
        time.sleep(0.05)
sys.exit(asked)
"""


@pytest.mark.parametrize(("count", "receivers"), [(1, [0]), (2, [0, 1]), (2, [1])], ids=["one", "both", "last"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_to_some_process_is_noted_by_all(count, receivers, number):
    """Processes that have really met: jax.distributed has a handler of SIGTERM of its own."""
    place = free_place()
    begun = [start_process(place, str(count), str(index), program=("-c", WAITS)) for index in range(count)]
    for process in begun:
        while process.stdout.readline() != "training\n":
            assert process.poll() is None
    for index in receivers:
        begun[index].send_signal(number)
    for index, (code, _, error) in enumerate(end_processes(*begun)):
        assert code == 128 + number, error
        assert (f"run.py: {number.name}: will stop at the end of the chunk" in error) == (index in receivers)
