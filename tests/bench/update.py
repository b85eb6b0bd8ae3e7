"""Seconds of one gradient update for one seed, and the share of the machine's product peak that it reaches.

    python tests/bench/update.py --sizes micro 1m --modes task explore --seeds 1 8 32
    python tests/bench/update.py --sizes 1m --reference CHECKOUT --reference-python PYTHON

Updates alone are timed, not env steps: a jitted scan of `--updates` updates over a replay of made-up rows, vmapped over
seeds, sharded over the devices, its state donated. Each point is a fresh process and one JSON line; after them comes a
table. With --reference, the reference's update is measured before and after ours of each size, in the same run.

What a line says: `seconds_per_update_per_seed` is the median of `all_seconds`, of chunks after a warm-up. Of one update
of one seed (flops.py), `needed_gflop` counts the matrix products by hand with nothing twice, `reference_way_gflop` by
hand as the reference's program executes them, `executed_gflop` those in our traced program, and `elements_million` its
results of all else.
`share_of_peak` is of needed products; `peak_gflops` is measured in the same process, after the updates. Memory in MB,
all devices together: `state_mb` the state's arrays, `alias_mb` what of them is updated in place (donated state is never
copied where the two are equal), `temporary_mb` what the compiled program needs besides, `run_memory_mb` the most that
the updates really took, the state included, and `memory_ratio` that over state plus temporaries. `peak_memory_mb` is
the whole process's, so on a CPU most of it is the compiler's.
"""

import argparse
import functools
import time
from typing import Any

import common
import equinox as eqx
import flops
import jax
import jax.numpy as jnp
import jax.random as jr
import made_up
import reference
import sizes
from common import Result
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import run
from envs.environment import Environment
from stages import train
from stages.config import Config, Hypers
from stages.log import run_log
from stages.replay import StepCounters
from stages.sweep.memory import peak_memory_mb
from stages.sweep.sweep import mesh_for, over_seeds, vmap_width_of
from stages.world_model import compute_dtype

MODES = ("task", "explore", "mix")
VECTOR = made_up.Vector()


# ---- one point -----------------------------------------------------------------------------------------------------


def measure(point: Result) -> Result:
    """One point, in this process. Keys: size, mode, seeds, devices, updates, repeats, seconds, changes."""
    run.start_jax(cache=False)
    config, hypers = made_up.configuration(point["size"], point["mode"], **point["changes"])
    mesh, seeds = mesh_for(point["seeds"], jax.devices()[: point["devices"] or None]), point["seeds"]
    counted = products(config, hypers)
    updates = point["updates"] or chunk(counted["needed_gflop"] * seeds, point["seconds"])
    begun = time.perf_counter()
    compiled = compile_updates(config, hypers, mesh, seeds, updates)
    compile_seconds = time.perf_counter() - begun
    state, counters = made_up_state(config, hypers, mesh, seeds)
    sizes_mb = {"state_mb": common.bytes_of(state) / 1e6} | memory_of(compiled, mesh.size)

    def advance():
        nonlocal state, counters
        state, counters, _ = jax.block_until_ready(compiled(state, counters))

    before = common.forget_peak()
    times = [spent / updates / seeds for spent in common.seconds(advance, point["repeats"])]
    spent, memory = common.median(times), memory_used(before, sizes_mb)
    # Only now: an accelerator's peak memory cannot be forgotten.
    machine = common.peak(machine_of(mesh), compute_dtype(config.model.dtype))
    return {
        **{name: point[name] for name in ("size", "mode", "seeds", "changes")},
        "devices": mesh.size,
        "platform": jax.default_backend(),
        "updates": updates,
        "seconds_per_update_per_seed": spent,
        "all_seconds": times,
        "compile_seconds": compile_seconds,
        **machine,
        **counted,
        "gflops": counted["needed_gflop"] / spent,
        "share_of_peak": counted["needed_gflop"] / spent / machine["peak_gflops"],
        "share_of_peak_reference_way": counted["reference_way_gflop"] / spent / machine["peak_gflops"],
        **sizes_mb,
        **memory,
        "versions": run_log.versions(),
    }


