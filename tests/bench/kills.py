"""Kill a run in each of its phases and start it again, until it ends; then compare it with one that nobody killed.

    python tests/bench/kills.py --kills 20
    python tests/bench/kills.py --kills 20 --processes 2

The run is a sweep of two programs, each of two rounds that explore and then adapt. Kills take PHASES and SIGNALS by
turns, so that 24 kills have every pair. Every start is the same command with the same --logdir. Compared to the bit:
all arrays of the last checkpoints, every line of metrics.jsonl but for what the clock says, and the scores of
summary.json. `--processes 2` kills one process of a distributed run, by turns, and waits until the other has ended by
itself.

Compiled programs are kept between starts (`--cache`) and shared by the processes, since compiling takes longest; a
start that is killed while it compiles does without them. The compiler does not optimise.
"""

import argparse
import contextlib
import importlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
SMALL = [
    *("--model.deter", "8", "--model.blocks", "2", "--model.hidden", "8", "--model.units", "8", "--model.stoch", "2"),
    *("--model.classes", "4", "--model.depth", "2", "--model.bins", "5", "--model.layers", "1", "--horizon", "2"),
    *("--replay.batch-size", "2", "--replay.batch-length", "4", "--replay.train-ratio", "4"),
    *("--ensemble.members", "2", "--ensemble.layers", "1", "--ensemble.prior-layers", "0", "--eval-episodes", "2"),
    # Two programs of two rounds of two phases, saved after every chunk. They differ in few of their compiled functions.
    *("--env", "CartPole-v1", "--mode", "explore", "--checkpoint-minutes", "0", "--log-points", "10"),
    *("--sweep", "horizon=2,3"),
]
PHASES = {
    "compiling": ("stages.loop.training_loop", "log_start", 1),
    "prefill": ("stages.sweep.sweep", "CompiledPhase.prefill", 1),
    "checkpoint": ("stages.store.checkpoint", "Checkpoints.save", 4),
    "evaluation": ("stages.sweep.rounds", "Evaluator.__call__", 2),
    "adapting": ("stages.sweep.sweep", "CompiledPhase.adapt", 1),
    "between programs": ("stages.loop.training_loop", "open_run", 2),
}
"""Where each phase begins: the module, its function, and at which call."""
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
CLOCK = ("fps/policy", "fps/train", "wall_seconds")
"""Metrics that tell of the clock."""


