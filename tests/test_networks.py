"""networks/layers.py, recurrent.py and convolution.py against plain numpy: loops over blocks, samples and pixels.

Written from the docstrings' equations.

Axes: B batch, G blocks, D deter, H, W, C board.
"""

import itertools

import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from stages.networks import convolution, layers
from stages.networks.recurrent import BlockGRU
from tests.by_hand import dense, sigmoid
from tests.conftest import WIDTHS, draw, scrambled
from tests.programs import both_forms, compare, in_one_program

close = chex.assert_trees_all_close
either = pytest.mark.parametrize("form", ["eager", "jit"])
KEY = jr.key(0)


def call(layer, *args):
    return layer(*args)


def rms_norm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-4) * scale


# ---- initial weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_truncated_normal_has_the_variance_of_its_fan_in_and_no_tails(scale):
    weight = np.asarray(layers.truncated_normal(jr.key(0), (400, 500), 50, scale))
    close(weight.std(), scale / np.sqrt(50), rtol=0.01)
    close(weight.mean(), 0.0, atol=0.01 * scale / np.sqrt(50))
    bound = 2 * 1.1368 * scale / np.sqrt(50)
    assert 0.99 * bound < np.abs(weight).max() <= bound * 1.0001


def test_every_layer_starts_with_unit_gain_and_zero_bias():

    def make(key):
        linear, block = layers.Linear(200, 300, key=key), layers.BlockLinear(320, 640, 8, key=key)
        return linear, block, convolution.Conv(32, 64, 5, key=key)

    # The reference's fan-in of blocks is the whole input's, not a block's.
    for layer, fan_in in zip(jax.jit(make)(jr.key(1)), (200, 320, 5 * 5 * 32), strict=True):
        close(np.asarray(layer.weight).std(), fan_in**-0.5, rtol=0.02)
        chex.assert_trees_all_equal(layer.bias, jnp.zeros_like(layer.bias))
    assert (layers.RMSNorm(5).scale == 1).all()


def test_output_scale_touches_the_output_layer_alone():
    heads = jax.jit(lambda key: [layers.Head(20, 30, 2, 40, scale=scale, key=key) for scale in (1.0, 0.01, 0.0)])
    full, small, zero = heads(jr.key(2))
    close(small.out.weight, np.float32(0.01) * np.asarray(full.out.weight), rtol=1e-5)
    chex.assert_trees_all_equal(small.mlp, full.mlp)
    assert not np.asarray(zero.out.weight).any()


def test_layers_of_an_mlp_have_keys_of_their_own():
    _, second, third = jax.jit(lambda key: layers.MLP(8, 8, 3, key=key))(jr.key(3)).layers
    weights = [np.asarray(layer.linear.weight).ravel() for layer in (second, third)]
    assert np.abs(np.corrcoef(*weights)[0, 1]) < 0.5


def test_dense_activates_a_product_computed_elsewhere():
    layer, x = scrambled(lambda: layers.Dense(5, 3, key=KEY)), draw(4, 5)
    y, elsewhere = jax.jit(lambda layer, x: (layer(x), layer.activate(layer.linear(x))))(layer, x)
    close(elsewhere, y)
    close(y, dense(layer, x.astype(np.float64)), rtol=1e-4, atol=1e-5)


# ---- dense layers --------------------------------------------------------------------------------------------------


LINEAR, NORM, MLP, HEAD = (
    scrambled(make)
    for make in (
        lambda: layers.Linear(5, 3, key=KEY),
        lambda: layers.RMSNorm(6),
        lambda: layers.MLP(5, 7, 3, key=KEY),
        lambda: layers.Head(5, 7, 1, 3, key=KEY),
    )
)
NORM_SIZES = [1e-3, 1.0, 1e4]


@pytest.fixture(scope="module")
def plain_layers():
    """A linear layer and norms of all sizes of input, in both forms."""
    norms = {size: (call, NORM, np.float32(size) * draw(2, 3, 6)) for size in NORM_SIZES}
    return both_forms(norms | {"linear": (call, LINEAR, draw(2, 4, 5))})