def machine_of(mesh: Mesh) -> list[Any]:
    """The devices whose peak counts: on a CPU all virtual ones, as a device alone uses every core."""
    return jax.devices() if jax.default_backend() == "cpu" else list(mesh.devices.flat)


def products(config: Config, hypers: Hypers) -> Result:
    """What an update needs and executes, counted (flops.py)."""
    found = flops.executed_update(config, hypers, made_up.Vector())
    hand = [flops.needed(config, sizes.OBS, sizes.ACTIONS, reference=way) / 1e9 for way in (False, True)]
    return {
        "needed_gflop": hand[0],
        "reference_way_gflop": hand[1],
        "executed_gflop": found.products / 1e9,
        "elements_million": found.elements / 1e6,
    }


def memory_used(before: float | None, sizes_mb: Result) -> Result:
    """Peak memory since `before`, MB of this process with the state in it; and it over state and temporaries."""
    whole = peak_memory_mb()
    if jax.default_backend() == "cpu" and before is not None:
        peak = common.resident_mb("VmHWM") - before + sizes_mb["state_mb"]
    else:
        peak = whole
    needs = sizes_mb["state_mb"] + sizes_mb["temporary_mb"]
    return {"run_memory_mb": peak, "memory_ratio": peak / needs, "peak_memory_mb": whole}


def chunk(gflop: float, seconds: float) -> int:
    """Updates that take about `seconds` at a modest guess of the rate; 2 to 50.

    A scan of one update is compiled as none, and XLA then copies the ring; chunks of runs are longer.
    """
    guess = 20 * len(jax.devices()) if jax.default_backend() == "cpu" else 5000  # GFLOP/s
    return max(2, min(50, round(seconds * guess / gflop)))


def compile_updates(
    config: Config, hypers: Hypers, mesh: Mesh, seeds: int, updates: int, env: Environment = VECTOR
) -> Any:
    """The compiled scan of `updates` updates of all seeds, made from shapes alone."""

    def advance(state, counters):
        def one(carry, _):
            state, counters, metrics = train.update(config, *carry)
            return (state, counters), metrics

        (state, counters), metrics = jax.lax.scan(one, (state, counters), length=updates)
        return state, counters, jax.tree.map(jnp.mean, metrics)

    def placed(tree, spec):
        where = NamedSharding(mesh, spec)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)

    state = jax.eval_shape(lambda: jax.vmap(functools.partial(full, env, config, hypers))(keys_of(seeds)))
    program = jax.jit(over_seeds(mesh, advance, 1, True, vmap_width_of(config, mesh)), donate_argnums=0)
    return program.lower(placed(state, P("seeds")), placed(jax.eval_shape(StepCounters.zero), P())).compile()


def keys_of(seeds: int) -> Any:
    """A random key for each seed."""
    return jax.vmap(jr.key)(jnp.arange(seeds, dtype=jnp.uint32))


def full(env: Environment, config: Config, hypers: Hypers, key: Any) -> train.TrainState:
    """A seed whose ring is full of made-up rows, all of one long episode."""
    state = train.init(env, config, hypers, key=key)
    ring = state.ring
    key_obs, key_action, key_reward, key_stoch = jr.split(key, 4)
    rows = (
        jr.normal(key_obs, ring.obs.shape).astype(ring.obs.dtype),
        jr.randint(key_action, ring.action.shape, 0, env.action_space.size),
        jr.normal(key_reward, ring.reward.shape),
        jr.randint(key_stoch, ring.stoch.shape, 0, config.model.classes).astype(ring.stoch.dtype),
    )
    return eqx.tree_at(lambda s: (s.ring.obs, s.ring.action, s.ring.reward, s.ring.stoch), state, rows)


