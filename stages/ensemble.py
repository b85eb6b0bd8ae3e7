"""Plan2Explore's ensemble: M one-step predictors whose disagreement is the explorer's reward.

Axes: M members, T time, B windows, F feat, A action vector, Y target dimensions. Members share nothing: each has its
own key. Source: Sekar et al. 2020 (arXiv 2005.05960), section 3 and eq. 1-2.
"""

from typing import Literal

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jax.lax import stop_gradient as sg
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from stages.config import Config
from stages.fast.stacked import Stacked
from stages.networks.layers import Head
from stages.rssm import bound_action
from stages.world_model import Observed


class Ensemble(eqx.Module):
    """M heads: (feature, action) -> the next row's target."""

    members: Stacked
    target: Literal["probs", "stoch", "embed", "deter"] = eqx.field(static=True)
    spread: Literal["std", "var"] = eqx.field(static=True)

    def __init__(self, config: Config, action: int, embed: int, *, key: PRNGKeyArray):
        model, sizes = config.model, config.ensemble
        latent = model.stoch * model.classes
        outputs = {"probs": latent, "stoch": latent, "embed": embed, "deter": model.deter}[sizes.target]
        make = lambda k: Head(model.feat + action, sizes.units or model.units, sizes.layers, outputs, key=k)
        self.members = Stacked(make, jr.split(key, sizes.members))
        self.target, self.spread = sizes.target, sizes.spread


def predict(ensemble: Ensemble, feat: Float[Array, "*b F"], action: Float[Array, "*b A"]) -> Float[Array, "M *b Y"]:
    """Every member's prediction of the next row's target. No gradient reaches feat or action."""
    # An action beyond the bounds is the bound, as the dynamics see it, and must not look new.
    inputs = sg(jnp.concatenate([feat, bound_action(action).astype(feat.dtype)], -1))
    return ensemble.members.map(lambda member: member(inputs))


def disagreement(ensemble: Ensemble, feat: Float[Array, "*b F"], action: Float[Array, "*b A"]) -> Float[Array, "*b"]:
    """D(s_t, a_t) >= 0: spread of the members' predictions, averaged over target dimensions (eq. 2).

    It is the reward for choosing a_t at s_t, so in arrival-indexed returns it belongs to t+1. Sends no gradient.
    """
    predictions = predict(ensemble, feat, action)
    # Deviations from one member first: M equal predictions must give exactly 0, which a rounded mean would not.
    variance = jnp.var(predictions - predictions[:1], 0)
    return sg((jnp.sqrt(variance) if ensemble.spread == "std" else variance).mean(-1))


def ensemble_loss(
    ensemble: Ensemble,
    observed: Observed,
    action: Float[Array, "T B A"],
    is_first: Bool[Array, "T B"],
) -> Float[Array, "T B"]:
    """-log N(target[t+1] | prediction(feat[t], action[t]), 1) up to a constant, averaged over members, nats.

    The pair across an episode's end is masked out (its action leads to no observation), and the last row has no
    successor: both are 0. Gradients are stopped at inputs and target, so only the members learn from it.
    """
    # Of all rows, though the last one's is not used: disagreement on the same rows then costs no second prediction.
    predictions = predict(ensemble, observed.latent.feat, action)[:, :-1]
    target = sg(target_of(ensemble, observed))[1:].astype(jnp.float32)
    error = 0.5 * jnp.square(predictions - target).sum(-1).mean(0)
    loss = jnp.where(is_first[1:], 0.0, error)
    return jnp.concatenate([loss, jnp.zeros_like(loss[:1])])


def target_of(ensemble: Ensemble, observed: Observed) -> Float[Array, "T B Y"]:
    """What the members predict of a row, one step before it."""
    flat = lambda x: x.reshape(*x.shape[:-2], -1)
    match ensemble.target:
        case "probs":
            return flat(observed.post.probs)
        case "stoch":
            return flat(observed.latent.stoch)
        case "embed":
            return observed.embed
        case "deter":
            return observed.latent.deter
