"""Summary: summary.json of a trial in training; and summary.json, pictures and printed scores when it ends.

`about` has the keys of summary.json that concern the whole run: rounds, processes, seconds, versions, whether it is
finished.
"""

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np

from envs.environment import StateSpace
from stages.cli import terminal
from stages.cli.settings_file import JsonObject, Settings
from stages.figures.curves import curves_figure
from stages.figures.look import write_figure
from stages.figures.novelty_maps import plot_novelty
from stages.log.round_log import RoundLog
from stages.log.run_log import RunSetup
from stages.report.score_table import print_table
from stages.results.novelty import coverage_summary, novelty_line
from stages.results.statistics import iqm, summarise
from stages.store.files import RunFolderError, disk_is_full
from stages.store.folder import RunFolder
from stages.sweep.trials import Trial


def write_unfinished(folder: RunFolder, trial: Trial, log: RoundLog, run: RunSetup, about: Settings) -> None:
    """summary.json of a trial at a log point. Raises RunFolderError."""
    last = {"training_score": log.training.last, "evaluation_score": log.evaluation.last}
    folder.write_summary({"finished": False, **_so_far(trial, log, run), **last, **about})


def write_finished(folder: RunFolder, trial: Trial, log: RoundLog, run: RunSetup, about: Settings) -> None:
    """summary.json, curves.png, and novelty.png where states can be counted, at the end of a run.

    Where the disk is full the pictures are left out, with a warning.

    Raises:
        RunFolderError: the disk refuses.
    """
    config = trial.arguments.config
    folder.write_summary(
        {
            **_so_far(trial, log, run),
            "env_args": dict(config.env_args),
            "preset": trial.arguments.preset,
            "settings": dict(trial.settings),
            "score": log.final.tolist(),
            **dataclasses.asdict(summarise(log.final, log.round.seeds)),
            "zero_shot": log.zero_shot.tolist() if config.mode == "explore" else None,
            "untrained": log.untrained.tolist(),
            "untrained_share": log.untrained_share.tolist() if log.untrained_share.size else None,
            **about,
        }
    )
    with full_disk_warns("run.py report draws the curves, once there is room"):
        _plot(folder, trial, log, run.states)


@contextlib.contextmanager
def full_disk_warns(advice: str) -> Iterator[None]:
    """Turn a full disk into a warning. Lines of metrics.jsonl that it refused wait for the next log point."""
    try:
        yield
    except RunFolderError as error:
        if not disk_is_full(error):
            raise
        terminal.warn(f"{error}; {advice}")


def _so_far(trial: Trial, log: RoundLog, run: RunSetup) -> JsonObject:
    """The keys of summary.json that a trial has at every log point and at its end."""
    config = trial.arguments.config
    return {
        "env": config.env,
        "mode": config.mode,
        "seeds": log.round.seeds,
        "diverged": log.diverged_at,
        "env_steps": log.step,
        "updates": log.updates,
        **coverage_summary(log.novelty, None if run.states is None else run.states.count),
        **log.events.summary(run.achievements),
        **_best(trial, log),
    }


def _plot(folder: RunFolder, trial: Trial, log: RoundLog, states: StateSpace | None) -> None:
    """curves.png, and novelty.png where states can be counted."""
    config, title = trial.arguments.config, _title(trial)
    explores = config.mode != "task"
    curve = log.evaluation if explores else log.training
    figure = curves_figure(
        curve.steps,
        np.stack(curve.scores, 1),
        title=title,
        ylabel="tasker's evaluation score" if explores else "training score",
        adapt_step=log.adapt_step,
        untrained=log.untrained,
        diverged=[log.diverged_at.get(seed, 0) for seed in log.round.seeds],
    )
    write_figure(folder.path / "curves.png", figure)
    if states is not None:
        seed, reward = log.round.seeds[0], _measured(trial)
        plot_novelty(folder.path / "novelty.png", log.novelty, states, title=title, seed=seed, reward=reward)


def _measured(trial: Trial) -> str:
    """The intrinsic reward that is compared with visits: disagreement, where the explorer is paid a constant."""
    reward = trial.arguments.config.explorer_reward
    return "disagreement" if reward == "constant" else reward


def _in_words(trial: Trial) -> str:
    reward = _measured(trial)
    return reward if reward == "disagreement" else f"the {reward} reward"


def print_finished(trial: Trial, log: RoundLog, run: RunSetup) -> None:
    """The table of a trial's final scores, and what is known of its exploring and of what happened in its episodes."""
    with terminal.printing():
        title = f"{_title(trial)}: final evaluation, {run.eval_episodes} episodes a seed"
        print_table(summarise(log.final, log.round.seeds), title, log.diverged_at)
    if run.states is not None:
        terminal.say(novelty_line(log.novelty, run.states.count, run.has_goal, _in_words(trial)))
    elif np.isfinite(log.untrained_share).any():
        share = np.nanmedian(log.untrained_share)
        terminal.say(f"{_in_words(trial)} about what was collected last: {share:.2g} of an untrained one's (median)")
    for line in log.events.lines(run.achievements):
        terminal.say(line)
    if trial.arguments.checkpoint_best:
        best = log.evaluation.best()
        terminal.say(
            f"best agents by evaluation: {iqm(best.score):.3g} (interquartile mean, and biased upward), from "
            f"steps {min(best.step):,} to {max(best.step):,}; eval, video and export take --best"
        )


def _best(trial: Trial, log: RoundLog) -> JsonObject:
    """Where each seed scored most, of a run that keeps those agents."""
    if not trial.arguments.checkpoint_best:
        return {}
    best = log.evaluation.best()
    return {"best_step": best.step, "best_score": best.score.tolist()}


def _title(trial: Trial) -> str:
    return f"{trial.arguments.title}, {trial.name}" if trial.name else trial.arguments.title
