"""Validate: what is refused before anything compiles, and the flag that the line names."""

import dataclasses

import pytest

from stages.cli.validate import validate
from stages.config import Config, ConfigError, EnsembleConfig, Hypers


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


def test_a_constant_pays_an_explorer():
    for mode in ("explore", "mix"):
        validate(Config(mode=mode, explorer_reward="constant"), Hypers())
    for mode in ("task", "random"):
        with pytest.raises(ConfigError, match=f"--explorer-reward constant .* --mode explore or mix, not {mode}"):
            validate(Config(mode=mode, explorer_reward="constant"), Hypers())


def test_episodic_novelty_is_of_an_explorers_reward():
    for mode in ("explore", "mix"):
        validate(Config(mode=mode, episodic_novelty=True), Hypers())
    for mode in ("task", "random"):
        with pytest.raises(ConfigError, match=f"--episodic-novelty .* --mode explore or mix, not {mode}"):
            validate(Config(mode=mode, episodic_novelty=True), Hypers())


@pytest.mark.parametrize("name", ["imagine_batch", "vmap_width"])
def test_settings_for_speed_may_be_left_to_the_machine_but_not_be_negative(name):
    for value in (0, 1, 7):
        validate(dataclasses.replace(Config(), **{name: value}), Hypers())
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} must be 0 or more, not -1"):
        validate(dataclasses.replace(Config(), **{name: -1}), Hypers())
