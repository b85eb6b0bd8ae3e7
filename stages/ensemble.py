"""Plan2Explore's ensemble: M one-step predictors whose disagreement is the explorer's reward.

A member is a network that learns, and a frozen random one that is added to it where `prior_layers` asks for one: so
members differ where nothing was learned. They learn with the model, from its batch and in its optimiser
(`ensemble_loss`), or by updates of their own on pairs of replayed rows (`update_ensemble`), which may be more and
faster: disagreement has to fall within a handful of visits for an explorer to be able to follow it.

Members share nothing; each has its own keys.

Axes: M members, T time, B windows, n pairs, F feat, A action vector, I inputs, P numbers of an observation, Q numbers
of its projection, Y target dimensions. Source: Sekar et al. 2020 (arXiv 2005.05960), section 3 and eq. 1-2; priors:
Osband et al. 2018 (arXiv 1806.03335).
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax.lax import stop_gradient as sg
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from envs.environment import ObsSpace
from stages.config import Config, EnsembleConfig, Hypers
from stages.decode import expected
from stages.encode import embed_size, features, numeric
from stages.fast.stacked import Stacked
from stages.networks.distributions import Categorical
from stages.networks.layers import Head
from stages.replay import Row
from stages.rssm import Latent, bound_action, latent_of
from stages.world_model import Observed, WorldModel, action_vector

STANDARD_RATE = 0.01  # of a Standard's moving averages, for each of the ensemble's own updates


class Standard(eqx.Module):
    """Moving averages of real observations and their squares, by which they are brought to mean 0 and variance 1: a
    velocity of 0.07 says as much as a position of 1."""

    mean: Float[Array, " P"]
    square: Float[Array, " P"]
    weight: Float[Array, ""]  # what the averages sum to: they start at zero

    @staticmethod
    def zero(size: int) -> "Standard":
        """Before any observation: numbers pass as they are."""
        return Standard(jnp.zeros(size), jnp.zeros(size), jnp.zeros(()))

    def __call__(self, x: Float[Array, "... P"]) -> Float[Array, "... P"]:
        weight = jnp.maximum(self.weight, 1e-8)
        mean = self.mean / weight
        # Numbers that never change have no deviation, and a decoder's small errors in them must not look large.
        deviation = jnp.sqrt(jnp.maximum(self.square / weight - jnp.square(mean), 0) + 1e-4)
        return jnp.where(self.weight > 0, (x - mean) / deviation, x)

    def updated(self, x: Float[Array, "n P"]) -> "Standard":
        """One step of the averages towards these numbers."""
        average = lambda old, new: (1 - STANDARD_RATE) * old + STANDARD_RATE * new
        new = Standard(x.mean(0), jnp.square(x).mean(0), jnp.ones(()))
        return jax.tree.map(average, self, new)


class Ensemble(eqx.Module):
    """M heads: (what is known of a state, action) -> the next row's target."""

    members: Stacked
    prior: Stacked | None  # frozen random networks, one for each member
    projection: Float[Array, "P Q"] | None  # fixed: of input and target projected
    standard: Standard | None  # of real observations, where there are updates of its own to follow them
    config: EnsembleConfig = eqx.field(static=True)

    def __init__(self, config: Config, obs: ObsSpace, action: int, *, key: PRNGKeyArray):
        key_members, key_prior, key_projection = jr.split(key, 3)
        model, sizes = config.model, config.ensemble
        units, pixels, latent = sizes.units or model.units, math.prod(features(obs)), model.stoch * model.classes
        inputs = {"feat": model.feat, "decoded": pixels, "projected": sizes.projection}[sizes.input] + action
        outputs = {"probs": latent, "stoch": latent, "deter": model.deter, "projected": sizes.projection}
        size = outputs.get(sizes.target) or embed_size(obs, model)
        make = lambda layers, key: Stacked(
            lambda k: Head(inputs, units, layers, size, key=k), jr.split(key, sizes.members)
        )
        self.members = make(sizes.layers, key_members)
        self.prior = make(sizes.prior_layers, key_prior) if sizes.prior_layers else None
        projects = "projected" in (sizes.input, sizes.target)
        self.projection = jr.normal(key_projection, (pixels, sizes.projection)) if projects else None
        self.standard = Standard.zero(pixels) if obs.kind == "real" and sizes.updates else None
        self.config = sizes


