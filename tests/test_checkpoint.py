"""Checkpoints on small trees: what comes back, what is kept, and what a damaged or foreign one says."""

import contextlib
import errno
import itertools
import json
import os
import resource
import shutil
import sys
import time
from types import SimpleNamespace
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import SingleDeviceSharding

from stages.cli.processes import Processes
from stages.config import Hypers
from stages.store import checkpoint, orbax_quirks
from stages.store.checkpoint import CheckpointId, Checkpoints, stored
from stages.store.files import RunFolderError
from tests.conftest import tree_equal
from tests.pretended import play


def tree(scale=1.0, capacity=3):
    """Floats, bytes, a flag, keys, nothing at all; and a ring [seeds, capacity, 2]."""
    return {
        "w": jnp.arange(6.0).reshape(2, 3) * scale,
        "classes": jnp.array([[1, 2], [3, 255]], jnp.uint8),
        "flag": jnp.array([True, False]),
        "keys": jr.split(jr.key(7), 2),
        "none": jnp.zeros((2, 0)),
        "state": {"ring": Ring(jnp.arange(2.0 * capacity * 2).reshape(2, capacity, 2))},
    }


class Ring(tuple):
    """A node with an attribute `ring`, as the train state has."""

    def __new__(cls, x):
        return super().__new__(cls, (x,))


jax.tree_util.register_pytree_with_keys(
    Ring, lambda r: ([(jax.tree_util.GetAttrKey("ring.x"), r[0])], None), lambda _, x: Ring(x[0])
)


def shapes(of):
    place = SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), of)


def made(path, keep=2, processes=None):
    return Checkpoints(path, processes or Processes(), keep)


def test_everything_comes_back(tmp_path):
    checkpoints = made(tmp_path)
    assert checkpoints.newest() is None
    checkpoints.save(CheckpointId(0, 10), tree(), {"step": 10, "scores": [1.5, float("nan")]})
    checkpoints.wait()
    again = made(tmp_path)
    assert again.newest() == CheckpointId(0, 10)
    assert tree_equal(again.restore(CheckpointId(0, 10), shapes(tree())), tree())
    assert again.progress(CheckpointId(0, 10)) == {"step": 10, "scores": [1.5, None]}


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg"])
def test_random_keys_of_every_kind_come_back(tmp_path, kind):
    """An environment chooses the kind of the keys in its state."""
    checkpoints, state = made(tmp_path), {"keys": jr.split(jr.key(7, impl=kind), (2, 3))}
    checkpoints.save(CheckpointId(0, 1), state, {})
    checkpoints.wait()
    found = made(tmp_path).restore(CheckpointId(0, 1), shapes(state))["keys"]
    assert found.dtype == state["keys"].dtype
    np.testing.assert_array_equal(jr.uniform(found[1, 2], 3), jr.uniform(state["keys"][1, 2], 3))


def test_hyperparameters_newer_than_a_checkpoint_have_their_defaults(tmp_path):
    class Older(NamedTuple):
        lr: jax.Array

    class Of(NamedTuple):
        hypers: Hypers | Older

    checkpoints, lr = made(tmp_path), jnp.array([0.5, 0.25])
    checkpoints.save(CheckpointId(0, 1), (Of(Older(lr)),), {})
    checkpoints.wait()
    hypers = jax.tree.map(lambda x: jnp.full(2, x, jnp.float32), Hypers())
    (found,) = made(tmp_path).restore(CheckpointId(0, 1), shapes((Of(hypers),)))
    assert tree_equal(found.hypers, eqx.tree_at(lambda h: h.lr, hypers, lr))


@pytest.mark.parametrize("content", ["[]", "{", "", '{"commit_timestamp_nsecs": "x"}'])
def test_what_orbax_wrote_of_a_checkpoint_may_be_spoilt(tmp_path, content):
    checkpoints = made(tmp_path)
    checkpoints.save(CheckpointId(0, 10), tree(), {"step": 10})
    checkpoints.wait()
    (tmp_path / "checkpoints/round-0000/process-0/10/_CHECKPOINT_METADATA").write_text(content)
    with contextlib.suppress(RunFolderError):  # nothing else
        assert made(tmp_path).newest() == CheckpointId(0, 10)


