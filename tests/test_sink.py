"""What a tracker is told of a chunk, by hand; trackers that are stood in for, missing, or broken."""

import math
import shutil
import sys
from types import ModuleType, SimpleNamespace

import pytest

import run
from stages.config import ConfigError
from stages.log import sink as sink_module
from stages.log.hooks import log_chunk, log_round
from stages.log.lines import Pace
from stages.log.run_log import RunLog, RunSetup
from stages.log.sink import Tracker, open_sink, series
from stages.store.folder import RunFolder
from stages.sweep.rounds import Round
from stages.sweep.trials import Trial

NAN = math.nan


def rows(*scores, step=100):
    """Rows of seeds 3, 4 ...: a score and a loss, the loss ten times the seed."""
    each = {"step": step, "phase": "task", "diverged": None, "fps/policy": 50.0, "episode/count": 1}
    return [
        each | {"seed": 3 + i, "episode/score": score, "train/loss/recon": 10.0 * (3 + i)}
        for i, score in enumerate(scores)
    ]


@pytest.fixture
def stub(monkeypatch):
    """Stands in for a package -> (calls that it got, the module)."""
    calls, module = [], ModuleType("stub")
    noted = lambda name: lambda *args, **kwargs: calls.append((name, args, kwargs))
    live = SimpleNamespace(**{name: noted(name) for name in ("log", "finish", "define_metric", "add_scalar", "close")})
    live.flush = lambda: None
    module.__dict__["init"] = lambda **kwargs: calls.append(("init", (), kwargs)) or live
    module.__dict__["SummaryWriter"] = lambda *args, **kwargs: calls.append(("open", args, kwargs)) or live
    monkeypatch.setitem(sys.modules, "stub", module)
    monkeypatch.setattr(sink_module, "TRACKERS", dict.fromkeys(sink_module.TRACKERS, "stub"))
    monkeypatch.setattr(sink_module.importlib.util, "find_spec", lambda name: name)
    return calls


def test_a_chunk_in_numbers():
    found = series(rows(1.0, 2.0, 3.0, 100.0), "round2/")
    interval = [found.pop(f"round2/episode/score/iqm_{end}") for end in ("low", "high")]
    assert 1.0 <= interval[0] < 2.5 < interval[1] <= 100.0
    assert found == {
        "round2/episode/score": 26.5,
        "round2/episode/score/iqm": 2.5,
        "round2/train/loss/recon": 45.0,
        "round2/fps/policy": 50.0,
        "round2/episode/count": 1.0,
        **{f"seeds/episode/score/{3 + i}": score for i, score in enumerate((1.0, 2.0, 3.0, 100.0))},
    }


@pytest.mark.filterwarnings("error")
def test_what_is_not_finite_is_left_out():
    found = series([{"seed": 0, "episode/score": NAN, "a": math.inf}, {"seed": 1, "episode/score": 4.0, "a": NAN}])
    assert "a" not in found and found["episode/score"] == found["episode/score/iqm"] == 4.0
    assert found["seeds/episode/score/1"] == 4.0 and "seeds/episode/score/0" not in found
    assert series([{"seed": 0, "step": 1, "episode/score": NAN}]) == {}


def test_a_package_that_is_missing_is_one_line(monkeypatch):
    monkeypatch.setattr(sink_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^--log tensorboard .*: python -m pip install tensorboardX$"):
        run.parse(["--log", "tensorboard"])
    assert run.parse([]).log == "none"


def test_tensorboard_is_told_of_each_number_and_forgets_later_steps(tmp_path, stub):
    opened = open_sink("tensorboard", tmp_path, {}, last_step=200)
    opened.write(300, {"a": 1.0, "b": 2.0})
    opened.close()
    assert stub == [
        ("open", (str(tmp_path / "tensorboard"),), {"purge_step": 201}),
        ("add_scalar", ("a", 1.0, 300), {}),
        ("add_scalar", ("b", 2.0, 300), {}),
        ("close", (), {}),
    ]


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_the_other_trackers_know_the_run_again(tmp_path, stub, kind):
    (tmp_path / "run").mkdir()
    for _ in range(2):
        opened = open_sink(kind, tmp_path / "run", {"seeds": 4})
        opened.write(300, {"a": 1.0})
        opened.close()
    begun = [kwargs for name, _, kwargs in stub if name == "init"]
    assert begun[0] == begun[1] and begun[0]["name"].startswith("run") and begun[0]["config"] == {"seeds": 4}
    assert begun[0]["resume"] == "allow" and (kind == "trackio" or len(begun[0]["id"]) == 12)
    assert [args for name, args, _ in stub if name == "log"] == [({"a": 1.0, "env_steps": 300},)] * 2


@pytest.mark.parametrize(("kind", "identity"), [("wandb", "id"), ("trackio", "name")])
def test_a_run_is_itself_wherever_its_folder_is_and_no_other_is(tmp_path, stub, kind, identity):
    def identity_of(folder):
        folder.mkdir(parents=True, exist_ok=True)
        open_sink(kind, folder, {})
        return next(kwargs[identity] for name, _, kwargs in reversed(stub) if name == "init")

    first, namesake = identity_of(tmp_path / "1" / "run"), identity_of(tmp_path / "2" / "run")
    (tmp_path / "1" / "run").rename(tmp_path / "run")
    moved = identity_of(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    anew = identity_of(tmp_path / "run")
    assert moved == first and len({first, namesake, anew}) == 3


def log_of_a_run(path):
    arguments, folder = run.parse(["--log", "trackio", "--steps", "1000"]), RunFolder.open(path)
    log = RunLog(RunSetup(arguments, [Trial("", arguments)], folder=folder, folders=[folder]), 0.0)
    log_round(log, 0, Round([3, 4], [3, 4]))
    log.tracker = Tracker.open("trackio", folder.path, {})
    return log


def test_a_run_tells_it_of_every_chunk_and_closes_it(tmp_path, stub):
    log = log_of_a_run(tmp_path / "run")
    log_chunk(log, log.setup.arguments.config, rows(1.0, 3.0), None, 1, Pace(0.5, 1.0, 0.0))
    log.on_stop()
    assert [name for name, _, _ in stub] == ["init", "log", "finish"]
    [told] = [args[0] for name, args, _ in stub if name == "log"]
    assert told["env_steps"] == 100 and told["episode/score"] == 2.0 and told["seeds/episode/score/4"] == 3.0


def test_a_tracker_that_breaks_costs_no_run(tmp_path, stub, capsys):
    log = log_of_a_run(tmp_path / "run")

    def gone(step, values):
        raise ConnectionError("the server\nis gone")

    log.tracker.sink = log.tracker.sink._replace(write=gone)
    for step in (100, 200):
        log_chunk(log, log.setup.arguments.config, rows(1.0, 2.0, step=step), None, 1, Pace(0.5, 1.0, 0.0))
    assert capsys.readouterr().err == (
        "run.py: warning: no more of this run goes to trackio (the server is gone); metrics.jsonl has all\n"
    )
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 4


def test_tensorboard_itself(tmp_path):
    pytest.importorskip("tensorboardX")
    opened = open_sink("tensorboard", tmp_path, {})
    opened.write(100, {"a": 1.0})
    opened.close()
    [events] = (tmp_path / "tensorboard").iterdir()
    assert events.stat().st_size > 50
