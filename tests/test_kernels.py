"""fast/kernels.py against plain numpy in float64 and against jax's own operations, values and gradients.

Axes: i inputs, o outputs, n rows, G blocks, K classes.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stages.fast import kernels

close = chex.assert_trees_all_close
eager = lambda f: lambda *args: f(*map(jnp.asarray, args))
either = pytest.mark.parametrize("run", [eager, jax.jit], ids=["eager", "jit"])
WIDTHS = [(3, 11), (11, 3), (5, 5), (1, 4), (4, 1)]  # narrow to wide, wide to narrow: each transposes another factor


def draw(*shape: int, seed: int = 1) -> np.ndarray:
    """Standard normal numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def agree(fast, plain, args, out, rtol: float = 1e-5, atol: float = 1e-5) -> None:
    """Hold `fast` to `plain` in value and in the gradient of every argument, for the cotangent `out`."""

    args = jax.tree.map(jnp.asarray, args)

    def both(f):
        value, back = jax.vjp(f, *args)
        return value, back(jnp.asarray(out, value.dtype))

    close(jax.jit(lambda: both(fast))(), jax.jit(lambda: both(plain))(), rtol=rtol, atol=atol)


# ---- sums and maxima -----------------------------------------------------------------------------------------------


@either
@pytest.mark.parametrize("shape", [(1,), (4, 7), (2, 3, 255)])
def test_sums_are_numpys(run, shape):
    x = draw(*shape)
    close(run(kernels.last_sum)(x), x.astype(np.float64).sum(-1), rtol=1e-5, atol=1e-5)
    close(run(kernels.row_sum)(x), x.astype(np.float64).reshape(-1, shape[-1]).sum(0), rtol=1e-5, atol=1e-5)


@either
@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 31, 32, 33, 64, 255, 256, 257])
def test_last_max_finds_the_maximum_wherever_it_stands(run, count):
    x = -1 - np.abs(draw(count, count))  # all below zero: a zero for padding would show
    x[np.arange(count), np.arange(count)] = -0.5
    chex.assert_trees_all_equal(run(kernels.last_max)(x), np.full(count, -0.5, np.float32))


@either
@pytest.mark.parametrize("shift", [0.0, 500.0, -500.0])
def test_exponentials_make_softmax_and_log_sum_exp(run, shift):
    logits = draw(3, 255) * 30 + np.float32(shift)
    powers, total, top = run(kernels.exponentials)(logits)
    exact = logits.astype(np.float64)
    close(top, logits.max(-1, keepdims=True), rtol=0)
    by_hand = np.exp(exact - exact.max(-1, keepdims=True))
    close((powers, total), (by_hand, by_hand.sum(-1, keepdims=True)), rtol=1e-5, atol=1e-30)


# ---- products ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [(), (4,), (2, 3), (2, 3, 2)])
@pytest.mark.parametrize("inputs, outputs", WIDTHS)
def test_product_is_a_matrix_product_in_value_and_gradient(inputs, outputs, lead):
    args = draw(*lead, inputs), draw(inputs, outputs, seed=2)
    agree(kernels.product, lambda x, weight: x @ weight, args, draw(*lead, outputs, seed=3))


@pytest.mark.parametrize("lead", [(), (4,), (2, 3)])
@pytest.mark.parametrize("inputs, outputs", WIDTHS)
def test_affine_is_a_product_and_a_bias_in_value_and_gradient(inputs, outputs, lead):
    args = draw(*lead, inputs), draw(inputs, outputs, seed=2), draw(outputs, seed=4)
    agree(kernels.affine, lambda x, weight, bias: x @ weight + bias, args, draw(*lead, outputs, seed=3))


@pytest.mark.parametrize("inputs, outputs", [(3, 5), (5, 3), (4, 4)])
@pytest.mark.parametrize("blocks", [1, 3])
def test_block_product_is_one_product_a_block_in_value_and_gradient(inputs, outputs, blocks):
    args = draw(blocks, 6, inputs), draw(blocks, inputs, outputs, seed=2)
    plain = lambda x, weight: jnp.stack([x[g] @ weight[g] for g in range(blocks)])
    agree(kernels.block_product, plain, args, draw(blocks, 6, outputs, seed=3))


@pytest.mark.parametrize(
    "fast, plain, shapes",
    [
        (kernels.product, jnp.matmul, [(4, 3), (3, 8)]),
        (kernels.product, jnp.matmul, [(4, 8), (8, 3)]),
        (kernels.block_product, jnp.matmul, [(2, 4, 3), (2, 3, 8)]),
    ],
    ids=["narrow-to-wide", "wide-to-narrow", "blocks"],
)
def test_products_of_half_precision_stay_in_it(fast, plain, shapes):
    x, weight = (jnp.asarray(draw(*shape, seed=i), jnp.bfloat16) for i, shape in enumerate(shapes))
    value, back = jax.vjp(fast, x, weight)
    grads = back(value)
    chex.assert_type([value, *grads], jnp.bfloat16)
    full = [y.astype(jnp.float32) for y in (x, weight)]
    by_hand, plain_back = jax.vjp(plain, *full)
    as_float = lambda tree: jax.tree.map(lambda y: y.astype(jnp.float32), tree)
    close(as_float((value, grads)), (by_hand, plain_back(value.astype(jnp.float32))), rtol=0.02, atol=0.1)