def test_copies_beside_checkpoints_are_none(tmp_path):
    checkpoints = made(tmp_path)
    checkpoints.save(CheckpointId(0, 10), tree(), {"step": 10})
    checkpoints.wait()
    rounds = tmp_path / "checkpoints"
    for copy in ("round-0000.bak", "round-old", "round-0000/process-0.old", "round-0000/process-0/10.bak"):
        shutil.copytree(rounds / "round-0000" / "process-0", rounds / copy)
    (rounds / "round-0001").write_text("a file")
    assert stored(rounds) == [(0, 0)]
    again = made(tmp_path)
    assert again.newest() == CheckpointId(0, 10) and again.newest_of_rounds() == [CheckpointId(0, 10)]
    assert again.progress(CheckpointId(0, 10)) == {"step": 10}


def test_what_is_saved_is_the_state_at_the_call(tmp_path):
    """Training donates and overwrites the arrays while they are being written."""
    checkpoints, state = made(tmp_path), {"w": jnp.ones((64, 1024, 64))}
    checkpoints.save(CheckpointId(0, 1), state, {})
    jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)(state)
    checkpoints.wait()
    found = made(tmp_path).restore(CheckpointId(0, 1), shapes({"w": jnp.ones((64, 1024, 64))}))
    np.testing.assert_array_equal(found["w"], 1)


def test_the_newest_are_kept_and_of_a_round_that_is_over_only_the_last(tmp_path):
    checkpoints = made(tmp_path, keep=2)
    for step in (10, 20, 30, 30):
        checkpoints.save(CheckpointId(0, step), tree(step), {})
    checkpoints.wait()
    there = lambda: sorted(int(path.name) for path in (tmp_path / "checkpoints/round-0000/process-0").iterdir())
    assert there() == [20, 30]
    checkpoints.prune(0)
    checkpoints.close()
    assert there() == [30]
    checkpoints = made(tmp_path)
    checkpoints.save(CheckpointId(1, 10), tree(), {})
    checkpoints.wait()
    assert made(tmp_path).newest() == CheckpointId(1, 10)
    assert tree_equal(made(tmp_path).restore(CheckpointId(0, 30), shapes(tree())), tree(30))


def test_a_sweep_that_is_prolonged_goes_on_from_what_was_written_last(tmp_path):
    """Its first round again, though the last round has checkpoints too."""
    checkpoints = made(tmp_path)
    for place in (CheckpointId(0, 30), CheckpointId(1, 30), CheckpointId(0, 40)):
        checkpoints.save(place, tree(), {})
        checkpoints.wait()
        assert made(tmp_path).newest() == place


def test_within_a_round_the_newest_has_most_steps_though_the_clock_went_back(tmp_path, monkeypatch):
    checkpoints, clock = made(tmp_path), itertools.count(2**60, -(10**9))
    with monkeypatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: next(clock))
        for step in (10, 20):
            checkpoints.save(CheckpointId(0, step), tree(), {})
            checkpoints.wait()
    times = [checkpoints._manager(0).metadata(step).commit_timestamp_nsecs for step in (10, 20)]
    assert times[1] < times[0] and made(tmp_path).newest() == CheckpointId(0, 20)


def test_none_is_written_where_none_shall_be_kept(tmp_path):
    checkpoints = made(tmp_path, keep=0)
    checkpoints.save(CheckpointId(0, 10), tree(), {})
    checkpoints.wait()
    assert not list(tmp_path.iterdir())


