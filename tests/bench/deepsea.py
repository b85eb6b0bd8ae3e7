"""Deep Sea by size: in which episode the corner is first reached, when it is solved, and how that grows with N.

    python tests/bench/deepsea.py --out runs/deepsea --sizes 10 20 --modes explore mix random
    python tests/bench/deepsea.py --out runs/deepsea --sizes 30 --modes mix --add "--replay.train-ratio 128"
    python tests/bench/deepsea.py --out runs/deepsea --table            # of the runs that are there

Every seed has an action mapping of its own. `solved` is bsuite's rule: fewer than 90 % of the episodes so far ended
without the reward; it counts the explorer's own episodes. The tasker's score is of its evaluation at the end, an
interquartile mean. Runs that are there already are not run again, and those that were stopped are read as far as they
came. Intervals are 95 % percentile bootstraps over seeds; what never came is later than all that did.

With several sizes it says how the median episode grows: the least-squares exponent of N on logarithmic axes, beside
that of tabular optimism with an ensemble of five (Luis et al. 2023), and psi, where a share psi^N of the seeds reached
the corner within the episodes they had: as in 1 - (1 - psi^N)^K, bootstrapped DQN's share with K members (Knyazhitskiy
2025), of one agent, K = 1. Its lower bound is Clopper and Pearson's, of 95 %.
"""

import argparse
from pathlib import Path

import common
import numpy as np
from common import first, interval, iqm
from numpy.typing import NDArray
from scipy.stats import beta

from stages.results.read import EVALUATION, Result, read_run

EPISODES = {
    "explore": (300, 1000, 3000),
    "mix": (500, 2000, 5000),
    "task": (500, 1500, 3000),
    "random": (300, 300, 300),
}
"""Mode -> episodes of sizes up to 10, up to 20, and beyond. Random actions never arrive at larger sizes."""
TABULAR = {10: 43, 20: 165, 30: 404, 40: 805}
"""N -> episodes until solved by tabular optimism (Luis et al. 2023, data of the paper)."""

Floats = NDArray[np.float64]


def command(size: int, mode: str, seeds: int, add: str) -> str:
    """The words of run.py for one run."""
    episodes = EPISODES[mode][(size > 10) + (size > 20)]
    steps = episodes * (size + 1)
    env = f"--env DeepSea-bsuite --env.size {size} --env.action_map_per_seed true"
    # About 50 episodes between evaluations.
    points = f"--log-points {max(1, episodes // 50)} --checkpoint-minutes 5"
    return f"{env} --preset tiny --mode {mode} --seeds {seeds} --steps {steps} {points} {add}"


def row(size: int, mode: str, run: Result) -> dict[str, str]:
    """A line of the table."""
    corner, solved = first(run, "goal_episode"), first(run, "solved_episode")
    score = run.curve(EVALUATION)[:, -1]
    came = lambda when: f"{np.isfinite(when).sum()} of {when.size}, {interval(when, np.median)}"
    return {
        "N": str(size),
        "mode": mode,
        "episodes": f"{run.done // (size + 1):,}",
        "first at the corner: seeds, median episode": came(corner),
        "earliest, latest": " to ".join(
            f"{x:g}" if np.isfinite(x) else "not yet" for x in (corner.min(), corner.max())
        ),
        "solved: seeds, median episode": came(solved),
        "tasker's score": f"{iqm(score)}, {(score > 0.8).sum()} above 0.8",
        "states visited": f"{run.per_seed('visited_states').mean():.1f} of {run.summary['states']}",
    }


def exponent(sizes: list[int], medians: Floats) -> Floats:
    """Least-squares slopes of log episodes on log N: medians [..., sizes] -> [...]."""
    logs = np.log(sizes) - np.mean(np.log(sizes))
    return (np.log(medians) * logs).sum(-1) / np.square(logs).sum()


def growth(sizes: list[int], when: list[Floats], resamples: int = 4000) -> str:
    """The exponent of N with its interval: seeds are drawn anew within each size. `when`: of each size, [seeds]."""
    rng = np.random.default_rng(0)
    draws = np.stack([np.median(rng.choice(each, (resamples, each.size)), axis=1) for each in when], 1)
    with np.errstate(invalid="ignore"):
        slopes = exponent(sizes, draws)
    whole = exponent(sizes, np.array([np.median(each) for each in when]))
    if not np.isfinite(whole):
        return "not defined: fewer than half of the seeds came so far"
    low, high = np.percentile(np.where(np.isfinite(slopes), slopes, np.inf), [2.5, 97.5], method="nearest")
    return f"{whole:.2f} ({low:.2f} to {high:.2f})"


def psi(size: int, reached: int, seeds: int) -> str:
    """psi of a size with its lower bound: reached / seeds = psi^N."""
    low = beta.ppf(0.05, reached, seeds - reached + 1) if reached else 0.0
    return f"N = {size}: {reached} of {seeds}, {(reached / seeds) ** (1 / size):.3f} (at least {low ** (1 / size):.3f})"


def main() -> None:
    """Run what is asked for, and print the table and how it grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 20, 30, 40, 50])
    parser.add_argument("--modes", nargs="+", choices=EPISODES, default=list(EPISODES))
    parser.add_argument("--seeds", type=int, default=32)
    common.add_argument(parser)
    parser.add_argument("--table", action="store_true", help="run nothing")
    asked = parser.parse_args()
    place = lambda size, mode: asked.out / f"{size}-{mode}"
    for size in asked.sizes if not asked.table else ():
        for mode in asked.modes:
            common.train(command(size, mode, asked.seeds, asked.add), place(size, mode))
    there = {
        (size, mode): read_run(place(size, mode))
        for size in asked.sizes
        for mode in asked.modes
        if (place(size, mode) / "summary.json").exists()
    }
    common.table([row(size, mode, run) for (size, mode), run in there.items()])
    for mode in asked.modes:
        of_mode = {size: run for (size, its), run in there.items() if its == mode}
        corners = [first(run, "goal_episode") for run in of_mode.values()]
        if len(of_mode) > 1:
            print(f"\n{mode}: the corner's median episode grows as N to the power {growth(list(of_mode), corners)}")
            each = zip(of_mode, corners, strict=True)
            print("psi:", "; ".join(psi(size, int(np.isfinite(when).sum()), when.size) for size, when in each))
    anchor = exponent(list(TABULAR), np.array(list(TABULAR.values()), np.float64))
    print(f"\ntabular optimism, solved: N to the power {anchor:.2f}")


if __name__ == "__main__":
    main()