# ---- blocks --------------------------------------------------------------------------------------------------------


@either
@pytest.mark.parametrize("lead", [(6,), (2, 3), (1, 6)])
@pytest.mark.parametrize("blocks", [1, 3, 5])
def test_blocks_stand_in_front_and_merge_again(run, blocks, lead):
    x = draw(*lead, 15)
    by_hand = np.stack([x.reshape(6, blocks, -1)[:, g] for g in range(blocks)])
    chex.assert_trees_all_equal(run(lambda x: kernels.split_blocks(x, blocks))(x), by_hand)
    chex.assert_trees_all_equal(run(kernels.merge_blocks)(by_hand), x.reshape(6, 15))
    out = draw(6, 15, seed=2)
    (grad,) = run(lambda x, out: jax.vjp(kernels.merge_blocks, x)[1](out))(by_hand, out)
    chex.assert_trees_all_equal(grad, np.stack([out.reshape(6, blocks, -1)[:, g] for g in range(blocks)]))


# ---- activations ---------------------------------------------------------------------------------------------------


def silu_of_norm(x, scale):
    """norm_silu in jax's own operations."""
    return jax.nn.silu(x / jnp.sqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-4) * scale)


def joined_norm_silu(x, scale):
    """block_norm_silu in jax's own operations, blocks side by side."""
    joined = jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)
    return jnp.moveaxis(silu_of_norm(joined, scale).reshape(x.shape[1], x.shape[0], -1), 1, 0)


@pytest.mark.parametrize("size", [0.0, 1e-3, 1.0, 1e4])
@pytest.mark.parametrize("shape", [(7,), (4, 7), (2, 3, 1), (2, 3, 16)])
def test_norm_silu_is_silu_of_rms_norm_in_value_and_gradient(shape, size):
    scaled = lambda f: lambda x, scale: f(x * size, scale)  # gradients are then of order one for every size
    args = draw(*shape), draw(shape[-1], seed=2)
    agree(scaled(kernels.norm_silu), scaled(silu_of_norm), args, draw(*shape, seed=3))


def test_norm_silu_at_zero_has_the_largest_slope_and_no_more():
    zeros, scale, out = jnp.zeros((4, 7)), draw(7, seed=2), draw(4, 7, seed=3)
    grads = jax.vjp(kernels.norm_silu, zeros, jnp.asarray(scale))[1](jnp.asarray(out))
    close(grads, (out * scale * 0.5 / 1e-4**0.5, np.zeros(7)), rtol=1e-5)  # silu'(0) = 1/2


@pytest.mark.parametrize("blocks, rows, size", [(1, 4, 7), (3, 4, 5), (8, 1, 1), (2, 6, 16)])
def test_block_norm_silu_has_one_norm_over_all_blocks(blocks, rows, size):
    args = draw(blocks, rows, size), draw(blocks * size, seed=2)
    agree(kernels.block_norm_silu, joined_norm_silu, args, draw(blocks, rows, size, seed=3))


@pytest.mark.parametrize("size", [1.0, 30.0, 1e3])
def test_norm_silu_far_from_zero(size):
    """Where exp(-x) and its square would overflow: silu is x or 0 there, its slope 1 or 0."""
    x, scale = np.array([[1.0, -1.0, 1.0, -1.0]], np.float32), np.full(4, size, np.float32)
    agree(kernels.norm_silu, silu_of_norm, (x, scale), draw(1, 4, seed=3), rtol=1e-4, atol=1e-5)


@either
@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])
def test_gated_update_is_a_gate_between_old_and_new_in_value_and_gradient(run, size):
    gate, new, old, out = (draw(64, seed=i) for i in range(4))
    gate = gate * np.float32(size)
    value, back = run(lambda *args: jax.vjp(kernels.gated_update, *args))(gate, new, old)
    share = 1 / (1 + np.exp(-np.float64(gate).clip(-700, 700)))
    close(value, share * new + (1 - share) * old, rtol=1e-5, atol=1e-6)
    slopes = share * (1 - share) * (np.float64(new) - old), share, 1 - share
    close(back(out), tuple(out * slope for slope in slopes), rtol=1e-5, atol=1e-6)


