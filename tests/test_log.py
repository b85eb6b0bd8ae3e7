"""The log of a run, on phases that only pretend to train: rows, lines, files, by hand-computed numbers."""

import dataclasses
import errno
import json
import math
import os
import resource
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import run
from envs.environment import StateSpace
from stages.collect import Episodes
from stages.evaluate import TaskerScores
from stages.figures import look
from stages.log import round_log
from stages.log import run_log as log_module
from stages.log.hooks import announce_evaluation, chunk_rows, log_chunk, log_finish, log_plan, log_round, log_start
from stages.log.lines import Pace, explored_words
from stages.log.round_log import RoundLog, metric_rows
from stages.log.run_log import RunLog, RunSetup
from stages.replay import StepCounters
from stages.results.novelty import Map, NoveltyLog
from stages.results.records import from_json
from stages.store import folder as folder_module
from stages.store.files import RunFolderError, plain, write_error
from stages.store.folder import RunFolder
from stages.sweep.memory import peak_memory_mb
from stages.sweep.rounds import Evaluator, Plan, Round
from stages.sweep.trials import Trial
from stages.train import Progress
from tests.pretended import STATE, Scored
from tests.runs import rows as read

NAN = math.nan
NOW = 1000.0
PACE = Pace(1.0, 5.0, 0.0)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A clock that stands still, and may be set."""
    hand = SimpleNamespace(now=NOW)
    for module in (log_module, round_log):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: hand.now))
    return hand


def make(folder=None, words=(), **changes):
    """The log of a run with so many words on its command line."""
    arguments = run.parse(["--env", "Catch-bsuite", "--envs", "2", "--steps", "1000", *words])
    folders = [] if folder is None else [folder]
    episodes = arguments.config.eval_episodes
    setup = RunSetup(arguments, [Trial("", arguments)], eval_episodes=episodes, folder=folder, folders=folders)
    return RunLog(setup, NOW, **changes)


def at(step):
    """A clock after so many steps."""
    return StepCounters(jnp.int32(step), jnp.int32(0))


def progress(scores, counts, loss=(), diverged=(), turns=None):
    """What a chunk reports: each seed's sum of scores over its episodes, of 9 steps each, one loss, and its end.

    Args:
        turns: each seed's count and sum of scores of the tasker's episodes, if it takes turns.
    """
    sums = [(n, score, 9.0 * n) for n, score in zip(counts, scores, strict=True)]
    turns = turns or [()] * len(counts)
    seeds = [
        Episodes(*map(jnp.float32, of_all), {}, *map(jnp.float32, of_tasker))
        for of_all, of_tasker in zip(sums, turns, strict=True)
    ]
    episodes = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)
    metrics = {"loss/recon": jnp.array(loss or [0.5] * len(counts)), "opt/norm": jnp.array([2.0] * len(counts))}
    return Progress(episodes, metrics, jnp.array(diverged or [0] * len(counts)))


# ---- rows ----------------------------------------------------------------------------------------------------------


def test_rows_by_hand(clock):
    config = make(
        words=["--replay.batch-size", "4", "--replay.batch-length", "8", "--replay.train-ratio", "16"]
    ).setup.arguments.config
    assert config.schedule == (1, 1)  # 16 rows a step of 2 environments are one update of 4 times 8
    clock.now = NOW + 4.0
    found = metric_rows(progress([3.0, 0.0], [2, 0], [0.25, 0.75]), [7, 9], config, 60, 10, NOW)
    speed = {"fps/policy": 10 * 2 / 4.0, "fps/train": 10 * 4 * 8 / 4.0}
    first = {
        "step": 120,
        "seed": 7,
        "phase": "task",
        "diverged": None,
        "episode/score": 1.5,
        "episode/length": 9.0,
        "episode/count": 2,
    }
    assert found[0] == first | {"train/loss/recon": 0.25, "train/opt/norm": 2.0} | speed
    assert found[1]["seed"] == 9 and found[1]["episode/count"] == 0 and found[1]["train/loss/recon"] == 0.75
    assert math.isnan(found[1]["episode/score"]) and math.isnan(found[1]["episode/length"])


def test_rows_have_the_scores_of_both_actors_where_they_take_turns():
    """Episodes of three seeds: 4, 2 and 1, of which the tasker acted in 1, 0 and 1."""
    chunk = progress([3.0, 1.0, 0.1], [4, 2, 1], turns=[(1, 1.0), (0, 0.0), (1, 0.1)])
    rows = metric_rows(chunk, [0, 1, 2], make().setup.arguments.config, 1, 1, NOW - 1)
    names = ("episode/tasker_count", "episode/tasker_score", "episode/explorer_score")
    np.testing.assert_allclose(
        [[row[name] for name in names] for row in rows], [[1, 1, 2 / 3], [0, NAN, 0.5], [1, 0.1, NAN]], rtol=1e-6
    )


def test_rows_leave_out_seeds_that_fill_a_place():
    found = metric_rows(progress([1.0, 2.0, 2.0], [1, 1, 1]), [3, 4], make().setup.arguments.config, 1, 1, NOW - 1)
    assert [(row["seed"], row["episode/score"]) for row in found] == [(3, 1.0), (4, 2.0)]


# ---- curves and rounds --------------------------------------------------------------------------------------------


def test_a_seed_without_an_episode_keeps_its_last_score():
    one_round = RoundLog(Round([0, 1], [0, 1]))
    for step, scores in ((10, [NAN, 1.0]), (20, [2.0, NAN]), (30, [NAN, 3.0])):
        one_round.training.add(step, one_round.carried_forward(np.array(scores)))
    np.testing.assert_array_equal(np.stack(one_round.training.scores), [[NAN, 1.0], [2.0, 1.0], [2.0, 3.0]])
    assert one_round.training.steps == [10, 20, 30]


def test_rounds_become_one():
    rounds = []
    for seeds, mine in (([0, 1], [0, 1]), ([2], [2, 2])):
        one_round = RoundLog(Round(seeds, mine), step=40, updates=6, adapt_step=20)
        for step in (20, 40):
            one_round.training.add(step, np.array([seed + step for seed in seeds]))
            one_round.evaluation.add(step, np.array([-seed for seed in seeds]))
        one_round.untrained, one_round.zero_shot = np.array(seeds) + 0.5, np.array(seeds) + 0.25
        one_round.final = np.array(seeds, np.float32) * 10
        rounds.append(one_round)
    one = RoundLog.of_all(rounds)
    assert one.round.seeds == [0, 1, 2] and (one.step, one.updates, one.adapt_step) == (40, 6, 20)
    np.testing.assert_array_equal(one.training.scores, [[20, 21, 22], [40, 41, 42]])
    np.testing.assert_array_equal(one.evaluation.scores, [[0, -1, -2], [0, -1, -2]])
    np.testing.assert_array_equal(one.untrained, [0.5, 1.5, 2.5])
    np.testing.assert_array_equal(one.zero_shot, [0.25, 1.25, 2.25])
    np.testing.assert_array_equal(one.final, [0.0, 10.0, 20.0])
    assert rounds[0].round.seeds == [0, 1], "the rounds' own logs stay as they were"
    rounds[1].training.add(60, np.zeros(1))
    with pytest.raises(ValueError, match="argument"):
        RoundLog.of_all(rounds)


def test_the_log_of_one_trial_of_several():
    """Trials 0 and 1 of seeds 0 and 1, over two rounds; each trial's map is of its first seed."""
    rounds = []
    for seeds, trials in (([0, 1, 0], [0, 0, 1]), ([1], [1])):
        one_round = RoundLog(Round(seeds, seeds, trials, trials), step=20)
        one_round.training.add(20, np.array([10.0 * trial + seed for seed, trial in zip(seeds, trials, strict=True)]))
        metrics = {"visited_states": np.array(trials) + 5.0}
        one_round.novelty.add(20, metrics, np.array(seeds) * 3, np.zeros(len(seeds), int))
        for trial in sorted({*trials}):
            one_round.novelty.add_map(Map(20, np.array([trial, 4]), np.array([NAN, len(seeds)])), 20, trial)
        rounds.append(one_round)
    saved = [json.loads(json.dumps(plain(dataclasses.asdict(one_round)))) for one_round in rounds]
    trial = RoundLog.of_all([from_json(one_round, RoundLog) for one_round in saved]).of_trial(1)
    assert trial.round.seeds == [0, 1] and trial.round.trials == [] and trial.step == 20
    np.testing.assert_array_equal(trial.training.scores, [[10.0, 11.0]])
    np.testing.assert_array_equal(trial.novelty.curve("visited_states"), [[6.0], [6.0]])
    np.testing.assert_array_equal(trial.novelty.goal_episode, [0, 3])
    assert trial.zero_shot.size == 0 and list(trial.novelty.maps) == [0]
    first = trial.novelty.maps[0].late
    assert first.step == 20 and first.visits.dtype == np.int64
    np.testing.assert_array_equal([first.visits, first.reward], [[1, 4], [NAN, 3]])


