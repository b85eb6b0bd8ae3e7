"""fast/kernels.py against plain numpy in float64 and against jax's own operations, values and gradients.

Axes: i inputs, o outputs, n rows, G blocks, K classes.
"""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stages.fast import kernels
from tests.by_hand import softmax
from tests.conftest import WIDTHS, draw
from tests.programs import both_forms, compare, in_one_program, value_and_grads

close = chex.assert_trees_all_close
either = pytest.mark.parametrize("form", ["eager", "jit"])


# ---- sums and maxima -----------------------------------------------------------------------------------------------


SUM_SHAPES, SHIFTS = [(1,), (4, 7), (2, 3, 255)], [0, 500, -500]
COUNTS = [1, 2, 15, 16, 17, 31, 32, 33, 64, 255, 256, 257]


def maxima_on_the_diagonal(count: int) -> np.ndarray:
    """Rows whose maximum of -0.5 stands at another index in each; all below zero: a zero for padding would show."""
    x = -1 - np.abs(draw(count, count))
    x[np.arange(count), np.arange(count)] = -0.5
    return x


def shifted_logits(shift: float) -> np.ndarray:
    return draw(3, 255) * 30 + np.float32(shift)


@pytest.fixture(scope="module")
def reductions():
    """Sums, maxima and exponentials of all sizes, in both forms."""
    sums = {(f, shape): (f, draw(*shape)) for f in (kernels.last_sum, kernels.row_sum) for shape in SUM_SHAPES}
    maxima = {count: (kernels.last_max, maxima_on_the_diagonal(count)) for count in COUNTS}
    powers = {f"shift {shift}": (kernels.exponentials, shifted_logits(shift)) for shift in SHIFTS}
    return both_forms(sums | maxima | powers)


@either
@pytest.mark.parametrize("shape", SUM_SHAPES)
def test_sums_are_numpys(reductions, form, shape):
    x = draw(*shape).astype(np.float64)
    close(reductions[form][kernels.last_sum, shape], x.sum(-1), rtol=1e-5, atol=1e-5)
    close(reductions[form][kernels.row_sum, shape], x.reshape(-1, shape[-1]).sum(0), rtol=1e-5, atol=1e-5)


@either
@pytest.mark.parametrize("count", COUNTS)
def test_last_max_finds_the_maximum_wherever_it_stands(reductions, form, count):
    chex.assert_trees_all_equal(reductions[form][count], np.full(count, -0.5, np.float32))


@either
@pytest.mark.parametrize("shift", SHIFTS)
def test_exponentials_make_softmax_and_log_sum_exp(reductions, form, shift):
    logits = shifted_logits(shift)
    powers, total, top = reductions[form][f"shift {shift}"]
    exact = logits.astype(np.float64)
    close(top, logits.max(-1, keepdims=True), rtol=0)
    by_hand = np.exp(exact - exact.max(-1, keepdims=True))
    close((powers, total), (by_hand, by_hand.sum(-1, keepdims=True)), rtol=1e-5, atol=1e-30)


# ---- products ------------------------------------------------------------------------------------------------------


LEADS, BLOCK_WIDTHS = [(), (4,), (2, 3), (2, 3, 2)], [(3, 5), (5, 3), (4, 4)]


