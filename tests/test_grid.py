"""A sweep of settings: each trial equals its run alone, stopped and gone on with; its table and picture by hand."""

import csv
import json
import shutil

import numpy as np
import pytest

import run
from stages.commands.command import command
from stages.commands.grid import leave_grid
from stages.figures.grid import _draw_curves, _draw_setting, _scale, plot_grid
from stages.report.grid import grid_of, table_of
from stages.report.tables import NO_INTERVAL
from stages.results.read import read_runs
from stages.store.load import load_run
from stages.sweep import start
from tests.runs import CATCH, ask, at_chunk, rows
from tests.written import pixels, write_run

RATES = ["1e-3", "2e-2"]
WORDS = [*CATCH, "--logdir"]


@pytest.fixture(scope="module")
def swept(compiled_once, tmp_path_factory):
    """Two seeds of two learning rates side by side, stopped after its first chunk and gone on with."""
    folder = tmp_path_factory.mktemp("grid") / "sweep"
    words = [*WORDS, str(folder), "--sweep", f"lr={','.join(RATES)}"]
    with pytest.MonkeyPatch.context() as patch:
        at_chunk(patch, 1, lambda: ask(15))
        assert run.main(words) == 143
    assert json.loads((folder / "summary.json").read_text())["finished"] is False
    assert run.main(words) == 0
    return folder


@pytest.fixture(scope="module", params=RATES)
def rate(request):
    """One of the learning rates."""
    return request.param


