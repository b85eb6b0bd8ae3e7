"""Train a sweep of DreamerV3 agents, with Plan2Explore if asked: `python run.py --seeds 32`.

Arguments -> Config, Hypers -> rounds of a sweep -> files in the run's folder. `--help` lists every setting with its
default and source; `--preset` chooses sizes; `--env.NAME VALUE` sets a constructor argument or parameter of the
environment.
"""

import dataclasses
import itertools
import os
import re
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Annotated, Any, Literal

import tyro

from stages.config import PRESETS, Config, ConfigError, Hypers, preset, validate


@dataclass(frozen=True)
class Arguments:
    """DreamerV3 with Plan2Explore, many seeds in one compiled program."""

    seeds: int = 4
    """Agents to train."""
    seed_start: int = 0
    """Number of the first seed."""
    preset: str = "tiny"
    """Sizes and settings to start from, listed above. The defaults below are those of the preset that is given."""
    logdir: str = ""
    """The run's folder; runs/ENV-MODE-TIME if empty."""
    log_points: int = 20
    """How often in each phase metrics are written and a line is printed."""
    devices: int = 0
    """Devices to share the seeds out over; 0 takes all (on a CPU: one virtual device for each core)."""
    parallel: Literal["auto"] | int = "auto"
    """Seeds trained side by side (of all processes together), the others in further rounds; auto: as many as fit."""
    memory: float = 0.0
    """GB that a process's agents may take by the compiler's account (on accelerators: of each device); 0: 80 % of what
    is free."""
    distributed: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Share the seeds out over all processes of a cluster, which all start this same command (Slurm, Open MPI,
    Kubernetes and TPU pods are detected); the first one tells."""
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
        """What is run, for people: environment and its settings, mode, preset."""
        settings = ", ".join(f"{name} {value}" for name, value in self.config.env_args)
        env = f"{self.config.env} ({settings})" if settings else self.config.env
        return f"{env}, {self.config.mode}, preset {self.preset}"


# ---- arguments -----------------------------------------------------------------------------------------------------


def parse(argv: list[str]) -> Arguments:
    """Arguments from the command line. Raises ConfigError; tyro itself exits with 2 on flags it cannot read."""
    argv, env_args = _take_env_args(argv)
    config, hypers = preset(_peek(argv, "--preset", "tiny"))
    config = dataclasses.replace(config, env_args=env_args)
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_whole_number)
    presets = "\n".join(f"  {name}: {why}" for name, (_, _, why) in PRESETS.items())
    with registry:
        arguments = tyro.cli(
            Arguments,
            args=argv,
            default=Arguments(config=config, hypers=hypers),
            description=f"{__doc__}\nPresets:\n{presets}",
        )
    if arguments.seeds < 1:
        raise ConfigError(f"--seeds must be 1 or more, not {arguments.seeds}")
    if not 0 <= arguments.seed_start < 2**32 - arguments.seeds:
        raise ConfigError(f"--seed-start must be 0 or more and leave all seeds below 2^32, not {arguments.seed_start}")
    if arguments.log_points < 1:
        raise ConfigError(f"--log-points must be 1 or more, not {arguments.log_points}")
    if arguments.devices < 0:
        raise ConfigError(f"--devices must be 0 or more, not {arguments.devices}")
    if arguments.parallel != "auto" and arguments.parallel < 1:
        raise ConfigError(f"--parallel must be auto, or 1 or more, not {arguments.parallel}")
    if not 0 <= arguments.memory < float("inf"):
        raise ConfigError(f"--memory must be finite and 0 or more, not {arguments.memory}")
    validate(arguments.config, arguments.hypers)
    return arguments


def _take_env_args(argv: list[str]) -> tuple[list[str], tuple[tuple[str, str], ...]]:
    """Split off `--env.NAME VALUE` and `--env.NAME=VALUE`: their names depend on the environment."""
    rest, taken, words = [], {}, iter(argv)
    for word in words:
        match = re.fullmatch(r"--env\.([\w-]+)(?:=(.*))?", word)
        if not match:
            rest.append(word)
            continue
        value = match[2] if match[2] is not None else next(words, None)
        if value is None:
            raise ConfigError(f"{word} needs a value: {word} VALUE")
        taken[match[1].replace("-", "_")] = value
    return rest, tuple(sorted(taken.items()))


def _peek(argv: list[str], flag: str, default: str) -> str:
    """A flag's value before the parser sees it: the preset decides the others' defaults."""
    for here, following in itertools.pairwise([*argv, default]):
        if here == flag:
            return following
        if here.startswith(flag + "="):
            return here.split("=", 1)[1]
    return default


def _whole_number(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[int] | None:
    """Whole numbers may be written 1e6."""
    if info.type is not int:
        return None

    def read(words: list[str]) -> int:
        number = float(words[0])
        if not number.is_integer():
            raise ValueError(f"{words[0]} is not a whole number")
        return int(words[0]) if re.fullmatch(r"[+-]?\d+", words[0]) else int(number)

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=read,
        is_instance=lambda x: isinstance(x, int),
        str_from_instance=lambda x: [str(x)],
    )


# ---- the run -------------------------------------------------------------------------------------------------------


# What each of them gave is in docs/speed.md.
XLA_FLAGS = {
    # No products by YNNPACK: while all cores carry seeds, the help that each one calls for stays queued until the chunk
    # ends, and memory grows with every update.
    "xla_cpu_experimental_ynn_fusion_type": "",
    # No unrolled loops: a fifth of the compiler's work, and updates take from 10 % less (tiny) to 5 % more (micro).
    "xla_backend_extra_options": "xla_cpu_disable_loop_unrolling",
}


def start_jax(cache: bool = True) -> None:
    """One virtual CPU device for each core, and the compilation cache; before jax makes its first array.

    XLA_FLAGS and JAX_COMPILATION_CACHE_DIR, where given, win.
    """
    import jax

    flags = os.environ.get("XLA_FLAGS", "")
    if version("jaxlib").startswith(("0.10.", "0.11.")):  # unknown flags are fatal
        ours = [f"--{name}={value}" for name, value in XLA_FLAGS.items() if name not in flags]
        os.environ["XLA_FLAGS"] = " ".join([flags, *ours])
    if "xla_force_host_platform_device_count" not in flags:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jax.config.update("jax_num_cpu_devices", cores)
    if cache and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        home = os.environ.get("XDG_CACHE_HOME", os.path.join(os.path.expanduser("~"), ".cache"))
        jax.config.update("jax_compilation_cache_dir", os.path.join(home, "dreamsweep", "jax"))


def main(argv: list[str]) -> int:
    """The whole program; returns the exit code."""
    from envs import EnvError, make
    from stages.folder import RunFolder, RunFolderError
    from stages.processes import ProcessError, Processes, join
    from stages.record import Record

    started = time.time()
    try:
        arguments = parse(argv)
        place = (arguments.coordinator, arguments.processes, arguments.process)
        with join(*place) if arguments.several else Processes() as processes:
            _check_machines(arguments, processes)
            env = make(arguments.config.env, dict(arguments.config.env_args))
            name = f"{arguments.config.env}-{arguments.config.mode}-{time.strftime('%Y%m%d-%H%M%S')}"
            folder = RunFolder.create(arguments.logdir or os.path.join("runs", name)) if processes.leads else None
            run(arguments, env, Record(arguments, folder, processes, started))
    except (ConfigError, EnvError, RunFolderError, ProcessError) as error:
        print(f"run.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("run.py: interrupted; metrics up to the last printed line are in the run's folder", file=sys.stderr)
        return 130
    return 0


def _check_machines(arguments: Arguments, processes: Any) -> None:
    """Raises ConfigError for devices that are not there, and for processes that were started for different runs."""
    import jax

    there = jax.local_devices()
    if arguments.devices > len(there):
        raise ConfigError(f"--devices {arguments.devices}: there are only {len(there)} ({there[0].platform})")
    if len(set(processes.exchange(repr(dataclasses.replace(arguments, process=-1)).encode()))) > 1:
        raise ConfigError("the processes were not started with the same arguments")


def run(arguments: Arguments, env: Any, record: Any) -> None:
    """Settle what fits side by side, train it round by round, and leave the run's files."""
    import jax

    from stages.rounds import phases_of, settle

    config, hypers = arguments.config, arguments.hypers
    seeds = list(range(arguments.seed_start, arguments.seed_start + arguments.seeds))
    devices = jax.local_devices()[: arguments.devices or None]
    build = lambda width: phases_of(env, config, hypers, devices, width, arguments.log_points)
    limits = {"parallel": arguments.parallel, "allowed": arguments.memory * 1e9}
    record.opens(seeds, devices)
    try:
        settled = settle(seeds, devices, record.processes, build, **limits)
    except BaseException:
        record.withdraws()
        raise
    record.settles(settled)
    for each in settled.rounds:
        record.begins(each)
        train_round(settled.phases, record)
    record.finishes()