@pytest.fixture(scope="module")
def deep_layers():
    """An MLP's and a head's outputs, and those of a norm and a head for half precision, computed in one program."""
    x, half = draw(4, 64), jnp.asarray(draw(4, 64), jnp.bfloat16)
    norm = layers.RMSNorm(64)
    calls = {"mlp": (call, MLP, draw(2, 4, 5)), "head": (call, HEAD, draw(4, 5))}
    calls |= {"half head": (call, HEAD, jnp.asarray(draw(4, 5), jnp.bfloat16)), "half norm": (call, norm, half)}
    return in_one_program(calls | {"full norm": (call, norm, half.astype(x.dtype))})


@either
def test_linear(plain_layers, form):
    by_hand = np.einsum("bti,io->bto", draw(2, 4, 5), LINEAR.weight) + np.asarray(LINEAR.bias)
    close(plain_layers[form]["linear"], by_hand, rtol=1e-5, atol=1e-6)


@either
@pytest.mark.parametrize("size", NORM_SIZES)
def test_rms_norm(plain_layers, form, size):
    by_hand = rms_norm((np.float32(size) * draw(2, 3, 6)).astype(np.float64), np.float64(NORM.scale))
    close(plain_layers[form][size], by_hand, rtol=1e-5, atol=1e-6)


def test_rms_norm_of_half_precision_is_computed_in_float32(deep_layers):
    y = deep_layers["half norm"]
    assert y.dtype == jnp.bfloat16
    chex.assert_trees_all_equal(y, deep_layers["full norm"].astype(jnp.bfloat16))


def test_mlp_is_linear_norm_silu_layer_by_layer(deep_layers):
    mlp, x = MLP, draw(2, 4, 5)
    chex.assert_shape([layer.linear.weight for layer in mlp.layers], [(5, 7), (7, 7), (7, 7)])
    y = x.astype(np.float64)
    for layer in mlp.layers:
        y = dense(layer, y)
    close(deep_layers["mlp"], y, rtol=1e-4, atol=1e-5)


def test_head_ends_in_a_plain_linear_layer(deep_layers):
    head, x = HEAD, draw(4, 5)
    y = dense(head.mlp.layers[0], x.astype(np.float64)) @ np.float64(head.out.weight) + np.float64(head.out.bias)
    close(deep_layers["head"], y, rtol=1e-4, atol=1e-5)
    assert deep_layers["half head"].dtype == jnp.float32