def command(folder: Path, steps: int, processes: int, place: list[str]) -> list[str]:
    """What a user types behind run.py. Each process trains two seeds, one after the other."""
    words = ["--steps", str(steps), "--adapt-steps", str(steps // 2), "--logdir", str(folder)]
    return [*SMALL, *words, "--seeds", str(2 * processes), "--parallel", str(processes), *place]


def variables(cache: Path, phase: str) -> dict[str, str]:
    """The environment of a start."""
    compiler = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    compiler["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # it takes time to note them
    kept = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_ENABLE_COMPILATION_CACHE": str(phase != "compiling").lower()}
    return {**os.environ, **compiler, **kept}


def free_place() -> str:
    """HOST:PORT where processes may meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def start(folder: Path, steps: int, processes: int, cache: Path, phase: str = "") -> list[subprocess.Popen]:
    """The program's processes, begun; they say when they come to a phase."""
    places: list[list[str]] = [[]]
    if processes > 1:
        at = free_place()
        places = [["--coordinator", at, "--processes", str(processes), "--process", str(i)] for i in range(processes)]
    output = open(folder.with_suffix(".log"), "a")  # noqa: SIM115
    words = [
        [sys.executable, __file__, "--phase", phase, *command(folder, steps, processes, place)] for place in places
    ]
    shown = {"stdout": output, "stderr": output}
    return [subprocess.Popen(line, **shown, cwd=ROOT, env=variables(cache, phase)) for line in words]


def share_programs() -> None:
    """Let all processes find what the first one has compiled: jax tells CPU programs apart by the ids of devices."""
    from jax._src import cache_key

    hash_options = cache_key._hash_serialized_compile_options

    def hash_without_ids(hash_obj, options, strip_device_assignment=False):
        del strip_device_assignment
        hash_options(hash_obj, options, strip_device_assignment=True)

    cache_key._hash_serialized_compile_options = hash_without_ids
    cache_key._hash_accelerator_config = cache_key._hash_devices  # their kinds alone


def run_to(phase: str, words: list[str]) -> int:
    """run.py with these words, which says when it comes to a phase, if one is named."""
    sys.path.insert(0, str(ROOT))
    run = importlib.import_module("run")
    share_programs()
    if not phase:
        return run.main(words, run.start_jax)
    module, path, number = PHASES[phase]
    holder, calls = importlib.import_module(module), itertools.count(1)
    *parents, name = path.split(".")
    for parent in parents:
        holder = getattr(holder, parent)
    function = getattr(holder, name)

    def announced(*args, **kwargs):
        if next(calls) == number:
            print(f"comes to {phase}", flush=True)
        return function(*args, **kwargs)

    setattr(holder, name, announced)
    return run.main(words, run.start_jax)


def metrics(folder: Path) -> dict[str, list[dict]]:
    """Lines of every metrics.jsonl without what the clock says, by its path."""
    found = {}
    for path in sorted(folder.rglob("metrics.jsonl")):
        text = path.read_text()
        lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]  # one may be half written
        kept = [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]
        found[str(path.relative_to(folder))] = kept
    return found


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """All arrays of the last checkpoints of all rounds and processes."""
    import orbax.checkpoint as ocp

    found = {}
    for path in sorted(folder.rglob("checkpoints/round-*/process-*")):
        manager = ocp.CheckpointManager(path)
        args = ocp.args.Composite(state=ocp.args.StandardRestore())
        for name, x in manager.restore(manager.latest_step(), args=args)["state"].items():
            found[f"{path.relative_to(folder)} {name}"] = np.asarray(x)
    return found


def differences(one: Path, other: Path) -> list[str]:
    """What is not equal to the bit in two runs' folders."""
    found = []
    mine, theirs = arrays(one), arrays(other)
    if mine.keys() != theirs.keys():
        found.append(f"arrays: {sorted(mine.keys() ^ theirs.keys())[:3]}")
    found += [name for name in mine.keys() & theirs.keys() if mine[name].tobytes() != theirs[name].tobytes()]
    if metrics(one) != metrics(other):
        found.append("metrics.jsonl")
    names = ("seeds", "score", "zero_shot", "untrained", "env_steps", "updates", "iqm", "ci_low", "ci_high")
    for path in sorted(one.rglob("summary.json")):
        texts = [file.read_text() if file.exists() else "{}" for file in (path, other / path.relative_to(one))]
        ours, theirs = map(json.loads, texts)
        found += [f"{path.relative_to(one)}: {name}" for name in names if ours.get(name) != theirs.get(name)]
    return found


def wait_for(log: Path, word: str, after: int, process: subprocess.Popen) -> None:
    """Until `word` stands in the log behind its first `after` characters, or the process has ended."""
    while process.poll() is None and word not in log.read_text()[after:]:
        time.sleep(0.05)


def main() -> int:
    """Run, kill, compare; the exit code is 1 where something differs."""
    if sys.argv[1:2] == ["--phase"]:
        return run_to(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="folder of compiled programs; by default in that of the runs")
    parser.add_argument("--folder", help="of the runs, which go on if they are there; by default a temporary one")
    arguments = parser.parse_args()
    for number in SIGNALS[1:]:  # background jobs and nohup ignore some, and so would the runs
        signal.signal(number, signal.SIG_DFL)
    draw = random.Random(arguments.seed)
    with contextlib.ExitStack() as stack:
        place = arguments.folder or stack.enter_context(tempfile.TemporaryDirectory())
        whole, killed = Path(place) / "whole", Path(place) / "killed"
        given = (arguments.steps, arguments.processes, arguments.cache or Path(place) / "cache")
        if sum(p.wait() for p in start(whole, *given)):
            print(whole.with_suffix(".log").read_text()[-2000:])
            return 1
        done, ended = 0, []
        while True:
            log = killed.with_suffix(".log")
            said = len(log.read_text()) if log.exists() else 0
            if done < arguments.kills:
                number = SIGNALS[(done + done // len(PHASES)) % len(SIGNALS)]
                phase = list(PHASES)[done % len(PHASES)]
                running = start(killed, *given, phase)
                victim = running[done % len(running)]
                wait_for(log, f"comes to {phase}", said, victim)
                time.sleep(draw.uniform(0, 5 if phase == "compiling" else 0.5))
                if victim.poll() is None:
                    victim.send_signal(number)
                    done += 1
            else:
                number, phase = None, "its end"
                running = start(killed, *given)
            codes = [process.wait() for process in running]
            lines = sum(map(len, metrics(killed).values()))
            name = number.name if number else "nothing"
            print(f"kill {done}: {name} in {phase}: exit codes {codes}, {lines} lines of metrics", flush=True)
            if "Traceback" in log.read_text()[said:]:
                print(log.read_text()[said:])
                return 1
            if not any(codes):
                ended.append(killed)
                if done >= arguments.kills:
                    break
                killed = killed.with_name(f"killed-{len(ended)}")  # it came to its end first: begin another
        found = {run.name: differences(whole, run) for run in ended}
        print(f"{len(ended)} runs ended, after {done} kills; differences to the whole one: {found}")
        return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main())