def made_up_state(
    config: Config, hypers: Hypers, mesh: Mesh, seeds: int, env: Environment = VECTOR
) -> tuple[train.TrainState, StepCounters]:
    """States of all seeds, sharded, and counters at which the ring is full and no window waits to be served."""
    fill = jax.jit(over_seeds(mesh, functools.partial(full, env, config, hypers), 1, False))
    keys = jax.device_put(keys_of(seeds), NamedSharding(mesh, P("seeds")))
    counters = StepCounters(jnp.int32(train.ring_capacity(config)), jnp.int32(2**30))
    return jax.block_until_ready((fill(keys), jax.device_put(counters, NamedSharding(mesh, P()))))


def memory_of(compiled: Any, devices: int) -> Result:
    """What the compiler says of a program's memory, MB, all devices together."""
    memory = compiled.memory_analysis()
    megabytes = lambda size: size * devices / 1e6
    return {
        "argument_mb": megabytes(memory.argument_size_in_bytes),
        "alias_mb": megabytes(memory.alias_size_in_bytes),
        "temporary_mb": megabytes(memory.temp_size_in_bytes),
    }


# ---- all points ----------------------------------------------------------------------------------------------------

COLUMNS = """size mode seeds devices seconds_per_update_per_seed ratio of_task compile_seconds needed_gflop
    executed_gflop peak_gflops share_of_peak share_of_peak_reference_way state_mb alias_mb temporary_mb run_memory_mb
    memory_ratio peak_memory_mb failed""".split()


def point_of(size: str, mode: str, seeds: int, args: argparse.Namespace, **changes: int) -> Result:
    """The point that a child process measures."""
    rest = {name: getattr(args, name) for name in ("devices", "updates", "repeats", "seconds")}
    return {"size": size, "mode": mode, "seeds": seeds, "changes": changes} | rest


def timing_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that say how long to measure, and on what."""
    parser.add_argument("--updates", type=int, default=0, help="of each timed chunk; 0 fills --seconds")
    parser.add_argument("--repeats", type=int, default=5, help="timed chunks; the median counts")
    parser.add_argument("--seconds", type=float, default=4.0, help="that a chunk is to take, about")
    parser.add_argument("--devices", type=int, default=0, help="to share the seeds out over; 0 takes all")


def measure_size(size: str, args: argparse.Namespace) -> list[Result]:
    """All points of one size, between two measurements of the reference if there is one."""

    def theirs() -> float | None:
        if not args.reference:
            return None
        words = ["update", size, "--updates", str(args.updates or 10), "--repeats", str(args.repeats)]
        found = common.emit(reference.measure(args, *words))
        return found["seconds_per_update"]

    before = theirs()
    grid = [(mode, seeds) for mode in args.modes for seeds in args.seeds]
    results = [common.in_process(__file__, point_of(size, mode, seeds, args)) for mode, seeds in grid]
    after = theirs()
    spent = {(r["mode"], r["seeds"]): r.get("seconds_per_update_per_seed") for r in results}
    for result in results:
        ours, task = spent[result["mode"], result["seeds"]], spent.get(("task", result["seeds"]))
        result["of_task"] = ours / task if ours and task and result["mode"] != "task" else None
        result["ratio"] = 2 * ours / (before + after) if ours and before and result["mode"] == "task" else None
    if before:
        ratios = {f"{r['mode']} {r['seeds']}": r["ratio"] for r in results if r["ratio"]}
        common.emit({"size": size, "reference_seconds": [before, after], "ratio": ratios})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", nargs="+", default=list(sizes.MODELS), metavar="SIZE", help="of sizes.py, or presets"
    )
    parser.add_argument("--modes", nargs="+", default=["task", "explore"], choices=MODES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 8, 32])
    timing_arguments(parser)
    common.reference_arguments(parser)
    args = parser.parse_args()
    results = [result for size in args.sizes for result in measure_size(size, args)]
    common.table(results, COLUMNS)
    if args.reference:
        print("\nratio: our seconds of an update of a seed over the reference's. of_task: over mode task's.")


if __name__ == "__main__":
    common.here(measure)
    main()
