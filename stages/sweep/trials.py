"""Trials: what `--sweep` asks for -> the settings that are tried, and which of them one program trains side by side.

A trial is one choice of settings, trained with every seed. Hyperparameters (`Hypers`) are arrays: trials that differ in
nothing else are slots of one compiled program, side by side as seeds are. Other settings decide shapes: each choice of
them is a program of its own. Programs run one after the other.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from stages.cli.arguments import MOST_SEEDS, Arguments
from stages.cli.parse import parse
from stages.cli.settings_file import JsonObject, advice, flat
from stages.config import Config, ConfigError, Hypers

DRAW_SEED = 0  # of random search: the same command tries the same settings
HYPERS = tuple(field.name for field in dataclasses.fields(Hypers))
NO_SWEEP: JsonObject = {"sweep": (), "trials": 0}
"""The settings that ask for a sweep, as a run without a sweep has them."""


@dataclass(frozen=True)
class Trial:
    """One choice of settings."""

    name: str  # its folder's, inside its program's folder; empty where the program trains it alone
    arguments: Arguments  # of a run that trains it alone
    settings: Mapping[str, str] = field(default_factory=dict)  # what was swept, as the command line has it


@dataclass(frozen=True)
class Program:
    """Trials that differ in hyperparameters alone."""

    name: str  # its folder's, inside the sweep's folder; empty where there is one program
    arguments: Arguments
    trials: list[Trial]


def programs_of(argv: Sequence[str], arguments: Arguments) -> list[Program]:
    """All that the command line asks for: one program with one trial, or a sweep's.

    Args:
        arguments: what `parse(argv)` gives.

    Raises:
        ConfigError: a setting that cannot be swept, or values that it cannot take.
    """
    if not arguments.sweep:
        if arguments.trials:
            raise ConfigError("--trials draws the values of --sweep NAME=log:LOW:HIGH; name a setting to sweep")
        return [Program("", arguments, [Trial("", arguments)])]
    if not 0 <= arguments.trials <= MOST_SEEDS:
        raise ConfigError(f"--trials must be 0 to {MOST_SEEDS:,}, not {arguments.trials:,}")
    settings = dict(_setting(flags, arguments) for flags in arguments.sweep)
    if len(settings) < len(arguments.sweep):
        raise ConfigError("--sweep names a setting twice: give all of its values at once, as in lr=1e-4,1e-3")
    combinations = _drawn(settings, arguments) if arguments.trials else _grid(settings)
    if len(combinations) * arguments.seeds > MOST_SEEDS:
        agents = f"{len(combinations)} trials of {arguments.seeds} seeds"
        raise ConfigError(f"{agents} are more than {MOST_SEEDS:,} agents: take fewer --seeds, values or --trials")
    static_names = [name for name in settings if not _is_hyper(name)]
    hyper_names = [name for name in settings if _is_hyper(name)]
    programs: dict[str, Program] = {}
    for values in combinations:
        program_name, trial_name = _folder_name(values, static_names), _folder_name(values, hyper_names)
        if program_name not in programs:
            program_arguments = _parse_with(argv, {name: values[name] for name in static_names})
            program_logdir = _inside(arguments.logdir, program_name)
            program_arguments = dataclasses.replace(program_arguments, logdir=program_logdir)
            programs[program_name] = Program(program_name, program_arguments, [])
        logdir = _inside(arguments.logdir, program_name, trial_name)
        trial_arguments = dataclasses.replace(_parse_with(argv, values), logdir=logdir, **NO_SWEEP)
        programs[program_name].trials.append(Trial(trial_name, trial_arguments, values))
    if not hyper_names:  # each is an ordinary run
        return [Program(p.name, p.trials[0].arguments, p.trials) for p in programs.values()]
    return list(programs.values())


def _parse_with(argv: Sequence[str], values: Mapping[str, str]) -> Arguments:
    """The command line's arguments with these settings' values."""
    return parse([*argv, *(token for name, value in values.items() for token in (_flag(name), value))])


def describe(programs: Sequence[Program]) -> str:
    """What a sweep does, in a line."""
    names = list(programs[0].trials[0].settings)
    static_names = [name for name in names if not _is_hyper(name)]
    count = sum(len(program.trials) for program in programs)
    line = f"sweep of {', '.join(names)}: {count} trials"
    if not static_names:
        return f"{line}, side by side in one program"
    needs = "sets" if len(static_names) == 1 else "set"
    why = f"since {', '.join(static_names)} {needs} what is compiled"
    return f"{line} in {len(programs)} programs, one after the other, {why}"


# ---- names and values ----------------------------------------------------------------------------------------------


def _setting(text: str, arguments: Arguments) -> tuple[str, str]:
    """`NAME=VALUES` -> the setting's name, as trials have it, and its values, not read yet."""
    given, equals, values = text.partition("=")
    if not equals or not values:
        raise ConfigError(f"--sweep {text!r} must be NAME=VALUE,VALUE,... or NAME=log:LOW:HIGH")
    name = given.strip().lstrip("-").replace("-", "_").removeprefix("hypers.")
    if name.startswith("env.") and name != "env.":
        return name, values
    known = [*HYPERS, *(name for name in flat(dataclasses.asdict(arguments.config)) if name != "env_args"), "preset"]
    if name not in known:
        raise ConfigError(f"--sweep: there is no setting {given!r}{advice(name, known)}")
    return name, values