@pytest.fixture(scope="module")
def products():
    """Each form of product of all widths and leading axes, beside jax's own: value and gradients."""
    cases = {}
    for lead, (i, o) in itertools.product(LEADS, WIDTHS):
        x, weight, bias, out = draw(*lead, i), draw(i, o, seed=2), draw(o, seed=4), draw(*lead, o, seed=3)
        cases["product", lead, i, o] = kernels.product, jnp.matmul, (x, weight), out
        cases["affine", lead, i, o] = kernels.affine, lambda x, weight, bias: x @ weight + bias, (x, weight, bias), out
    for blocks, (i, o) in itertools.product([1, 3], BLOCK_WIDTHS):
        plain = lambda x, weight: jnp.stack([x[g] @ weight[g] for g in range(len(x))])
        args = draw(blocks, 6, i), draw(blocks, i, o, seed=2)
        cases["blocks", blocks, i, o] = kernels.block_product, plain, args, draw(blocks, 6, o, seed=3)
    return compare(cases)


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("inputs, outputs", WIDTHS)
def test_product_is_a_matrix_product_in_value_and_gradient(products, inputs, outputs, lead):
    close(*products["product", lead, inputs, outputs], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("inputs, outputs", WIDTHS)
def test_affine_is_a_product_and_a_bias_in_value_and_gradient(products, inputs, outputs, lead):
    close(*products["affine", lead, inputs, outputs], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inputs, outputs", BLOCK_WIDTHS)
@pytest.mark.parametrize("blocks", [1, 3])
def test_block_product_is_one_product_a_block_in_value_and_gradient(products, inputs, outputs, blocks):
    close(*products["blocks", blocks, inputs, outputs], rtol=1e-5, atol=1e-5)


HALVES = {
    "narrow-to-wide": (kernels.product, [(4, 3), (3, 8)]),
    "wide-to-narrow": (kernels.product, [(4, 8), (8, 3)]),
    "blocks": (kernels.block_product, [(2, 4, 3), (2, 3, 8)]),
}


@pytest.fixture(scope="module")
def halves():
    """Products of half precision beside those of the same numbers in float32, for the same cotangents."""
    calls = {}
    for name, (f, shapes) in HALVES.items():
        args = [jnp.asarray(draw(*shape, seed=i), jnp.bfloat16) for i, shape in enumerate(shapes)]
        out = jnp.asarray(draw(*shapes[0][:-1], shapes[1][-1], seed=3), jnp.bfloat16)
        calls[name] = value_and_grads(f), out, *args
        calls[name, "full"] = value_and_grads(jnp.matmul), *(x.astype(jnp.float32) for x in (out, *args))
    return in_one_program(calls)


@pytest.mark.parametrize("name", HALVES)
def test_products_of_half_precision_stay_in_it(halves, name):
    chex.assert_type(jax.tree.leaves(halves[name]), jnp.bfloat16)
    as_float = jax.tree.map(lambda y: y.astype(np.float32), halves[name])
    close(as_float, halves[name, "full"], rtol=0.02, atol=0.1)


# ---- blocks --------------------------------------------------------------------------------------------------------


ROW_LEADS, BLOCKS = [(6,), (2, 3), (1, 6)], [1, 3, 5]


def cut(x: np.ndarray, blocks: int) -> np.ndarray:
    """Rows cut into blocks, the blocks in front."""
    return np.stack([x.reshape(6, blocks, -1)[:, g] for g in range(blocks)])


@pytest.fixture(scope="module")
def blocked():
    """Rows cut, merged again, and the gradient of merging, in both forms."""
    calls, out = {}, draw(6, 15, seed=2)
    for blocks in BLOCKS:
        for lead in ROW_LEADS:
            calls["split", blocks, lead] = lambda x, blocks=blocks: kernels.split_blocks(x, blocks), draw(*lead, 15)
        calls["merge", blocks] = value_and_grads(kernels.merge_blocks), out, cut(draw(6, 15), blocks)
    return both_forms(calls)


@either
@pytest.mark.parametrize("lead", ROW_LEADS)
@pytest.mark.parametrize("blocks", BLOCKS)
def test_blocks_stand_in_front_and_merge_again(blocked, form, blocks, lead):
    x, out = draw(6, 15), draw(6, 15, seed=2)
    chex.assert_trees_all_equal(blocked[form]["split", blocks, lead], cut(x, blocks))
    chex.assert_trees_all_equal(blocked[form]["merge", blocks], (x, (cut(out, blocks),)))


# ---- activations ---------------------------------------------------------------------------------------------------


def silu_of_norm(x, scale):
    """norm_silu in jax's own operations."""
    return jax.nn.silu(x / jnp.sqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-4) * scale)


def joined_norm_silu(x, scale):
    """block_norm_silu in jax's own operations, blocks side by side."""
    joined = jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)
    return jnp.moveaxis(silu_of_norm(joined, scale).reshape(x.shape[1], x.shape[0], -1), 1, 0)


SIZES, NORM_SHAPES = [0.0, 1e-3, 1.0, 1e4], [(7,), (4, 7), (2, 3, 1), (2, 3, 16)]
BLOCK_SHAPES, FAR = [(1, 4, 7), (3, 4, 5), (8, 1, 1), (2, 6, 16)], [1.0, 30.0, 1e3]


def scaled(f):
    """`f` of x times `size`: gradients are then of order one for every size."""
    return lambda x, scale, size: f(x * size, scale)


