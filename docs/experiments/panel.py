"""The panel: what a default is judged by. Eighteen tasks, one table, one number.

    python docs/experiments/panel.py --out runs/panel                     # the fast form: half of the tasks, 4 seeds
    python docs/experiments/panel.py --out runs/panel --form full         # all tasks, 8 seeds; longer where it says so
    python docs/experiments/panel.py --out runs/panel --settings default floor --table      # compare what is there
    python docs/experiments/panel.py --out runs/panel --settings mine --add "--hypers.entropy 0.01" --only corridor

Every run has a folder of its own, SETTING/TASK-MODE-ROWS-FIRST SEED, with four seeds. A finished run is not repeated
and a stopped one resumes; the full form reuses the fast form's runs where the rows are the same.

The normalised score of a task is 0 for uniformly random actions and 1 for the best score known; the panel's number is
the mean over its runs. Uniformly random actions are a run in mode `random`, in the folder `control`, shared by all
settings. Where a task has a goal, the table also says how often it was reached while the agent explored. The last log
point before the first goal and the one after it bound the rows until the first goal; the later one is used. Intervals
are 95 % percentile bootstraps over seeds; of the panel's number the seeds of each run are drawn anew.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "bench"))

from common import ROOT, interval, table

from stages.results.read import Floats, Result, read_run  # by the path that common adds

SEEDS = 4  # of a run
POINTS = 20  # log points of a run
MINIGRID = "--env docs.experiments.minigrid:navix --eval-episodes 16 --env.id"
MATCHING = "--env docs.experiments.matching"
EXPLORING = ("explore", "mix")


@dataclass(frozen=True)
class Task:
    """An environment with a budget. An episode's return is `best` at most, or as far as is known."""

    env: str  # words of run.py
    rows: int  # of a seed
    best: float
    modes: tuple[str, ...] = ("task",)
    fast: tuple[str, ...] = ()  # modes of the fast form
    full_rows: int = 0  # of the full form; 0: `rows`


TASKS = {
    "doorkey6": Task(f"{MINIGRID} DoorKey-6x6", 4_000, 1.0, EXPLORING, EXPLORING, full_rows=50_000),
    "fourrooms": Task(f"{MINIGRID} FourRooms", 4_000, 1.0, EXPLORING, ("explore",), full_rows=20_000),
    "corridor": Task("--env docs.experiments.corridor:Corridor", 8_000, 1.0, fast=("task",)),
    "doorkey8": Task(f"{MINIGRID} DoorKey-8x8", 4_000, 1.0, EXPLORING, ("explore",), full_rows=50_000),
    "deepsea10": Task(
        "--env DeepSea-bsuite --env.size 10 --env.action_map_per_seed true", 2_750, 0.99, EXPLORING, ("mix",)
    ),
    "matching": Task(f"{MATCHING}:discrete", 4_000, 10.0),
    "matching-small": Task(f"{MATCHING}:discrete --env.reward 0.01", 4_000, 0.1, fast=("task",)),
    "matching-large": Task(f"{MATCHING}:discrete --env.reward 1e4", 4_000, 1e5),
    "matching-continuous": Task(f"{MATCHING}:continuous", 4_000, 10.0, fast=("task",)),
    "cartpole": Task("--env CartPole-v1", 8_000, 500.0, fast=("task",)),
    "catch": Task("--env Catch-bsuite", 8_000, 1.0),
    "pendulum": Task("--env Pendulum-v1 --eval-episodes 16", 8_000, -130.0),
    "memory": Task("--env MemoryChain-bsuite", 8_000, 1.0),
    "breakout": Task("--env Breakout-MinAtar --eval-episodes 16", 16_000, 10.0),
    "frozenlake": Task("--env FrozenLake-misc --env.map_name 8x8 --env.is_slippery false", 8_000, 1.0, EXPLORING),
    "keycorridor": Task(f"{MINIGRID} KeyCorridorS3R1", 4_000, 1.0, EXPLORING, full_rows=50_000),
    "acrobot": Task("--env Acrobot-v1 --eval-episodes 16", 12_000, -80.0, EXPLORING),
    "mountaincar": Task(
        "--env MountainCar-v0 --env.rescale_observations true --eval-episodes 16", 12_000, -118.0, EXPLORING
    ),
}
"""In the order in which they are run. `best` is what the rules allow; of CartPole, Pendulum, Acrobot and MountainCar
what gymnax's README says of its trained agents. Breakout's 10 is a unit to measure in, and no published score."""
MODES = {
    "task": "--mode task --preset tiny",
    "explore": "--mode explore --preset tiny",
    "mix": "--mode mix --preset tiny",
    "random": "--mode random --preset tiny",
}
"""Mode -> its words. The control of a task that is only run in mode `task` learns next to nothing: its own episodes are
what counts, not its tasker."""
IDLE = "--replay.train-ratio 1 --eval-episodes 1"
SETTINGS = {
    "default": "",
}
"""Name -> what differs from the defaults. Other names may be given with --add."""
CONTROL = "control"


