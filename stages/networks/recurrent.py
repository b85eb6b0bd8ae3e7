"""The recurrent cell of DreamerV3: a GRU whose weights are block-diagonal (Methods, "block-diagonal GRU").

Axes: D deter, G blocks, i inputs, o = D / G.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from stages.fast.kernels import block_norm_silu, block_product, gated_update, merge_blocks, product, split_blocks
from stages.networks.layers import RMSNorm, truncated_normal


class BlockGRU(eqx.Module):
    """Weights of the cell: one block-linear layer, then three gates.

    Each of the G blocks sees its own slice of deter and the whole input, which comes in parts of the sizes `inputs`.
    """

    hidden: Float[Array, "i G o"]  # rows: a block's slice of deter, then the input
    bias: Float[Array, " D"]
    norm: RMSNorm
    gates: Float[Array, "G o 3*o"]
    gates_bias: Float[Array, "G 3*o"]
    inputs: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, inputs: tuple[int, ...], deter: int, blocks: int, *, key: PRNGKeyArray):
        key_hidden, key_gates = jr.split(key)
        size = deter // blocks
        # The reference counts a block-linear layer's inputs over all blocks.
        shape = (size + sum(inputs), blocks, size)
        self.hidden = truncated_normal(key_hidden, shape, deter + blocks * sum(inputs))
        self.bias = jnp.zeros((deter,))
        self.norm = RMSNorm(deter)
        self.gates = truncated_normal(key_gates, (blocks, size, 3 * size), deter)
        self.gates_bias = jnp.zeros((blocks, 3 * size))
        self.inputs = inputs

    def pack(self) -> "PackedGRU":
        """The weights in the layout that the cell's products need. Pack them once, before a scan."""
        blocks, size, _ = self.gates.shape
        recurrent, from_input = jnp.split(self.hidden, [size])
        parts = jnp.split(from_input.reshape(-1, blocks * size), np.cumsum(self.inputs)[:-1])
        bias, gates_bias = self.bias.reshape(blocks, 1, -1), self.gates_bias[:, None]
        return PackedGRU(jnp.moveaxis(recurrent, 1, 0), tuple(parts), bias, self.norm.scale, self.gates, gates_bias)


class PackedGRU(eqx.Module):
    """The cell: `h' = u tanh(sigmoid(reset) cand) + (1 - u) h`, `u = sigmoid(update - 1)`.

    A block sees its own slice of h and the whole input. The hidden layer's product with the input is dense. It may be
    computed in parts, and before a scan.
    """

    recurrent: Float[Array, "G o o"]
    parts: tuple[Float[Array, "_ D"], ...]
    bias: Float[Array, "G 1 o"]
    scale: Float[Array, " D"]
    gates: Float[Array, "G o 3*o"]
    gates_bias: Float[Array, "G 1 3*o"]

    def project(self, part: int, x: Float[Array, "... j"]) -> Float[Array, "... D"]:
        """The hidden layer's product with one part of the input. It does not depend on deter."""
        return product(x, self.parts[part].astype(x.dtype))

    def __call__(self, deter: Float[Array, "... D"], projected: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """One step. `projected` is the sum of `project` over all parts of the input."""
        blocks, dtype = len(self.recurrent), deter.dtype
        # The block axis stays in front, so that products, norm and gates read and write whole rows.
        old = split_blocks(deter, blocks)
        hidden = (
            block_product(old, self.recurrent.astype(dtype)) + split_blocks(projected, blocks) + self.bias.astype(dtype)
        )
        gates = block_product(block_norm_silu(hidden, self.scale), self.gates.astype(dtype))
        reset, cand, update = jnp.split(gates + self.gates_bias.astype(dtype), 3, -1)
        return merge_blocks(gated_update(update - 1, jnp.tanh(jax.nn.sigmoid(reset) * cand), old)).reshape(deter.shape)
