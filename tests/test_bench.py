"""What the benches count: matrix products by hand, against small hand-computed pieces and against the traced update."""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "bench"))  # run by hand, so not a package

import deepsea
import flops
import made_up
import settings
import sizes
import suites

from envs.environment import ActionSpace, DictSpace, ObsSpace
from stages.cli.parse import parse
from stages.config import EnsembleConfig, ModelConfig, ReplayConfig
from stages.fast import blocks
from stages.fast import scan as fast_scan
from stages.networks.convolution import Conv
from stages.networks.layers import BlockLinear, Linear
from stages.presets import PRESETS
from tests.corridor import Corridor

# Widths large enough for sums taken as products, and the sampler's (K - 1 of each class), to stay small beside layers.
MODEL = ModelConfig(deter=128, blocks=4, hidden=128, units=128, stoch=4, classes=4, bins=63)


def small(mode: str):
    """A configuration that traces in a second."""
    config, hypers = made_up.configuration("micro", mode)
    replay = ReplayConfig(batch_size=4, batch_length=16, capacity=64)
    ensemble = EnsembleConfig(members=3)
    return dataclasses.replace(config, model=MODEL, horizon=10, replay=replay, ensemble=ensemble), hypers


def grad_of_sum(layer, x):
    """Gradients of a layer's summed squared outputs with respect to its weights and its input."""
    return jax.grad(lambda layer, x: jnp.square(layer(x)).sum(), argnums=(0, 1))(layer, x)