def test_a_ring_may_have_grown(tmp_path):
    checkpoints = made(tmp_path)
    checkpoints.save(CheckpointId(0, 1), tree(), {})
    checkpoints.wait()
    found = made(tmp_path).restore(CheckpointId(0, 1), shapes(tree(capacity=5)))
    ring = np.asarray(found["state"]["ring"][0])
    np.testing.assert_array_equal(ring[:, :3], tree()["state"]["ring"][0])
    np.testing.assert_array_equal(ring[:, 3:], 0)


def another(**changes):
    return {name: value for name, value in (tree() | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (another(w=jnp.zeros((2, 4))), ["['w']", "float32[2, 3]", "float32[2, 4]"]),
        (another(w=jnp.zeros((2, 3), jnp.int32)), ["['w']", "float32", "int32"]),
        (another(more=jnp.zeros(2)), ["['more']", "not in both"]),
        (another(flag=None), ["['flag']", "not in both"]),
        (another(state={"ring": Ring(jnp.zeros((2, 2, 2)))}), ["ring", "[2, 3, 2]", "[2, 2, 2]"]),
    ],
    ids=["shape", "type", "a part more", "a part less", "a smaller ring"],
)
def test_a_state_of_another_kind_is_refused(tmp_path, wanted, words):
    checkpoints = made(tmp_path)
    checkpoints.save(CheckpointId(0, 1), tree(), {})
    checkpoints.wait()
    refused(lambda: made(tmp_path).restore(CheckpointId(0, 1), shapes(wanted)), "of another state", *words)


def refused(call, *words):
    with pytest.raises(RunFolderError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), word