# ---- lines and files -----------------------------------------------------------------------------------------------


def test_lines_and_rows_of_a_chunk(tmp_path, capsys, clock):
    log = make(RunFolder.open(tmp_path / "run"), ["--mode", "explore", "--adapt-steps", "500"])
    config = log.setup.arguments.config
    log_round(log, 0, Round([0, 1], [0, 1]))
    clock.now = NOW + 10.0
    rows = chunk_rows(log, progress([1.0, 0.0], [1, 0]), config, at(100), 50, NOW)
    log_chunk(log, config, rows, TaskerScores(np.array([0.25, 0.75]), np.array([2.0, 3.0])), 50, Pace(0.2, 6.4, 125.9))
    said, warned = capsys.readouterr()
    assert said == ("explore  20%  200/1,000 steps a seed, 6.4 a second, 2:05 left  score 1.00  zero-shot 0.50\n")
    assert not warned and log.round.updates == 50 * config.schedule[1] and log.round.evaluation.steps == [200]
    names = ("seed", "episode/score", "eval/score", "eval/expected_score")
    assert [tuple(row[name] for name in names) for row in read(tmp_path / "run")] == [
        (0, 1.0, 0.25, 2.0),
        (1, None, 0.75, 3.0),
    ]
    log.round.adapt_step = 200
    clock.now = NOW + 12.5
    log_chunk(log, config, rows, None, 50, PACE)
    assert "200/1,500 steps" in capsys.readouterr().out
    # Of 50 iterations each, with one episode of seed 0 and none of seed 1.
    updates = 50 * config.schedule[1]
    totals = [(row["episode/total"], row["updates"], row["wall_seconds"]) for row in read(tmp_path / "run")]
    assert totals == [(1, updates, 10.0), (0, updates, 10.0), (2, 2 * updates, 12.5), (0, 2 * updates, 12.5)]