# ---- blocks --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def block_layers():
    """(layer, its outputs) by number of blocks, computed in one program."""
    made = {blocks: scrambled(lambda n=blocks: layers.BlockLinear(8, 12, n, key=KEY)) for blocks in (1, 2, 4)}
    results = in_one_program({n: (call, layer, draw(2, 3, 8).reshape(2, 3, n, -1)) for n, layer in made.items()})
    return {blocks: (made[blocks], results[blocks]) for blocks in made}


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_block_linear_is_a_block_diagonal_matrix(block_layers, blocks):
    (layer, y), x = block_layers[blocks], draw(2, 3, 8)
    chex.assert_shape(layer.weight, (blocks, 8 // blocks, 12 // blocks))
    whole = np.zeros((8, 12))
    for g in range(blocks):
        rows, columns = slice(g * 8 // blocks, (g + 1) * 8 // blocks), slice(g * 12 // blocks, (g + 1) * 12 // blocks)
        whole[rows, columns] = layer.weight[g]
    close(y, x @ whole + np.asarray(layer.bias), rtol=1e-5, atol=1e-5)


def gru_by_hand(gru: BlockGRU, deter, x):
    """One step of one sample [D], block by block, in float64."""
    blocks = len(gru.gates)
    size = len(deter) // blocks
    hidden = np.zeros(len(deter))
    for g in range(blocks):
        mine = slice(g * size, (g + 1) * size)
        joined = np.concatenate([deter[mine], x])  # its own slice of deter, and all of the input
        hidden[mine] = joined @ np.float64(gru.hidden[:, g]) + np.float64(gru.bias[mine])
    hidden = rms_norm(hidden, np.float64(gru.norm.scale))
    hidden = hidden * sigmoid(hidden)
    out = np.zeros(len(deter))
    for g in range(blocks):
        mine = slice(g * size, (g + 1) * size)
        gates = hidden[mine] @ np.float64(gru.gates[g]) + np.float64(gru.gates_bias[g])
        reset, cand, update = gates[:size], gates[size : 2 * size], gates[2 * size :]
        update = sigmoid(update - 1)
        out[mine] = update * np.tanh(sigmoid(reset) * cand) + (1 - update) * deter[mine]
    return out


def gru_step(gru: BlockGRU, deter, x):
    """One step, the input in one piece."""
    return gru.pack()(deter, gru.pack().project(0, x))


def gru_plain(gru: BlockGRU, deter, x):
    """The cell in jax's own operations on one sample [D], each gradient left to jax."""
    blocks, size, _ = gru.gates.shape
    old = deter.reshape(blocks, size)
    joined = jnp.concatenate([old, jnp.broadcast_to(x, (blocks, x.size))], -1)
    hidden = jnp.einsum("gi,igo->go", joined, gru.hidden).reshape(-1) + gru.bias
    hidden = jax.nn.silu(gru.norm(hidden)).reshape(blocks, size)
    reset, cand, update = jnp.split(jnp.einsum("gi,gio->go", hidden, gru.gates) + gru.gates_bias, 3, -1)
    update = jax.nn.sigmoid(update - 1)
    return (update * jnp.tanh(jax.nn.sigmoid(reset) * cand) + (1 - update) * old).reshape(-1)


GRUS = {blocks: scrambled(lambda n=blocks: BlockGRU((5,), 12, n, key=KEY)) for blocks in (1, 2, 3)}
CUTS = {cuts: np.split(draw(4, 5), cuts, -1) for cuts in [(2,), (1, 4), ()]}


@pytest.fixture(scope="module")
def steps():
    """Steps of GRUs of all numbers of blocks: of six samples, of two leading axes, and of one of these samples."""
    many, one = (draw(2, 3, 12), draw(2, 3, 5)), (draw(2, 3, 12)[1, 2], draw(2, 3, 5)[1, 2])
    calls = {blocks: (gru_step, gru, draw(6, 12), draw(6, 5, seed=2)) for blocks, gru in GRUS.items()}
    return in_one_program(calls | {"many": (gru_step, GRUS[3], *many), "one": (gru_step, GRUS[3], *one)})


@pytest.fixture(scope="module")
def gradients():
    """Values and gradients of the GRU and of linear layers, beside their plain forms."""
    over_both_axes = jax.vmap(jax.vmap(gru_plain, (None, 0, 0)), (None, 0, 0))
    deter, x, out = draw(2, 3, 12), draw(2, 3, 5, seed=2), draw(2, 3, 12, seed=3)
    cases = {blocks: (gru_step, over_both_axes, (GRUS[blocks], deter, x), out) for blocks in (1, 3)}
    for i, o in WIDTHS:
        layer = scrambled(lambda i=i, o=o: layers.Linear(i, o, key=KEY))
        plain = lambda layer, x: x @ layer.weight + layer.bias
        cases[i, o] = call, plain, (layer, draw(2, 3, i)), draw(2, 3, o, seed=3)
    return compare(cases)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_block_gru_agrees_with_a_loop_over_blocks(steps, blocks):
    gru = GRUS[blocks]
    chex.assert_shape(gru.hidden, (12 // blocks + 5, blocks, 12 // blocks))
    chex.assert_shape(gru.gates, (blocks, 12 // blocks, 3 * 12 // blocks))
    deter, x = draw(6, 12), draw(6, 5, seed=2)
    by_hand = np.stack([gru_by_hand(gru, d.astype(np.float64), v) for d, v in zip(deter, x, strict=True)])
    close(steps[blocks], by_hand, rtol=1e-4, atol=1e-5)


def test_a_packed_cell_has_every_weight_once():
    gru = scrambled(lambda: BlockGRU((2, 3), 12, 3, key=KEY))
    cell = jax.jit(BlockGRU.pack)(gru)
    # Every weight of the GRU is in its cell once, and none is in there twice.
    numbers = lambda tree: np.sort(np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]))
    chex.assert_trees_all_equal(numbers(cell), numbers(gru))


def test_block_gru_takes_any_leading_axes(steps):
    close(steps["many"][1, 2], steps["one"], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def projections():
    """Sums of the projections of an input's parts, by where it is cut, computed in one program."""

    def project(gru, *parts):
        cell = gru.pack()
        return sum(cell.project(i, part) for i, part in enumerate(parts))

    sizes = {cuts: tuple(part.shape[-1] for part in parts) for cuts, parts in CUTS.items()}
    grus = {cuts: scrambled(lambda s=sizes[cuts]: BlockGRU(s, 12, 3, key=KEY)) for cuts in CUTS}
    return in_one_program({cuts: (project, grus[cuts], *parts) for cuts, parts in CUTS.items()})


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_projections_of_a_gru_inputs_parts_add_up(projections, cuts):
    close(projections[cuts], projections[()], rtol=1e-5, atol=1e-5)
    by_hand = draw(4, 5) @ np.asarray(GRUS[3].hidden)[4:].reshape(5, 12)
    close(projections[cuts], by_hand, rtol=1e-5, atol=1e-5)


def test_block_gru_starts_with_the_references_fan_in_over_all_blocks():
    gru = jax.jit(lambda key: BlockGRU((60,), 320, 8, key=key))(jr.key(1))
    close(np.asarray(gru.hidden).std(), (320 + 8 * 60) ** -0.5, rtol=0.02)
    close(np.asarray(gru.gates).std(), 320**-0.5, rtol=0.02)
    assert not gru.bias.any() and not gru.gates_bias.any() and (gru.norm.scale == 1).all()


@pytest.mark.parametrize("blocks", [1, 3])
def test_block_gru_has_the_gradient_of_its_plain_form(gradients, blocks):
    close(*gradients[blocks], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inputs, outputs", WIDTHS)
def test_linear_has_the_gradient_of_its_plain_form(gradients, inputs, outputs):
    close(*gradients[inputs, outputs], rtol=1e-5, atol=1e-5)


# ---- convolutions --------------------------------------------------------------------------------------------------


def conv_by_hand(x, weight, bias):
    """ "Same" convolution of [H, W, i] pixel by pixel, in float64; an even kernel reaches further at the far end."""
    height, width, _ = x.shape
    kernel, before = len(weight), (len(weight) - 1) // 2
    out = np.tile(np.float64(bias), (height, width, 1))
    for h, w, i, j in np.ndindex(height, width, kernel, kernel):
        row, column = h + i - before, w + j - before
        if 0 <= row < height and 0 <= column < width:
            out[h, w] += x[row, column] @ np.float64(weight[i, j])
    return out


CONVS = {kernel: scrambled(lambda n=kernel: convolution.Conv(2, 3, n, key=KEY)) for kernel in (1, 2, 3, 5)}
MAPS = {"board": (4, 5), "image": (21, 20)}


@pytest.fixture(scope="module")
def convolved():
    """Convolutions of all kernels on maps of both sizes, and of leading axes, computed in one program."""
    calls = {(name, n): (call, layer, draw(*MAPS[name], 2)) for name in MAPS for n, layer in CONVS.items()}
    for side in (10, 41):
        x = draw(2, 3, side, side, 2)
        calls["many", side], calls["one", side] = (call, CONVS[3], x), (call, CONVS[3], x[1, 2])
    return in_one_program(calls)


@pytest.mark.parametrize("kernel", CONVS)
@pytest.mark.parametrize("name", MAPS)
def test_conv_agrees_with_a_loop_over_pixels(convolved, kernel, name):
    layer = CONVS[kernel]
    by_hand = conv_by_hand(draw(*MAPS[name], 2), np.asarray(layer.weight), layer.bias)
    close(convolved[name, kernel], by_hand, rtol=1e-4, atol=1e-5)


KERNELS = [2, 3, 4, 5]


@pytest.fixture(scope="module")
def beside_the_library():
    """Values and gradients of convolutions of boards by kernel, ours and the library's."""

    def library(layer, x):
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, layer.weight, (1, 1), "SAME", dimension_numbers=dims) + layer.bias

    made = {kernel: scrambled(lambda n=kernel: convolution.Conv(4, 6, n, key=KEY)) for kernel in KERNELS}
    x, out = draw(3, 10, 10, 4), draw(3, 10, 10, 6, seed=3)
    return compare({kernel: (call, library, (layer, x), out) for kernel, layer in made.items()})


@pytest.mark.parametrize("kernel", KERNELS)
def test_conv_of_boards_agrees_with_the_library_in_value_and_gradients(beside_the_library, kernel):
    close(*beside_the_library[kernel], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("side, library", [(10, False), (40, False), (41, True), (64, True)])
def test_conv_takes_slices_for_boards_and_the_library_for_images(side, library):
    program = str(jax.make_jaxpr(CONVS[3])(jax.ShapeDtypeStruct((5, side, side, 2), jnp.float32)))
    assert ("conv_general_dilated" in program) == library


@pytest.mark.parametrize("side", [10, 41])
def test_conv_takes_any_leading_axes(convolved, side):
    y = convolved["many", side]
    chex.assert_shape(y, (2, 3, side, side, 3))
    close(y[1, 2], convolved["one", side], rtol=1e-4, atol=1e-5)


POOLED, UPSAMPLED = [(4, 6), (5, 6), (4, 7), (5, 3), (1, 1)], [(6, 8), (5, 8), (5, 7)]


@pytest.fixture(scope="module")
def resized():
    """Maps pooled and upsampled, by shape, computed in one program."""
    up = {shape: lambda x, shape=shape: convolution.upsample(x, shape) for shape in UPSAMPLED}
    calls = {("up", shape): (f, draw(2, 3, 4, 3)) for shape, f in up.items()}
    return in_one_program(calls | {s: (convolution.max_pool, draw(2, *s, 3) - 10) for s in POOLED})


@pytest.mark.parametrize("shape", POOLED)
def test_max_pool_pads_odd_sides_with_nothing(resized, shape):
    x = draw(2, *shape, 3) - 10  # all below zero, so that a zero for padding would show
    height, width = -(-shape[0] // 2), -(-shape[1] // 2)
    by_hand = np.zeros((2, height, width, 3), np.float32)
    for h, w in np.ndindex(height, width):
        by_hand[:, h, w] = x[:, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2].max((1, 2))
    chex.assert_trees_all_equal(resized[shape], by_hand)


@pytest.mark.parametrize("shape", UPSAMPLED)
def test_upsample_doubles_and_crops(resized, shape):
    x = draw(2, 3, 4, 3)
    by_hand = np.zeros((2, *shape, 3), np.float32)
    for h, w in np.ndindex(shape):
        by_hand[:, h, w] = x[:, h // 2, w // 2]
    chex.assert_trees_all_equal(resized["up", shape], by_hand)


@pytest.mark.parametrize(
    "sizes",
    [
        [(64, 64), (32, 32), (16, 16), (8, 8), (4, 4)],
        [(96, 96), (48, 48), (24, 24), (12, 12), (6, 6)],  # four halvings at most
        [(28, 28), (14, 14), (7, 7), (4, 4)],
        [(13, 13), (7, 7), (4, 4)],
        [(10, 10), (5, 5)],
        [(16, 6)],  # the short side would fall below 4
        [(6, 6)],
        [(1, 1)],
    ],
)
def test_pyramid_halves_rounding_up_while_sides_stay_at_four(sizes):
    assert convolution.pyramid(sizes[0]) == sizes


def test_pooling_follows_the_pyramid_and_upsampling_undoes_its_shapes():
    sizes = convolution.pyramid((13, 28))
    x = jax.ShapeDtypeStruct((*sizes[0], 2), jnp.float32)
    for fine, coarse in itertools.pairwise(sizes):
        x = jax.eval_shape(convolution.max_pool, x)
        chex.assert_shape(x, (*coarse, 2))
        chex.assert_shape(jax.eval_shape(lambda x, fine=fine: convolution.upsample(x, fine), x), (*fine, 2))
