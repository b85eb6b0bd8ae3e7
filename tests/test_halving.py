"""Successive halving: who goes on by hand; a sweep's trials equal their runs alone, whatever interrupts it."""

import csv
import json
import math
import shutil

import numpy as np
import pytest

import run
from stages.config import ConfigError
from stages.results.grid import grid_of, plot_grid, table_of
from stages.results.read import read_runs
from stages.runs import figures, halving
from stages.runs.arguments import parse
from stages.runs.copy import _summary_of
from stages.runs.halving import Standing, by_chance, check_halving, score_of, survivors
from stages.runs.load import load
from stages.runs.rung import Rung, chunks_until, shares_of
from stages.runs.trials import programs_of
from tests.bench.kills import arrays, metrics
from tests.test_figures import pixels
from tests.test_resume import ask, at_chunk
from tests.test_run import TINY

NAN = math.nan

# ---- by hand --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("eta", "trials", "shares"),
    [
        *((3, 2, (1,)), (3, 3, (3, 1)), (3, 8, (3, 1)), (3, 9, (9, 3, 1)), (3, 27, (27, 9, 3, 1))),
        *((2, 5, (4, 2, 1)), (2, 8, (8, 4, 2, 1)), (4, 16, (16, 4, 1))),
    ],
)
def test_rungs(eta, trials, shares):
    assert shares_of(eta, trials) == shares
    # A first rung that may not be so early leaves out those before it.
    assert shares_of(eta, trials, 3.5) == tuple(share for share in shares if share <= 3.5)
    rungs = [Rung(number, shares) for number in range(len(shares))]
    assert [rung.last for rung in rungs] == [False] * (len(shares) - 1) + [True] and rungs[0].share == shares[0]
    assert {rung.halves for rung in rungs} == {len(shares) > 1}


def standings(scores):
    return [Standing(0, place, f"trial {place}", 10, score) for place, score in enumerate(scores)]


@pytest.mark.parametrize(
    ("eta", "scores", "on"),
    [
        (3, [0.1, 0.5, 0.3], [1]),
        (3, [1.0, 3.0, 2.0, 5.0, 4.0, 0.0, 6.0, -1.0, 2.5], [6, 3, 4]),
        (2, [1.0, 1.0, 1.0, 1.0], [0, 1]),  # of equal ones the first
        (2, [0.0, 2.0, 1.0, 2.0, 2.0], [1, 3]),  # 5 / 2 are two
        (4, [1.0, 2.0], [1]),  # at least one
        (2, [-math.inf, -5.0, -math.inf, -7.0], [1, 3]),  # what has diverged comes last
    ],
)
def test_who_goes_on(eta, scores, on):
    best, others = survivors(standings(scores), eta)
    assert [each.trial for each in best] == on
    assert sorted(each.trial for each in others) == sorted(set(range(len(scores))) - set(on))


@pytest.mark.parametrize(
    ("scores", "diverged", "score"),
    [
        ([1.0, 3.0], [False, False], 2.0),
        ([1.0, 3.0], [True, False], 2.0),  # a seed counts with the score of its last finite state
        ([NAN, 3.0], [True, False], 3.0),  # or not at all
        ([NAN, NAN], [False, False], -math.inf),
        ([1.0, 3.0], [True, True], -math.inf),
    ],
)
def test_a_trials_score(scores, diverged, score):
    assert score_of(np.array(scores), diverged) == score


@pytest.mark.parametrize(
    ("gains", "chance"),
    [
        ([(0.1, -0.1), (0.0, 0.0)], True),
        ([(-1.0, -1.1), (-0.9, -1.0)], True),  # worse
        ([(1.0, 1.1), (0.9, 1.0)], False),
        ([(0.9,), (1.1, -0.5)], True),  # mean 0.5, two standard errors are 1.007
        ([(0.9,), (1.1, 0.7)], False),
        ([(5.0,), ()], False),  # of one nothing is known
    ],
)
def test_scores_of_untrained_agents_are_known_for_what_they_are(gains, chance):
    standings = [Standing(0, place, "", 10, 0.0, each) for place, each in enumerate(gains)]
    assert by_chance(standings) is chance


