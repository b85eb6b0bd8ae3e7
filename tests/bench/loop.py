"""Whole runs of `python run.py`, end to end: env steps per second, start-up and compiling apart, peak memory.

    python tests/bench/loop.py --seeds 1 32
    python tests/bench/loop.py --seeds 32 --reference CHECKOUT --reference-python PYTHON --reference-runs 3

Each run is a process of its own, over Catch-bsuite by default: 50 numbers and 3 actions, which is what the reference's
made-up environment has too (reference.py; it costs a few microseconds a step, ours is inside the compiled loop), so
that networks and batches are equal. Ours evaluates before and after training besides, the reference does not. For each
number of seeds a run with an empty compilation cache (`cold`) comes before one that finds it filled (`warm`).

What a line says: `process_seconds` is everything from the start of the process to its end, and so is
`env_steps_per_second`, all seeds together. `start_seconds` goes to the point where compiling the training loop begins,
`compile_seconds` is that, `train_seconds` the rest. `first_update_seconds` runs from the start of the process to the
end of the first update (the end of the first chunk of the loop, less the other updates of that chunk at an equal share
each). `peak_memory_mb` is the process's, `idle_memory_mb` what a process has that only imported everything, `state_mb`
the bytes of the training state by its shapes. `ratio` is `seeds` times the reference's median process seconds over
ours: how much faster than so many runs of it in sequence, of which --reference-runs were measured.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import common
import jax
import reference
import sizes
from common import Result

import run
from envs import make
from stages import train
from stages.sweep.memory import peak_memory_mb

LOG_POINTS = 20


def command(args: argparse.Namespace, seeds: int, logdir: str) -> list[str]:
    """The arguments of run.py."""
    batch_size, batch_length = sizes.REPLAYS[args.size]
    flags = {
        "seeds": seeds,
        "env": args.env,
        "preset": args.size.removesuffix("-long"),
        "mode": args.mode,
        "steps": args.steps,
        "horizon": sizes.HORIZONS[args.size],
        "replay.batch-size": batch_size,
        "replay.batch-length": batch_length,
        "replay.train-ratio": args.train_ratio,
        "log-points": LOG_POINTS,
        "logdir": logdir,
    }
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def one_run(argv: list[str], cache: str) -> Result:
    """Run run.py once; when it said what, and what its summary says."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "PYTHONPATH": common.ROOT}
    begun = time.perf_counter()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([sys.executable, "run.py", *argv], cwd=common.ROOT, env=environment, **pipes)
    said = [(time.perf_counter() - begun, line) for line in process.stdout or ()]
    _, status, usage = os.wait4(process.pid, 0)  # as wait(), and the child's memory
    spent = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"run.py failed: {' '.join(argv)}\n{''.join(line for _, line in said)[-2000:]}")
    summary = json.loads(pathlib.Path(argv[argv.index("--logdir") + 1], "summary.json").read_text())
    logged = [at for at, line in said if re.search(r"\d+%  ", line)]
    compile_seconds = summary["compile_seconds"]
    # Where run.py no longer tells when it has compiled, the end of the first chunk is the nearest that is known.
    compiled = next((at for at, line in said if line.startswith("compiled in")), logged[0])
    chunk_updates = max(1, summary["updates"] // len(logged))
    return {
        "process_seconds": spent,
        "start_seconds": compiled - compile_seconds,
        "compile_seconds": compile_seconds,
        "train_seconds": spent - compiled,
        "first_update_seconds": compiled + (logged[0] - compiled) / chunk_updates,
        "env_steps_per_second": len(summary["seeds"]) * summary["env_steps"] / spent,
        "env_steps": summary["env_steps"],
        "updates": summary["updates"],
        "peak_memory_mb": usage.ru_maxrss * 1024 / 1e6,
        "versions": summary["versions"],
    }


def needs(point: Result) -> Result:
    """In a process of its own: bytes of the state that these arguments ask for, and of a process that does nothing."""
    run.start_jax(cache=False)
    arguments = run.parse(point["argv"])
    config = arguments.config
    env = make(config.env, dict(config.env_args))
    init = lambda: train.init(env, config, arguments.hypers, key=jax.random.key(0))
    state_mb = arguments.seeds * common.bytes_of(jax.eval_shape(init)) / 1e6
    return {"state_mb": state_mb, "idle_memory_mb": peak_memory_mb()}


def measure(args: argparse.Namespace, seeds: int) -> list[Result]:
    """A run with an empty cache, and one with a filled one."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        memory = common.quietly(__file__, {"argv": command(args, seeds, folder)})
        for cache in ("cold", "warm"):
            point = {"size": args.size, "mode": args.mode, "env": args.env, "seeds": seeds, "cache": cache}
            found = one_run(command(args, seeds, f"{folder}/{cache}"), f"{folder}/cache")
            results.append(common.emit(point | found | memory))
    return results


COLUMNS = """size mode env seeds cache process_seconds ratio start_seconds compile_seconds train_seconds
    first_update_seconds env_steps_per_second env_steps updates peak_memory_mb idle_memory_mb state_mb""".split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--size", default="micro", choices=list(sizes.MODELS))
    parser.add_argument("--mode", default="task", choices=["task", "explore", "mix"])
    parser.add_argument("--env", default="Catch-bsuite")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--train-ratio", type=float, default=32)
    parser.add_argument("--reference-runs", type=int, default=1, help="half of them before ours, half after")
    common.reference_arguments(parser)
    args = parser.parse_args()

    words = ["loop", args.size, "--steps", str(args.steps), "--train-ratio", str(args.train_ratio)]
    theirs = lambda: common.emit(reference.measure(args, *words))["process_seconds"]
    runs = args.reference_runs if args.reference else 0
    spent = [theirs() for _ in range(-(-runs // 2))]
    results = [result for seeds in args.seeds for result in measure(args, seeds)]
    spent += [theirs() for _ in range(runs // 2)]
    if spent:
        whole = common.median(spent)
        for result in results:
            result["ratio"] = result["seeds"] * whole / result["process_seconds"]
        ratios = {f"{r['seeds']} {r['cache']}": r["ratio"] for r in results}
        common.emit({"reference_process_seconds": spent, "ratio": ratios})
    common.table(results, COLUMNS)
    if spent:
        print(f"\nratio: seeds x {whole:.1f} s (median of {runs} runs of the reference, multiplied) over ours.")


if __name__ == "__main__":
    common.here(needs)
    main()
