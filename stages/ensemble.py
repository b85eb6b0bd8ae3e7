"""Plan2Explore's ensemble: M one-step predictors whose disagreement is the explorer's reward.

Axes: M members, Y target dimensions. Members share nothing: one vmapped module, each member with its own key.
Source: Sekar et al. 2020 (arXiv 2005.05960), section 3 and eq. 1-2.
"""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from stages.config import Config
from stages.maths import sg
from stages.nets import Head


class Ensemble(eqx.Module):
    """Heads whose every leaf has a leading member axis [M, ...]."""

    members: Head

    def __init__(self, config: Config, inputs: int, outputs: int, *, key: PRNGKeyArray):
        sizes = config.ensemble
        make = lambda k: Head(inputs, sizes.units or config.model.units, sizes.layers, outputs, key=k)
        self.members = eqx.filter_vmap(make)(jr.split(key, sizes.members))


def predict(ensemble: Ensemble, feat: Float[Array, "*b F"], action: Float[Array, "*b A"]) -> Float[Array, "M *b Y"]:
    """Every member's prediction of the next step's target. No gradient reaches feat or action."""
    # As the dynamics see it: an action beyond the bounds is the bound, and must not look new.
    action = action / jnp.maximum(1, jnp.abs(action))
    inputs = sg(jnp.concatenate([feat, action.astype(feat.dtype)], -1))
    return eqx.filter_vmap(lambda member: member(inputs))(ensemble.members)


def disagreement(
    ensemble: Ensemble, feat: Float[Array, "*b F"], action: Float[Array, "*b A"], spread: str
) -> Float[Array, "*b"]:
    """D(s_t, a_t) >= 0: spread of the members' predictions, averaged over target dimensions (eq. 2).

    It is the reward for choosing a_t at s_t, so in arrival-indexed returns it belongs to t+1. Sends no gradient.
    """
    predictions = predict(ensemble, feat, action)
    # Deviations from one member first: M equal predictions must give exactly 0, which a rounded mean would not.
    variance = jnp.var(predictions - predictions[:1], 0)
    return sg((jnp.sqrt(variance) if spread == "std" else variance).mean(-1))


def ensemble_loss(
    ensemble: Ensemble,
    feat: Float[Array, "T *b F"],
    action: Float[Array, "T *b A"],
    target: Float[Array, "T *b Y"],
    is_first: Bool[Array, "T *b"],
) -> Float[Array, "T *b"]:
    """-log N(target[t+1] | prediction(feat[t], action[t]), 1) up to a constant, averaged over members, nats.

    The pair across an episode's end is masked out (its action leads to no observation), and the last row has no
    successor: both are 0. Gradients are stopped at inputs and target, so only the members learn from it.
    """
    # Of all rows, though the last one's is not used: disagreement on the same rows then costs no second prediction.
    predictions = predict(ensemble, feat, action)[:, :-1]
    error = 0.5 * jnp.square(predictions - sg(target[1:]).astype(jnp.float32)).sum(-1).mean(0)
    loss = jnp.where(is_first[1:], 0.0, error)
    return jnp.concatenate([loss, jnp.zeros_like(loss[:1])])


def target_size(config: Config, embed: int) -> int:
    """Y."""
    model = config.model
    latent = model.stoch * model.classes
    return {"probs": latent, "stoch": latent, "embed": embed, "deter": model.deter}[config.ensemble.target]
