"""Advice: a line at the end of a run that learned nothing, with the likely reasons and what to try.

Axes: S seeds, P log points.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stages.cli.saved_settings import flag_of
from stages.results.read import Result
from stages.results.statistics import Floats, iqm

FULL_ENTROPY = 0.98  # share of the largest entropy above which a policy counts as uniform
FAR_BELOW = 0.01  # share of the divisor's floor; with a spread below it, advantages / floor are too small to learn from
FALLEN = 0.9  # share of its first value to which the reconstruction loss has to fall
LEAST_POINTS = 3  # log points, for a last third to exist


class Finding(NamedTuple):
    """Something that keeps an agent from learning."""

    reason: str
    advice: str


def advice_line(run: Result, max_entropy: float) -> str:
    """What to try after a finished run that learned nothing. Empty if it learned, or if no reason is found.

    Args:
        max_entropy: of the policy, nats; NaN where it has none.
    """
    score, untrained = run.per_seed("score"), run.per_seed("untrained")
    if not np.isfinite(untrained).any() or iqm(score) > np.nanmax(untrained):
        return ""
    if not (found := findings(run, max_entropy)):
        return ""
    reasons, advice = "; ".join(x.reason for x in found), "; ".join(dict.fromkeys(x.advice for x in found))
    return f"nothing was learned: {reasons}. Try: {advice}"


def findings(run: Result, max_entropy: float) -> list[Finding]:
    """What is wrong, by the metrics' medians over seeds."""
    found, explores, floor = [], run.settings["config.mode"] != "task", _floor(run)
    seen = run.metrics.get("train/replay_rew_extrinsic", np.full((1, 1), np.nan))
    if np.isfinite(seen).any() and not np.nan_to_num(seen).any():
        try_first = "more steps, or a smaller environment first" if explores else "--mode mix, which explores"
        found.append(Finding("no reward was ever seen", try_first))
    elif _last_third(run, "train/ret_scale_extrinsic") < FAR_BELOW * run.settings[floor]:
        what = "returns differ by" if floor == "hypers.return_floor" else "advantages are"
        reason = f"{what} less than {FAR_BELOW:.0%} of the floor that divides advantages"
        found.append(Finding(reason, f"a smaller {flag_of(floor)}, or rewards on a larger scale"))
    if _last_third(run, "train/ent") > FULL_ENTROPY * max_entropy:
        found.append(Finding("the policy stayed uniform for a third of the run", "a smaller --hypers.entropy"))
    recon = _median(run, "train/loss/recon")
    if recon.size >= LEAST_POINTS and recon[0] > 0 and recon[1:].min() > FALLEN * recon[0]:
        found.append(Finding("the reconstruction did not fall", "a larger --replay.train-ratio or --hypers.lr"))
    return found


def _floor(run: Result) -> str:
    """The hyperparameter that is the smallest divisor of the tasker's advantages."""
    like_dreamer = run.settings["config.task_norm"] == "returns"
    return "hypers.return_floor" if like_dreamer else "hypers.task_floor"


def _median(run: Result, name: str) -> Floats:
    """A metric's median over seeds at the points where it is known."""
    values = run.metrics.get(name, np.zeros((1, 0)))
    return np.nanmedian(values[:, np.isfinite(values).any(0)], axis=0)


def _last_third(run: Result, name: str) -> float:
    """The median over the last third of the run. With too few points NaN, for which every comparison is false."""
    values = _median(run, name)
    return float(np.median(values[-(values.size // 3) :])) if values.size >= LEAST_POINTS else np.nan