@dataclass(frozen=True)
class Run:
    """One folder: a task in a mode with a setting, four seeds."""

    task: str
    mode: str
    setting: str
    rows: int
    first_seed: int

    def folder(self, out: Path) -> Path:
        """Where it is."""
        return out / self.setting / f"{self.task}-{self.mode}-{self.rows}-{self.first_seed}"

    def words(self, add: str = "") -> str:
        """The words of run.py, but for the folder. A setting's own come last, and win."""
        task = TASKS[self.task]
        counts = f"--steps {self.rows} --seeds {SEEDS} --seed-start {self.first_seed} --log-points {POINTS}"
        changes = f"{SETTINGS.get(self.setting, '')} {add}"
        if self.setting == CONTROL:
            changes = "" if task.modes == EXPLORING else IDLE
        return f"{task.env} {MODES[self.mode]} {counts} {changes}".strip()


def planned(form: str, settings: list[str], only: list[str]) -> list[Run]:
    """The runs of a form, in the order in which they are run: long ones last, and before them the second four seeds."""
    runs = []
    for name in only:
        task = TASKS[name]
        modes = task.fast if form == "fast" else task.modes
        rows = task.rows if form == "fast" else task.full_rows or task.rows
        for first_seed in (0,) if form == "fast" else (0, SEEDS):
            if modes:
                runs += [Run(name, mode, setting, rows, first_seed) for setting in settings for mode in modes]
                runs.append(Run(name, "random", CONTROL, rows, first_seed))
    return sorted(runs, key=lambda run: (run.rows > TASKS[run.task].rows, run.first_seed))


def train(run: Run, out: Path, add: str) -> None:
    """Run run.py for it in a process of its own; a finished run is left alone. Errors: CalledProcessError."""
    folder = run.folder(out)
    if finished(folder):
        return
    command = [sys.executable, f"{ROOT}/run.py", *run.words(add).split(), "--logdir", str(folder)]
    subprocess.run(command, check=True, cwd=ROOT)


def finished(folder: Path) -> bool:
    """Whether a run came to its end."""
    summary = folder / "summary.json"
    return summary.exists() and bool(json.loads(summary.read_text()).get("finished"))


# ---- numbers -------------------------------------------------------------------------------------------------------


def normalised(scores: Floats, lowest: float, best: float) -> Floats:
    """Scores [S] on the scale on which `lowest` is 0 and `best` is 1."""
    return (scores - lowest) / (best - lowest)


def random_score(controls: list[Result]) -> float:
    """Mean return of all episodes of uniformly random actions."""
    counts = np.concatenate([np.nan_to_num(run.metrics["episode/count"]).ravel() for run in controls])
    scores = np.concatenate([np.nan_to_num(run.metrics["episode/score"]).ravel() for run in controls])
    return float((counts * scores).sum() / counts.sum())


def goals_per_1000_rows(runs: list[Result], reward: float) -> Floats:
    """How often each seed reached the goal, [S]: the goal alone pays, `reward`."""
    paid = [np.nansum(run.metrics["episode/count"] * run.metrics["episode/score"], axis=1) / run.done for run in runs]
    return 1000 * np.concatenate(paid) / reward


def first_goal_rows(runs: list[Result]) -> Floats:
    """The first log point after each seed's first goal, in rows, [S]; infinite: none yet."""
    reached = [np.isfinite(run.metrics["novelty/goal_episode"]) for run in runs]
    rows = [np.where(there, run.steps, np.inf).min(1) for there, run in zip(reached, runs, strict=True)]
    return np.concatenate(rows)


def stratified(scores: list[Floats], resamples: int = 4000) -> str:
    """Mean over runs of the mean over seeds, with its 95 % bootstrap interval: seeds are drawn anew within each run."""
    generator = np.random.default_rng(0)
    draws = np.mean([generator.choice(seeds, (resamples, seeds.size)).mean(1) for seeds in scores], axis=0)
    low, high = np.percentile(draws, [2.5, 97.5])
    return f"{np.mean([seeds.mean() for seeds in scores]):.3f} ({low:.3f} to {high:.3f})"


# ---- tables --------------------------------------------------------------------------------------------------------

