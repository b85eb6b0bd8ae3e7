"""Trials by hand: what --sweep asks for, which of it shares a program, and what is refused."""

import dataclasses

import numpy as np
import pytest

from stages.cli.parse import parse
from stages.cli.processes import Processes
from stages.cli.settings_file import flat
from stages.config import ConfigError, Hypers
from stages.sweep.rounds import Round, assign
from stages.sweep.trials import HYPERS, describe, programs_of

HERE = ["--logdir", "here", "--mode", "mix"]


def planned(*words):
    argv = [*HERE, *words]
    return programs_of(argv, parse(argv))


def test_no_sweep_is_one_program_of_one_trial():
    [program] = planned("--seeds", "3")
    [trial] = program.trials
    assert (program.name, trial.name, trial.settings) == ("", "", {})
    assert program.arguments == trial.arguments == parse([*HERE, "--seeds", "3"])


def test_hyperparameters_share_a_program():
    [program] = planned("--sweep", "lr=1e-4,1e-3", "--sweep=tasker-share=0,0.5,1", "--seeds", "8")
    assert program.name == "" and program.arguments.logdir == "here"
    assert program.arguments.sweep == ("lr=1e-4,1e-3", "tasker-share=0,0.5,1")
    assert [trial.name for trial in program.trials] == [
        *("lr=1e-4,tasker_share=0", "lr=1e-4,tasker_share=0.5", "lr=1e-4,tasker_share=1"),
        *("lr=1e-3,tasker_share=0", "lr=1e-3,tasker_share=0.5", "lr=1e-3,tasker_share=1"),
    ]
    # A trial's arguments are those of its own command line.
    words = [*HERE, "--seeds", "8", "--hypers.lr", "1e-3", "--hypers.tasker-share", "0.5"]
    alone = dataclasses.replace(parse(words), logdir="here/lr=1e-3,tasker_share=0.5")
    assert program.trials[4].arguments == alone
    assert describe([program]) == "sweep of lr, tasker_share: 6 trials, side by side in one program"


def test_what_sets_shapes_is_a_program_for_each_choice():
    words = ["--sweep", "ensemble.members=3,5", "--sweep", "env.size=4,6", "--sweep", "hypers.lr=1e-3,2e-3"]
    programs = planned("--env", "DeepSea-bsuite", *words)
    assert [program.name for program in programs] == [
        *("ensemble.members=3,env.size=4", "ensemble.members=3,env.size=6"),
        *("ensemble.members=5,env.size=4", "ensemble.members=5,env.size=6"),
    ]
    config = programs[1].arguments.config
    assert (config.ensemble.members, config.env_args) == (3, (("size", "6"),))
    assert [trial.name for trial in programs[1].trials] == ["lr=1e-3", "lr=2e-3"]
    assert programs[1].trials[1].arguments.logdir == "here/ensemble.members=3,env.size=6/lr=2e-3"
    assert programs[1].trials[1].arguments.config == config
    assert describe(programs).endswith(
        "8 trials in 4 programs, one after the other, since ensemble.members, env.size set what is compiled"
    )


def test_trials_that_share_nothing_are_ordinary_runs():
    one, other = planned("--sweep", "preset=tiny,micro")
    assert (one.name, one.trials[0].name, one.arguments.sweep) == ("preset=tiny", "", ())
    assert other.arguments == dataclasses.replace(parse([*HERE, "--preset", "micro"]), logdir="here/preset=micro")


def test_random_search_draws_what_it_is_asked_for():
    words = [
        "--sweep",
        "lr=log:1e-4:1e-2",
        "--sweep",
        "horizon=uniform:5:8",
        "--sweep",
        "agc=0.1,0.3",
        "--trials",
        "40",
    ]
    programs = planned(*words)
    trials = [trial for program in programs for trial in program.trials]
    rates = np.array([trial.arguments.hypers.lr for trial in trials])
    assert len(trials) == 40 and rates.min() > 9e-5 and rates.max() < 1.1e-2
    assert 0.3 < (rates < 1e-3).mean() < 0.7, "half of a logarithmic range lies below its geometric mean"
    assert {program.arguments.config.horizon for program in programs} == {5, 6, 7, 8}
    assert {trial.arguments.hypers.agc for trial in trials} == {0.1, 0.3}
    for program in programs:
        for trial in program.trials:
            assert trial.settings["lr"] == f"{trial.arguments.hypers.lr:.3g}"
            assert trial.settings["horizon"] == str(program.arguments.config.horizon)


