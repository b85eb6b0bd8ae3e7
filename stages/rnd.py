"""Random network distillation of states and actions: the reward is how badly a learned network predicts a random one.

It reads what the ensemble reads (`--ensemble.input`) and has the ensemble's sizes, updates and learning rate, so that
the two rewards differ in nothing else. It reads actions, too, since the reward has to tell an untried action apart.

Axes: F feat, A action vector, I inputs, Q outputs, T time, B windows, n pairs. Source: Burda et al. 2018 (arXiv
1810.12894), section 2.2; of states and actions: Nikulin et al. 2023 (arXiv 2301.13616).
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
from stages.world_model import Observed, WorldModel, action_vector


class RND(ObsReward):
    """Mean squared error of a network that learns the outputs of a frozen random one."""

    predictor: Head
    target: Head  # frozen
    numbers: ObsNumbers
    config: EnsembleConfig = eqx.field(static=True)
    name: ClassVar[str] = "rnd"
    loss_name: ClassVar[str] = "rnd"

    def __init__(self, config: Config, obs: Space, actions: ActionSpace, *, key: PRNGKeyArray):
        key_predictor, key_target, key_numbers = jr.split(key, 3)
        settings = config.ensemble
        sizes = (input_size(obs, actions.size, config), settings.units or config.model.units, settings.layers)
        self.predictor = Head(*sizes, settings.projection, key=key_predictor)
        self.target = Head(*sizes, settings.projection, key=key_target)
        self.numbers = ObsNumbers(obs, settings, key=key_numbers)
        self.config = settings

    def __call__(
        self, model: WorldModel, feat: Float[Array, "*b F"], action: Float[Array, "*b A"], hypers: Hypers
    ) -> Float[Array, "*b"]:
        return sg(self._error(state_action_inputs(self.numbers, self.config, model, feat, action, hypers)))

    def loss(
        self, model: WorldModel, observed: Observed, rows: Row, action: Float[Array, "T B A"], hypers: Hypers
    ) -> Float[Array, "T B"]:
        inputs = state_action_inputs(self.numbers, self.config, model, observed.latent.feat, action, hypers)
        return jnp.where(rows.is_last, 0.0, self._error(inputs))  # no action follows an episode's last row

    def init_opt_state(self, hypers: Hypers) -> optax.OptState:
        return intrinsic_optimizer(hypers).init(eqx.filter(self.predictor, eqx.is_array))

    def update(
        self, opt_state: optax.OptState, model: WorldModel, pairs: Row, counts: VisitCounts, hypers: Hypers
    ) -> tuple["RND", optax.OptState, Float[Array, ""]]:
        del counts
        reward = update_normalizer(self, model, pairs)
        first = jax.tree.map(lambda x: x[0], pairs)
        feat, action = stored_latent(model, first).feat, action_vector(model, first.action)
        inputs = state_action_inputs(reward.numbers, self.config, model, feat, action, hypers)

        def loss(predictor: Head) -> Float[Array, ""]:
            error = reward._with_predictor(predictor)._error(inputs)
            return jnp.where(first.is_last, 0.0, error).mean()

        predictor, opt_state, value = intrinsic_step(reward.predictor, opt_state, loss, hypers)
        return reward._with_predictor(predictor), opt_state, value

    def reinitialize(self, config: Config, obs: Space, actions: ActionSpace, *, key: PRNGKeyArray) -> "RND":
        return self._with_predictor(RND(config, obs, actions, key=key).predictor)

    def _error(self, inputs: Float[Array, "*b I"]) -> Float[Array, "*b"]:
        return jnp.square(self.predictor(inputs) - sg(self.target(inputs))).mean(-1)

    def _with_predictor(self, predictor: Head) -> "RND":
        return eqx.tree_at(lambda reward: reward.predictor, self, predictor)
