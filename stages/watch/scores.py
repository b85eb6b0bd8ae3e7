"""Scores: trained agents play fresh episodes, on which their world models are run forward.

Axes: S seeds, E episodes, H rows ahead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from envs.environment import Space, obs_entries
from stages.cli.arguments import env_title
from stages.cli.settings_file import JsonObject
from stages.evaluate import evaluate
from stages.measure.open_loop import AHEAD, CONTEXT, open_loop_errors, play_rows
from stages.report.score_table import decimals, number, print_table
from stages.report.tables import Table, print_tables
from stages.results.statistics import Floats, ScoreSummary, iqm, summarise
from stages.store.fingerprint import COMPUTATION, fingerprint
from stages.store.load import AgentBatch, Loaded, select_behavior
from stages.sweep.sweep import keys_of, mesh_for, over_seeds

ERROR_UNITS = {"binary": "nats an entry", "categorical": "nats an entry", "real": "squared symlog", "image": "squared"}
"""The unit of a prediction error, by the kind of observation (stages/decode.py)."""


def error_unit(space: Space) -> str:
    """The unit of prediction errors of this observation."""
    return " + ".join(dict.fromkeys(ERROR_UNITS[entry.kind] for entry in obs_entries(space).values()))


class Scores(NamedTuple):
    """Scores and prediction errors of a run's seeds, as numpy."""

    seeds: list[int]  # [S]
    score: Floats  # [S, E]; NaN where something was not finite
    length: Floats  # [S, E], rows
    expected_score: Floats  # [S, E], what the reward head expected of these episodes in all
    open_loop: dict[str, Floats]  # loss, right and exact [S, H] of the model run forward (open_loop.PredictionErrors)
    posterior: dict[str, Floats]  # the same where the model sees the rows
    episodes: Floats  # [S, H]: how many episodes were long enough


def play(loaded: Loaded, policy: str, episodes: int, eval_seed: int | None) -> Scores:
    """Play `episodes` of each seed.

    Args:
        policy: who plays, of load.POLICIES.
        eval_seed: the number from which episodes are drawn; None: as in the run's own last evaluation.

    Raises:
        ConfigError: the run has no such policy.
    """
    parts = [_play(group, policy, episodes, eval_seed) for group in loaded.groups]
    seeds = [seed for part in parts for seed in part.seeds]
    order, arrays = np.argsort(seeds), [tuple(part)[1:] for part in parts]
    return Scores(sorted(seeds), *jax.tree.map(lambda *xs: np.concatenate(xs)[order], *arrays))


