"""Arguments: the command line -> what to run. Raises ConfigError, one line that says what to change."""

import dataclasses
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

import tyro

from stages.cli.settings_file import flat, words_of
from stages.cli.trackers import Kind, check_sink
from stages.cli.validate import validate
from stages.config import Config, ConfigError, EnsembleConfig, Hypers, Mode, ModelConfig, ReplayConfig
from stages.presets import DEFAULT_ENV, DEFAULT_ENV_ARGS, DEFAULT_MODE, DEFAULT_STEPS, PRESETS, Recipe, preset

DESCRIPTION = """Train a sweep of DreamerV3 agents, with Plan2Explore if asked: `python run.py --seeds 32`.

`--help` lists every setting with its default and source; `--preset` chooses sizes; `--env.NAME VALUE` sets a
constructor argument or parameter of the environment.

What runs have left (each has a --help of its own):
  python run.py compare RUN RUN ...   scores with intervals, curves, probability of improvement: table and picture
  python run.py report RUN            one page of HTML: scores, curves, losses, entropies, exploration, settings
  python run.py eval RUN              its agents play again: scores, and errors of the world model run forward
  python run.py video RUN             a GIF of an agent playing, and of what its world model predicts
  python run.py export RUN            a small copy of it, for these four and not for training
"""


MODES = """
Without --env, DeepSea-bsuite of size 8 is trained in mode mix. Beside the preset, modes change:
  explore, mix: an ensemble of 5 members that read the decoded observation, predict a fixed projection of the next one,
    carry frozen random priors and have two updates of their own for each of the model's; advantages divided by their
    own range; train ratio 64, 0.1 free nats, entropy bonus 0.05 for the explorer
  random: train ratio 64 and 0.1 free nats, as the control of explore and mix
"""

MOST_SEEDS = 10_000  # of a run: its log, its picture and its bootstrap hold them all


