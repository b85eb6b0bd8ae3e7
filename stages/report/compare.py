"""Compare: runs -> their scores side by side, for each environment and over all of them.

Runs of one environment are compared with each other. `notes` say what keeps a comparison from being fair.

Axes: S seeds.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.cli.saved_settings import UNCHECKED, beyond_preset, flag_of, set_by_mode
from stages.results.novelty import median_episode
from stages.results.read import EVALUATION, EXPLORED, TRAINING, Result
from stages.results.statistics import Estimate, Floats, aggregates, improvement

ENVIRONMENT = {"config.env", "config.env_args"}
LENGTH = {"config.steps", "config.adapt_steps"}
NO_SETTING = UNCHECKED | ENVIRONMENT | {"seeds", "seed_start", "log_points", "processes"}
"""Arguments that do not say how an agent learns."""


class Line(NamedTuple):
    """One run, or one way of learning over several environments: a line of the table."""

    name: str
    seeds: int  # with a final score
    estimates: Mapping[str, Estimate]  # as of `statistics.aggregates`; empty before a run's end
    novelty: Mapping[str, float]  # medians over seeds, where states can be counted


class Pair(NamedTuple):
    """The probability that a seed of `ours` scores more than one of `theirs`."""

    ours: str
    theirs: str
    probability: Estimate
    seeds: int  # of the one that has fewer


@dataclass(frozen=True)
class Group:
    """Runs of one environment."""

    env: str
    runs: list[Result]
    curve: str  # EVALUATION if all of the runs have it, else TRAINING
    lines: list[Line]
    pairs: list[Pair]
    notes: list[str]


@dataclass(frozen=True)
class Comparison:
    """All that is said of these runs."""

    runs: list[Result]
    differing: list[str]  # settings that are not the same in all of them
    groups: list[Group]  # one for each environment
    across_envs: list[Line]  # one for each choice of settings that was run in several environments
    pairs_across_envs: list[Pair]
    notes: list[str]


def compare(runs: Sequence[Result]) -> Comparison:
    """Side by side: each run's final scores, and how probably one is better than another."""
    differing = differing_settings(runs)
    by_env: dict[str, list[Result]] = {}
    for run in runs:
        by_env.setdefault(run.env, []).append(run)
    groups = [_group(env, members) for env, members in by_env.items()]
    # Environments need different numbers of steps. So LENGTH counts as a setting only where it differs within one.
    varied = {name for group in groups for name in differing_settings(group.runs)}
    lines, pairs, notes = _across_envs(groups, [name for name in differing if name not in LENGTH or name in varied])
    versions = {name for run in runs for name in run.settings if name.startswith("versions.")}
    for name in sorted(versions):
        if len(values := dict.fromkeys(str(run.settings.get(name)) for run in runs)) > 1:
            notes.append(f"the runs were made with different versions of {name.split('.')[1]}: {', '.join(values)}")
    return Comparison(list(runs), differing, groups, lines, pairs, notes)


def differing_settings(runs: Sequence[Result]) -> list[str]:
    """Settings of learning that are not the same in all of these runs. Where the mode alone made them differ, the mode
    stands for them."""
    by_mode = set().union(*(set_by_mode(run.settings) for run in runs))
    implied = by_mode - set().union(*(beyond_preset(run.settings) for run in runs))
    names = set().union(*(run.settings for run in runs)) - NO_SETTING - implied

    def differs(name: str) -> bool:
        return len({str(run.settings.get(name)) for run in runs}) > 1

    return [name for name in sorted(names) if not name.startswith("versions.") and differs(name)]


def described(run: Result, differing: Sequence[str]) -> str:
    """What sets a run apart, as flags."""
    return " ".join(f"{flag_of(name)} {show_value(run.settings.get(name))}" for name in differing)


def show_value(value: object) -> str:
    """A setting's value for people."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def final_scores(run: Result) -> Floats:
    """Of evaluation after training, [S]; empty before that."""
    return run.per_seed("score") if run.finished else np.zeros(0)


def _group(env: str, runs: list[Result]) -> Group:
    curve = EVALUATION if all(EVALUATION in run.metrics for run in runs) else TRAINING
    lines = [_line(run) for run in runs]
    scored = [run for run in runs if final_scores(run).size]
    pairs = [_pair(a.name, b.name, [final_scores(a)], [final_scores(b)]) for a, b in itertools.combinations(scored, 2)]
    return Group(env, runs, curve, lines, pairs, _notes(runs))


def _pair(ours: str, theirs: str, our_tasks: list[Floats], their_tasks: list[Floats]) -> Pair:
    seeds = min(int(np.isfinite(task).sum()) for task in our_tasks + their_tasks)
    return Pair(ours, theirs, improvement(our_tasks, their_tasks), seeds)


def _line(run: Result) -> Line:
    scores = final_scores(run)
    return Line(run.name, int(np.isfinite(scores).sum()), _estimates([scores], [run.scale]), novelty_of(run))


def _estimates(tasks: list[Floats], scales: Sequence[tuple[float, float] | None]) -> dict[str, Estimate]:
    """Estimates in the score's unit for one task, as shares of the scale for several. The gap is always a share."""
    if not all(task.size for task in tasks):
        return {}
    shares = [normalised(task, scale) for task, scale in zip(tasks, scales, strict=True) if scale]
    if len(tasks) > 1:
        return aggregates(shares, best=1.0)
    gap = aggregates(shares, best=1.0) if shares else {}
    return aggregates(tasks) | {name: gap[name] for name in gap if name == "optimality_gap"}


