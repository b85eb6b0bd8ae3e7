"""Parse: the command line -> Arguments. Raises ConfigError, one line that says what to change."""

import dataclasses
import itertools
import re
from typing import get_args

import tyro

from stages.cli.arguments import NAMES, Arguments, check
from stages.cli.help import description, registry
from stages.cli.settings_file import words_of
from stages.config import Config, ConfigError, Hypers, Mode
from stages.presets import DEFAULT_ENV, DEFAULT_ENV_ARGS, DEFAULT_MODE, DEFAULT_STEPS, preset


def parse(argv: list[str]) -> Arguments:
    """Arguments from the command line. Raises ConfigError; tyro itself exits with 2 on flags it cannot read."""
    if file := _peek(argv, "--config", ""):
        argv = [*words_of(file, NAMES), *argv]
    argv, env_args = _take_env_args(argv)
    config, hypers = _defaults(argv)
    config = dataclasses.replace(config, env_args=tuple(sorted((dict(config.env_args) | env_args).items())))
    rules = registry()
    rules.primitive_rule(_whole_number)
    with rules:
        default = Arguments(config=config, hypers=hypers)
        arguments = tyro.cli(Arguments, args=argv, default=default, description=description())
    check(arguments)
    return arguments


def _defaults(argv: list[str]) -> tuple[Config, Hypers]:
    """The defaults of all other flags: those of the preset in the mode. Without --env, those of the default job."""
    job = not _peek(argv, "--env", "")
    asked, recipe = _peek(argv, "--mode", DEFAULT_MODE if job else "task"), _peek(argv, "--recipe", "default")
    modes: dict[str, Mode] = {name: name for name in get_args(Mode)}  # tyro refuses any other
    published = "published" if recipe == "published" else "default"
    config, hypers = preset(_peek(argv, "--preset", "tiny"), modes.get(asked, "task"), published)
    if job:
        args = tuple(sorted(DEFAULT_ENV_ARGS.items()))
        config = dataclasses.replace(config, env=DEFAULT_ENV, env_args=args, steps=DEFAULT_STEPS)
    return config, hypers


def _take_env_args(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Split off `--env.NAME VALUE` and `--env.NAME=VALUE`: their names depend on the environment."""
    remaining, env_args, tokens = [], {}, iter(argv)
    for token in tokens:
        match = re.fullmatch(r"--env\.([\w-]+)(?:=(.*))?", token)
        if not match:
            remaining.append(token)
            continue
        value = match[2] if match[2] is not None else next(tokens, None)
        if value is None:
            raise ConfigError(f"{token} needs a value: {token} VALUE")
        env_args[match[1].replace("-", "_")] = value
    return remaining, env_args


def _peek(argv: list[str], flag: str, default: str) -> str:
    """A flag's last value before the parser sees it: the preset decides the others' defaults."""
    value = default
    for token, successor in itertools.pairwise([*argv, default]):
        if token == flag:
            value = successor
        if token.startswith(flag + "="):
            value = token.split("=", 1)[1]
    return value


def _whole_number(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[int] | None:
    """Whole numbers may be written 1e6."""
    if info.type is not int:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=_read_whole_number,
        is_instance=lambda x: isinstance(x, int),
        str_from_instance=lambda x: [str(x)],
    )


def _read_whole_number(tokens: list[str]) -> int:
    number = float(tokens[0])
    if not number.is_integer():
        raise ValueError(f"{tokens[0]} is not a whole number")
    return int(tokens[0]) if re.fullmatch(r"[+-]?\d+", tokens[0]) else int(number)
