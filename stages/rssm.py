"""RSSM: the recurrent state-space model. One step with an observation (posterior), one without (prior).

Axes: D deter, S categoricals, K classes, E embed, F = D + S K feat, A action vector. Source: DreamerV3, eq. 1 and
Methods; the layer sizes and their order are the reference implementation's (dreamerv3/rssm.py).
"""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from stages.config import ModelConfig
from stages.kernels import product
from stages.maths import Categorical, sample_index, straight_through, unimix
from stages.nets import MLP, BlockGRU, Cell, Dense, Linear


class Latent(eqx.Module):
    """The model's state: what it remembers and what it believes of now."""

    deter: Float[Array, "... D"]
    stoch: Float[Array, "... S K"]  # one-hot, with straight-through gradient where it was sampled


class RSSM(eqx.Module):
    """Weights of the dynamics, prior and posterior."""

    from_deter: Dense
    from_stoch: Dense
    from_action: Dense
    gru: BlockGRU | Cell
    prior: MLP
    prior_out: Linear
    post: Dense
    post_out: Linear
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
        self.stoch, self.classes = model.stoch, model.classes


def initial(rssm: RSSM, lead: tuple[int, ...], deter: int, dtype: jnp.dtype) -> Latent:
    """The state before anything was seen: zeros."""
    return Latent(jnp.zeros((*lead, deter), dtype), jnp.zeros((*lead, rssm.stoch, rssm.classes), dtype))


def laid_out(rssm: RSSM) -> RSSM:
    """The same weights as a scan's steps take them (BlockGRU.cell)."""
    return eqx.tree_at(lambda r: r.gru, rssm, rssm.gru.cell())


def feat(latent: Latent) -> Float[Array, "... F"]:
    """deter and flattened stoch, joined: what every head reads."""
    return jnp.concatenate([latent.deter, latent.stoch.reshape(*latent.stoch.shape[:-2], -1)], -1)


def embed_share(rssm: RSSM, embed: Float[Array, "... E"]) -> Float[Array, "... h"]:
    """The embedding's part of the posterior layer's product. It needs no carry, so a scan may compute it beforehand."""
    weight = rssm.post.linear.weight[-embed.shape[-1] :]
    return product(embed, weight.astype(embed.dtype)) + rssm.post.linear.bias.astype(embed.dtype)


def action_share(rssm: RSSM, action: Float[Array, "... A"], reset: Bool[Array, "..."]) -> Float[Array, "... D"]:
    """The action's part of the recurrent cell's product; the action before a reset is wiped. Needs no carry either."""
    action = action / lax.stop_gradient(jnp.maximum(1, jnp.abs(action)))
    projected = rssm.from_action(jnp.where(reset[..., None], 0, action))
    return rssm.gru.cell().share(1, projected)


def advance_deter(rssm: RSSM, latent: Latent, action: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """The recurrent step. `action` is action_share's."""
    stoch = latent.stoch.reshape(*latent.stoch.shape[:-2], -1)
    x = jnp.concatenate([rssm.from_deter(latent.deter), rssm.from_stoch(stoch)], -1)
    cell = rssm.gru.cell()
    return cell(latent.deter, cell.share(0, x) + action)


def prior_logits(rssm: RSSM, deter: Float[Array, "... D"]) -> Float[Array, "... S K"]:
    """What the model expects of a step before it sees it."""
    return _categoricals(rssm, rssm.prior_out(rssm.prior(deter)))


def posterior_logits(rssm: RSSM, deter: Float[Array, "... D"], share: Float[Array, "... h"]) -> Float[Array, "... S K"]:
    """What the model believes of a step after it saw it. `share` is embed_share's."""
    weight = rssm.post.linear.weight[: deter.shape[-1]].astype(deter.dtype)
    return _categoricals(rssm, rssm.post_out(rssm.post.activate(product(deter, weight) + share)))


def _categoricals(rssm: RSSM, logits: Float[Array, "... L"]) -> Float[Array, "... S K"]:
    return logits.reshape(*logits.shape[:-1], rssm.stoch, rssm.classes)


def sample(dist: Categorical, uniform: Float[Array, "... S"], dtype: jnp.dtype) -> Float[Array, "... S K"]:
    """A one-hot sample with straight-through gradient."""
    return straight_through(sample_index(dist.probs, uniform), dist.probs).astype(dtype)


def wipe(latent: Latent, reset: Bool[Array, "..."]) -> Latent:
    """Forget everything where an episode begins."""
    return Latent(jnp.where(reset[..., None], 0, latent.deter), jnp.where(reset[..., None, None], 0, latent.stoch))


def posterior_step(
    rssm: RSSM,
    latent: Latent,
    action: Float[Array, "... D"],
    share: Float[Array, "... h"],
    reset: Bool[Array, "..."],
    uniform: Float[Array, "... S"],
    ratio: Float[Array, ""] | float,
) -> tuple[Latent, Float[Array, "... S K"]]:
    """One step with an observation.

    Args:
        latent: the previous state; wiped where `reset`.
        action: action_share of the previous action.
        share: embed_share of the new observation.
        reset: is_first of the new observation.
        uniform: noise in [0, 1), one number a categorical.
        ratio: unimix.

    Returns:
        (posterior state, posterior logits).
    """
    deter = advance_deter(rssm, wipe(latent, reset), action)
    logits = posterior_logits(rssm, deter, share)
    return Latent(deter, sample(unimix(logits, ratio), uniform, deter.dtype)), logits


def prior_step(
    rssm: RSSM,
    latent: Latent,
    action: Float[Array, "... D"],
    uniform: Float[Array, "... S"],
    ratio: Float[Array, ""] | float,
) -> Latent:
    """One imagined step. Arguments as in posterior_step."""
    deter = advance_deter(rssm, latent, action)
    return Latent(deter, sample(unimix(prior_logits(rssm, deter), ratio), uniform, deter.dtype))


def classes_of(latent: Latent) -> Int[Array, "... S"]:
    """The sample as class indices, uint8: how replay stores it."""
    return jnp.argmax(latent.stoch, -1).astype(jnp.uint8)
