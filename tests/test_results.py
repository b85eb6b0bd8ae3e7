"""Runs read again and compared: run folders written by hand, numbers by hand."""

import functools
import io
import json
import math
import operator
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import run as program
from envs import envelope_suite, registry
from stages.commands.command import command
from stages.figures.comparison import _draw_band, _rows, group_colours
from stages.report.compare import compare, described, differing_settings
from stages.report.export import write_scores, write_table
from stages.report.grid import grid_of
from stages.report.tables import NO_INTERVAL, markdown, print_tables, tables
from stages.results.read import TRAINING, read_runs
from stages.store.files import RunFolderError
from tests.written import COUNTED, listed, write_run

NAN = math.nan
# ---- read ----------------------------------------------------------------------------------------------------------


def test_a_run_is_read_as_it_was_written(tmp_path):
    words = ["--env", "DeepSea-bsuite", "--env.size", "6", "--adapt-steps", "50", "--mode", "explore"]
    [run] = read_runs([write_run(tmp_path / "a", words, evaluation=[[0.25, NAN], [0.5, 2.0]])])
    assert (run.name, run.env, run.scale) == ("a", "DeepSea-bsuite (size 6)", (0.0, 0.99))
    assert (run.seeds, run.steps.tolist(), run.phases) == ([3, 4], [100, 200], ["explore", "explore"])
    assert (run.finished, run.done, run.planned, run.adapt_step) == (True, 200, 250, None)
    np.testing.assert_array_equal(run.metrics["episode/score"], [[0, 2], [1, 3]])
    np.testing.assert_array_equal(run.metrics["eval/score"], [[0.25, 0.5], [NAN, 2.0]])
    assert run.per_seed("score").tolist() == [1.0, 2.0] and run.per_seed("goal_episode").size == 0


def test_a_score_is_carried_forward_but_not_to_where_a_seed_has_not_been(tmp_path):
    training = [[NAN, 1.0, 5.0], [2.0, NAN, NAN], [NAN, 3.0, None]]
    [run] = read_runs([write_run(tmp_path / "a", training=training, final=None)])
    np.testing.assert_array_equal(run.curve(TRAINING), [[NAN, 2, 2], [1, 1, 3], [5, 5, NAN]])
    assert not run.finished and np.isnan(run.curve("eval/score")).all()


def test_a_line_that_is_written_just_now_is_left_out(tmp_path):
    path = write_run(tmp_path / "a", final=None)
    with open(path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 300, "se')
    assert read_runs([path])[0].steps.tolist() == [100, 200]


def test_the_step_where_adapting_began_is_the_last_of_exploring(tmp_path):
    path = write_run(tmp_path / "a", training=[[0.0]] * 3, final=(1.0,))
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join([lines[0].replace('"task"', '"explore"'), *lines[1:]]))
    assert read_runs([path])[0].adapt_step == 100


def test_a_run_in_rounds_that_is_at_work_has_the_numbers_of_the_present_round(tmp_path):
    present = {"seeds": [4], "untrained": [0.0], "goal_episode": [8], "solved_episode": [None]}
    present |= {"states": 21, "visited_states": [12], "novelty_correlation": [-0.5]}
    path = write_run(tmp_path / "run", final=(0.5,), **present | {"finished": False})
    (run,) = read_runs([path])
    assert run.seeds == [3, 4] and not run.finished
    np.testing.assert_array_equal(run.per_seed("goal_episode"), [NAN, 8])
    np.testing.assert_array_equal(run.per_seed("solved_episode"), [NAN, NAN])
    assert run.per_seed("zero_shot").size == 0
    assert command(["report", str(path)]) == 0 and (path / "report.html").exists()
    (line,) = compare([run]).groups[0].lines
    assert line.novelty["goal_seeds"] == 1 and line.novelty["seeds"] == 2


