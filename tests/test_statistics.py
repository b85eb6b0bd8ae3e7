"""Statistics over seeds and tasks against hand computations, plain loops and scipy."""

import math
import statistics as statistics_of

import numpy as np
import pytest
import scipy.stats

from stages.results import statistics
from stages.results.statistics import aggregates, improvement, iqm_curve, summarise

NAN, INF = float("nan"), float("inf")


def plain_interval(scores, resamples):
    """The bootstrap as a loop over resamples, from the same stream of draws. [S] -> low, high."""
    draws = np.random.default_rng(statistics.BOOTSTRAP_SEED).integers(0, len(scores), size=(resamples, len(scores)))
    iqms = []
    for draw in draws:
        sample = [scores[k] for k in draw if math.isfinite(scores[k])]
        if sample:
            iqms.append(scipy.stats.trim_mean(sample, 0.25))
    return np.percentile(iqms, 2.5), np.percentile(iqms, 97.5)


def test_summary_by_hand():
    result = summarise([8, 1, 7, 2, 100, 3, -50, 4], seeds=[10, 11, 12, 13, 14, 15, 16, 17])
    # Ordered: -50 1 | 2 3 4 7 | 8 100.
    assert result.iqm == (2 + 3 + 4 + 7) / 4
    assert result.median == 3.5
    assert result.mean == 75 / 8
    assert (result.worst, result.worst_seed) == (-50, 16)
    assert (result.best, result.best_seed) == (100, 14)
    assert (result.count, result.nonfinite) == (8, ())
    assert result.ci_low < result.iqm < result.ci_high


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 11, 32])
def test_iqm_and_interval_equal_a_plain_loop(count):
    scores = np.random.default_rng(count).normal(size=count)
    result = summarise(scores, range(count), resamples=200)
    assert result.iqm == pytest.approx(scipy.stats.trim_mean(scores, 0.25), rel=1e-12)
    assert (result.ci_low, result.ci_high) == pytest.approx(plain_interval(scores, 200), rel=1e-12)
    assert result == summarise(scores, range(count), resamples=200)


def test_interval_covers_the_truth():
    rng = np.random.default_rng(3)
    runs = rng.normal(loc=5.0, size=(24, 500))  # 500 sweeps of 24 seeds; the IQM of a normal is its mean
    curve = iqm_curve(runs, resamples=500)
    covered = np.mean((curve.low <= 5.0) & (curve.high >= 5.0))
    assert 0.88 <= covered <= 0.98
    # The IQM's efficiency on normal data is about 0.83, so its standard error is near 1 / sqrt(0.83 * 24).
    assert np.mean(curve.high - curve.low) == pytest.approx(2 * 1.96 / math.sqrt(0.83 * 24), rel=0.1)


def test_interval_tightens_with_seeds_and_closes_on_one():
    wide, narrow = (summarise(np.arange(n) % 4, range(n)) for n in (8, 128))
    assert narrow.ci_high - narrow.ci_low < (wide.ci_high - wide.ci_low) / 2
    alone = summarise([2.5], [7])
    assert (alone.iqm, alone.ci_low, alone.ci_high, alone.worst_seed, alone.best_seed) == (
        2.5,
        2.5,
        2.5,
        7,
        7,
    )


def test_scores_that_are_not_finite_are_reported():
    scores = [NAN, 1.0, INF, 3.0, 5.0, -INF]
    result = summarise(scores, [20, 21, 22, 23, 24, 25])
    assert result.nonfinite == (20, 22, 25)
    assert (result.count, result.mean, result.median, result.iqm) == (3, 3.0, 3.0, 3.0)
    assert (result.worst_seed, result.best_seed) == (21, 24)
    assert (result.ci_low, result.ci_high) == pytest.approx(plain_interval(scores, 2000), rel=1e-12)


def test_no_finite_score_at_all():
    result = summarise([NAN, INF], [0, 1])
    assert result.count == 0 and result.nonfinite == (0, 1)
    assert result.worst_seed is None and result.best_seed is None
    assert all(math.isnan(x) for x in (result.mean, result.iqm, result.ci_low, result.ci_high, result.best))


@pytest.mark.filterwarnings("error")
def test_curve_equals_summaries_point_by_point(monkeypatch):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(9, 30))
    scores[rng.random(scores.shape) < 0.4] = NAN
    scores[:, 4] = NAN  # nobody has a score here
    scores[1:, 5] = NAN  # one seed has
    scores[2, 6] = INF
    monkeypatch.setattr(
        statistics, "CHUNK_ELEMENTS", 300 * 9 * 7
    )  # 300 resamples of 9 x 30 in chunks of 70: a ragged last one
    curve = iqm_curve(scores, resamples=300)
    assert all(values.shape == (30,) for values in curve)
    for point in range(30):
        each = summarise(scores[:, point], range(9), resamples=300)
        expected = (each.iqm, each.ci_low, each.ci_high)
        assert (curve.iqm[point], curve.low[point], curve.high[point]) == pytest.approx(expected, nan_ok=True)
    assert np.flatnonzero(np.isnan(curve.iqm)).tolist() == [4]
    assert [curve.low[5], curve.iqm[5], curve.high[5]] == pytest.approx([scores[0, 5]] * 3)


def test_seeds_are_resampled_jointly():
    scores = np.random.default_rng(1).normal(size=(12, 1))
    curve = iqm_curve(scores + np.linspace(0, 3, 5))  # the same seeds, shifted: so must be the band
    np.testing.assert_allclose(curve.high - curve.low, (curve.high - curve.low)[0], rtol=1e-12)


