"""Learning from the rows of a run: what docs/experiments/offline.py takes from its folder."""

import sys

import jax
import numpy as np
import pytest

from stages import library
from stages.config import ConfigError
from stages.store.files import RunFolderError
from tests.runs import ROOT, ROUNDS, rows

sys.path.insert(0, str(ROOT / "docs" / "experiments"))

import offline

FLAGS = [*"--model.units 8 --model.hidden 8 --eval-episodes 2 --replay.batch-length 4 --horizon 2".split()]


@pytest.fixture(scope="module")
def bench(recorded):
    return offline.bench_of(recorded(*ROUNDS)[0], FLAGS)


def test_rows_and_maps_are_those_of_the_seeds_of_the_newest_round(recorded, bench):
    folder = recorded(*ROUNDS)[0]
    agents = library.load(folder)
    assert agents.seeds == [5, 6, 7]
    maps = jax.tree.map(lambda x: x[2:], agents.env_params)  # of seed 7, which has a round to itself, beside padding
    jax.tree.map(np.testing.assert_array_equal, bench.env_params, maps)
    last = max(row["step"] for row in rows(folder))
    assert bench.collected == last // 2, "two environments"
    assert set(bench.rows) == {".obs", ".action", ".reward", ".is_first", ".is_last", ".is_terminal"}
    assert bench.rows[".reward"].shape == (1, bench.collected, 2)
    # Deep Sea of size 4: an observation has one entry that is 1, and an episode is five rows long.
    np.testing.assert_array_equal(bench.rows[".obs"].sum((3, 4)), ~bench.rows[".is_last"])
    firsts = np.flatnonzero(bench.rows[".is_first"][0, :, 0])
    np.testing.assert_array_equal(np.diff(firsts), 5)


def test_settings_are_those_of_the_flags_in_mode_task(bench):
    config = bench.config
    assert (config.env, config.mode, config.envs, config.model.units) == ("DeepSea-bsuite", "task", 2, 8)
    assert dict(config.env_args)["size"] == "4"


def test_what_cannot_be_read_is_said_in_one_line(recorded, tmp_path):
    with pytest.raises(RunFolderError, match="is no run's folder"):
        offline.bench_of(tmp_path, [])
    with pytest.raises(ConfigError, match=r"--hypers\.lr"):
        offline.bench_of(recorded(*ROUNDS)[0], ["--hypers.lr", "-1"])
