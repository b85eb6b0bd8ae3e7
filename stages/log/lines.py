"""Lines: the text that a run prints on the terminal. log/hooks.py prints it."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from envs.environment import StateSpace
from stages.cli.arguments import Arguments
from stages.cli.saved_settings import beyond_preset, flag_of, set_by_mode
from stages.results.novelty import NoveltyLog
from stages.results.statistics import iqm
from stages.sweep.memory import Devices
from stages.sweep.rounds import Plan, Round
from stages.sweep.trials import Trial

LEAST_EXPLORING_RATIO = 32
"""Train ratio below which exploring hardly beats random actions. On Deep Sea 10, 2 of 8 seeds reached the corner with a
ratio of 16, where 1.4 are expected of random actions (docs/experiments/ensemble.md)."""
IN_TITLE = ("config.env", "config.env_args", "config.mode")
"""Settings that the run's title has."""


def start_lines(
    arguments: Arguments, trials: int, seeds: Sequence[int], devices: Devices, processes: int, folder: Path
) -> list[str]:
    """The first lines: what is trained, on which devices, and which settings differ from the preset."""
    hardware = f"{len(devices)} {devices[0].platform} device(s)"
    if processes > 1:
        hardware += f" of each of {processes} processes"
    of_trials = f" of each of {trials} trials" if trials > 1 else ""
    lines = [f"{arguments.title}: seeds {seeds[0]} to {seeds[-1]}{of_trials} on {hardware}; files in {folder}"]
    settings = arguments.flat
    if by_mode := set_by_mode(settings):
        flags = ", ".join(f"{flag_of(name)} {value}" for name, value in by_mode.items())
        lines.append(_filled(f"set by mode {arguments.config.mode}: {flags}"))
    if changed := [name for name in beyond_preset(settings) if name not in IN_TITLE]:
        flags = ", ".join(f"{flag_of(name)} {settings[name]}" for name in changed)
        lines.append(_filled(f"beside the preset: {flags}"))
    ratio = arguments.config.replay.train_ratio
    if arguments.config.explores and ratio < LEAST_EXPLORING_RATIO:
        lines.append(
            _filled(
                f"warning: with --replay.train-ratio {ratio:g} disagreement falls too slowly to explore by; "
                f"give {LEAST_EXPLORING_RATIO} or more"
            )
        )
    return [*lines, "compiling ..."]


def _filled(text: str) -> str:
    return textwrap.fill(text, 79, subsequent_indent="  ", break_on_hyphens=False)


def plan_lines(plan: Plan, asked: int, compile_seconds: float) -> list[str]:
    """What will run side by side, and how many steps it will take, once all is compiled.

    Args:
        asked: steps of a seed, as the user asked for.
    """
    parts = ", ".join(f"{name} {count:,}" for name, count in plan.parameters.items())
    parameters = f"{sum(plan.parameters.values()):,} parameters a seed: {parts}"
    lines = [f"compiled in {compile_seconds:.1f} s", plan.description, parameters]
    if plan.steps > asked:
        why = f"{plan.steps - asked:,} more than asked, since all chunks of a phase are equally long"
        lines.append(f"{plan.steps:,} steps a seed: {why}")
    return lines


def round_line(trials: Sequence[Trial], index: int, rounds: int, round: Round) -> str:
    """Which seeds a round trains."""
    first, last = f"seeds {round.seeds[0]}", str(round.seeds[-1])
    if round.trials:
        first, last = agent_name(trials, round, 0), agent_name(trials, round, -1)
    return f"round {index + 1} of {rounds}: {first} to {last}"


def agent_name(trials: Sequence[Trial], round: Round, slot: int) -> str:
    """The seed in a round's slot, and its trial if the round has several."""
    trial = f" of {trials[round.trials[slot]].name}" if round.trials else ""
    return f"seed {round.seeds[slot]}{trial}"


class Pace(NamedTuple):
    """How far a phase is, and how fast it goes."""

    share: float  # of the phase that is done
    speed: float  # rows of a seed in a second, evaluations included, since the phase began or was resumed
    seconds: float  # until the phase's end, at that speed

    @staticmethod
    def of(done: int, first: int, total: int, rows: int, seconds: float) -> "Pace":
        """After `done` iterations of `total`, of which `first` were done before this session.

        Args:
            rows: that an iteration collects.
            seconds: since then.
        """
        per_second = (done - first) / max(seconds, 1e-9)
        return Pace(done / total, per_second * rows, (total - done) / per_second)


def explored_words(log: NoveltyLog, states: StateSpace | None, has_goal: bool) -> list[str]:
    """States visited, median over seeds, and how many seeds reached the goal; nothing where states are not counted."""
    if states is None or not log.metrics:
        return []
    words = [f"states {np.median(log.metrics[-1]['visited_states']):,g}/{states.count:,}"]
    return words + [f"goal {np.count_nonzero(log.goal_episode)}/{log.goal_episode.size} seeds"] * has_goal


def progress_line(
    mode: str, pace: Pace, steps: tuple[int, int], scores: np.ndarray, tasker: np.ndarray | None, explored: list[str]
) -> str:
    """How far a phase is. Steps, speed and time left are those of one seed, since all seeds train side by side.

    Args:
        steps: of a seed so far, and at the end.
        scores: training scores [S].
        tasker: evaluation scores [S]; None where it was not evaluated.
        explored: of `explored_words`.
    """
    speed = f"{pace.speed:,.0f}" if pace.speed >= 100 else f"{pace.speed:.2g}"
    left = f"{int(pace.seconds) // 60}:{int(pace.seconds) % 60:02d} left"
    parts = [f"{mode:>7} {pace.share:4.0%}", f"{steps[0]:,}/{steps[1]:,} steps a seed, {speed} a second, {left}"]
    parts.append(f"score {_iqm(scores)}")
    if tasker is not None:
        parts.append(f"{'zero-shot' if mode == 'explore' else 'tasker'} {_iqm(tasker)}")
    return "  ".join(parts + explored)


def _iqm(scores: np.ndarray) -> str:
    """The interquartile mean of finite scores; a dash if there is none."""
    return f"{mean:.2f}" if np.isfinite(mean := iqm(scores)) else "-"
