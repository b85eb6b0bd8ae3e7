"""What the world model's losses do to its states: a table of runs, or of a sweep's trials.

    S="--sweep scale_rep=0,0.1,1 --sweep free_nats=0,1 --sweep unimix=0,0.01"
    python run.py --env MemoryChain-bsuite --preset tiny --seeds 4 $S --logdir runs/representation
    python tests/bench/representation.py runs/representation

Means over seeds, with 95 % bootstrap intervals, of the mean over the last fifth of a run: the KL of posterior and prior
before free nats, the entropies of both (nats, all latents together), the share of rows whose KL is free, the
reconstruction loss, and open-loop errors so many rows ahead beside the posterior's at the same rows (docs/runs.md).
"""

import argparse

import numpy as np
from common import interval, table

from stages.measure.open_loop import AHEAD
from stages.results.read import Result, read_runs

COLUMNS = {
    "KL": "train/kl",
    "posterior entropy": "train/rep_ent",
    "prior entropy": "train/dyn_ent",
    "free rows": "train/kl_free",
    "reconstruction": "train/loss/recon",
}
LAST = 5  # the last part of a run, of so many


def row(run: Result) -> dict[str, str]:
    """A line of the table."""

    def shown(name: str, decimals: int) -> str:
        last = run.curve(name)[:, -max(1, run.steps.size // LAST) :]
        return interval(np.nanmean(last, 1), np.mean, decimals=decimals)

    cells = {"run": run.name} | {word: shown(name, 3) for word, name in COLUMNS.items()}
    for ahead in AHEAD:
        if np.isfinite(run.curve(f"open_loop/error_{ahead}")).any():
            cells[f"{ahead} ahead"] = shown(f"open_loop/error_{ahead}", 4)
            cells[f"{ahead} seen"] = shown(f"open_loop/posterior_{ahead}", 4)
    return cells | {"score": interval(run.per_seed("score"), np.mean)}


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    table([row(run) for run in read_runs(parser.parse_args().runs)])


if __name__ == "__main__":
    main()
