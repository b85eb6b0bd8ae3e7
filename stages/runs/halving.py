"""Successive halving: a sweep's trials train to a rung, the best 1/ETA of them go on to the next one, the others stop.

All trials of all programs are compared with each other, by the mean over seeds of the tasker's evaluation at the rung.
What is compared stands in each trial's summary.json, so that the same command, started again, finds the same.

Source: Jamieson & Talwalkar 2016 (arXiv 1502.07943); Hyperband's inner loop (Li et al. 2018, arXiv 1603.06560).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.config import ConfigError
from stages.runs.folder import RunFolder, RunFolderError, read_json, write_json
from stages.runs.rounds import split_chunks
from stages.runs.rung import Rung, chunks_until, shares_of
from stages.runs.terminal import say, warn
from stages.runs.trials import Program, Trial

FEW_NAMES = 9  # of a line on the terminal


class Standing(NamedTuple):
    """A trial at a rung."""

    program: int  # place among the sweep's programs
    trial: int  # place in the program
    name: str
    step: int  # env steps of a seed
    score: float  # mean over seeds; minus infinity where there is none
    gains: tuple[float, ...] = ()  # of each seed with a score, over its own before the first update


def rung_by_rung(programs: Sequence[Program], eta: int) -> Iterator[list[Program]]:
    """What is trained next: all programs at once without `--halving`, else those that go on, to one rung after another.

    Args:
        eta: of `--halving`; 0 without it.

    Whoever asks for the next has trained what was given last. One line at each rung says who goes on and who stops, and
    the last one what it saved.

    Raises:
        ConfigError: trials that cannot be compared, or rungs that cannot be told apart.
        RunFolderError: a summary cannot be read or written.
    """
    if not eta:
        yield list(programs)
        return
    shares = check_halving(programs, eta)
    say(_plan(sum(len(program.trials) for program in programs), eta, shares))
    going = {(p, t) for p, program in enumerate(programs) for t in range(len(program.trials))}
    for index in range(len(shares)):
        rung = Rung(index, shares)
        trained = {p: tuple(sorted(t for q, t in going if q == p)) for p in sorted({p for p, _ in going})}
        yield [dataclasses.replace(programs[p], rung=rung, going=trials) for p, trials in trained.items()]
        if not rung.last:
            standings = [_standing(programs, p, t, index) for p, trials in trained.items() for t in trials]
            best, others = survivors(standings, eta)
            for each in others:
                _stop(programs[each.program].trials[each.trial], each.step)
            say(_verdict(index, shares, best, others))
            if by_chance(standings):
                warn(
                    "scores at this rung are those of untrained agents: chance decides who goes on; give "
                    "--halving-start a later step, or more --steps"
                )
            going = {(each.program, each.trial) for each in best}
    say(_savings(programs))


def survivors(standings: Sequence[Standing], eta: int) -> tuple[list[Standing], list[Standing]]:
    """(the best 1/ETA, at least one; the others), the best first; of equal ones the first."""
    ranked = sorted(standings, key=lambda each: -each.score)  # stable
    count = max(1, len(ranked) // eta)
    return ranked[:count], ranked[count:]


def by_chance(standings: Sequence[Standing]) -> bool:
    """Whether scores at a rung are still those of untrained agents: their mean gain over all seeds of all trials is
    within two standard errors of nothing, or below."""
    gains = np.array([gain for each in standings for gain in each.gains])
    return gains.size > 1 and bool(gains.mean() <= 2 * gains.std(ddof=1) / np.sqrt(gains.size))


def score_of(scores: NDArray[np.float64], diverged: Sequence[bool]) -> float:
    """A trial's score from those of its seeds [S]: the mean of finite ones; the lowest where all seeds diverged."""
    finite = scores[np.isfinite(scores)]
    return float(finite.mean()) if finite.size and not all(diverged) else -np.inf


def reached(program: Program) -> bool:
    """Whether all trials that are trained to the program's rung have been there. Raises RunFolderError."""
    summaries = (_summary(program.trials[place]) for place in program.going)
    return all(len(each.get("rungs", {}).get("steps", [])) > program.rung.number for each in summaries)


