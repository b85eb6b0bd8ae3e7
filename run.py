"""Train a sweep of DreamerV3 agents, with Plan2Explore if asked: `python run.py --seeds 32`.

Arguments -> Config, Hypers -> sweep -> files in the run's folder. `--help` lists every setting with its default and
source; `--preset` chooses sizes; `--env.NAME VALUE` sets a constructor argument or parameter of the environment.
"""

import dataclasses
import os
import re
import sys
import time
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import tyro

from stages.config import PRESETS, Config, ConfigError, Hypers, preset, validate


@dataclass(frozen=True)
class Arguments:
    """DreamerV3 with Plan2Explore, many seeds in one compiled program."""

    seeds: int = 4
    """Agents trained side by side."""
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
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    hypers: Hypers = field(default_factory=Hypers)

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
            config=(tyro.conf.FlagConversionOff,),
        )
    if arguments.seeds < 1:
        raise ConfigError(f"--seeds must be 1 or more, not {arguments.seeds}")
    if not 0 <= arguments.seed_start < 2**32 - arguments.seeds:
        raise ConfigError(f"--seed-start must be 0 or more and leave all seeds below 2^32, not {arguments.seed_start}")
    if arguments.log_points < 1:
        raise ConfigError(f"--log-points must be 1 or more, not {arguments.log_points}")
    if arguments.devices < 0:
        raise ConfigError(f"--devices must be 0 or more, not {arguments.devices}")
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
    for here, following in zip(argv, [*argv[1:], default], strict=True):
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


def start_jax(cache: bool = True) -> None:
    """One virtual CPU device for each core, and the compilation cache; before jax makes its first array.

    XLA_FLAGS and JAX_COMPILATION_CACHE_DIR, where given, win.
    """
    import jax

    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jax.config.update("jax_num_cpu_devices", cores)
    if cache and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        home = os.environ.get("XDG_CACHE_HOME", os.path.join(os.path.expanduser("~"), ".cache"))
        jax.config.update("jax_compilation_cache_dir", os.path.join(home, "dreamsweep", "jax"))


