"""Help: what `--help` says, and in which order: what most runs set comes first, what clusters need last."""

import dataclasses
import shutil
import textwrap
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import docstring_parser
import tyro
from tyro.constructors import StructConstructorSpec, StructFieldSpec, StructTypeInfo

from stages.cli.arguments import Arguments
from stages.config import Config
from stages.presets import PRESETS

SHOWN_FIRST = ("env", "mode", "preset", "steps", "seeds", "logdir", "adapt_steps", "sweep", "trials")
LAST = tuple("devices parallel memory vmap_width imagine_batch distributed coordinator processes process".split())
TOP = "Train a sweep of DreamerV3 agents that explore, as in Plan2Explore, or do not."
START = {
    "python run.py --seeds 32": "trains DeepSea-bsuite of size 8 in mode mix, as every command without --env",
    "--preset NAME": "chooses sizes; the defaults below are those of the preset in the mode",
    "--env.NAME VALUE": "sets a constructor argument or parameter of the environment",
}
COMMANDS = {
    "envs [SUITE]": "lists environments: what --env takes",
    "compare RUN RUN ...": "scores with intervals, curves, probability of improvement: table and picture",
    "report RUN": "one page of HTML: scores, curves, losses, entropies, exploration, settings",
    "eval RUN": "its agents play again: scores, and errors of the world model run forward",
    "video RUN": "a GIF of an agent playing, and of what its world model predicts",
    "export RUN": "a small copy of it, for these four and not for training",
}
MODES = {
    "all, of preset tiny only": "the tasker's advantages divided by their root mean square, entropy bonus 0.1 for the "
    "tasker, one distribution over reward and end, and a discount horizon of 100",
    "explore, mix": "an ensemble of 5 members that read the decoded observation, predict a fixed projection of the "
    "next one, carry frozen random priors and have two updates of their own for each of the model's; advantages "
    "divided by their own range; a reward that is less where the episode has been before, more where members disagree, "
    "centred, and with a horizon of 30 steps; train ratio 64, 0.1 free nats, entropy bonus 0.05 for the explorer",
    "random": "train ratio 64 and 0.1 free nats, as the control of explore and mix",
}


def description() -> str:
    """What stands above the flags, in lines as wide as the terminal."""
    width = shutil.get_terminal_size().columns
    presets = {name: why for name, (_, _, why) in PRESETS.items()}
    commands = {f"python run.py {words}": what for words, what in COMMANDS.items()}
    tables = {"To begin with": START, "Other commands (each has a --help of its own)": commands, "Presets": presets}
    tables["What modes change beside the preset"] = MODES
    return TOP + "".join(f"\n\n{title}:\n{_rows(table, width)}" for title, table in tables.items())


def _rows(table: dict[str, str], width: int) -> str:
    """A line for each entry; what does not fit goes on in further lines, indented."""
    entries = (f"  {name}: {text}" for name, text in table.items())
    return "\n".join(textwrap.fill(entry, width, subsequent_indent="    ") for entry in entries)


def registry() -> tyro.constructors.ConstructorRegistry:
    """tyro's rules for settings: their words, flow, order."""
    rules = tyro.constructors.ConstructorRegistry()
    rules.struct_rule(_settings)
    rules.struct_rule(_arguments)  # the last rule is asked first
    return rules


def _settings(info: StructTypeInfo) -> StructConstructorSpec | None:
    """A group of settings, each with its docstring as one paragraph: tyro would keep the source's line breaks."""
    if not dataclasses.is_dataclass(info.type):
        return None
    return StructConstructorSpec(info.type, tuple(_fields(info.type, info.default).values()))


def _arguments(info: StructTypeInfo) -> StructConstructorSpec | None:
    """The arguments of a run with those of its Config beside them, in the order of help."""
    if info.type is not Arguments:
        return None
    of_run = _fields(Arguments, info.default)
    of_config = _fields(Config, of_run.pop("config").default)
    for name, field in of_config.items():  # they take True or False
        of_config[name] = dataclasses.replace(field, type=Annotated[field.type, tyro.conf.FlagConversionOff])
    fields = of_run | of_config
    middle = [name for name in fields if name not in (*SHOWN_FIRST, *LAST)]

    def make(**values: object) -> Arguments:
        config = dataclasses.replace(info.default.config, **{name: values.pop(name) for name in of_config})
        return dataclasses.replace(info.default, config=config, **values)

    return StructConstructorSpec(make, tuple(fields[name] for name in (*SHOWN_FIRST, *middle, *LAST)))


def _fields(settings: Any, defaults: object) -> dict[str, StructFieldSpec]:
    """The fields of a dataclass by name, with the values of `defaults`."""
    types = get_type_hints(settings, include_extras=True)
    names = [field.name for field in dataclasses.fields(settings)]
    return {
        name: StructFieldSpec(name, types[name], getattr(defaults, name), _words_of(settings, name)) for name in names
    }


def _words_of(settings: object, name: str) -> Callable[[], str | None]:
    """The docstring of a setting, read when it is needed: that takes long."""

    def read() -> str | None:
        words = {param.arg_name: param.description for param in docstring_parser.parse_from_object(settings).params}
        return " ".join((words.get(name) or "").split()) or None

    return read
