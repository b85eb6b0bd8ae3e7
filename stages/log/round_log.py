"""The log of one round: its seeds' curves and scores so far, and the rows of metrics.jsonl that a chunk gives."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import ArrayLike
from numpy.typing import NDArray

from stages.cli.settings_file import JsonObject
from stages.collect import Episodes
from stages.config import Config
from stages.log.events import METRIC, EventLog
from stages.results.novelty import Ints, NoveltyLog
from stages.results.records import map_arrays
from stages.results.statistics import Floats
from stages.store.best import BestPoints, best_points
from stages.sweep.rounds import Phase, Round
from stages.train import Progress

SeedValues = NDArray[np.floating]
"""[seeds], in float32 as they were computed or in float64 as they were read."""


@dataclass
class ScoreCurve:
    """A learning curve: env steps of a seed, and every seed's score at them."""

    steps: list[int] = field(default_factory=list)
    scores: list[Floats] = field(default_factory=list)

    def add(self, step: int, scores: np.ndarray) -> None:
        """One point; scores [seeds]."""
        self.steps.append(step)
        self.scores.append(np.asarray(scores, np.float64))

    @property
    def last(self) -> list[float] | None:
        """Scores of the last point, [seeds]; None without one."""
        return self.scores[-1].tolist() if self.scores else None

    def best(self) -> BestPoints:
        """The step and score of each seed's highest score."""
        return best_points(self.steps, self.scores)


@dataclass
class RoundLog:
    """The log of one round's seeds so far; scores are [seeds]."""

    round: Round
    training: ScoreCurve = field(default_factory=ScoreCurve)
    evaluation: ScoreCurve = field(default_factory=ScoreCurve)
    untrained: SeedValues = field(default_factory=lambda: np.zeros(0))
    zero_shot: SeedValues = field(default_factory=lambda: np.zeros(0))
    final: SeedValues = field(default_factory=lambda: np.zeros(0))
    diverged: Ints = field(default_factory=lambda: np.zeros(0, int))  # [seeds], env step; 0: it has not
    novelty: NoveltyLog = field(default_factory=NoveltyLog)  # empty where states cannot be counted
    # The last novelty/untrained_share of metrics.jsonl, [seeds]; empty where states can be counted:
    untrained_share: SeedValues = field(default_factory=lambda: np.zeros(0))
    events: EventLog = field(default_factory=EventLog)  # empty where the environment has none
    adapt_step: int | None = None  # the step at which mode task began, after exploring
    phase: int = 0  # index of the current phase
    done: int = 0  # iterations of that phase so far
    step: int = 0
    updates: int = 0

    @staticmethod
    def of_all(rounds: "list[RoundLog]") -> "RoundLog":
        """The logs of all rounds as one. They took the same steps; only the seeds differ."""
        log = map_arrays(lambda *arrays: np.concatenate(arrays), *(log._per_seed() for log in rounds))
        seeds, trials = ([x for r in rounds for x in getattr(r.round, name)] for name in ("seeds", "trials"))
        log.round = dataclasses.replace(rounds[-1].round, seeds=seeds, trials=trials)
        # A trial's first seed, which the maps are of, is in its first round.
        log.novelty.maps = {trial: maps for r in reversed(rounds) for trial, maps in r.novelty.maps.items()}
        return log

    def of_trial(self, trial: int) -> "RoundLog":
        """The log of one trial's seeds alone."""
        slots, maps = self.round.slots(trial), self.novelty.maps
        log = map_arrays(lambda x: x[slots] if x.size else x, self._per_seed())
        log.round = dataclasses.replace(self.round, seeds=[self.round.seeds[slot] for slot in slots], trials=[])
        log.novelty.maps = {0: maps[trial]} if trial in maps else {}
        return log

    def _per_seed(self) -> "RoundLog":
        """The log without the round and the maps, whose lists and arrays have no axis of seeds."""
        return dataclasses.replace(self, round=Round([], []), novelty=dataclasses.replace(self.novelty, maps={}))

    def finished(self, phases: list[Phase]) -> bool:
        """Whether the round has ended the last of these phases and had its final evaluation."""
        return bool(self.final.size) and self.phase == len(phases) - 1 and self.done >= phases[-1].total_iterations

    def on_adapt(self) -> None:
        """The next phase begins: mode task goes on from here."""
        self.phase, self.done, self.adapt_step = self.phase + 1, 0, self.step

    @property
    def diverged_at(self) -> dict[int, int]:
        """Seeds that diverged, with the env step at which each did. Of one trial."""
        return {seed: int(step) for seed, step in zip(self.round.seeds, self.diverged, strict=False) if step}

    def add_chunk(
        self, rows: Sequence[JsonObject], tasker: np.ndarray | None, iterations: int, updates: int
    ) -> list[int]:
        """Add a log point; returns the slots of the seeds that have diverged since the one before.

        Args:
            rows: of metrics.jsonl, one for each seed.
            tasker: evaluation scores [seeds], where it was evaluated.
            iterations: of the chunk.
            updates: of an iteration.
        """
        self.step = rows[0]["step"]
        self.done += iterations
        self.updates += iterations * updates
        self.events.add(rows)
        diverged = self.on_diverged(np.array([row["diverged"] or 0 for row in rows]))
        scores = self.carried_forward(np.array([row["episode/score"] for row in rows]))
        self.training.add(self.step, np.where(self.diverged > 0, np.nan, scores))
        if tasker is not None:
            self.evaluation.add(self.step, tasker)
        return diverged

    def improved(self) -> np.ndarray:
        """Whether the last evaluation is each seed's best so far, [seeds]."""
        return np.array(self.evaluation.best().step) == self.step

    def on_diverged(self, steps: np.ndarray) -> list[int]:
        """Note the env step at which each seed diverged, [seeds], 0 for none; returns the slots of new ones."""
        before = self.diverged if self.diverged.size else np.zeros_like(steps)
        self.diverged = steps
        return np.flatnonzero((steps > 0) & (before == 0)).tolist()

    def carried_forward(self, scores: np.ndarray) -> np.ndarray:
        """Training scores; a seed without a new episode keeps its last score (metrics.jsonl has null there)."""
        return np.where(np.isnan(scores), self.training.scores[-1], scores) if self.training.scores else scores


