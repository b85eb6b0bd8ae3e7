"""Plan2Explore's ensemble: M one-step predictors and their disagreement.

A member is a network that learns. With `prior_layers` a frozen random network is added to it, so that members differ
where nothing was learned. Members learn with the world model (`ensemble_loss`) or by updates of their own on pairs of
replayed rows (`update_ensemble`). Own updates may be more and faster: an explorer can follow disagreement only if it
falls within a handful of visits. Members share no weights; each has its own keys.

Axes: M members, T time, B windows, n pairs, F feat, A action vector, I inputs, P numbers of an observation, Q numbers
of its projection, W frequencies, Y target dimensions. Source: Sekar et al. 2020 (arXiv 2005.05960), section 3 and eq.
1-2; priors: Osband et al. 2018 (arXiv 1806.03335).
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax.lax import stop_gradient as sg
from jaxtyping import Array, Float, PRNGKeyArray

from envs.environment import Obs, Space, obs_entries
from stages.config import Config, EnsembleConfig, Hypers
from stages.decode import decode_mean
from stages.encode import embed_size, flat_numbers, join, number_count
from stages.fast.stacked import Stacked
from stages.networks.distributions import Categorical
from stages.networks.layers import Head
from stages.replay import Row
from stages.rssm import Latent, bound_action, latent_of
from stages.world_model import Observed, WorldModel, action_vector

NORMALIZER_RATE = 0.01  # of a RunningNormalizer's moving averages, for each of the ensemble's own updates

# ---- an observation as members read and predict it -----------------------------------------------------------------


class RunningNormalizer(eqx.Module):
    """Brings the numbers of real observations to mean 0 and variance 1 by moving averages of them and their squares: a
    velocity of 0.07 then counts as much as a position of 1."""

    mean: Float[Array, " P"]
    square: Float[Array, " P"]
    weight: Float[Array, ""]  # the sum of the averages' weights: the averages start at zero

    @staticmethod
    def zero(size: int) -> "RunningNormalizer":
        """Before any observation: numbers pass unchanged."""
        return RunningNormalizer(jnp.zeros(size), jnp.zeros(size), jnp.zeros(()))

    def __call__(self, x: Float[Array, "... P"]) -> Float[Array, "... P"]:
        weight = jnp.maximum(self.weight, 1e-8)
        mean = self.mean / weight
        # Numbers that never change have no deviation, and a decoder's small errors in them must not look large.
        deviation = jnp.sqrt(jnp.maximum(self.square / weight - jnp.square(mean), 0) + 1e-4)
        return jnp.where(self.weight > 0, (x - mean) / deviation, x)

    def updated(self, x: Float[Array, "n P"]) -> "RunningNormalizer":
        """One step of the averages towards these numbers."""
        average = lambda old, new: (1 - NORMALIZER_RATE) * old + NORMALIZER_RATE * new
        new = RunningNormalizer(x.mean(0), jnp.square(x).mean(0), jnp.ones(()))
        return jax.tree.map(average, self, new)


class ObsNumbers(eqx.Module):
    """Brings an observation's numbers to a mean square of 1, and projects them. Nothing in it learns by gradient."""

    projection: Float[Array, "P Q"] | None  # fixed and random
    frequencies: Float[Array, "P W"] | None  # fixed and random, of input fourier
    normalizer: RunningNormalizer | None  # of real observations, where own updates feed it

    def __init__(self, obs: Space, config: EnsembleConfig, *, key: PRNGKeyArray):
        size, projects = number_count(obs), "projected" in (config.input, config.target)
        self.projection = jr.normal(key, (size, config.projection)) if projects else None
        self.frequencies = None
        if config.input == "fourier":
            self.frequencies = jr.normal(jr.fold_in(key, 0), (size, config.frequencies))
        any_real = any(entry.kind == "real" for entry in obs_entries(obs).values())
        self.normalizer = RunningNormalizer.zero(size) if any_real and config.updates else None

    def normalize(self, space: Space, numbers: Float[Array, "... P"]) -> Float[Array, "... P"]:
        """Reals one by one, over what was seen; the numbers of an entry of another kind together.

        One cell of a grid of 100 is then as loud as a hundred cells, beside the action and to the prior networks.
        """
        reals = numbers if self.normalizer is None else self.normalizer(numbers)
        parts, start = [], 0
        for entry in obs_entries(space).values():
            stop = start + number_count(entry)
            parts.append(reals[..., start:stop] if entry.kind == "real" else _unit_scale(numbers[..., start:stop]))
            start = stop
        return join(parts)

    def project(self, numbers: Float[Array, "... P"]) -> Float[Array, "... Q"]:
        """Normalised numbers in the fixed random projection, of the same mean square in expectation."""
        assert self.projection is not None
        return numbers @ self.projection / math.sqrt(numbers.shape[-1])

    def fourier(self, numbers: Float[Array, "... P"], sharpness: Float[Array, ""] | float) -> Float[Array, "... V"]:
        """Random Fourier features of normalised numbers, V = 2 W, of mean square 1 (Rahimi & Recht 2007).

        Their product for two observations is exp(-sharpness^2 d / 2) in expectation, d the mean squared difference: one
        entry that differs is then far, where a linear layer on the numbers themselves would hardly see it.
        """
        assert self.frequencies is not None
        angle = sharpness * numbers @ self.frequencies / math.sqrt(numbers.shape[-1])
        return math.sqrt(2) * jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)

    def updated(self, space: Space, obs: Obs) -> "ObsNumbers":
        """The normaliser moved towards observations [n, *obs] in storage type."""
        if self.normalizer is None:
            return self
        return eqx.tree_at(lambda numbers: numbers.normalizer, self, self.normalizer.updated(flat_numbers(space, obs)))