@pytest.fixture(scope="module")
def activations():
    """norm_silu and its block form of all shapes and sizes, beside jax's own operations: value and gradients."""
    cases = {}
    for size, shape in itertools.product(SIZES, NORM_SHAPES):
        args = draw(*shape), draw(shape[-1], seed=2), np.float32(size)
        cases[size, shape] = scaled(kernels.norm_silu), scaled(silu_of_norm), args, draw(*shape, seed=3)
    for shape in BLOCK_SHAPES:
        args = draw(*shape), draw(shape[0] * shape[2], seed=2)
        cases[shape] = kernels.block_norm_silu, joined_norm_silu, args, draw(*shape, seed=3)
    for size in FAR:
        args = np.array([[1.0, -1.0, 1.0, -1.0]], np.float32), np.full(4, size, np.float32)
        cases[size] = kernels.norm_silu, silu_of_norm, args, draw(1, 4, seed=3)
    args = np.zeros((4, 7), np.float32), draw(7, seed=2)
    cases["zero"] = kernels.norm_silu, silu_of_norm, args, draw(4, 7, seed=3)
    return compare(cases)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", NORM_SHAPES)
def test_norm_silu_is_silu_of_rms_norm_in_value_and_gradient(activations, shape, size):
    (value, (*grads, _)), (plain, (*plain_grads, _)) = activations[size, shape]
    close((value, grads), (plain, plain_grads), rtol=1e-5, atol=1e-5)


def test_norm_silu_at_zero_has_the_largest_slope_and_no_more(activations):
    (_, grads), _ = activations["zero"]
    scale, out = draw(7, seed=2), draw(4, 7, seed=3)
    close(grads, (out * scale * 0.5 / 1e-4**0.5, np.zeros(7)), rtol=1e-5)  # silu'(0) = 1/2


