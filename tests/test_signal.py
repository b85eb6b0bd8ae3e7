"""The pure functions of docs/experiments/novelty_signal.py and novelty_tasks.py, against hand-made tables and scipy."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, spearmanr

from docs.experiments.novelty_tasks import cut

FILE = Path(__file__).parents[1] / "docs" / "experiments" / "novelty_signal.py"


@pytest.fixture(scope="module")
def signal():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("novelty_signal", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize(
    ("positive", "negative", "expected"),
    [
        ([3.0, 4.0], [1.0, 2.0], 1.0),
        ([1.0], [2.0, 3.0], 0.0),
        ([2.0], [1.0, 2.0, 3.0, 3.0], (1 + 0.5) / 4),
        ([1.0, 3.0], [2.0, 2.0], 0.5),
    ],
)
def test_auc_of_a_hand_table(signal, positive, negative, expected):
    assert signal.auc(np.array(positive), np.array(negative)) == pytest.approx(expected)


def test_auc_is_mann_whitneys_u_over_all_comparisons(signal):
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(0, 6, 40).astype(float), rng.integers(-1, 5, 70).astype(float)  # with ties
    expected = mannwhitneyu(positive, negative).statistic / (40 * 70)
    assert signal.auc(positive, negative) == pytest.approx(expected, rel=1e-12)


def test_auc_of_nothing_is_nan(signal):
    assert math.isnan(signal.auc(np.array([]), np.array([1.0])))
    assert math.isnan(signal.auc(np.array([1.0]), np.array([])))


def test_spearman_is_scipys(signal):
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 9, 50).astype(float), rng.normal(size=50)
    assert signal.spearman(x, y) == pytest.approx(float(spearmanr(x, y).statistic), rel=1e-12)
    assert math.isnan(signal.spearman(np.ones(5), np.arange(5.0)))


def test_an_episode_is_cut_behind_its_first_held_out_pair():
    # Two environments, six rows. The first one's episodes are rows 0-2 and 3-5, the second's 0-3 and 4-5.
    is_first = np.array([[1, 1], [0, 0], [0, 0], [1, 0], [0, 1], [0, 0]], bool)
    held = np.array([[0, 0], [1, 0], [1, 0], [0, 0], [0, 0], [0, 1]], bool)
    kept, tried = cut(held, is_first)
    np.testing.assert_array_equal(kept, np.array([[1, 1], [1, 1], [0, 1], [1, 1], [1, 1], [1, 1]], bool))
    np.testing.assert_array_equal(tried, np.array([[1, 1], [0, 1], [0, 1], [1, 1], [1, 1], [1, 0]], bool))


def test_no_kept_row_is_followed_by_one_from_behind_a_cut():
    rng = np.random.default_rng(2)
    held, is_first = rng.random((200, 4)) < 0.05, rng.random((200, 4)) < 0.1
    is_first[0] = True
    kept, tried = cut(held, is_first)
    assert not (tried & held).any() and (kept | ~tried).all()
    goes_on = ~is_first[1:]
    np.testing.assert_array_equal(kept[1:][goes_on], tried[:-1][goes_on])
    assert kept[is_first].all()


def test_the_ring_holds_the_kept_rows_environment_by_environment(signal):
    kept = np.array([[True, True], [False, True], [True, False]])
    data = signal.Data(None, None, None, kept, None, None, None)
    ring, count = signal.ring_of(data, np.arange(6).reshape(3, 2) + 1)
    assert count == 4
    np.testing.assert_array_equal(ring[:, 0], [1, 5, 2, 4, 0, 0])
