"""Plan2Explore's ensemble: M one-step predictors and their disagreement.

A member is a network that learns. With `prior_layers` a frozen random network is added to it, so that members differ
where nothing was learned. Members learn with the world model (`ensemble_loss`) or by updates of their own on pairs of
replayed rows (`update_ensemble`). Own updates may be more frequent and have a higher learning rate: an explorer can
follow disagreement only if it falls within a handful of visits. Members share no weights; each has its own keys.

Axes: M members, T time, B windows, n pairs, F feat, A action vector, I inputs, Y target dimensions. Source: Sekar et
al. 2020 (arXiv 2005.05960), section 3 and eq. 1-2; priors: Osband et al. 2018 (arXiv 1806.03335).
"""

from collections.abc import Callable
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax.lax import stop_gradient as sg
from jaxtyping import Array, Float, PRNGKeyArray

from envs.environment import Obs, Space
from stages.config import Config, EnsembleConfig, Hypers
from stages.encode import flat_numbers
from stages.fast.stacked import Stacked
from stages.imagine import stored_latent
from stages.networks.distributions import Categorical
from stages.networks.layers import Head
from stages.obs_numbers import ObsNumbers, input_size, state_action_inputs
from stages.replay import Row
from stages.world_model import Observed, WorldModel, action_vector

Network = TypeVar("Network")

# ---- members, and their disagreement -------------------------------------------------------------------------------


class Ensemble(eqx.Module):
    """M heads: (state, action) -> the next row's target."""

    members: Stacked
    prior: Stacked | None  # frozen random networks, one for each member
    numbers: ObsNumbers
    config: EnsembleConfig = eqx.field(static=True)

    def __init__(self, config: Config, obs: Space, action: int, *, key: PRNGKeyArray):
        key_members, key_prior, key_projection = jr.split(key, 3)
        model, sizes = config.model, config.ensemble
        inputs, units = input_size(obs, action, config), sizes.units or model.units
        size = {"probs": model.stoch * model.classes, "projected": sizes.projection}[sizes.target]

        def heads(layers: int, key: PRNGKeyArray) -> Stacked:
            return Stacked(lambda k: Head(inputs, units, layers, size, key=k), jr.split(key, sizes.members))

        self.members = heads(sizes.layers, key_members)
        self.prior = heads(sizes.prior_layers, key_prior) if sizes.prior_layers else None
        self.numbers = ObsNumbers(obs, sizes, key=key_projection)
        self.config = sizes


def predict(ensemble: Ensemble, inputs: Float[Array, "*b I"], hypers: Hypers) -> Float[Array, "M *b Y"]:
    """Every member's prediction of the next row's target: the output of its network, plus that of its frozen prior."""
    predictions = ensemble.members.map(lambda member: member(inputs))
    if ensemble.prior is not None:
        predictions += hypers.prior_scale * sg(ensemble.prior.map(lambda prior: prior(inputs)))
    return predictions


def disagreement(
    ensemble: Ensemble, model: WorldModel, feat: Float[Array, "*b F"], action: Float[Array, "*b A"], hypers: Hypers
) -> Float[Array, "*b"]:
    """D(s_t, a_t) >= 0: spread of the members' predictions, averaged over target dimensions (eq. 2).

    Sends no gradient.
    """
    predictions = predict(ensemble, ensemble_inputs(ensemble, model, feat, action, hypers), hypers)
    # Deviations from one member first: M equal predictions must give exactly 0, which a rounded mean would not.
    variance = jnp.var(predictions - predictions[:1], 0)
    return sg((jnp.sqrt(variance) if ensemble.config.spread == "std" else variance).mean(-1))


def ensemble_inputs(
    ensemble: Ensemble, model: WorldModel, feat: Float[Array, "*b F"], action: Float[Array, "*b A"], hypers: Hypers
) -> Float[Array, "*b I"]:
    """What members read of states and actions: see `state_action_inputs`. Sends no gradient."""
    return state_action_inputs(ensemble.numbers, ensemble.config, model, feat, action, hypers)


