"""The run's folder against a disk that refuses, a killed process and bad names."""

import errno
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from stages.store.files import LEFTOVER_S, RunFolderError, make_folder, temporary_path, write_whole
from stages.store.folder import RunFolder

NAN, INF = float("nan"), float("inf")


def refused(call, *words):
    """`call` raises a RunFolderError of one line that holds all `words`."""
    with pytest.raises(RunFolderError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def disk_full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def lines(path):
    def no_constant(name):
        raise AssertionError(f"{name} is not JSON")

    text = path.read_text()
    assert not text or text.endswith("\n")
    return [json.loads(line, parse_constant=no_constant) for line in text.splitlines()]


def names(path):
    """What is in a folder, but for the lock."""
    return sorted(each.name for each in path.iterdir() if each.name != RunFolder.LOCK)


def test_open_makes_parents_and_leaves_nothing_else(tmp_path):
    folder = RunFolder.open(tmp_path / "a" / "b")
    assert folder.path == tmp_path / "a" / "b" and names(folder.path) == []


def test_open_accepts_a_string_a_relative_path_and_an_existing_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    assert RunFolder.open(".").path.samefile(tmp_path)
    folder = RunFolder.open("run")
    assert folder.path.is_absolute() and names(tmp_path) == ["notes.txt", "run"]


def test_open_expands_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunFolder.open("~/run").path == tmp_path / "run"


def test_discard_removes_what_create_made_unless_it_holds_something(tmp_path):
    (tmp_path / "mine").mkdir()
    RunFolder.open(tmp_path / "mine").discard()
    RunFolder.open(tmp_path / "mine" / "a" / "b").discard()
    assert names(tmp_path) == ["mine"] and names(tmp_path / "mine") == []
    folder = RunFolder.open(tmp_path / "mine" / "a" / "b")
    folder.write_config({})
    folder.discard()
    assert names(folder.path) == ["config.json"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json"])
def test_open_refuses_part_of_a_run(tmp_path, name):
    (tmp_path / name).write_text("{}")
    refused(lambda: RunFolder.open(tmp_path), "part of a run", name, "choose another --logdir", "remove")
    assert names(tmp_path) == [name]


def test_open_takes_a_run_to_go_on_with(tmp_path):
    first = RunFolder.open(tmp_path / "run")
    assert first.config is None and first.summary is None and first.metrics_size == 0
    first.write_config({"seeds": 3})
    first.write_summary({"finished": True})
    first.close()
    again = RunFolder.open(tmp_path / "run")
    assert again.config == {"seeds": 3} and again.summary == {"finished": True}
    (again.path / "config.json").write_text("{ half")
    refused(lambda: again.config, "config.json", "choose another --logdir")
    again.discard()
    assert names(again.path) == ["config.json", "summary.json"]


def test_two_runs_at_once_are_refused(tmp_path):
    first = RunFolder.open(tmp_path / "run")
    refused(lambda: RunFolder.open(tmp_path / "run"), "another run is at work", "choose another --logdir", "wait")
    first.close()
    RunFolder.open(tmp_path / "run").close()


def test_metrics_are_cut_to_what_they_were(tmp_path):
    folder = RunFolder.open(tmp_path / "run")
    folder.append_metrics([{"step": 1}])
    size = folder.metrics_size
    folder.append_metrics([{"step": 2}])
    assert folder.metrics_size == 2 * size
    folder.cut_metrics(size)
    assert lines(folder.path / "metrics.jsonl") == [{"step": 1}]
    refused(lambda: folder.cut_metrics(size + 1), "metrics.jsonl", "at the checkpoint", "--logdir")


def test_open_refuses_a_file_and_a_path_through_a_file(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    refused(lambda: RunFolder.open(file), "Not a directory", "choose another --logdir")
    refused(lambda: RunFolder.open(file / "run"), "Not a directory", "choose another --logdir")
    assert file.read_text() == "mine" and names(tmp_path) == ["file"]


def test_open_refuses_a_dangling_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    refused(lambda: RunFolder.open(tmp_path / "link"), "choose another --logdir")
    assert names(tmp_path) == ["link"]


@pytest.mark.parametrize("path", ["", "nul\0byte", "x" * 5000, "new/" + "x" * 300, "two\nlines/" + "x" * 300])
def test_open_refuses_odd_names_and_cleans_up(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    refused(lambda: RunFolder.open(path), "--logdir")
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that even root cannot write")
def test_open_refuses_where_even_root_cannot_write():
    refused(lambda: RunFolder.open("/proc/run"), "--logdir")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_open_refuses_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    refused(lambda: RunFolder.open(tmp_path), "ermission", "--logdir")
    tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("code", "word"),
    [(errno.ENOSPC, "free space"), (errno.EROFS, "can be written"), (errno.EACCES, "permission")],
)
def test_open_removes_what_it_made_when_the_probe_fails(tmp_path, monkeypatch, code, word):
    def fsync(file):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    refused(lambda: RunFolder.open(tmp_path / "a" / "b"), os.strerror(code), word)
    assert names(tmp_path) == []
    (tmp_path / "old").mkdir()
    refused(lambda: RunFolder.open(tmp_path / "old"), word)
    assert names(tmp_path) == ["old"] and names(tmp_path / "old") == []


def test_open_cleans_up_after_an_interrupt(tmp_path, monkeypatch):
    def fsync(file):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(KeyboardInterrupt):
        RunFolder.open(tmp_path / "a" / "b")
    assert names(tmp_path) == []


@pytest.mark.parametrize("come", [RunFolder.open, make_folder])
def test_what_killed_processes_were_writing_is_removed_and_nothing_that_is_at_work(tmp_path, come):
    for name in ("summary.json", "probe", "checkpoints-0"):
        temporary = temporary_path(tmp_path / name)
        if name.startswith("checkpoints"):
            (temporary / "round-0000").mkdir(parents=True)
        else:
            temporary.write_text("half")
        os.utime(temporary, (0, time.time() - LEFTOVER_S - 60))
    temporary_path(tmp_path / "eval.json").write_text("at work")
    (tmp_path / ".mine.tmp.txt").write_text("a user's")
    os.utime(tmp_path / ".mine.tmp.txt", (0, 0))
    come(tmp_path)
    kept = {".mine.tmp.txt", temporary_path(tmp_path / "eval.json").name}
    assert {path.name for path in tmp_path.iterdir()} - {RunFolder.LOCK} == kept


@pytest.mark.parametrize("target", ["/dev/null", "folder", "link to a device"])
def test_only_a_regular_file_is_replaced(tmp_path, target):
    path = {"/dev/null": Path("/dev/null")}.get(target, tmp_path / "target")
    if target == "folder":
        path.mkdir()
    elif path.parent == tmp_path:
        path.symlink_to("/dev/null")
    before = path.lstat().st_mode
    refused(lambda: write_whole(path, b"new"), str(path), "no regular file")
    assert path.lstat().st_mode == before


def test_a_link_is_replaced_and_what_it_leads_to_is_not(tmp_path):
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "old")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "old").read_bytes() == b"old" and (tmp_path / "link").read_bytes() == b"new"


def test_config_and_summary_are_valid_json(tmp_path):
    folder = RunFolder.open(tmp_path / "run")
    folder.write_config({"env": "Catch-bsuite", "sizes": (1, 2), "path": Path("x"), "lr": np.float32(0.5)})
    folder.write_summary({"iqm": NAN, "best": INF, "worst": np.float64(-np.inf), "scores": np.array([1, NAN])})
    assert names(folder.path) == ["config.json", "summary.json"]
    config = json.loads((folder.path / "config.json").read_text())
    assert config == {"env": "Catch-bsuite", "sizes": [1, 2], "path": "x", "lr": 0.5}
    summary = json.loads((folder.path / "summary.json").read_text())
    assert summary == {"iqm": None, "best": None, "worst": None, "scores": [1.0, None]}


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch, broken):
    folder = RunFolder.open(tmp_path / "run")
    folder.write_summary({"round": 1})
    monkeypatch.setattr(os, broken, disk_full)
    refused(lambda: folder.write_summary({"round": 2}), "summary.json", "No space left", "free space")
    assert names(folder.path) == ["summary.json"]
    assert json.loads((folder.path / "summary.json").read_text()) == {"round": 1}


