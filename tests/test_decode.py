"""decode.py: outputs for every kind of observation, both networks and all losses against plain numpy.

Axes: T, B leading, D deter, S categoricals, K classes, H, W, C board.
"""

import dataclasses

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from envs.environment import ObsSpace
from stages import decode
from stages.config import ModelConfig
from stages.decode import ConvDecoder, MLPDecoder
from stages.encode import image_shape, preprocessed_shape
from stages.rssm import Latent
from tests.by_hand import conv, dense, linear, norm_silu, sigmoid
from tests.conftest import observations, scrambled
from tests.programs import in_one_program

D, S, K = 16, 3, 4
MODEL = ModelConfig(deter=D, stoch=S, classes=K, units=6, depth=2, layers=3)
close = chex.assert_trees_all_close

SPACES = [
    (ObsSpace((5,), "real"), MLPDecoder),
    (ObsSpace((), "real"), MLPDecoder),
    (ObsSpace((4, 6), "real"), MLPDecoder),
    (ObsSpace((8, 8, 1), "real"), ConvDecoder),
    (ObsSpace((7,), "binary"), MLPDecoder),
    (ObsSpace((), "binary"), MLPDecoder),
    (ObsSpace((10, 5), "binary"), MLPDecoder),
    (ObsSpace((10, 10, 4), "binary"), ConvDecoder),
    (ObsSpace((13, 13, 2), "binary"), ConvDecoder),
    (ObsSpace((3, 5, 2), "binary"), ConvDecoder),
    (ObsSpace((64, 64, 3), "image"), ConvDecoder),
    (ObsSpace((3,), "categorical", 5), MLPDecoder),
    (ObsSpace((), "categorical", 7), MLPDecoder),
    (ObsSpace((4, 4), "categorical", 3), MLPDecoder),
    (ObsSpace((5, 5, 2), "categorical", 3), ConvDecoder),
]
IDS = [f"{s.kind}-{'x'.join(map(str, s.shape)) or 'scalar'}" for s, _ in SPACES]
every_space = pytest.mark.parametrize("space, network", SPACES, ids=IDS)


def latents(*lead: int, seed: int = 0) -> Latent:
    """Random states."""
    rng = np.random.default_rng(seed)
    deter, stoch = rng.normal(size=(*lead, D)), np.eye(K)[rng.integers(0, K, (*lead, S))]
    return Latent(jnp.asarray(deter, jnp.float32), jnp.asarray(stoch, jnp.float32))


def make(space: ObsSpace, **settings):
    return decode.make_decoder(space, dataclasses.replace(MODEL, **settings), key=jr.key(0))


def table(space: ObsSpace, weight=None, bias=0.0) -> MLPDecoder:
    """A decoder without hidden layers, random ones unless told: losses by themselves."""
    model = dataclasses.replace(MODEL, units=MODEL.feat, layers=0)
    decoder = jax.eval_shape(lambda: MLPDecoder(space, model, key=jr.key(0)))
    out = decoder.head.out
    if weight is None:
        weight = 0.5 * np.random.default_rng(3).normal(size=out.weight.shape)
    fill = lambda x, value: jnp.broadcast_to(jnp.asarray(value, jnp.float32), x.shape)
    new = fill(out.weight, weight), fill(out.bias, np.ravel(bias))
    return eqx.tree_at(lambda d: (d.head.out.weight, d.head.out.bias), decoder, new)


# ---- the same in numpy, one sample at a time, float64 --------------------------------------------------------------