def test_random_search_tries_the_same_again():
    first, again = (planned("--sweep", "lr=log:1e-4:1e-2", "--trials", "3") for _ in range(2))
    assert first == again and len(first[0].trials) == 3


def test_a_bare_name_is_one_setting():
    names = [name for name in flat(dataclasses.asdict(parse([]).config)) if name in HYPERS]
    assert not names and len(HYPERS) == len(dataclasses.fields(Hypers))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--sweep", "lr"], "must be NAME=VALUE"),
        (["--sweep", "lr="], "must be NAME=VALUE"),
        (["--sweep", "tasker_shar=1"], "did you mean tasker_share"),
        (["--sweep", "qqqqqq=1"], "there is no setting 'qqqqqq'"),
        (["--sweep", "lr=1e-3,,1e-4"], "empty or given twice"),
        (["--sweep", "lr=1e-3,1e-3"], "empty or given twice"),
        (["--sweep", "env=a:b,a_b"], "two values would have one folder's name"),
        (["--sweep", "lr=1e-3", "--sweep", "hypers.lr=1e-4"], "a setting twice"),
        (["--sweep", "lr=log:1e-4:1e-2"], "with --trials N"),
        (["--sweep", "lr=log:0:1", "--trials", "2"], "0 < LOW < HIGH"),
        (["--sweep", "lr=uniform:1", "--trials", "2"], "0 < LOW < HIGH"),
        (["--sweep", "lr=uniform:-1e308:1.7e308", "--trials", "2"], "0 < LOW < HIGH"),
        (["--sweep", "lr=1e-3", "--trials", "-1"], "0 to 10,000"),
        (["--sweep", "lr=log:1e-4:1e-2", "--trials", "1000000000"], "0 to 10,000"),
        (["--trials", "3"], "name a setting"),
        (["--sweep", "lr=1e-3,-1"], "--hypers.lr must be finite"),
        (["--sweep", "ensemble.members=3,1"], "at least 2"),
        (["--sweep", "lr=1,2,3", "--seeds", "5000"], "15,000 agents|are more than"),
    ],
)
def test_what_cannot_be_swept_is_said_in_one_line(words, says):
    with pytest.raises(ConfigError, match=says) as error:
        planned(*words)
    assert "\n" not in str(error.value)


# ---- places ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_every_trial_has_all_seeds_in_rounds(count):
    """Two seeds of three trials, two places in each process."""
    each = [assign([4, 5], 2, Processes(index, count), trials=range(3)) for index in range(count)]
    pairs = [(trial, seed) for trial in range(3) for seed in (4, 5)]
    assert [p for round in each[0] for p in zip(round.trials, round.seeds, strict=True)] == pairs
    trained = [list(zip(r.mine_trials, r.mine, strict=True)) for rounds in zip(*each, strict=True) for r in rounds]
    wanted = [pairs[i : i + 2] for i in range(0, 6, 2)]
    assert trained == wanted + [[(2, 5), (2, 5)]] * (len(trained) - 3)  # what is left over is padding
    first = each[0][0]
    assert [first.slots(trial) for trial in range(3)] == ([[0, 1], [], []] if count == 1 else [[0, 1], [2, 3], []])


def test_hyperparameters_of_places():
    rates = [Hypers(lr=0.1), Hypers(lr=0.2)]
    round = Round([1, 2, 1], [1, 2, 1, 1], [0, 0, 1], [0, 0, 1, 1])
    np.testing.assert_allclose(round.hypers(rates).lr, [0.1, 0.1, 0.2, 0.2], rtol=1e-6)
    np.testing.assert_allclose(Round([1], [1, 1]).hypers(rates[:1]).lam, [0.95, 0.95], rtol=1e-6)