Row = dict[str, str | float | int | None]
SPARSE = ("doorkey", "fourrooms", "keycorridor", "frozenlake")  # the goal pays 1, and nothing else pays


def read(runs: list[Run], out: Path) -> dict[tuple[str, str, str, int], list[Result]]:
    """Finished runs by (task, mode, setting, rows): blocks of four seeds of the same are one list."""
    results: dict[tuple[str, str, str, int], list[Result]] = {}
    for run in runs:
        if finished(folder := run.folder(out)):
            results.setdefault((run.task, run.mode, run.setting, run.rows), []).append(read_run(folder))
    return results


def seeds_of(runs: list[Result], name: str) -> Floats:
    """A list of summary.json with a number for each seed, over several runs, [S]."""
    return np.concatenate([run.per_seed(name) for run in runs])


def explored(runs: list[Result], task: str) -> Row:
    """What a run's collecting found: cells for the table."""
    if "novelty/visited_states" not in runs[0].metrics:
        return {}
    cells: Row = {"states": interval(seeds_of(runs, "visited_states"), np.mean, decimals=1)}
    if "novelty/goal_episode" in runs[0].metrics:
        first = first_goal_rows(runs)
        cells["goal: seeds"] = f"{np.isfinite(first).sum()} of {first.size}"
        cells["first goal, rows"] = interval(first, np.median)
    if task.startswith(SPARSE):
        cells["goals in 1,000 rows"] = interval(goals_per_1000_rows(runs, 1.0), np.mean)
    return cells


def rows_of(results: dict[tuple[str, str, str, int], list[Result]]) -> tuple[list[Row], dict[str, dict[str, Floats]]]:
    """The table's rows; and setting -> run -> its normalised scores [S]."""
    rows, scores = [], {}
    for (task, mode, setting, budget), runs in results.items():
        score, controls = seeds_of(runs, "score"), results.get((task, "random", CONTROL, budget))
        row: Row = {"task": task, "mode": mode, "setting": setting, "rows": budget, "seeds": score.size}
        if mode != "random" or TASKS[task].modes == EXPLORING:
            row["tasker's score"] = interval(score, np.mean, decimals=3)
        if controls:
            lowest = random_score(controls)
            row |= {"random": lowest, "best": TASKS[task].best}
            if "tasker's score" in row:
                numbers = normalised(score, lowest, TASKS[task].best)
                row["normalised"] = interval(numbers, np.mean)
                if mode != "random":
                    scores.setdefault(setting, {})[f"{task}-{mode}-{budget}"] = numbers
        rows.append(row | explored(runs, task))
    return rows, scores


COLUMNS = ["task", "mode", "setting", "rows", "seeds", "tasker's score", "random", "best", "normalised"]
COLUMNS += ["goal: seeds", "first goal, rows", "goals in 1,000 rows", "states"]


def totals(scores: dict[str, dict[str, Floats]]) -> list[Row]:
    """The panel's number of each setting, over the runs that all of these settings have finished."""
    if not scores:
        return []
    common = set.intersection(*(set(runs) for runs in scores.values()))
    return [
        {
            "setting": setting,
            "runs in all settings": len(common),
            "mean normalised score over them": stratified([runs[name] for name in sorted(common)]) if common else None,
            "runs": len(runs),
            "over all of its own": stratified(list(runs.values())),
        }
        for setting, runs in scores.items()
    ]


def main() -> None:
    """Run what is asked for, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--form", choices=("fast", "full"), default="fast")
    parser.add_argument("--settings", nargs="+", default=["default"], metavar="NAME", help=f"of {list(SETTINGS)}")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument("--add", default="", metavar="WORDS", help="the words of a setting with a new name")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the tables there as well")
    asked = parser.parse_args()
    unknown = [name for name in asked.settings if name not in SETTINGS]
    if not asked.table and bool(unknown) != bool(asked.add):
        parser.error(f"--add gives the words of a setting with a new name, other than {', '.join(SETTINGS)}")
    runs = planned(asked.form, asked.settings, asked.only)
    for run in () if asked.table else runs:
        train(run, asked.out, asked.add)
    rows, scores = rows_of(read(runs, asked.out))
    table(rows, COLUMNS)
    table(totals(scores))
    if asked.json:
        by_seed = {setting: {run: list(of) for run, of in its.items()} for setting, its in scores.items()}
        tables = {"form": asked.form, "rows": rows, "totals": totals(scores), "normalised, by seed": by_seed}
        asked.json.write_text(json.dumps(tables, indent=1) + "\n")


if __name__ == "__main__":
    main()