def grown(x, height: int, width: int):
    """Every pixel four times, as far as there is room."""
    out = np.zeros((height, width, x.shape[-1]))
    for h, w in np.ndindex(height, width):
        out[h, w] = x[h // 2, w // 2]
    return out


def loss_by_hand(space: ObsSpace, raw, obs) -> float:
    """Loss of one observation, added up entry by entry."""
    total = 0.0
    for i in np.ndindex(space.shape):
        if space.kind == "categorical":
            logits = np.float64(raw[i])
            total -= logits[int(obs[i])] - np.log(np.exp(logits).sum())
        elif space.kind == "binary":
            total -= np.log(sigmoid(raw[i]) if obs[i] else 1 - sigmoid(raw[i]))
        elif space.kind == "image":
            total += (sigmoid(raw[i]) - float(obs[i]) / 255) ** 2
        else:
            total += (float(raw[i]) - np.sign(obs[i]) * np.log(1 + abs(float(obs[i])))) ** 2
    return total


# ---- networks ------------------------------------------------------------------------------------------------------


@every_space
def test_outputs_have_the_observations_shape(space, network):
    decoder = jax.eval_shape(lambda: make(space))
    assert type(decoder) is network
    for lead in [(), (3,), (2, 3)]:
        raw = jax.eval_shape(lambda decoder, latent: decoder(latent), decoder, latents(*lead))
        chex.assert_shape(raw, (*lead, *preprocessed_shape(space)))
        loss = jax.eval_shape(decode.recon_loss, decoder, latents(*lead), observations(space, lead))
        chex.assert_shape(loss, lead)


@every_space
def test_outputs_of_half_precision_are_float32(space, network):
    del network
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), latents(2))
    assert jax.eval_shape(lambda: make(space)(half)).dtype == jnp.float32


@pytest.mark.parametrize(
    "space, encoder, network",
    [
        (ObsSpace((10, 10, 4), "binary"), "mlp", MLPDecoder),
        (ObsSpace((28, 28), "real"), "auto", MLPDecoder),
        (ObsSpace((28, 28), "real"), "conv", ConvDecoder),
        (ObsSpace((9, 9), "categorical", 4), "conv", ConvDecoder),
        (ObsSpace((9,), "binary"), "conv", MLPDecoder),
    ],
)
def test_a_network_by_force(space, encoder, network):
    decoder = jax.eval_shape(lambda: make(space, encoder=encoder))
    assert type(decoder) is network
    raw = jax.eval_shape(lambda decoder, latent: decoder(latent), decoder, latents(2))
    chex.assert_shape(raw, (2, *preprocessed_shape(space)))


MLP_SPACES = [ObsSpace((2, 3), "real"), ObsSpace((2,), "categorical", 3), ObsSpace((), "real")]
CONV_SPACES = [
    (ObsSpace((10, 10, 4), "binary"), "auto", 3, [(10, 10), (5, 5)]),
    (ObsSpace((13, 13, 2), "binary"), "auto", 3, [(13, 13), (7, 7), (4, 4)]),
    (ObsSpace((3, 5, 2), "binary"), "auto", 3, [(3, 5)]),
    (ObsSpace((5, 5, 2), "categorical", 3), "auto", 3, [(5, 5)]),
    (ObsSpace((28, 28), "real"), "conv", 5, [(28, 28), (14, 14), (7, 7), (4, 4)]),
]


@pytest.fixture(scope="module")
def decoded():
    """(decoder of arbitrary weights, its outputs) by space, all computed in one program."""
    cases = [*((space, "auto") for space in MLP_SPACES), *((space, encoder) for space, encoder, *_ in CONV_SPACES)]
    decoders = {space: scrambled(lambda s=space, e=encoder: make(s, encoder=e)) for space, encoder in cases}
    calls = {space: (lambda decoder, latent: decoder(latent), d, latents(2, 2)) for space, d in decoders.items()}
    return {space: (decoders[space], raw) for space, raw in in_one_program(calls).items()}