def test_a_rung_is_the_nearest_end_of_a_chunk():
    """5 rows before the first update, then chunks of 10."""
    config = parse([*TINY, "--steps", "185"]).config
    assert (config.prefill, config.envs, config.schedule) == (5, 1, (2, 1))
    assert [chunks_until(config, 5, 18, share) for share in (27, 9, 3, 1)] == [1, 2, 6, 18]  # 6.9, 20.6, 61.7, 185


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--sweep", "lr=1,2,3", "--halving", "1"], "0 or 2 and more"),
        (["--sweep", "lr=1,2,3", "--halving", "-3"], "0 or 2 and more"),
        (["--halving", "3"], "name a setting to sweep"),
        (["--sweep", "lr=1,2", "--halving", "3"], "stops none of 2 trials"),
        (["--sweep", "lr=1,2,3", "--halving", "3", "--checkpoint-keep", "0"], "--checkpoint-keep 1 or more"),
        (["--sweep", "lr=1,2,3", "--halving", "3", "--distributed"], "give up one of the two"),
        (["--sweep", "lr=1,2,3", "--halving", "3", "--halving-start", "16000"], "less than --steps"),
        (["--sweep", "lr=1,2,3", "--halving-start", "10"], "give that, too"),
        (["--sweep", "lr=1,2,3", "--halving", "3", "--halving-start", "9000"], "no rung between"),
        (["--sweep", "env.size=4,6", "--env", "DeepSea-bsuite", "--halving", "2"], "leave env_args out"),
        (["--sweep", "steps=1000,2000", "--halving", "2"], "leave steps out"),
        (
            ["--sweep", "lr=1,2,3,4,5,6,7,8,9", "--halving", "3", "--log-points", "2"],
            "1/9, 1/3 of --steps, .* 2 chunks",
        ),
    ],
)
def test_what_cannot_be_halved_is_said_in_one_line(words, says):
    with pytest.raises(ConfigError, match=says) as error:
        arguments = parse([*words, "--logdir", "here"])
        check_halving(programs_of([*words, "--logdir", "here"], arguments), arguments.halving)
    assert "\n" not in str(error.value)


def test_a_trials_command_line_has_no_halving():
    words = ["--sweep", "lr=1,2", "--sweep", "horizon=5,6", "--halving", "2", "--logdir", "here"]
    programs = programs_of(words, parse(words))
    assert [program.arguments.halving for program in programs] == [2, 2]
    assert {trial.arguments.halving for program in programs for trial in program.trials} == {0}


def test_a_copy_has_the_rungs_of_its_seeds():
    rungs = {"steps": [5, 9], "scores": [[1.0, 2.0], [3.0, 4.0]], "diverged": [[False, False], [False, True]]}
    summary = {"seeds": [0, 1], "diverged": {"1": 8}, "score": [3.0, 4.0], "rungs": rungs, "stopped": 9}
    own = _summary_of(summary, range(1, 2))
    assert own["rungs"] == {"steps": [5, 9], "scores": [[2.0], [4.0]], "diverged": [[False], [True]]}
    assert (own["seeds"], own["score"], own["diverged"], own["stopped"]) == ([1], [4.0], {"1": 8}, 9)


# ---- a sweep --------------------------------------------------------------------------------------------------------

# Six chunks of ten rows: six trials train for two of them, two trials to the end. In mode random the tasker is
# evaluated at each log point, so that scores at the rung are known from elsewhere too.
WORDS = [
    *(*TINY, "--mode", "random", "--seeds", "2", "--devices", "1", "--steps", "65", "--log-points", "6"),
    *("--eval-episodes", "32", "--hypers.warmup", "1", "--checkpoint-minutes", "0"),
]
RATES, HORIZONS = ("1e-4", "2e-2", "1e-1"), ("2", "3")
SWEEP = ["--sweep", f"horizon={','.join(HORIZONS)}", "--sweep", f"lr={','.join(RATES)}", "--halving", "3"]
TRIALS = [(horizon, rate) for horizon in HORIZONS for rate in RATES]


