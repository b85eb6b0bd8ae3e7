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
    """Sizes and settings to start from (below: the defaults of this preset). Choices: see PRESETS in --help's end."""
    logdir: str = ""
    """The run's folder; runs/ENV-MODE-TIME if empty."""
    log_points: int = 20
    """How often in each phase metrics are written and a line is printed."""
    devices: int = 0
    """Devices to share the seeds out over; 0 takes all (on a CPU: one virtual device for each core)."""
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    hypers: Hypers = field(default_factory=Hypers)


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


class Curve:
    """Points gathered for the picture: env steps of a seed, and every seed's score there."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.scores: list[np.ndarray] = []

    def add(self, step: int, scores: np.ndarray) -> None:
        """One point; scores [seeds]."""
        self.steps.append(step)
        self.scores.append(np.asarray(scores, np.float64))


def start_jax() -> None:
    """One virtual CPU device for each core, and the compilation cache; before jax makes its first array.

    XLA_FLAGS and JAX_COMPILATION_CACHE_DIR, where given, win.
    """
    import jax

    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jax.config.update("jax_num_cpu_devices", cores)
    if not jax.config.jax_compilation_cache_dir:
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

    from stages import report
    from stages.agent import parameter_counts
    from stages.sweep import Sweep, mesh_for
    from stages.train import adapt

    config, hypers = arguments.config, arguments.hypers
    seeds = list(range(arguments.seed_start, arguments.seed_start + arguments.seeds))
    devices = jax.devices()
    mesh = mesh_for(len(seeds), devices[: arguments.devices or None])
    phases = [config] + ([dataclasses.replace(config, mode="task")] if config.adapt_steps else [])
    exploring = config.mode != "task"

    folder.write_config(dataclasses.asdict(arguments) | {"versions": versions()})
    print(
        f"{config.env}, {config.mode}, preset {arguments.preset}: seeds {seeds[0]} to {seeds[-1]} on {mesh.size} "
        f"{devices[0].platform} device(s); files in {folder.path}"
    )

    training, evaluation, markers, untrained = Curve(), Curve(), [], np.zeros(0)
    compile_seconds, updates, zero_shot, step = 0.0, 0, None, 0
    state = clock = sweep = None
    for number, phase in enumerate(phases):
        sweep = Sweep(env, phase, hypers, mesh)
        if number == 0:
            state = sweep.init(seeds)
            counts = parameter_counts(jax.tree.map(lambda x: x[0], state.agent))
            print(f"{sum(counts.values()):,} parameters a seed: " + ", ".join(f"{k} {v:,}" for k, v in counts.items()))
            state, clock, _ = sweep.prefill(state)
            todo = config.steps - config.prefill * config.envs
        else:
            markers.append((step, "adapts from here"))
            state, todo = adapt(state), config.adapt_steps
        untrained = _evaluate(sweep, state, seeds, 0) if number == 0 else untrained
        iterations, chunks = plan(phase, todo, arguments.log_points)
        print(f"phase {phase.mode}: compiling ...", end=" ", flush=True)
        begun = time.time()
        sweep.compile(state, clock, iterations)
        compile_seconds += time.time() - begun
        print(f"{time.time() - begun:.1f} s")

        begun = time.time()
        for chunk in range(1, chunks + 1):
            at = time.time()
            state, clock, progress = sweep.advance(state, clock, iterations)
            progress = jax.tree.map(np.asarray, progress)
            spent = time.time() - at
            step = int(clock.step) * config.envs
            updates += iterations * config.schedule[1]
            rows, scores = metric_rows(progress, seeds, phase.mode, step, iterations, phase, spent)
            training.add(step, scores)
            if exploring:
                tasker = _evaluate(sweep, state, seeds, 1 + len(evaluation.steps))
                evaluation.add(step, tasker)
                rows = [row | {"eval/score": float(s)} for row, s in zip(rows, tasker, strict=True)]
            folder.append_metrics(rows)
            left = (time.time() - begun) / chunk * (chunks - chunk)
            print(progress_line(phase, step, chunk / chunks, training, evaluation, rows, left), flush=True)
            warn_of_nan(progress, seeds)
        if phase.mode != "task":
            zero_shot = evaluation.scores[-1]

        assert sweep.traces["advance"] == 1, sweep.traces

    scores = _evaluate(sweep, state, seeds, 1 + len(evaluation.steps))
    interval = report.summarise(scores, seeds)
    curve = evaluation if exploring else training
    report.plot_curves(
        folder.path / "curves.png",
        np.array(curve.steps),
        np.stack(curve.scores, 1),
        title=f"{config.env}, {config.mode}, preset {arguments.preset}",
        ylabel="tasker's evaluation score" if exploring else "training score",
        markers=markers or None,
        baseline=(float(untrained.mean()), "untrained"),
    )
    folder.write_summary(
        {
            "env": config.env,
            "env_args": dict(config.env_args),
            "mode": config.mode,
            "preset": arguments.preset,
            "seeds": seeds,
            "env_steps": step,
            "updates": updates,
            "score": scores.tolist(),
            **dataclasses.asdict(interval),
            "zero_shot": None if zero_shot is None else zero_shot.tolist(),
            "untrained": untrained.tolist(),
            "compile_seconds": round(compile_seconds, 2),
            "wall_seconds": round(time.time() - started, 2),
            "peak_memory_mb": round(peak_memory_mb(devices[0]), 1),
            "versions": versions(),
        }
    )
    title = f"{config.env}, {config.mode}: final evaluation, {config.eval_episodes} episodes a seed"
    report.print_table(interval, title)
    print(
        f"{step:,} env steps and {updates:,} updates a seed in {time.time() - started:.0f} s "
        f"({compile_seconds:.0f} s compiling), {peak_memory_mb(devices[0]):,.0f} MB; see {folder.path}"
    )


def _evaluate(sweep: Any, state: Any, seeds: list[int], point: int) -> np.ndarray:
    """The tasker's mean score of each seed [seeds]."""
    return np.asarray(sweep.evaluate(state, seeds, point)[0]).mean(1)