@pytest.mark.parametrize("space", MLP_SPACES)
def test_mlp_decoder_agrees_with_numpy(decoded, space):
    (decoder, raw), latent = decoded[space], latents(2, 2)
    assert len(decoder.head.mlp.layers) == 3
    for t, b in np.ndindex(2, 2):
        x = np.concatenate([latent.deter[t, b], latent.stoch[t, b].reshape(-1)]).astype(np.float64)
        for layer in decoder.head.mlp.layers:
            x = dense(layer, x)
        close(raw[t, b], linear(decoder.head.out, x).reshape(preprocessed_shape(space)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("space, encoder, kernel, sizes", CONV_SPACES)
def test_conv_decoder_agrees_with_numpy(decoded, space, encoder, kernel, sizes):
    del encoder
    (decoder, raw), latent = decoded[space], jax.tree.map(lambda x: x[1, 0], latents(2, 2))
    (height, width), blocks = sizes[-1], decoder.blocks
    channels = decoder.norm.scale.shape[0]
    each = channels // blocks  # channels that one block of deter paints
    x = np.zeros((height, width, channels))
    for g in range(blocks):
        own = np.float64(latent.deter.reshape(blocks, -1)[g]) @ np.float64(decoder.from_deter.weight[g])
        own = own + np.float64(decoder.from_deter.bias).reshape(blocks, -1)[g]
        x[..., g * each : (g + 1) * each] = own.reshape(height, width, each)
    hidden = dense(decoder.from_stoch, np.float64(latent.stoch).reshape(-1))
    x += linear(decoder.from_hidden, hidden).reshape(x.shape)
    x = norm_silu(x, decoder.norm.scale)
    for stage, size in zip(decoder.stages, sizes[-2:0:-1], strict=True):
        assert len(stage.conv.weight) == kernel
        x = norm_silu(conv(grown(x, *size), stage.conv), stage.norm.scale)
    x = conv(grown(x, *sizes[0]) if len(sizes) > 1 else x, decoder.out)
    assert x.shape == image_shape(space)
    close(raw[1, 0], x.reshape(preprocessed_shape(space)), rtol=1e-3, atol=1e-3)


def test_an_image_has_the_references_depths():
    decoder = jax.eval_shape(lambda: make(ObsSpace((64, 64, 3), "image"), depth=4))
    chex.assert_shape([s.conv.weight for s in decoder.stages], [(5, 5, 16, 16), (5, 5, 16, 12), (5, 5, 12, 8)])
    chex.assert_shape(decoder.out.weight, (5, 5, 8, 3))
    assert decoder.blocks == 8


# ---- losses --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged():
    """(outputs, losses, reconstructions) of a table's decoder by space, all computed in one program."""

    def judge(decoder, latent, obs):
        return decoder(latent), decode.recon_loss(decoder, latent, obs), decode.reconstruct(decoder, latent)

    return in_one_program({s: (judge, table(s), latents(2, 2), observations(s, (2, 2))) for s, _ in SPACES})


@every_space
def test_recon_loss_is_summed_over_the_entries_of_one_observation(judged, space, network):
    del network
    (raw, loss, _), obs = judged[space], np.asarray(observations(space, (2, 2)))
    assert 0.5 < np.abs(raw).max() < 20
    chex.assert_shape(loss, (2, 2))
    by_hand = [[loss_by_hand(space, raw[t, b], obs[t, b]) for b in range(2)] for t in range(2)]
    close(loss, np.array(by_hand), rtol=1e-4)


def test_recon_loss_survives_extreme_outputs():
    loss = jax.value_and_grad(lambda *args: decode.recon_loss(*args).sum())
    calls = {}
    for space in (ObsSpace((3,), "real"), ObsSpace((3,), "binary"), ObsSpace((3,), "categorical", 4)):
        decoder = jax.tree.map(lambda x: 1e4 * x, table(space))
        calls[space] = loss, decoder, latents(2), observations(space, (2,))
    chex.assert_tree_all_finite(list(in_one_program(calls).values()))


def test_recon_loss_is_least_at_the_observation():
    space = ObsSpace((4,), "binary")
    obs = jnp.array([True, False, False, True])
    loss = jax.jit(decode.recon_loss)
    right, wrong = (loss(table(space, 0.0, np.where(obs, x, -x)), latents(), obs) for x in (5.0, -5.0))
    assert right < 0.03 < 19 < wrong


@every_space
def test_reconstruct_is_the_most_likely_observation(judged, space, network):
    del network
    raw, _, likely = judged[space]
    raw = np.float64(raw)
    if space.kind == "categorical":
        by_hand = raw.argmax(-1)
    elif space.kind == "real":
        by_hand = np.sign(raw) * (np.exp(np.abs(raw)) - 1)
    else:
        by_hand = sigmoid(raw)
    assert likely.dtype == jnp.float32
    chex.assert_shape(likely, (2, 2, *space.shape))
    close(likely, by_hand, rtol=1e-4, atol=1e-5)
