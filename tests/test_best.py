"""The best agents of a run by evaluation: kept in its checkpoints, through stops, phases and rounds, and used again."""

import json
import shutil

import jax
import numpy as np
import pytest

import run
from stages import library
from stages.cli.processes import Processes
from stages.commands.command import command
from stages.config import ConfigError
from stages.store.best import best_points
from stages.store.checkpoint import CheckpointId, Checkpoints
from stages.store.files import RunFolderError
from stages.store.load import load_run
from stages.sweep import rounds, start
from tests.bench.kills import CLOCK, differences
from tests.conftest import tree_equal
from tests.runs import CATCH, ROUNDS, ask, at_chunk
from tests.runs import rows as logged

pytestmark = pytest.mark.usefixtures("compiled_once")
WORDS = [*ROUNDS, "--checkpoint-best"]


@pytest.fixture(scope="module")
def whole(compiled_once, recorded):
    """Seeds 5 and 6, and then seed 7 beside padding; each explores and adapts, with two evaluations in each phase."""
    return recorded(*WORDS)[0]


@pytest.fixture
def folder(whole, tmp_path, monkeypatch):
    """The run, to be looked at. The tests' jax has started."""
    monkeypatch.setattr(start, "start_jax", lambda: None)
    return shutil.copytree(whole, tmp_path / "copy")


def test_the_best_point_is_the_first_of_the_highest():
    nan, steps = float("nan"), [10, 20, 30]
    best = best_points(steps, [[1, 5, nan, None], [3, 5, 2, None], [2, 4, nan, None]])
    assert best.step == [20, 10, 20, 10]
    np.testing.assert_array_equal(best.score, [3, 5, 2, nan])


def test_keeping_the_best_changes_no_number(whole, recorded):
    plain, _ = recorded(*ROUNDS)
    for line, other in zip(logged(whole), logged(plain), strict=True):
        assert {k: v for k, v in line.items() if k not in CLOCK} == {k: v for k, v in other.items() if k not in CLOCK}


def test_each_seeds_agent_is_from_where_it_scored_most(tmp_path, monkeypatch):
    """Scores are made up: seed 5 is best in its first phase, seed 6 in its last, and seed 7 between them."""
    made_up = {5: [0, 9, 1, 2, 3, 3], 6: [0, 1, 2, 3, 4, 4], 7: [9, 1, 2, 5, 4, 4]}  # the first is of the untrained
    agents: dict[int, list] = {seed: [] for seed in made_up}

    def scored(self, compiled, state, counters):
        for slot, seed in enumerate(self.round.seeds):
            agents[seed].append(jax.tree.map(lambda x, i=slot: np.array(x[i]), state.agent))
        scores = np.array([float(made_up[seed][len(agents[seed]) - 1]) for seed in self.round.seeds])
        return rounds.TaskerScores(scores, scores)

    monkeypatch.setattr(rounds.Evaluator, "__call__", scored)
    folder = tmp_path / "run"
    assert run.main([*WORDS, "--logdir", str(folder)]) == 0
    steps = sorted({line["step"] for line in logged(folder)})
    best = library.load(folder, best=True)
    assert best.seeds == [5, 6, 7] and best.best_steps == [steps[0], steps[3], steps[2]]
    for slot, (seed, point) in enumerate({5: 1, 6: 4, 7: 3}.items()):
        kept, seen = jax.tree.map(lambda x, i=slot: x[i], best.agent), agents[seed][point]
        assert tree_equal((kept.model, kept.tasker), (seen.model, seen.tasker)), seed
    assert best.agent.explorer is None and agents[5][1].explorer is not None
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["best_step"] == best.best_steps and summary["best_score"] == [9, 4, 5]


def test_a_run_that_is_stopped_keeps_the_same(whole, tmp_path, monkeypatch):
    """In the first round's second phase, before its first point."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_chunk(patch, 3, lambda: ask(2))
        assert run.main([*WORDS, "--logdir", str(folder)]) == 130
    assert run.main([*WORDS, "--logdir", str(folder)]) == 0
    assert differences(whole, folder) == []  # with all arrays of the checkpoints
    processes = Checkpoints(folder, Processes(), keep=0, reads=True)
    state = processes.arrays(CheckpointId(0, logged(folder)[-1]["step"]))
    assert any(name.startswith("[2].model") for name in state)


def test_commands_take_the_best(folder, tmp_path, capsys):
    best = json.loads((folder / "summary.json").read_text())["best_step"]
    assert command(["eval", str(folder), "--best", "--episodes", "2"]) == 0
    assert "each seed's best agent" in " ".join(capsys.readouterr().out.split())
    played = json.loads((folder / "eval.json").read_text())
    assert played["best"] and played["env_steps"] == dict(zip("567", best, strict=True))
    assert command(["export", str(folder), "--best", "--out", str(tmp_path / "small")]) == 0
    small, loaded = library.load(tmp_path / "small"), library.load(folder, best=True)
    assert small.best_steps == best and tree_equal(small.agent, loaded.agent)


def test_a_run_without_them_says_so(recorded, capsys):
    folder, _ = recorded(*ROUNDS)
    with pytest.raises(RunFolderError, match="holds no best agents: only runs with --checkpoint-best"):
        load_run(folder, best=True)
    with pytest.raises(ConfigError, match="give --checkpoint-keep 1 or more"):
        run.parse(["--checkpoint-best", "--checkpoint-keep", "0"])


def test_mode_task_is_evaluated_too(tmp_path):
    assert run.main([*CATCH, "--checkpoint-best", "--logdir", str(tmp_path / "run")]) == 0
    lines = logged(tmp_path / "run")
    assert all(np.isfinite(line["eval/score"]) for line in lines)
    best = library.load(tmp_path / "run", best=True).best_steps
    for seed, step in enumerate(best or []):
        scores = {line["step"]: line["eval/score"] for line in lines if line["seed"] == seed}
        assert scores[step] == max(scores.values())
