"""Divergence: whether numbers are finite, and the last finite state where they are not.

Nothing here branches: under vmap every seed would take a branch that one seed takes.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

Tree = TypeVar("Tree")


def all_finite(tree: PyTree[Array]) -> Bool[Array, ""]:
    """Whether all numbers of a tree of arrays are finite."""
    return jnp.stack(
        [jnp.isfinite(x).all() for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    ).all()


def tree_where(condition: Bool[Array, ""], new: Tree, old: Tree | float) -> Tree:
    """`new` where the condition holds, else `old`: a tree like `new`, or one number for all of its leaves."""
    if isinstance(old, float):
        return jax.tree.map(lambda new: jnp.where(condition, new, old), new)
    return jax.tree.map(lambda new, old: jnp.where(condition, new, old), new, old)


def update_diverged_step(diverged: Int[Array, ""], is_finite: Bool[Array, ""], step: Int[Array, ""]) -> Int[Array, ""]:
    """The first step whose outcome was not finite; 0 while all were."""
    return jnp.where(is_finite | (diverged > 0), diverged, step)