def shaped(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_linear_by_hand():
    layer = jax.eval_shape(lambda: Linear(3, 5, key=jr.key(0)))
    forward, bias = 2 * 7 * 3 * 5, 2 * 7 * 5  # the bias' gradient is a product with ones
    assert flops.executed(lambda layer, x: layer(x), layer, shaped(7, 3)).products == forward
    assert flops.executed(grad_of_sum, layer, shaped(7, 3)).products == 3 * forward + bias
    assert flops.Part("one layer", (3 * 5,), 7, 7).flop == 3 * forward
    assert flops.Part("first layer", (3 * 5,), 7, 7, into=False).flop == 2 * forward


def test_gradient_that_nobody_asks_for_is_not_counted():
    layer = jax.eval_shape(lambda: Linear(3, 5, key=jr.key(0)))
    weights_only = lambda layer, x: grad_of_sum(layer, x)[0]
    assert flops.executed(weights_only, layer, shaped(7, 3)).products == 2 * (2 * 7 * 3 * 5) + 2 * 7 * 5


def test_block_linear_by_hand():
    layer = jax.eval_shape(lambda: BlockLinear(8, 12, 4, key=jr.key(0)))
    assert flops.executed(lambda layer, x: layer(x), layer, shaped(7, 4, 2)).products == 2 * 7 * 8 * 12 // 4


def test_library_convolution_by_hand():
    layer = jax.eval_shape(lambda: Conv(3, 5, 3, key=jr.key(0)))
    found = flops.executed(lambda layer, x: layer._library(x), layer, shaped(2, 6, 4, 3))
    assert found.products == 2 * (2 * 6 * 4 * 5) * (3 * 3 * 3)


def test_scan_counts_its_length_and_cond_its_dearest_branch():
    weight = shaped(4, 4)
    looped = lambda w: jax.lax.scan(lambda x, _: (x @ w, None), jnp.ones((2, 4)), length=10)[0]
    assert flops.executed(looped, weight).products == 10 * (2 * 2 * 4 * 4)
    either = lambda w: jax.lax.cond(w[0, 0] > 0, lambda w: w @ w, lambda w: w, w)
    assert flops.executed(either, weight).products == 2 * 4**3


def test_results_of_all_else():
    found = flops.executed(lambda x: jnp.exp(x) + x, shaped(3, 5))
    assert found == flops.Count(products=0, elements=30)


def test_stack_by_hand():
    assert flops.stack(50, 64, 3) == (50 * 64, 64 * 64, 64 * 64)
    assert flops.stack(192, 64, 1, 255) == (192 * 64, 64 * 255)


OWN = EnsembleConfig(
    members=3, input="decoded", target="projected", prior_layers=1, updates=2, batch_size=64, units=128
)


CASES = [("task", None)] + [(mode, sizes) for mode in ("explore", "mix") for sizes in (None, OWN)]
CASES.append(("explore", dataclasses.replace(OWN, input="projected")))


@pytest.mark.parametrize(("mode", "ensemble"), CASES)
def test_traced_update_executes_what_it_needs_and_little_more(mode, ensemble):
    config, hypers = small(mode)
    config = dataclasses.replace(config, ensemble=ensemble or config.ensemble)
    found = flops.executed_update(config, hypers, made_up.Vector()).products
    # Beyond need, on purpose: the actor twice in imagination, all H + 1 states and all T rows read (as the reference
    # does), the posterior's steps once more for their weights' gradient (stages/fast/scan.py), and when exploring an
    # ensemble that learns there twice on replayed rows, for its loss and for the reward.
    parts = flops.parts(config, sizes.OBS, sizes.ACTIONS, reference=True)
    again = ("recurrent step", "posterior") + (() if config.ensemble.updates else ("ensemble, replayed",))
    twice = [dataclasses.replace(part, backward=0).flop for part in parts if part.name in again]
    counted = sum(part.flop for part in parts) + sum(twice)
    # What is left is under 2 %: sums taken as products (norms, biases, softmax, values of bins, drawing classes).
    assert flops.needed(config, sizes.OBS, sizes.ACTIONS) < counted < found < 1.02 * counted


def test_layers_with_their_own_gradients_count_once():
    step = lambda w, h, x, _: (jnp.tanh(h @ w + x),) * 2
    scan = lambda w, xs: fast_scan.scan(step, w, jnp.zeros((2, 4)), xs, None)[1]
    each, steps = 2 * 2 * 4 * 4, 10
    given = (shaped(4, 4), shaped(steps, 2, 4))
    assert flops.executed(scan, *given).products == steps * each
    # The states' gradient, the weights' at once, and for that the steps evaluated once more.
    grad = jax.grad(lambda *given: jnp.square(scan(*given)).sum(), argnums=(0, 1))
    assert flops.executed(grad, *given).products == 4 * steps * each

    loss = lambda w, frozen, x: (jnp.square(x @ w).sum(), None)
    total = lambda w, xs: blocks.sum_over(loss, w, None, xs)[0]
    given = (shaped(4, 4), shaped(3, 2, 4))
    assert flops.executed(jax.grad(total), *given).products == 3 * 2 * each


@pytest.mark.parametrize("size, gflop", [("micro", 1.03366656), ("1m", 29.021569024), ("12m", 428.645810176)])
def test_reference_way_is_what_the_reference_executes(size, gflop):
    # Its update traced and counted with this counter (reference.py): the same to the last digit.
    config, _ = made_up.configuration(size, "task")
    assert flops.needed(config, sizes.OBS, sizes.ACTIONS, reference=True) / 1e9 == pytest.approx(gflop, rel=1e-12)


@pytest.mark.parametrize("size", list(sizes.MODELS))
def test_sizes_are_the_presets(size):
    model = dataclasses.asdict(PRESETS[size.removesuffix("-long")][0].model)
    assert sizes.MODELS[size].items() <= model.items()
    config, _ = made_up.configuration(size, "task")
    assert (config.replay.batch_size, config.replay.batch_length) == sizes.REPLAYS[size]
    assert config.horizon == sizes.HORIZONS[size]


def test_made_up_environment_keeps_the_rules():
    env = made_up.Vector()
    state, step = env.reset(jr.key(0))
    assert bool(step.is_first) and step.obs.shape == env.obs_space.shape
    for now in range(1, sizes.EPISODE + 1):
        state, step = env.step(jr.key(now), state, jnp.int32(0))
        assert not step.is_first and bool(step.is_last) == (now == sizes.EPISODE)


# ---- Deep Sea by size ----------------------------------------------------------------------------------------------


def test_the_exponent_of_n_is_that_of_a_power_law_and_of_the_published_table():
    sizes = [10, 20, 40]
    assert deepsea.exponent(sizes, np.array([3 * n**2.5 for n in sizes])) == pytest.approx(2.5)
    published = np.polyfit(np.log([10, 20, 30, 40]), np.log([43, 165, 404, 805]), 1)[0]
    assert deepsea.exponent(list(deepsea.TABULAR), np.array(list(deepsea.TABULAR.values()))) == pytest.approx(published)


def test_growth_counts_seeds_that_never_came_as_later_than_all_others():
    exact = [np.full(8, 100.0), np.full(8, 400.0)]
    assert deepsea.growth([10, 20], exact) == "2.00 (2.00 to 2.00)"
    late = [exact[0], np.array([400.0] * 5 + [np.inf] * 3)]
    assert deepsea.growth([10, 20], late).startswith("2.00 (2.00 to inf")
    assert deepsea.growth([10, 20], [exact[0], np.array([400.0] * 3 + [np.inf] * 5)]).startswith("not defined")


def test_psi_is_the_share_of_seeds_per_step_of_the_way():
    """All of 12: the lower bound b of the share has b^12 = 0.05. None: nothing is known of it."""
    assert deepsea.psi(30, 12, 12) == f"N = 30: 12 of 12, 1.000 (at least {0.05 ** (1 / 12 / 30):.3f})"
    assert deepsea.psi(10, 4, 8).startswith(f"N = 10: 4 of 8, {0.5**0.1:.3f} ")
    assert deepsea.psi(10, 0, 8) == "N = 10: 0 of 8, 0.000 (at least 0.000)"


# ---- settings ------------------------------------------------------------------------------------------------------


def test_every_setting_of_the_table_is_one_that_runs():
    for task in settings.TASKS:
        parse(settings.words(task, "base").split())
    plain = parse(settings.words("deepsea10", "base").split())
    for name in settings.SETTINGS.keys() - {"base"}:
        asked = parse(settings.words("deepsea10", name).split())
        assert asked.config.mode == ("random" if name == "random" else "explore"), name
        assert asked.flat != plain.flat, f"{name} is what the preset has"


# ---- suites --------------------------------------------------------------------------------------------------------


def test_suites_say_what_is_seen_and_done():
    env = Corridor()
    assert (suites.entries_of(env), suites.actions_of(env)) == ("4 real", "2")
    entries = {"board": ObsSpace((6, 6, 3), "categorical", 11), "time": ObsSpace((), "real")}
    several = Corridor(obs_space=DictSpace(entries), action_space=ActionSpace.of_choices(3, 5))
    assert (suites.entries_of(several), suites.actions_of(several)) == ("6 x 6 x 3 categorical of 11, 1 real", "3 x 5")
    assert suites.actions_of(Corridor(action_space=ActionSpace("continuous", 2))) == "2 continuous"


def test_suites_step_with_random_actions_through_episodes():
    env, count = Corridor(), 64
    first = jax.vmap(env.reset)(jr.split(jr.key(0), count))
    (cell, time), timestep = jax.jit(suites.stepping(env, count, 9))(first, jr.key(1))
    ends = (cell == 3) | (time == 6)
    np.testing.assert_array_equal(timestep.is_last, ends)
    assert len(set(time.tolist())) > 2 and len(set(cell.tolist())) > 2  # episodes end at different times