def test_names_are_as_long_as_it_takes(tmp_path):
    runs = [write_run(tmp_path / name) for name in ("x/a", "y/a", "y/b")]
    assert [run.name for run in read_runs(runs)] == ["x/a", "y/a", "y/b"]
    assert [run.name for run in read_runs(runs[1:])] == ["a", "b"]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: [path, path], "twice"),
        (lambda path: [path.parent, path], "twice"),
        (lambda path: [path.parent / "empty"], "config.json is missing"),
        (lambda path: [path / "none"], "config.json is missing"),
        (lambda path: [path / "config.json"], "is missing"),
        (lambda path: [], "no run is named"),
        (lambda path: (path / "config.json").write_text("{") and [path], "cannot read"),
        (lambda path: (path / "config.json").write_text("{}") and [path], "it lacks 'seed_start'"),
        (lambda path: (path / "summary.json").write_text("[") and [path], "cannot read"),
        (lambda path: (path / "metrics.jsonl").write_text("{}\n\n") and [path], "cannot read"),
    ],
)
def test_what_is_no_run_is_said_in_one_line(tmp_path, spoil, says):
    path = write_run(tmp_path / "a")
    with pytest.raises(RunFolderError, match=says) as error:
        read_runs(spoil(path))
    assert "\n" not in str(error.value)


WRONG = [None, True, -1, 1.5, 1e308, 10**30, "x", [], [[]], [None], ["x"], [1, 2, 3], {}, {"x": "x"}, {"x": [1]}]


