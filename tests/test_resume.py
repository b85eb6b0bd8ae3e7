"""A run that is stopped, killed or prolonged goes on as if nothing had happened: equal to the bit."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import equinox as eqx
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

import envs
import run
from envs import registry
from stages.cli.signals import Signals
from stages.commands.command import command
from stages.log import hooks
from stages.loop import checkpoint_policy, training_loop
from stages.store import folder as run_folder
from stages.store.fingerprint import COMPUTATION, fingerprint
from stages.sweep import rounds, start
from tests.bench.kills import differences
from tests.corridor import Corridor
from tests.runs import CATCH, HURRIED, PATIENCE, ROOT, ROUNDS, ask, at_chunk, start_process
from tests.runs import rows as logged

pytestmark = pytest.mark.usefixtures("compiled_once")

save = ocp.CheckpointManager.save
WORDS, TWO_ROUNDS = [*CATCH, "--logdir"], [*ROUNDS, "--logdir"]


@pytest.fixture(scope="module")
def whole(compiled_once, recorded):
    """The run that nobody stops."""
    return recorded(*CATCH)[0]


@pytest.fixture(scope="module")
def whole_rounds(compiled_once, recorded):
    """The run of two rounds that nobody stops."""
    return recorded(*ROUNDS)[0]


@pytest.fixture(autouse=True)
def heard():
    """Signals are as on a terminal, whoever started the tests: nohup and background jobs ignore some, for good."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def stopped(words, folder, monkeypatch, number, chunk):
    """The run with a signal in its chunk `chunk` -> exit code; and on to its end."""
    with monkeypatch.context() as patch:
        at_chunk(patch, chunk, lambda: ask(number))
        code = run.main([*words, str(folder)])
    assert json.loads((folder / "summary.json").read_text())["finished"] is False
    lines = len(logged(folder))
    assert run.main([*words, str(folder)]) == 0
    return code, lines


@pytest.mark.parametrize(
    ("number", "code", "chunk", "lines"),
    [(signal.SIGINT, 130, 1, 2), (signal.SIGHUP, 129, 2, 4)],
    ids=["first chunk", "last chunk"],
)
def test_a_signal_stops_between_chunks_and_the_run_goes_on(
    whole, tmp_path, monkeypatch, capsys, number, code, chunk, lines
):
    folder = tmp_path / "run"
    assert stopped(WORDS, folder, monkeypatch, number, chunk) == (code, lines)
    said, error = capsys.readouterr()
    assert f"run.py: {number.name}: will stop at the end of the chunk" in error and error.count("\n") == 1
    (stop,) = [line for line in said.splitlines() if line.startswith("stopped at ")]
    assert str(folder) in stop and "going on from the checkpoint at " in said
    assert differences(whole, folder) == []