def _unit_scale(numbers: Float[Array, "... P"]) -> Float[Array, "... P"]:
    """Numbers brought to a mean square of 1."""
    return numbers * math.sqrt(numbers.shape[-1]) / jnp.sqrt(jnp.square(numbers).sum(-1, keepdims=True) + 0.01)


def state_action_inputs(
    numbers: ObsNumbers,
    config: EnsembleConfig,
    model: WorldModel,
    feat: Float[Array, "*b F"],
    action: Float[Array, "*b A"],
    hypers: Hypers,
) -> Float[Array, "*b I"]:
    """A state, as `config.input` says, and the action scaled by `hypers.action_scale`. Sends no gradient."""
    state = feat
    if config.input != "feat":
        state = numbers.normalize(model.decoder.space, decode_mean(model.decoder, latent_of(model.rssm, feat)))
    if config.input == "projected":
        state = numbers.project(state)
    if config.input == "fourier":
        state = numbers.fourier(state, hypers.fourier_sharpness)
    # An action beyond the bounds is the bound, as the dynamics see it, and must not look new.
    action = (hypers.action_scale * bound_action(action)).astype(feat.dtype)
    return sg(jnp.concatenate([state.astype(feat.dtype), action], -1))


def input_size(obs: Space, action: int, config: Config) -> int:
    """I: how many numbers `state_action_inputs` gives."""
    sizes = {
        "feat": config.model.feat,
        "decoded": number_count(obs),
        "projected": config.ensemble.projection,
        "fourier": 2 * config.ensemble.frequencies,
    }
    return sizes[config.ensemble.input] + action


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
        inputs, units, latent = input_size(obs, action, config), sizes.units or model.units, model.stoch * model.classes
        outputs = {"probs": latent, "stoch": latent, "deter": model.deter, "projected": sizes.projection}
        size = outputs.get(sizes.target) or embed_size(obs, model)

        def heads(layers: int, key: PRNGKeyArray) -> Stacked:
            return Stacked(lambda k: Head(inputs, units, layers, size, key=k), jr.split(key, sizes.members))

        self.members = heads(sizes.layers, key_members)
        self.prior = heads(sizes.prior_layers, key_prior) if sizes.prior_layers else None
        self.numbers = ObsNumbers(obs, sizes, key=key_projection)
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

    Sends no gradient.
    """
    predictions = predict(ensemble, ensemble_inputs(ensemble, model, feat, action, hypers), hypers)
    # Deviations from one member first: M equal predictions must give exactly 0, which a rounded mean would not.
    variance = jnp.var(predictions - predictions[:1], 0)
    return sg((jnp.sqrt(variance) if ensemble.config.spread == "std" else variance).mean(-1))


def ensemble_inputs(
    ensemble: Ensemble, model: WorldModel, feat: Float[Array, "*b F"], action: Float[Array, "*b A"], hypers: Hypers
) -> Float[Array, "*b I"]:
    """What members read of states and actions. Sends no gradient."""
    return state_action_inputs(ensemble.numbers, ensemble.config, model, feat, action, hypers)


def ensemble_target(
    ensemble: Ensemble,
    model: WorldModel,
    latent: Latent,
    embed: Float[Array, "*b E"],
    post: Categorical | None,
    obs: Obs,
) -> Float[Array, "*b Y"]:
    """What members predict of rows, one row earlier. Sends no gradient.

    Args:
        post: the posterior of these rows, for target probs.
        obs: [*b, *obs] in storage type, for target projected.
    """
    lead = latent.deter.shape[:-1]
    match ensemble.config.target:
        case "probs":
            assert post is not None, "replay keeps no probabilities"
            target = post.probs.reshape(*lead, -1)
        case "stoch":
            target = latent.stoch.reshape(*lead, -1)
        case "embed":
            target = embed
        case "deter":
            target = latent.deter
        case "projected":
            space = model.decoder.space
            target = ensemble.numbers.project(ensemble.numbers.normalize(space, flat_numbers(space, obs)))
    return sg(target).astype(jnp.float32)


# ---- learning with the model ---------------------------------------------------------------------------------------


def ensemble_loss(
    ensemble: Ensemble, model: WorldModel, observed: Observed, rows: Row, action: Float[Array, "T B A"], hypers: Hypers
) -> Float[Array, "T B"]:
    """-log N(target[t+1] | prediction(feat[t], action[t]), 1) up to a constant, averaged over members, nats.

    The pair across an episode's end is masked out (its action leads to no observation), and the last row has no
    successor: both are 0. Gradients are stopped at inputs and target, so only the members learn from it.
    """
    # Of all rows, though the last one's is not used: disagreement on the same rows then costs no second prediction.
    inputs = ensemble_inputs(ensemble, model, observed.latent.feat, action, hypers)
    target = ensemble_target(ensemble, model, observed.latent, observed.embed, observed.post, rows.obs)
    error = 0.5 * jnp.square(predict(ensemble, inputs, hypers)[:, :-1] - target[1:]).sum(-1).mean(0)
    loss = jnp.where(rows.is_first[1:], 0.0, error)
    return jnp.concatenate([loss, jnp.zeros_like(loss[:1])])


# ---- learning by own updates ---------------------------------------------------------------------------------------


def replace_members(ensemble: Ensemble, members: Stacked) -> Ensemble:
    """The ensemble with these members: they learn, unlike priors, projection and averages."""
    return eqx.tree_at(lambda e: e.members, ensemble, members)


def init_opt_state(ensemble: Ensemble, hypers: Hypers) -> optax.OptState:
    """The state of the members' own optimiser before its first step."""
    return own_optimizer(hypers).init(eqx.filter(ensemble.members, eqx.is_array))


