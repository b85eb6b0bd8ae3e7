"""The elliptical bonus: how little the replayed rows say of an action in a state, in closed form.

phi(s) are random Fourier features of the observation that the decoder makes of s, of length 1. For every action a,
A_a = sum over a's replayed rows of phi phi' + ridge I, and the bonus is ridge phi' A_a^-1 phi: 1 where nothing like
(s, a) was seen, and ridge / (n + ridge) after n visits of it. It equals the disagreement of infinitely many linear
members with random priors, each trained to convergence. So it needs no optimiser, and its scale is fixed.

The model moves, and with it phi of every row. A_a is therefore a moving average over replayed rows, scaled to all rows.

Axes: U actions that are told apart (1 for continuous ones and several choices, which join the observation), P inputs,
W frequencies, V = 2 W features, n pairs, T time, B windows. Source: the bonus of linear bandits (Abbasi-Yadkori
et al. 2011) and LSVI-UCB (Jin et al. 2020, arXiv 1907.05388); random features: Rahimi & Recht 2007.
"""

import dataclasses
import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax.lax import stop_gradient as sg
from jaxtyping import Array, Float, PRNGKeyArray

from envs.environment import ActionSpace, Space
from stages.config import Config, EnsembleConfig, Hypers
from stages.decode import decode_mean
from stages.encode import number_count
from stages.intrinsic import ObsReward, VisitCounts, update_normalizer
from stages.obs_numbers import ObsNumbers
from stages.replay import Row
from stages.rssm import Latent, bound_action, latent_of
from stages.world_model import Observed, WorldModel, action_vector

PASSES = 4
"""Passes over all rows that the moving average covers: fewer forget rows by chance, more lag behind the model."""


class EllipticalBonus(ObsReward):
    """ridge phi' A_a^-1 phi, in (0, 1]. Its input is the decoded observation, whatever `--ensemble.input` says."""

    frequencies: Float[Array, "P W"]  # fixed and random
    moment: Float[Array, "U V V"]  # moving average of phi phi' over rows, of each action
    weight: Float[Array, ""]  # the sum of the average's weights: it starts at zero
    inverse: Float[Array, "U V V"]  # ridge A^-1
    numbers: ObsNumbers
    actions: ActionSpace = eqx.field(static=True)
    config: EnsembleConfig = eqx.field(static=True)
    name: ClassVar[str] = "elliptical"
    loss_name: ClassVar[str] = "elliptical"

    def __init__(self, config: Config, obs: Space, actions: ActionSpace, *, key: PRNGKeyArray):
        key_frequencies, key_numbers = jr.split(key)
        discrete, width = actions.kind == "discrete", 2 * config.ensemble.frequencies
        inputs = number_count(obs) + (0 if discrete else actions.size)
        self.frequencies = jr.normal(key_frequencies, (inputs, config.ensemble.frequencies))
        self.moment = jnp.zeros((actions.size if discrete else 1, width, width))
        self.weight = jnp.zeros(())
        self.inverse = jnp.broadcast_to(jnp.eye(width), self.moment.shape)
        # Its input is the decoded observation itself: neither its projection nor its Fourier features.
        plain = dataclasses.replace(config.ensemble, input="decoded", target="embed")
        self.numbers = ObsNumbers(obs, plain, key=key_numbers)
        self.actions, self.config = actions, config.ensemble

    def __call__(
        self, model: WorldModel, feat: Float[Array, "*b F"], action: Float[Array, "*b A"], hypers: Hypers
    ) -> Float[Array, "*b"]:
        return self._bonus(*self._features(model, feat, action, hypers))

    def loss(
        self, model: WorldModel, observed: Observed, rows: Row, action: Float[Array, "T B A"], hypers: Hypers
    ) -> Float[Array, "T B"]:
        """0: nothing here learns by gradient."""
        del model, observed, action, hypers
        return jnp.zeros(rows.reward.shape)

    def init_opt_state(self, hypers: Hypers) -> optax.OptState:
        del hypers
        return optax.EmptyState()

    def update(
        self, opt_state: optax.OptState, model: WorldModel, pairs: Row, counts: VisitCounts, hypers: Hypers
    ) -> tuple["EllipticalBonus", optax.OptState, Float[Array, ""]]:
        """One step of the average towards the pairs that were drawn uniformly; the loss is their mean bonus before."""
        # The first quarter comes from the newest rows, and would count them many times.
        pairs = jax.tree.map(lambda x: x[:, x.shape[1] // 4 :], pairs)
        reward = update_normalizer(self, model, pairs)
        feat = Latent.stored(pairs.deter[0], pairs.stoch[0], model.rssm.classes, model.dtype).feat
        action, acted = action_vector(model, pairs.action[0]), ~pairs.is_last[0]
        phi, one_hot = reward._features(model, feat, action, hypers)
        count = phi.shape[0]
        moment = jnp.einsum("nu,nv,nw->uvw", one_hot * acted[:, None], phi, phi) / count
        rate = jnp.minimum(1.0, count / (PASSES * jnp.maximum(1, counts.rows_in_replay)))
        moment, weight = (1 - rate) * self.moment + rate * moment, (1 - rate) * self.weight + rate
        total = counts.rows_in_replay * moment / jnp.maximum(weight, 1e-8) / hypers.elliptical_ridge
        inverse = jax.vmap(_inverse)(total + jnp.eye(phi.shape[-1]))
        updated = eqx.tree_at(lambda r: (r.moment, r.weight, r.inverse), reward, (moment, weight, inverse))
        return updated, opt_state, (self._bonus(phi, one_hot) * acted).sum() / jnp.maximum(acted.sum(), 1)

    def reinitialize(self, config: Config, obs: Space, actions: ActionSpace, *, key: PRNGKeyArray) -> "EllipticalBonus":
        fresh = EllipticalBonus(config, obs, actions, key=key)
        return eqx.tree_at(lambda r: (r.frequencies, r.numbers), fresh, (self.frequencies, self.numbers))

    def _bonus(self, phi: Float[Array, "*b V"], one_hot: Float[Array, "*b U"]) -> Float[Array, "*b"]:
        """ridge phi' A_a^-1 phi. Sends no gradient."""
        product = jnp.einsum("...u,...v,uvw->...w", one_hot, phi, self.inverse)
        return sg(jnp.clip((product * phi).sum(-1), 0.0, 1.0))

    def _features(
        self, model: WorldModel, feat: Float[Array, "*b F"], action: Float[Array, "*b A"], hypers: Hypers
    ) -> tuple[Float[Array, "*b V"], Float[Array, "*b U"]]:
        """(phi, of length 1; the action among the U, one-hot). Sends no gradient."""
        decoded = decode_mean(model.decoder, latent_of(model.rssm, feat)).astype(jnp.float32)
        inputs, one_hot = self.numbers.normalize(model.decoder.space, decoded), action.astype(jnp.float32)
        if self.actions.kind != "discrete":
            inputs = jnp.concatenate([inputs, hypers.action_scale * bound_action(one_hot)], -1)
            one_hot = jnp.ones((*action.shape[:-1], 1))
        angle = hypers.fourier_sharpness * inputs @ self.frequencies / math.sqrt(inputs.shape[-1])
        phi = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1) / math.sqrt(angle.shape[-1])
        return sg(phi), sg(one_hot)


def _inverse(matrix: Float[Array, "V V"]) -> Float[Array, "V V"]:
    """The inverse of a symmetric positive definite matrix."""
    factor = jax.scipy.linalg.cho_factor(matrix, lower=True)
    return jax.scipy.linalg.cho_solve(factor, jnp.eye(matrix.shape[0]))