def test_gated_update_keeps_a_gradient_where_the_gate_is_nearly_shut():
    slope = jax.grad(kernels.gated_update)(jnp.float32(-20.0), jnp.float32(1.0), jnp.float32(0.5))
    close(slope, 0.5 * np.exp(-20), rtol=1e-5)


def test_norm_silu_of_half_precision_is_computed_in_float32():
    x, out = (jnp.asarray(draw(4, 64, seed=i), jnp.bfloat16) for i in (1, 2))
    scale = jnp.asarray(draw(64, seed=3))
    value, back = jax.vjp(kernels.norm_silu, x, scale)
    grads = back(out)
    full, full_back = jax.vjp(silu_of_norm, x.astype(jnp.float32), scale)
    full_grads = full_back(out.astype(jnp.float32))
    assert (value.dtype, *(g.dtype for g in grads)) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    # Rounded once at the end: half a unit in the last of 8 bits.
    as_float = [value.astype(jnp.float32), grads[0].astype(jnp.float32)]
    close(as_float, [full, full_grads[0]], rtol=2**-8, atol=1e-5)
    close(grads[1], full_grads[1], rtol=1e-5, atol=1e-5)


def softmax(logits):
    """In float64."""
    exp = np.exp(np.asarray(logits, np.float64) - np.max(logits, -1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


@either
@pytest.mark.parametrize("size", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("shape", [(1,), (5,), (4, 5), (2, 3, 32)])
def test_softmax_is_jaxs_in_value_and_gradient(run, shape, size):
    logits, out = np.float32(size) * draw(*shape), draw(*shape, seed=3)

    def both(fast):
        value, back = jax.vjp(fast, jnp.asarray(logits))
        return value, back(jnp.asarray(out))

    value, (grad,) = run(lambda: both(kernels.softmax))()
    plain, (plain_grad,) = run(lambda: both(jax.nn.softmax))()
    close((value, grad), (plain, plain_grad), rtol=1e-5, atol=1e-6)
    probs = softmax(logits)
    close(value, probs, rtol=1e-5, atol=1e-7)
    close(grad, probs * (out - (probs * out).sum(-1, keepdims=True)), rtol=1e-5, atol=1e-6)


def test_softmax_under_vmap_is_jaxs_in_value_and_gradient():
    logits, out = draw(2, 2, 3, 5)
    for axis in (0, 1):
        loss = lambda f: lambda logits: (jax.vmap(f, axis, axis)(logits) * out).sum()  # noqa: B023
        close(*[jax.value_and_grad(loss(f))(logits) for f in (kernels.softmax, jax.nn.softmax)], rtol=1e-5, atol=1e-6)


# ---- under vmap ----------------------------------------------------------------------------------------------------


def test_row_sum_under_vmaps_is_numpys():
    x = draw(2, 3, 4, 5, 6)
    close(jax.jit(jax.vmap(jax.vmap(kernels.row_sum)))(x), x.astype(np.float64).sum((2, 3)), rtol=1e-5, atol=1e-5)
    inner_axes = jax.vmap(jax.vmap(kernels.row_sum, 1), 2, 1)
    close(jax.jit(inner_axes)(x), x.astype(np.float64).sum((0, 3)), rtol=1e-5, atol=1e-5)


def test_fast_layers_under_vmap_are_their_plain_forms():
    """Weights of each seed, weights that all share, and inputs that all share."""
    for axes in [(0, 0), (0, None), (None, 0)]:
        pick = lambda x, axis: x if axis == 0 else x[0]  # two seeds, or the first one's
        many = lambda f: jax.vmap(f, axes)  # noqa: B023
        args = lambda *xs: tuple(map(pick, xs, axes))  # noqa: B023
        for i, o in [(3, 7), (7, 3)]:
            x, weight = args(draw(2, 4, i), draw(2, i, o, seed=2))
            agree(many(kernels.product), many(jnp.matmul), (x, weight), draw(2, 4, o, seed=3))
            weights = (*args(draw(2, 4, i), draw(2, i, o, seed=2)), draw(o, seed=4))
            plain = lambda f: jax.vmap(f, (*axes, None))  # noqa: B023
            out = draw(2, 4, o, seed=3)
            agree(plain(kernels.affine), plain(lambda x, w, b: x @ w + b), weights, out)
            x, weight = args(draw(2, 3, 4, i), draw(2, 3, i, o, seed=2))
            agree(many(kernels.block_product), many(jnp.matmul), (x, weight), draw(2, 3, 4, o, seed=3))
        x, scale = args(draw(2, 4, 7), draw(2, 7, seed=2))
        agree(many(kernels.norm_silu), many(silu_of_norm), (x, scale), draw(2, 4, 7, seed=3))
        x, scale = args(draw(2, 3, 4, 5), draw(2, 15, seed=2))
        agree(many(kernels.block_norm_silu), many(joined_norm_silu), (x, scale), draw(2, 3, 4, 5, seed=3))