def _is_hyper(name: str) -> bool:
    """Whether a setting is an array in the compiled program, so that its values may be trained side by side."""
    return name in HYPERS


def _flag(name: str) -> str:
    """The setting's flag."""
    return "--" + ("hypers." if _is_hyper(name) else "") + name.replace("_", "-")


def _folder_name(values: Mapping[str, str], names: Sequence[str]) -> str:
    """A folder's name that says these settings' values."""
    return ",".join(re.sub(r"[^\w.+=-]", "_", f"{name}={values[name]}") for name in names)


def _inside(*parts: str) -> str:
    """A folder in a folder; an empty name is the outer one itself."""
    return os.path.join(*filter(None, parts))


def _values(name: str, values: str) -> list[str]:
    """Values that are given one by one."""
    items = [value.strip() for value in values.split(",")]
    if "" in items or len(set(items)) < len(items):
        raise ConfigError(f"--sweep {name}={values}: a value is empty or given twice")
    if len({_folder_name({name: item}, [name]) for item in items}) < len(items):
        raise ConfigError(f"--sweep {name}={values}: two values would have one folder's name; rename one of them")
    return items


def _grid(settings: Mapping[str, str]) -> list[dict[str, str]]:
    """Every combination, the last setting's values changing fastest."""
    for name, values in settings.items():
        if _range(name, values):
            raise ConfigError(f"--sweep {name}={values} is a range: say how many values are drawn with --trials N")
    choices = [_values(name, values) for name, values in settings.items()]
    return [dict(zip(settings, combination, strict=True)) for combination in itertools.product(*choices)]


def _drawn(settings: Mapping[str, str], arguments: Arguments) -> list[dict[str, str]]:
    """Random search: at most `arguments.trials` different trials. Every setting's value is drawn independently."""
    rng, integers = np.random.default_rng(DRAW_SEED), _integer_settings(arguments.config)
    trials = []
    for _ in range(arguments.trials):
        trial = {}
        for name, values in settings.items():
            if between := _range(name, values):
                scale, low, high = between
                number = (
                    math.exp(rng.uniform(math.log(low), math.log(high))) if scale == "log" else rng.uniform(low, high)
                )
                trial[name] = str(round(number)) if name in integers else f"{number:.3g}"
            else:
                items = _values(name, values)
                trial[name] = items[rng.integers(len(items))]
        if trial not in trials:  # drawn twice, it would be the same trial
            trials.append(trial)
    return trials


def _range(name: str, values: str) -> tuple[str, float, float] | None:
    """(log or uniform, lowest, highest) of a range; None of a list."""
    scale, *ends = values.split(":")
    if scale not in ("log", "uniform"):
        return None
    try:
        low, high = map(float, ends)
    except ValueError:
        low = high = math.nan
    if not (low < high and math.isfinite(high - low)) or (scale == "log" and low <= 0):
        raise ConfigError(f"--sweep {name}={values}: a range is log:LOW:HIGH, with 0 < LOW < HIGH, or uniform:LOW:HIGH")
    return scale, low, high


def _integer_settings(config: Config) -> set[str]:
    """Settings that are whole numbers."""
    settings = flat(dataclasses.asdict(config))
    return {name for name, value in settings.items() if isinstance(value, int) and not isinstance(value, bool)}
