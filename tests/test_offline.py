"""Learning from the rows of a run: what docs/experiments/offline.py takes from its folder."""

import dataclasses
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from stages import library, train
from stages.config import ConfigError
from stages.networks.heads import INITIAL_END_LOGIT
from stages.networks.two_hot import symexp_bins
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


@pytest.mark.parametrize(("share", "logit", "expected"), [(1.0, 30.0, 4.0), (1.0, 0.0, 1.875), (0.5, -30.0, 0.5)])
def test_an_imagined_score_is_what_the_heads_pay_until_the_end(bench, share, logit, expected):
    """Heads that say the same everywhere, and four steps: a geometric sum of the reward of one bin."""
    env, hypers = dataclasses.replace(bench.env, time_limit=4), dataclasses.replace(bench.hypers, discount_horizon=1e9)
    state = train.init(env, bench.config, hypers, key=jr.key(0))
    ring = dataclasses.replace(state.ring, is_last=state.ring.is_last.at[::3].set(True))
    head, zero = state.agent.model.reward, state.agent.model.reward.bins // 2
    rewards = jnp.full(head.bins, -1e9).at[zero].set(jnp.log(1 - share)).at[zero + 1].set(jnp.log(share))
    ends = rewards + jax.nn.log_sigmoid(-logit) - INITIAL_END_LOGIT  # which the head adds
    bias = jnp.concatenate([rewards + jax.nn.log_sigmoid(logit), ends])
    agent = eqx.tree_at(lambda agent: agent.model.reward.head.out.bias, state.agent, bias)
    found = offline.imagined_score(dataclasses.replace(state, agent=agent, ring=ring), 8, env, key=jr.key(1))
    assert float(found) == pytest.approx(expected * symexp_bins(head.bins)[zero + 1], rel=1e-4)
