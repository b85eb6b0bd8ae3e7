"""Which of the explorer's settings matter: each changed alone, on Deep Sea, and one table of them all.

    python tests/bench/settings.py --out runs/settings              # 8 seeds each, 200 episodes of size 10: hours
    python tests/bench/settings.py --out runs/settings --only base stoch
    python tests/bench/settings.py --out runs/settings --table      # of the runs that are there
    python tests/bench/settings.py --cost                           # seconds of an update, beside the preset's

Runs that are there already are not run again. Intervals are 95 % percentile bootstraps over seeds. Costs are of updates
alone, on made-up rows (update.py): of each setting in a process of its own, where it takes turns with the preset.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import common
import jax
import numpy as np
import update
from common import interval

from stages.results.read import Result, read_run
from stages.runs import arguments
from stages.runs.start import start_jax
from stages.runs.sweep import mesh_for

SIZE, EPISODES, SEEDS = 10, 200, 8
COMMON = (
    f"--env DeepSea-bsuite --env.action_map_per_seed true --env.size {SIZE} --preset tiny-explore --mode explore "
    f"--seeds {SEEDS} --steps {EPISODES * (SIZE + 1)} --checkpoint-keep 0"
)
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
    "returns": "--intrinsic-norm returns",
    "updates0": "--ensemble.updates 0",
    "updates1": "--ensemble.updates 1",
    "updates4": "--ensemble.updates 4",
    "stoch": "--ensemble.target stoch",
    "deter": "--ensemble.target deter",
    "embed": "--ensemble.target embed",
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
    "free01": "--hypers.free-nats 0.1",
    "free03": "--hypers.free-nats 0.3",
    "free0": "--hypers.free-nats 0",
    "members3": "--ensemble.members 3",
    "members10": "--ensemble.members 10",
    "repval": "--hypers.scale-explorer-repval 0.3",
    "unimix": "--hypers.policy-unimix 0.01",
}
"""Name -> what differs from the preset tiny-explore."""
AT = 100  # episodes after which disagreement is held against visits
TURNS, UPDATES = 5, 8  # of the cost: turns of each, updates of a turn


def line(run: Result, words: str) -> str:
    """A row of the table."""
    correlation, pairs = (
        common.at(run, f"novelty/{name}", AT * (SIZE + 1)) for name in ("correlation", "visited_pairs")
    )
    first = common.first(run, "goal_episode")
    cells = [
        f"`{words or 'tiny-explore'}`",
        interval(correlation, np.mean),
        f"{pairs.mean():.1f}",
        f"{np.isfinite(first).sum()} of {first.size}",
        interval(first, np.median),
        interval(run.per_seed("score"), np.mean),
    ]
    return "| " + " | ".join(cells) + " |"


def cost(point: common.Result) -> common.Result:
    """Seconds of an update of a seed with a setting, and their ratio to the preset's: medians over turns.

    Processor seconds, as other work on the machine then counts for less; a device at a time.
    """
    start_jax()
    chunks = [_chunk(SETTINGS[name]) for name in (point["setting"], "base")]
    spent = np.array([[chunk() for chunk in chunks] for _ in range(TURNS + 1)])[1:]  # [turns, 2], less a warm-up
    ours, base = spent.T
    return point | {"seconds": float(np.median(ours)), "of_preset": float(np.median(ours / base))}


def _chunk(words: str) -> Callable[[], float]:
    """A function that makes some updates of 8 seeds with a setting, and returns the seconds of one of one."""
    asked = arguments.parse(f"{COMMON} {words}".split())
    mesh = mesh_for(SEEDS, jax.devices()[:1])
    compiled = update.compile_updates(asked.config, asked.hypers, mesh, SEEDS, UPDATES)
    state, clock = update.made_up_state(asked.config, asked.hypers, mesh, SEEDS)

    def chunk():
        nonlocal state, clock
        begun = time.process_time()
        state, clock, _ = jax.block_until_ready(compiled(state, clock))
        return (time.process_time() - begun) / UPDATES / SEEDS

    return chunk


def main() -> None:
    """Run what is asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/settings"))
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    common.add_argument(parser)
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--cost", action="store_true", help="measure what an update costs, and nothing else")
    asked = parser.parse_args()
    if asked.cost:
        common.table([common.in_process(__file__, {"setting": name}) for name in asked.only])
        return
    for name in asked.only if not asked.table else ():
        common.train(f"{COMMON} {asked.add} {SETTINGS[name]}", asked.out / name)
    reached = f"reached the corner within {EPISODES} | first there, median episode"
    print(f"| setting | rank correlation at {AT} episodes | pairs visited by then | {reached} | zero-shot score |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in asked.only:
        if (asked.out / name / "summary.json").exists():
            print(line(read_run(asked.out / name), SETTINGS[name]))


if __name__ == "__main__":
    common.here(cost)
    main()