@pytest.mark.parametrize("damage", ["truncated", "emptied", "overwritten", "removed"])
def test_a_damaged_checkpoint_is_one_line(tmp_path, damage):
    checkpoints = made(tmp_path)
    checkpoints.save(CheckpointId(0, 1), {"w": jr.normal(jr.key(0), (2, 100_000))}, {"step": 1})
    checkpoints.wait()
    files = [p for p in (tmp_path / "checkpoints").rglob("*") if p.is_file() and p.parent.name == "d"]
    largest = max(files, key=lambda p: p.stat().st_size)
    size = largest.stat().st_size
    match damage:
        case "truncated":
            os.truncate(largest, size // 2)
        case "emptied":
            os.truncate(largest, 0)
        case "overwritten":
            largest.write_bytes(np.random.default_rng(0).bytes(size))
        case "removed":
            largest.unlink()
    again = made(tmp_path)
    refused(lambda: again.restore(again.newest(), shapes({"w": jnp.zeros((2, 100_000))})), "cannot be read", "remove")


def flip(file, bit=3):
    """Flip a bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1 << bit
    file.write_bytes(content)


def test_a_flipped_bit_in_any_file_is_one_line_that_names_it(tmp_path):
    """Of the log, of every array that is read, and of those that a reader of the agents alone leaves."""
    checkpoints = made(tmp_path)
    for step in (1, 2):
        checkpoints.save(CheckpointId(0, step), {"w": jnp.ones((2, 64)), "rest": jnp.ones((2, 64))}, {"step": step})
    checkpoints.wait()
    folder = tmp_path / "checkpoints/round-0000/process-0/2"
    files = [p for p in folder.rglob("*") if p.is_file() and p.name not in checkpoint.REWRITTEN and p.stat().st_size]
    assert {"checksums.json", "metadata", "manifest.ocdbt"} < {file.name for file in files}
    wanted = shapes({"w": jnp.zeros((2, 64))})
    for file in files:
        flip(file)
        for read in (
            lambda: made(tmp_path).progress(CheckpointId(0, 2)),
            lambda: made(tmp_path).restore(CheckpointId(0, 2), wanted, part=True),
        ):
            name = "" if file.name == "checksums.json" else str(file.relative_to(folder))
            refused(read, "cannot be read", name, "remove the folder to go on from the checkpoint at 1 steps")
        flip(file)
    np.testing.assert_array_equal(made(tmp_path).restore(CheckpointId(0, 2), wanted, part=True)["w"], 1)
    for file in folder.rglob("commit_success.txt"):  # where it was written; a copy leaves that out
        file.write_text("")
    assert made(tmp_path).progress(CheckpointId(0, 2)) == {"step": 2}


def test_a_checkpoint_from_before_there_were_checksums_is_read(tmp_path):
    checkpoints = made(tmp_path)
    checkpoints.save(CheckpointId(0, 1), tree(), {"step": 1})
    checkpoints.wait()
    (tmp_path / "checkpoints/round-0000/process-0/1/checksums.json").unlink()
    assert made(tmp_path).progress(CheckpointId(0, 1)) == {"step": 1}


def test_what_the_system_refuses_is_said_in_its_words(tmp_path):
    raw = """Error writing "a/0": Failed: No space left [spec='{"a":true}'] [os_error_code='28']"""
    with (
        pytest.raises(RunFolderError, match="cannot be read: No space left on device; remove"),
        orbax_quirks.explained(tmp_path),
    ):
        raise ValueError(raw)


def test_a_foreign_file_where_the_checkpoint_should_be_is_one_line(tmp_path):
    checkpoints = made(tmp_path)
    checkpoints.save(CheckpointId(0, 1), tree(), {"step": 1})
    checkpoints.wait()
    (found,) = (tmp_path / "checkpoints").rglob("progress/metadata")
    found.write_text("not JSON")
    refused(lambda: made(tmp_path).progress(CheckpointId(0, 1)), "cannot be read")


@pytest.mark.parametrize("fails", ["save", "wait_until_finished"])
def test_a_disk_that_refuses_costs_the_save_and_not_the_one_before(tmp_path, monkeypatch, fails):
    """At once, or in the thread that writes."""
    checkpoints = made(tmp_path)
    checkpoints.save(CheckpointId(0, 1), tree(), {"step": 1})
    checkpoints.wait()

    def disk_full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, fails, disk_full)
        refused(
            lambda: (checkpoints.save(CheckpointId(0, 2), tree(2), {}), checkpoints.wait()),
            "No space left",
            "free the disk",
        )
    assert tree_equal(made(tmp_path).restore(CheckpointId(0, 1), shapes(tree())), tree())
    checkpoints.save(CheckpointId(0, 3), tree(3), {})
    checkpoints.wait()
    assert made(tmp_path).newest() == CheckpointId(0, 3)


@contextlib.contextmanager
def files_of_at_most(size):
    """No file may grow beyond so many bytes: the kernel refuses the write, as that of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_save_that_fails_leaves_nothing_and_later_ones_keep_as_many_as_before(tmp_path):
    noise = {"w": jr.normal(jr.key(0), (2, 100_000))}  # it does not compress
    checkpoints, folder = made(tmp_path, keep=2), tmp_path / "checkpoints/round-0000/process-0"
    for step in (1, 2):
        checkpoints.save(CheckpointId(0, step), noise, {})
        checkpoints.wait()
    for step in (3, 4):
        with files_of_at_most(100_000):
            save = lambda step=step: (checkpoints.save(CheckpointId(0, step), noise, {}), checkpoints.wait())
            refused(save, "written: File too large", "free the disk")
        assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]
    for step in (5, 6):
        checkpoints.save(CheckpointId(0, step), noise, {})
        checkpoints.wait()
    checkpoints.close()
    assert sorted(path.name for path in folder.iterdir()) == ["5", "6"]


def test_on_a_disk_that_may_be_too_small_a_save_ends_before_anything_else_is_written(tmp_path, monkeypatch):
    usage = SimpleNamespace(free=2 * tree()["w"].nbytes)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    checkpoints = made(tmp_path)
    checkpoints.save(CheckpointId(0, 1), tree(), {})
    assert (tmp_path / "checkpoints/round-0000/process-0/1/commit_success.txt").exists()