def ensemble_target(ensemble: Ensemble, model: WorldModel, post: Categorical | None, obs: Obs) -> Float[Array, "*b Y"]:
    """What members predict of these rows from the rows before them. Sends no gradient.

    Args:
        post: the posterior of these rows, for target probs.
        obs: [*b, *obs] in storage type, for target projected.
    """
    if ensemble.config.target == "probs":
        assert post is not None, "replay keeps no probabilities"
        target = post.probs.reshape(*post.probs.shape[:-2], -1)
    else:
        space = model.decoder.space
        target = ensemble.numbers.project(ensemble.numbers.normalize(space, flat_numbers(space, obs)))
    return sg(target)


# ---- learning with the model ---------------------------------------------------------------------------------------


def ensemble_loss(
    ensemble: Ensemble, model: WorldModel, observed: Observed, rows: Row, action: Float[Array, "T B A"], hypers: Hypers
) -> Float[Array, "T B"]:
    """-log N(target[t+1] | prediction(feat[t], action[t]), 1) up to a constant, averaged over members, nats.

    The pair across an episode's end is masked out (its action leads to no observation), and the last row has no
    successor: both are 0. Gradients are stopped at inputs and target, so only the members learn from it.
    """
    # The last row's prediction is unused here. Disagreement on the same rows needs it, and so shares the computation.
    inputs = ensemble_inputs(ensemble, model, observed.latent.feat, action, hypers)
    target = ensemble_target(ensemble, model, observed.post, rows.obs)
    error = 0.5 * jnp.square(predict(ensemble, inputs, hypers)[:, :-1] - target[1:]).sum(-1).mean(0)
    loss = jnp.where(rows.is_first[1:], 0.0, error)
    return jnp.concatenate([loss, jnp.zeros_like(loss[:1])])


# ---- learning by own updates ---------------------------------------------------------------------------------------


def replace_members(ensemble: Ensemble, members: Stacked) -> Ensemble:
    """The ensemble with these members: they learn, unlike priors, projection and averages."""
    return eqx.tree_at(lambda e: e.members, ensemble, members)


def init_opt_state(ensemble: Ensemble, hypers: Hypers) -> optax.OptState:
    """The state of the members' own optimiser before its first step."""
    return intrinsic_optimizer(hypers).init(eqx.filter(ensemble.members, eqx.is_array))


def intrinsic_optimizer(hypers: Hypers) -> optax.GradientTransformation:
    """Adam, for intrinsic rewards that learn by updates of their own."""
    # b2 = 0.99 forgets the size of gradients within a hundred updates: those of new states are large.
    return optax.chain(optax.scale_by_adam(b1=0.9, b2=0.99), optax.scale_by_learning_rate(hypers.ensemble_lr))


def intrinsic_step(
    network: Network, opt_state: optax.OptState, loss: Callable[[Network], Float[Array, ""]], hypers: Hypers
) -> tuple[Network, optax.OptState, Float[Array, ""]]:
    """One step of `intrinsic_optimizer` on `loss`: (network, optimiser state, loss before the step)."""
    value, grads = jax.value_and_grad(loss)(network)
    updates, opt_state = intrinsic_optimizer(hypers).update(grads, opt_state)
    return eqx.apply_updates(network, updates), opt_state, value


def update_ensemble(
    ensemble: Ensemble, opt_state: optax.OptState, model: WorldModel, pairs: Row, hypers: Hypers
) -> tuple[Ensemble, optax.OptState, Float[Array, ""]]:
    """One step of the members' own optimiser.

    Args:
        pairs: replayed rows [2, n, ...], one after the other, with the states that are stored with them.

    Returns:
        (ensemble, optimiser state, loss []): the loss in nats, the mean over members and pairs.
    """
    first = jax.tree.map(lambda x: x[0], pairs)
    second = jax.tree.map(lambda x: x[1], pairs)
    numbers = ensemble.numbers.updated(model.decoder.space, second.obs)
    ensemble = eqx.tree_at(lambda e: e.numbers, ensemble, numbers)
    feat, action = stored_latent(model, first).feat, action_vector(model, first.action)
    inputs = ensemble_inputs(ensemble, model, feat, action, hypers)
    target = ensemble_target(ensemble, model, None, second.obs)

    def loss(members: Stacked) -> Float[Array, ""]:
        error = 0.5 * jnp.square(predict(replace_members(ensemble, members), inputs, hypers) - target).sum(-1)
        return jnp.where(second.is_first, 0.0, error).mean(1).sum()  # over members: each learns as it would alone

    members, opt_state, total = intrinsic_step(ensemble.members, opt_state, loss, hypers)
    return replace_members(ensemble, members), opt_state, total / len(members)
