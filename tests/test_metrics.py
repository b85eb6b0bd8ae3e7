"""The table of metrics: complete for what runs write, without a line that no run has, and as docs/metrics.md has it."""

import json
from pathlib import Path

import pytest

from stages.results.metrics import METRICS, SUMMARY, find_metric, label_of, metrics_page
from tests.runs import MIXED, ROUNDS, rows

ROOT = Path(__file__).parents[1]


def test_the_page_is_the_table():
    assert (ROOT / "docs" / "metrics.md").read_text() == metrics_page()


@pytest.mark.parametrize(
    ("key", "line", "label"),
    [
        (
            "train/explorer_ret_scale_disagreement", "train/[explorer_]ret_scale_NAME",
            "explorer: divisor of advantages, disagreement",
        ),
        ("train/ret_extrinsic", "train/[explorer_]ret_NAME", "return, extrinsic"),
        ("train/explorer_replay_rew_rnd", "train/[explorer_]replay_rew_NAME", "explorer: replayed reward, rnd"),
        ("train/recon_compass", "train/recon_NAME", "reconstruction of compass"),
        ("train/loss/explorer_policy", "train/loss/[explorer_]policy", "explorer: actor's loss"),
        ("event/door_open", "event/NAME", "episodes with door_open"),
        ("episode/score", "episode/score", "training score"),
    ],
)  # fmt: skip
def test_a_key_has_one_line(key, line, label):
    metric = find_metric(key)
    assert metric is not None and metric.key == line and label_of(key) == label


def test_a_key_that_nobody_writes_has_none():
    assert find_metric("train/explorer_gain") is None and find_metric("scores", SUMMARY) is None
    assert label_of("nothing/such") == ""


def test_no_line_is_there_twice_and_every_source_is_a_file():
    for groups in (METRICS, SUMMARY):
        keys = [metric.key for group in groups for metric in group.metrics]
        assert len(keys) == len(set(keys))
        sources = {metric.source for group in groups for metric in group.metrics}
        assert [source for source in sources if not (ROOT / "stages" / source).is_file()] == []


@pytest.mark.parametrize("words", [ROUNDS, MIXED], ids=["explore, then adapt", "mix"])
def test_every_key_of_a_run_is_in_the_table(recorded, compiled_once, words):
    folder, _ = recorded(*words)
    keys = {key for row in rows(folder) for key in row}
    assert {"updates", "wall_seconds", "episode/total"} < keys
    assert [key for key in keys if find_metric(key) is None] == []
    summary = json.loads((folder / "summary.json").read_text())
    assert [key for key in summary if find_metric(key, SUMMARY) is None] == []
