"""encode.py: every kind of observation, the network it picks, and both networks against plain numpy.

Axes: T, B leading, E embed, H, W, C board.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from envs.environment import ObsSpace
from stages import encode
from stages.config import ModelConfig
from stages.encode import ConvEncoder, MLPEncoder
from tests.by_hand import conv, norm_silu
from tests.conftest import observations, scrambled
from tests.programs import in_one_program

MODEL = ModelConfig(units=6, depth=2, layers=3)
FLOAT = jnp.dtype(jnp.float32)
close = chex.assert_trees_all_close

# space, what the networks see of it, the network it picks, embedding's size
SPACES = [
    (ObsSpace((5,), "real"), (5,), MLPEncoder, 6),
    (ObsSpace((), "real"), (), MLPEncoder, 6),
    (ObsSpace((4, 6), "real"), (4, 6), MLPEncoder, 6),
    (ObsSpace((8, 8, 1), "real"), (8, 8, 1), ConvEncoder, 4 * 4 * 4),
    (ObsSpace((7,), "binary"), (7,), MLPEncoder, 6),
    (ObsSpace((10, 5), "binary"), (10, 5), MLPEncoder, 6),
    (ObsSpace((10, 10, 4), "binary"), (10, 10, 4), ConvEncoder, 5 * 5 * 4),
    (ObsSpace((13, 13, 2), "binary"), (13, 13, 2), ConvEncoder, 4 * 4 * 6),
    (ObsSpace((3, 5, 2), "binary"), (3, 5, 2), ConvEncoder, 3 * 5 * 4),  # too small to pool
    (ObsSpace((64, 64, 3), "image"), (64, 64, 3), ConvEncoder, 4 * 4 * 8),
    (ObsSpace((3,), "categorical", 5), (3, 5), MLPEncoder, 6),
    (ObsSpace((), "categorical", 7), (7,), MLPEncoder, 6),
    (ObsSpace((4, 4), "categorical", 3), (4, 4, 3), MLPEncoder, 6),
    (ObsSpace((5, 5, 2), "categorical", 3), (5, 5, 2, 3), ConvEncoder, 5 * 5 * 4),
]
IDS = [f"{s.kind}-{'x'.join(map(str, s.shape)) or 'scalar'}" for s, *_ in SPACES]
every_space = pytest.mark.parametrize("space, features, network, size", SPACES, ids=IDS)


def make(space: ObsSpace, **settings):
    return encode.make_encoder(space, dataclasses.replace(MODEL, **settings), key=jr.key(0))


# ---- the same in numpy, one observation at a time ------------------------------------------------------------------


def numeric_by_hand(space: ObsSpace, obs: np.ndarray) -> np.ndarray:
    """What a network sees of one observation, float64."""
    if space.kind == "categorical":
        seen = np.zeros((*space.shape, space.classes))
        for i in np.ndindex(space.shape):
            seen[(*i, int(obs[i]))] = 1
        return seen
    obs = np.float64(obs)
    if space.kind == "real":
        return np.sign(obs) * np.log(1 + np.abs(obs))
    return obs / 255 - 0.5 if space.kind == "image" else obs


def pool(x):
    """Maximum over what there is of each 2 x 2 window."""
    out = np.zeros((-(-x.shape[0] // 2), -(-x.shape[1] // 2), x.shape[2]))
    for h, w in np.ndindex(out.shape[:2]):
        out[h, w] = x[2 * h : 2 * h + 2, 2 * w : 2 * w + 2].max((0, 1))
    return out


# ---- tests ---------------------------------------------------------------------------------------------------------


@every_space
def test_the_space_picks_the_network_and_the_sizes(space, features, network, size):
    assert encode.preprocessed_shape(space) == features
    assert encode.embed_size(space, MODEL) == size
    encoder = jax.eval_shape(lambda: make(space))
    assert type(encoder) is network
    for lead in [(), (3,), (2, 3)]:
        obs = jax.ShapeDtypeStruct((*lead, *space.shape), space.dtype)
        embed = jax.eval_shape(lambda encoder, obs: encoder(obs, FLOAT), encoder, obs)
        chex.assert_shape(embed, (*lead, size))


@every_space
def test_half_precision_goes_all_the_way(space, features, network, size):
    del features, network, size
    obs = observations(space, (2,))
    assert jax.eval_shape(lambda: make(space)(obs, jnp.dtype(jnp.bfloat16))).dtype == jnp.bfloat16


@pytest.fixture(scope="module")
def preprocessed():
    """What the networks see of three observations of each space, all computed in one program."""
    see = {s: lambda obs, s=s: encode.preprocess_obs(s, obs) for s, *_ in SPACES}
    return in_one_program({s: (see[s], observations(s, (3,))) for s in see})


@every_space
def test_what_the_networks_see(preprocessed, space, features, network, size):
    del network, size
    seen, obs = preprocessed[space], observations(space, (3,))
    chex.assert_shape(seen, (3, *features))
    assert seen.dtype == jnp.float32
    close(seen, np.stack([numeric_by_hand(space, o) for o in np.asarray(obs)]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "space, encoder, network, size",
    [
        (ObsSpace((10, 10, 4), "binary"), "mlp", MLPEncoder, 6),
        (ObsSpace((64, 64, 3), "image"), "mlp", MLPEncoder, 6),
        (ObsSpace((28, 28), "real"), "auto", MLPEncoder, 6),
        (ObsSpace((28, 28), "real"), "conv", ConvEncoder, 4 * 4 * 8),
        (ObsSpace((9, 9), "categorical", 4), "conv", ConvEncoder, 5 * 5 * 4),
        (ObsSpace((9,), "binary"), "conv", MLPEncoder, 6),  # nothing to convolve
        (ObsSpace((), "categorical", 4), "conv", MLPEncoder, 6),
    ],
)
def test_a_network_by_force(space, encoder, network, size):
    settings = dataclasses.replace(MODEL, encoder=encoder)
    assert type(jax.eval_shape(lambda: make(space, encoder=encoder))) is network
    assert encode.embed_size(space, settings) == size
    obs = observations(space, (2,))
    chex.assert_shape(jax.eval_shape(lambda: make(space, encoder=encoder)(obs, FLOAT)), (2, size))


@pytest.mark.parametrize(
    "space, channels",
    [
        (ObsSpace((5, 6), "real"), 1),
        (ObsSpace((5, 6), "categorical", 4), 4),
        (ObsSpace((5, 6, 2), "categorical", 4), 8),
        (ObsSpace((5, 6, 3), "image"), 3),
    ],
)
def test_boards_have_a_channel_axis_last(space, channels):
    assert encode.image_shape(space) == (5, 6, channels)


MLP_SPACES = [
    (ObsSpace((5,), "real"), "auto"),
    (ObsSpace((), "real"), "auto"),
    (ObsSpace((3,), "categorical", 5), "auto"),
    (ObsSpace((5, 4), "binary"), "auto"),
    (ObsSpace((4, 4, 3), "image"), "mlp"),
]
CONV_SPACES = [
    (ObsSpace((10, 10, 4), "binary"), "auto", 3, [True]),
    (ObsSpace((13, 13, 2), "binary"), "auto", 3, [True, True]),
    (ObsSpace((3, 5, 2), "binary"), "auto", 3, [False]),
    (ObsSpace((5, 5, 2), "categorical", 3), "auto", 3, [False]),
    (ObsSpace((28, 28), "real"), "conv", 5, [True, True, True]),
]


@pytest.fixture(scope="module")
def encoded():
    """(network of arbitrary weights, observations, their embeddings) by space, all computed in one program."""
    cases = [*MLP_SPACES, *((space, encoder) for space, encoder, *_ in CONV_SPACES)]
    networks = {space: scrambled(lambda s=space, e=encoder: make(s, encoder=e)) for space, encoder in cases}
    obs = {space: observations(space, (2, 2)) for space in networks}
    calls = {s: (lambda network, obs: network(obs, FLOAT), networks[s], obs[s]) for s in networks}
    return {space: (networks[space], np.asarray(obs[space]), y) for space, y in in_one_program(calls).items()}


@pytest.mark.parametrize("space, encoder", MLP_SPACES)
def test_mlp_encoder_agrees_with_numpy(encoded, space, encoder):
    del encoder
    network, obs, embed = encoded[space]
    assert len(network.mlp.layers) == 3
    for t, b in np.ndindex(2, 2):
        x = numeric_by_hand(space, obs[t, b]).reshape(-1)
        for layer in network.mlp.layers:
            x = x @ np.float64(layer.linear.weight) + np.float64(layer.linear.bias)
            x = norm_silu(x, layer.norm.scale)
        close(embed[t, b], x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("space, encoder, kernel, pools", CONV_SPACES)
def test_conv_encoder_agrees_with_numpy(encoded, space, encoder, kernel, pools):
    del encoder
    network, obs, embed = encoded[space]
    x = numeric_by_hand(space, obs[1, 0]).reshape(encode.image_shape(space))
    for stage, halve in zip(network.stages, pools, strict=True):
        assert len(stage.conv.weight) == kernel
        x = conv(x, stage.conv)
        x = norm_silu(pool(x) if halve else x, stage.norm.scale)
    close(embed[1, 0], x.reshape(-1), rtol=1e-3, atol=1e-3)


def test_an_image_has_the_references_depths():
    stages = jax.eval_shape(lambda: make(ObsSpace((64, 64, 3), "image"), depth=4)).stages
    chex.assert_shape([s.conv.weight for s in stages], [(5, 5, 3, 8), (5, 5, 8, 12), (5, 5, 12, 16), (5, 5, 16, 16)])
