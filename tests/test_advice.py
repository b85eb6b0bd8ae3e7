"""What is said at the end of a run that learned nothing, by hand-made metrics."""

import json
import math

import numpy as np
import pytest

from stages.report.advice import advice_line
from stages.results.read import read_runs
from tests.written import write_run

LN3 = math.log(3)
HEALTHY = {"replay_rew_extrinsic": [0.0, 0.1, 0.1], "ret_scale_extrinsic": [0.5] * 3, "ent": [1.0, 0.8, 0.3],
           "loss/recon": [4.0, 2.0, 1.0]}  # fmt: skip


def run_of(path, final=(0.0, -0.1), words=(), **changes):
    """A run of three points and two seeds, with these metrics of both."""
    path = write_run(path, words, training=[[0.0, 0.0]] * 3, final=final)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for name, values in (HEALTHY | changes).items():
        for row in rows:
            row[f"train/{name}"] = values[row["step"] // 100 - 1]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_runs([path])[0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, ""),
        ({"replay_rew_extrinsic": [0.0] * 3, "ret_scale_extrinsic": [0.0] * 3}, "was ever seen. Try: --mode mix"),
        # Less than a hundredth of 0.05, the floor of the tasker's advantages.
        ({"ret_scale_extrinsic": [0.5, 0.5, 0.00045]}, "advantages. Try: a smaller --hypers.task-floor"),
        ({"ret_scale_extrinsic": [0.5, 0.5, 0.00055]}, ""),
        ({"ent": [1.0, 1.0, 0.985 * LN3]}, "uniform for a third of the run. Try: a smaller --hypers.entropy"),
        ({"ent": [LN3, LN3, 0.97 * LN3]}, ""),
        ({"loss/recon": [4.0, 3.7, 3.9]}, "the reconstruction did not fall"),
        ({"loss/recon": [4.0, 3.5, 3.9]}, ""),
    ],
)  # fmt: skip
def test_one_line_says_why_and_what_to_try(tmp_path, changes, says):
    line = advice_line(run_of(tmp_path / "a", **changes), LN3)
    assert says in line and bool(line) == bool(says) and "\n" not in line


def test_a_run_that_explores_is_not_told_to_explore(tmp_path):
    run = run_of(tmp_path / "a", words=["--mode", "explore"], replay_rew_extrinsic=[0.0] * 3)
    assert "Try: more steps" in advice_line(run, LN3)


def test_a_run_that_learned_is_told_nothing(tmp_path):
    """Untrained agents scored 0 (of `write_run`)."""
    run = run_of(tmp_path / "a", final=(0.5, 0.25), replay_rew_extrinsic=[0.0] * 3)
    assert advice_line(run, LN3) == ""


def test_continuous_actions_have_no_largest_entropy(tmp_path):
    assert advice_line(run_of(tmp_path / "a", ent=[9.0] * 3), np.nan) == ""


def test_a_run_without_points_is_told_nothing(tmp_path):
    [run] = read_runs([write_run(tmp_path / "a", training=[], final=(0.0, 0.0))])
    assert advice_line(run, LN3) == ""
