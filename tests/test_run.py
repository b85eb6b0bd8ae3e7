"""The program as a user starts it: what it writes, and every kind of environment."""

import itertools
import json
import re

import numpy as np
import pytest

import run
from envs import registry
from tests.runs import MIXED, ROUNDS, rows, start

pytestmark = pytest.mark.usefixtures("compiled_once")

KEYS = {
    "env", "mode", "preset", "seeds", "env_steps", "updates", "score", "iqm", "ci_low", "ci_high", "zero_shot",
    "compile_seconds", "wall_seconds", "peak_memory_mb", "versions",
}  # fmt: skip


def test_a_run_leaves_its_files(tmp_path, capsys):
    code, folder = start(tmp_path, "--steps", "2.5e1", "--seed-start", "5", "--devices", "1")
    assert code == 0
    said = capsys.readouterr().out
    assert "compiling" in said and "interquartile mean" in said and " a second, " in said and "left" in said
    assert {p.name for p in folder.iterdir()} == {
        *("config.json", "metrics.jsonl", "summary.json", "curves.png", "checkpoints", ".lock"),
    }
    summary = json.loads((folder / "summary.json").read_text())
    assert summary.keys() >= KEYS
    assert summary["seeds"] == [5, 6] and len(summary["score"]) == 2 and summary["zero_shot"] is None
    assert 25 <= summary["env_steps"] <= 30
    assert summary["mean"] == pytest.approx(np.mean(summary["score"]))
    metrics = rows(folder)
    assert [(r["step"], r["seed"]) for r in metrics] == [
        (s, k) for s in sorted({r["step"] for r in metrics}) for k in (5, 6)
    ]
    assert len(metrics) == 4 and metrics[-1]["step"] == summary["env_steps"]
    for name in ("episode/score", "episode/length", "train/loss/recon", "train/loss/dyn", "fps/policy", "fps/train"):
        assert np.isfinite(metrics[-1][name]), name
    assert metrics[-1]["episode/length"] == 10
    config = json.loads((folder / "config.json").read_text())
    assert config["config"]["steps"] == 25 and config["seed_start"] == 5 and config["versions"]["jax"]


def test_explore_then_adapt(recorded):
    folder, said = recorded(*ROUNDS)
    summary = json.loads((folder / "summary.json").read_text())
    assert len(summary["zero_shot"]) == 3 and 60 <= summary["env_steps"] <= 70 and "zero-shot" in said
    for seed in (5, 6, 7):
        metrics = [row for row in rows(folder) if row["seed"] == seed]
        assert [row["phase"] for row in metrics] == ["explore"] * 2 + ["task"] * 2
        assert all(np.isfinite(row["eval/score"]) for row in metrics)
        assert ["train/loss/ensemble" in row for row in metrics] == [True] * 2 + [False] * 2
        assert all(row.get("novelty/untrained_share") is None for row in metrics[2:])


def test_exploring_where_states_are_not_counted(tmp_path, capsys):
    """Disagreement stands beside an untrained ensemble's."""
    words = "--env Breakout-MinAtar --mode explore --steps 60 --envs 2 --devices 1 --eval-steps 20"
    code, folder = start(tmp_path, *words.split())
    assert code == 0
    said, metrics = capsys.readouterr().out, rows(folder)
    assert "zero-shot" in said and "of an untrained one's" in said
    assert [row["phase"] for row in metrics] == ["explore"] * 4
    assert all(np.isfinite(row["eval/score"]) and row["novelty/reward_random"] > 0 for row in metrics)
    shares = [row["novelty/untrained_share"] for row in metrics]
    summary = json.loads((folder / "summary.json").read_text())
    assert min(shares) > 0 and summary["untrained_share"] == pytest.approx(shares[2:])
    assert len(summary["zero_shot"]) == 2 and 60 <= summary["env_steps"] <= 70


def test_only_exploring_without_the_reward_is_zero_shot(recorded):
    folder, _ = recorded(*MIXED)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["mode"] == "mix" and summary["zero_shot"] is None and len(summary["score"]) == 3
    assert all(np.isfinite(row["eval/score"]) for row in rows(folder))


# What an agent sees of an environment: kind and rank of its observations, kind of its actions. One id of each trains
# (Catch and Breakout in the tests above, MountainCar in that below); tests/test_envs.py steps all of them.
KINDS = ["Pendulum-v1", "FourRooms-misc", "FrozenLake-misc"]


def kind(name):
    env = registry.make(name, {})
    return env.obs_space.kind, len(env.obs_space.shape), env.action_space.kind


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_environment_trains(tmp_path, name):
    code, folder = start(tmp_path, "--env", name, "--steps", "24", "--eval-steps", "20", seeds=1)
    assert code == 0
    assert_it_learned(folder)


