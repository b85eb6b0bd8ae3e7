"""Measured: the columns of metrics.jsonl from the measurements of a chunk.

Axes: S seeds of all processes, without padding; P slots of this process.
"""

import jax
import numpy as np

from stages.cli.processes import Processes
from stages.log.round_log import RoundLog, shortest
from stages.measure.heads import HEADS_AHEAD
from stages.measure.measurement import Measurement, Novelty, RewardBaselines
from stages.measure.open_loop import AHEAD
from stages.results.novelty import Map, baseline_metrics, novelty_metrics

Columns = dict[str, list[float] | list[int | None]]


def measured_columns(
    measured: Measurement, log: RoundLog, step: int, half: int, has_goal: bool, processes: Processes
) -> Columns:
    """Columns by name, a value for each of S seeds. Adds what the pictures and the summary need to the round's log.

    Args:
        measured: of this process's slots, [P, ...].
        step: env steps of a seed.
        half: half the steps of the exploring phase.
    """
    everyone, columns = processes.gather((measured.open_loop_error, measured.head_errors)), {}
    errors, heads = jax.tree.map(shortest, everyone)
    for index, ahead in enumerate(AHEAD):
        columns[f"open_loop/error_{ahead}"] = errors.open_loop[:, index].tolist()
        columns[f"open_loop/posterior_{ahead}"] = errors.posterior[:, index].tolist()
    columns["open_loop/changed_1"] = errors.changed.tolist()
    for index, ahead in enumerate(HEADS_AHEAD):
        columns |= {f"heads/{name}_{ahead}": values[:, index].tolist() for name, values in vars(heads).items()}
    if measured.baselines is not None:
        columns |= _baseline_columns(measured.baselines, log, processes)
    if measured.novelty is not None:
        columns |= _novelty_columns(measured.novelty, log, step, half, has_goal, processes)
    return columns


def _baseline_columns(measured: RewardBaselines, log: RoundLog, processes: Processes) -> Columns:
    """Where states cannot be counted."""
    everyone, seeds = processes.gather(measured), len(log.round.seeds)
    metrics = baseline_metrics(*(x[:seeds] for x in (everyone.collected, everyone.untrained, everyone.random)))
    log.untrained_share = metrics["untrained_share"]
    return {f"novelty/{name}": values.tolist() for name, values in metrics.items()}


def _novelty_columns(
    measured: Novelty, log: RoundLog, step: int, half: int, has_goal: bool, processes: Processes
) -> Columns:
    """Where states can be counted."""
    local = jax.tree.map(np.asarray, measured)
    # Each process computes its own seeds' numbers: what crosses between them is small, whatever the environment.
    everyone = processes.gather((novelty_metrics(local.visits, local.reward), local.goal_episode, local.solved_episode))
    metrics, goal, solved = jax.tree.map(lambda x: x[: len(log.round.seeds)], everyone)
    log.novelty.add(step, metrics, goal, solved)
    if log.adapt_step is None:  # of the leading process these are the trials' first seeds
        trials = log.round.mine_trials or [0]
        for trial in dict.fromkeys(trials):
            slot = trials.index(trial)
            log.novelty.add_map(Map.of(step, local.visits[slot], local.reward[slot]), half, trial)
    columns = {f"novelty/{name}": values.tolist() for name, values in metrics.items()}
    if has_goal:
        for name, episodes in (("goal_episode", goal), ("solved_episode", solved)):
            columns[f"novelty/{name}"] = [int(episode) or None for episode in episodes]
    return columns
