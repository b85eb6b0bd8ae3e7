"""What a run tells: lines on the terminal, metrics.jsonl, and at the end summary.json, curves.png and the table.

With several processes, all gather what is told and the first one tells it.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from stages import report
from stages.config import Config
from stages.folder import RunFolder
from stages.processes import Processes
from stages.replay import Clock
from stages.rounds import Round, Settled
from stages.sweep import Sweep
from stages.train import Progress, TrainState


@dataclass
class Curve:
    """Points of the picture: env steps of a seed, and every seed's score there."""

    steps: list[int] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)

    def add(self, step: int, scores: np.ndarray) -> None:
        """One point; scores [seeds]."""
        self.steps.append(step)
        self.scores.append(np.asarray(scores, np.float64))

    @staticmethod
    def of_all(curves: "list[Curve]") -> "Curve":
        """Curves of the same steps -> one, of all their seeds."""
        return Curve(
            curves[0].steps, [np.concatenate(scores) for scores in zip(*(c.scores for c in curves), strict=True)]
        )


@dataclass
class Story:
    """What one round's seeds have told so far; scores are [seeds]."""

    round: Round
    training: Curve = field(default_factory=Curve)
    evaluation: Curve = field(default_factory=Curve)
    untrained: np.ndarray = field(default_factory=lambda: np.zeros(0))
    zero_shot: np.ndarray = field(default_factory=lambda: np.zeros(0))
    final: np.ndarray = field(default_factory=lambda: np.zeros(0))
    border: int | None = None  # the step from which it adapts
    step: int = 0
    updates: int = 0
    evaluations: int = 0

    @staticmethod
    def of_all(stories: "list[Story]") -> "Story":
        """The stories of all rounds as one. They took the same steps; only the seeds differ."""
        joined = {
            name: np.concatenate([getattr(s, name) for s in stories]) for name in ("untrained", "zero_shot", "final")
        }
        told = [seed for story in stories for seed in story.round.told]
        training = Curve.of_all([story.training for story in stories])
        evaluation = Curve.of_all([story.evaluation for story in stories])
        round = dataclasses.replace(stories[-1].round, told=told)
        return dataclasses.replace(stories[-1], round=round, training=training, evaluation=evaluation, **joined)

    def known(self, scores: np.ndarray) -> np.ndarray:
        """Training scores, with a seed's last one where no episode of it ended since (metrics.jsonl keeps the gap)."""
        return np.where(np.isnan(scores), self.training.scores[-1], scores) if self.training.scores else scores


