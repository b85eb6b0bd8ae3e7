"""Arguments: all settings of a run, and the check that refuses those that cannot work."""

import dataclasses
import importlib.util
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from stages.cli.settings_file import JsonObject, Settings, flat
from stages.cli.validate import validate
from stages.config import Config, ConfigError, Hypers
from stages.presets import Recipe

MOST_SEEDS = 10_000  # of a run: its log, its picture and its bootstrap hold them all
TrackerName = Literal["none", "tensorboard", "wandb", "trackio"]
TRACKERS = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}
"""The package of each tracker that metrics can go to beside metrics.jsonl (`--log`)."""


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
    """Sizes and settings to start from, listed above."""
    recipe: Recipe = "default"
    """What the mode changes in the preset, as listed above; published: nothing, which leaves Plan2Explore's published
    form and DreamerV3's divisor of advantages, for comparison."""
    logdir: str = ""
    """The run's folder; runs/ENV-MODE-TIME if empty."""
    log_points: int = 20
    """How often in each phase metrics are written and a line is printed."""
    log: TrackerName = "none"
    """A tracker that gets metrics, too: every metric's mean over seeds, and of scores the interquartile mean with its
    interval and each seed's own. metrics.jsonl always has every metric of every seed."""
    devices: int = 0
    """Devices to share the seeds out over; 0 takes all (on a CPU: one virtual device for each core)."""
    parallel: Literal["auto"] | int = "auto"
    """Seeds that are trained side by side, in all processes together; the others follow in further rounds; auto: as
    many as fit into memory."""
    memory: float = 0.0
    """GB that the agents of a process may take (on accelerators: on each device), as the compiler counts them; 0: 80 %
    of the free memory."""
    checkpoint_minutes: float = 10.0
    """How often the whole state is saved beside training, at the end of a chunk; 0: after every chunk. The same command
    with the same --logdir resumes from the newest checkpoint."""
    checkpoint_keep: int = 2
    """Checkpoints that are kept of a round while it trains; after its end, one is. 0: none is written."""
    checkpoint_best: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Evaluate at every log point (mode task does not otherwise), and keep in each checkpoint every seed's agent as it
    was where it scored most: eval, video and export take it with --best."""
    distributed: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Share the seeds out over all processes of a cluster, which all start this same command (Slurm, Open MPI,
    Kubernetes and TPU pods are detected); the first one prints and writes."""
    coordinator: str = ""
    """HOST:PORT of process 0, where no cluster is detected: the same in all processes; implies --distributed."""
    processes: int = 0
    """How many processes there are, where no cluster is detected."""
    process: int = -1
    """Which of them this one is, from 0."""
    config: Config = field(default_factory=Config)
    hypers: Hypers = field(default_factory=Hypers)

    @property
    def is_distributed(self) -> bool:
        """Whether the run has several processes."""
        return self.distributed or bool(self.coordinator) or self.processes != 0 or self.process != -1

    @property
    def title(self) -> str:
        """Environment and its settings, mode, preset, for people."""
        return f"{env_title(self.config.env, self.config.env_args)}, {mode_title(self.flat)}, preset {self.preset}"

    @property
    def flat(self) -> JsonObject:
        """All arguments by their paths, such as config.replay.batch_size, with JSON's values."""
        return flat(json.loads(json.dumps(dataclasses.asdict(self))))


def env_title(name: str, args: Iterable[tuple[str, object]]) -> str:
    """An environment with its settings, such as "DeepSea-bsuite (size 10)"."""
    settings = ", ".join(f"{key} {value}" for key, value in args)
    return f"{name} ({settings})" if settings else name


def mode_title(settings: Settings) -> str:
    """The mode of settings by their paths, with the explorer's reward where that is not disagreement."""
    mode, reward = settings["config.mode"], settings["config.explorer_reward"]
    return mode if reward == "disagreement" else f"{mode} ({reward} reward)"


DEFAULTS = Arguments(config=Config(), hypers=Hypers()).flat
"""Arguments without any preset. For a run that is older than an argument, this is the argument's value."""
NAMES = [name.removeprefix("config.") for name in flat(dataclasses.asdict(Arguments()))]
"""Every setting, by its name on the command line."""


def check(arguments: Arguments) -> None:
    """Raises ConfigError, one line, for arguments that cannot work."""
    for name, least in {"seeds": 1, "log_points": 1, "devices": 0, "checkpoint_keep": 0}.items():
        if (value := getattr(arguments, name)) < least:
            raise ConfigError(f"--{name.replace('_', '-')} must be {least} or more, not {value}")
    for name in ("checkpoint_minutes", "memory"):
        if not 0 <= (value := getattr(arguments, name)) < float("inf"):
            raise ConfigError(f"--{name.replace('_', '-')} must be finite and 0 or more, not {value}")
    if arguments.seeds > MOST_SEEDS:
        raise ConfigError(
            f"--seeds must be at most {MOST_SEEDS:,}, not {arguments.seeds:,}: train further ones in runs of their own "
            "(--seed-start)"
        )
    if not 0 <= arguments.seed_start < 2**32 - arguments.seeds:
        raise ConfigError(f"--seed-start must be 0 or more and leave all seeds below 2^32, not {arguments.seed_start}")
    if arguments.parallel != "auto" and arguments.parallel < 1:
        raise ConfigError(f"--parallel must be auto, or 1 or more, not {arguments.parallel}")
    if arguments.checkpoint_best and not arguments.checkpoint_keep:
        raise ConfigError("--checkpoint-best keeps agents in checkpoints: give --checkpoint-keep 1 or more")
    if arguments.log != "none" and importlib.util.find_spec(package := TRACKERS[arguments.log]) is None:
        raise ConfigError(
            f"--log {arguments.log} needs {package}, which is not installed: python -m pip install {package}"
        )
    validate(arguments.config, arguments.hypers)