def assert_it_learned(folder):
    summary = json.loads((folder / "summary.json").read_text())
    assert np.isfinite(summary["score"]).all() and summary["updates"] > 0
    assert np.isfinite([v for k, v in rows(folder)[-1].items() if k.startswith("train/loss/")]).all()


def test_a_random_run_learns_and_counts_and_has_no_disagreement(tmp_path, capsys):
    code, folder = start(tmp_path, "--env", "MountainCar-v0", "--mode", "random", "--steps", "60", seeds=1)
    assert code == 0
    assert_it_learned(folder)
    said = capsys.readouterr().out
    assert "of 200 states; goal reached by 0 of 1 seeds" in said and "tasker" in said
    found = json.loads((folder / "summary.json").read_text())
    assert found["goal_episode"] == [None] and found["novelty_correlation"] == [None] and found["zero_shot"] is None
    assert all(np.isfinite(row["eval/score"]) for row in rows(folder))


def test_no_environment_is_of_another_kind():
    trained = ["Catch-bsuite", "Breakout-MinAtar", "MountainCar-v0", *KINDS]
    assert {kind(name) for name in registry.ids()} == {kind(name) for name in trained}


def test_every_registered_id_is_tried_or_explained():
    import gymnax

    assert set(gymnax.registered_envs) - set(registry.ids()) == {"MNISTBandit-bsuite"}


def test_settings_of_the_environment_both_spellings():
    for words in (["--env.size", "20"], ["--env.size=20"]):
        arguments = run.parse(["--env", "DeepSea-bsuite", *words])
        assert arguments.config.env_args == (("size", "20"),)


def test_preset_sets_defaults_that_flags_override():
    arguments = run.parse(["--preset", "12m", "--model.units", "100", "--steps", "1e5"])
    model = arguments.config.model
    assert (model.deter, model.hidden, model.units, model.classes, model.depth) == (2048, 256, 100, 16, 16)
    assert arguments.config.steps == 100_000


def test_the_title_says_what_the_explorer_is_paid():
    words = ["--mode", "explore", "--env", "DeepSea-bsuite", "--env.size", "6"]
    assert run.parse(words).title == "DeepSea-bsuite (size 6), explore, preset tiny"
    paid = run.parse([*words, "--explorer-reward", "constant"]).title
    assert paid == "DeepSea-bsuite (size 6), explore (constant reward), preset tiny"


def test_where_and_how_wide_it_runs():
    plain = run.parse([])
    assert (plain.parallel, plain.memory, plain.is_distributed) == ("auto", 0.0, False)
    assert run.parse(["--parallel", "2e1", "--replay.online", "False"]).parallel == 20
    for words in (["--distributed"], ["--coordinator", "host:1"], ["--processes", "2"], ["--process", "0"]):
        assert run.parse(words).is_distributed


def test_help_gives_every_setting_its_words(capsys):
    with pytest.raises(SystemExit) as stopped:
        run.parse(["--help"])
    said = capsys.readouterr().out
    assert stopped.value.code == 0
    for word in (
        "--seeds",
        "--model.deter",
        "--hypers.intrinsic-floor",
        "--replay.online",
        "400m",
        "--env.NAME",
        "--parallel",
        "--distributed",
        "run.py compare RUN RUN",
        "run.py report RUN",
        "run.py eval RUN",
        "run.py video RUN",
    ):
        assert word in said


@pytest.mark.parametrize(("width", "boxes"), [(80, 1), (100, 1), (140, 2)])  # boxes side by side
def test_help_flows_at_every_width_and_begins_with_what_most_runs_set(capsys, monkeypatch, width, boxes):
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit):
        run.parse(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert "  python run.py envs [SUITE]: lists environments: what --env takes" in lines
    assert max(len(line.rstrip()) for line in lines) <= width
    wrapped, inside = 0, width // boxes - 2
    columns = [[line[i * (inside + 2) :][1 : inside + 1].ljust(inside) for line in lines] for i in range(boxes)]
    for line, successor in itertools.chain(*map(itertools.pairwise, columns)):
        # Beside the flags' 26 columns stand the words. A line of them is full where another follows.
        if successor[:26] == " " * 26:
            before, first = line[26:].rstrip(), re.split(r"(?<=[\w)][,/-])| ", successor[26:].rstrip())[0]
            if before and first and (line[:26].isspace() or (line[25] == " " and not before.isupper())):
                wrapped += 1
                assert 26 + len(before) + len(first) >= inside - 2, (line, successor)
    assert wrapped > 50
    boxed = itertools.dropwhile(lambda line: "-h, --help" not in line, lines)
    options = [flag for line in boxed for flag in re.findall(r"^  --([a-z][\w-]+)(?![\w.-])", line)]
    assert options[:5] == ["env", "mode", "preset", "steps", "seeds"]
    assert options[-4:] == ["distributed", "coordinator", "processes", "process"]
