"""fast/blocks.py: a sum over blocks against the plain sum and jax's own gradients; how rows are counted and split."""

import functools

import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from stages.fast import blocks

ROWS, WIDTH = 12, 3


def loss(params, known, block):
    """Not linear in anything, and not a mean: rows count alike however many come at once."""
    shift, slope = known
    out = jnp.tanh(block["x"] @ params["weight"] + shift) * jnp.exp(slope * params["bias"])
    return jnp.sum(jnp.square(out) * block["share"][:, None]), {"out": out, "low": out.min()}


def made_up():
    """Parameters, what is known, and rows."""
    keys = jr.split(jr.key(0), 5)
    params = {"weight": jr.normal(keys[0], (WIDTH, 2)), "bias": jr.normal(keys[1], (2,))}
    known = (jr.normal(keys[2], (2,)), jnp.float32(0.3))
    return params, known, {"x": jr.normal(keys[3], (ROWS, WIDTH)), "share": jr.normal(keys[4], (ROWS,))}


def plainly(loss, params, known, parts):
    """sum_over without its gradient."""
    split = [jax.tree.map(lambda x, i=i: x[i], parts) for i in range(len(jax.tree.leaves(parts)[0]))]
    values, kept = zip(*(loss(params, known, part) for part in split), strict=True)
    return jnp.stack(values).sum(), jax.tree.map(lambda *x: jnp.stack(x), *kept)


@functools.cache
def sums(count, fast):
    """(sum, kept), and the gradients of a function of the sum with respect to parameters, known and rows."""
    over = blocks.sum_over if fast else plainly

    def total(params, known, rows):
        value, kept = over(loss, params, known, blocks.split(rows, count))
        # A factor of its own and one that depends on the sum: what comes from above is not 1.
        return -0.7 * jnp.sin(value) + 2.0 * (params["bias"] ** 2).sum(), (value, kept)

    grads, told = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*made_up())
    return told, grads


every_count = pytest.mark.parametrize("count", [1, 3, ROWS])


@every_count
def test_sum_and_what_is_kept_are_the_plain_ones(count):
    chex.assert_trees_all_close(sums(count, True)[0], sums(count, False)[0], rtol=1e-5, atol=1e-6)
    _, kept = sums(count, True)[0]
    chex.assert_shape(kept["out"], (count, ROWS // count, 2))
    chex.assert_shape(kept["low"], (count,))


@every_count
def test_gradient_to_parameters_is_the_plain_one(count):
    grads, plain = sums(count, True)[1][0], sums(count, False)[1][0]
    assert all((np.abs(x) > 0.01).any() for x in jax.tree.leaves(plain))
    chex.assert_trees_all_close(grads, plain, rtol=1e-5, atol=1e-5)


@every_count
def test_neither_known_nor_rows_get_a_gradient(count):
    _, known, rows = sums(count, True)[1]
    assert not any(np.any(x) for x in jax.tree.leaves((known, rows)))
    assert all(np.any(x) for x in jax.tree.leaves(sums(count, False)[1][1:]))  # which the plain sum sends


def test_what_is_kept_sends_no_gradient():
    params, known, rows = made_up()
    total = lambda params: blocks.sum_over(loss, params, known, blocks.split(rows, 3))[1]["out"].sum()
    assert not any(np.any(x) for x in jax.tree.leaves(jax.jit(jax.grad(total))(params)))


def test_without_a_gradient_the_sum_is_the_same():
    params, known, rows = made_up()
    value = jax.jit(lambda *given: blocks.sum_over(loss, *given))(params, known, blocks.split(rows, 3))
    chex.assert_trees_all_close(value, sums(3, False)[0], rtol=1e-5, atol=1e-6)


def test_bools_and_whole_numbers_may_be_known_and_split():
    def loss(params, known, block):
        return jnp.sum(jnp.where(block["mask"], params * known * block["index"], 0.0)), None

    def total(params, known, rows):
        return blocks.sum_over(loss, params, known, blocks.split(rows, 2))[0]

    rows = {"mask": jnp.array([True, False, True, True]), "index": jnp.arange(4)}
    assert jax.jit(jax.grad(total))(jnp.float32(1.5), jnp.int32(2), rows) == 2 * (0 + 2 + 3)


def test_seeds_side_by_side():
    params, known, rows = made_up()
    params = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params)
    total = lambda over: lambda params: over(loss, params, known, blocks.split(rows, 3))[0]
    fast, plain = (jax.jit(jax.vmap(jax.grad(total(over))))(params) for over in (blocks.sum_over, plainly))
    chex.assert_trees_all_close(fast, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "size", "count"),
    [(12, 12, 1), (12, 6, 2), (12, 4, 3), (12, 1, 12), (12, 5, 3), (12, 11, 2), (12, 100, 1), (7, 3, 7), (1, 1, 1)],
)
def test_count_is_the_fewest_equal_blocks_that_are_no_larger(rows, size, count):
    assert blocks.count(rows, size) == count


@pytest.mark.parametrize(
    ("machine", "rows", "count"), [("cpu", 1024, 16), ("cpu", 8, 1), ("cpu", 65, 5), ("gpu", 1024, 1)]
)
def test_count_of_0_suits_the_machine(monkeypatch, machine, rows, count):
    monkeypatch.setattr(jax, "default_backend", lambda: machine)
    assert blocks.count(rows, 0) == count


def test_split_keeps_consecutive_rows_together():
    np.testing.assert_array_equal(blocks.split(jnp.arange(6), 3), [[0, 1], [2, 3], [4, 5]])
    np.testing.assert_array_equal(
        blocks.split(jnp.arange(8).reshape(2, 4), 2, axis=1), [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]
    )
    chex.assert_shape(blocks.split(jnp.zeros((5, 2, 12, 7)), 4, axis=2), (4, 5, 2, 3, 7))
