"""obs_numbers.py: what members read of an observation and are asked about it, against plain numpy.

Axes: T rows, B windows, F feat, A actions.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from envs.environment import ObsSpace
from stages.decode import decode_mean
from stages.encode import preprocess_obs
from stages.ensemble import ensemble_inputs, ensemble_target
from stages.obs_numbers import RunningNormalizer
from stages.rssm import Latent
from tests.conftest import observations
from tests.ensembles import HYPERS, SPACES, A, B, F, T, Y, leveled, made, made_up, model_of


@pytest.mark.parametrize("kind", SPACES)
def test_members_read_the_decoded_observation_and_the_action(kind):
    space = SPACES[kind]
    model, feat, action = model_of(space), jr.normal(jr.key(1), (T, B, F)), jr.normal(jr.key(2), (T, B, A))
    latent = Latent(feat[..., :2], feat[..., 2:].reshape(T, B, 2, 2))
    raw = np.asarray(model.decoder(latent), np.float64)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    powers = np.exp(raw - raw.max(-1, keepdims=True))
    numbers = {
        "real": lambda: raw,
        "binary": lambda: sigmoid(raw),
        "categorical": lambda: powers / powers.sum(-1, keepdims=True),
        "image": lambda: sigmoid(raw) - 0.5,
    }[kind]().reshape(T, B, -1)
    read, bounded = leveled(kind, numbers), 3.0 * np.asarray(action) / np.maximum(1, np.abs(action))
    given = jax.jit(lambda ensemble: ensemble_inputs(ensemble, model, feat, action, HYPERS))
    inputs = given(made_up(space, input="decoded"))
    np.testing.assert_allclose(inputs, np.concatenate([read, bounded], -1), rtol=1e-4, atol=1e-5)
    projected = made_up(space, input="projected", projection=6)
    by_hand = read @ np.asarray(projected.numbers.projection, np.float64) / np.sqrt(read.shape[-1])
    inputs = given(projected)
    np.testing.assert_allclose(inputs, np.concatenate([by_hand, bounded], -1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jax.jit(decode_mean)(model.decoder, latent), numbers, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", SPACES)
def test_the_projected_target_is_a_fixed_product_with_the_next_observation(kind):
    space, model = SPACES[kind], model_of(SPACES[kind])
    ensemble, obs = made(space, target="projected", projection=6), observations(space, (T, B))
    target = ensemble_target(ensemble, model, None, obs)
    assert target.dtype == jnp.float32
    numbers = np.asarray(preprocess_obs(space, obs), np.float64).reshape(T, B, -1)
    by_hand = leveled(kind, numbers) @ np.asarray(ensemble.numbers.projection, np.float64) / np.sqrt(numbers.shape[-1])
    np.testing.assert_allclose(target, by_hand, rtol=1e-4, atol=1e-5)
    assert abs(np.std(np.asarray(ensemble.numbers.projection)) - 1) < 0.2


@pytest.mark.parametrize("size", [4, 100])
def test_a_single_cell_is_as_loud_in_every_grid(size):
    space = ObsSpace((size,), "binary")
    ensemble = made(space, target="projected")
    np.testing.assert_allclose(jnp.square(ensemble.numbers.normalize(space, jnp.eye(size))).mean(-1), 1, rtol=0.02)
    np.testing.assert_array_equal(ensemble.numbers.normalize(space, jnp.zeros(size)), 0)


def test_real_observations_are_standardised_by_what_was_seen():
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(300, 40, 2)) * [0.07, 30.0] + [0.0, -400.0]
    standard = RunningNormalizer.zero(2)
    np.testing.assert_array_equal(standard(jnp.float32(seen[0])), np.float32(seen[0]))
    mean, square = np.zeros(2), np.zeros(2)
    follow = jax.jit(lambda standard, x: standard.updated(x))
    for batch in seen:
        standard = follow(standard, jnp.float32(batch))
        mean, square = 0.99 * mean + 0.01 * batch.mean(0), 0.99 * square + 0.01 * (batch**2).mean(0)
    mean, square = (x / (1 - 0.99**300) for x in (mean, square))
    by_hand = (seen[0] - mean) / np.sqrt(square - mean**2 + 1e-4)
    np.testing.assert_allclose(standard(jnp.float32(seen[0])), by_hand, rtol=0.01, atol=0.01)
    np.testing.assert_allclose(by_hand.std(0), 1, atol=0.3)


def test_input_and_target_share_one_projection_of_a_size_of_its_own():
    both = made_up(SPACES["image"], input="projected", target="projected", projection=6, prior_layers=1)
    pixels = np.prod(SPACES["image"].shape)
    assert both.numbers.projection.shape == (pixels, 6)
    for heads in (both.members, both.prior):
        assert heads.module.mlp.layers[0].linear.weight.shape[1] == 6 + A and heads.module.out.weight.shape[2] == 6
    # The target's size is not the projection's where members only read it.
    alone = made_up(SPACES["image"], input="projected", target="probs", projection=6)
    assert alone.numbers.projection.shape == (pixels, 6) and alone.members.module.out.weight.shape[2] == Y