@pytest.mark.parametrize("shape", BLOCK_SHAPES)
def test_block_norm_silu_has_one_norm_over_all_blocks(activations, shape):
    close(*activations[shape], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", FAR)
def test_norm_silu_far_from_zero(activations, size):
    """Where exp(-x) and its square would overflow: silu is x or 0 there, its slope 1 or 0."""
    close(*activations[size], rtol=1e-4, atol=1e-5)


GATE_SIZES = [1.0, 30.0, 1e4]


def gate_case(size: float) -> tuple[np.ndarray, ...]:
    """Cotangent, gates of that size, new and old values."""
    gate, new, old, out = (draw(64, seed=i) for i in range(4))
    return out, gate * np.float32(size), new, old


@pytest.fixture(scope="module")
def gated():
    """gated_update of all sizes, value and gradients, in both forms."""
    return both_forms({size: (value_and_grads(kernels.gated_update), *gate_case(size)) for size in GATE_SIZES})


@either
@pytest.mark.parametrize("size", GATE_SIZES)
def test_gated_update_is_a_gate_between_old_and_new_in_value_and_gradient(gated, form, size):
    out, gate, new, old = gate_case(size)
    value, grads = gated[form][size]
    share = 1 / (1 + np.exp(-np.float64(gate).clip(-700, 700)))
    close(value, share * new + (1 - share) * old, rtol=1e-5, atol=1e-6)
    slopes = share * (1 - share) * (np.float64(new) - old), share, 1 - share
    close(grads, tuple(out * slope for slope in slopes), rtol=1e-5, atol=1e-6)


def test_gated_update_keeps_a_gradient_where_the_gate_is_nearly_shut():
    slope = jax.jit(jax.grad(kernels.gated_update))(jnp.float32(-20.0), jnp.float32(1.0), jnp.float32(0.5))
    close(slope, 0.5 * np.exp(-20), rtol=1e-5)


def test_norm_silu_of_half_precision_is_computed_in_float32():
    x, out = (jnp.asarray(draw(4, 64, seed=i), jnp.bfloat16) for i in (1, 2))
    scale = draw(64, seed=3)
    full_args = out.astype(jnp.float32), x.astype(jnp.float32), scale
    calls = {"half": (value_and_grads(kernels.norm_silu), out, x, scale)}
    results = in_one_program(calls | {"full": (value_and_grads(silu_of_norm), *full_args)})
    (value, grads), (full, full_grads) = results["half"], results["full"]
    assert (value.dtype, *(g.dtype for g in grads)) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    # Rounded once at the end: half a unit in the last of 8 bits.
    as_float = [value.astype(np.float32), grads[0].astype(np.float32)]
    close(as_float, [full, full_grads[0]], rtol=2**-8, atol=1e-5)
    close(grads[1], full_grads[1], rtol=1e-5, atol=1e-5)


LOGIT_SIZES, LOGIT_SHAPES = [0.0, 1.0, 30.0], [(1,), (5,), (4, 5), (2, 3, 32)]


@pytest.fixture(scope="module")
def softmaxes():
    """softmax of all shapes and sizes in both forms, and jax's own; under vmap over either axis, too."""
    fast, plain = {}, {}
    for size, shape in itertools.product(LOGIT_SIZES, LOGIT_SHAPES):
        args = draw(*shape, seed=3), np.float32(size) * draw(*shape)
        fast[size, shape] = value_and_grads(kernels.softmax), *args
        plain[size, shape] = value_and_grads(jax.nn.softmax), *args
    for axis in (0, 1):
        over = lambda f, axis=axis: value_and_grads(jax.vmap(f, axis, axis))
        fast[axis], plain[axis] = ((over(f), *draw(2, 2, 3, 5)) for f in (kernels.softmax, jax.nn.softmax))
    return both_forms(fast) | {"plain": in_one_program(plain)}


@either
@pytest.mark.parametrize("size", LOGIT_SIZES)
@pytest.mark.parametrize("shape", LOGIT_SHAPES)
def test_softmax_is_jaxs_in_value_and_gradient(softmaxes, form, shape, size):
    value, (grad,) = softmaxes[form][size, shape]
    close((value, (grad,)), softmaxes["plain"][size, shape], rtol=1e-5, atol=1e-6)
    probs, out = softmax(np.float32(size) * draw(*shape)), draw(*shape, seed=3)
    close(value, probs, rtol=1e-5, atol=1e-7)
    close(grad, probs * (out - (probs * out).sum(-1, keepdims=True)), rtol=1e-5, atol=1e-6)


@either
@pytest.mark.parametrize("axis", [0, 1])
def test_softmax_under_vmap_is_jaxs_in_value_and_gradient(softmaxes, form, axis):
    close(softmaxes[form][axis], softmaxes["plain"][axis], rtol=1e-5, atol=1e-6)


# ---- under vmap ----------------------------------------------------------------------------------------------------


def test_row_sum_under_vmaps_is_numpys():
    x = draw(2, 3, 4, 5, 6)
    over_rows, over_inner_axes = jax.vmap(jax.vmap(kernels.row_sum)), jax.vmap(jax.vmap(kernels.row_sum, 1), 2, 1)
    sums = in_one_program({"rows": (over_rows, x), "inner": (over_inner_axes, x)})
    close(sums["rows"], x.astype(np.float64).sum((2, 3)), rtol=1e-5, atol=1e-5)
    close(sums["inner"], x.astype(np.float64).sum((0, 3)), rtol=1e-5, atol=1e-5)


AXES = [(0, 0), (0, None), (None, 0)]
"""Weights of each seed, weights that all share, and inputs that all share."""
LAYERS = [*(f"{layer}-{widths}" for layer in ("product", "affine", "blocks") for widths in ("3-7", "7-3"))]
LAYERS += ["norm_silu", "block_norm"]


@pytest.fixture(scope="module")
def under_vmap():
    """Each fast layer of two seeds beside its plain form: value and gradients, by the axes that are mapped over."""
    cases = {}
    for axes in AXES:
        seeds = lambda x, weight, axes=axes: [x if a == 0 else x[0] for x, a in zip((x, weight), axes, strict=True)]
        many = lambda f, *rest, axes=axes: jax.vmap(f, (*axes, *rest))
        for i, o in [(3, 7), (7, 3)]:
            args, out = seeds(draw(2, 4, i), draw(2, i, o, seed=2)), draw(2, 4, o, seed=3)
            cases[axes, f"product-{i}-{o}"] = many(kernels.product), many(jnp.matmul), args, out
            plain = many(lambda x, w, b: x @ w + b, None)
            cases[axes, f"affine-{i}-{o}"] = many(kernels.affine, None), plain, (*args, draw(o, seed=4)), out
            args, out = seeds(draw(2, 3, 4, i), draw(2, 3, i, o, seed=2)), draw(2, 3, 4, o, seed=3)
            cases[axes, f"blocks-{i}-{o}"] = many(kernels.block_product), many(jnp.matmul), args, out
        args = seeds(draw(2, 4, 7), draw(2, 7, seed=2))
        cases[axes, "norm_silu"] = many(kernels.norm_silu), many(silu_of_norm), args, draw(2, 4, 7, seed=3)
        args, out = seeds(draw(2, 3, 4, 5), draw(2, 15, seed=2)), draw(2, 3, 4, 5, seed=3)
        cases[axes, "block_norm"] = many(kernels.block_norm_silu), many(joined_norm_silu), args, out
    return compare(cases)


@pytest.mark.parametrize("axes", AXES, ids=["weights of each", "shared weights", "shared inputs"])
@pytest.mark.parametrize("layer", LAYERS)
def test_fast_layers_under_vmap_are_their_plain_forms(under_vmap, layer, axes):
    close(*under_vmap[axes, layer], rtol=1e-5, atol=1e-5)