@pytest.fixture(scope="module")
def alone(compiled_once, tmp_path_factory, rate):
    """The same run without a sweep."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert run.main([*WORDS, str(folder), "--hypers.lr", rate]) == 0
    return folder


def test_a_trial_equals_its_run_alone(swept, alone, rate):
    trial = swept / f"lr={rate}"
    ours, theirs = rows(trial), rows(alone)
    assert len(ours) == len(theirs) == 4
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for name in mine.keys() - {"fps/policy", "fps/train", "wall_seconds"}:
            same = mine[name] == other[name] or np.isclose(mine[name], other[name], rtol=1e-3, atol=1e-4)
            assert same, (name, mine[name], other[name])
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (trial, alone))
    assert ours["seeds"] == theirs["seeds"] and ours["finished"] and ours["settings"] == {"lr": rate}
    assert ours["score"] == theirs["score"] and ours["iqm"] == theirs["iqm"]
    configs = [json.loads((folder / "config.json").read_text()) for folder in (trial, alone)]
    assert [config.pop("logdir") for config in configs] == [str(trial), str(alone)]
    assert configs[0] == configs[1], "its config.json reproduces it"


def test_its_agents_are_loaded_from_the_sweeps_checkpoints(swept, alone, rate, tmp_path):
    (tmp_path / "latest").symlink_to(swept / f"lr={rate}")
    [ours], [theirs] = load_run(tmp_path / "latest").groups, load_run(alone).groups
    assert ours.seeds == theirs.seeds == [0, 1] and ours.step == theirs.step and ours.finished
    np.testing.assert_allclose(ours.hypers.lr, [float(rate)] * 2, rtol=1e-6)
    flat = lambda agent: np.asarray(agent.tasker.actor.head.out.weight)
    np.testing.assert_allclose(flat(ours.agent), flat(theirs.agent), rtol=1e-3, atol=1e-4)


def test_the_rates_show(swept):
    last = [rows(swept / f"lr={rate}")[-1]["train/loss/recon"] for rate in RATES]
    assert abs(last[0] - last[1]) > 1e-3


def test_a_sweep_leaves_its_table_picture_and_long_table(swept, capsys):
    with open(swept / "results.csv") as file:
        table = list(csv.DictReader(file))
    assert {row["hypers.lr"] for row in table} == {"0.001", "0.02"} and {row["seed"] for row in table} == {"0", "1"}
    assert len([row for row in table if row["kind"] == "final"]) == 4
    assert (swept / "sweep.png").stat().st_size > 5_000 and "| lr | IQM |" in (swept / "sweep.md").read_text()
    assert command(["compare", str(swept), "--out", str(swept / "compared")]) == 0
    said = capsys.readouterr().out
    assert "lr=1e-3" in said and "lr=2e-2" in said
    shutil.rmtree(swept / "compared")


def test_a_finished_sweep_is_finished_and_another_one_is_refused(swept, capsys):
    words = [*WORDS, str(swept), "--sweep"]
    assert run.main([*words, f"lr={','.join(RATES)}"]) == 0
    assert "is finished" in capsys.readouterr().out
    assert run.main([*words, "lr=1e-3,3e-3"]) == 2
    assert "--sweep ['lr=1e-3,2e-2'] (now ['lr=1e-3,3e-3'])" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["report"], ["eval"]])
def test_a_command_for_one_run_names_a_trial(swept, monkeypatch, capsys, words):
    monkeypatch.setattr(start, "start_jax", lambda: None)  # the tests' jax has started, with flags of its own
    assert command([*words, str(swept)]) == 2
    assert "name one, such as" in capsys.readouterr().err


# ---- table and picture by hand --------------------------------------------------------------------------------------


def write_grid(folder, choices, scores):
    """Finished runs of these settings and scores, as a sweep would leave them."""
    for settings, final in zip(choices, scores, strict=True):
        name = ",".join(f"{key}={value}" for key, value in settings.items())
        words = [word for key, value in settings.items() for word in (f"--hypers.{key.replace('_', '-')}", value)]
        write_run(folder / name, words, final=final, settings=settings)
    return read_runs([folder])


def test_the_table_has_the_best_trial_first(tmp_path):
    choices = [{"lr": "1e-3"}, {"lr": "1e-2"}, {"lr": "1e-4"}]
    table = table_of(grid_of(write_grid(tmp_path, choices, [(0.5, 0.7), (float("nan"), 1.0), (-1.0, -1.0)])))
    assert table.columns == ["lr", "IQM", "95 % interval", "worst", "seeds"]
    assert table.rows == [
        ["1e-2", "1.00", "-", "1.00", "1"],
        ["1e-3", "0.60", "-", "0.50", "2"],
        ["1e-4", "-1.00", "-", "-1.00", "2"],
    ]
    assert table.notes == [NO_INTERVAL]
    five = write_run(tmp_path / "five", training=[[0.0] * 5], final=(0.5,) * 5, settings={"lr": "1"})
    assert table_of(grid_of(read_runs([five]))).rows == [["1", "0.50", "0.50 to 0.50", "0.50", "5"]]


def test_the_table_says_what_was_explored(tmp_path):
    counted = {"states": 21, "visited_states": [9, 12], "novelty_correlation": [-0.5, -0.75]}
    counted |= {"goal_episode": [None, 8], "solved_episode": [30, 40]}
    write_run(tmp_path / "lr=1", ["--hypers.lr", "1"], final=(0.0, 1.0), settings={"lr": "1"}, **counted)
    table = table_of(grid_of(read_runs([tmp_path])))
    assert table.columns[-4:] == ["states", "goal", "solved", "rank corr."]
    assert table.rows[0][-4:] == ["10.5\nof 21", "by 1 of 2\nmedian not yet", "by 2 of 2\nepisode 35", "-0.62"]


def test_the_title_is_of_the_trials_and_not_of_a_run_beside_them(tmp_path):
    write_run(tmp_path / "a", ["--mode", "random"])
    write_grid(tmp_path, [{"lr": "1e-3"}], [(1.0, 1.0)])
    runs = read_runs([tmp_path])
    assert runs[0].settings["config.mode"] == "random"
    assert grid_of(runs).title == "Catch-bsuite, task: final scores after 200 steps a seed"


@pytest.mark.parametrize(
    ("trials", "title"),
    [
        ([["--mode", "explore"], ["--mode", "explore", "--explorer-reward", "constant"]], "Catch-bsuite, explore: "),
        ([["--mode", "explore", "--explorer-reward", "rnd"]] * 2, "Catch-bsuite, explore (rnd reward): "),
        ([["--mode", "task"], ["--mode", "random"]], "Catch-bsuite: "),
    ],
)
def test_the_title_has_what_was_not_swept(tmp_path, trials, title):
    for name, words in zip("ab", trials, strict=True):
        write_run(tmp_path / name, words, settings={"trial": name})
    assert grid_of(read_runs([tmp_path])).title.startswith(title)


def test_what_is_not_finished_is_said(tmp_path):
    write_grid(tmp_path, [{"lr": "1e-3"}], [(0.5, 0.7)])
    write_run(tmp_path / "lr=1e-2", ["--hypers.lr", "1e-2"], final=None)
    assert table_of(grid_of(read_runs([tmp_path]))).notes == ["not finished: lr=1e-2", NO_INTERVAL]


MAP = [{"lr": rate, "agc": clip} for rate in ("1e-4", "1e-3", "1e-2") for clip in ("0.1", "0.3")]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("choices", [MAP, MAP[:5], [{"lr": r["lr"]} for r in MAP[::2]], MAP[:1]])
def test_pictures_are_drawn(tmp_path, choices):
    runs = write_grid(tmp_path, choices, [(0.1 * i, 0.2 * i) for i in range(len(choices))])
    plot_grid(tmp_path / "sweep.png", grid_of(runs))
    image = pixels(tmp_path / "sweep.png")
    for border in (image[:3], image[-3:], image[:, :3], image[:, -3:]):
        assert (border > 0.99).all(), "something runs out of the picture"
    assert (image < 0.5).mean() > 0.002


def test_colours_begin_at_the_untrained_score(tmp_path):
    """Untrained 0 (of `write_run`), trials 0.5 and 1: halfway and the end, not the two ends."""
    grid = grid_of(write_grid(tmp_path, [{"lr": "1e-3"}, {"lr": "1e-2"}], [(0.5, 0.5), (1.0, 1.0)]))
    assert grid.untrained == 0.0
    assert [float(_scale(grid)(cell.summary.iqm)) for cell in grid.cells] == [1.0, 0.5]


@pytest.mark.parametrize(
    ("finals", "colours"),
    [
        ([(-1.0, -1.0), (-4.0, -4.0)], [0.75, 0.0]),  # untrained, 0, is better than both
        ([(1.0, 1.0), (-1.0, -1.0)], [1.0, 0.0]),
        ([(0.0, 0.0), (0.0, 0.0)], [0.0, 0.0]),
    ],
)
def test_trials_that_are_worse_than_untrained_have_colours_of_their_own(tmp_path, finals, colours):
    grid = grid_of(write_grid(tmp_path, [{"lr": "1e-3"}, {"lr": "1e-2"}], finals))
    assert [float(_scale(grid)(cell.summary.iqm)) for cell in grid.cells] == colours


@pytest.mark.parametrize(("values", "whole"), [(("3", "4", "5"), True), (("3.1", "3.2", "3.3"), False)])
def test_whole_numbers_have_no_fractions_on_their_axis(tmp_path, values, whole):
    from matplotlib.figure import Figure

    choices = [{"warmup": value} for value in values]
    grid = grid_of(write_grid(tmp_path, choices, [(0.1, 0.1), (0.2, 0.2), (0.3, 0.3)]))
    axes = Figure().subplots()
    _draw_setting(axes, grid, "warmup")
    ticks = axes.get_xticks()
    assert len(ticks) >= 3 and bool((ticks % 1 == 0).all()) == whole


def test_every_trial_has_a_curve(tmp_path):
    from matplotlib.figure import Figure

    grid = grid_of(write_grid(tmp_path, [{"lr": "1e-3"}, {"lr": "1e-2"}], [(0.5, 0.5), (1.0, 1.0)]))
    axes = Figure().subplots()
    _draw_curves(axes, grid, _scale(grid))
    labels = axes.get_legend_handles_labels()[1]
    assert labels == ["lr=1e-2: 1", "lr=1e-3: 0.5", "untrained"]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [0.5, 2.5])  # means of two seeds' scores


def test_compare_draws_a_sweep_in_other_formats(tmp_path):
    write_grid(tmp_path / "sweep", MAP[:2], [(0.5, 0.5), (1.0, 1.0)])
    out = tmp_path / "out"
    assert command(["compare", str(tmp_path / "sweep"), "--out", str(out), "--format", "svg"]) == 0
    assert {"compare.svg", "sweep.svg"} < {path.name for path in out.iterdir()}
    write_run(tmp_path / "alone")
    assert command(["compare", str(tmp_path / "alone"), "--out", str(tmp_path / "other")]) == 0
    assert not (tmp_path / "other" / "sweep.png").exists()


def test_a_sweep_with_nothing_finished_still_leaves_its_files(tmp_path, capsys):
    write_run(tmp_path / "lr=1e-2", ["--hypers.lr", "1e-2"], final=None)
    leave_grid(tmp_path)
    assert "not finished: lr=1e-2" in capsys.readouterr().out
