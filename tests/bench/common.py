"""What the benches share: a process for each point, JSON lines, a table, medians, the machine's peak, memory."""

import argparse
import ctypes
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

ROOT = str(pathlib.Path(__file__).parents[2])
sys.path.insert(0, ROOT)  # the benches import the program that they measure
Result = dict[str, Any]

# ---- processes, lines, tables --------------------------------------------------------------------------------------


def emit(result: Result) -> Result:
    """Print a result as one JSON line, and return it."""
    print(json.dumps(result), flush=True)
    return result


def in_process(script: str, point: Result) -> Result:
    """Measure a point in a fresh process, as peak memory is a process's; prints and returns the result.

    `failed` says why where that went wrong: sizes may go on until memory ends.
    """
    return emit(quietly(script, point))


def quietly(script: str, point: Result) -> Result:
    """`in_process` without the printing."""
    command = [sys.executable, os.path.abspath(script), "--here", json.dumps(point)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
        return point | {"failed": f"exit code {done.returncode}: {reason[0][-300:]}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def train(words: str, folder: pathlib.Path) -> None:
    """`run.py WORDS --logdir FOLDER` in a process of its own; a run that is finished there is left alone."""
    command = [sys.executable, str(pathlib.Path(ROOT, "run.py")), *words.split(), "--logdir", str(folder)]
    subprocess.run(command, check=True)


def here(measure: Callable[[Result], Result]) -> None:
    """Serve `in_process`: if this process was started for one point, measure it, print it and exit."""
    if len(sys.argv) == 3 and sys.argv[1] == "--here":
        emit(measure(json.loads(sys.argv[2])))
        sys.exit()


def table(rows: list[Result], columns: list[str] | None = None) -> None:
    """Print a markdown table of the rows; a column that no row fills is left out."""
    names = [c for c in columns or rows[0] if any(row.get(c) is not None for row in rows)] if rows else []
    lines = [names, ["---"] * len(names), *([_cell(row.get(name)) for name in names] for row in rows)]
    print("\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines if line), flush=True)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def interval(values: np.ndarray, statistic: Callable[..., Any], resamples: int = 4000, decimals: int = 2) -> str:
    """A statistic over seeds with its 95 % bootstrap interval; what never came is later than all that did."""
    if np.isnan(values).all():
        return "-"
    draws = np.random.default_rng(0).choice(values, (resamples, values.size))
    low, high = np.percentile(statistic(draws, axis=1), [2.5, 97.5], method="nearest")
    show = lambda x: "not yet" if np.isinf(x) else f"{x:g}" if statistic is np.median else f"{x:.{decimals}f}"
    return f"{show(statistic(values))} ({show(low)} to {show(high)})"


def iqm(scores: np.ndarray) -> str:
    """Interquartile mean of scores [seeds] with its 95 % bootstrap interval."""
    from stages.results.statistics import summarise  # by the path above

    found = summarise(scores, range(scores.size))
    return f"{found.iqm:.2f} ({found.ci_low:.2f} to {found.ci_high:.2f})"


def first(run: Any, name: str) -> np.ndarray:
    """Episodes in which something first came to be (goal_episode, solved_episode), [seeds]; infinite: not yet."""
    return np.nan_to_num(run.per_seed(name), nan=np.inf)


def at(run: Any, name: str, rows: int) -> np.ndarray:
    """A metric of a run that was read (stages/results/read.py), at the log point nearest to so many rows, [seeds]."""
    return run.curve(name)[:, int(np.argmin(np.abs(run.steps - rows)))]


def add_argument(parser: argparse.ArgumentParser) -> None:
    """The flag --add, of benches that train."""
    parser.add_argument("--add", default="", metavar="WORDS", help="further words of run.py, for all of these runs")


def reference_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that name the reference implementation."""
    parser.add_argument("--reference", metavar="CHECKOUT", help="measure the reference implementation beside ours")
    parser.add_argument("--reference-python", metavar="PYTHON", default=sys.executable, help="that has its packages")
    parser.add_argument("--reference-platform", default="cpu", help="that it computes on: cpu, cuda, tpu")


# ---- time ----------------------------------------------------------------------------------------------------------


def seconds(fn: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls, after one that is not counted. `fn` waits for its result."""
    times = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        fn()
        times.append(time.perf_counter() - begun)
    return times[1:]


median = statistics.median


def peak(devices: list[Any], dtype: Any, products: int = 4, repeats: int = 6) -> Result:
    """The best rate of large square products, GFLOP/s: on these devices together, and on one alone.

    One CPU device alone may still use every core, since all of them share one pool of threads.
    """
    together = _product_rate(devices, dtype, products, repeats)
    alone = _product_rate(devices[:1], dtype, products, repeats) if len(devices) > 1 else together
    return {"peak_gflops": together, "peak_gflops_per_device": together / len(devices), "peak_gflops_one_device": alone}


def _product_rate(devices: list[Any], dtype: Any, products: int, repeats: int) -> float:
    mesh = Mesh(np.array(devices), ("d",))
    chain = lambda x: functools.reduce(lambda y, _: y @ x, range(products), x)
    sharded = jax.jit(jax.shard_map(jax.vmap(chain), mesh=mesh, in_specs=P("d"), out_specs=P("d"), check_vma=False))
    best = 0.0
    for side in (1024, 2048) if devices[0].platform == "cpu" else (4096, 8192):
        shape = (len(devices), side, side)
        x = jax.device_put(jnp.full(shape, 1 / side, dtype), NamedSharding(mesh, P("d")))
        run = lambda x=x: jax.block_until_ready(sharded(x))
        spent = min(seconds(run, repeats))
        best = max(best, 2 * side**3 * products * len(devices) / spent / 1e9)
    return best


# ---- memory --------------------------------------------------------------------------------------------------------


def bytes_of(tree: Any) -> int:
    """Bytes of all arrays, or shapes of arrays, in a tree; random keys as their words."""

    def one(x):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.eval_shape(jax.random.key_data, x)
        return x.size * x.dtype.itemsize

    return sum(map(one, jax.tree.leaves(tree)))


def resident_mb(field: str = "VmRSS") -> float | None:
    """Memory of this process: now (VmRSS), or at most since forget_peak (VmHWM). None where there is no /proc."""
    try:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(field))


def forget_peak() -> float | None:
    """Give back what is free and forget the peak so far, as it is the compiler's; returns what is in use, MB."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return resident_mb()
