"""Export: runs' scores for other programs: one long table for pandas, and files for DreamerV3's plotting script."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from stages.report.compare import final_scores
from stages.results.read import EVALUATION, TRAINING, Result
from stages.store.files import write_whole


def write_table(path: Path, runs: Sequence[Result], differing: Sequence[str]) -> None:
    """results.csv: a line for each score, with everything that sets it apart.

    Columns: run, env, each setting of `differing`, seed, phase, step (env steps of the seed), kind, score. Kinds:
    training (mean of the episodes that ended since the last point), evaluation (of the tasker, at that point),
    untrained, zero_shot (after exploring) and final (of evaluation episodes). A score that is missing or not finite has
    no line.

    Raises:
        RunFolderError: the disk refuses.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    settings = [name.removeprefix("config.") for name in differing]
    writer.writerow(["run", "env", *settings, "seed", "phase", "step", "kind", "score"])
    for run in runs:
        same = [run.name, run.env, *(run.settings.get(name) for name in differing)]
        writer.writerows([*same, *row] for row in _scores(run))
    write_whole(path, text.getvalue().encode())


def _scores(run: Result) -> Iterator[tuple[int, str, int, str, float]]:
    """Seed, phase, step, kind, score."""
    first, last = (run.phases[0], run.phases[-1]) if run.phases else ("", "")
    adapt = run.adapt_step if run.adapt_step is not None else run.done
    ends = (
        ("untrained", first, 0, run.per_seed("untrained")),
        ("zero_shot", first, adapt, run.per_seed("zero_shot")),
        ("final", last, run.done, final_scores(run)),
    )
    for kind, name in (("training", TRAINING), ("evaluation", EVALUATION)):
        if name not in run.metrics:
            continue
        for seed, scores in zip(run.seeds, run.metrics[name].tolist(), strict=True):
            for step, phase, score in zip(run.steps.tolist(), run.phases, scores, strict=True):
                if np.isfinite(score):
                    yield seed, phase, step, kind, score
    for kind, phase, step, scores in ends:
        for seed, score in zip(run.seeds, scores.tolist(), strict=bool(scores.size)):
            if np.isfinite(score):
                yield seed, phase, step, kind, score


def write_scores(folder: Path, runs: Sequence[Result]) -> None:
    """A folder PROGRAM-TASK-METHOD-SEED for each seed, with scores.jsonl, as DreamerV3's plot.py finds and reads them.

    Lines have `step` and `episode/score` (what plot.py draws), and `eval/score` (which its --ykeys can ask for) where
    there is one. The parts contain no hyphens, at which plot.py splits the name.

    Raises:
        RunFolderError: the disk refuses.
    """
    for run in runs:
        names = [name for name in (TRAINING, EVALUATION) if name in run.metrics]
        for i, seed in enumerate(run.seeds):
            lines = []
            for p, step in enumerate(run.steps.tolist()):
                row = {name: float(run.metrics[name][i, p]) for name in names}
                if np.isfinite(row.get(TRAINING, np.nan)):
                    lines.append(json.dumps({"step": step} | {k: v for k, v in row.items() if np.isfinite(v)}) + "\n")
            if lines:  # plot.py takes no empty file
                path = folder / f"dreamsweep-env_{_without_hyphens(run.env)}-{_without_hyphens(run.name)}-{seed}"
                path.mkdir(parents=True, exist_ok=True)
                write_whole(path / "scores.jsonl", "".join(lines).encode())


def _without_hyphens(text: str) -> str:
    return re.sub(r"\W+", "_", text).strip("_")
