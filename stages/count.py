"""The count bonus: 1 / sqrt(1 + n) for an action that was taken n times in a state, where states can be counted.

An imagined state has no index whose count could be looked up. A network therefore learns the bonus of every action at
replayed rows, whose states are known, from the current counts. In imagination the explorer is paid its prediction. In
states that were never visited the network extrapolates. Its output starts at 1, the bonus of an action never tried.

It reads what the ensemble reads (`--ensemble.input`) and has the ensemble's sizes, updates and learning rate, as RND.

Axes: F feat, A action vector, I inputs, U actions that are told apart, T time, B windows, n pairs. Source: MBIE-EB
(Strehl & Littman 2008), with 1 + n for n; learned from the latent, since it is paid in imagination.
"""

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
from stages.ensemble import intrinsic_optimizer, intrinsic_step
from stages.imagine import stored_latent
from stages.intrinsic import ObsReward, VisitCounts, update_normalizer
from stages.networks.layers import Head
from stages.obs_numbers import ObsNumbers, input_size, state_action_inputs
from stages.replay import Row
from stages.world_model import Observed, WorldModel


class CountBonus(ObsReward):
    """A prediction of 1 / sqrt(1 + n), cut off at 0 and 1."""

    predictor: Head  # of the bonus less 1
    numbers: ObsNumbers
    config: EnsembleConfig = eqx.field(static=True)
    name: ClassVar[str] = "count"
    loss_name: ClassVar[str] = "count"

    def __init__(self, config: Config, obs: Space, actions: ActionSpace, *, key: PRNGKeyArray):
        key_predictor, key_numbers = jr.split(key)
        settings = config.ensemble
        sizes = (input_size(obs, actions.size, config), settings.units or config.model.units, settings.layers)
        self.predictor = Head(*sizes, 1, scale=0.0, key=key_predictor)
        self.numbers = ObsNumbers(obs, settings, key=key_numbers)
        self.config = settings

    def __call__(
        self, model: WorldModel, feat: Float[Array, "*b F"], action: Float[Array, "*b A"], hypers: Hypers
    ) -> Float[Array, "*b"]:
        inputs = state_action_inputs(self.numbers, self.config, model, feat, action, hypers)
        return sg(jnp.clip(self._predict(inputs), 0.0, 1.0))

    def loss(
        self, model: WorldModel, observed: Observed, rows: Row, action: Float[Array, "T B A"], hypers: Hypers
    ) -> Float[Array, "T B"]:
        """0: a batch of the agent has no counts; it learns by `update` alone."""
        del model, observed, action, hypers
        return jnp.zeros(rows.reward.shape)

    def init_opt_state(self, hypers: Hypers) -> optax.OptState:
        return intrinsic_optimizer(hypers).init(eqx.filter(self.predictor, eqx.is_array))

    def update(
        self, opt_state: optax.OptState, model: WorldModel, pairs: Row, counts: VisitCounts, hypers: Hypers
    ) -> tuple["CountBonus", optax.OptState, Float[Array, ""]]:
        """One step towards the bonus of every action in the pairs' first states: 1 for actions never taken there."""
        assert counts.visits is not None, "validate.check_countable refuses other environments"
        reward = update_normalizer(self, model, pairs)
        feat = stored_latent(model, jax.tree.map(lambda x: x[0], pairs)).feat

        def inputs_of(action: Float[Array, " A"]) -> Float[Array, "n I"]:
            actions = jnp.broadcast_to(action, (*feat.shape[:-1], *action.shape))
            return state_action_inputs(reward.numbers, self.config, model, feat, actions, hypers)

        inputs = jax.vmap(inputs_of, out_axes=1)(counts.action_vectors)  # [n, U, I]
        target = jax.lax.rsqrt(1.0 + counts.visits)

        def loss(predictor: Head) -> Float[Array, ""]:
            error = jnp.square(reward._with_predictor(predictor)._predict(inputs) - target).mean(-1)
            return jnp.where(pairs.is_last[0], 0.0, error).mean()  # no action follows an episode's last row

        predictor, opt_state, value = intrinsic_step(reward.predictor, opt_state, loss, hypers)
        return reward._with_predictor(predictor), opt_state, value

    def reinitialize(self, config: Config, obs: Space, actions: ActionSpace, *, key: PRNGKeyArray) -> "CountBonus":
        return self._with_predictor(CountBonus(config, obs, actions, key=key).predictor)

    def _predict(self, inputs: Float[Array, "*b I"]) -> Float[Array, "*b"]:
        return 1.0 + self.predictor(inputs)[..., 0]

    def _with_predictor(self, predictor: Head) -> "CountBonus":
        return eqx.tree_at(lambda reward: reward.predictor, self, predictor)
