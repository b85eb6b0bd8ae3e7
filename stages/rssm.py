"""RSSM: the recurrent state-space model, the world model's dynamics.

Three verbs. `observe_embeds` runs the posterior through a window of embeddings. `observe_step` takes one step of it,
for acting. `imagine_step` takes one step without an observation, by the prior. How their weights are packed and which
products are computed before a scan is private to this file.

Axes: T time, B windows, D deter, S categoricals, K classes, E embed, F = D + S K feat, A action vector, h hidden.
Source: DreamerV3, eq. 1 and Methods; layer sizes and their order are the reference implementation's (rssm.py).
"""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jax.lax import stop_gradient as sg
from jax.nn import one_hot
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt8

from stages.config import ModelConfig, Scalar
from stages.fast.kernels import norm_silu, product
from stages.fast.scan import scan
from stages.networks.distributions import Categorical
from stages.networks.layers import MLP, Dense, Linear
from stages.networks.recurrent import BlockGRU, PackedGRU


class Latent(eqx.Module):
    """The state of the world model: a deterministic and a stochastic part."""

    deter: Float[Array, "... D"]
    stoch: Float[Array, "... S K"]  # one-hot, with straight-through gradient where it was sampled

    @staticmethod
    def stored(deter: Float[Array, "... D"], classes: UInt8[Array, "... S"], count: int, dtype) -> "Latent":
        """A state as replay keeps it -> the state, in the compute type; `count` is K."""
        return Latent(deter.astype(dtype), one_hot(classes, count, dtype=dtype))

    @property
    def feat(self) -> Float[Array, "... F"]:
        """deter and flattened stoch, concatenated: what every head reads."""
        return jnp.concatenate([self.deter, self.stoch.reshape(*self.stoch.shape[:-2], -1)], -1)

    @property
    def classes(self) -> UInt8[Array, "... S"]:
        """stoch as class indices: how replay stores it."""
        return jnp.argmax(self.stoch, -1).astype(jnp.uint8)


class RSSM(eqx.Module):
    """Weights of the recurrent cell, prior and posterior."""

    from_deter: Dense
    from_stoch: Dense
    from_action: Dense
    gru: BlockGRU
    prior: MLP
    prior_out: Linear
    post: Dense
    post_out: Linear
    deter: int = eqx.field(static=True)
    stoch: int = eqx.field(static=True)
    classes: int = eqx.field(static=True)

    def __init__(self, model: ModelConfig, embed: int, action: int, *, key: PRNGKeyArray):
        latent = model.stoch * model.classes
        keys = iter(jr.split(key, 8))
        self.from_deter = Dense(model.deter, model.hidden, key=next(keys))
        self.from_stoch = Dense(latent, model.hidden, key=next(keys))
        self.from_action = Dense(action, model.hidden, key=next(keys))
        self.gru = BlockGRU((2 * model.hidden, model.hidden), model.deter, model.blocks, key=next(keys))
        self.prior = MLP(model.deter, model.hidden, 2, key=next(keys))
        self.prior_out = Linear(model.hidden, latent, key=next(keys))
        self.post = Dense(model.deter + embed, model.hidden, key=next(keys))
        self.post_out = Linear(model.hidden, latent, key=next(keys))
        self.deter, self.stoch, self.classes = model.deter, model.stoch, model.classes


def initial_latent(rssm: RSSM, lead: tuple[int, ...], dtype: jnp.dtype) -> Latent:
    """The state before an episode: zeros, [*lead, ...]."""
    return Latent(jnp.zeros((*lead, rssm.deter), dtype), jnp.zeros((*lead, rssm.stoch, rssm.classes), dtype))


def latent_of(rssm: RSSM, feat: Float[Array, "... F"]) -> Latent:
    """The state whose feature this is."""
    deter, stoch = feat[..., : rssm.deter], feat[..., rssm.deter :]
    return Latent(deter, stoch.reshape(*stoch.shape[:-1], rssm.stoch, rssm.classes))


def bound_action(action: Float[Array, "... A"]) -> Float[Array, "... A"]:
    """Entries beyond [-1, 1] scaled back to its border; no gradient through the scale (the reference's rssm.py)."""
    return action / sg(jnp.maximum(1, jnp.abs(action)))


def observe_embeds(
    rssm: RSSM,
    context: Latent,
    embed: Float[Array, "T B E"],
    action: Float[Array, "T B A"],
    is_first: Bool[Array, "T B"],
    uniform: Float[Array, "T B S"],
    unimix: Scalar,
) -> tuple[Latent, Categorical, Categorical]:
    """Run the posterior through a window.

    Args:
        context: state [B, ...] at the row before the window.
        embed: embeddings of the window's observations.
        action: vectors of the actions before each row.
        is_first: rows that begin an episode: state and action before them are replaced by zeros.
        uniform: noise of the samples, in [0, 1).
        unimix: uniform share of both distributions.

    Returns:
        (posterior states, posterior, prior), [T, B, ...].
    """
    dynamics = _pack(rssm)
    projected = (_project_action(dynamics, action, embed.dtype, is_first), _project_embed(rssm, embed))

    def step(dynamics, latent, projected, fixed):
        (action, embed), (is_first, uniform, unimix) = projected, fixed
        latent, logits = _posterior_step(dynamics, latent, action, embed, is_first, uniform, unimix)
        return latent, (latent, logits)

    # The scan hands each step its own slice of everything, and all steps at once to the weights' gradient.
    every_step = jnp.broadcast_to(unimix, (is_first.shape[0], 1, 1, 1))
    _, (latent, logits) = scan(step, dynamics, context, projected, (is_first, uniform, every_step))
    prior = _prior_logits(dynamics, latent.deter)
    return latent, Categorical.from_outputs(logits, unimix), Categorical.from_outputs(prior, unimix)


