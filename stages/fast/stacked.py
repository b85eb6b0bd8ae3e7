"""Stacked: N modules of one shape as one module, computed together, such as the members of an ensemble."""

from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import Array, Key, PRNGKeyArray, PyTree


class Stacked(eqx.Module):
    """N modules of one shape as one: every leaf has a leading axis [N, ...].

    By this type the optimiser knows to clip the gradient of each of the N separately (fast/rows.py).
    """

    module: PyTree

    def __init__(self, make: Callable[[PRNGKeyArray], eqx.Module], keys: Key[Array, " N"]):
        self.module = eqx.filter_vmap(make)(keys)

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.module)[0])

    def map(self, fn: Callable[..., PyTree], *args: PyTree) -> PyTree:
        """`fn(module, *arg)` of each module and its entry [N, ...] of each argument; results are stacked likewise."""
        return jax.vmap(fn)(self.module, *args)
