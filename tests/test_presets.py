"""Presets: valid settings by name."""

import pytest

from stages.config import ConfigError
from stages.presets import PRESETS, preset
from stages.validate import validate


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