@dataclass(frozen=True)
class Arguments:
    """DreamerV3 with Plan2Explore, many seeds in one compiled program."""

    seeds: int = 4
    """Agents to train."""
    seed_start: int = 0
    """Number of the first seed."""
    sweep: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A setting to sweep, NAME=VALUE,VALUE,... (lr=1e-4,3e-4,1e-3), once for each: all combinations are trained, each
    with all seeds. Hyperparameters are trained side by side in one program; of other settings, such as
    ensemble.members=3,5 or env.size=10,20, each choice is a program, one after the other."""
    trials: int = 0
    """Random search: so many combinations, with values drawn from --sweep NAME=log:LOW:HIGH, uniform:LOW:HIGH or a
    list; 0: all combinations of the lists."""
    config_file: Annotated[str, tyro.conf.arg(name="config", metavar="FILE")] = ""
    """Settings from a file, JSON or TOML: {"preset": "tiny", "hypers": {"lr": 1e-3}, ...}, or the config.json of a run,
    which then is made again. Flags come after it."""
    preset: str = "tiny"
    """Sizes and settings to start from, listed above. The defaults below are those of the preset in the mode."""
    recipe: Recipe = "default"
    """What modes explore, mix and random change in the preset, as listed above; published: nothing, which leaves
    Plan2Explore's published form, for comparison."""
    logdir: str = ""
    """The run's folder; runs/ENV-MODE-TIME if empty."""
    log_points: int = 20
    """How often in each phase metrics are written and a line is printed."""
    log: Kind = "none"
    """Where metrics go as well: every metric's mean over seeds, and of scores the interquartile mean with its interval
    and each seed's own. metrics.jsonl always has all of every seed."""
    devices: int = 0
    """Devices to share the seeds out over; 0 takes all (on a CPU: one virtual device for each core)."""
    parallel: Literal["auto"] | int = "auto"
    """Seeds trained side by side (of all processes together), the others in further rounds; auto: as many as fit."""
    memory: float = 0.0
    """GB that a process's agents may take by the compiler's account (on accelerators: of each device); 0: 80 % of what
    is free."""
    checkpoint_minutes: float = 10.0
    """How often the whole state is saved beside training, at the end of a chunk; 0: after every chunk. The same command
    with the same --logdir goes on from the newest."""
    checkpoint_keep: int = 2
    """Checkpoints of a round that are kept while it trains, and one after it; 0: none is written."""
    distributed: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Share the seeds out over all processes of a cluster, which all start this same command (Slurm, Open MPI,
    Kubernetes and TPU pods are detected); the first one prints and writes."""
    coordinator: str = ""
    """HOST:PORT of process 0, where no cluster is detected: the same in all processes; implies --distributed."""
    processes: int = 0
    """How many processes there are, where no cluster is detected."""
    process: int = -1
    """Which of them this one is, from 0."""
    config: Annotated[Config, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff] = field(default_factory=Config)
    hypers: Hypers = field(default_factory=Hypers)

    @property
    def several(self) -> bool:
        """Whether the run has further processes."""
        return self.distributed or bool(self.coordinator) or self.processes != 0 or self.process != -1

    @property
    def title(self) -> str:
        """Environment and its settings, mode, preset, for people."""
        return f"{env_title(self.config.env, self.config.env_args)}, {mode_title(self.flat)}, preset {self.preset}"

    @property
    def flat(self) -> dict[str, Any]:
        """All of them by their paths, as JSON has them."""
        return flat(json.loads(json.dumps(dataclasses.asdict(self))))


def env_title(name: str, args: Iterable[tuple[str, Any]]) -> str:
    """An environment with its settings, such as "DeepSea-bsuite (size 10)"."""
    settings = ", ".join(f"{key} {value}" for key, value in args)
    return f"{name} ({settings})" if settings else name


def mode_title(settings: Mapping[str, Any]) -> str:
    """The mode of settings by their paths, with the explorer's reward where that is not disagreement."""
    mode, reward = settings["config.mode"], settings["config.explorer_reward"]
    return mode if reward == "disagreement" else f"{mode} ({reward} reward)"


DEFAULTS = Arguments(config=Config(), hypers=Hypers()).flat
"""Arguments as no preset has changed them: those that are newer than a run count as these in it."""


# ---- going on with a run -------------------------------------------------------------------------------------------

FREE = {
    *"config_file logdir log devices parallel memory checkpoint_minutes checkpoint_keep".split(),
    *"distributed coordinator process config.block config.lane".split(),
}
"""Arguments that change no number of a run, and so may differ when it goes on."""
GROWING = ("config.steps", "config.adapt_steps")
"""Arguments that may be raised."""


def flag_of(name: str) -> str:
    """The flag of an argument by its path."""
    return "--" + name.removeprefix("config.").replace("_", "-")


