"""N modules of one shape as one, computed together: the members of an ensemble."""

from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import Array, Key, PRNGKeyArray, PyTree


class Stacked(eqx.Module):
    """N modules of one shape as one: every leaf has a leading axis [N, ...].

    Its type tells the optimiser that each of the N trains as it would alone (fast/rows.py).
    """

    module: PyTree

    def __init__(self, make: Callable[[PRNGKeyArray], eqx.Module], keys: Key[Array, " N"]):
        self.module = eqx.filter_vmap(make)(keys)

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.module)[0])

    def map(self, fn: Callable[..., PyTree], *args: PyTree) -> PyTree:
        """`fn(module, *arg)` of each module and its entry [N, ...] of each argument; results are stacked likewise."""
        return jax.vmap(fn)(self.module, *args)
