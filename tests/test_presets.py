"""Presets: valid settings by size and mode; what the modes change; the job without --env."""

import dataclasses
from pathlib import Path
from typing import get_args

import pytest

from stages.cli.parse import parse
from stages.cli.saved_settings import set_by_mode
from stages.cli.validate import validate
from stages.config import Config, ConfigError, EnsembleConfig, Mode
from stages.log.lines import start_lines
from stages.presets import PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize("recipe", ["default", "published"])
def test_presets_are_valid_and_can_be_static_arguments(name, mode, recipe):
    config, hypers = preset(name, mode, recipe)
    validate(config, hypers)
    assert config.mode == mode and hash(config) == hash(preset(name, mode, recipe)[0])


def test_reference_sizes_scale_together():
    for name in ("12m", "25m", "50m", "100m", "200m", "400m"):
        model = preset(name)[0].model
        assert model.hidden == model.units == model.deter // 8 and model.classes == model.depth == model.units // 16


def test_unknown_preset_names_near_ones():
    with pytest.raises(ConfigError, match="12m"):
        preset("12M")


@pytest.mark.parametrize("name", PRESETS)
def test_modes_bring_the_recipe_at_every_size_and_change_no_size(name):
    task, task_hypers = PRESETS[name][:2]
    assert task.ensemble == EnsembleConfig() and preset(name, "task", "published") == (task, task_hypers)
    norm, entropy, continuous = ("rms", 0.1, 0.1) if name == "tiny" else ("returns", task_hypers.entropy, 1.0)
    outcome, discount = ("joint", 100.0) if name == "tiny" else ("separate", 333.0)
    changed = dataclasses.replace(
        task_hypers, entropy=entropy, continuous_entropy=continuous, discount_horizon=discount
    )
    model, enlarged = dataclasses.replace(task.model, outcome=outcome), name == "tiny"
    set_in_task = dataclasses.replace(task, task_norm=norm, enlarge_rewards=enlarged, model=model)
    assert preset(name, "task") == (set_in_task, changed)
    for mode in ("explore", "mix"):
        config, hypers = preset(name, mode)
        assert (config.model, config.horizon, config.steps) == (model, task.horizon, task.steps)
        members = config.ensemble
        assert (members.members, members.input, members.target, members.updates) == (5, "decoded", "projected", 2)
        assert members.units == max(64, task.model.units) and members.prior_layers == 1 and members.spread == "var"
        assert config.replay == dataclasses.replace(task.replay, train_ratio=64.0)
        assert (hypers.free_nats, hypers.action_scale, hypers.explorer_entropy) == (0.1, 10.0, 0.05)
        assert (config.intrinsic_norm, config.intrinsic_centred, hypers.intrinsic_horizon) == ("advantages", True, 30.0)
        assert (config.task_norm, hypers.entropy, hypers.continuous_entropy) == (norm, entropy, continuous)
        assert (hypers.discount_horizon, config.enlarge_rewards) == (discount, enlarged)
        # The published form: the preset as it is.
        assert preset(name, mode, "published") == (dataclasses.replace(task, mode=mode), task_hypers)
    # The control trains its world model as the explorers do.
    control, hypers = preset(name, "random")
    assert control.replay.train_ratio == 64 and hypers.free_nats == 0.1 and control.ensemble == EnsembleConfig()


def test_without_an_environment_deep_sea_is_trained_in_mode_mix():
    config = parse([]).config
    assert (config.env, dict(config.env_args), config.mode, config.steps) == (
        "DeepSea-bsuite", {"size": "8", "action_map_per_seed": "true"}, "mix", 1_800,
    )  # fmt: skip
    assert dict(parse(["--env.size", "12"]).config.env_args) == {"size": "12", "action_map_per_seed": "true"}
    assert parse(["--mode", "random", "--steps", "300"]).config.mode == "random"
    named = parse(["--env", "Catch-bsuite"]).config
    assert named == dataclasses.replace(preset("tiny")[0], env="Catch-bsuite") and named.mode == "task"


@pytest.mark.parametrize("words", ["--mode=mix --preset=micro", "--preset micro --mode mix --env Catch-bsuite"])
def test_the_command_line_takes_the_mode_of_the_preset(words):
    config, hypers = preset("micro", "mix")
    asked = parse(words.split())
    assert asked.config.ensemble == config.ensemble and asked.hypers == hypers
    assert parse([*words.split(), "--recipe", "published"]).config.ensemble == Config().ensemble


def said(words: str) -> str:
    """The first lines of a run."""
    arguments = parse(words.split())

    class Device:
        platform = "cpu"

    return "\n".join(start_lines(arguments, 1, [0, 1], [Device()], 1, Path("runs/here")))


def test_what_a_mode_sets_is_said_and_a_low_train_ratio_warns():
    assert set_by_mode(parse(["--preset", "micro", "--mode", "task"]).flat) == {}
    hypers = {"hypers.entropy": 0.1, "hypers.continuous_entropy": 0.1, "hypers.discount_horizon": 100.0}
    config = {"config.task_norm": "rms", "config.enlarge_rewards": True, "config.model.outcome": "joint"}
    assert set_by_mode(parse(["--mode", "task"]).flat) == config | hypers
    flags = ["--task-norm rms", "--enlarge-rewards True", "--model.outcome joint", "--hypers.discount-horizon 100.0"]
    assert all(flag in " ".join(said("--mode task").split()) for flag in flags)
    text = " ".join(said("--mode explore").split())
    assert "set by mode explore:" in text and "--replay.train-ratio 64.0" in text and "--hypers.free-nats 0.1" in text
    assert "--episodic-novelty True" in text and "--intrinsic-centred True" in text
    assert "--task-norm rms" in text
    assert "warning" not in text and "beside the preset" not in said("--mode explore --env Catch-bsuite")
    slow = " ".join(said("--mode explore --replay.train-ratio 16").split())
    assert "warning: with --replay.train-ratio 16 disagreement falls too slowly" in slow
    assert "warning" not in said("--env Catch-bsuite --replay.train-ratio 16")
    assert "set by mode" not in said("--mode explore --recipe published")