def place_of(folder, trial):
    return folder / f"horizon={trial[0]}" / f"lr={trial[1]}"


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def halved(compiled_once, tmp_path_factory):
    """The sweep that nobody stops."""
    folder = tmp_path_factory.mktemp("halving") / "sweep"
    assert run.main([*WORDS, *SWEEP, "--logdir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def best(halved):
    """The two trials with the highest mean at the rung, from what each has evaluated there; of equal ones the first."""
    means = {}
    for trial in TRIALS:
        here = [row["eval/score"] for row in metrics(place_of(halved, trial)) if row["step"] == 25]
        means[trial] = sum(here) / 2
        assert len(here) == 2
    return sorted(TRIALS, key=lambda trial: (-means[trial], TRIALS.index(trial)))[:2]


@pytest.fixture(scope="module")
def alone(compiled_once, tmp_path_factory):
    """A trial's run without a sweep."""
    made = {}

    def train(trial):
        if trial not in made:
            made[trial] = tmp_path_factory.mktemp("alone") / "run"
            words = ["--horizon", trial[0], "--hypers.lr", trial[1], "--logdir", str(made[trial])]
            assert run.main([*WORDS, *words]) == 0
        return made[trial]

    return train


def test_the_best_go_on_and_the_others_stop(halved, best):
    for trial in TRIALS:
        summary, rows = summary_of(place_of(halved, trial)), metrics(place_of(halved, trial))
        assert summary["rungs"]["steps"] == [25] and summary["finished"] == (trial in best)
        assert summary.get("stopped") == (None if trial in best else 25)
        assert {row["step"] for row in rows} == {15, 25, *((35, 45, 55, 65) if trial in best else ())}
        assert summary["env_steps"] == (65 if trial in best else 25)


def test_who_goes_on_equals_its_run_alone_to_the_bit(halved, best, alone):
    for trial in best[:1]:
        ours, theirs = place_of(halved, trial), alone(trial)
        assert metrics(ours) == metrics(theirs)
        for name in ("score", "zero_shot", "untrained", "env_steps", "updates", "iqm", "ci_low", "ci_high", "seeds"):
            assert summary_of(ours)[name] == summary_of(theirs)[name], name
        mine, [other] = load(ours).groups, load(theirs).groups
        assert [group.finished for group in mine] == [True] and mine[0].seeds == other.seeds == [0, 1]
        saved = arrays(theirs)
        found = arrays(ours.parent)
        rounds = sorted({name.split()[0] for name in found})
        last = [r for r in rounds if same(found, r, saved)]
        assert len(last) == 1, "no round ends with the very arrays of the run alone"


def same(found, round, saved):
    """Whether the checkpoint of a round has the arrays of a run with a single one."""
    ours = {name.split()[1]: x for name, x in found.items() if name.split()[0] == round}
    theirs = {name.split()[1]: x for name, x in saved.items()}
    return ours.keys() == theirs.keys() and all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)


def test_who_is_stopped_equals_the_first_part_of_its_run_alone(halved, best, alone):
    trial = next(each for each in TRIALS if each not in best)
    ours, theirs = place_of(halved, trial), alone(trial)
    first = [row for row in metrics(theirs) if row["step"] <= 25]
    assert metrics(ours) == first and len(first) == 4
    assert summary_of(ours)["score"] == [row["eval/score"] for row in first if row["step"] == 25]
    [group] = load(ours).groups
    assert (group.step, group.finished) == (25, False)


def assert_equal(one, other):
    for trial in TRIALS:
        mine, theirs = place_of(one, trial), place_of(other, trial)
        assert metrics(mine) == metrics(theirs), trial
        ours, others = summary_of(mine), summary_of(theirs)
        for name in ("score", "rungs", "untrained", "env_steps", "iqm", "finished"):
            assert ours[name] == others[name], (trial, name)
        assert ours.get("stopped") == others.get("stopped")
    for horizon in HORIZONS:
        mine, theirs = arrays(one / f"horizon={horizon}"), arrays(other / f"horizon={horizon}")
        assert mine.keys() == theirs.keys()
        assert all(mine[name].tobytes() == theirs[name].tobytes() for name in mine)


@pytest.mark.parametrize("chunk", [9, 14], ids=["second program", "after the rung"])
def test_a_signal_stops_the_sweep_and_it_goes_on(halved, tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(figures, "plot_curves", lambda *_, **__: None)
    words = [*WORDS, *SWEEP, "--logdir", str(tmp_path / "sweep")]
    with monkeypatch.context() as patch:
        at_chunk(patch, chunk, lambda: ask(15))
        assert run.main(words) == 143
    assert run.main(words) == 0
    assert_equal(halved, tmp_path / "sweep")


class Killed(Exception):
    pass


def test_killed_while_it_decides_it_decides_the_same(halved, tmp_path, monkeypatch, capsys):
    """Some trials are noted as stopped, the others not yet; then the first round after the rung has no checkpoint."""
    monkeypatch.setattr(figures, "plot_curves", lambda *_, **__: None)
    words = [*WORDS, *SWEEP, "--logdir", str(tmp_path / "sweep")]
    stop, count = halving._stop, [0]

    def dies(trial, step):
        count[0] += 1
        if count[0] == 3:
            raise Killed
        stop(trial, step)

    with monkeypatch.context() as patch:
        patch.setattr(halving, "_stop", dies)
        with pytest.raises(Killed):
            run.main(words)
    with monkeypatch.context() as patch:

        def die():
            raise Killed

        at_chunk(patch, 1, die)
        with pytest.raises(Killed):
            run.main(words)
    assert run.main(words) == 0
    assert_equal(halved, tmp_path / "sweep")
    said = capsys.readouterr().out
    assert said.count("rung 1 of 2, after 25 steps a seed: 2 of 6 trials go on, ") == 2
    assert "halving saved 320 of 780 agent-steps (41%): 4 of 6 trials were stopped early" in said


def test_a_finished_sweep_is_left_alone_and_another_one_is_refused(halved, capsys):
    words = [*WORDS, *SWEEP, "--logdir", str(halved)]
    before = {path: path.stat().st_mtime_ns for path in halved.rglob("metrics.jsonl")}
    assert run.main(words) == 0
    assert "is finished; choose another --logdir" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in halved.rglob("metrics.jsonl")}
    for other, says in (
        (["--steps", "85"], "which --steps and --adapt-steps cannot raise"),
        (["--halving", "2"], "--halving 3 (now 2)"),
        (["--halving", "0"], "--halving 3 (now 0)"),
    ):
        assert run.main([*words, *other]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1, error


def test_a_state_that_is_gone_is_said(halved, best, tmp_path, capsys):
    """As if it had been killed after the rung, and what it saved had been removed."""
    shutil.copytree(halved, tmp_path / "sweep", ignore=shutil.ignore_patterns("checkpoints"))
    (tmp_path / "sweep" / f"horizon={best[0][0]}" / "summary.json").unlink()
    assert run.main([*WORDS, *SWEEP, "--logdir", str(tmp_path / "sweep")]) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert "chance decides who goes on" in warning and "holds no checkpoint to go on from" in error


def test_what_it_leaves_says_who_was_stopped_and_when(halved, best, tmp_path):
    runs = read_runs([halved])
    grid = grid_of(runs)
    assert grid.halved and not grid.unfinished
    table = table_of(grid)
    steps = [row[table.columns.index("steps")] for row in table.rows]
    assert steps == ["65"] * 2 + ["25 (stopped)"] * 4 and "stopped 4 of 6 trials after 25 steps" in table.notes[0]
    with open(halved / "results.csv") as file:
        rows = list(csv.DictReader(file))
    kinds = {
        kind: {(row["run"], row["step"]) for row in rows if row["kind"] == kind}
        for kind in ("rung", "stopped", "final")
    }
    assert [len(kinds[kind]) for kind in ("rung", "stopped", "final")] == [2, 4, 2]
    assert {step for _, step in kinds["stopped"] | kinds["rung"]} == {"25"} and {s for _, s in kinds["final"]} == {"65"}
    for names in (grid.names, grid.names[:1]):  # a map, or a panel for a setting
        plot_grid(tmp_path / "sweep.png", grid.__class__(grid.title, names, grid.cells, []))
        image = pixels(tmp_path / "sweep.png")
        for border in (image[:3], image[-3:], image[:, :3], image[:, -3:]):
            assert (border > 0.99).all(), "something runs out of the picture"


def test_rounds_gather_those_that_go_on(compiled_once, tmp_path, monkeypatch):
    """Rounds of two trials with a seed each: the two that go on are taken from wherever they were."""
    monkeypatch.setattr(figures, "plot_curves", lambda *_, **__: None)
    words = [*WORDS, "--seeds", "1", "--parallel", "2", "--horizon", "2"]
    words += ["--sweep", f"lr={','.join(RATES)}", "--sweep", "lam=0.5,0.95"]
    for name, more in (("whole", []), ("halved", ["--halving", "3"])):
        assert run.main([*words, *more, "--logdir", str(tmp_path / name)]) == 0
    on = []
    for rate in RATES:
        for lam in ("0.5", "0.95"):
            ours, theirs = (tmp_path / name / f"lr={rate},lam={lam}" for name in ("halved", "whole"))
            finished, rows = summary_of(ours)["finished"], metrics(theirs)
            assert metrics(ours) == [row for row in rows if finished or row["step"] <= 25]
            assert not finished or summary_of(ours)["score"] == summary_of(theirs)["score"]
            on.append(finished)
    assert sum(on) == 2