def predict(ensemble: Ensemble, inputs: Float[Array, "*b I"], hypers: Hypers) -> Float[Array, "M *b Y"]:
    """Every member's prediction of the next row's target: what it learned, plus its prior, which never learns."""
    predictions = ensemble.members.map(lambda member: member(inputs))
    if ensemble.prior is not None:
        predictions += hypers.prior_scale * sg(ensemble.prior.map(lambda prior: prior(inputs)))
    return predictions


def disagreement(
    ensemble: Ensemble, model: WorldModel, feat: Float[Array, "*b F"], action: Float[Array, "*b A"], hypers: Hypers
) -> Float[Array, "*b"]:
    """D(s_t, a_t) >= 0: spread of the members' predictions, averaged over target dimensions (eq. 2).

    It is the reward for choosing a_t at s_t, so in arrival-indexed returns it belongs to t+1. Sends no gradient.
    """
    predictions = predict(ensemble, inputs_of(ensemble, model, feat, action, hypers), hypers)
    # Deviations from one member first: M equal predictions must give exactly 0, which a rounded mean would not.
    variance = jnp.var(predictions - predictions[:1], 0)
    return sg((jnp.sqrt(variance) if ensemble.config.spread == "std" else variance).mean(-1))


# ---- what members read, and what they are asked --------------------------------------------------------------------


def inputs_of(
    ensemble: Ensemble, model: WorldModel, feat: Float[Array, "*b F"], action: Float[Array, "*b A"], hypers: Hypers
) -> Float[Array, "*b I"]:
    """What members read of states and actions. Sends no gradient."""
    state, read = feat, ensemble.config.input
    if read in ("decoded", "projected"):
        state = level(ensemble, model, expected(model.decoder, latent_of(model.rssm, feat)))
    if read == "projected":
        state = project(ensemble, state)
    # An action beyond the bounds is the bound, as the dynamics see it, and must not look new.
    action = (hypers.action_scale * bound_action(action)).astype(feat.dtype)
    return sg(jnp.concatenate([state.astype(feat.dtype), action], -1))


def target_of(
    ensemble: Ensemble,
    model: WorldModel,
    latent: Latent,
    embed: Float[Array, "*b E"],
    post: Categorical | None,
    obs: Shaped[Array, "..."],
) -> Float[Array, "*b Y"]:
    """What members predict of rows, one row earlier. Sends no gradient.

    Args:
        post: the posterior of these rows, for target probs.
        obs: [*b, *obs] in storage type, for target projected.
    """
    flat = lambda x: x.reshape(*latent.deter.shape[:-1], -1)
    match ensemble.config.target:
        case "probs":
            assert post is not None, "the ring keeps no probabilities"
            target = flat(post.probs)
        case "stoch":
            target = flat(latent.stoch)
        case "embed":
            target = embed
        case "deter":
            target = latent.deter
        case "projected":
            target = project(ensemble, level(ensemble, model, flat(numeric(model.decoder.space, obs))))
    return sg(target).astype(jnp.float32)


def level(ensemble: Ensemble, model: WorldModel, numbers: Float[Array, "... P"]) -> Float[Array, "... P"]:
    """An observation's numbers at a mean square of 1: reals each by itself, over what was seen, all else together.

    One cell of a grid of 100 is then as loud as a hundred cells, beside the action and to the prior networks.
    """
    if model.decoder.space.kind == "real":
        return numbers if ensemble.standard is None else ensemble.standard(numbers)
    return numbers * math.sqrt(numbers.shape[-1]) / jnp.sqrt(jnp.square(numbers).sum(-1, keepdims=True) + 0.01)


