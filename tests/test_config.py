"""Settings: the schedule, presets by name, and what is refused before anything compiles."""

import dataclasses

import pytest

from stages.config import PRESETS, Config, ConfigError, EnsembleConfig, Hypers, ReplayConfig, preset, validate


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


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_can_be_static_arguments(name):
    config, hypers = preset(name)
    validate(config, hypers)
    assert hash(config) == hash(preset(name)[0])


def test_reference_sizes_scale_together():
    for name in ("12m", "25m", "50m", "100m", "200m", "400m"):
        model = preset(name)[0].model
        assert model.hidden == model.units == model.deter // 8 and model.classes == model.depth == model.units // 16


def test_unknown_preset_names_near_ones():
    with pytest.raises(ConfigError, match="12m"):
        preset("12M")


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Hypers)])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_hypers_out_of_range_are_named(name, value):
    with pytest.raises(ConfigError, match=f"--hypers.{name.replace('_', '-')} "):
        validate(Config(), dataclasses.replace(Hypers(), **{name: value}))


def test_what_an_ensembles_own_updates_need():
    explore = lambda **ensemble: Config(mode="explore", ensemble=EnsembleConfig(**ensemble))
    validate(explore(updates=2, target="projected"), Hypers())
    with pytest.raises(ConfigError, match=r"--ensemble\.updates needs a target"):
        validate(explore(updates=2, target="probs"), Hypers())


def test_a_constant_pays_the_explorer_of_mode_explore_alone():
    validate(Config(mode="explore", explorer_reward="constant"), Hypers())
    for mode in ("task", "mix", "random"):
        with pytest.raises(ConfigError, match=f"--explorer-reward constant .* --mode explore, not {mode}"):
            validate(Config(mode=mode, explorer_reward="constant"), Hypers())


def test_one_critic_of_a_sum_needs_two_rewards():
    validate(Config(mode="mix", explorer_critics="sum"), Hypers())
    for mode in ("task", "explore", "random"):
        with pytest.raises(ConfigError, match=f"--explorer-critics sum .* --mode mix, not {mode}"):
            validate(Config(mode=mode, explorer_critics="sum"), Hypers())


@pytest.mark.parametrize("name", ["block", "lane"])
def test_settings_for_speed_may_be_left_to_the_machine_but_not_be_negative(name):
    for value in (0, 1, 7):
        validate(dataclasses.replace(Config(), **{name: value}), Hypers())
    with pytest.raises(ConfigError, match=f"--{name} must be 0 or more, not -1"):
        validate(dataclasses.replace(Config(), **{name: -1}), Hypers())
