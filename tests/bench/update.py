"""Seconds of one gradient update for one seed, at several sweep sizes. `python tests/bench/update.py --help`.

Each point is a fresh process (peak memory is a process's), prints one JSON line, and times `repeats` chunks of updates
after a warm-up; the median is given. The environment steps between updates are part of the time, as in a run.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def measure(preset: str, mode: str, env: str, seeds: int, updates: int, repeats: int) -> dict[str, object]:
    """One point."""
    sys.path.insert(0, ROOT)
    import jax

    import run

    begun = time.perf_counter()
    run.start_jax(cache=False)
    from envs import make
    from stages import record
    from stages.config import preset as preset_of
    from stages.sweep import Sweep, mesh_for

    config, hypers = preset_of(preset)
    config = dataclasses.replace(config, env=env, mode=mode, steps=max(config.steps, 2 * config.prefill))
    sweep = Sweep(make(env, {}), config, hypers, mesh_for(seeds))
    state, clock, _ = sweep.prefill(sweep.init(list(range(seeds))))
    jax.block_until_ready(state)
    started = time.perf_counter()
    iterations = max(1, updates // config.schedule[1])
    compiled = sweep.compile(state, clock, iterations)
    compile_seconds = time.perf_counter() - started
    times = []
    for _ in range(repeats + 1):
        at = time.perf_counter()
        state, clock, _ = jax.block_until_ready(sweep.advance(state, clock, iterations))
        times.append((time.perf_counter() - at) / (iterations * config.schedule[1]) / seeds)
    memory = compiled.memory_analysis()
    return {
        "preset": preset,
        "mode": mode,
        "env": env,
        "seeds": seeds,
        "devices": sweep.mesh.size,
        "seconds_per_update_per_seed": statistics.median(times[1:]),
        "all_seconds": times[1:],
        "start_seconds": started - begun,
        "compile_seconds": compile_seconds,
        "peak_memory_mb": record.peak_memory_mb(),
        "state_mb": memory.argument_size_in_bytes * sweep.mesh.size / 1e6,
        "temporary_mb": memory.temp_size_in_bytes * sweep.mesh.size / 1e6,
        "versions": record.versions(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--mode", default="task")
    parser.add_argument("--env", default="Catch-bsuite")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--updates", type=int, default=20, help="of each timed chunk")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--here", action="store_true", help="measure in this process (one sweep size)")
    args = parser.parse_args()
    if args.here:
        result = measure(args.preset, args.mode, args.env, args.seeds[0], args.updates, args.repeats)
        print(json.dumps(result), flush=True)
        return
    for seeds in args.seeds:
        words = ["--preset", args.preset, "--mode", args.mode, "--env", args.env, "--seeds", str(seeds)]
        words += ["--updates", str(args.updates), "--repeats", str(args.repeats), "--here"]
        subprocess.run([sys.executable, os.path.abspath(__file__), *words], check=True)


if __name__ == "__main__":
    main()
