"""novelty.py by hand-computed tables; its picture by its pixels; a whole run's files."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from envs.environment import StateSpace
from stages.figures.novelty_maps import _draw_coverage, disagreement_scale, plot_novelty
from stages.results.novelty import (
    Map,
    NoveltyLog,
    baseline_metrics,
    coverage_summary,
    median_episode,
    novelty_line,
    novelty_metrics,
    rank_correlation,
)
from stages.results.records import map_arrays
from tests.runs import ROUNDS, rows
from tests.written import pixels

NAN = math.nan
ONES = np.ones(2, int)


@pytest.mark.parametrize("seed", range(6))
def test_correlation_is_that_of_ranks_with_ties_averaged(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 6, 40), rng.normal(size=40).round(seed % 3)
    rank = lambda values: [(2 * (values < v).sum() + (values == v).sum() + 1) / 2 for v in values]
    np.testing.assert_allclose(rank_correlation(x, y), np.corrcoef(rank(x), rank(y))[0, 1], rtol=1e-12)


def test_correlation_at_its_ends():
    assert rank_correlation([1, 2], [0.3, 0.2]) == pytest.approx(-1)
    assert rank_correlation([0, 5, 9], [0.3, 0.2, 0.1]) == pytest.approx(-1)
    assert math.isnan(rank_correlation([1, 1, 1], [0.3, 0.2, 0.1])) and math.isnan(rank_correlation([], []))


VISITS = np.array([[0, 1], [3, 4], [16, 63], [64, 255], [256, 900], [7, 7], [0, 0]])
SEEN = np.array([[0.8, 0.7], [0.5, 0.4], [0.3, 0.1], [0.3, 0.2], [0.1, 0.0], [NAN, NAN], [NAN, NAN]])


def test_metrics_by_hand():
    """The last two states are not in the ring: they were visited or not, but nobody knows their disagreement."""
    found = novelty_metrics(VISITS[None], SEEN[None])
    assert {name: float(values[0]) for name, values in found.items()} == pytest.approx({
        "visited_states": 6, "visited_pairs": 11, "correlation": spearmanr(VISITS[:5].ravel(), SEEN[:5].ravel())[0],
        "reward_never": 0.8, "reward_1_3": 0.6, "reward_4_15": 0.4, "reward_16_63": 0.2,
        "reward_64_255": 0.25, "reward_256": 0.05,
    })  # fmt: skip


def test_without_an_ensemble_only_visits_are_known():
    found = novelty_metrics(np.stack([VISITS, 0 * VISITS]), np.full((2, 7, 2), NAN))
    np.testing.assert_array_equal(found["visited_states"], [6, 0])
    assert np.isnan(found["correlation"]).all() and np.isnan(found["reward_1_3"]).all()


@pytest.mark.parametrize(
    ("episodes", "median"),
    [([31, 0, 0, 0], math.inf), ([31, 40, 0, 0], math.inf), ([31, 40, 90, 0], 65.0), ([NAN, 40.0, 31.0], 40.0)],
)
def test_a_seed_that_has_not_arrived_counts_as_later_than_all(episodes, median):
    assert median_episode(episodes) == median


def test_contrast_by_hand():
    found = baseline_metrics([0.2, 0.0], np.float32([0.8, 0.0]), [0.1, 0.3])
    assert {name: values[0] for name, values in found.items()} == pytest.approx({
        "reward_collected": 0.2, "reward_untrained": 0.8, "reward_random": 0.1,
        "untrained_share": 0.25,
    })  # fmt: skip
    assert np.isnan(found["untrained_share"][1])


def log_of(points=4, seeds=2, ensemble=True, states=12, start=0):
    """Points of a run of 100 steps each: seed s of point p has been in s + p + start states."""
    log, rng = NoveltyLog(), np.random.default_rng(start)
    for p in range(1, points + 1):
        visits = np.zeros((seeds, states, 2), int)
        for s in range(seeds):
            visits[s, : s + p + start] = rng.integers(1, 100, (s + p + start, 2))
        seen = np.where(visits > 0, rng.random(visits.shape), NAN) if ensemble else np.full(visits.shape, NAN)
        episodes = np.array([start and 5 * p] * seeds)
        log.add(100 * p, novelty_metrics(visits, seen), episodes, 2 * episodes)
        log.add_map(Map.of(100 * p, visits[0], seen[0]), half=50 * points)
    return log


def of_rounds(*logs):
    """The logs of several rounds as one, without their maps."""
    bare = [dataclasses.replace(log, maps={}) for log in logs]
    return map_arrays(lambda *arrays: np.concatenate(arrays), *bare)


def test_three_maps_are_kept():
    maps = log_of(points=8).maps[0]
    assert (maps.early.step, maps.middle.step, maps.late.step) == (100, 400, 800)
    assert (maps.late.visits > 0).sum() == 8 and np.isfinite(maps.late.reward).sum() == 8
    maps = log_of(points=1).maps[0]
    assert maps.early is maps.middle is maps.late


def test_rounds_become_one_and_a_correlation_outlives_its_ensemble():
    one = of_rounds(log_of(), log_of(seeds=1, start=3))
    np.testing.assert_array_equal(one.curve("visited_states"), [[1, 2, 3, 4], [2, 3, 4, 5], [4, 5, 6, 7]])
    np.testing.assert_array_equal(one.goal_episode, [0, 0, 20])
    before = one.correlation
    assert np.isfinite(before).all()
    one.add(500, {name: np.full(3, NAN) for name in one.metrics[0]}, one.goal_episode, one.solved_episode)
    np.testing.assert_array_equal(one.correlation, before)


def test_summary_and_words():
    log = of_rounds(log_of(), log_of(seeds=1, start=3))
    said = coverage_summary(log, 12)
    assert (said["states"], said["visited_states"], said["goal_episode"]) == (12, [4, 5, 7], [None, None, 20])
    assert said["solved_episode"] == [None, None, 40] and len(said["novelty_correlation"]) == 3
    assert all(isinstance(count, int) for count in said["visited_pairs"])
    assert coverage_summary(NoveltyLog(), None) == dict.fromkeys(said)
    line = novelty_line(log, 12, has_goal=True)
    correlation = f"{np.median(log.correlation):.2f}"
    assert line == (
        f"visited 5 of 12 states; rank correlation of disagreement with visits {correlation}; goal reached by 1 of 3 "
        "seeds, median not yet (medians over all seeds)"
    )
    log.goal_episode = np.array([0, 31, 20])
    assert novelty_line(log, 12, has_goal=True).endswith("2 of 3 seeds, first in episode 31 (medians over all seeds)")
    assert "correlation of the rnd reward with visits" in novelty_line(log, 12, True, novelty="the rnd reward")
    assert novelty_line(log_of(seeds=1, ensemble=False), 12, has_goal=False) == "visited 4 of 12 states"
    assert novelty_line(log_of(seeds=1, ensemble=False), 12, has_goal=True).endswith("goal reached by 0 of 1 seeds")


# ---- the picture ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("ensemble", [True, False])
@pytest.mark.parametrize("grid", [(3, 4), (0, 0)])
@pytest.mark.parametrize("points", [1, 6])
def test_pictures_are_drawn(tmp_path, ensemble, grid, points):
    states = StateSpace(12, 9, lambda state: state, grid, walls=(10, 11))
    path = tmp_path / "novelty.png"
    plot_novelty(path, log_of(points, ensemble=ensemble), states, title=r"$\frac$ [sea] " * 9, seed=7)
    image = pixels(path)
    rows = (1 + ensemble) if grid[0] else 0
    assert image.shape[1] == 1245 and image.shape[0] == pytest.approx(
        150 * (2.3 * rows + (3.8 if rows else 3.7)), abs=1
    )
    for border in (image[:3], image[-3:], image[:, :3], image[:, -3:]):
        assert (border > 0.99).all(), "something runs out of the picture"
    walls = np.abs(image - np.array([0xC9] * 3) / 255).max(-1) < 0.01
    assert (walls.mean() > 0.005) == bool(rows)
    assert [p.name for p in tmp_path.iterdir()] == ["novelty.png"]


def test_states_are_counted_in_whole_numbers():
    from matplotlib.figure import Figure

    axes, states = Figure().subplots(), StateSpace(21, 21, lambda state: state)
    _draw_coverage(axes, log_of(states=21), states)
    ticks = axes.get_yticks()
    assert len(ticks) >= 4 and (ticks % 1 == 0).all()


def test_one_scale_for_disagreement_at_all_points():
    """From 0.002 to 0.5; of six decades the highest four are told apart."""
    maps = lambda *values: [Map(100, np.ones(2, int), np.array(pair)) for pair in values]
    scale = disagreement_scale(maps([0.5, NAN], [0.01, 0.02], [0.002, 0.0]))
    assert (scale.vmin, scale.vmax) == (0.002, 0.5)
    scale = disagreement_scale(maps([1.0, 1e-6]))
    assert scale.vmin == pytest.approx(1e-4) and scale.vmax == 1.0
    assert disagreement_scale(maps([NAN, NAN])).vmin == pytest.approx(0.1)


def test_another_reward_has_no_maps_of_disagreement(tmp_path):
    states = StateSpace(12, 9, lambda state: state, (3, 4), walls=(10, 11))
    heights = []
    for reward in ("disagreement", "rnd"):
        plot_novelty(tmp_path / "novelty.png", log_of(6), states, title="t", seed=7, reward=reward)
        heights.append(pixels(tmp_path / "novelty.png").shape[0])
    assert heights[0] - heights[1] == pytest.approx(150 * 2.3, abs=1)


# ---- a whole run ----------------------------------------------------------------------------------------------------


def test_a_run_in_rounds_leaves_its_coverage(compiled_once, recorded):
    """Explore, then adapt, three seeds in rounds of two at most: maps, metrics of both phases, a line, the summary."""
    folder, said = recorded(*ROUNDS)
    assert "of 10 states; rank correlation" in said and "goal reached by" in said
    assert (folder / "novelty.png").stat().st_size > 10_000
    found = json.loads((folder / "summary.json").read_text())
    assert found["states"] == 10 and len(found["visited_states"]) == len(found["goal_episode"]) == 3
    assert all(4 <= count <= 10 for count in found["visited_states"]) and None not in found["novelty_correlation"]
    metrics = rows(folder)
    assert {row["seed"] for row in metrics} == {5, 6, 7}
    for row in metrics:
        assert row["novelty/visited_states"] <= 10 and row["novelty/visited_pairs"] <= 20
        assert (row["novelty/correlation"] is None) == (row["phase"] == "task")
    for seed, visited in zip((5, 6, 7), found["visited_pairs"], strict=True):
        pairs = [row["novelty/visited_pairs"] for row in metrics if row["seed"] == seed]
        assert pairs == sorted(pairs) and pairs[-1] == visited