def paths_of(value, prefix=()):
    """The places in a value of JSON: names and, of a list, its first index."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    return [found for key, inner in items for found in ((*prefix, key), *paths_of(inner, (*prefix, key)))]


def edited(value, path, new):
    copied = json.loads(json.dumps(value))
    functools.reduce(operator.getitem, path[:-1], copied)[path[-1]] = new
    return copied


@pytest.mark.parametrize("name", ["config.json", "summary.json", "metrics.jsonl"])
def test_whatever_stands_in_a_file_it_is_read_or_refused_in_one_line(tmp_path, name):
    """Every value of every file in turn, of another type or size."""
    more = {"seeds": [3, 4], "diverged": {"4": 10}, "events": {"a": [0.5, 0.5]}, "crafter_score": [1.0, None]}
    more |= {"wall_seconds": 3.0, "compile_seconds": 1.0, "peak_memory_mb": 9.0, "settings": {"lr": "1"}}
    path = write_run(tmp_path / "a", ["--env.rows", "5"], evaluation=[[0.25, NAN], [0.5, 2.0]], **COUNTED, **more)
    text = (path / name).read_text()
    first, _, rest = text.partition("\n") if name == "metrics.jsonl" else (text, "", "")
    whole, refused = json.loads(first), 0
    assert compare(read_runs([path])).groups
    places = paths_of(whole)
    values = [json.dumps(edited(whole, place, new)) for i, place in enumerate(places) for new in WRONG[i % 3 :: 3]]
    values += [*map(json.dumps, WRONG), "[" * 100_000, '{"a":' * 500 + "1" + "}" * 500, "\\udcff", "{", ""]
    for text in values:
        (path / name).write_text(f"{text}\n{rest}")
        try:
            tables(compare(read_runs([path])))
            grid_of(read_runs([path]))
        except RunFolderError as error:
            refused += 1
            assert "\n" not in str(error) and str(path) in str(error), text
    assert refused > len(values) / 3


@pytest.mark.parametrize("score", [1e308, -1.7e308])
def test_numbers_that_no_run_can_leave_are_refused(tmp_path, capsys, score):
    path = write_run(tmp_path / "a", training=[[score, 0.0]])
    assert command(["report", str(path)]) == 2
    assert "metrics.jsonl', line 1 (Expected `float`" in capsys.readouterr().err


def test_a_folder_may_have_a_name_of_any_bytes(tmp_path, capsys):
    path = write_run(tmp_path / os.fsdecode(b"odd\xff"))
    assert command(["report", str(path)]) == 0 and (path / "report.html").exists()
    assert command(["compare", str(path), "--out", str(tmp_path / "out")]) == 0
    assert "odd?" in (tmp_path / "out" / "results.csv").read_text()


# ---- compare -------------------------------------------------------------------------------------------------------


def test_two_runs_side_by_side(tmp_path):
    counted = {name: [*value, None] if isinstance(value, list) else value for name, value in COUNTED.items()}
    a = write_run(tmp_path / "a", final=(0.5, 1.0, NAN), training=[[0.0] * 3], **counted)
    b = write_run(tmp_path / "b", ["--replay.train-ratio", "32"], final=(-1.0, 0.0, 0.5, 1.0), training=[[0.0] * 4])
    found = compare(read_runs([a, b]))
    [group] = found.groups
    assert found.differing == ["config.replay.train_ratio"] and not found.across_envs
    assert described(group.runs[1], found.differing) == "--replay.train-ratio 32"
    first, second = group.lines
    assert (first.seeds, first.estimates["mean"].value, first.estimates["iqm"].value) == (2, 0.75, 0.75)
    assert (second.seeds, second.estimates["mean"].value, second.estimates["iqm"].value) == (4, 0.125, 0.25)
    # Catch is between -1 and 1: shares are 0.75 and 1, and 0, 0.5, 0.75 and 1.
    assert first.estimates["optimality_gap"].value == pytest.approx(0.125)
    assert second.estimates["optimality_gap"].value == pytest.approx(1.75 / 4)
    # One of two seeds is no median of them: the other may never come.
    assert (first.novelty["visited_states"], first.novelty["goal_seeds"]) == (10.5, 1)
    assert "goal_episode" not in first.novelty and first.novelty["solved_seeds"] == 0 and not second.novelty
    # 0.5 over four: 2 + 1/2, 1.0 over them: 3 + 1/2.
    assert group.pairs[0].probability.value == 6 / 8
    assert group.notes == ["a: no finite final score of seeds 5: they are left out"]


def test_what_keeps_runs_from_being_compared_is_said(tmp_path):
    a = write_run(tmp_path / "a", training=[[NAN, 1.0]])
    b = write_run(tmp_path / "b", final=None)
    c = write_run(tmp_path / "c", training=[], final=(1.0,))
    runs = read_runs([a, b, c])
    [group] = compare(runs).groups
    assert group.notes == [
        "final scores are after different numbers of steps: a 100, c 0",
        "a: no episode with a finite score of seeds 3 in training",
        "b is not finished (200 of 200 steps): no final score of it",
        "c has no line in its metrics.jsonl: no curve of it",
    ]
    assert [(pair.ours, pair.theirs) for pair in group.pairs] == [("a", "c")]
    assert group.lines[1].seeds == 0 and not group.lines[1].estimates


def test_a_seed_that_diverged_is_said_and_its_curve_ends(tmp_path):
    path = write_run(tmp_path / "a", training=[[1.0, 2.0], [NAN, NAN]], final=(NAN, 2.0))
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line["diverged"] = 150 if line["step"] == 200 and line["seed"] == 3 else None
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    [run] = read_runs([path])
    np.testing.assert_array_equal(run.curve(TRAINING), [[1.0, NAN], [2.0, 2.0]])
    assert compare([run]).groups[0].notes == [
        "a: seeds diverged: 3 at step 150",
        "a: no finite final score of seeds 3: they are left out",
    ]


def test_curves_are_of_evaluation_only_if_all_have_it(tmp_path):
    a = write_run(tmp_path / "a", evaluation=[[1.0, 2.0]] * 2)
    b = write_run(tmp_path / "b")
    assert compare(read_runs([a])).groups[0].curve == "eval/score"
    assert compare(read_runs([a, b])).groups[0].curve == "episode/score"


def test_over_environments(tmp_path):
    """Two ways of learning in two environments whose scale is known and one where it is not."""
    sizes = {"Catch-bsuite": ((1.0, 0.0), (0.0, -1.0)), "CartPole-v1": ((500.0, 250.0), (250.0, 0.0)),
             "Pendulum-v1": ((-100.0, -200.0), (-300.0, -50.0))}  # fmt: skip
    paths = []
    for env, finals in sizes.items():
        for mode, final in zip(("mix", "task"), finals, strict=True):
            # Of different lengths: that is not another way of learning.
            words = ["--env", env, "--mode", mode, *(["--steps", "300"] if env == "CartPole-v1" else [])]
            paths.append(write_run(tmp_path / f"{env}-{mode}", words, final=final))
    found = compare(read_runs(paths))
    assert [group.env for group in found.groups] == list(sizes)
    mix, task = found.across_envs
    assert (mix.name, task.name, mix.seeds) == ("--mode mix", "--mode task", 6)
    # Shares of the scale: 1, 0.5 and 1, 0.5 for one, 0.5, 0 and 0.5, 0 for the other.
    assert mix.estimates["mean"].value == 0.75 and mix.estimates["optimality_gap"].value == 0.25
    assert task.estimates["iqm"].value == 0.25 and task.estimates["median"].value == 0.25
    [pair] = found.pairs_across_envs
    # Catch and CartPole: 3.5 of 4; Pendulum: each of mix's is between task's two: 2 of 4.
    assert pair.probability.value == pytest.approx((0.875 + 0.875 + 0.5) / 3)
    assert found.notes == ["scores over environments are without Pendulum-v1, whose scale is not known"]
    assert "optimality_gap" in found.groups[0].lines[0].estimates
    assert math.isnan(found.groups[2].lines[0].estimates["optimality_gap"].value)


def test_what_is_learned_in_the_same_way_has_one_colour_in_all_environments(tmp_path):
    """However long it took, and in whatever order; two runs of one way in one environment can be told apart."""
    catch = [write_run(tmp_path / f"catch-{mode}", ["--mode", mode]) for mode in ("task", "mix")]
    again = write_run(tmp_path / "catch-again", ["--mode", "mix", "--steps", "300"])
    deep = ["--env", "DeepSea-bsuite", "--steps", "400", "--mode"]
    others = [write_run(tmp_path / f"deep-{mode}", [*deep, mode]) for mode in ("mix", "random", "task")]
    colours = group_colours(compare(read_runs([*catch, again, *others])).groups)
    assert colours["catch-task"] == colours["deep-task"] and colours["catch-mix"] == colours["deep-mix"]
    assert len({colours[name] for name in ("catch-task", "catch-mix", "catch-again", "deep-random")}) == 4


def test_colours_come_again_in_another_environment_before_they_do_in_one(tmp_path):
    catch = [write_run(tmp_path / f"catch-{i}", ["--horizon", str(i)]) for i in range(1, 8)]
    deep = [write_run(tmp_path / f"deep-{i}", ["--env", "DeepSea-bsuite", "--horizon", str(i)]) for i in range(5, 11)]
    colours = group_colours(compare(read_runs([*catch, *deep])).groups)
    assert len({colours[f"catch-{i}"] for i in range(1, 8)}) == 7
    assert len({colours[f"deep-{i}"] for i in range(5, 11)}) == 6
    assert all(colours[f"deep-{i}"] == colours[f"catch-{i}"] for i in (5, 6, 7))


def test_environments_without_a_way_in_common(tmp_path):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", ["--env", "CartPole-v1", "--mode", "mix"])
    found = compare(read_runs([a, b]))
    assert (
        not found.across_envs and not found.pairs_across_envs and "nothing is said over environments" in found.notes[0]
    )


def test_lengths_tell_ways_apart_only_where_they_were_varied(tmp_path):
    paths = [write_run(tmp_path / "a"), write_run(tmp_path / "b", ["--env", "CartPole-v1", "--steps", "300"])]
    assert [line.name for line in compare(read_runs(paths)).across_envs] == ["all runs"]
    paths.append(write_run(tmp_path / "c", ["--steps", "400"]))
    assert not compare(read_runs(paths)).across_envs, "none of Catch's two lengths is CartPole's"


def test_other_versions_are_said(tmp_path):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    (b / "config.json").write_text((b / "config.json").read_text().replace('"1.2"', '"1.3"'))
    assert compare(read_runs([a, b])).notes == ["the runs were made with different versions of jax: 1.2, 1.3"]


def test_settings_that_came_after_a_run_were_off_in_it(tmp_path):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    c = write_run(tmp_path / "c", ["--intrinsic-norm", "advantages"])
    old = json.loads((a / "config.json").read_text())
    assert old["config"].pop("intrinsic_norm") == "returns" and old["hypers"].pop("policy_unimix") == 0
    (a / "config.json").write_text(json.dumps(old))
    assert differing_settings(read_runs([a, b])) == []
    assert differing_settings(read_runs([a, c])) == ["config.intrinsic_norm"]
    old["config"]["ensemble"]["trunk"] = 1
    (a / "config.json").write_text(json.dumps(old))
    assert differing_settings(read_runs([a, b])) == ["config.ensemble.trunk"]


# ---- tables and files ----------------------------------------------------------------------------------------------


def test_table_fits_into_80_columns_with_long_names_and_large_scores(tmp_path):
    from rich.console import Console

    names = ["a-very-long-name-of-a-run-in-a-folder-of-its-own", "b[bold]"]
    counted: dict = {name: values * 3 for name, values in COUNTED.items() if name != "states"}
    counted |= {"states": 21, "goal_episode": [12, 8] * 3, "training": [[0.0] * 6]}
    paths = [write_run(tmp_path / name, final=(-12345.678, 9876.5) * 3, **counted) for name in names]
    stream = io.StringIO()
    found = compare(read_runs(paths))
    print_tables(tables(found), Console(file=stream, width=80, color_system=None))
    said = stream.getvalue()
    assert max(map(len, said.splitlines())) <= 80
    assert (
        "b[bold]" in said
        and "-12,346 to" in said
        and "of 21 " in said
        and "by 6 of 6 " in said
        and "episode 10 " in said
        and "by 0 of 6 " in said
    )


def test_markdown_by_hand(tmp_path):
    found = compare(read_runs([write_run(tmp_path / "a|b", final=(0.5, 0.5))]))
    assert markdown(tables(found)).splitlines() == [
        "### Catch-bsuite: final scores after 200 steps a seed",
        "",
        "| run | IQM | median | mean | optimality<br>gap |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| a\\|b<br>2 seeds | 0.50 | 0.50 | 0.50 | 0.25 |",
        "",
        f"- {NO_INTERVAL}",
    ]
    five = compare(read_runs([write_run(tmp_path / "five", training=[[0.0] * 5] * 2, final=(0.5,) * 5)]))
    half, quarter = "0.50<br>0.50 to 0.50", "0.25<br>0.25 to 0.25"
    assert markdown(tables(five)).splitlines()[-1] == f"| five<br>5 seeds | {half} | {half} | {half} | {quarter} |"
    assert len(tables(found)) == 1
    found = compare(read_runs([write_run(tmp_path / "a"), write_run(tmp_path / "b", training=[[0.0, 0.0]])]))
    assert tables(found)[0].title == "Catch-bsuite: final scores", "they are not after the same number of steps"


def test_one_long_table(tmp_path):
    a = write_run(tmp_path / "a", training=[[0.0, NAN]], evaluation=[[0.5, -0.5]], zero_shot=[0.1, None])
    b = write_run(tmp_path / "b", ["--mode", "mix", "--env", "CartPole-v1"], training=[[7.0]], final=None)
    found = compare(read_runs([a, b]))
    write_table(tmp_path / "results.csv", found.runs, found.differing)
    rows = listed(tmp_path / "results.csv")
    assert list(rows[0]) == ["run", "env", "mode", "seed", "phase", "step", "kind", "score"]
    short = [(row["run"], row["mode"], row["seed"], row["step"], row["kind"], row["score"]) for row in rows]
    assert short == [
        ("a", "task", "3", "100", "training", "0.0"),
        ("a", "task", "3", "100", "evaluation", "0.5"),
        ("a", "task", "4", "100", "evaluation", "-0.5"),
        ("a", "task", "3", "0", "untrained", "0.0"),
        ("a", "task", "4", "0", "untrained", "0.0"),
        ("a", "task", "3", "100", "zero_shot", "0.1"),
        ("a", "task", "3", "100", "final", "1.0"),
        ("a", "task", "4", "100", "final", "2.0"),
        ("b", "mix", "3", "100", "training", "7.0"),
    ]
    assert rows[-1]["env"] == "CartPole-v1" and rows[-1]["phase"] == "mix"


def test_pandas_reads_the_table_and_the_metrics(tmp_path):
    pandas = pytest.importorskip("pandas")
    path = write_run(tmp_path / "a", training=[[NAN, 1.5], [math.inf, 2.5]])
    frame = pandas.read_json(path / "metrics.jsonl", lines=True)
    assert frame["seed"].tolist() == [3, 4, 3, 4] and frame["phase"].tolist() == ["task"] * 4
    np.testing.assert_array_equal(frame["episode/score"].astype(float), [NAN, 1.5, NAN, 2.5])
    write_table(tmp_path / "results.csv", read_runs([path]), [])
    means = pandas.read_csv(tmp_path / "results.csv").groupby("kind")["score"].mean()
    assert means.to_dict() == {"training": 2.0, "untrained": 0.0, "final": 1.5}


def test_scores_as_dreamerv3s_plotting_script_wants_them(tmp_path):
    path = write_run(tmp_path / "my-run", ["--env", "DeepSea-bsuite", "--env.size", "6"],
                     training=[[0.25, NAN], [0.5, NAN]], evaluation=[[1.0, 2.0], [NAN, 2.0]])  # fmt: skip
    write_scores(tmp_path / "scores", read_runs([path]))
    [folder] = (tmp_path / "scores").iterdir()  # its second seed has no score
    _, task, method, seed = folder.name.split("-")  # as plot.py does
    assert (task, method, seed) == ("env_DeepSea_bsuite_size_6", "my_run", "3")
    assert [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()] == [
        {"step": 100, "episode/score": 0.25, "eval/score": 1.0},
        {"step": 200, "episode/score": 0.5},
    ]


# ---- the command ---------------------------------------------------------------------------------------------------


def png_size(path):
    """Width and height, from a PNG's header."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