def test_steps_speed_and_time_left_are_of_one_seed():
    """60 of 100 iterations of 4 rows, 20 of them before this session, in 10 s: 16 rows a second, 40 iterations left."""
    assert Pace.of(60, 20, 100, 4, 10.0) == (0.6, 16.0, 10.0)


def test_steps_are_those_that_the_chunks_take(tmp_path, capsys):
    """Of 1,500 steps asked for: 1,008 and 504, since chunks are equally long."""
    log = make(RunFolder.open(tmp_path / "run"), ["--mode", "explore", "--adapt-steps", "500"])
    config = dataclasses.replace(log.setup.arguments.config, steps=1008, adapt_steps=504)
    log_plan(log, Plan([], [Round([0], [0])], {"actor": 1}, "a line", 1512), 1.0)
    more = "12 more than asked, since all chunks of a phase are equally long"
    assert capsys.readouterr().out.splitlines()[-1] == f"1,512 steps a seed: {more}"
    log_round(log, 0, Round([0], [0]))
    for step, adapt_step, line in ((504, None, "1,008/1,008 steps"), (756, 1008, "1,512/1,512 steps")):
        log.round.adapt_step = adapt_step
        rows = chunk_rows(log, progress([1.0], [1]), config, at(step), 50, NOW - 1)
        log_chunk(log, config, rows, None, 50, PACE)
        assert line in capsys.readouterr().out
    log.on_stop()
    assert capsys.readouterr().out.startswith("stopped at 1,512 of 1,512 steps")


def test_an_exploring_line_says_states_and_goals():
    states = StateSpace(36, 36, lambda state: state, (6, 6))
    log = NoveltyLog()
    assert explored_words(log, states, True) == [] and explored_words(log, None, True) == []
    log.add(100, {"visited_states": np.array([9.0, 30.0, 12.0])}, np.array([0, 31, 0]), np.zeros(3, int))
    assert explored_words(log, states, True) == ["states 12/36", "goal 1/3 seeds"]
    assert explored_words(log, states, False) == ["states 12/36"]


def test_an_evaluation_is_announced(tmp_path, capsys):
    log = make(RunFolder.open(tmp_path / "run"), ["--eval-episodes", "7"])
    announce_evaluation(log, "untrained")
    announce_evaluation(make(), "trained")
    assert capsys.readouterr().out == "evaluating untrained agents: 7 episodes a seed\n"
    log.setup = dataclasses.replace(log.setup, eval_episodes=3)
    announce_evaluation(log, "trained")
    why = "(not 7: the time limit is long; --eval-steps N plays all, of N steps at most)"
    assert " ".join(capsys.readouterr().out.split()) == f"evaluating trained agents: 3 episodes a seed {why}"