def check_halving(programs: Sequence[Program], eta: int) -> tuple[int, ...]:
    """The shares of the rungs. Raises ConfigError, one line, for a sweep that cannot be halved."""
    trials = sum(len(program.trials) for program in programs)
    if trials < eta:
        raise ConfigError(f"--halving {eta} stops none of {trials} trials: give it at most as many as there are trials")
    configs = [program.arguments.config for program in programs]
    for name in ("env", "env_args", "steps", "adapt_steps"):
        if len({getattr(config, name) for config in configs}) > 1:
            raise ConfigError(
                f"--halving compares scores, which trials of different {name} do not share: leave {name} out of --sweep"
            )
    first = programs[0].arguments
    shares = shares_of(eta, trials, first.config.steps / max(1, first.halving_start))
    if len(shares) == 1:
        raise ConfigError(
            f"--halving {eta} has no rung between --halving-start {first.halving_start} and --steps "
            f"{first.config.steps}: lower one of the two"
        )
    for program in programs:
        config, points = program.arguments.config, program.arguments.log_points
        split = split_chunks(config, config.steps - config.prefill * config.envs, points)
        ends = [chunks_until(config, *split, share) for share in shares]
        if sorted(set(ends)) != ends:
            raise ConfigError(
                f"--halving {eta} of {trials} trials has rungs at 1/{', 1/'.join(map(str, shares[:-1]))} of --steps, "
                f"which are not apart in {split[1]} chunks: raise --log-points (now {points}) or --halving"
            )
    return shares


# ---- files ----------------------------------------------------------------------------------------------------------


def _path(trial: Trial) -> Path:
    return Path(os.path.expanduser(trial.arguments.logdir)).absolute() / RunFolder.SUMMARY


def _summary(trial: Trial) -> Mapping[str, Any]:
    """A trial's summary.json; empty before there is one. Raises RunFolderError."""
    return read_json(_path(trial)) or {}


def _standing(programs: Sequence[Program], program: int, trial: int, index: int) -> Standing:
    """A trial at rung `index`. Raises RunFolderError where its summary does not know of it."""
    own = programs[program].trials[trial]
    summary = _summary(own)
    try:
        rungs = summary["rungs"]
        step, scores, diverged = (rungs[name][index] for name in ("steps", "scores", "diverged"))
    except (KeyError, IndexError) as error:
        raise RunFolderError(
            f"{str(_path(own))!r} has no score at rung {index + 1}; choose another --logdir"
        ) from error
    scores = np.array(scores, np.float64)
    gains = scores - np.array(summary.get("untrained", np.nan), np.float64)  # a stopped run has no such scores
    name = ",".join(filter(None, (programs[program].name, own.name)))
    return Standing(program, trial, name, step, score_of(scores, diverged), tuple(gains[np.isfinite(gains)]))


def _stop(trial: Trial, step: int) -> None:
    """Note in a trial's summary.json that it was stopped after so many env steps. Raises RunFolderError."""
    write_json(_path(trial), {**_summary(trial), "stopped": step})


# ---- words ----------------------------------------------------------------------------------------------------------


def _plan(trials: int, eta: int, shares: tuple[int, ...]) -> str:
    """What halving does, in a line."""
    counts = [trials]
    for _ in shares[1:]:
        counts.append(max(1, counts[-1] // eta))
    ways = [f"{count} to 1/{share} of the steps" for count, share in zip(counts, shares[:-1], strict=False)]
    return f"halving {trials} trials: {', '.join(ways)}, {counts[-1]} to the end"


def _verdict(index: int, shares: tuple[int, ...], best: Sequence[Standing], others: Sequence[Standing]) -> str:
    """Who goes on and who stops, in a line."""
    steps = sorted({each.step for each in (*best, *others)})
    at = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
    return (
        f"rung {index + 1} of {len(shares)}, after {at} steps a seed: {len(best)} of {len(best) + len(others)} trials "
        f"go on, {_listed(best)}; the others stop, {_listed(others)}"
    )


def _listed(standings: Sequence[Standing]) -> str:
    score = lambda each: f"{each.score:.3g}" if np.isfinite(each.score) else "diverged"
    words = [f"{each.name} ({score(each)})" for each in standings[:FEW_NAMES]]
    more = len(standings) - FEW_NAMES
    return ", ".join(words) + (f" and {more} more" if more > 0 else "")


def _savings(programs: Sequence[Program]) -> str:
    """What was not trained, in a line: agent-steps are env steps of all seeds."""
    summaries = [_summary(trial) for program in programs for trial in program.trials]
    steps = [each.get("env_steps", 0) for each in summaries]
    seeds, whole = programs[0].arguments.seeds, max(steps) * len(steps)
    spared = whole - sum(steps)
    return (
        f"halving saved {seeds * spared:,} of {seeds * whole:,} agent-steps ({spared / whole:.0%}): "
        f"{sum('stopped' in each for each in summaries)} of {len(steps)} trials were stopped early"
    )