def observe_step(
    rssm: RSSM,
    latent: Latent,
    embed: Float[Array, "*b E"],
    action: Float[Array, "*b A"],
    is_first: Bool[Array, "*b"],
    uniform: Float[Array, "*b S"],
    unimix: Scalar,
) -> Latent:
    """One step with an observation: the posterior state. Arguments as in observe_embeds, of one row."""
    dynamics = _pack(rssm)
    projected_action = _project_action(dynamics, action, embed.dtype, is_first)
    projected_embed = _project_embed(rssm, embed)
    return _posterior_step(dynamics, latent, projected_action, projected_embed, is_first, uniform, unimix)[0]


def imagine_step(
    rssm: RSSM,
    latent: Latent,
    action: Float[Array, "*b A"],
    uniform: Float[Array, "*b S"],
    unimix: Scalar,
) -> Latent:
    """One step without an observation: a state sampled from the prior. Arguments as in observe_embeds, of one row."""
    dynamics = _pack(rssm)
    deter = _advance(dynamics, latent, _project_action(dynamics, action, latent.deter.dtype))
    prior = Categorical.from_outputs(_prior_logits(dynamics, deter), unimix)
    return Latent(deter, prior.rsample(uniform).astype(deter.dtype))


# ---- private: weights as a scan's steps read them, and what is computed before it ----------------------------------


class _Dynamics(eqx.Module):
    """An RSSM's weights, packed: those of the posterior's embedding are not among them."""

    from_deter: Dense
    from_stoch: Dense
    from_action: Dense
    cell: PackedGRU
    prior: MLP
    prior_out: Linear
    post_weight: Float[Array, "D h"]
    post_scale: Float[Array, " h"]
    post_out: Linear
    stoch: int = eqx.field(static=True)
    classes: int = eqx.field(static=True)


def _pack(rssm: RSSM) -> _Dynamics:
    weight, scale = rssm.post.linear.weight[: rssm.deter], rssm.post.norm.scale
    inputs = (rssm.from_deter, rssm.from_stoch, rssm.from_action, rssm.gru.pack(), rssm.prior, rssm.prior_out)
    return _Dynamics(*inputs, weight, scale, rssm.post_out, rssm.stoch, rssm.classes)


def _project_embed(rssm: RSSM, embed: Float[Array, "... E"]) -> Float[Array, "... h"]:
    """The embedding's part of the posterior layer's product. It needs no state, so a scan computes it beforehand."""
    weight = rssm.post.linear.weight[rssm.deter :]
    return product(embed, weight.astype(embed.dtype)) + rssm.post.linear.bias.astype(embed.dtype)


def _project_action(
    dynamics: _Dynamics, action: Float[Array, "*b A"], dtype: jnp.dtype, is_first: Bool[Array, "*b"] | None = None
) -> Float[Array, "*b D"]:
    """The action's part of the cell's hidden layer; the action before an episode is zero. It needs no state either."""
    action = bound_action(action).astype(dtype)
    if is_first is not None:
        action = jnp.where(is_first[..., None], 0, action)
    return dynamics.cell.project(1, dynamics.from_action(action))


def _advance(dynamics: _Dynamics, latent: Latent, projected_action: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """The recurrent step."""
    stoch = latent.stoch.reshape(*latent.stoch.shape[:-2], -1)
    x = jnp.concatenate([dynamics.from_deter(latent.deter), dynamics.from_stoch(stoch)], -1)
    return dynamics.cell(latent.deter, dynamics.cell.project(0, x) + projected_action)


def _posterior_step(dynamics: _Dynamics, latent: Latent, projected_action, projected_embed, is_first, uniform, unimix):
    """(posterior state, its logits [..., S, K]); the state before is zeros where `is_first`."""

    def reset(x):
        return jnp.where(is_first.reshape(*is_first.shape, *[1] * (x.ndim - is_first.ndim)), 0, x)

    deter = _advance(dynamics, Latent(reset(latent.deter), reset(latent.stoch)), projected_action)
    hidden = product(deter, dynamics.post_weight.astype(deter.dtype)) + projected_embed
    logits = _categoricals(dynamics, dynamics.post_out(norm_silu(hidden, dynamics.post_scale)))
    sample = Categorical.from_outputs(logits, unimix).rsample(uniform)
    return Latent(deter, sample.astype(deter.dtype)), logits


def _prior_logits(dynamics: _Dynamics, deter: Float[Array, "... D"]) -> Float[Array, "... S K"]:
    return _categoricals(dynamics, dynamics.prior_out(dynamics.prior(deter)))


def _categoricals(dynamics: _Dynamics, logits: Float[Array, "... L"]) -> Float[Array, "... S K"]:
    return logits.reshape(*logits.shape[:-1], dynamics.stoch, dynamics.classes)
