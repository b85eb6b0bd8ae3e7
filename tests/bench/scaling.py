"""How the cost of an update grows: with seeds, or with any other axis; and how many seeds fit into memory.

    python tests/bench/scaling.py --sizes micro 1m                      # 1, 2, 4 ... 64 seeds over one
    python tests/bench/scaling.py --sizes tiny 12m --seeds 1 32         # the same question on a GPU
    python tests/bench/scaling.py --vary horizon 5 10 15 30             # one axis at a time, the others as they are
    python tests/bench/scaling.py --fit --sizes 1m 12m 25m 50m 100m     # the most seeds that memory holds

Lines are those of update.py (each point a process of its own, updates alone), with `seconds_per_update`, of all seeds
together, and `of_one`, that over the time of the first number of seeds. Where environments are varied, as the update
itself hardly sees them, `seconds_per_env_step` is given too: of one step of one environment of one seed.

With --fit nothing is run: programs of two updates are compiled, for one and for two seeds on each device, and the
compiler's count of arguments and temporaries is drawn out to `memory_gb` (the device's own limit, all of the machine's
memory on a CPU, or --memory-gb on each device); the answer is compiled too, and lowered until it fits.
"""

import argparse
import os
from typing import Any

import common
import jax
import made_up
import sizes
import update
from common import Result

import run
from stages import train
from stages.log import run_log
from stages.sweep.sweep import mesh_for, over_seeds, vmap_width_of

AXES = ("envs", "batch-size", "batch-length", "horizon", "capacity", "size")


def measure(point: Result) -> Result:
    """One point, in this process."""
    if point["fit"]:
        return fit(point)
    result = update.measure(point)
    result["seconds_per_update"] = result["seconds_per_update_per_seed"] * result["seeds"]
    return result | (collect(point) if "envs" in point["changes"] else {})


def collect(point: Result, steps: int = 50) -> Result:
    """Seconds of one step of one environment of one seed, the agent's part included."""
    config, hypers = made_up.configuration(point["size"], point["mode"], **point["changes"])
    seeds = point["seeds"]
    mesh = mesh_for(seeds, jax.devices()[: point["devices"] or None])
    state, counters = update.made_up_state(config, hypers, mesh, seeds)
    env = made_up.Vector()
    stepped = lambda state, counters: train.collect_steps(env, config, state, counters, steps)
    compiled = (
        jax.jit(over_seeds(mesh, stepped, 1, True, vmap_width_of(config, mesh)), donate_argnums=0)
        .lower(state, counters)
        .compile()
    )

    def advance():
        nonlocal state, counters
        state, counters, _ = jax.block_until_ready(compiled(state, counters))

    spent = common.median(common.seconds(advance, point["repeats"]))
    return {"seconds_per_env_step": spent / steps / seeds / config.envs}


# ---- what fits -----------------------------------------------------------------------------------------------------


def fit(point: Result) -> Result:
    """The most seeds of a size whose state and temporaries lie within the memory of the devices."""
    run.start_jax(cache=False)
    config, hypers = made_up.configuration(point["size"], point["mode"], **point["changes"])
    devices = jax.devices()[: point["devices"] or None]
    limit = point["memory_gb"] or memory_of(devices)

    def gigabytes(each: int) -> float:
        """Memory of one device that carries so many seeds."""
        seeds = each * len(devices)
        memory = update.memory_of(update.compile_updates(config, hypers, mesh_for(seeds, devices), seeds, 2), 1)
        return (memory["argument_mb"] + memory["temporary_mb"]) / 1e3

    one, two = gigabytes(1), gigabytes(2)
    each = most(one, two, limit)
    used = {0: 0.0, 1: one, 2: two}.get(each) or (gigabytes(each) if each else 0.0)
    while used > limit:
        each = max(0, min(each - 1, int(each * limit / used)))
        used = gigabytes(each) if each else 0.0
    return {
        **{name: point[name] for name in ("size", "mode", "changes")},
        "devices": len(devices),
        "platform": jax.default_backend(),
        "memory_gb": limit,
        "seeds_that_fit": each * len(devices),
        "gb_of_them": used * len(devices),
        "gb_of_another_seed": two - one,
        "versions": run_log.versions(),
    }


def most(one: float, two: float, limit: float) -> int:
    """Seeds within `limit`, if one need `one` and two `two` and each further seed as much more; 4096 at most."""
    return 0 if one > limit else min(4096, 1 + int((limit - one) / max(two - one, 1e-9)))


def memory_of(devices: list[Any]) -> float:
    """GB of one device: its own limit, or its share of the machine's memory."""
    stats = devices[0].memory_stats() if devices[0].platform != "cpu" else None
    if stats:
        return stats["bytes_limit"] / 1e9
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9 / len(devices)


# ---- all points ----------------------------------------------------------------------------------------------------

COLUMNS = """size mode seeds envs batch_size batch_length horizon capacity devices seconds_per_update of_one
    seconds_per_update_per_seed seconds_per_env_step share_of_peak state_mb temporary_mb run_memory_mb seeds_that_fit
    gb_of_them gb_of_another_seed memory_gb failed""".split()


def points(args: argparse.Namespace) -> list[tuple[str, int, dict[str, int]]]:
    """(size, seeds, changes) of every point."""
    if args.fit:
        return [(size, 1, {}) for size in args.sizes]
    if not args.vary:
        return [(size, seeds, {}) for size in args.sizes for seeds in args.seeds or [1, 2, 4, 8, 16, 32, 64]]
    axis, *values = args.vary
    grid = [(size, seeds) for size in args.sizes for seeds in args.seeds or [1]]
    if axis == "size":
        return [(value, seeds, {}) for seeds in args.seeds or [1] for value in values]
    return [(size, seeds, {axis.replace("-", "_"): int(value)}) for size, seeds in grid for value in values]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["micro"], help=f"{', '.join(sizes.MODELS)}, or presets")
    parser.add_argument("--mode", default="task", choices=update.MODES)
    parser.add_argument("--seeds", type=int, nargs="+", help="1, 2, 4 ... 64, or 1 with --vary")
    parser.add_argument("--vary", nargs="+", metavar=("AXIS", "VALUE"), help=f"AXIS is one of {', '.join(AXES)}")
    parser.add_argument("--fit", action="store_true", help="find the most seeds that memory holds")
    parser.add_argument("--memory-gb", type=float, default=0, help="of each device, for --fit")
    update.timing_arguments(parser)
    args = parser.parse_args()
    if args.vary and (args.vary[0] not in AXES or len(args.vary) < 2):
        parser.error(f"--vary takes an axis ({', '.join(AXES)}) and its values")

    results, first = [], {}
    for size, seeds, changes in points(args):
        point = update.point_of(size, args.mode, seeds, args, **changes)
        result = common.in_process(__file__, point | {"fit": args.fit, "memory_gb": args.memory_gb})
        spent = result.get("seconds_per_update")
        if spent and not args.vary:
            result["of_one"] = spent / first.setdefault(size, spent)
        results.append(result | changes)
    if not args.fit and not args.vary:
        common.emit({"of_one": {f"{r['size']} {r['seeds']}": r.get("of_one") for r in results}})
    common.table(results, COLUMNS)


if __name__ == "__main__":
    common.here(measure)
    main()