def beyond_preset(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their paths, as JSON has them -> of those that their preset has otherwise, what it has.

    Nothing where the preset is not known any more.
    """
    defaults = _flat_preset(settings, settings["config.mode"])
    return {name: was for name, was in defaults.items() if name in settings and settings[name] != was}


def set_by_mode(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the mode changes in the preset, by path: its values. Nothing where the preset is not known any more."""
    plain, defaults = _flat_preset(settings, "task"), _flat_preset(settings, settings["config.mode"])
    return {name: value for name, value in defaults.items() if value != plain[name] and name != "config.mode"}


def _flat_preset(settings: Mapping[str, Any], mode: Mode) -> dict[str, Any]:
    """The preset of settings in a mode, by path; nothing for one that is not known any more."""
    try:
        config, hypers = preset(settings["preset"], mode, settings.get("recipe", "default"))
    except ConfigError:
        return {}
    return flat(json.loads(json.dumps({"config": dataclasses.asdict(config), "hypers": dataclasses.asdict(hypers)})))


def check_same_run(arguments: Arguments, saved: Mapping[str, Any]) -> bool:
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
    if refused := sorted(set(differing) - FREE - set(raised)):
        named = [f"{flag_of(name)} {old.get(name)} (now {new.get(name, 'gone')})" for name in refused[:5]]
        unlisted = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
        raise ConfigError(
            f"the run in {arguments.logdir} was made with {', '.join(named)}{unlisted}: give it the same again (only "
            "--steps and --adapt-steps may grow), or choose another --logdir"
        )
    return bool(raised)


def settings_of(saved: Mapping[str, Any]) -> tuple[Config, Hypers]:
    """Config and Hypers of a run from its config.json. Raises ConfigError if they are of another program."""
    try:
        config = dict(saved["config"])
        parts = {"model": ModelConfig, "ensemble": EnsembleConfig, "replay": ReplayConfig}
        made: dict[str, Any] = {name: make(**config[name]) for name, make in parts.items()}
        made["env_args"] = tuple((name, value) for name, value in config["env_args"])
        return Config(**config | made), Hypers(**saved["hypers"])
    except (KeyError, TypeError, ValueError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ConfigError(
            f"the run's config.json is of another version of this program ({why}): check out the one that made it"
        ) from error


NAMES = [name.removeprefix("config.") for name in flat(dataclasses.asdict(Arguments()))]
"""Every setting, by its name on the command line."""


# ---- the command line ----------------------------------------------------------------------------------------------


def parse(argv: list[str]) -> Arguments:
    """Arguments from the command line. Raises ConfigError; tyro itself exits with 2 on flags it cannot read."""
    if file := _peek(argv, "--config", ""):
        argv = [*words_of(file, NAMES), *argv]
    argv, env_args = _take_env_args(argv)
    config, hypers = _defaults(argv)
    config = dataclasses.replace(config, env_args=tuple(sorted((dict(config.env_args) | env_args).items())))
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_whole_number)
    presets = "\n".join(f"  {name}: {why}" for name, (_, _, why) in PRESETS.items())
    with registry:
        arguments = tyro.cli(
            Arguments,
            args=argv,
            default=Arguments(config=config, hypers=hypers),
            description=f"{DESCRIPTION}\nPresets:\n{presets}\n{MODES}",
        )
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


def check(arguments: Arguments) -> None:
    """Raises ConfigError, one line, for arguments that cannot work."""
    if arguments.seeds < 1:
        raise ConfigError(f"--seeds must be 1 or more, not {arguments.seeds}")
    if arguments.seeds > MOST_SEEDS:
        raise ConfigError(
            f"--seeds must be at most {MOST_SEEDS:,}, not {arguments.seeds:,}: train further ones in runs of their own "
            "(--seed-start)"
        )
    if not 0 <= arguments.seed_start < 2**32 - arguments.seeds:
        raise ConfigError(f"--seed-start must be 0 or more and leave all seeds below 2^32, not {arguments.seed_start}")
    if arguments.log_points < 1:
        raise ConfigError(f"--log-points must be 1 or more, not {arguments.log_points}")
    if arguments.devices < 0:
        raise ConfigError(f"--devices must be 0 or more, not {arguments.devices}")
    if arguments.parallel != "auto" and arguments.parallel < 1:
        raise ConfigError(f"--parallel must be auto, or 1 or more, not {arguments.parallel}")
    if not 0 <= arguments.checkpoint_minutes < float("inf"):
        raise ConfigError(f"--checkpoint-minutes must be finite and 0 or more, not {arguments.checkpoint_minutes}")
    if arguments.checkpoint_keep < 0:
        raise ConfigError(f"--checkpoint-keep must be 0 or more, not {arguments.checkpoint_keep}")
    if not 0 <= arguments.memory < float("inf"):
        raise ConfigError(f"--memory must be finite and 0 or more, not {arguments.memory}")
    check_sink(arguments.log)
    validate(arguments.config, arguments.hypers)


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