def train_round(phases: list[Any], record: Any) -> None:
    """All phases of one round's seeds, from their first step to their last evaluation."""
    from stages.train import adapt

    (sweep, *_), *later = phases
    state, clock, _ = sweep.prefill(sweep.init(record.story.round.mine))
    record.story.untrained = record.evaluate(sweep, state)
    state, clock = train_phase(phases[0], state, clock, record)
    if record.exploring:
        record.story.zero_shot = record.story.evaluation.scores[-1]
    for phase in later:
        record.story.border, state = record.story.step, adapt(state)
        state, clock = train_phase(phase, state, clock, record)
    record.story.final = record.evaluate(phases[-1].sweep, state)


def train_phase(phase: Any, state: Any, clock: Any, record: Any) -> tuple[Any, Any]:
    """Collect and train in equal chunks; tell after each."""
    sweep, begun = phase.sweep, time.time()
    for chunk in range(1, phase.chunks + 1):
        at = time.time()
        state, clock, progress = sweep.advance(state, clock, phase.iterations)
        rows = record.rows(progress, sweep.config, clock, phase.iterations, at)
        tasker = record.evaluate(sweep, state) if record.exploring else None
        left = (time.time() - begun) / chunk * (phase.chunks - chunk)
        record.chunk(sweep.config, rows, tasker, phase.iterations, chunk / phase.chunks, left)
    assert sweep.traces["advance"] == 1, sweep.traces
    return state, clock


if __name__ == "__main__":
    start_jax()
    sys.exit(main(sys.argv[1:]))
