"""What saving costs a run whose replay is large: the time that it loses for each checkpoint.

    python tests/bench/checkpoints.py                       # a ring of 1 GB
    python tests/bench/checkpoints.py --steps 50000         # of 0.1 GB

First a run that saves and one that does not, by turns, each killed after as many chunks. A chunk's excess is what it
takes beyond its run's median; what a run without saves has of it is noise, and is taken off. `lost` is the excess of
one save; `share` is that over ten minutes, after which a run saves. So early the ring is mostly zeros, and what is
written compresses well: so then 1 GB of random numbers, which do not, is saved by itself.
"""

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import ROOT, Result, emit, table

CHUNK = 1_000  # rows
WORDS = "--env Catch-bsuite --preset 1m --seeds 1 --devices 1 --replay.train-ratio 1 --eval-episodes 1".split()


def chunk_times(folder: Path, steps: int, chunks: int, saving: list[str]) -> list[float]:
    """Seconds of each of a run's first chunks but one, by the lines that it writes."""
    words = [*WORDS, "--steps", str(steps), "--log-points", str(steps // CHUNK), "--logdir", str(folder), *saving]
    lines, ends = folder / "metrics.jsonl", []
    with subprocess.Popen([sys.executable, f"{ROOT}/run.py", *words], stdout=subprocess.DEVNULL) as run:
        while len(ends) <= chunks and run.poll() is None:
            time.sleep(0.01)
            there = lines.read_bytes().count(b"\n") if lines.exists() else 0
            ends += [time.perf_counter()] * (there - len(ends))
        run.kill()
    return [after - before for before, after in itertools.pairwise(ends)]


def excess(times: list[float]) -> float:
    """Seconds beyond so many times the median, in all."""
    return sum(times) - len(times) * statistics.median(times)


def point(steps: int, chunks: int, minutes: float) -> Result:
    """One run of each kind."""
    with tempfile.TemporaryDirectory() as scratch:
        plain = chunk_times(Path(scratch) / "plain", steps, chunks, ["--checkpoint-keep", "0"])
        saved = chunk_times(Path(scratch) / "saved", steps, chunks, ["--checkpoint-minutes", str(minutes)])
        kept = Path(scratch) / "saved" / "checkpoints"
        places = [each for each in kept.glob("round-*/process-*/*") if each.is_dir()]
        size = max((sum(x.stat().st_size for x in each.rglob("*") if x.is_file()) for each in places), default=0)
    saves = int(sum(saved) / (60 * minutes))
    lost = (excess(saved) - excess(plain)) / max(1, saves)
    return {
        "steps": steps,
        "on disk, GB": round(size / 1e9, 2),
        "saves": saves,
        "chunk, s": round(statistics.median(plain), 2),
        "longest, s": round(max(plain), 2),
        "longest with saves, s": round(max(saved), 2),
        "lost, s": round(lost, 2),
        "share": f"{lost / 600:.2%}",
    }


def full(count: int) -> list[Result]:
    """Saves of 1 GB that does not compress: how long each keeps its caller, and until it is written."""
    import jax.numpy as jnp

    from stages.cli.processes import Processes
    from stages.store.checkpoint import CheckpointId, Checkpoints

    rng, results = np.random.default_rng(0), []
    arrays = [jnp.asarray(rng.normal(size=(250_000, 100)).astype(np.float32)) for _ in range(10)]
    with tempfile.TemporaryDirectory() as scratch:
        checkpoints = Checkpoints(Path(scratch), Processes(), keep=2)
        for save in range(count):
            begun, cpu = time.perf_counter(), time.process_time()
            checkpoints.save(CheckpointId(0, save + 1), (arrays,), {})
            blocks = time.perf_counter() - begun
            checkpoints.wait()
            written, cpu = time.perf_counter() - begun, time.process_time() - cpu
            seconds = {"blocks, s": blocks, "written after, s": written, "cpu, s": cpu}
            results.append({"save": save + 1} | {name: round(value, 2) for name, value in seconds.items()})
        checkpoints.close()
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=450_000)
    parser.add_argument("--chunks", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=0.5)
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    table([emit(point(arguments.steps, arguments.chunks, arguments.minutes)) for _ in range(arguments.repeats)])
    table(full(4))
