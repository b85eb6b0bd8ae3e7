"""Which of the explorer's settings matter: each changed alone, on Deep Sea, and one table of them all.

    python tests/bench/settings.py --out runs/settings              # 8 seeds each, 200 episodes of size 10: hours
    python tests/bench/settings.py --out runs/settings --only base stoch
    python tests/bench/settings.py --out runs/settings --table      # of the runs that are there

Runs that are there already are not run again. Intervals are 95 % percentile bootstraps over seeds.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
from common import ROOT, interval

from stages.results.read import Result, read_run

SIZE, EPISODES, SEEDS = 10, 200, 8
COMMON = [
    *(f"--env DeepSea-bsuite --env.action_map_per_seed true --env.size {SIZE}".split()),
    *(f"--preset tiny-explore --mode explore --seeds {SEEDS} --steps {EPISODES * (SIZE + 1)}".split()),
    *("--checkpoint-keep", "0"),
]
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
    "free0": "--hypers.free-nats 0",
    "members3": "--ensemble.members 3",
    "members10": "--ensemble.members 10",
    "trunk1": "--ensemble.trunk 1",
    "bootstrap": "--hypers.bootstrap 0.5",
    "priority": "--replay.priority 0.5",
    "repval": "--hypers.scale-explorer-repval 0.3",
    "unimix": "--hypers.policy-unimix 0.01",
}
"""Name -> what differs from the preset tiny-explore."""
AT = 100  # episodes after which disagreement is held against visits


def line(run: Result, words: str) -> str:
    """A row of the table."""
    point = int(np.argmin(np.abs(run.steps - AT * (SIZE + 1))))
    correlation = run.curve("novelty/correlation")[:, point]
    pairs = run.curve("novelty/visited_pairs")[:, point].mean()
    first = np.nan_to_num(run.per_seed("goal_episode"), nan=np.inf)
    cells = [
        f"`{words or 'tiny-explore'}`",
        interval(correlation, np.mean),
        f"{pairs:.1f}",
        f"{np.isfinite(first).sum()} of {first.size}",
        interval(first, np.median),
        interval(run.per_seed("score"), np.mean),
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Run what is asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--table", action="store_true", help="run nothing")
    asked = parser.parse_args()
    for name in asked.only if not asked.table else ():
        words = [*COMMON, "--logdir", str(asked.out / name), *SETTINGS[name].split()]
        subprocess.run([sys.executable, str(Path(ROOT, "run.py")), *words], check=True)
    reached = f"reached the corner within {EPISODES} | first there, median episode"
    print(f"| setting | rank correlation at {AT} episodes | pairs visited by then | {reached} | zero-shot score |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in asked.only:
        if (asked.out / name / "summary.json").exists():
            print(line(read_run(asked.out / name), SETTINGS[name]))


if __name__ == "__main__":
    main()
