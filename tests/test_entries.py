"""Observations of several entries: encoder, decoder, losses and members' numbers by hand, and acting on them.

Axes: T, B leading, C channels, P numbers of an observation.
"""

import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from envs import DictSpace, ObsSpace, own
from envs.errors import EnvError
from stages import decode, encode
from stages.agent import Agent
from stages.config import Config, ConfigError, EnsembleConfig, Hypers, ModelConfig
from stages.decode import ConvDecoder
from stages.encode import ConvEncoder
from stages.library.policy import Policy
from stages.measure.open_loop import prediction_errors
from stages.obs_numbers import ObsNumbers
from stages.presets import preset
from stages.rssm import Latent
from tests.by_hand import slow_mlp
from tests.conftest import SMALL, arbitrary, observations
from tests.signals import Signals

T, B = 2, 3
MODEL = ModelConfig(deter=16, stoch=3, classes=4, units=6, depth=2, layers=2)
FEAT = 16 + 3 * 4
SPACE = DictSpace({
    "tiles": ObsSpace((2, 2), "categorical", 5),
    "camera": ObsSpace((8, 8, 3), "image"),
    "speed": ObsSpace((4,), "real"),
    "radar": ObsSpace((8, 8, 2), "binary"),
    "lamp": ObsSpace((), "binary"),
})  # fmt: skip
NAMES = ["camera", "lamp", "radar", "speed", "tiles"]
IMAGES, VECTORS = ["camera", "radar"], ["lamp", "speed", "tiles"]
SIZES = {"camera": 192, "lamp": 1, "radar": 128, "speed": 4, "tiles": 20}
close = chex.assert_trees_all_close


def observed(seed: int = 0, lead: tuple[int, ...] = (T, B)) -> dict[str, jax.Array]:
    """Random observations."""
    return {name: observations(entry, lead, seed + i) for i, (name, entry) in enumerate(SPACE.entries.items())}


def states(*lead: int) -> Latent:
    """Random states."""
    rng = np.random.default_rng(3)
    stoch = np.eye(4)[rng.integers(0, 4, (*lead, 3))]
    return Latent(jnp.asarray(rng.normal(size=(*lead, 16)), jnp.float32), jnp.asarray(stoch, jnp.float32))