def test_seconds_of_all_sessions_count(capsys, clock):
    """7 s of compiling in a session of 20 s, 5 in one of 10 that goes on."""
    log = make()
    log_round(log, 0, Round([0], [0]))
    log_plan(log, Plan([], [Round([0], [0])], {"actor": 1}, "a line"), 7.0)
    clock.now += 20.0
    saved = json.loads(json.dumps(plain(log.to_json([1]))))
    clock.now += 100.0
    later = dataclasses.replace(make(), started=clock.now)
    later.resume(saved)
    log_plan(later, Plan([], [Round([0], [0])], {"actor": 1}, "a line"), 5.0)
    clock.now += 10.0
    assert (later.compile_seconds, later.wall_seconds) == (12.0, 30.0)


def test_a_seed_that_diverges_is_warned_of_once_and_marked_in_every_file(tmp_path, capsys):
    """Seed 4 of three, in two environments: after row 3 of each."""
    log = make(RunFolder.open(tmp_path / "run"))
    log_round(log, 0, Round([3, 4, 5], [3, 4, 5]))
    log.round.untrained = np.array([0.0, NAN, 1.0])
    for step, loss, diverged in ((2, 0.5, 0), (4, NAN, 3), (6, math.inf, 3)):
        done = progress([1.0] * 3, [1] * 3, [0.5, loss, 0.5], [0, diverged, 0])
        config = log.setup.arguments.config
        log_chunk(log, config, chunk_rows(log, done, config, at(step), 1, NOW - 1), None, 1, PACE)
    _, warned = capsys.readouterr()
    assert warned.startswith("run.py: warning: seed 4 at step 6: ") and warned.count("\n") == 1
    np.testing.assert_array_equal(log.round.training.scores, [[1, 1, 1], [1, NAN, 1], [1, NAN, 1]])
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [row["diverged"] for row in rows] == [None] * 4 + [6] + [None] * 2 + [6] + [None]
    assert [row["train/loss/recon"] for row in rows[4::3]] == [None, None]

    kept = from_json(json.loads(json.dumps(plain(dataclasses.asdict(log.round)))), RoundLog)
    assert kept.diverged_at == {4: 6} and kept.diverged.dtype == log.round.diverged.dtype
    log.round.final = np.array([1.0, NAN, 3.0])
    log.setup.folder.write_config(dataclasses.asdict(log.setup.arguments) | {"seeds": 3, "seed_start": 3})
    log_finish(log)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["diverged"] == {"4": 6} and summary["nonfinite"] == [4] and summary["iqm"] == 2.0
    assert "frozen: seed 4 at step 6" in capsys.readouterr().out


def test_a_process_that_does_not_lead_prints_and_writes_nothing(capsys):
    log = make(planned_rounds=2)
    log_start(log, [0, 1], [SimpleNamespace(platform="cpu")])
    log_plan(log, Plan([], [Round([0], [0])] * 2, {"actor": 1}, "a line"), 1.0)
    for seed in (0, 1):
        log_round(log, seed, Round([seed], [seed]))
        rows = chunk_rows(log, progress([1.0], [1]), log.setup.arguments.config, at(1), 1, NOW - 1)
        log_chunk(log, log.setup.arguments.config, rows, None, 1, PACE)
    log_finish(log)
    log.on_abort()
    assert capsys.readouterr() == ("", "")