def plan(config: Config, todo: int, points: int) -> tuple[int, int]:
    """(iterations of a chunk, chunks) that collect `todo` rows or little more: chunks are equal, so one is compiled."""
    total = max(1, -(-todo // (config.schedule[0] * config.envs)))
    iterations = -(-total // points)
    return iterations, -(-total // iterations)


# ---- what is told --------------------------------------------------------------------------------------------------


def metric_rows(
    progress: Any, seeds: list[int], mode: str, step: int, iterations: int, config: Config, spent: float
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """One metrics row for each seed, with DreamerV3's names, and the seeds' mean scores (NaN: no episode ended)."""
    episodes = progress.episodes
    with np.errstate(invalid="ignore"):
        scores, lengths = episodes.score / episodes.count, episodes.length / episodes.count
    steps, updates = config.schedule
    shared = {
        "fps/policy": round(iterations * steps * config.envs / spent, 2),
        "fps/train": round(iterations * updates * config.replay.batch_size * config.replay.batch_length / spent, 2),
    }
    rows = []
    for i, seed in enumerate(seeds):
        row = {"step": step, "seed": seed, "phase": mode, "episode/score": float(scores[i])}
        row |= {"episode/length": float(lengths[i]), "episode/count": int(episodes.count[i])}
        row |= {f"train/{name}": float(value[i]) for name, value in progress.metrics.items()}
        rows.append(row | shared)
    return rows, scores


def progress_line(
    config: Config, step: int, done: float, training: Curve, evaluation: Curve, rows: list[dict[str, Any]], left: float
) -> str:
    """Phase, steps, scores, speed, time left."""
    total = config.steps if config.mode != "task" or not config.adapt_steps else config.steps + config.adapt_steps
    words = [f"{config.mode:>7} {done:4.0%}", f"{step:,}/{total:,} steps", f"score {_iqm(training.scores[-1])}"]
    if evaluation.scores:
        name = "zero-shot" if config.mode == "explore" else "tasker"
        words.append(f"{name} {_iqm(evaluation.scores[-1])}")
    speed = rows[0]["fps/policy"] * len(rows)
    return "  ".join([*words, f"{speed:,.0f} steps/s", f"{int(left) // 60}:{int(left) % 60:02d} left"])


def _iqm(scores: np.ndarray) -> str:
    from stages import report

    if not np.isfinite(scores).any():
        return "-"
    return f"{report.summarise(scores, list(range(len(scores))), resamples=1).iqm:.2f}"


def warn_of_nan(progress: Any, seeds: list[int]) -> None:
    """Name the seeds whose losses are not finite; the others are untouched by them."""
    losses = np.stack([v for k, v in progress.metrics.items() if k.startswith("loss/")])
    broken = [seed for seed, bad in zip(seeds, ~np.isfinite(losses).all(0), strict=True) if bad]
    if broken:
        print(f"run.py: warning: losses of seeds {broken} are not finite; try a lower --hypers.lr", file=sys.stderr)


def peak_memory_mb(device: Any) -> float:
    """Peak memory: the accelerator's own count, or the process's resident set."""
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