def test_a_signal_in_the_second_round_while_it_adapts(whole_rounds, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    assert stopped(TWO_ROUNDS, folder, monkeypatch, signal.SIGTERM, 7) == (143, 2 * 4 + 3)
    assert differences(whole_rounds, folder) == []


def test_a_signal_while_untrained_agents_are_evaluated_does_not_wait_for_a_chunk(
    whole_rounds, tmp_path, monkeypatch, capsys
):
    """In the second round: the first one is saved, and the second begins again with the same numbers."""
    folder, evaluate, points = tmp_path / "run", rounds.Evaluator.__call__, []

    def asked(self, compiled, state, counters):
        points.append(self.round.seeds)
        if points.count([7]) == 1 and points[-1] == [7]:
            ask(signal.SIGTERM)
        return evaluate(self, compiled, state, counters)

    with monkeypatch.context() as patch:
        patch.setattr(rounds.Evaluator, "__call__", asked)
        assert run.main([*TWO_ROUNDS, str(folder)]) == 143
    said = capsys.readouterr().out.splitlines()
    assert said[-2].startswith("evaluating untrained agents") and said[-1].startswith("stopped at 0 of 62 steps")
    assert len(logged(folder)) == 2 * 4
    assert run.main([*TWO_ROUNDS, str(folder)]) == 0
    assert differences(whole_rounds, folder) == []


def test_before_the_first_chunk_a_signal_has_nothing_to_wait_for(tmp_path, monkeypatch):
    """Between_chunks is what makes signals wait: it comes after the untrained agents' evaluation."""
    calls, evaluate, wait = [], rounds.Evaluator.__call__, Signals.between_chunks
    monkeypatch.setattr(rounds.Evaluator, "__call__", lambda *args: calls.append("evaluate") or evaluate(*args))
    monkeypatch.setattr(Signals, "between_chunks", lambda *args: calls.append("wait") or wait(*args))
    assert run.main([*WORDS, str(tmp_path / "run")]) == 0
    assert calls[:2] == ["evaluate", "wait"] and calls[-1] == "evaluate"


def test_a_killed_run_goes_on_from_its_last_checkpoint(whole, tmp_path, capsys):
    """By SIGKILL, with a half-written line and one that the checkpoint does not know of."""
    folder = tmp_path / "run"
    process = start_process(*WORDS, str(folder), program=("-c", HURRIED))
    begun = time.monotonic()
    saved = lambda: [path for path in folder.glob("checkpoints/round-*/process-0/*") if path.name.isdigit()]
    while not saved():
        assert process.poll() is None and time.monotonic() < begun + PATIENCE
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    left = json.loads((folder / "summary.json").read_text())
    assert left["finished"] is False and left["env_steps"] in {row["step"] for row in logged(folder)}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10000, "seed": 0}\n{"st')
    assert run.main([*WORDS, str(folder)]) == 0
    assert "going on from the checkpoint" in capsys.readouterr().out
    assert differences(whole, folder) == []


def test_a_signal_before_training_ends_the_process_at_once(tmp_path):
    command = [sys.executable, "-u", str(ROOT / "run.py"), *WORDS, str(tmp_path / "new" / "run")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stderr
    for line in process.stdout:
        if line == "compiling ...\n":
            break
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert error == "run.py: SIGINT: stopped at once; what was saved before stays good\n"
    assert not list(tmp_path.iterdir())


def test_a_finished_run_is_left_alone(whole, capsys):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    assert run.main([*WORDS, str(whole)]) == 0
    assert "is finished; raise --steps" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--hypers.lr", "0.5"], "--hypers.lr 0.002 (now 0.5)"),
        (["--seeds", "3"], "--seeds 2 (now 3)"),
        (["--steps", "24"], "--steps 25 (now 24)"),
        (["--horizon", "3", "--env", "CartPole-v1"], "--env Catch-bsuite (now CartPole-v1), --horizon 2 (now 3)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_settings_are_refused_with_the_difference(whole, capsys, words, says):
    assert run.main([*WORDS, str(whole), *words]) == 2
    said, error = capsys.readouterr()
    assert error.startswith("run.py: error: ") and error.count("\n") == 1 and says in error
    assert "compiling" not in said


def test_a_setting_that_came_after_the_run_is_off_in_it(whole, tmp_path, capsys):
    """config.json of an older program lacks it: the same command goes on all the same, unless it asks for it."""
    older = shutil.copytree(whole, tmp_path / "older")
    saved = json.loads((older / "config.json").read_text())
    del saved["config"]["intrinsic_centred"], saved["hypers"]["policy_unimix"]
    (older / "config.json").write_text(json.dumps(saved))
    assert run.main([*WORDS, str(older)]) == 0
    assert "compiling" not in capsys.readouterr().out
    assert run.main([*WORDS, str(older), "--hypers.policy-unimix", "0.1"]) == 2
    assert "--hypers.policy-unimix 0.0 (now 0.1)" in capsys.readouterr().err


def test_a_run_with_a_setting_that_went_is_refused(whole, tmp_path, capsys):
    older = shutil.copytree(whole, tmp_path / "older")
    saved = json.loads((older / "config.json").read_text())
    saved["config"]["ensemble"]["trunk"] = 1
    (older / "config.json").write_text(json.dumps(saved))
    assert run.main([*WORDS, str(older)]) == 2
    assert "--ensemble.trunk 1 (now gone)" in capsys.readouterr().err


def test_more_steps_are_as_if_they_had_been_asked_for_at_once(whole, tmp_path, monkeypatch, capsys):
    """The ring grows; chunks stay as long as they were. Killed before its first chunk, the run still goes on."""

    class Killed(BaseException):
        pass

    def log_plan(*args):
        hooks.log_plan(*args)
        raise Killed

    more, at_once = shutil.copytree(whole, tmp_path / "more"), tmp_path / "at_once"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training_loop, "log_plan", log_plan)
        run.main([*WORDS, str(more), "--steps", "45"])
    assert run.main([*WORDS, str(more), "--steps", "45"]) == 0
    assert "going on from the checkpoint at 25 steps" in capsys.readouterr().out
    assert run.main([*WORDS, str(at_once), "--steps", "45", "--log-points", "4"]) == 0
    assert differences(at_once, more) == []


def test_a_run_without_checkpoints_begins_again(tmp_path, monkeypatch, capsys):
    words = [*WORDS, str(tmp_path / "run"), "--checkpoint-keep", "0"]
    with monkeypatch.context() as patch:
        at_chunk(patch, 1, lambda: ask(signal.SIGTERM))
        assert run.main(words) == 143
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert run.main(words) == 0
    assert "holds no checkpoint of the run: it begins again" in capsys.readouterr().out
    assert len(logged(tmp_path / "run")) == 4
    # Once it is finished, what it has is worth more than a beginning.
    assert run.main([*words, "--steps", "45"]) == 2
    assert "finished and holds no checkpoint to go on from" in capsys.readouterr().err
    assert len(logged(tmp_path / "run")) == 4


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{}", "has no settings of a run"),
        ('{"versions": {}}', "has no settings of a run"),
        ("[]", "Expected `object`, got `array`"),
        ('{"seeds": "2", "seed_start": 0, "config": {}, "hypers": {}}', "Expected `int`, got `str`"),
    ],
)
def test_a_config_without_settings_is_refused(whole, tmp_path, capsys, content, says):
    folder = shutil.copytree(whole, tmp_path / "run")
    (folder / "config.json").write_text(content)
    assert run.main([*WORDS, str(folder)]) == 2
    said, error = capsys.readouterr()
    assert "compiling" not in said and error.count("\n") == 1 and says in error
    assert (folder / "config.json").read_text() == content