def test_a_run_of_two_rounds_from_its_first_line_to_its_last(tmp_path, capsys, clock):
    log = make(RunFolder.open(tmp_path / "run"), ["--seeds", "3", "--replay.train-ratio", "192"])
    log_start(log, [0, 1, 2], [SimpleNamespace(platform="cpu")] * 2)
    clock.now += 7.0
    rounds = [Round([0, 1], [0, 1]), Round([2], [2, 2])]
    log_plan(log, Plan([], rounds, {"actor": 1200, "critic": 34}, "two rounds"), 7.0)
    for index, (seeds, mine) in enumerate((([0, 1], [0, 1]), ([2], [2, 2]))):
        evaluate = Evaluator(Round(seeds, mine), log.setup.processes)
        log_round(log, index, evaluate.round)
        log.round.untrained = evaluate(Scored(), STATE, at(0)).score
        for step in (250, 500):
            done = progress([float(seed) for seed in mine], [1] * len(mine))
            rows = chunk_rows(log, done, log.setup.arguments.config, at(step), 3, clock.now - 1)
            log_chunk(log, log.setup.arguments.config, rows, None, 3, PACE)
        log.round.final = evaluate(Scored(), STATE, at(1)).score
    clock.now += 13.0
    log_finish(log)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Catch-bsuite, task, preset tiny: seeds 0 to 2 on 2 cpu device(s); files in {tmp_path / 'run'}"
    assert lines[1:9] == [
        "set by mode task: --task-norm rms, --enlarge-rewards True, --model.outcome",
        "  joint, --hypers.discount-horizon 100.0, --hypers.entropy 0.1,",
        "  --hypers.continuous-entropy 0.1",
        "beside the preset: --steps 1000, --envs 2, --replay.train-ratio 192.0",
        "compiling ...",
        "compiled in 7.0 s",
        "two rounds",
        "1,234 parameters a seed: actor 1,200, critic 34",
    ]
    assert lines[9] == "round 1 of 2: seeds 0 to 1" and lines[12] == "round 2 of 2: seeds 2 to 2"
    assert log.setup.arguments.config.schedule == (
        1,
        3,
    )  # 192 rows a step of 2 environments are three updates of 8 times 16
    assert lines[-1].startswith("1,000 steps and 18 updates a seed in 20 s (7 s compiling), ")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "config.json", "metrics.jsonl", "summary.json", "curves.png", ".lock",
    }  # fmt: skip
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["seeds"] == [0, 1, 2] and summary["rounds"] == 2 and summary["side_by_side"] == 2
    assert summary["untrained"] == [0.5, 1.5, 2.5] and summary["score"] == [1.5, 2.5, 3.5]
    assert (summary["iqm"], summary["worst_seed"], summary["best_seed"], summary["zero_shot"]) == (2.5, 0, 2, None)
    assert (summary["env_steps"], summary["compile_seconds"], summary["wall_seconds"]) == (1000, 7.0, 20.0)
    assert [(row["step"], row["seed"]) for row in read(tmp_path / "run")] == [
        (500, 0),
        (500, 1),
        (1000, 0),
        (1000, 1),
        (500, 2),
        (1000, 2),
    ]


@pytest.mark.parametrize("where", [look, folder_module])
def test_a_disk_that_is_full_at_the_end_costs_no_score(tmp_path, capsys, monkeypatch, where):
    """It costs the pictures alone; where it has no room for summary.json either, the table has been printed."""
    log = make(RunFolder.open(tmp_path / "run"))
    log_plan(log, Plan([], [Round([0], [0])], {"actor": 1}, "a line"), 1.0)
    evaluate = Evaluator(log_round(log, 0, Round([0], [0])).round, log.setup.processes)
    rows = chunk_rows(log, progress([1.0], [1]), log.setup.arguments.config, at(500), 3, NOW - 1)
    log_chunk(log, log.setup.arguments.config, rows, None, 3, PACE)
    log.round.untrained, log.round.final = (evaluate(Scored(), STATE, at(step)).score for step in (0, 1))

    def refuse(path, *args):
        cause = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise write_error(path, cause) from cause

    monkeypatch.setattr(where, "write_whole" if where is look else "write_json", refuse)
    if where is look:
        log_finish(log)
        (warning,) = capsys.readouterr().err.splitlines()
        assert "curves.png" in warning and "No space left on device" in warning
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["score"] == [1.5]
    else:
        with pytest.raises(RunFolderError, match=r"summary\.json"):
            log_finish(log)
        assert "final evaluation" in capsys.readouterr().out
    assert not (tmp_path / "run" / "curves.png").exists()


def test_a_run_that_aborts_leaves_no_folder(tmp_path):
    log = make(RunFolder.open(tmp_path / "new" / "run"))
    log.on_abort()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_of_a_cpu_in_the_units_of_its_system(monkeypatch, platform, unit):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=3_000_000 // unit))
    assert peak_memory_mb() == pytest.approx(3.0, rel=1e-3)


@pytest.mark.parametrize(("stats", "mb"), [({"peak_bytes_in_use": 5_000_000}, 5.0), (None, 2.0), ({}, 2.0)])
def test_peak_memory_of_an_accelerator_is_its_own_count_where_it_counts(monkeypatch, stats, mb):
    device = SimpleNamespace(platform="gpu", memory_stats=lambda: stats)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=2_000_000))
    assert peak_memory_mb() == mb
