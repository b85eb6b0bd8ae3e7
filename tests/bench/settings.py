"""Which of the explorer's settings matter: each changed alone, and one table of them all.

    python tests/bench/settings.py --out runs/settings              # 8 seeds each, three tasks: a day on two cores
    python tests/bench/settings.py --out runs/settings --tasks deepsea20 --only base noprior
    python tests/bench/settings.py --out runs/settings --table      # of the runs that are there
    python tests/bench/settings.py --cost 10                        # seconds of an update, beside the preset's

Of size 10 of Deep Sea it says how disagreement is ranked by visits, when the corner is first reached, and what the
tasker scores that was never paid; of size 20 and of FourRooms how much has been seen. Runs that are there already are
not run again, and those that were stopped go on. Intervals are 95 % percentile bootstraps over seeds. Costs are of
updates alone of a size of Deep Sea, on made-up rows (update.py): of each setting in a process of its own, where it
takes turns with the preset.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import common
import jax
import numpy as np
import update
from common import at, interval

from envs import registry
from stages.cli.parse import parse
from stages.results.read import Result, read_run
from stages.sweep.start import start_jax
from stages.sweep.sweep import mesh_for

COMMON = "--preset tiny --mode explore"
DEEP_SEA = "--env DeepSea-bsuite --env.action_map_per_seed true"
TASKS = {
    "deepsea10": f"{DEEP_SEA} --env.size 10 --steps 2200",
    "deepsea20": f"{DEEP_SEA} --env.size 20 --steps 10500",
    "fourrooms": "--env FourRooms-misc --eval-steps 100 --steps 3000",
}
"""Name -> the environment and its rows: 200 episodes of size 10, and 500 of size 20."""
PUBLISHED = (
    "--ensemble.input feat --ensemble.target probs --ensemble.prior-layers 0 --ensemble.updates 0 "
    "--ensemble.spread std --ensemble.units 32 --intrinsic-norm returns"
)
SETTINGS = {
    "base": "",
    "random": "--mode random",
    "published": PUBLISHED,
    "noprior": "--ensemble.prior-layers 0",
    "feat": "--ensemble.input feat",
    "projected": "--ensemble.input projected",
    "projected64": "--ensemble.input projected --ensemble.projection 64",
    "returns": "--intrinsic-norm returns",
    "updates0": "--ensemble.updates 0",
    "updates1": "--ensemble.updates 1",
    "updates4": "--ensemble.updates 4",
    "std": "--ensemble.spread std",
    "u0feat": "--ensemble.updates 0 --ensemble.input feat",
    "u0probs": "--ensemble.updates 0 --ensemble.target probs",
    "u0noprior": "--ensemble.updates 0 --ensemble.prior-layers 0",
    "u0std": "--ensemble.updates 0 --ensemble.spread std",
    "ratio16": "--replay.train-ratio 16",
    "ratio32": "--replay.train-ratio 32",
    "ratio128": "--replay.train-ratio 128",
    "horizon5": "--horizon 5",
    "horizon15": "--horizon 15",
    "entropy02": "--hypers.explorer-entropy 0.02",
    "entropy10": "--hypers.explorer-entropy 0.1",
    "free1": "--hypers.free-nats 1",
    "free03": "--hypers.free-nats 0.3",
    "free0": "--hypers.free-nats 0",
    "members3": "--ensemble.members 3",
    "members10": "--ensemble.members 10",
    "repval": "--hypers.scale-explorer-repval 0.3",
    "unimix": "--hypers.policy-unimix 0.01",
}
"""Name -> what differs from tiny in mode explore."""
AT = 100  # episodes of size 10 after which disagreement is held against visits
SEEDS = 8
TURNS, UPDATES = 5, 8  # of the cost: turns of each, updates of a turn


def words(task: str, setting: str, seeds: int = SEEDS, add: str = "") -> str:
    """The words of run.py for one run of the table, but for its folder. A setting's own come last, and win."""
    return f"{TASKS[task]} {COMMON} --seeds {seeds} --log-points 20 {add} {SETTINGS[setting]}"


def cells(task: str, run: Result) -> dict[str, str]:
    """What the table says of a setting's run of a task."""
    seen = lambda rows: interval(at(run, "novelty/visited_states", rows), np.mean, decimals=1)
    first = common.first(run, "goal_episode")
    came = lambda episodes: f"{(first <= episodes).sum()} of {first.size}"
    if task == "deepsea10":
        correlation, pairs = (at(run, f"novelty/{name}", AT * 11) for name in ("correlation", "visited_pairs"))
        return {
            f"10: rank correlation at {AT} episodes": interval(correlation, np.mean),
            "pairs by then": f"{pairs.mean():.1f}",
            "corner within 200": came(200),
            "first there, median episode": interval(first, np.median),
            "zero-shot score": interval(run.per_seed("score"), np.mean),
        }
    if task == "deepsea20":
        return {"20: cells at 500 episodes": seen(10_500), "corner within 500": came(500)}
    return {f"FourRooms: cells at {rows:,} rows": seen(rows) for rows in (1_500, 3_000)}


def cost(point: common.Result) -> common.Result:
    """Seconds of an update of a seed with a setting, and their ratio to the preset's: medians over turns.

    Processor seconds, as other work on the machine then counts for less; a device at a time.
    """
    start_jax()
    chunks = [_chunk(name, point["size"]) for name in (point["setting"], "base")]
    spent = np.array([[chunk() for chunk in chunks] for _ in range(TURNS + 1)])[1:]  # [turns, 2], less a warm-up
    ours, base = spent.T
    return point | {"seconds": float(np.median(ours)), "of_preset": float(np.median(ours / base))}


def _chunk(setting: str, size: int) -> Callable[[], float]:
    """A function that makes some updates of 8 seeds with a setting, and returns the seconds of one of one."""
    asked = parse(words("deepsea10", setting).split())
    mesh = mesh_for(SEEDS, jax.devices()[:1])
    env = registry.make(asked.config.env, dict(asked.config.env_args) | {"size": size})
    compiled = update.compile_updates(asked.config, asked.hypers, mesh, SEEDS, UPDATES, env)
    state, counters = update.made_up_state(asked.config, asked.hypers, mesh, SEEDS, env)

    def chunk():
        nonlocal state, counters
        begun = time.process_time()
        state, counters, _ = jax.block_until_ready(compiled(state, counters))
        return (time.process_time() - begun) / UPDATES / SEEDS

    return chunk


def main() -> None:
    """Run what is asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/settings"))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="SETTING")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    common.add_argument(parser)
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--cost", type=int, metavar="SIZE", help="measure what an update of it costs, and nothing else")
    asked = parser.parse_args()
    if asked.cost:
        common.table([common.in_process(__file__, {"setting": name, "size": asked.cost}) for name in asked.only])
        return
    place = lambda task, name: asked.out / task / name
    for task in asked.tasks if not asked.table else ():
        for name in asked.only:
            common.train(words(task, name, asked.seeds, asked.add), place(task, name))
    rows = [{"setting": f"`{SETTINGS[name] or 'tiny'}`"} for name in asked.only]
    columns = ["setting"]
    for task in asked.tasks:
        for name, row in zip(asked.only, rows, strict=True):
            if (place(task, name) / "metrics.jsonl").exists():
                found = cells(task, read_run(place(task, name)))
                row |= found
                columns += [column for column in found if column not in columns]
    common.table([row for row in rows if len(row) > 1], columns)


if __name__ == "__main__":
    common.here(cost)
    main()