@dataclass
class Record:
    """What a run has told so far, round by round."""

    settings: Any  # the run's Arguments
    folder: RunFolder | None  # None: another process tells
    processes: Processes
    started: float  # of time.time
    stories: list[Story] = field(default_factory=list)
    rounds: int = 1
    compile_seconds: float = 0.0

    @property
    def story(self) -> Story:
        """The present round's."""
        return self.stories[-1]

    @property
    def exploring(self) -> bool:
        """Whether a round's first phase explores: then the tasker is evaluated at every log point."""
        return self.settings.config.mode != "task"

    def say(self, line: str) -> None:
        """A line to the terminal, at once."""
        if self.folder is not None:
            print(line, flush=True)

    def opens(self, seeds: list[int], devices: Sequence[Any]) -> None:
        """The first lines."""
        where = f"{len(devices)} {devices[0].platform} device(s)"
        if self.processes.count > 1:
            where += f" of each of {self.processes.count} processes"
        files = f"; files in {self.folder.path}" if self.folder is not None else ""
        self.say(f"{self.settings.title}: seeds {seeds[0]} to {seeds[-1]} on {where}{files}")
        self.say("compiling ...")
        self.compile_seconds = -time.time()

    def settles(self, settled: Settled) -> None:
        """All is compiled: what will run side by side."""
        self.compile_seconds += time.time()
        self.rounds = len(settled.rounds)
        counts = settled.parameters
        self.say(f"compiled in {self.compile_seconds:.1f} s")
        self.say(settled.line)
        self.say(f"{sum(counts.values()):,} parameters a seed: " + ", ".join(f"{k} {v:,}" for k, v in counts.items()))
        if self.folder is not None:
            self.folder.write_config(dataclasses.asdict(self.settings) | {"versions": versions()})

    def withdraws(self) -> None:
        """Nothing will run, and no empty folder stays."""
        if self.folder is not None:
            self.folder.discard()

    def begins(self, round: Round) -> None:
        """A round begins."""
        self.stories.append(Story(round))
        if self.rounds > 1:
            self.say(f"round {len(self.stories)} of {self.rounds}: seeds {round.told[0]} to {round.told[-1]}")

    def rows(
        self, progress: Progress, config: Config, clock: Clock, iterations: int, since: float
    ) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl, of all processes' seeds. Reading the numbers waits for the chunk to end."""
        told = self.processes.gather(progress)
        return metric_rows(told, self.story.round.told, config, int(clock.step), iterations, since)

    def evaluate(self, sweep: Sweep, state: TrainState) -> np.ndarray:
        """The tasker's mean score over fresh evaluation episodes, [seeds]."""
        story = self.story
        scores, _ = sweep.evaluate(state, story.round.mine, story.evaluations)
        story.evaluations += 1
        return self.processes.gather(np.asarray(scores).mean(1))[: len(story.round.told)]

    def chunk(
        self,
        config: Config,
        rows: list[dict[str, Any]],
        tasker: np.ndarray | None,
        iterations: int,
        done: float,
        left: float,
    ) -> None:
        """One log point: metrics.jsonl, curves, a line of progress."""
        story, whole = self.story, self.settings.config.steps
        story.step = rows[0]["step"]
        story.updates += iterations * config.schedule[1]
        story.training.add(story.step, story.known(np.array([row["episode/score"] for row in rows])))
        if story.border is not None:
            whole += self.settings.config.adapt_steps
        words = [f"{config.mode:>7} {done:4.0%}", f"{story.step:,}/{whole:,} steps"]
        words.append(f"score {_iqm(story.training.scores[-1])}")
        if tasker is not None:
            story.evaluation.add(story.step, tasker)
            rows = [row | {"eval/score": float(score)} for row, score in zip(rows, tasker, strict=True)]
            words.append(f"{'zero-shot' if config.mode == 'explore' else 'tasker'} {_iqm(tasker)}")
        if self.folder is None:
            return
        self.folder.append_metrics(rows)
        speed = rows[0]["fps/policy"] * len(rows)
        self.say("  ".join([*words, f"{speed:,.0f} steps/s", f"{int(left) // 60}:{int(left) % 60:02d} left"]))
        broken = [row["seed"] for row in rows if not all(np.isfinite(v) for k, v in row.items() if "/loss/" in k)]
        if broken:
            print(f"run.py: warning: losses of seeds {broken} are not finite; try a lower --hypers.lr", file=sys.stderr)

    def finishes(self) -> None:
        """curves.png, summary.json and the table, over the seeds of all rounds together."""
        if self.folder is None:
            return
        config, story = self.settings.config, Story.of_all(self.stories)
        interval = report.summarise(story.final, story.round.told)
        curve = story.evaluation if self.exploring else story.training
        report.plot_curves(
            self.folder.path / "curves.png",
            np.array(curve.steps),
            np.stack(curve.scores, 1),
            title=self.settings.title,
            ylabel="tasker's evaluation score" if self.exploring else "training score",
            markers=None if story.border is None else [(story.border, "adapts from here")],
            baseline=(float(story.untrained.mean()), "untrained"),
        )
        wall, peak = time.time() - self.started, peak_memory_mb()
        self.folder.write_summary(
            {
                "env": config.env,
                "env_args": dict(config.env_args),
                "mode": config.mode,
                "preset": self.settings.preset,
                "seeds": story.round.told,
                "rounds": len(self.stories),
                "side_by_side": len(story.round.mine) * self.processes.count,
                "processes": self.processes.count,
                "env_steps": story.step,
                "updates": story.updates,
                "score": story.final.tolist(),
                **dataclasses.asdict(interval),
                "zero_shot": story.zero_shot.tolist() if self.exploring else None,
                "untrained": story.untrained.tolist(),
                "compile_seconds": round(self.compile_seconds, 2),
                "wall_seconds": round(wall, 2),
                "peak_memory_mb": round(peak, 1),
                "versions": versions(),
            }
        )
        report.print_table(interval, f"{self.settings.title}: final evaluation, {config.eval_episodes} episodes a seed")
        self.say(
            f"{story.step:,} env steps and {story.updates:,} updates a seed in {wall:.0f} s "
            f"({self.compile_seconds:.0f} s compiling), {peak:,.0f} MB; see {self.folder.path}"
        )


def metric_rows(
    progress: Any, seeds: list[int], config: Config, clock_step: int, iterations: int, since: float
) -> list[dict[str, Any]]:
    """One metrics row for each seed, with DreamerV3's names; episode/score is NaN where no episode ended."""
    episodes, metrics = progress.episodes, {name: np.asarray(value) for name, value in progress.metrics.items()}
    count = np.asarray(episodes.count)
    with np.errstate(invalid="ignore"):
        scores, lengths = np.asarray(episodes.score) / count, np.asarray(episodes.length) / count
    spent, (steps, updates) = time.time() - since, config.schedule
    shared = {
        "fps/policy": round(iterations * steps * config.envs / spent, 2),
        "fps/train": round(iterations * updates * config.replay.batch_size * config.replay.batch_length / spent, 2),
    }
    rows = []
    for i, seed in enumerate(seeds):
        row = {"step": clock_step * config.envs, "seed": seed, "phase": config.mode}
        row |= {"episode/score": float(scores[i]), "episode/length": float(lengths[i]), "episode/count": int(count[i])}
        rows.append(row | {f"train/{name}": float(value[i]) for name, value in metrics.items()} | shared)
    return rows


def _iqm(scores: np.ndarray) -> str:
    """The interquartile mean of finite scores, in words."""
    if not np.isfinite(scores).any():
        return "-"
    return f"{report.summarise(scores, list(range(len(scores))), resamples=1).iqm:.2f}"


def peak_memory_mb() -> float:
    """Peak memory of this process: the first accelerator's own count, or the resident set."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 1e6
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    from importlib.metadata import version

    names = ("jax", "jaxlib", "equinox", "optax", "gymnax", "numpy")
    return {"python": sys.version.split()[0]} | {name: version(name) for name in names}
