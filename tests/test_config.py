"""Settings: the schedule, the prefill and who learns, by hand."""

import pytest

from stages.config import Config, ReplayConfig


@pytest.mark.parametrize(
    ("ratio", "batch", "length", "envs", "steps", "updates"),
    [
        (32, 16, 64, 1, 32, 1),  # the reference's default: one update for 32 rows
        (32, 16, 64, 16, 2, 1),
        (1024, 16, 64, 1, 1, 1),
        (4096, 16, 64, 1, 1, 4),
        (16, 8, 16, 1, 8, 1),
        (24, 8, 16, 1, 16, 3),
    ],
)
def test_schedule_by_hand(ratio, batch, length, envs, steps, updates):
    replay = ReplayConfig(batch_size=batch, batch_length=length, train_ratio=ratio)
    assert Config(envs=envs, replay=replay).schedule == (steps, updates)


@pytest.mark.parametrize(
    ("asked", "envs", "steps"), [(0, 1, 65), (0, 4, 65), (10, 1, 65), (1000, 4, 250), (1001, 4, 251)]
)
def test_prefill_is_a_window_and_its_context_or_what_was_asked(asked, envs, steps):
    assert Config(envs=envs, replay=ReplayConfig(prefill=asked)).prefill == steps


def test_an_explorer_learns_in_two_modes():
    assert {mode for mode in ("task", "explore", "mix", "random") if Config(mode=mode).explores} == {"explore", "mix"}
