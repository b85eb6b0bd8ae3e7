"""What exploring without the reward is worth: zero-shot, few-shot and coverage, beside an oracle and two controls.

    python tests/bench/transfer.py --out runs/transfer              # 8 seeds each: two hours
    python tests/bench/transfer.py --out runs/transfer --only cartpole fourrooms
    python tests/bench/transfer.py --out runs/transfer --table      # of the runs that are there

Of each task: an explorer paid by disagreement, one paid a constant, and uniformly random actions collect N rows; the
tasker, trained in imagination on them, is evaluated (zero-shot), and again after N / 10 rows of its own (few-shot). The
oracle is mode task after N + N / 10 rows, which stands beside both: its log has no evaluations on the way. Runs that
are there already are not run again. Scores are interquartile means over seeds, coverage is a mean; intervals are 95 %
percentile bootstraps over seeds.
"""

import argparse
from pathlib import Path

import common
import numpy as np
from common import at, interval, iqm

from stages.results.read import Result, read_run

SEEDS = 8
TASKS = {
    "catch": ("--env Catch-bsuite", 4000),
    "cartpole": ("--env CartPole-v1", 3000),
    "deepsea": ("--env DeepSea-bsuite --env.size 10 --env.action_map_per_seed true", 2200),
    "fourrooms": ("--env FourRooms-misc --eval-steps 100", 3000),
    "metamaze": ("--env MetaMaze-misc", 3000),
    "acrobot": ("--env Acrobot-v1 --eval-episodes 16", 4000),
    "mountaincar": ("--env MountainCar-v0 --env.rescale_observations true --eval-episodes 16", 12000),
}
"""Name -> the environment and how it is evaluated; N, rows of a seed before the reward is used."""
EXPLORERS = {
    "explore": "--mode explore",
    "constant": "--mode explore --explorer-reward constant --episodic-novelty False",
    "random": "--mode random",
}
"""Who collects the N rows: the explorer and its two controls."""


def command(task: str, mode: str) -> str:
    """The words of run.py for one run of the table."""
    env, rows = TASKS[task]
    phases = f"--mode task --steps {rows * 11 // 10} --log-points 11"
    if mode in EXPLORERS:
        phases = f"{EXPLORERS[mode]} --steps {rows} --adapt-steps {rows // 10} --log-points 5"
    return f"{env} --preset tiny --seeds {SEEDS} --checkpoint-keep 0 {phases}"


def scores(runs: list[Result], task: str) -> list[list[str]]:
    """Lines of the first table."""
    rows = TASKS[task][1]
    *explorers, oracle = runs
    return [
        [f"{task}, {shot}", *(iqm(at(run, "eval/score", seen)) for run in explorers), iqm(oracle.per_seed("score"))]
        for shot, seen in (("zero-shot", rows), ("few-shot", rows * 11 // 10))
    ]


def coverage(runs: list[Result], task: str) -> list[list[str]]:
    """Lines of the second table; none where states cannot be counted."""
    if not any(run.summary.get("states") for run in runs):
        return []
    visited = lambda run, seen: interval(at(run, "novelty/visited_states", seen), np.mean, decimals=1)
    seen = [TASKS[task][1] // part for part in (4, 2, 1)]
    return [[f"{task}, {rows:,} rows", *(visited(run, rows) for run in runs)] for rows in seen]


def main() -> None:
    """Run what is asked for, and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS))
    common.add_argument(parser)
    parser.add_argument("--table", action="store_true", help="run nothing")
    asked = parser.parse_args()
    modes = (*EXPLORERS, "task")
    for task in asked.only if not asked.table else ():
        for mode in modes:
            common.train(f"{command(task, mode)} {asked.add}", asked.out / f"{task}-{mode}")
    for title, lines_of in (("score", scores), ("states visited", coverage)):
        print(f"\n| {title} | explore | paid a constant | random | task |\n|{' --- |' * 5}")
        for task in asked.only:
            folders = [asked.out / f"{task}-{mode}" for mode in modes]
            runs = [read_run(path) for path in folders if (path / "summary.json").exists()]
            if len(runs) == len(modes) and all(run.finished for run in runs):
                print(*("| " + " | ".join(cells) + " |" for cells in lines_of(runs, task)), sep="\n")


if __name__ == "__main__":
    main()
