"""A scan whose weights get their gradient from all steps at once.

Reverse mode through `lax.scan` adds to the gradient of every weight at every step: products of B rows, and a read and
a write of all weights each time. Here the scan's reverse pass computes only the gradients of the states. One product
over all T * B rows then gives the weights' gradient. The result is the same up to rounding, and the steps are evaluated
once more.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import PyTree


def scan(
    step: Callable[[PyTree, PyTree, PyTree, PyTree], tuple[PyTree, PyTree]],
    params: PyTree,
    carry: PyTree,
    xs: PyTree,
    fixed: PyTree,
) -> PyTree:
    """`lax.scan` over `carry, y = step(params, carry, x, fixed_x)`: (last carry, ys [T, ...]).

    Gradient reaches params, carry and xs; `fixed` (bools, noise) gets none. `step` takes any leading axes, so that it
    can be given all steps at once, and must not close over anything traced.
    """

    def forward(params, carry, xs, fixed):
        def one(carry, inputs):
            x, tap, fixed = inputs
            after, y = step(params, carry, x, fixed)
            return jax.tree.map(jnp.add, after, tap), (y, carry)

        # A tap is a zero that is added to a state: the tap's gradient is the gradient of that state.
        steps = jax.tree.leaves(xs)[0].shape[0]
        taps = jax.tree.map(lambda x: jnp.zeros((steps, *x.shape), x.dtype), carry)

        def all_steps(carry, xs, taps):
            return lax.scan(one, carry, (xs, taps, fixed))

        (last, (ys, before)), back = jax.vjp(all_steps, carry, xs, taps)
        return (last, ys), (back, params, before, xs, fixed)

    def backward(saved, grads):
        back, params, before, xs, fixed = saved
        grad_last, grad_ys = grads
        grad_carry, grad_xs, grad_after = back((grad_last, (grad_ys, jax.tree.map(jnp.zeros_like, before))))
        (grad_params,) = jax.vjp(lambda params: step(params, before, xs, fixed), params)[1]((grad_after, grad_ys))
        return grad_params, grad_carry, grad_xs, None

    run = jax.custom_vjp(lambda *args: forward(*args)[0])
    run.defvjp(forward, backward)
    return run(params, carry, xs, fixed)