def _play(group: AgentBatch, policy: str, episodes: int, eval_seed: int | None) -> Scores:
    select_behavior(group.agent, policy)  # before anything is compiled
    limit = group.config.eval_steps or group.env.time_limit  # given, so that all episodes are played
    config = dataclasses.replace(group.config, eval_episodes=episodes, eval_steps=limit)

    def one(agent, hypers, env_params, key):
        env, player = group.env.with_params(env_params), select_behavior(agent, policy)
        played = evaluate(env, agent, config, hypers, player, key=key)
        key_play, key_predict = jax.random.split(jax.random.fold_in(key, 0))
        rows = CONTEXT + max(AHEAD)
        forward = play_rows(env, agent, player, hypers, episodes, rows, config.eval_greedy, key=key_play)
        return *played, *open_loop_errors(agent.model, forward.rows, AHEAD, hypers.unimix, key=key_predict)

    # Drawn as in the run's own evaluations: with the same number of episodes, scores equal those in summary.json.
    keys = keys_of(group.seeds, (group.step // config.envs if eval_seed is None else eval_seed) + 1)
    run = jax.jit(over_seeds(mesh_for(len(group.seeds)), one, 4, False))
    score, length, expected, ahead, observed, count = run(group.agent, group.hypers, group.env_params, keys)
    results = (score, length, expected, vars(ahead), vars(observed), count)
    return Scores(group.seeds, *jax.tree.map(lambda x: np.asarray(x, np.float64), results))


def scores_json(loaded: Loaded, scores: Scores, policy: str, eval_seed: int | None) -> JsonObject:
    """What eval.json says."""
    summary = _summary(scores)
    return {
        "env": loaded.config.env,
        "env_args": dict(loaded.config.env_args),
        "policy": policy,
        "best": bool(loaded.groups[0].best_steps),
        "episodes": scores.score.shape[1],
        "eval_seed": eval_seed,
        "seeds": scores.seeds,
        "env_steps": _steps(loaded),
        "finished": all(group.finished for group in loaded.groups) and not loaded.missing,
        "missing": loaded.missing,
        "diverged": _diverged(loaded),
        "score": scores.score.mean(1),
        "length": scores.length.mean(1),
        "expected_score": scores.expected_score.mean(1),
        "episode_scores": scores.score,
        **dataclasses.asdict(summary),
        "prediction": {
            "context": CONTEXT,
            "ahead": AHEAD,
            "unit": error_unit(loaded.groups[0].env.obs_space),
            "episodes": scores.episodes,
            "open_loop": scores.open_loop,
            "posterior": scores.posterior,
        },
    }


def print_scores(loaded: Loaded, scores: Scores, policy: str) -> None:
    """The tables of scores, of each seed's scores and of prediction errors, to the terminal."""
    config, episodes = loaded.config, scores.score.shape[1]
    which = ", each seed's best agent" if loaded.groups[0].best_steps else ""
    title = f"{env_title(config.env, config.env_args)}: policy {policy}, {episodes} episodes a seed{which}"
    print_table(_summary(scores), title, _diverged(loaded))
    print_tables([_seed_table(loaded, scores), _prediction_table(loaded, scores)])


def _seed_table(loaded: Loaded, scores: Scores) -> Table:
    digits = decimals(float(np.nanmax(np.abs(scores.score), initial=0)))
    steps = _steps(loaded)
    rows = [
        [str(seed), f"{steps[seed]:,}"]
        + [number(value, digits) for value in (values.mean(), values.min(), values.max())]
        + [f"{length.mean():.1f}", number(expected.mean(), digits)]
        for seed, values, length, expected in zip(
            scores.seeds, scores.score, scores.length, scores.expected_score, strict=True
        )
    ]
    columns = ["seed", "steps", "score", "worst episode", "best episode", "length", "expected"]
    return Table("each seed", columns, rows, [])


def _prediction_table(loaded: Loaded, scores: Scores) -> Table:
    """Prediction errors of the model run forward and of the posterior; shares of exact rows where there are classes."""
    space = loaded.groups[0].env.obs_space
    exact = any(entry.kind in ("binary", "categorical") for entry in obs_entries(space).values())
    columns = ["run forward", "all right", "observed", "all right"] if exact else ["run forward", "observed"]
    rows = []
    for i, ahead in enumerate(AHEAD):
        cells = []
        for values in (scores.open_loop, scores.posterior):
            cells.append(_iqm_cell(values["loss"][:, i], "{:.3g}"))
            cells += [_iqm_cell(100 * values["exact"][:, i], "{:.0f} %")] if exact else []
        rows.append([str(ahead), *cells, f"{int(scores.episodes[:, i].sum()):,}"])
    title = f"predicted observations: error ({error_unit(space)}), interquartile mean over seeds"
    short = f"only episodes count that go on behind the {CONTEXT} rows that the model sees"
    return Table(title, ["rows ahead", *columns, "episodes"], rows, [short] if (scores.episodes == 0).any() else [])


def notes(loaded: Loaded) -> list[str]:
    """Warnings about these agents, a line each."""
    planned = loaded.config.steps + loaded.config.adapt_steps
    lines = [
        f"{_seeds(group.seeds)}: at {group.step:,} of {planned:,} steps; the run is not finished"
        for group in loaded.groups
        if not group.finished
    ]
    if loaded.missing:
        lines.append(f"{_seeds(loaded.missing)}: no checkpoint yet, left out")
    lines += [
        f"seed {seed} diverged at step {step:,}: what is shown is its last finite state"
        for seed, step in _diverged(loaded).items()
    ]
    present = fingerprint(loaded.groups[0].env)
    if any(group.environment.get(COMPUTATION, present[COMPUTATION]) != present[COMPUTATION] for group in loaded.groups):
        lines.append("the environment's code, or jax, has changed since the run was saved: it is played as it is now")
    return lines


def _steps(loaded: Loaded) -> dict[int, int]:
    """Env steps at which each seed's agent is from."""
    return {seed: step for group in loaded.groups for seed, step in group.agent_steps.items()}


def _summary(scores: Scores) -> ScoreSummary:
    return summarise(scores.score.mean(1), scores.seeds)


def _diverged(loaded: Loaded) -> dict[int, int]:
    return {seed: step for group in loaded.groups for seed, step in group.diverged.items()}


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"


def _iqm_cell(values: Floats, form: str) -> str:
    """The interquartile mean over seeds; a dash where every seed's is NaN."""
    return form.format(mean) if np.isfinite(mean := iqm(values)) else "-"
