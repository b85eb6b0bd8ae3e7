"""elliptical.py against closed forms and plain numpy: visits, the moving average, actions, what stays."""

import dataclasses

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from envs.environment import ActionSpace, ObsSpace
from stages.cli.validate import validate
from stages.config import Config, ConfigError, EnsembleConfig, Hypers, ModelConfig
from stages.decode import decode_mean
from stages.elliptical import PASSES, EllipticalBonus
from stages.intrinsic import VisitCounts
from stages.presets import preset
from stages.replay import Row
from stages.rssm import Latent
from stages.world_model import WorldModel, action_vector
from tests.conftest import arbitrary, to_device, tree_equal

n, A, P, W, STORED, RIDGE = 16, 3, 7, 24, 40, 0.1
USED = slice(n // 4, None)  # pairs that were drawn uniformly
SIZES = ModelConfig(deter=2, stoch=2, classes=2, units=8, hidden=4, blocks=1, layers=1)
OBS = ObsSpace((P,), "binary")
CONFIG = Config(mode="explore", model=SIZES, ensemble=EnsembleConfig(frequencies=W, updates=1, target="stoch"))
HYPERS = Hypers(elliptical_ridge=RIDGE, fourier_sharpness=3.0, action_scale=2.0)
KINDS = {
    "discrete": ActionSpace("discrete", A),
    "continuous": ActionSpace("continuous", A),
    "several": ActionSpace.of_choices(2, 2),
}


@pytest.fixture(scope="module", params=KINDS)
def case(request):
    """(actions, model, bonus, pairs, compiled update, compiled bonus)."""
    actions, rng = KINDS[request.param], np.random.default_rng(0)
    model = arbitrary(lambda: WorldModel(CONFIG, OBS, actions, key=jr.key(0)))
    bonus = EllipticalBonus(CONFIG, OBS, actions, key=jr.key(1))
    never, is_last = np.zeros((2, n), bool), np.zeros((2, n), bool)
    is_last[0, 9] = True  # no action was chosen there
    numbers = actions.kind == "continuous"
    options = 2 if actions.choices else A
    shape = (2, n, *actions.struct.shape)
    action = rng.normal(size=shape).astype(np.float32) if numbers else rng.integers(0, options, shape)
    pairs = Row(
        to_device(rng.integers(0, 2, (2, n, P)).astype(OBS.dtype)),
        to_device(action, actions.struct.dtype),
        jnp.zeros((2, n)),
        to_device(never),
        to_device(is_last),
        to_device(never),
        to_device(rng.normal(size=(2, n, 2)), jnp.float32),
        to_device(rng.integers(0, 2, (2, n, 2)), jnp.uint8),
    )
    update = jax.jit(lambda bonus, pairs: bonus.update(bonus.init_opt_state(HYPERS), model, pairs, COUNTS, HYPERS))
    return actions, model, bonus, pairs, update, jax.jit(lambda bonus, *about: bonus(model, *about, HYPERS))


COUNTS = VisitCounts(to_device(STORED), jnp.eye(A), None)


def about(model, pairs):
    """Features and action vectors of the first rows."""
    latent = Latent.stored(pairs.deter[0], pairs.stoch[0], 2, jnp.float32)
    return latent.feat, action_vector(model, pairs.action[0])


def slow_phi(actions, model, bonus, feat, action):
    """Features [n, 2 W] in float64, and which action [n, U]."""
    stoch = feat[..., 2:].reshape(*feat.shape[:-1], 2, 2)
    seen = np.asarray(decode_mean(model.decoder, Latent(feat[..., :2], stoch)), np.float64)
    seen = seen * np.sqrt(P) / np.sqrt((seen**2).sum(-1, keepdims=True) + 0.01)
    chosen = np.asarray(action, np.float64)
    if actions.kind != "discrete":
        seen = np.concatenate([seen, 2 * chosen / np.maximum(1, np.abs(chosen))], -1)
        chosen = np.ones((len(seen), 1))
    angle = 3.0 * seen @ np.asarray(bonus.frequencies, np.float64) / np.sqrt(seen.shape[-1])
    return np.concatenate([np.sin(angle), np.cos(angle)], -1) / np.sqrt(W), chosen


def slow_bonus(phi, chosen, moments):
    """ridge phi' A^-1 phi, A = moments + ridge I, one row after the other."""
    matrices = [moment + RIDGE * np.eye(2 * W) for moment in moments]
    return np.array([RIDGE * p @ np.linalg.solve(matrices[c.argmax()], p) for p, c in zip(phi, chosen, strict=True)])


def moments_of(phi, chosen, counts):
    return np.einsum("n,nu,nv,nw->uvw", counts[USED], chosen[USED], phi[USED], phi[USED]) / (n - n // 4)


def test_nothing_is_known_before_the_first_row(case):
    _, model, bonus, pairs, update, pay = case
    np.testing.assert_allclose(pay(bonus, *about(model, pairs)), 1, rtol=1e-5)
    learned, _, first = update(bonus, pairs)
    np.testing.assert_allclose(first, 1, rtol=1e-5)
    untrained = learned.reinitialize(CONFIG, OBS, case[0], key=jr.key(5))
    np.testing.assert_allclose(pay(untrained, *about(model, pairs)), 1, rtol=1e-5)
    assert tree_equal(untrained.frequencies, bonus.frequencies)


def test_the_bonus_is_the_quadratic_form_of_the_rows_in_which_an_action_was_chosen(case):
    actions, model, bonus, pairs, update, pay = case
    learned, state, _ = update(bonus, pairs)
    phi, chosen = slow_phi(actions, model, bonus, *about(model, pairs))
    np.testing.assert_allclose((phi**2).sum(-1), 1)
    counts = np.arange(n) != 9
    expected = slow_bonus(phi, chosen, STORED * moments_of(phi, chosen, counts))
    np.testing.assert_allclose(pay(learned, *about(model, pairs)), expected, rtol=1e-3, atol=1e-4)
    assert expected[9] > expected[10:].max()  # the row that taught nothing
    assert jax.tree.leaves(state) == []


def test_the_average_moves_at_the_rate_of_its_passes(case):
    actions, model, bonus, pairs, update, pay = case
    other = jax.tree.map(lambda x: jnp.roll(x, 5, 1), pairs)
    learned, _, _ = update(update(bonus, pairs)[0], other)
    counts, rate = np.arange(n) != 9, (n - n // 4) / (PASSES * STORED)
    phi, chosen = slow_phi(actions, model, bonus, *about(model, pairs))
    first = moments_of(phi, chosen, counts)
    second = moments_of(*(np.roll(x, 5, 0) for x in (phi, chosen, counts)))
    moments = ((1 - rate) * rate * first + rate * second) / (1 - (1 - rate) ** 2)
    expected = slow_bonus(phi, chosen, STORED * moments)
    np.testing.assert_allclose(pay(learned, *about(model, pairs)), expected, rtol=1e-3, atol=1e-4)


def test_after_n_visits_of_one_pair_the_bonus_is_ridge_by_n_and_ridge(case):
    actions, model, bonus, pairs, update, pay = case
    same = jax.tree.map(lambda x: jnp.broadcast_to(x[:, :1], x.shape), pairs)
    learned, _, _ = update(bonus, same)
    feat, action = about(model, same)
    np.testing.assert_allclose(pay(learned, feat, action), RIDGE / (STORED + RIDGE), rtol=1e-2)
    other = jnp.roll(action, 1, -1)
    if actions.kind == "discrete":  # an action that was never chosen there is as new as ever
        np.testing.assert_allclose(pay(learned, feat, other), 1, rtol=1e-4)
    else:
        assert (np.asarray(pay(learned, feat, other)) > 0.1).all()


def test_nothing_of_the_bonus_moves_the_model(case):
    _, model, bonus, pairs, update, _ = case
    learned, feat_action = update(bonus, pairs)[0], about(case[1], pairs)
    grads = jax.jit(jax.grad(lambda model: learned(model, *feat_action, HYPERS).sum()))(model)
    assert all((x == 0).all() for x in jax.tree.leaves(grads))
    slope = jax.jit(jax.grad(lambda feat: learned(model, feat, feat_action[1], HYPERS).sum()))(feat_action[0])
    np.testing.assert_array_equal(slope, 0)


def test_it_is_refused_where_nothing_would_learn():
    config, hypers = preset("tiny", "explore")
    elliptical = dataclasses.replace(config, explorer_reward="elliptical")
    validate(elliptical, hypers)
    without = dataclasses.replace(elliptical, ensemble=dataclasses.replace(config.ensemble, updates=0))
    with pytest.raises(ConfigError, match=r"--ensemble\.updates 1 or more"):
        validate(without, hypers)
    with pytest.raises(ConfigError, match="explore or mix"):
        validate(dataclasses.replace(elliptical, mode="task"), hypers)