def test_metrics_are_appended_as_json_lines(tmp_path):
    folder = RunFolder.open(tmp_path / "run")
    folder.append_metrics([{"step": 10, "seed": s, "episode/score": [NAN, 1.5][s]} for s in range(2)])
    folder.append_metrics([])
    folder.append_metrics([{"step": np.int32(20), "seed": 0, "train/loss/rew": INF, "note": "a\nb"}])
    assert lines(folder.path / "metrics.jsonl") == [
        {"step": 10, "seed": 0, "episode/score": None},
        {"step": 10, "seed": 1, "episode/score": 1.5},
        {"step": 20, "seed": 0, "train/loss/rew": None, "note": "a\nb"},
    ]


def test_disk_full_amid_a_row_leaves_whole_lines(tmp_path, monkeypatch):
    folder = RunFolder.open(tmp_path / "run")
    folder.append_metrics([{"step": 0}])
    write, calls = os.write, []

    def half(file, data):
        calls.append(len(data))
        return write(file, bytes(data[: len(data) // 2])) if len(calls) == 1 else disk_full()

    monkeypatch.setattr(os, "write", half)
    refused(lambda: folder.append_metrics([{"step": k} for k in (1, 2, 3)]), "metrics.jsonl", "free space")
    assert len(calls) == 2
    monkeypatch.undo()
    assert lines(folder.path / "metrics.jsonl") == [{"step": 0}]
    folder.append_metrics([{"step": 4}])
    assert lines(folder.path / "metrics.jsonl") == [{"step": k} for k in range(5)]


def test_short_writes_are_continued(tmp_path, monkeypatch):
    folder = RunFolder.open(tmp_path / "run")
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, bytes(data[:7])))
    rows = [{"step": k, "seed": k % 3} for k in range(20)]
    folder.append_metrics(rows)
    assert lines(folder.path / "metrics.jsonl") == rows


@pytest.mark.parametrize("whole", ["", '{"step": 0}\n'])
@pytest.mark.parametrize("tail", ['{"step": 1, "sc', "x" * 200_000])
def test_a_half_written_tail_is_repaired(tmp_path, whole, tail):
    folder = RunFolder.open(tmp_path / "run")
    (folder.path / "metrics.jsonl").write_text(whole + tail)
    folder.append_metrics([{"step": 2}])
    assert lines(folder.path / "metrics.jsonl") == [json.loads(line) for line in whole.splitlines()] + [{"step": 2}]


def test_a_row_that_is_not_json_costs_nothing(tmp_path):
    folder = RunFolder.open(tmp_path / "run")
    folder.append_metrics([{"step": 0}])
    with pytest.raises(TypeError):
        folder.append_metrics([{"step": 1}, {"step": object()}])
    assert lines(folder.path / "metrics.jsonl") == [{"step": 0}]


def test_a_vanished_folder_is_explained(tmp_path):
    folder = RunFolder.open(tmp_path / "run")
    (folder.path / RunFolder.LOCK).unlink()
    folder.path.rmdir()
    for call in (lambda: folder.append_metrics([{"step": 0}]), lambda: folder.write_summary({})):
        refused(call, "No such file", "removed")
