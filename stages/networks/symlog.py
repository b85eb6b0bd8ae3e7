"""Symmetric logarithm: squashes magnitudes and keeps signs (DreamerV3, eq. 9)."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def symlog(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """sign(x) log(1 + |x|) (DreamerV3, eq. 9)."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """sign(x) (exp(|x|) - 1), the inverse of symlog (DreamerV3, eq. 9)."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))