def metric_rows(
    progress: Progress, seeds: list[int], config: Config, step: int, iterations: int, since: float
) -> list[JsonObject]:
    """One metrics row for each seed, with DreamerV3's names, after so many steps of each environment.

    Scores and `event/NAME`, the share of episodes in which it happened, are NaN where no episode ended;
    `diverged` is the env step at which the seed did, else None.
    """
    episodes, metrics = progress.episodes, {name: shortest(value) for name, value in progress.metrics.items()}
    count = np.asarray(episodes.count)
    with np.errstate(invalid="ignore"):
        scores, lengths = np.asarray(episodes.score) / count, np.asarray(episodes.length) / count
        events = {METRIC + name: np.asarray(happened) / count for name, happened in episodes.events.items()}
        turns = _scores_by_turn(episodes)
    spent, (steps, updates) = time.monotonic() - since, config.schedule
    shared = {
        "fps/policy": round(iterations * steps * config.envs / spent, 2),
        "fps/train": round(iterations * updates * config.replay.batch_size * config.replay.batch_length / spent, 2),
    }
    rows = []
    for i, seed in enumerate(seeds):
        row = {"step": step * config.envs, "seed": seed, "phase": config.mode}
        row["diverged"] = int(progress.diverged[i]) * config.envs or None
        row |= {"episode/score": float(scores[i]), "episode/length": float(lengths[i]), "episode/count": int(count[i])}
        row |= {name: value[i].item() for name, value in (turns | events).items()}
        rows.append(row | {f"train/{name}": float(value[i]) for name, value in metrics.items()} | shared)
    return rows


def _scores_by_turn(episodes: Episodes) -> dict[str, np.ndarray]:
    """Mean scores [S] of the tasker's episodes and of the explorer's, where they take turns; NaN without one."""
    if episodes.tasker_count is None or episodes.tasker_score is None:
        return {}
    count, score = np.asarray(episodes.tasker_count), np.asarray(episodes.tasker_score)
    explorer_count, explorer_score = np.asarray(episodes.count) - count, np.asarray(episodes.score) - score
    return {
        "episode/tasker_count": count.astype(int),
        "episode/tasker_score": score / count,
        "episode/explorer_score": np.where(explorer_count > 0, explorer_score, np.nan) / explorer_count,
    }


def shortest(values: ArrayLike) -> np.ndarray:
    """The shortest decimals that equal the float32 values: as float64 they would be twice as long."""
    return np.asarray(values, np.float32).astype(str).astype(np.float64)
