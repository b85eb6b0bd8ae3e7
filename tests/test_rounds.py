"""Rounds: seeds assigned, and the width that fits found, on phases that only pretend to compile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import run
from stages.cli.processes import Processes
from stages.config import Config, ConfigError
from stages.replay import StepCounters
from stages.sweep.rounds import (
    Evaluator,
    Phase,
    Round,
    assign,
    fit_width,
    plan,
    round_width,
    split_chunks,
)
from stages.sweep.sweep import mesh_for
from tests.pretended import STATE, Scored

HELD, MORE = 1000, 500  # bytes of a pretended seed: state, and the rest of what it needs


class Pretended:
    """A phase that needs HELD + MORE bytes a seed and notes what is compiled."""

    def __init__(self, width, compiled):
        self.mesh, self.compiled, self.width = mesh_for(width, jax.devices()), compiled, width
        self.config = Config(steps=30, adapt_steps=12)

    def shapes(self, seeds):
        return jax.ShapeDtypeStruct((seeds, HELD), np.uint8), None

    def min_bytes_per_seed(self, state):
        return 0

    def prepare(self, state, counters, iterations):
        assert state.shape[0] == self.width
        self.compiled.append(self.width)
        return (HELD + MORE) * self.width / self.mesh.size

    def parameters(self, seeds):
        return {"actor": 1}


def pretend():
    """(build, widths compiled so far)."""
    compiled = []
    return lambda width: [Phase(Pretended(width, compiled), 1, 1)], compiled


@pytest.mark.parametrize(
    ("seeds", "devices", "most", "width"),
    [
        *((32, 2, 99, 32), (7, 2, 99, 8), (7, 4, 99, 8), (13, 8, 99, 16), (1, 4, 99, 1), (3, 4, 99, 3)),
        *((110, 2, 24, 22), (110, 2, 25, 22), (110, 1, 24, 22), (7, 2, 7, 4), (7, 2, 6, 4), (7, 4, 6, 4)),
        *((7, 4, 3, 3), (8, 4, 3, 3), (7, 4, 1, 1), (7, 4, 0, 0), (100, 8, 99, 56), (5, 4, float("inf"), 8)),
    ],
)
def test_side_by_side(seeds, devices, most, width):
    assert round_width(seeds, devices, most) == width


def test_side_by_side_fills_all_devices_and_wastes_no_round():
    widths = set()
    for seeds in range(1, 40):
        for devices in range(1, 9):
            for most in range(1, 45):
                width = round_width(seeds, devices, most)
                assert 1 <= width <= most and (width <= devices or width % devices == 0)
                cut = most if most <= devices else most // devices * devices
                assert -(-seeds // width) == max(1, -(-seeds // cut))
                widths.add((width, devices))
    for width, devices in widths:
        assert mesh_for(width, range(devices)).size == min(width, devices)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("width", [1, 4, 16])
def test_every_seed_is_trained_once_in_order(count, width):
    seeds = list(range(5, 16))
    assigned = [assign(seeds, width, Processes(index, count)) for index in range(count)]
    assert [seed for each in assigned[0] for seed in each.seeds] == seeds
    for together in zip(*assigned, strict=True):
        places = [seed for each in together for seed in each.mine]
        assert len(places) == width * count and all(len(each.mine) == width for each in together)
        assert all(each.seeds == together[0].seeds for each in together)
        assert places[: len(together[0].seeds)] == together[0].seeds
        assert set(places) == set(together[0].seeds)


def test_what_fits_is_compiled_once():
    build, compiled = pretend()
    fitted = fit_width(7, jax.devices(), build, lambda: 8 * 1500)
    assert (fitted.width, fitted.need, compiled) == (8, 8 * 1500, [8])


def test_too_many_seeds_are_narrowed_to_what_fits():
    build, compiled = pretend()
    fitted = fit_width(110, jax.devices(), build, lambda: 90_000)  # 60 seeds, or two equal rounds
    assert fitted.width == 56 and fitted.need == 56 * 1500 and fitted.all_need == pytest.approx(110 * 1500)
    assert compiled == [56], "the states of 112 seeds alone take more, so that compiling for them would be in vain"
    build, compiled = pretend()
    assert fit_width(110, jax.devices(), build, lambda: 120_000).width == 56
    assert compiled == [112, 56], "their states fit, but not what is needed in addition"


def test_fewer_seeds_than_devices_where_memory_is_shared():
    build, _ = pretend()
    assert fit_width(110, jax.devices(), build, lambda: 3 * 1500).width == 3
    assert fit_width(110, jax.devices(), build, lambda: 1500).width == 1
    nothing = fit_width(110, jax.devices(), build, lambda: 999)
    assert nothing.width == 0 and nothing.need == 1000


def test_memory_that_shrinks_while_compiling_is_noticed():
    build, _ = pretend()
    room = iter([8 * 1500, 4 * 1500, 4 * 1500, 4 * 1500])
    assert fit_width(8, jax.devices(), build, lambda: next(room)).width == 4


def planned(seeds, allowed, parallel="auto"):
    build, compiled = pretend()
    result = plan(list(range(seeds)), jax.devices(), Processes(), build, parallel=parallel, allowed=allowed)
    return result, compiled


def test_a_sweep_too_big_says_so():
    result, _ = planned(110, 90_000)
    assert len(result.rounds) == 2
    assert result.description == "2 rounds of 56: 110 seeds need 165.0 kB, 90.0 kB are allowed"


def test_a_sweep_that_fits_says_so():
    result, _ = planned(7, 10**9)
    assert [each.seeds for each in result.rounds] == [list(range(7))] and result.rounds[0].mine == [*range(7), 6]
    assert result.description == "seeds side by side: 7; they need 12.0 kB, 1.0 GB are allowed"
    assert result.steps == 30 + 12
    result, _ = planned(7, 0)
    assert result.description.endswith("GB are free")


def test_parallel_is_what_was_asked_for():
    for parallel, width in ((1, 1), (3, 3), (5, 4), (7, 8), (99, 8)):
        result, compiled = planned(7, 10**9, parallel)
        assert compiled == [width] and all(len(each.mine) == width for each in result.rounds)


def test_what_does_not_fit_is_an_error_that_says_what_to_do():
    with pytest.raises(ConfigError, match=r"not even one seed fits: .*--replay.capacity.*--preset"):
        planned(7, 1200)
    with pytest.raises(ConfigError, match=r"--parallel 7 does not fit: .*auto"):
        planned(7, 7 * 1500, parallel=7)
    assert len(planned(7, 7 * 1500)[0].rounds) == 2


def test_accelerators_need_a_seed_on_each():
    class Device:
        platform = "gpu"

    build, _ = pretend()
    with pytest.raises(ConfigError, match=r"needs 6.0 kB, and 5.9 kB are allowed on each device"):
        plan(list(range(8)), [Device()] * 4, Processes(), build, allowed=5900)


class Crowd(Processes):
    """Two processes, of which the other one is made up: it fits `other` seeds."""

    def __init__(self, other):
        super().__init__(0, 2)
        self.other = other

    def exchange(self, word):
        return [word, b"%d" % self.other if word.isdigit() else b"elsewhere"]


def test_processes_agree_on_the_narrowest():
    build, compiled = pretend()
    result = plan(list(range(32)), jax.devices(), Crowd(other=4), build, allowed=10**9)
    assert compiled == [16, 4] and [each.mine for each in result.rounds] == [
        list(range(start, start + 4)) for start in (0, 8, 16, 24)
    ]
    assert result.description.startswith("4 rounds of 8: 32 seeds need") and "in each process" in result.description
    with pytest.raises(ConfigError, match="another process"):
        plan(list(range(32)), jax.devices(), Crowd(other=0), build, allowed=10**9)


def test_a_compiler_that_runs_out_of_memory_means_narrower(monkeypatch):
    build, compiled = pretend()

    def refuse(self, state, counters, iterations):
        compiled.append(self.width)
        if self.width > 8:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: ran out of memory in memory space hbm")
        return 1.0

    monkeypatch.setattr(Pretended, "prepare", refuse)
    assert fit_width(32, jax.devices(), build, lambda: 1e9).width == 8 and compiled == [32, 16, 8]


def after(step):
    """The counters after so many steps."""
    return StepCounters(jnp.int32(step), jnp.int32(0))


def test_evaluations_are_numbered_by_step_and_leave_out_padding():
    evaluate = Evaluator(Round([4, 5], [4, 5, 5, 5]), Processes())
    for step in (0, 7, 3):
        scores = evaluate(Scored(), STATE, after(step))
        np.testing.assert_array_equal(scores.score, [4.5 + step, 5.5 + step])
        np.testing.assert_array_equal(scores.expected, [-4.5 - step, -5.5 - step])


def test_chunks_are_equal_and_cover_the_steps():
    config = run.parse(["--preset", "micro", "--steps", "2000"]).config
    for todo in (1, 7, 100, 1983):
        for points in (1, 3, 20):
            iterations, chunks = split_chunks(config, todo, points)
            steps = iterations * chunks * config.schedule[0]
            assert todo <= steps < todo + config.schedule[0] * (1 + chunks) and chunks <= points