def project(ensemble: Ensemble, numbers: Float[Array, "... P"]) -> Float[Array, "... Q"]:
    """An observation's levelled numbers in a fixed random projection, of the same mean square in expectation."""
    assert ensemble.projection is not None
    return numbers @ ensemble.projection / math.sqrt(numbers.shape[-1])


# ---- learning with the model ---------------------------------------------------------------------------------------


def ensemble_loss(
    ensemble: Ensemble, model: WorldModel, observed: Observed, rows: Row, action: Float[Array, "T B A"], hypers: Hypers
) -> Float[Array, "T B"]:
    """-log N(target[t+1] | prediction(feat[t], action[t]), 1) up to a constant, averaged over members, nats.

    The pair across an episode's end is masked out (its action leads to no observation), and the last row has no
    successor: both are 0. Gradients are stopped at inputs and target, so only the members learn from it.
    """
    # Of all rows, though the last one's is not used: disagreement on the same rows then costs no second prediction.
    inputs = inputs_of(ensemble, model, observed.latent.feat, action, hypers)
    target = target_of(ensemble, model, observed.latent, observed.embed, observed.post, rows.obs)
    error = 0.5 * jnp.square(predict(ensemble, inputs, hypers)[:, :-1] - target[1:]).sum(-1).mean(0)
    loss = jnp.where(rows.is_first[1:], 0.0, error)
    return jnp.concatenate([loss, jnp.zeros_like(loss[:1])])


# ---- learning by updates of its own --------------------------------------------------------------------------------


def replace_members(ensemble: Ensemble, members: Stacked) -> Ensemble:
    """The ensemble with these members: they learn, unlike priors, projection and averages."""
    return eqx.tree_at(lambda e: e.members, ensemble, members)


def ensemble_moments(ensemble: Ensemble, hypers: Hypers) -> Any:
    """The state of the members' own optimiser before its first step."""
    return _optimizer(hypers).init(ensemble.members)


def _optimizer(hypers: Hypers) -> Any:
    # With b2 at 0.99 it forgets within a hundred updates how large gradients were: new states make large ones.
    return optax.chain(optax.scale_by_adam(b1=0.9, b2=0.99), optax.scale_by_learning_rate(hypers.ensemble_lr))


def update_ensemble(
    ensemble: Ensemble, moments: Any, model: WorldModel, pairs: Row, hypers: Hypers
) -> tuple[Ensemble, Any, Float[Array, ""]]:
    """One step of the members' own optimiser.

    Args:
        moments: the optimiser's state.
        pairs: replayed rows [2, n, ...], one after the other, with the states that are stored with them.

    Returns:
        (ensemble, moments, loss []): of the loss, nats, the mean over members and pairs.
    """
    latent = Latent.stored(pairs.deter, pairs.stoch, model.rssm.classes, model.dtype)
    if ensemble.standard is not None:
        seen = numeric(model.decoder.space, pairs.obs[1]).reshape(pairs.is_first.shape[1], -1)
        ensemble = eqx.tree_at(lambda e: e.standard, ensemble, ensemble.standard.updated(seen))
    action = action_vector(model, pairs.action)
    inputs = inputs_of(ensemble, model, latent.feat[0], action[0], hypers)
    after = jax.tree.map(lambda x: x[1], latent)
    target = target_of(ensemble, model, after, model.encoder(pairs.obs[1], model.dtype), None, pairs.obs[1])

    def loss(members):
        error = 0.5 * jnp.square(predict(replace_members(ensemble, members), inputs, hypers) - target).sum(-1)
        return jnp.where(pairs.is_first[1], 0.0, error).mean(1).sum()  # over members: each learns as it would alone

    total, grads = jax.value_and_grad(loss)(ensemble.members)
    updates, moments = _optimizer(hypers).update(grads, moments)
    ensemble = replace_members(ensemble, eqx.apply_updates(ensemble.members, updates))
    return ensemble, moments, total / len(ensemble.members)
