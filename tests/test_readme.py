"""The examples of README and of pages in docs/, as they stand there; and the trained example in docs/example."""

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import run
from envs import own
from stages import library
from stages.commands.command import command
from stages.sweep import start
from tests.played import play

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "docs" / "example" / "catch"


def fenced(section: str, page: str = "README.md") -> str:
    """The Python code of a section of a page."""
    text = (ROOT / page).read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return code


def test_the_library_example_runs(compiled_once, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    names = {}
    exec(compile(fenced("Train, load, act", "docs/library.md"), "docs/library.md", "exec"), names)
    assert names["caught"] >= 9 and "caught 10 of 10" in capsys.readouterr().out
    assert names["training"].score.shape == (2,) and names["actions"].shape == (2,)


@pytest.mark.parametrize(
    ("section", "page"), [("Use it as a library", "README.md"), ("See how far it is", "docs/library.md")]
)
def test_the_short_library_examples_run(compiled_once, monkeypatch, capsys, section, page):
    monkeypatch.chdir(ROOT)
    names = {}
    exec(compile(fenced(section, page), page, "exec"), names)
    said = capsys.readouterr().out
    if page == "README.md":
        assert names["policy"].reset().action.shape and "(2, " in said
    else:
        assert said.count("of task") == len(names["scores"]) == 16 and "100% of task, 0 s left" in said


def test_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 150
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)[)#]", page.read_text())]
    assert len(links) > 20 and [(page.name, link) for page, link in links if not (page.parent / link).exists()] == []


def test_optuna_stops_trials_early(monkeypatch, capsys):
    """The example's nine trials with scores by hand: a trial goes on where it is among the best third so far."""
    pytest.importorskip("optuna")
    monkeypatch.setattr(start, "start_jax", lambda: None)  # the tests' jax has started
    first = [0.1, 0.5, 0.3, 0.2, 0.6, 0.0, 0.4, 0.7, 0.3]
    shares, trained = {4_000: 0.0, 12_000: 0.01, 36_000: 0.02}, []

    def train(config, hypers, seeds):
        """Scores a little more with each share."""
        trained.append((config.steps, seeds))
        trial = sum(steps == 4_000 for steps, _ in trained) - 1
        return SimpleNamespace(score=np.full(seeds, first[trial] + shares[config.steps]))

    monkeypatch.setattr(library, "train", train)
    names = {}
    exec(compile(fenced("Sweep settings", "docs/runs.md"), "docs/runs.md", "exec"), names)
    # Share by share: trial 0 has nobody to lose to; of trials 0 to n the best n / 3, but at least one, go on.
    goes_on = [True, True, False, False, True, False, False, True, False]
    trials = names["study"].trials
    assert [len(trial.intermediate_values) > 1 for trial in trials] == goes_on
    assert [trial.state.name == "COMPLETE" for trial in trials] == goes_on
    assert {seeds for _, seeds in trained} == {4} and trained[:3] == [(4_000, 4), (12_000, 4), (36_000, 4)]
    assert f"score {0.72:.2f}" in capsys.readouterr().out


def test_the_own_environment_is_solved_by_the_command_beside_it(tmp_path, monkeypatch, capsys):
    """With 2,000 steps: more of them, and README's four seeds, would only take longer."""
    section = "Custom environments"
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corridor.py").write_text(fenced(section))
    [words] = re.findall(r"\n    python run.py (.*corridor:.*)\n", (ROOT / "README.md").read_text())
    short = "--steps 2000 --seeds 2 --devices 1 --log-points 1 --checkpoint-keep 0 --logdir run"
    assert run.main([*words.split(), *short.split()]) == 0
    assert "corridor:Corridor (cells 6)" in capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert min(summary["score"]) > 0.95 > 0.8 > max(summary["untrained"]), summary
    sys.modules.pop("corridor")


def test_the_trained_example_scores_what_its_summary_says(tmp_path, monkeypatch):
    """Copied first: eval leaves a file beside what it reads."""
    monkeypatch.setattr(start, "start_jax", lambda: None)  # the tests' jax has started
    assert sum(each.stat().st_size for each in EXAMPLE.rglob("*") if each.is_file()) < 2e6
    folder = shutil.copytree(EXAMPLE, tmp_path / "catch")
    summary = json.loads((folder / "summary.json").read_text())
    episodes = json.loads((folder / "config.json").read_text())["config"]["eval_episodes"]
    assert command(["eval", str(folder), "--episodes", str(episodes)]) == 0
    [score] = json.loads((folder / "eval.json").read_text())["score"]
    assert score > 0.8
    # The same episodes; one of 64 may end otherwise where sums have another order.
    assert score == pytest.approx(summary["score"][0], abs=0.05)


def test_the_documented_environment_says_what_happens():
    """Two to the left, five to the right: the key in step 2, the door in step 7."""
    names = {}
    exec(compile(fenced("Events and states", "docs/environments.md"), "environments.md", "exec"), names)
    env = own.checked("key corridor", names["KeyCorridor"]())
    rows = play(env, jnp.array([0, 0, 1, 1, 1, 1, 1]), jr.key(0))
    np.testing.assert_array_equal(rows.obs["cell"], [2, 1, 0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(rows.events["key"], [0, 0, 1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(rows.events["door"], [0, 0, 0, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(rows.is_terminal, rows.reward == 1)
    assert env.states.count == 5 + 5  # without the key all cells but 0, which has it; with it all but 5, which ends it
