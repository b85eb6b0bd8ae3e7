"""Saved settings: a run's config.json beside the presets, beside new arguments, and as Config and Hypers again."""

import dataclasses
import json

import msgspec

from stages.cli.arguments import DEFAULTS, Arguments
from stages.cli.settings_file import JsonObject, Settings, flat
from stages.config import Config, ConfigError, Hypers
from stages.presets import Recipe, preset

UNCHECKED = {
    *"config_file logdir log devices parallel memory checkpoint_minutes checkpoint_keep".split(),
    *"distributed coordinator process config.imagine_batch config.vmap_width".split(),
}
"""Arguments that change no number of a run, and so may differ when it goes on."""
GROWING = ("config.steps", "config.adapt_steps")
"""Arguments that may be raised."""


def flag_of(name: str) -> str:
    """The flag of an argument by its path."""
    return "--" + name.removeprefix("config.").replace("_", "-")


def beyond_preset(settings: Settings) -> JsonObject:
    """Settings by their paths, as JSON has them -> of those that their preset has otherwise, what it has.

    Nothing where the preset is not known any more.
    """
    defaults = _flat_preset(settings, settings.get("recipe", "default"))
    return {name: was for name, was in defaults.items() if name in settings and settings[name] != was}


def set_by_mode(settings: Settings) -> JsonObject:
    """What the mode changes in the preset, by path: its values. Nothing where the preset is not known any more."""
    plain, defaults = _flat_preset(settings, "published"), _flat_preset(settings, settings.get("recipe", "default"))
    return {name: value for name, value in defaults.items() if value != plain[name]}


def _flat_preset(settings: Settings, recipe: Recipe) -> JsonObject:
    """The preset of settings in their mode, by path; nothing for one that is not known any more."""
    try:
        config, hypers = preset(settings["preset"], settings["config.mode"], recipe)
    except ConfigError:
        return {}
    return flat(json.loads(json.dumps({"config": dataclasses.asdict(config), "hypers": dataclasses.asdict(hypers)})))


def check_same_run(arguments: Arguments, saved: Settings) -> bool:
    """Whether these arguments ask for more steps of a run that was saved with its own.

    Args:
        saved: the run's config.json.

    Raises:
        ConfigError: they ask for another run.
    """
    new = arguments.flat
    old = {name: value for name, value in flat(saved).items() if not name.startswith("versions.")}
    old = DEFAULTS | old  # what came after the run was off in it
    differing = [name for name in new.keys() | old.keys() if new.get(name) != old.get(name)]
    raised = [name for name in GROWING if name in differing and old.get(name) and new[name] > old[name]]
    if refused := sorted(set(differing) - UNCHECKED - set(raised)):
        named = [f"{flag_of(name)} {old.get(name)} (now {new.get(name, 'gone')})" for name in refused[:5]]
        unlisted = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
        raise ConfigError(
            f"the run in {arguments.logdir} was made with {', '.join(named)}{unlisted}: give it the same again (only "
            "--steps and --adapt-steps may grow), or choose another --logdir"
        )
    return bool(raised)


def settings_of(saved: Settings) -> tuple[Config, Hypers]:
    """Config and Hypers of a run from its config.json. Raises ConfigError if they are of another program."""
    try:
        if lacking := [name for name in ("env_args", "model", "ensemble", "replay") if name not in saved["config"]]:
            raise ValueError(f"it lacks config.{lacking[0]}")
        settings = {name: saved[name] for name in ("config", "hypers")}
        if unknown := sorted(flat(settings).keys() - DEFAULTS.keys()):
            raise ValueError(f"it has {unknown[0]}")
        arguments = msgspec.convert(settings, Arguments)
    except ValueError as error:
        raise ConfigError(
            f"the run's config.json is of another version of this program ({error}): check out the one that made it"
        ) from error
    return arguments.config, Hypers(**saved["hypers"])  # msgspec leaves out what a module has by default