def test_whether_anything_can_be_saved_is_tried_and_leaves_nothing(tmp_path):
    made(tmp_path).try_saving()
    with files_of_at_most(10):
        refused(made(tmp_path).try_saving, "no checkpoint can be saved", "File too large", "--checkpoint-keep 0")
        made(tmp_path, keep=0).try_saving()
    assert play(lambda processes: made(tmp_path, processes=processes).try_saving(), 2) == [None] * 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a[1]", "a*", "a?", "a\\b"])
def test_a_path_that_orbax_takes_for_another_is_refused_before_anything_is_written(tmp_path, name):
    refused(made(tmp_path / name).try_saving, "no checkpoint can be saved", f"the name {name!r} has a {name[1]!r}")
    assert not list(tmp_path.iterdir())


def test_a_copy_is_read_under_a_name_that_nothing_can_be_saved_under(tmp_path):
    checkpoints, id = made(tmp_path / "a"), CheckpointId(0, 1)
    checkpoints.save(id, {"w": jnp.arange(3.0)}, {})
    checkpoints.close()
    (tmp_path / "a").rename(tmp_path / "a[1]")
    found = Checkpoints(tmp_path / "a[1]", Processes(), 0, reads=True).restore(id, shapes({"w": jnp.zeros(3)}))
    np.testing.assert_array_equal(found["w"], [0.0, 1.0, 2.0])


def test_processes_go_on_from_what_all_of_them_have(tmp_path):
    for index, steps in enumerate([(10, 20), (10,)]):
        for step in steps:
            path = tmp_path / f"checkpoints/round-0000/process-{index}/{step}"
            path.mkdir(parents=True)
            for part in ("progress", "state"):
                (path / part).mkdir()
            (path / "_CHECKPOINT_METADATA").write_text(json.dumps({"commit_timestamp_nsecs": 1}))
            (path / "commit_success.txt").write_text("done")
    assert play(lambda processes: made(tmp_path, processes=processes).newest(), 2) == [CheckpointId(0, 10)] * 2

    def refusal(processes):
        with pytest.raises(RunFolderError, match="all 3 processes"):
            made(tmp_path, processes=processes).newest()
        return True

    assert play(refusal, 3) == [True] * 3


def test_a_process_saves_whatever_others_do_to_the_store_they_share(tmp_path, monkeypatch):
    """Each process counts its own saves; one that ends another's with the same number deletes what that waits for."""

    class Store(dict):
        """What is set here is soon gone: who reads what must be there waits for ever."""

        key_value_set = lambda self, key, value, allow_overwrite=False: self.update({key: value})
        key_value_try_get, key_value_delete = dict.get, lambda self, key: None

        def blocking_key_value_get(self, key, timeout_secs):
            raise TimeoutError(f"another process has deleted {key}")

    store = Store()
    monkeypatch.setattr("orbax.checkpoint._src.futures.signaling_client.get_signaling_client", lambda: store)
    checkpoints = made(tmp_path)
    checkpoints.save(CheckpointId(0, 1), tree(), {})
    checkpoints.wait()
    assert tree_equal(made(tmp_path).restore(CheckpointId(0, 1), shapes(tree())), tree())


def test_an_orbax_that_asks_in_another_way_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.delattr("orbax.checkpoint._src.multihost.multihost.process_index")

    def saves(processes):
        refused(
            lambda: made(tmp_path, processes=processes).save(CheckpointId(1, 1), tree(), {}), "install version 0.12.8"
        )
        return True

    assert play(saves, 2) == [True] * 2


def test_arrays_on_their_way_when_another_failed_are_silent_and_nothing_else_is(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: said.append(str(unraisable.exc_value)))
    orbax_quirks.silence_closed_loops.cache_clear()
    made(tmp_path), made(tmp_path)
    for error in (RuntimeError("Event loop is closed"), RuntimeError("another"), ValueError("Event loop is closed")):
        sys.unraisablehook(SimpleNamespace(exc_value=error))
    assert said == ["another", "Event loop is closed"]
    orbax_quirks.silence_closed_loops.cache_clear()  # the hook goes with this test
