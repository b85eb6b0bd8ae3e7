"""Metrics: what every key of metrics.jsonl and summary.json means. One table for docs/metrics.md and the report.

`python -m stages.results.metrics > docs/metrics.md` writes the page.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple


class Metric(NamedTuple):
    """A key, or a family of keys: NAME stands for a name, and [...] for what some keys have and others lack."""

    key: str
    unit: str
    label: str  # a few words, for the report's pictures
    meaning: str
    source: str  # the file, below stages/, that computes it


class MetricGroup(NamedTuple):
    """Metrics that belong together, as a section of the report."""

    title: str
    text: str
    metrics: tuple[Metric, ...]


METRICS = (
    MetricGroup("Run", "where a row stands", (
        Metric("step", "rows of a seed", "",
               "rows that the seed has collected; an episode of n steps has n + 1 rows", "log/round_log.py"),
        Metric("seed", "number", "", "which agent", "log/round_log.py"),
        Metric("phase", "mode", "", "the mode: after exploring, `--adapt-steps` are in mode task", "log/round_log.py"),
        Metric("diverged", "row of a seed", "",
               "the step at which the seed had a number that is not finite; null before", "finite.py"),
        Metric("updates", "count", "updates so far", "updates of the agent so far", "log/hooks.py"),
        Metric("wall_seconds", "seconds", "seconds so far",
               "wall time of the run so far, over all of its sessions", "log/run_log.py"),
    )),
    MetricGroup("Episodes", "episodes of training, which the mode's collector plays, and evaluation by the tasker", (
        Metric("episode/score", "return", "training score",
               "mean return of the episodes that ended since the last row; null without one", "log/round_log.py"),
        Metric("episode/length", "rows", "episode's length", "mean length of the same episodes", "log/round_log.py"),
        Metric("episode/count", "count", "episodes", "how many episodes ended since the last row", "log/round_log.py"),
        Metric("episode/tasker_count", "count", "the tasker's episodes",
               "in mode mix: in how many of them the tasker acted", "log/round_log.py"),
        Metric("episode/tasker_score", "return", "training score, the tasker's episodes",
               "in mode mix: mean return of those; null without one", "log/round_log.py"),
        Metric("episode/explorer_score", "return", "training score, the explorer's episodes",
               "in mode mix: mean return of all others; null without one", "log/round_log.py"),
        Metric("episode/total", "count", "episodes so far",
               "how many episodes ended since the first update", "log/events.py"),
        Metric("eval/score", "return", "evaluation score of the tasker",
               "mean return of `--eval-episodes` fresh episodes; not in mode task without --checkpoint-best",
               "evaluate.py"),
        Metric("eval/expected_score", "return", "what the reward head expects of the evaluation",
               "the rewards that it expects in the same episodes, summed; where it is far above eval/score, the tasker "
               "seeks states that the world model overestimates", "evaluate.py"),
        Metric("event/NAME", "share", "episodes with NAME",
               "share of the episodes of training since the last row in which the event happened", "log/round_log.py"),
    )),
    MetricGroup("Exploration", "what was visited, and what the intrinsic reward says of it", (
        Metric("novelty/visited_states", "count", "states visited",
               "countable states that the seed has visited", "results/novelty.py"),
        Metric("novelty/visited_pairs", "count", "states and actions visited",
               "pairs of a countable state and an action that were tried", "results/novelty.py"),
        Metric("novelty/correlation", "-1 to 1", "rank correlation with visits",
               "Spearman's, of intrinsic reward and visits of pairs: -1 is best, 0 says nothing", "results/novelty.py"),
        Metric("novelty/goal_episode", "episode", "episode of the first goal",
               "the episode in which the seed first reached the goal; null before", "measure/coverage.py"),
        Metric("novelty/solved_episode", "episode", "episode by which it is solved",
               "bsuite's rule: the first after which under 90 % of all had missed the goal", "measure/coverage.py"),
        Metric("novelty/reward_never", "intrinsic reward", "intrinsic reward, never visited",
               "mean over pairs whose action was never tried, in states that replay holds", "results/novelty.py"),
        Metric("novelty/reward_1_3", "intrinsic reward", "intrinsic reward, 1 to 3 visits",
               "mean over pairs with 1 to 3 visits", "results/novelty.py"),
        Metric("novelty/reward_4_15", "intrinsic reward", "intrinsic reward, 4 to 15 visits",
               "mean over pairs with 4 to 15 visits", "results/novelty.py"),
        Metric("novelty/reward_16_63", "intrinsic reward", "intrinsic reward, 16 to 63 visits",
               "mean over pairs with 16 to 63 visits", "results/novelty.py"),
        Metric("novelty/reward_64_255", "intrinsic reward", "intrinsic reward, 64 to 255 visits",
               "mean over pairs with 64 to 255 visits", "results/novelty.py"),
        Metric("novelty/reward_256", "intrinsic reward", "intrinsic reward, 256 visits or more",
               "mean over pairs with 256 visits or more", "results/novelty.py"),
        Metric("novelty/reward_collected", "intrinsic reward", "intrinsic reward, newest rows",
               "where states are not counted: mean over each environment's newest 128 rows", "measure/measurement.py"),
        Metric("novelty/reward_untrained", "intrinsic reward", "there, of an untrained one",
               "at the same rows, of the same reward before it has learned anything", "measure/measurement.py"),
        Metric("novelty/reward_random", "intrinsic reward", "intrinsic reward, rows of random actions",
               "at 256 rows that random actions collect and that are never trained on", "measure/measurement.py"),
        Metric("novelty/untrained_share", "share", "intrinsic reward, share of an untrained one's",
               "reward_collected over reward_untrained", "results/novelty.py"),
    )),
    MetricGroup("World model", "what it learns from, its KL and its entropies", (
        Metric("train/loss/recon", "nats", "reconstruction",
               "loss of the decoded observation, summed over entries", "world_model.py"),
        Metric("train/recon_NAME", "nats", "reconstruction of NAME",
               "the same of one entry of the observation", "world_model.py"),
        Metric("train/loss/reward", "nats", "reward loss", "loss of the reward head", "world_model.py"),
        Metric("train/loss/cont", "nats", "continue loss", "loss of the continue head", "world_model.py"),
        Metric("train/loss/dyn", "nats", "KL, moves the prior",
               "KL after free nats, with the posterior fixed", "world_model.py"),
        Metric("train/loss/rep", "nats", "KL, moves the posterior",
               "KL after free nats, with the prior fixed", "world_model.py"),
        Metric("train/kl", "nats", "KL, posterior from prior", "KL before free nats", "world_model.py"),
        Metric("train/kl_free", "share", "rows within the free nats",
               "share of rows whose KL is below the free nats, and so costs nothing", "world_model.py"),
        Metric("train/dyn_ent", "nats", "entropy of the prior",
               "entropy of the prior, summed over categoricals", "world_model.py"),
        Metric("train/rep_ent", "nats", "entropy of the posterior",
               "entropy of the posterior, summed over categoricals", "world_model.py"),
    )),
    MetricGroup("Open-loop prediction", "errors of the model run forward with the actions that were taken", (
        Metric("open_loop/error_1", "nats or squared error", "prediction error, 1 row ahead",
               "loss of the observation predicted 1 row ahead, mean over its numbers; null if no episode is that long",
               "measure/open_loop.py"),
        Metric("open_loop/error_5", "nats or squared error", "prediction error, 5 rows ahead",
               "the same, 5 rows ahead", "measure/open_loop.py"),
        Metric("open_loop/error_15", "nats or squared error", "prediction error, 15 rows ahead",
               "the same, 15 rows ahead", "measure/open_loop.py"),
        Metric("open_loop/posterior_1", "nats or squared error", "the row 1 ahead, seen",
               "error of the posterior at the same rows, which the model has seen", "measure/open_loop.py"),
        Metric("open_loop/posterior_5", "nats or squared error", "the row 5 ahead, seen",
               "the same, 5 rows ahead", "measure/open_loop.py"),
        Metric("open_loop/posterior_15", "nats or squared error", "the row 15 ahead, seen",
               "the same, 15 rows ahead", "measure/open_loop.py"),
        Metric("open_loop/changed_1", "share", "predicted right of what changes",
               "of binary and categorical numbers that differ from the row before, the share predicted right 1 row "
               "ahead; null where none differs", "measure/open_loop.py"),
    )),
    MetricGroup("Reward and continue heads", "mean errors at up to 64 replayed rows of a kind, seen and predicted", (
        Metric("heads/reward_error_NAME", "reward", "reward head, rewarded rows, NAME ahead",
               "absolute error of the expected reward where the real one is not 0; NAME: how many rows ahead the state "
               "is predicted (5), or 0 for the posterior state; null where there is no such row", "measure/heads.py"),
        Metric("heads/reward_elsewhere_NAME", "reward", "reward head, rows without reward, NAME ahead",
               "the same where the real one is 0", "measure/heads.py"),
        Metric("heads/continue_at_terminal_NAME", "probability", "continue head, terminal rows, NAME ahead",
               "probability that the episode goes on, without the discount, at terminal rows", "measure/heads.py"),
        Metric("heads/terminal_elsewhere_NAME", "probability", "continue head, other rows, NAME ahead",
               "probability that it does not, at rows that are not terminal", "measure/heads.py"),
    )),
    MetricGroup("Intrinsic reward", "what the ensemble, or another intrinsic reward, learns from", (
        Metric("train/loss/ensemble", "nats", "ensemble's loss", "loss of the ensemble's members", "ensemble.py"),
        Metric("train/loss/rnd", "nats", "RND's loss", "error of the predictor of a random network", "rnd.py"),
        Metric("train/loss/count", "squared bonus", "count bonus's loss",
               "squared error of the predicted 1 / sqrt(1 + visits), mean over actions", "count.py"),
    )),
    MetricGroup("Behaviours", "tasker and explorer, as their actors and critics see them in imagination", (
        Metric("train/[explorer_]ent", "nats", "entropy of the actor",
               "mean entropy of the actor over imagined rows", "behavior.py"),
        Metric("train/loss/[explorer_]policy", "nats", "actor's loss", "loss of the actor", "behavior.py"),
        Metric("train/loss/[explorer_]value", "nats", "critic's loss, imagined",
               "loss of the critic on imagined rows", "behavior.py"),
        Metric("train/loss/[explorer_]repval", "nats", "critic's loss, replayed",
               "loss of the critic on replayed rows", "behavior.py"),
        Metric("train/[explorer_]rew_NAME", "reward", "imagined reward, NAME",
               "mean imagined reward, before it is centred", "loss.py"),
        Metric("train/[explorer_]replay_rew_NAME", "reward", "replayed reward, NAME",
               "mean reward of replayed rows, without a window's first, before it is centred", "loss.py"),
        Metric("train/[explorer_]ret_NAME", "return", "return, NAME", "mean lambda-return", "behavior.py"),
        Metric("train/[explorer_]ret_scale_NAME", "return", "divisor of advantages, NAME",
               "5 to 95 % of returns or of advantages, or the root mean square of advantages, before the floor; "
               "in units of the largest reward where --enlarge-rewards divides by it",
               "returns.py"),
        Metric("train/[explorer_]val_NAME", "return", "value, NAME", "mean value of the critic", "behavior.py"),
        Metric("train/[explorer_]adv_mag", "number", "advantage",
               "mean size of the advantage after division", "behavior.py"),
        Metric("train/[explorer_]weight", "share", "continuation",
               "mean product of continues along an imagined trajectory", "behavior.py"),
    )),
    MetricGroup("Optimiser and speed", "norms over all parameters; speed of one seed, without evaluations", (
        Metric("train/opt/grad_norm", "number", "gradient", "norm of the gradient", "train.py"),
        Metric("train/opt/update_norm", "number", "update", "norm of the update", "train.py"),
        Metric("fps/policy", "rows a second", "rows collected a second",
               "rows that one seed collects, while all seeds train side by side", "log/round_log.py"),
        Metric("fps/train", "rows a second", "rows replayed a second", "replayed rows of one seed", "log/round_log.py"),
    )),
)  # fmt: skip

SUMMARY = (
    MetricGroup("The run", "what was trained, and what it cost", (
        Metric("finished", "true or false", "",
               "whether the run came to its end; false at every log point before", "log/summary.py"),
        Metric("env", "id", "", "the environment", "log/summary.py"),
        Metric("env_args", "settings", "", "the environment's settings", "log/summary.py"),
        Metric("mode", "mode", "", "`--mode`", "log/summary.py"),
        Metric("preset", "name", "", "`--preset`", "log/summary.py"),
        Metric("settings", "settings", "", "values of the swept settings; of a sweep's trial", "log/summary.py"),
        Metric("trials", "names", "", "names of the trials; of a sweep's own folder", "log/hooks.py"),
        Metric("seeds", "numbers", "", "the seeds' numbers, in the order of all lists", "log/summary.py"),
        Metric("diverged", "seed: row", "", "seeds that diverged, with the step of each", "log/summary.py"),
        Metric("env_steps", "rows of a seed", "", "rows that each seed collected", "log/summary.py"),
        Metric("updates", "count", "", "updates of each seed", "log/summary.py"),
        Metric("side_by_side", "count", "", "seeds trained at once", "log/hooks.py"),
        Metric("processes", "count", "", "processes that trained", "log/hooks.py"),
        Metric("round", "number", "", "the round that is training", "log/hooks.py"),
        Metric("rounds", "count", "", "how many rounds (groups of seeds) the run has", "log/hooks.py"),
        Metric("compile_seconds", "seconds", "", "compiling, over all sessions", "log/hooks.py"),
        Metric("wall_seconds", "seconds", "", "wall time, over all sessions", "log/hooks.py"),
        Metric("peak_memory_mb", "MB", "", "peak memory of the leading process", "sweep/memory.py"),
        Metric("versions", "name: version", "",
               "of Python and of the packages that the numbers depend on", "log/run_log.py"),
    )),
    MetricGroup("Scores", "returns of evaluation episodes; lists have one number a seed", (
        Metric("score", "return", "", "the tasker's mean score at the end", "log/summary.py"),
        Metric("zero_shot", "return", "", "the same at the end of mode explore", "log/summary.py"),
        Metric("untrained", "return", "", "the same before the first update", "log/summary.py"),
        Metric("training_score", "return", "", "last training score; only until the run is finished", "log/summary.py"),
        Metric("evaluation_score", "return", "",
               "last evaluation score; only until the run is finished", "log/summary.py"),
        Metric("best_score", "return", "", "highest evaluation score; only with --checkpoint-best", "store/best.py"),
        Metric("best_step", "rows of a seed", "",
               "the step of that evaluation, at which the seed's best agent was kept", "store/best.py"),
        Metric("mean", "return", "", "mean of `score` over seeds", "results/statistics.py"),
        Metric("median", "return", "", "median of `score` over seeds", "results/statistics.py"),
        Metric("iqm", "return", "", "interquartile mean of `score` over seeds", "results/statistics.py"),
        Metric("ci_low", "return", "", "lower end of its 95 % bootstrap interval", "results/statistics.py"),
        Metric("ci_high", "return", "", "upper end of its 95 % bootstrap interval", "results/statistics.py"),
        Metric("worst", "return", "", "lowest score", "results/statistics.py"),
        Metric("worst_seed", "number", "", "its seed", "results/statistics.py"),
        Metric("best", "return", "", "highest score", "results/statistics.py"),
        Metric("best_seed", "number", "", "its seed", "results/statistics.py"),
        Metric("count", "count", "", "seeds with a finite score", "results/statistics.py"),
        Metric("nonfinite", "numbers", "",
               "seeds without a finite score, left out of the numbers above", "results/statistics.py"),
    )),
    MetricGroup("Exploration", "the last value of each seed; null where states cannot be counted", (
        Metric("states", "count", "", "countable states that can be reached", "results/novelty.py"),
        Metric("visited_states", "count", "", "countable states that the seed visited", "results/novelty.py"),
        Metric("visited_pairs", "count", "", "pairs of state and action that it tried", "results/novelty.py"),
        Metric("novelty_correlation", "-1 to 1", "", "its last `novelty/correlation`", "results/novelty.py"),
        Metric("goal_episode", "episode", "",
               "the episode in which it first reached the goal; null: it has not, and counts as later than all",
               "results/novelty.py"),
        Metric("solved_episode", "episode", "",
               "the episode by which it had solved the task by bsuite's rule; null: it has not", "results/novelty.py"),
        Metric("untrained_share", "share", "",
               "its last `novelty/untrained_share`; where states cannot be counted", "log/summary.py"),
        Metric("events", "name: shares", "", "share of all episodes in which each event happened", "log/events.py"),
        Metric("crafter_score", "%", "", "Crafter's score over achievements", "log/events.py"),
    )),
)  # fmt: skip


def matches(metric: Metric, name: str) -> re.Match[str] | None:
    """Whether a key belongs to this metric; its groups are what [...] and NAME stand for."""
    return re.fullmatch(_pattern(metric.key), name)


@functools.cache
def _pattern(key: str) -> str:
    return re.sub(r"\\\[(.*?)\\\]", r"(\1)?", re.escape(key)).replace("NAME", "(.+)")


def find_metric(name: str, groups: tuple[MetricGroup, ...] = METRICS) -> Metric | None:
    """The table's line of a key. None: it has none."""
    known = [metric for group in groups for metric in group.metrics if matches(metric, name)]
    # A key of its own goes before a family; of families the one that leaves the least to NAME.
    return max(known, key=lambda metric: len(metric.key.replace("NAME", "")), default=None)


def label_of(name: str) -> str:
    """A key in a few words; empty if the table does not have it."""
    metric = find_metric(name)
    found = matches(metric, name) if metric else None
    if metric is None or found is None:
        return ""
    words = [word for word in found.groups() if word]
    label = metric.label.replace("NAME", words[-1]) if words else metric.label
    return f"explorer: {label}" if "explorer_" in words else label


def metrics_page() -> str:
    """docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "Every key of a run's files, made from the table in `stages/results/metrics.py`. NAME stands for a name, [...]",
        "for what some keys have and others lack. Numbers of `train/` are means over updates. Sources: `stages/`.",
    ]
    for title, text, groups in (
        ("metrics.jsonl", "A line for each seed and log point. What is not finite is null.", METRICS),
        ("summary.json", "Written at every log point, and at the end of the run.", SUMMARY),
    ):
        lines += ["", f"## {title}", "", text]
        for group in groups:
            lines += ["", f"### {group.title}", "", f"{group.text[0].upper()}{group.text[1:]}.", ""]
            lines += ["| key | unit | meaning | source |", "| --- | --- | --- | --- |"]
            lines += [f"| `{key}` | {unit} | {words} | `{source}` |" for key, unit, _, words, source in group.metrics]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(metrics_page(), end="")