@pytest.mark.filterwarnings("error")
def test_compare_leaves_its_files(tmp_path, capsys):
    a = write_run(tmp_path / "a", evaluation=[[0.0, 1.0]] * 2, **COUNTED)
    b = write_run(tmp_path / "b", ["--mode", "mix"], final=None, training=[[NAN, NAN]])
    c = write_run(tmp_path / "c", ["--env", "CartPole-v1"], training=[])
    d = write_run(tmp_path / "d", ["--env", "CartPole-v1", "--mode", "mix"], final=(NAN, NAN))
    assert command(["compare", *map(str, (a, b, c, d)), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "Catch-bsuite: final scores" in said and "b is not finished" in said
    names = {"compare.png", "compare.md", "compare.json", "results.csv", "scores"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    width, height = png_size(tmp_path / "out" / "compare.png")
    assert width == 1245 and height > 1500, "two rows for each of two environments"
    saved = json.loads((tmp_path / "out" / "compare.json").read_text())
    runs = saved["environments"]["Catch-bsuite"]["runs"]
    assert runs["a"]["score"] == [1.0, 2.0] and runs["a"]["estimates"]["iqm"]["value"] == 1.5
    assert runs["a"]["goal_episode"] == [None, 8] and "goal_episode" not in runs["b"] and "path" not in runs["a"]
    assert runs["b"]["settings"] == {"config.mode": "mix"} and runs["b"]["estimates"] == {"seeds": 0}
    assert (runs["b"]["finished"], runs["b"]["steps"], runs["b"]["score"]) == (False, 100, [])


def test_a_run_counts_once_however_many_links_lead_to_it(tmp_path):
    a = write_run(tmp_path / "runs" / "a")
    (tmp_path / "runs" / "latest").symlink_to(a)
    (tmp_path / "runs" / "all").symlink_to(tmp_path / "runs")
    b = write_run(tmp_path / "elsewhere" / "b")
    (tmp_path / "runs" / "b").symlink_to(b)
    assert [run.path for run in read_runs([tmp_path / "runs"])] == sorted([a, b])
    with pytest.raises(RunFolderError, match="is given twice"):
        read_runs([a, tmp_path / "runs" / "latest"])


@pytest.mark.parametrize(("kind", "head"), [("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_pictures_in_other_formats(tmp_path, kind, head):
    a = write_run(tmp_path / "a", **COUNTED)
    assert command(["compare", str(a), "--out", str(tmp_path / "out"), "--format", kind]) == 0
    written = (tmp_path / "out" / f"compare.{kind}").read_bytes()
    assert written.startswith(head) and not (tmp_path / "out" / "compare.png").exists()
    assert command(["compare", str(a), "--out", str(tmp_path / "again"), "--format", kind]) == 0
    assert written == (tmp_path / "again" / f"compare.{kind}").read_bytes(), "the same runs, the same file"


def test_few_seeds_are_drawn_and_have_no_band(tmp_path):
    """Of four seeds a curve each and their mean; of five a band and no curve each."""
    from matplotlib.figure import Figure

    drawn = {}
    for seeds in (4, 5):
        axes, training = Figure().subplots(), [[0.0] * seeds] * 2
        [run] = read_runs([write_run(tmp_path / str(seeds), training=training, final=None)])
        _draw_band(axes, run, run.curve(TRAINING), "#000000")
        drawn[seeds] = len(axes.lines), len(axes.collections)
    assert drawn == {4: (5, 0), 5: (1, 1)}


def test_the_probability_of_improvement_is_drawn_of_three_runs(tmp_path):
    paths = [write_run(tmp_path / name, ["--horizon", str(i + 3)]) for i, name in enumerate("abc")]
    panels = [
        [len(panels) for _, panels in _rows(group, group_colours([group]))]
        for group in (compare(read_runs(paths[:2])).groups[0], compare(read_runs(paths)).groups[0])
    ]
    assert panels == [[1, 1], [1, 2]]


def test_compare_says_what_is_wrong_in_one_line(tmp_path, capsys):
    a = write_run(tmp_path / "a")
    (tmp_path / "file").write_text("")
    for words in ([str(tmp_path / "none")], [str(a), "--out", str(tmp_path / "file")]):
        assert command(["compare", *words]) == 2
        said = capsys.readouterr()
        assert said.err.startswith("run.py: error: ") and said.err.count("\n") == 1 and "--logdir" not in said.err
    assert "--out" in said.err


def test_environments_are_listed(capsys):
    assert command(["envs"]) == 0
    *names, rest = capsys.readouterr().out.splitlines()
    assert names == list(registry.ids()) and "DeepSea-bsuite" in names and "navix, craftax" in rest
    assert command(["envs", "navx"]) == 2
    assert "error: navx: no suite is named 'navx'; did you mean navix" in capsys.readouterr().err
    assert command(["envs", "gymnax"]) == 0
    assert capsys.readouterr().out.splitlines() == names


def test_a_suites_environments_are_listed(capsys, monkeypatch):
    monkeypatch.setattr(envelope_suite, "suite_ids", lambda suite: (f"{suite}::A", f"{suite}::B"))
    assert command(["envs", "brax"]) == 0
    assert capsys.readouterr().out == "brax::A\nbrax::B\n"


def test_other_words_are_no_command():
    assert command([]) is None and command(["--seeds", "3"]) is None


def test_the_program_knows_it_and_a_pipe_may_close(tmp_path):
    root = Path(program.__file__).parent
    a = write_run(tmp_path / "a")
    words = [sys.executable, "run.py", "compare", str(a), "--out", str(tmp_path / "out")]
    ended = subprocess.run(f"{' '.join(words)} | head -1; exit ${{PIPESTATUS[0]}}", shell=True, cwd=root,
                           executable="/bin/bash", capture_output=True, text=True)  # fmt: skip
    assert ended.returncode == 0 and not ended.stderr and (tmp_path / "out" / "compare.png").exists()


def test_compare_leaves_its_files_where_nobody_reads(tmp_path):
    a = write_run(tmp_path / "a")
    reader, output = os.pipe()
    os.close(reader)
    words = [sys.executable, "run.py", "compare", str(a), "--out", str(tmp_path / "out")]
    try:
        root = Path(program.__file__).parent
        ended = subprocess.run(words, cwd=root, stdout=output, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(output)
    assert ended.returncode == 0 and not ended.stderr and (tmp_path / "out" / "compare.png").exists()
