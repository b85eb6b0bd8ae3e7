"""What was explored within episodes, of runs whose states can be counted: one line for each run.

    python docs/experiments/episodes.py RUN [RUN ...] [--rows N]

Over a whole run even uniformly random actions visit every state of a small task whose episodes differ. How many
states one episode visits tells explorers apart sooner: it is known for every episode, and needs no goal. Read from the
newest checkpoint; means over the episodes of a seed, but for its first two, and then the mean and the range over seeds.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "bench"))

from common import table

from stages.cli.processes import Processes  # by the path that common adds
from stages.store.checkpoint import Checkpoints
from stages.store.files import RunFolderError

UNTRAINED = 2  # episodes of a seed that are left out: they end before the agent has learned anything
BEGINNING = 100  # rows of an episode whose states are counted as well


def distinct_states(states: NDArray[np.integer]) -> list[tuple[int, int]]:
    """Of each episode that ended: how many different states it visited, in all and in its first BEGINNING rows.

    Args:
        states: [C] of consecutive rows of one environment; -1 at an episode's last row and where no row is.
    """
    (ends,) = np.nonzero(states < 0)
    episodes = [e for e in np.split(states, ends + 1) if e.size > 1 and e[-1] < 0]
    return [(len(set(e[:-1])), len(set(e[:-1][:BEGINNING]))) for e in (e.tolist() for e in episodes)]


def of_run(folder: Path, rows: int | None) -> NDArray[np.floating]:
    """[S, 2]: each seed's means. Raises RunFolderError where there is no checkpoint, or no state is counted."""
    checkpoints = Checkpoints(folder, Processes(), keep=1, reads=True)
    if (newest := checkpoints.newest()) is None:
        raise RunFolderError(f"{str(folder)!r} has no checkpoint")
    arrays = checkpoints.arrays(newest)
    if not (names := [name for name in arrays if name.endswith(".coverage.where")]):
        raise RunFolderError(f"{str(folder)!r} is of an environment whose states cannot be counted")
    where = np.asarray(arrays[names[0]])[:, :rows]  # [S, C, N]
    seeds = ([e for n in range(seed.shape[1]) for e in distinct_states(seed[:, n])[UNTRAINED:]] for seed in where)
    return np.array([np.mean(episodes, 0) if episodes else [np.nan, np.nan] for episodes in seeds])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--rows", type=int, help="of a seed; all by default")
    words = parser.parse_args()
    lines = []
    for run in words.runs:
        try:
            found = of_run(run, words.rows)
        except RunFolderError as error:
            sys.exit(f"episodes.py: error: {error}")
        names = ("distinct states of an episode", f"of its first {BEGINNING} rows")
        spread = zip(names, found.mean(0), found.min(0), found.max(0), strict=True)
        words_of = {name: f"{mean:.1f} ({low:.1f} to {high:.1f})" for name, mean, low, high in spread}
        lines.append({"run": run.name, "seeds": len(found)} | words_of)
    table(lines)


if __name__ == "__main__":
    main()