def main(argv: list[str]) -> int:
    """The whole program; returns the exit code."""
    from envs import EnvError, make
    from stages.folder import RunFolder, RunFolderError

    started = time.time()
    try:
        arguments = parse(argv)
        _check_devices(arguments)
        env = make(arguments.config.env, dict(arguments.config.env_args))
        name = f"{arguments.config.env}-{arguments.config.mode}-{time.strftime('%Y%m%d-%H%M%S')}"
        folder = RunFolder.create(arguments.logdir or os.path.join("runs", name))
        run(arguments, env, folder, started)
    except (ConfigError, EnvError, RunFolderError) as error:
        print(f"run.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("run.py: interrupted; metrics up to the last printed line are in the run's folder", file=sys.stderr)
        return 130
    return 0


def _check_devices(arguments: Arguments) -> None:
    import jax

    there = jax.devices()
    if arguments.devices > len(there):
        raise ConfigError(f"--devices {arguments.devices}: there are only {len(there)} ({there[0].platform})")


def run(arguments: Arguments, env: Any, folder: Any, started: float) -> None:
    """Train all phases, evaluate, and leave config.json, metrics.jsonl, summary.json and curves.png in the folder."""
    import jax

    from stages.agent import parameter_counts
    from stages.sweep import Sweep, mesh_for
    from stages.train import adapt

    config, hypers = arguments.config, arguments.hypers
    seeds = list(range(arguments.seed_start, arguments.seed_start + arguments.seeds))
    mesh = mesh_for(len(seeds), jax.devices()[: arguments.devices or None])
    folder.write_config(dataclasses.asdict(arguments) | {"versions": versions()})
    record = Record(arguments, seeds, folder, started)
    record.say(
        f"{arguments.title}: seeds {seeds[0]} to {seeds[-1]} on {mesh.size} "
        f"{mesh.devices.flat[0].platform} device(s); files in {folder.path}"
    )
    record.say("making the agents and collecting the first rows ...")
    sweep = Sweep(env, config, hypers, mesh)
    state = sweep.init(seeds)
    counts = parameter_counts(jax.tree.map(lambda x: x[0], state.agent))
    record.say(f"{sum(counts.values()):,} parameters a seed: " + ", ".join(f"{k} {v:,}" for k, v in counts.items()))
    state, clock, _ = sweep.prefill(state)
    record.untrained = record.evaluate(sweep, state)

    state, clock = train_phase(sweep, state, clock, config.steps - config.prefill * config.envs, record)
    if config.adapt_steps:
        record.zero_shot, record.border = record.evaluation.scores[-1], record.step
        sweep = Sweep(env, dataclasses.replace(config, mode="task"), hypers, mesh)
        state, clock = train_phase(sweep, adapt(state), clock, config.adapt_steps, record)
    elif record.exploring:
        record.zero_shot = record.evaluation.scores[-1]
    record.finish(record.evaluate(sweep, state))


def train_phase(sweep: Any, state: Any, clock: Any, todo: int, record: "Record") -> tuple[Any, Any]:
    """Collect `todo` rows of every seed, and train on them, in equal chunks; log after each."""
    iterations, chunks = plan(sweep.config, todo, record.arguments.log_points)
    record.say(f"phase {sweep.config.mode}: compiling ...")
    begun = time.time()
    sweep.compile(state, clock, iterations)
    record.compiled(time.time() - begun)
    begun = time.time()
    for chunk in range(1, chunks + 1):
        at = time.time()
        state, clock, progress = sweep.advance(state, clock, iterations)
        # Reading the numbers waits for the chunk to end.
        rows = metric_rows(progress, record.seeds, sweep.config, int(clock.step), iterations, at)
        tasker = record.evaluate(sweep, state) if record.exploring else None
        left = (time.time() - begun) / chunk * (chunks - chunk)
        record.chunk(sweep.config, rows, tasker, iterations, chunk / chunks, left)
    assert sweep.traces["advance"] == 1, sweep.traces
    return state, clock


def plan(config: Config, todo: int, points: int) -> tuple[int, int]:
    """(iterations of a chunk, chunks) that collect `todo` rows or little more: chunks are equal, so one is compiled."""
    total = max(1, -(-todo // (config.schedule[0] * config.envs)))
    iterations = -(-total // points)
    return iterations, -(-total // iterations)


# ---- what is told --------------------------------------------------------------------------------------------------


@dataclass
class Curve:
    """Points of the picture: env steps of a seed, and every seed's score there."""

    steps: list[int] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)

    def add(self, step: int, scores: np.ndarray) -> None:
        """One point; scores [seeds]."""
        self.steps.append(step)
        self.scores.append(np.asarray(scores, np.float64))


@dataclass
class Record:
    """What a run has told so far: to the terminal, to metrics.jsonl, and at the end to the summary and the picture."""

    arguments: Arguments
    seeds: list[int]
    folder: Any
    started: float
    training: Curve = field(default_factory=Curve)
    evaluation: Curve = field(default_factory=Curve)
    untrained: np.ndarray = field(default_factory=lambda: np.zeros(0))
    zero_shot: np.ndarray | None = None
    border: int | None = None
    step: int = 0
    updates: int = 0
    evaluations: int = 0
    compile_seconds: float = 0.0

    @property
    def exploring(self) -> bool:
        """Whether the run's first phase explores: then the tasker is evaluated at every log point."""
        return self.arguments.config.mode != "task"

    def say(self, line: str) -> None:
        """A line to the terminal, at once."""
        print(line, flush=True)

    def compiled(self, seconds: float) -> None:
        """Note a compilation."""
        self.compile_seconds += seconds
        self.say(f"compiled in {seconds:.1f} s")

    def evaluate(self, sweep: Any, state: Any) -> np.ndarray:
        """The tasker's mean score over fresh evaluation episodes, [seeds]."""
        scores, _ = sweep.evaluate(state, self.seeds, self.evaluations)
        self.evaluations += 1
        return np.asarray(scores).mean(1)

    def chunk(
        self,
        config: Config,
        rows: list[dict[str, Any]],
        tasker: np.ndarray | None,
        iterations: int,
        done: float,
        left: float,
    ) -> None:
        """One log point: metrics.jsonl, curves, a line of progress."""
        self.step = rows[0]["step"]
        self.updates += iterations * config.schedule[1]
        self.training.add(self.step, self._known(np.array([row["episode/score"] for row in rows])))
        whole = self.arguments.config.steps + (self.arguments.config.adapt_steps if self.border is not None else 0)
        words = [f"{config.mode:>7} {done:4.0%}", f"{self.step:,}/{whole:,} steps"]
        words.append(f"score {_iqm(self.training.scores[-1])}")
        if tasker is not None:
            self.evaluation.add(self.step, tasker)
            rows = [row | {"eval/score": float(score)} for row, score in zip(rows, tasker, strict=True)]
            words.append(f"{'zero-shot' if config.mode == 'explore' else 'tasker'} {_iqm(tasker)}")
        self.folder.append_metrics(rows)
        speed = rows[0]["fps/policy"] * len(rows)
        self.say("  ".join([*words, f"{speed:,.0f} steps/s", f"{int(left) // 60}:{int(left) % 60:02d} left"]))
        broken = [row["seed"] for row in rows if not all(np.isfinite(v) for k, v in row.items() if "/loss/" in k)]
        if broken:
            print(f"run.py: warning: losses of seeds {broken} are not finite; try a lower --hypers.lr", file=sys.stderr)

    def _known(self, scores: np.ndarray) -> np.ndarray:
        """Scores [seeds], with a seed's last one where no episode of it ended since (metrics.jsonl keeps the gap)."""
        return np.where(np.isnan(scores), self.training.scores[-1], scores) if self.training.scores else scores

    def finish(self, scores: np.ndarray) -> None:
        """curves.png, summary.json and the table. `scores` [seeds] are the final evaluation's."""
        from stages import report

        config, interval = self.arguments.config, report.summarise(scores, self.seeds)
        curve = self.evaluation if self.exploring else self.training
        report.plot_curves(
            self.folder.path / "curves.png",
            np.array(curve.steps),
            np.stack(curve.scores, 1),
            title=self.arguments.title,
            ylabel="tasker's evaluation score" if self.exploring else "training score",
            markers=None if self.border is None else [(self.border, "adapts from here")],
            baseline=(float(self.untrained.mean()), "untrained"),
        )
        wall, memory = time.time() - self.started, peak_memory_mb()
        self.folder.write_summary(
            {
                "env": config.env,
                "env_args": dict(config.env_args),
                "mode": config.mode,
                "preset": self.arguments.preset,
                "seeds": self.seeds,
                "env_steps": self.step,
                "updates": self.updates,
                "score": scores.tolist(),
                **dataclasses.asdict(interval),
                "zero_shot": None if self.zero_shot is None else self.zero_shot.tolist(),
                "untrained": self.untrained.tolist(),
                "compile_seconds": round(self.compile_seconds, 2),
                "wall_seconds": round(wall, 2),
                "peak_memory_mb": round(memory, 1),
                "versions": versions(),
            }
        )
        report.print_table(
            interval, f"{self.arguments.title}: final evaluation, {config.eval_episodes} episodes a seed"
        )
        self.say(
            f"{self.step:,} env steps and {self.updates:,} updates a seed in {wall:.0f} s "
            f"({self.compile_seconds:.0f} s compiling the scan), {memory:,.0f} MB; see {self.folder.path}"
        )


def metric_rows(
    progress: Any, seeds: list[int], config: Config, clock_step: int, iterations: int, since: float
) -> list[dict[str, Any]]:
    """One metrics row for each seed, with DreamerV3's names; episode/score is NaN where no episode ended."""
    episodes, metrics = progress.episodes, {name: np.asarray(value) for name, value in progress.metrics.items()}
    count = np.asarray(episodes.count)
    with np.errstate(invalid="ignore"):
        scores, lengths = np.asarray(episodes.score) / count, np.asarray(episodes.length) / count
    spent, (steps, updates) = time.time() - since, config.schedule
    shared = {
        "fps/policy": round(iterations * steps * config.envs / spent, 2),
        "fps/train": round(iterations * updates * config.replay.batch_size * config.replay.batch_length / spent, 2),
    }
    rows = []
    for i, seed in enumerate(seeds):
        row = {"step": clock_step * config.envs, "seed": seed, "phase": config.mode}
        row |= {"episode/score": float(scores[i]), "episode/length": float(lengths[i]), "episode/count": int(count[i])}
        rows.append(row | {f"train/{name}": float(value[i]) for name, value in metrics.items()} | shared)
    return rows


def _iqm(scores: np.ndarray) -> str:
    """The interquartile mean of finite scores, in words."""
    from stages import report

    if not np.isfinite(scores).any():
        return "-"
    return f"{report.summarise(scores, list(range(len(scores))), resamples=1).iqm:.2f}"


def peak_memory_mb() -> float:
    """Peak memory: the accelerator's own count, or the process's resident set."""
    import jax

    device = jax.devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 1e6
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    from importlib.metadata import version

    names = ("jax", "jaxlib", "equinox", "optax", "gymnax", "numpy")
    return {"python": sys.version.split()[0]} | {name: version(name) for name in names}


if __name__ == "__main__":
    start_jax()
    sys.exit(main(sys.argv[1:]))
