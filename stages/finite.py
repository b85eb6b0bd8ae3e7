"""Finite: whether numbers are, and keeping what was where they are not.

A seed in which something is not finite has diverged: it stays what it was before. Nothing here branches, since under
vmap a branch would be taken by all seeds.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def finite(tree: Any) -> Bool[Array, ""]:
    """Whether all numbers of a tree of arrays are finite."""
    return jnp.stack(
        [jnp.isfinite(x).all() for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    ).all()


def keep(taken: Bool[Array, ""], new: Any, old: Any) -> Any:
    """The new tree if it is taken, else the old one."""
    return jax.tree.map(lambda new, old: jnp.where(taken, new, old), new, old)


def mark(diverged: Int[Array, ""], taken: Bool[Array, ""], step: Int[Array, ""]) -> Int[Array, ""]:
    """The step at which a seed diverged, 0 before: the first whose outcome is not taken."""
    return jnp.where(taken | (diverged > 0), diverged, step)