def normalised(scores: Floats, scale: tuple[float, float]) -> Floats:
    """Scores as shares of the way from the lowest to the highest return."""
    return (scores - scale[0]) / (scale[1] - scale[0])


def novelty_of(run: Result) -> dict[str, float]:
    """What is known of a run's exploring: medians over seeds, and how many reached the goal; empty without any."""
    medians: dict[str, float] = {}
    for name in EXPLORED:
        values = run.per_seed(name)
        if name.endswith("_episode") and values.size:
            medians[f"{name.split('_')[0]}_seeds"] = float(np.isfinite(values).sum())
            median = median_episode(values)
            medians |= {name: median} if np.isfinite(median) else {}
        elif np.isfinite(values).any():
            medians[name] = float(np.median(values[np.isfinite(values)]))
    if medians:
        medians["seeds"] = float(len(run.seeds))
        medians["states"] = float(run.summary["states"])
    return medians


def _notes(runs: list[Result]) -> list[str]:
    """What keeps runs of one environment from being compared fairly, in a line each."""
    notes = []
    if len({run.done for run in runs if run.finished}) > 1:
        done = ", ".join(f"{run.name} {run.done:,}" for run in runs if run.finished)
        notes.append(f"final scores are after different numbers of steps: {done}")
    for run in runs:
        if not run.finished:
            notes.append(f"{run.name} is not finished ({run.done:,} of {run.planned:,} steps): no final score of it")
        if not run.steps.size:
            notes.append(f"{run.name} has no line in its metrics.jsonl: no curve of it")
        elif len(missing := np.flatnonzero(~np.isfinite(run.curve(TRAINING)).any(1))) and run.finished:
            notes.append(f"{run.name}: no episode with a finite score of seeds {_seed_names(run, missing)} in training")
        if run.diverged:
            seeds = [f"{seed} at step {step:,}" for seed, step in run.diverged.items()]
            notes.append(f"{run.name}: seeds diverged: {_some(seeds)}")
        if len(broken := np.flatnonzero(~np.isfinite(final_scores(run)))):
            notes.append(f"{run.name}: no finite final score of seeds {_seed_names(run, broken)}: they are left out")
    return notes


def _seed_names(run: Result, indices: NDArray[np.intp]) -> str:
    return _some([str(run.seeds[i]) for i in indices])


def _some(items: list[str], limit: int = 8) -> str:
    return ", ".join(items[:limit]) + (f" and {len(items) - limit} more" if len(items) > limit else "")


def _across_envs(groups: list[Group], differing: list[str]) -> tuple[list[Line], list[Pair], list[str]]:
    """Each combination of settings, over the environments that all combinations were run on."""
    if len(groups) < 2:
        return [], [], []
    methods: dict[str, dict[str, list[Result]]] = {}  # settings in words -> environment -> its runs
    for group in groups:
        for run in group.runs:
            if final_scores(run).size:
                methods.setdefault(described(run, differing), {}).setdefault(group.env, []).append(run)
    methods = {method: envs for method, envs in methods.items() if len(envs) > 1}
    shared = [group.env for group in groups if methods and all(group.env in envs for envs in methods.values())]
    if len(shared) < 2:
        return [], [], ["nothing is said over environments: no two of them have finished runs of the same settings"]
    scale = {group.env: group.runs[0].scale for group in groups}
    known, unknown = [env for env in shared if scale[env]], [env for env in shared if not scale[env]]
    scores = {method: {env: np.concatenate([final_scores(r) for r in envs[env]]) for env in shared}
              for method, envs in methods.items()}  # fmt: skip
    lines = [
        Line(method or "all runs", sum(int(np.isfinite(s).sum()) for s in tasks.values()),
             _estimates([tasks[env] for env in known], [scale[env] for env in known]), {})
        for method, tasks in scores.items() if len(known) > 1
    ]  # fmt: skip
    pairs = [
        _pair(a or "all runs", b or "all runs", list(scores[a].values()), list(scores[b].values()))
        for a, b in itertools.combinations(scores, 2)
    ]
    notes = [f"scores over environments are without {', '.join(unknown)}, whose scale is not known"] if unknown else []
    return lines, pairs, notes
