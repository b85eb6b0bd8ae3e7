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
from tests.test_kernels import WIDTHS, agree, draw

close = chex.assert_trees_all_close
eager = lambda f: lambda *args: f(*jax.tree.map(jnp.asarray, args))
either = pytest.mark.parametrize("run", [eager, jax.jit], ids=["eager", "jit"])


def scrambled(module, seed: int = 0):
    """The module with every leaf random, biases and norms' scales too, so that none can be left out unseen."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.7, jnp.float32), module)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rms_norm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-4) * scale


def dense(layer: layers.Dense, x):
    x = rms_norm(x @ np.float64(layer.linear.weight) + np.float64(layer.linear.bias), np.float64(layer.norm.scale))
    return x * sigmoid(x)


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
    full, small = (layers.Head(20, 30, 2, 40, scale=scale, key=jr.key(2)) for scale in (1.0, 0.01))
    close(small.out.weight, 0.01 * full.out.weight, rtol=1e-5)
    chex.assert_trees_all_equal(small.mlp, full.mlp)
    assert (layers.Head(20, 30, 2, 40, scale=0.0, key=jr.key(2)).out.weight == 0).all()


def test_layers_of_an_mlp_have_keys_of_their_own():
    _, second, third = layers.MLP(8, 8, 3, key=jr.key(3)).layers
    assert np.abs(np.corrcoef(second.linear.weight.ravel(), third.linear.weight.ravel())[0, 1]) < 0.5


def test_dense_activates_a_product_computed_elsewhere():
    layer, x = scrambled(layers.Dense(5, 3, key=jr.key(0))), draw(4, 5)
    y = layer(jnp.asarray(x))
    close(layer.activate(layer.linear(jnp.asarray(x))), y)
    close(y, dense(layer, x.astype(np.float64)), rtol=1e-4, atol=1e-5)


# ---- dense layers --------------------------------------------------------------------------------------------------


@either
def test_linear(run):
    layer, x = scrambled(layers.Linear(5, 3, key=jr.key(0))), draw(2, 4, 5)
    by_hand = np.einsum("bti,io->bto", x, layer.weight) + np.asarray(layer.bias)
    close(run(lambda layer, x: layer(x))(layer, x), by_hand, rtol=1e-5, atol=1e-6)


@either
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_rms_norm(run, size):
    layer, x = scrambled(layers.RMSNorm(6)), size * draw(2, 3, 6)
    by_hand = rms_norm(x.astype(np.float64), np.float64(layer.scale))
    close(run(lambda layer, x: layer(x))(layer, x), by_hand, rtol=1e-5, atol=1e-6)


def test_rms_norm_of_half_precision_is_computed_in_float32():
    x = jnp.asarray(draw(4, 64), jnp.bfloat16)
    y = layers.RMSNorm(64)(x)
    assert y.dtype == jnp.bfloat16
    chex.assert_trees_all_equal(y, layers.RMSNorm(64)(x.astype(jnp.float32)).astype(jnp.bfloat16))


def test_mlp_is_linear_norm_silu_layer_by_layer():
    mlp, x = scrambled(layers.MLP(5, 7, 3, key=jr.key(0))), draw(2, 4, 5)
    chex.assert_shape([layer.linear.weight for layer in mlp.layers], [(5, 7), (7, 7), (7, 7)])
    y = x.astype(np.float64)
    for layer in mlp.layers:
        y = dense(layer, y)
    close(jax.jit(lambda mlp, x: mlp(x))(mlp, x), y, rtol=1e-4, atol=1e-5)


def test_head_ends_in_a_plain_linear_layer():
    head, x = scrambled(layers.Head(5, 7, 1, 3, key=jr.key(0))), draw(4, 5)
    y = dense(head.mlp.layers[0], x.astype(np.float64)) @ np.float64(head.out.weight) + np.float64(head.out.bias)
    close(jax.jit(lambda head, x: head(x))(head, x), y, rtol=1e-4, atol=1e-5)
    assert head(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.float32


# ---- blocks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_block_linear_is_a_block_diagonal_matrix(blocks):
    layer, x = scrambled(layers.BlockLinear(8, 12, blocks, key=jr.key(0))), draw(2, 3, 8)
    chex.assert_shape(layer.weight, (blocks, 8 // blocks, 12 // blocks))
    whole = np.zeros((8, 12))
    for g in range(blocks):
        rows, columns = slice(g * 8 // blocks, (g + 1) * 8 // blocks), slice(g * 12 // blocks, (g + 1) * 12 // blocks)
        whole[rows, columns] = layer.weight[g]
    y = layer(jnp.asarray(x.reshape(2, 3, blocks, -1)))
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


@jax.jit
def gru_step(gru: BlockGRU, deter, x):
    """One step, the input in one piece."""
    return gru.pack()(deter, gru.pack().project(0, x))


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_block_gru_agrees_with_a_loop_over_blocks(blocks):
    gru = scrambled(BlockGRU((5,), 12, blocks, key=jr.key(0)))
    chex.assert_shape(gru.hidden, (12 // blocks + 5, blocks, 12 // blocks))
    chex.assert_shape(gru.gates, (blocks, 12 // blocks, 3 * 12 // blocks))
    deter, x = draw(6, 12), draw(6, 5, seed=2)
    by_hand = np.stack([gru_by_hand(gru, d.astype(np.float64), v) for d, v in zip(deter, x, strict=True)])
    close(gru_step(gru, deter, x), by_hand, rtol=1e-4, atol=1e-5)


def test_a_packed_cell_has_every_weight_once():
    gru = scrambled(BlockGRU((2, 3), 12, 3, key=jr.key(0)))
    cell = gru.pack()
    # Every weight of the GRU is in its cell once, and none is in there twice.
    numbers = lambda tree: np.sort(np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]))
    chex.assert_trees_all_equal(numbers(cell), numbers(gru))


def test_block_gru_takes_any_leading_axes():
    gru = scrambled(BlockGRU((5,), 12, 3, key=jr.key(0)))
    deter, x = draw(2, 3, 12), draw(2, 3, 5)
    close(gru_step(gru, deter, x)[1, 2], gru_step(gru, deter[1, 2], x[1, 2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cuts", [[2], [1, 4], []])
def test_projections_of_a_gru_inputs_parts_add_up(cuts):
    x = draw(4, 5)
    parts = np.split(x, cuts, -1)
    cell = scrambled(BlockGRU(tuple(part.shape[-1] for part in parts), 12, 3, key=jr.key(0))).pack()
    whole = scrambled(BlockGRU((5,), 12, 3, key=jr.key(0)))
    projected = sum(cell.project(i, jnp.asarray(part)) for i, part in enumerate(parts))
    close(projected, whole.pack().project(0, jnp.asarray(x)), rtol=1e-5, atol=1e-5)
    close(projected, x @ np.asarray(whole.hidden[4:]).reshape(5, 12), rtol=1e-5, atol=1e-5)


def test_block_gru_starts_with_the_references_fan_in_over_all_blocks():
    gru = jax.jit(lambda key: BlockGRU((60,), 320, 8, key=key))(jr.key(1))
    close(np.asarray(gru.hidden).std(), (320 + 8 * 60) ** -0.5, rtol=0.02)
    close(np.asarray(gru.gates).std(), 320**-0.5, rtol=0.02)
    assert not gru.bias.any() and not gru.gates_bias.any() and (gru.norm.scale == 1).all()


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


@pytest.mark.parametrize("blocks", [1, 3])
def test_block_gru_has_the_gradient_of_its_plain_form(blocks):
    gru = scrambled(BlockGRU((5,), 12, blocks, key=jr.key(0)))
    deter, x, out = draw(2, 3, 12), draw(2, 3, 5, seed=2), draw(2, 3, 12, seed=3)
    both_axes = jax.vmap(jax.vmap(gru_plain, (None, 0, 0)), (None, 0, 0))
    agree(gru_step, both_axes, (gru, deter, x), out)


@pytest.mark.parametrize("inputs, outputs", WIDTHS)
def test_linear_has_the_gradient_of_its_plain_form(inputs, outputs):
    layer, x = scrambled(layers.Linear(inputs, outputs, key=jr.key(0))), draw(2, 3, inputs)
    agree(lambda f, x: f(x), lambda f, x: x @ f.weight + f.bias, (layer, x), draw(2, 3, outputs, seed=3))


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


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(4, 5), (21, 20)], ids=["board", "image"])
def test_conv_agrees_with_a_loop_over_pixels(kernel, shape):
    layer, x = scrambled(convolution.Conv(2, 3, kernel, key=jr.key(0))), draw(*shape, 2)
    y = jax.jit(lambda layer, x: layer(x))(layer, x)
    close(y, conv_by_hand(x, np.asarray(layer.weight), layer.bias), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [2, 3, 4, 5])
def test_conv_of_boards_agrees_with_the_library_in_value_and_gradients(kernel):
    layer, x = scrambled(convolution.Conv(4, 6, kernel, key=jr.key(0))), draw(3, 10, 10, 4)
    out = draw(3, 10, 10, 6, seed=3)

    def library(layer, x):
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, layer.weight, (1, 1), "SAME", dimension_numbers=dims) + layer.bias

    both = lambda f: jax.jit(jax.value_and_grad(lambda layer, x: (f(layer, x) * out).sum(), (0, 1)))(layer, x)
    close(both(lambda layer, x: layer(x)), both(library), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("side, library", [(10, False), (40, False), (41, True), (64, True)])
def test_conv_takes_slices_for_boards_and_the_library_for_images(side, library):
    layer = convolution.Conv(2, 3, 3, key=jr.key(0))
    program = str(jax.make_jaxpr(layer)(jnp.zeros((5, side, side, 2))))
    assert ("conv_general_dilated" in program) == library


@pytest.mark.parametrize("side", [10, 41])
def test_conv_takes_any_leading_axes(side):
    layer, x = scrambled(convolution.Conv(2, 3, 3, key=jr.key(0))), jnp.asarray(draw(2, 3, side, side, 2))
    y = layer(x)
    chex.assert_shape(y, (2, 3, side, side, 3))
    close(y[1, 2], layer(x[1, 2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 6), (5, 6), (4, 7), (5, 3), (1, 1)])
def test_max_pool_pads_odd_sides_with_nothing(shape):
    x = draw(2, *shape, 3) - 10  # all below zero, so that a zero for padding would show
    height, width = -(-shape[0] // 2), -(-shape[1] // 2)
    by_hand = np.zeros((2, height, width, 3), np.float32)
    for h, w in np.ndindex(height, width):
        by_hand[:, h, w] = x[:, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2].max((1, 2))
    chex.assert_trees_all_equal(convolution.max_pool(jnp.asarray(x)), by_hand)


@pytest.mark.parametrize("shape", [(6, 8), (5, 8), (5, 7)])
def test_upsample_doubles_and_crops(shape):
    x = draw(2, 3, 4, 3)
    by_hand = np.zeros((2, *shape, 3), np.float32)
    for h, w in np.ndindex(shape):
        by_hand[:, h, w] = x[:, h // 2, w // 2]
    chex.assert_trees_all_equal(convolution.upsample(jnp.asarray(x), shape), by_hand)


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
    x = jnp.zeros((*sizes[0], 2))
    for fine, coarse in itertools.pairwise(sizes):
        x = convolution.max_pool(x)
        chex.assert_shape(x, (*coarse, 2))
        chex.assert_shape(convolution.upsample(x, fine), (*fine, 2))