def test_curve_without_points():
    assert all(values.shape == (0,) for values in iqm_curve(np.zeros((3, 0))))


@pytest.mark.parametrize(
    "call",
    [
        lambda: summarise([], []),
        lambda: summarise([1.0, 2.0], [0]),
        lambda: summarise([[1.0]], [0]),
        lambda: summarise([1.0], [0], resamples=0),
        lambda: iqm_curve(np.zeros(3)),
        lambda: iqm_curve(np.zeros((0, 3))),
    ],
)
def test_bad_shapes_are_refused(call):
    with pytest.raises(ValueError, match=r"wants|resamples"):
        call()


# ---- over tasks ----------------------------------------------------------------------------------------------------


def plain_aggregates(tasks, best):
    """The four numbers of lists of finite scores, with scipy and the standard library."""
    pooled, means = [x for task in tasks for x in task], [statistics_of.fmean(task) for task in tasks]
    return {
        "iqm": scipy.stats.trim_mean(pooled, 0.25),
        "median": statistics_of.median(means if len(tasks) > 1 else tasks[0]),
        "mean": statistics_of.fmean(means),
        "optimality_gap": best - statistics_of.fmean(min(x, best) for x in pooled),
    }


def test_aggregates_by_hand():
    found = aggregates([[0.0, 1.0, 1.0, 2.0], [0.5, 0.5, 0.5, 0.5], [4.0, 4.0, 4.0, 0.0]], best=1.0)
    # Ordered: 0 0 0.5 | 0.5 0.5 0.5 1 1 2 | 4 4 4; the means are 1, 0.5 and 3.
    assert found["iqm"].value == pytest.approx(5.5 / 6)
    assert found["median"].value == 1.0 and found["mean"].value == pytest.approx(1.5)
    assert found["optimality_gap"].value == pytest.approx((1 + 0 + 0 + 0 + 4 * 0.5 + 0 + 0 + 0 + 1) / 12)


@pytest.mark.parametrize("sizes", [(5,), (1,), (6, 6), (8, 3, 5)])
def test_aggregates_and_intervals_equal_a_plain_loop(sizes):
    rng = np.random.default_rng(0)
    tasks = [rng.normal(size=size) for size in sizes]
    found, draws = aggregates(tasks, 0.7, resamples=100), np.random.default_rng(statistics.BOOTSTRAP_SEED)
    drawn = [task[draws.integers(0, task.size, (100, task.size))] for task in tasks]
    loop = [plain_aggregates([task[r].tolist() for task in drawn], 0.7) for r in range(100)]
    for name, value in plain_aggregates([task.tolist() for task in tasks], 0.7).items():
        ends = np.percentile([each[name] for each in loop], [2.5, 97.5])
        assert found[name] == pytest.approx((value, *ends), rel=1e-12), name


def test_one_task_has_the_interval_of_the_summary():
    scores = [NAN, 1.0, INF, 3.0, 5.0, 2.5]
    one = summarise(scores, range(6))
    assert aggregates([scores])["iqm"] == (one.iqm, one.ci_low, one.ci_high)
    assert (aggregates([scores])["median"].value, aggregates([scores])["mean"].value) == (one.median, one.mean)


def test_tasks_are_resampled_apart():
    # Each task is the same score for all of its seeds: no resample can differ, though the tasks do.
    for name, estimate in aggregates([[0.0] * 5, [10.0] * 5], best=20.0).items():
        assert estimate == pytest.approx((5.0 if name != "optimality_gap" else 15.0,) * 3)


@pytest.mark.filterwarnings("error")
def test_no_finite_score_and_no_scale_are_nan():
    assert all(math.isnan(x) for estimate in aggregates([[NAN, INF]], 1.0).values() for x in estimate)
    found = aggregates([[1.0, NAN, 3.0], [NAN, NAN, NAN]])
    assert math.isnan(found["optimality_gap"].value) and found["mean"].value == found["iqm"].value == 2.0


@pytest.mark.filterwarnings("error")
def test_improvement_by_hand():
    # 3 beats all three, 2 beats one and equals two, 0 beats none: (4 + 2 / 2) of 9. The second task is a sure win.
    assert improvement([[3.0, 2.0, 0.0]], [[1.0, 2.0, 2.0]]).value == pytest.approx(5 / 9)
    assert improvement([[3.0, 2.0, 0.0], [1.0]], [[1.0, 2.0, 2.0], [0.0]]).value == pytest.approx((5 / 9 + 1) / 2)
    assert improvement([[3.0, NAN]], [[1.0, INF]]) == (1.0, 1.0, 1.0)
    assert all(math.isnan(x) for x in improvement([[NAN]], [[1.0]]))


def test_improvement_equals_mann_whitney_and_its_interval_covers():
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 6, 17).astype(float), rng.integers(0, 5, 12).astype(float)
    found = improvement([x], [y])
    assert found.value == pytest.approx(scipy.stats.mannwhitneyu(x, y).statistic / (17 * 12))
    assert found.value + improvement([y], [x]).value == pytest.approx(1.0)
    # Normal scores, one apart: the probability is Phi(1 / sqrt 2).
    truth, covered = scipy.stats.norm.cdf(1 / math.sqrt(2)), []
    for _ in range(150):
        each = improvement([rng.normal(1.0, size=20)], [rng.normal(size=25)], resamples=300)
        covered.append(each.low <= truth <= each.high)
    assert 0.87 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize("tasks", [[], [[]], [[[1.0]]]])
def test_tasks_without_seeds_are_refused(tasks):
    with pytest.raises(ValueError, match="wants tasks"):
        aggregates(tasks)
