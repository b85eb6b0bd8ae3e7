"""fast/scan.py: a scan and its gradients against lax.scan and jax's own.

Axes: T steps, B batch, D deter, K classes.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stages.fast.scan import scan
from tests.conftest import to_device
from tests.programs import plain_scan

T, B, D, K = 5, 3, 4, 3


class State(NamedTuple):
    """What a step hands on."""

    deter: jax.Array  # [..., D]
    stoch: jax.Array  # [..., K], one-hot with straight-through gradient


class Fixed(NamedTuple):
    """What has no gradient."""

    reset: jax.Array  # [...]
    uniform: jax.Array  # [...]


def step(params, state, x, fixed):
    """A small RSSM: wipe, recur, sample. Takes any leading axes."""
    keep = ~fixed.reset[..., None]
    deter, stoch = jnp.where(keep, state.deter, 0), jnp.where(keep, state.stoch, 0)
    deter = 0.5 * deter + jnp.tanh(deter @ params["deter"] + stoch @ params["stoch"] + x + params["bias"])
    logits = deter @ params["out"]
    probs = jax.nn.softmax(logits)
    index = (fixed.uniform[..., None] >= jnp.cumsum(probs, -1)[..., :-1]).sum(-1)
    stoch = jax.lax.stop_gradient(jax.nn.one_hot(index, K, dtype=probs.dtype) - probs) + probs
    return State(deter, stoch), {"deter": deter, "logits": logits + fixed.uniform[..., None].astype(logits.dtype)}


def inputs(steps: int = T, lead: tuple[int, ...] = (), seed: int = 0):
    """(params, carry, xs, fixed); all have the axes `lead` in front."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: to_device(rng.normal(size=(*lead, *shape)), jnp.float32)
    params = {"deter": normal(D, D), "stoch": normal(K, D), "bias": normal(D), "out": normal(D, K)}
    carry = State(normal(B, D), to_device(np.eye(K)[rng.integers(0, K, (*lead, B))], jnp.float32))
    uniform = to_device(rng.uniform(size=(*lead, steps, B)), jnp.float32)
    return params, carry, normal(steps, B, D), Fixed(to_device(rng.uniform(size=(*lead, steps, B)) < 0.2), uniform)


def cotangent(value, last: float = 1.0, ys: float = 1.0, seed: int = 7):
    """Random weights of what came out: of the last carry, and of all steps' outputs."""
    rng = np.random.default_rng(seed)
    draw = lambda size: lambda x: to_device(size * rng.normal(size=x.shape), x.dtype)
    return jax.tree.map(draw(last), value[0]), jax.tree.map(draw(ys), value[1])


def value_and_gradients(scan, fixed, **weights):
    """A function of (params, carry, xs): what comes out, and the gradients of all three."""

    def run(params, carry, xs):
        value, back = jax.vjp(lambda *args: scan(step, *args, fixed), params, carry, xs)
        return value, back(cotangent(value, **weights))

    return run


@pytest.mark.parametrize("steps", [1, T])
@pytest.mark.parametrize("last, ys", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)], ids=["both", "last", "ys"])
def test_scan_is_lax_scan_in_value_and_gradient(steps, last, ys):
    *args, fixed = inputs(steps)
    fast, slow = (jax.jit(value_and_gradients(scan, fixed, last=last, ys=ys))(*args) for scan in (scan, plain_scan))
    chex.assert_trees_all_close(fast, slow, rtol=1e-5, atol=1e-5)
    assert all(np.abs(x).max() > 1e-2 for x in jax.tree.leaves(slow[1]))  # nothing agrees by being zero


@pytest.mark.parametrize("shared", [False, True])
def test_scan_under_vmap_is_lax_scan_under_vmap(shared):
    """Seeds with everything of their own, and seeds that share inputs and noise."""
    params, carry, xs, fixed = inputs(lead=(2,))
    if shared:
        xs, fixed = jax.tree.map(lambda x: x[0], (xs, fixed))
    axis = None if shared else 0

    def both(scan):
        one = lambda params, carry, xs, fixed: value_and_gradients(scan, fixed)(params, carry, xs)
        return jax.jit(jax.vmap(one, (0, 0, axis, axis)))(params, carry, xs, fixed)

    chex.assert_trees_all_close(both(scan), both(plain_scan), rtol=1e-5, atol=1e-5)


def test_no_gradient_reaches_what_is_fixed():
    params, carry, xs, fixed = inputs()

    def total(scan):
        def loss(uniform):
            value = scan(step, params, carry, xs, fixed._replace(uniform=uniform))
            return sum(x.sum() for x in jax.tree.leaves(value))

        return np.asarray(jax.jit(jax.grad(loss))(fixed.uniform))

    np.testing.assert_array_equal(total(scan), np.zeros((T, B)))
    assert (total(plain_scan) != 0).all()  # the step reads it, so that jax's own would have had one


def test_gradient_stops_at_a_reset_and_nowhere_else():
    params, carry, xs, fixed = inputs()

    def reach(reset):
        fixed_at = fixed._replace(reset=jnp.zeros((T, B), bool).at[2, 1].set(reset))
        loss = lambda carry, xs: jnp.square(scan(step, params, carry, xs, fixed_at)[0].deter).sum()
        grads = jax.tree.map(np.asarray, jax.jit(jax.grad(loss, (0, 1)))(carry, xs))
        return np.abs(grads[0].deter).max(-1) > 0, np.abs(grads[1]).max(-1) > 0

    before, steps = reach(True)
    np.testing.assert_array_equal(before, [True, False, True])
    np.testing.assert_array_equal(steps[:, 1], [False, False, True, True, True])
    assert all(x.all() for x in reach(False)) and steps[:, [0, 2]].all()


def test_scan_of_half_precision_keeps_its_type():
    half = lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)
    *args, fixed = inputs()
    value, grads = jax.jit(value_and_gradients(scan, fixed))(*half(args))
    chex.assert_type(jax.tree.leaves((value, grads)), jnp.bfloat16)
    # A sample may fall otherwise in half precision, so only steps before the first draw are compared.
    full = jax.jit(value_and_gradients(plain_scan, fixed))(*args)[0]
    np.testing.assert_allclose(np.float32(value[1]["deter"][0]), full[1]["deter"][0], rtol=0.05, atol=0.05)


def scans(jaxpr):
    """Every scan of a program, those inside other operations too."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan":
            yield eqn
        for inner in eqn.params.values():
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from scans(inner)


def carried_shapes(eqn):
    """Of a scan's results those that it carries: as large as its body's, while the others are stacked."""
    body = getattr(eqn.params["jaxpr"], "jaxpr", eqn.params["jaxpr"])
    for out, each in zip(eqn.outvars, body.outvars, strict=True):
        if out.aval.shape == each.aval.shape:
            yield tuple(out.aval.shape)


@pytest.mark.parametrize("scan, added_up", [(scan, False), (plain_scan, True)], ids=["fast", "plain"])
def test_no_scan_adds_up_gradients_of_weights(scan, added_up):
    *args, fixed = inputs()
    loops = list(scans(jax.make_jaxpr(value_and_gradients(scan, fixed))(*args).jaxpr))
    carried = {shape for eqn in loops for shape in carried_shapes(eqn)}
    assert len(loops) == 2 and (B, D) in carried  # forward and back
    assert ((D, D) in carried) == added_up