def own_optimizer(hypers: Hypers) -> optax.GradientTransformation:
    """The optimiser of what learns by updates of its own."""
    # With b2 at 0.99 it forgets within a hundred updates how large gradients were: new states make large ones.
    return optax.chain(optax.scale_by_adam(b1=0.9, b2=0.99), optax.scale_by_learning_rate(hypers.ensemble_lr))


def update_ensemble(
    ensemble: Ensemble, opt_state: optax.OptState, model: WorldModel, pairs: Row, hypers: Hypers
) -> tuple[Ensemble, optax.OptState, Float[Array, ""]]:
    """One step of the members' own optimiser.

    Args:
        pairs: replayed rows [2, n, ...], one after the other, with the states that are stored with them.

    Returns:
        (ensemble, optimiser state, loss []): the loss in nats, the mean over members and pairs.
    """
    latent = Latent.stored(pairs.deter, pairs.stoch, model.rssm.classes, model.dtype)
    successor_obs = jax.tree.map(lambda x: x[1], pairs.obs)
    numbers = ensemble.numbers.updated(model.decoder.space, successor_obs)
    ensemble = eqx.tree_at(lambda e: e.numbers, ensemble, numbers)
    action = action_vector(model, pairs.action)
    inputs = ensemble_inputs(ensemble, model, latent.feat[0], action[0], hypers)
    successor = jax.tree.map(lambda x: x[1], latent)
    embed = model.encoder(successor_obs, model.dtype)
    target = ensemble_target(ensemble, model, successor, embed, None, successor_obs)

    def loss(members: Stacked) -> Float[Array, ""]:
        error = 0.5 * jnp.square(predict(replace_members(ensemble, members), inputs, hypers) - target).sum(-1)
        return jnp.where(pairs.is_first[1], 0.0, error).mean(1).sum()  # over members: each learns as it would alone

    total, grads = jax.value_and_grad(loss)(ensemble.members)
    updates, opt_state = own_optimizer(hypers).update(grads, opt_state)
    ensemble = replace_members(ensemble, eqx.apply_updates(ensemble.members, updates))
    return ensemble, opt_state, total / len(ensemble.members)