def numbers_by_hand(obs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What networks see of each entry, flat, float64."""
    flat = lambda x: x.reshape(T, B, -1)
    return {
        "camera": flat(obs["camera"] / 255.0 - 0.5),
        "lamp": flat(1.0 * obs["lamp"]),
        "radar": flat(1.0 * obs["radar"]),
        "speed": np.sign(obs["speed"]) * np.log1p(np.abs(np.float64(obs["speed"]))),
        "tiles": flat(1.0 * (obs["tiles"][..., None] == np.arange(5))),
    }


@pytest.fixture(scope="module")
def encoder():
    return arbitrary(lambda: encode.make_encoder(SPACE, MODEL, key=jr.key(0)), 1)


@pytest.fixture(scope="module")
def decoder():
    return arbitrary(lambda: decode.make_decoder(SPACE, MODEL, key=jr.key(0)), 2)


@pytest.fixture(scope="module")
def results(encoder, decoder):
    """All that is computed of one batch, by one program."""

    @jax.jit
    def compute(obs, latent):
        joined = jnp.concatenate([obs["camera"] / 255 - 0.5, obs["radar"].astype(jnp.float32)], -1)
        image = ObsSpace((8, 8, 5), "real")
        conv = ConvEncoder(image, MODEL, key=jr.key(0))
        conv = jax.tree.unflatten(jax.tree.structure(conv), jax.tree.leaves(encoder.conv))
        deconv = ConvDecoder(image, MODEL, key=jr.key(0))
        deconv = jax.tree.unflatten(jax.tree.structure(deconv), jax.tree.leaves(decoder.conv))
        return {
            "numbers": encode.flat_numbers(SPACE, obs),
            "embed": encoder(obs, jnp.dtype(jnp.float32)),
            "conv embed": conv.embed(joined),
            "raw": decoder(latent),
            "deconv": deconv(latent),
            "losses": decode.recon_losses(decoder, latent, obs),
            "loss": decode.recon_loss(decoder, latent, obs),
            "mean": decode.decode_mean(decoder, latent),
            "likeliest": decode.reconstruct(decoder, latent),
            "errors": prediction_errors(decoder, latent, obs),
        }

    return jax.tree.map(np.asarray, compute(observed(), states(T, B)))


def test_entries_are_in_order_of_their_names():
    assert list(SPACE.entries) == NAMES
    same = DictSpace(dict(reversed(SPACE.entries.items())))
    assert same == SPACE and hash(same) == hash(SPACE)
    with pytest.raises(ValueError, match="at least one entry"):
        DictSpace({})


def test_numbers_of_all_entries_are_joined(results):
    by_hand = numbers_by_hand(jax.tree.map(np.asarray, observed()))
    close(results["numbers"], np.concatenate([by_hand[name] for name in NAMES], -1).astype(np.float32), atol=1e-6)
    assert encode.number_count(SPACE) == sum(SIZES.values()) == results["numbers"].shape[-1]


def test_the_encoder_is_one_mlp_and_one_convolution(encoder, results):
    by_hand = numbers_by_hand(jax.tree.map(np.asarray, observed()))
    vectors = slow_mlp(encoder.mlp, np.concatenate([by_hand[name] for name in VECTORS], -1))
    close(results["embed"][..., :6], vectors.astype(np.float32), rtol=1e-4, atol=1e-5)
    close(results["embed"][..., 6:], results["conv embed"], rtol=1e-5)
    assert encode.embed_size(SPACE, MODEL) == results["embed"].shape[-1] == 6 + results["conv embed"].shape[-1]


def test_every_vector_entry_has_outputs_of_its_own(decoder, results):
    latent = states(T, B)
    feat = np.concatenate([np.asarray(latent.deter), np.asarray(latent.stoch).reshape(T, B, -1)], -1)
    hidden = slow_mlp(decoder.mlp, np.float64(feat))
    for name in VECTORS:
        out = hidden @ np.float64(decoder.out[name].weight) + np.float64(decoder.out[name].bias)
        close(results["raw"][name].reshape(T, B, -1), out.astype(np.float32), rtol=1e-4, atol=1e-5)


def test_images_are_the_channels_of_one_decoder(results):
    close(results["raw"]["camera"], results["deconv"][..., :3], rtol=1e-5)
    close(results["raw"]["radar"], results["deconv"][..., 3:], rtol=1e-5)


def test_the_loss_is_the_sum_of_the_entries_losses(results):
    raw, obs = jax.tree.map(np.float64, results["raw"]), jax.tree.map(np.asarray, observed())
    over = lambda x: x.reshape(T, B, -1).sum(-1)
    bernoulli = lambda raw, x: over(np.logaddexp(0, raw) - raw * x)
    logits = raw["tiles"] - np.log(np.exp(raw["tiles"]).sum(-1, keepdims=True))
    by_hand = {
        "camera": over((1 / (1 + np.exp(-raw["camera"])) - obs["camera"] / 255) ** 2),
        "lamp": bernoulli(raw["lamp"], obs["lamp"]),
        "radar": bernoulli(raw["radar"], obs["radar"]),
        "speed": over((raw["speed"] - numbers_by_hand(obs)["speed"]) ** 2),
        "tiles": over(-np.take_along_axis(logits, obs["tiles"][..., None], -1)),
    }
    close(results["losses"], jax.tree.map(np.float32, by_hand), rtol=1e-4)
    close(results["loss"], np.float32(sum(by_hand.values())), rtol=1e-4)
    close(results["errors"].loss, np.float32(sum(by_hand.values()) / (192 + 1 + 128 + 4 + 4)), rtol=1e-4)


def test_expected_and_likeliest_observations(results):
    raw, sigmoid = jax.tree.map(np.float64, results["raw"]), lambda x: 1 / (1 + np.exp(-x))
    softmax = np.exp(raw["tiles"]) / np.exp(raw["tiles"]).sum(-1, keepdims=True)
    mean = {
        "camera": sigmoid(raw["camera"]) - 0.5,
        "lamp": sigmoid(raw["lamp"]),
        "radar": sigmoid(raw["radar"]),
        "speed": raw["speed"],
        "tiles": softmax,
    }
    flat = np.concatenate([mean[name].reshape(T, B, -1) for name in NAMES], -1)
    close(results["mean"], np.float32(flat), rtol=1e-4, atol=1e-5)
    assert (results["likeliest"]["tiles"] == softmax.argmax(-1)).all()
    expected = np.sign(raw["speed"]) * np.expm1(np.abs(raw["speed"]))
    close(results["likeliest"]["speed"], np.float32(expected), rtol=1e-4, atol=1e-5)


def test_predictions_are_right_of_entries_that_have_classes(results):
    obs = jax.tree.map(np.asarray, observed())
    right = [np.round(results["likeliest"][name]).reshape(T, B, -1) == obs[name].reshape(T, B, -1) for name in
             ("lamp", "radar", "tiles")]  # fmt: skip
    close(results["errors"].right, np.float32(np.concatenate(right, -1).mean(-1)))
    close(results["errors"].exact, np.float32(np.concatenate(right, -1).all(-1)))


def test_parameters_by_formula(encoder, decoder):
    """DreamerV3's: dense layers with a bias and a norm's scale, heads with a bias, 3x3 convolutions at two levels."""
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    dense = lambda i, o: i * o + 2 * o
    assert count(encoder.mlp) == dense(1 + 4 + 20, 6) + dense(6, 6)
    assert count(decoder.mlp) == dense(FEAT, 6) + dense(6, 6)
    assert count(decoder.out) == sum(6 * SIZES[name] + SIZES[name] for name in VECTORS)
    assert count(encoder) == count(encoder.mlp) + count(encoder.conv)


def wave(shape: tuple[int, ...], phase: float) -> np.ndarray:
    """Numbers that anybody can make again."""
    return np.sin(np.arange(np.prod(shape)) + phase).reshape(shape)


def test_an_image_and_a_vector_are_the_references_to_rounding():
    """Parameters, embeddings and losses of github.com/danijar/dreamerv3, e3f0224, size 1m, float32, with these weights:
    the i-th array 0.1 sin(0 + i, 1 + i, ...), plus 1 for scales. Its first layer reads stoch before deter."""
    model = preset("1m")[0].model
    space = DictSpace({"image": ObsSpace((64, 64, 3), "image"), "vector": ObsSpace((6,), "real")})
    image, vector = 127 * wave((2, 1, 64, 64, 3), 0) + 128, 3 * wave((2, 1, 6), 1)
    obs = {"image": image.astype(np.uint8), "vector": vector.astype(np.float32)}
    deter, classes = wave((2, 1, 512), 2).astype(np.float32), np.arange(64).reshape(2, 1, 32) % 4
    latent = Latent(jnp.asarray(deter), jax.nn.one_hot(classes, 4))

    def made(make):
        leaves, structure = jax.tree_util.tree_flatten_with_path(
            jax.eval_shape(lambda: make(space, model, key=jr.key(0)))
        )
        arrays = [0.1 * wave(x.shape, i) + ("scale" in jax.tree_util.keystr(p)) for i, (p, x) in enumerate(leaves)]
        return arrays, structure

    (encoder, encoded), (decoder, decoded) = made(encode.make_encoder), made(decode.make_decoder)
    assert [sum(x.size for x in arrays) for arrays in (encoder, decoder)] == [23_264, 130_521]
    decoder[0] = np.roll(decoder[0], -128, 0)  # stoch's rows come last here

    @jax.jit
    def compute(encoder, decoder, obs):
        embed = jax.tree.unflatten(encoded, encoder)(obs, jnp.dtype(jnp.float32))
        return embed, decode.recon_losses(jax.tree.unflatten(decoded, decoder), latent, obs)

    embed, losses = compute(*jax.tree.map(np.float32, (encoder, decoder)), obs)
    np.testing.assert_allclose(losses["image"], [[1595.340454], [1605.088745]], rtol=1e-5)
    np.testing.assert_allclose(losses["vector"], [[8.492731], [8.850710]], rtol=1e-5)
    np.testing.assert_allclose(jnp.abs(embed).sum(-1), [[206.490326], [202.507446]], rtol=1e-5)
    some = [[-0.274608, 0.439305, 0.264016], [-0.271919, 0.804648, 0.719702]]  # of MLP, image, image
    np.testing.assert_allclose(embed[:, 0, np.array([0, 64, -1])], some, atol=5e-5)


def test_only_what_there_is_has_a_network():
    vectors = DictSpace({"a": ObsSpace((2,), "real"), "b": ObsSpace((3,), "binary")})
    images = DictSpace({"a": ObsSpace((8, 8, 1), "image"), "b": ObsSpace((8, 8, 2), "image")})
    make = lambda space: jax.eval_shape(lambda: encode.make_encoder(space, MODEL, key=jr.key(0)))
    assert make(vectors).conv is None and make(images).mlp is None
    shapes = lambda space: jax.eval_shape(lambda: decode.make_decoder(space, MODEL, key=jr.key(0))(states(2)))
    assert {name: raw.shape for name, raw in shapes(images).items()} == {"a": (2, 8, 8, 1), "b": (2, 8, 8, 2)}
    assert {name: raw.shape for name, raw in shapes(vectors).items()} == {"a": (2, 2), "b": (2, 3)}


def test_images_of_two_sizes_are_refused():
    space = DictSpace({"near": ObsSpace((8, 8, 3), "image"), "far": ObsSpace((4, 4, 3), "image")})
    for make in (encode.make_encoder, decode.make_decoder):
        with pytest.raises(ConfigError, match="far, near have 2 sizes"):
            make(space, MODEL, key=jr.key(0))
    mlp = ModelConfig(units=6, layers=2, encoder="mlp")
    assert encode.embed_size(space, mlp) == 6


def test_members_read_every_entry_in_units_of_its_own():
    config = EnsembleConfig(input="decoded", target="projected", updates=1)
    space = DictSpace({"board": ObsSpace((6,), "binary"), "speed": ObsSpace((2,), "real")})
    numbers = ObsNumbers(space, config, key=jr.key(0))
    rng = np.random.default_rng(0)
    obs = {"board": rng.integers(0, 2, (50, 6)).astype(bool), "speed": rng.normal(3, 0.5, (50, 2)).astype(np.float32)}
    numbers = numbers.updated(space, jax.tree.map(jnp.asarray, obs))
    seen = np.concatenate([obs["board"], np.log1p(np.abs(obs["speed"])) * np.sign(obs["speed"])], -1)
    speed = (seen[:, 6:] - seen[:, 6:].mean(0)) / np.sqrt(seen[:, 6:].var(0) + 1e-4)
    board = seen[:, :6] * np.sqrt(6 / (obs["board"].sum(-1, keepdims=True) + 0.01))
    normal = numbers.normalize(space, jnp.asarray(seen, jnp.float32))
    close(np.asarray(normal), np.float32(np.concatenate([board, speed], -1)), rtol=1e-3, atol=1e-3)


# ---- a whole environment; tests/test_own.py trains in it ------------------------------------------------------------


def test_a_class_out_of_bounds_is_refused_by_the_entrys_name():
    own.make_own("tests.signals:Signals", {})
    with pytest.raises(EnvError, match=r"entry 'lamp' of an observation goes from 0 to 3, but its space says 0 to 2"):
        own.make_own("tests.signals:Signals", {"lamps": "4"})


def test_acting_takes_a_dict():
    """A policy by hand, with and without entries that are wrong."""
    space = Signals.obs_space
    config = Config(model=SMALL, ensemble=EnsembleConfig(members=2, layers=1))
    agent = arbitrary(lambda: Agent(config, space, Signals.action_space, key=jr.key(0)))
    policy = Policy(agent.model, agent.tasker, Hypers(), greedy=False)
    obs = {"camera": np.zeros((4, 4, 3), np.uint8), "gauge": np.zeros(2), "lamp": np.array(2)}
    action, _ = policy.act(policy.reset(), obs, True, key=jr.key(1))
    assert action.shape == (2,) and action.dtype == jnp.int32
    wrong = [
        ({"camera": obs["camera"]}, r"obs must be a dict of camera, gauge, lamp, not \['camera'\]"),
        (np.zeros(3), "obs must be a dict of camera, gauge, lamp, not ndarray"),
        (obs | {"gauge": np.zeros(3)}, r"obs\['gauge'\] is \[3\], but the agent was trained on \[2\]"),
        (obs | {"camera": np.zeros((4, 4, 3))}, r"obs\['camera'\] is float64, but the agent was trained on bytes"),
        (obs | {"lamp": np.array(3)}, r"whole numbers from 0 to 2; obs\['lamp'\] goes from 3 to 3"),
    ]
    for given, words in wrong:
        with pytest.raises(ConfigError, match=words):
            policy.act(policy.reset(), given, True, key=jr.key(1))
