"""Runs' folders as the program leaves them, without a run; and what is read from tables and pictures."""

import csv
import dataclasses
import io
import itertools
import math

import run as program
from stages.store.folder import RunFolder

NAN = math.nan
COUNTED = {"states": 21, "visited_states": [9, 12], "novelty_correlation": [-0.5, None],
           "goal_episode": [None, 8], "solved_episode": [None, None]}  # fmt: skip


def write_run(path, words=(), training=((0.0, 1.0), (2.0, 3.0)), evaluation=None, final=(1.0, 2.0), **summary):
    """A run's folder as the program would leave it.

    Args:
        words: of its command line.
        training, evaluation: scores [P][S] after 100, 200 ... steps; NaN where no episode ended, None: no line.
        final: scores [S]; None for a run that is not finished.
    """
    seeds = len(training[0]) if training else len(final)
    arguments = program.parse(
        ["--env", "Catch-bsuite", "--seeds", str(seeds), "--seed-start", "3", "--steps", "200", *words]
    )
    folder = RunFolder.open(path)
    folder.write_config(dataclasses.asdict(arguments) | {"versions": {"jax": "1.2"}})
    rows = []
    for p, s in itertools.product(range(len(training)), range(seeds)):
        if training[p][s] is None:
            continue
        row = {"step": 100 * (p + 1), "seed": 3 + s, "phase": arguments.config.mode, "episode/score": training[p][s]}
        row |= {"episode/length": 9.0, "episode/count": 1, "train/loss/recon": 0.5 / (p + 1), "fps/policy": 50.0}
        rows.append(row | ({} if evaluation is None else {"eval/score": evaluation[p][s]}))
    folder.append_metrics(rows)
    if final is not None:
        folder.write_summary({"finished": True, "score": final, "untrained": [0.0] * seeds, **summary})
    folder.close()
    return path


def listed(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def pixels(path):
    from matplotlib.image import imread

    return imread(path)[..., :3]  # [height, width, 3], 0 to 1