def test_a_folder_that_is_removed_ends_the_run(tmp_path, monkeypatch, capsys):
    """It is not made anew with half of what a run leaves."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_chunk(patch, 1, lambda: shutil.rmtree(folder))
        assert run.main([*WORDS, str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("run.py: error: ") and "was removed or moved while" in error and error.count("\n") == 1
    assert not folder.exists()


def test_an_environment_that_has_changed_is_named(whole, tmp_path, monkeypatch, capsys):
    """Its spaces with a refusal, in whatever reads the run; what it computes with a warning."""
    folder, make = shutil.copytree(whole, tmp_path / "run"), envs.make
    words = [*WORDS, str(folder), "--steps", "45"]
    monkeypatch.setattr(start, "start_jax", lambda: None)  # the tests' jax has started
    with monkeypatch.context() as patch:
        patch.setattr(envs, "make", lambda name, args: dataclasses.replace(make(name, args), time_limit=7))
        for act in (lambda: run.main(words), lambda: command(["eval", str(folder)])):
            assert act() == 2
            error = capsys.readouterr().err
            assert "its time_limit was 1000 and is 7" in error and error.count("\n") == 1
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_policy, "fingerprint", lambda env: fingerprint(env) | {COMPUTATION: "another"})
        assert run.main(words) == 0
    assert "run.py: warning: the environment's code" in capsys.readouterr().err


PRINTS = """
import json, sys
from envs import make
from stages.store.fingerprint import fingerprint
print(json.dumps([fingerprint(make(name)) for name in sys.argv[1:]]))
"""


def test_a_fingerprint_is_of_the_environment_and_not_of_the_process():
    names = ["Catch-bsuite", "CartPole-v1", "FourRooms-misc", "MetaMaze-misc"]
    command, environment = [sys.executable, "-c", PRINTS, *names], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = [
        subprocess.run(command, env=environment | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True)
        for seed in ("1", "2")
    ]
    first, second = (json.loads(each.stdout) for each in done)
    assert first == second == json.loads(json.dumps([fingerprint(registry.make(name)) for name in names]))
    assert len({json.dumps(each) for each in first}) == len(names)


def paying(pays):
    """The corridor with another reward, of the cell."""

    class Paying(Corridor):
        def _row(self, cell, first, last):
            return eqx.tree_at(lambda row: row.reward, super()._row(cell, first, last), pays(cell))

    return Paying()


def test_a_fingerprint_knows_constants_and_arrays():
    rewards = [
        lambda cell: cell * 1.0,
        lambda cell: cell * 2.0,
        lambda cell: jnp.array([0.0, 0, 0, 1])[cell],
        lambda cell: jnp.array([0.0, 0, 1, 1])[cell],
    ]
    first, second = ([json.dumps(fingerprint(paying(pays))) for pays in rewards] for _ in range(2))
    assert first == second and len(set(first)) == 4


def disk_full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_saves_that_fail_cost_the_saves_and_the_exit_code_says_whether_the_last_one_did(
    whole, tmp_path, monkeypatch, capsys
):
    """The first of two saves, then both."""
    with monkeypatch.context() as patch:
        at_chunk(patch, 1, lambda: patch.setattr(ocp.CheckpointManager, "save", disk_full))
        at_chunk(patch, 2, lambda: patch.setattr(ocp.CheckpointManager, "save", save))
        assert run.main([*WORDS, str(tmp_path / "first")]) == 0
    said = capsys.readouterr().err
    assert said.count("run.py: warning: not saved: ") == 1 and "No space left on device" in said
    assert differences(whole, tmp_path / "first") == []
    with monkeypatch.context() as patch:
        at_chunk(patch, 1, lambda: patch.setattr(ocp.CheckpointManager, "save", disk_full))
        assert run.main([*WORDS, str(tmp_path / "both")]) == 2
    *warnings, error = capsys.readouterr().err.splitlines()
    assert len(warnings) == 3 and all(line.startswith("run.py: warning: not saved: ") for line in warnings)
    assert error.startswith("run.py: error: the agents could not be saved at the end")
    assert logged(tmp_path / "both") and json.loads((tmp_path / "both" / "summary.json").read_text())["finished"]


def test_lines_that_a_full_disk_refuses_are_written_once_there_is_room(whole, tmp_path, monkeypatch, capsys):
    """By the run itself, or by the one that goes on from its checkpoint."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "_append", disk_full)
        at_chunk(patch, 1, lambda: ask(signal.SIGTERM))
        assert run.main([*WORDS, str(folder)]) == 143
    assert "metrics.jsonl': No space left on device" in capsys.readouterr().err and logged(folder) == []
    assert run.main([*WORDS, str(folder)]) == 0
    assert differences(whole, folder) == []


def test_a_folder_in_which_nothing_can_be_saved_is_found_before_training(tmp_path, capsys):
    """Arrays are written by a library that knows UTF-8 alone."""
    folder = tmp_path / "new" / "\udcff"
    assert run.main([*WORDS, str(folder)]) == 2
    said, error = capsys.readouterr()
    assert "compiling" not in said and error.count("\n") == 1 and not list(tmp_path.iterdir())
    assert error.startswith("run.py: error: no checkpoint can be saved: the name ") and "is not UTF-8" in error


def test_a_signal_that_is_ignored_stays_so():
    """As nohup has it."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Signals() as signals:
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        ask(signal.SIGHUP)
        assert signals.asked == 0
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
