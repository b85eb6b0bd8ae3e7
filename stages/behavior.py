"""Behaviour: an actor and its critic, and what they learn from. One function, used for explorer and tasker.

The actor ascends (R - v) / max(floor, S) by REINFORCE, plus entropy. R are lambda-returns and v values. S is the range
of the returns (DreamerV3, eq. 7), or the range or root mean square of the advantages R - v, as `Objective.norm`
says. The critic is trained towards R, and towards its slow copy, on imagined and on replayed rows. Gradient reaches the
actor, the critic, and what `replayed.feat` was computed from.

Axes: H horizon, L = H + 1 states, c starts of a block, T time, B windows, I bins.
Source: DreamerV3, eq. 4-7, and the reference's imag_loss and repl_loss.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.lax import stop_gradient as sg
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from envs.environment import ActionSpace
from stages.config import Hypers, ModelConfig, Norm, Scalar
from stages.fast import blocks
from stages.imagine import Trajectory
from stages.networks.heads import Actor, TwoHotHead
from stages.returns import ReturnScale, divisor, lambda_return, update_percentiles, update_rms


class Behavior(eqx.Module):
    """An actor and its critic."""

    actor: Actor
    critic: TwoHotHead

    def __init__(self, model: ModelConfig, actions: ActionSpace, *, key: PRNGKeyArray):
        key_actor, key_critic = jr.split(key)
        self.actor = Actor(model, actions, key=key_actor)
        self.critic = TwoHotHead(model.feat, model.units, model.layers, model.bins, key=key_critic)


class BehaviorTarget(eqx.Module):
    """What follows a behaviour without gradient: the slow critic, and the scale that divides advantages."""

    slow: TwoHotHead
    scale: ReturnScale

    @staticmethod
    def of(behavior: Behavior) -> "BehaviorTarget":
        """A slow critic equal to the critic, and a scale at zero."""
        return BehaviorTarget(jax.tree.map(jnp.array, behavior.critic), ReturnScale.zero())


class Replayed(eqx.Module):
    """Replayed experience, for the critic. Its feat may carry gradient into the world model."""

    feat: Float[Array, "T B F"]
    reward: Float[Array, "T B"]
    is_last: Bool[Array, "T B"]
    is_terminal: Bool[Array, "T B"]


class Objective(NamedTuple):
    """What a behaviour maximises: a reward, and how it becomes the actor's loss."""

    reward_name: str  # in metrics
    entropy_scale: Scalar  # of the entropy bonus; continuous actions multiply it by `hypers.continuous_entropy`
    norm: Norm  # what divides advantages
    floor: Scalar  # the smallest divisor
    debias: bool  # whether the range is corrected for the start of its averages at zero
    discount_ratio: Scalar = 1.0  # the reward's discount divided by the continue head's
    centred: bool = False  # see `rewards.centre`


def behavior_loss(
    behavior: Behavior,
    target: BehaviorTarget,
    trajectory: Trajectory,
    reward: Float[Array, "blocks L c"],
    replayed: Replayed,
    objective: Objective,
    hypers: Hypers,
) -> tuple[dict[str, Array], ReturnScale, dict[str, Array]]:
    """The losses of actor and critic, as described at the top of this module.

    Returns:
        losses: policy [] and value [], means over imagined rows, and repval [T-1, B] (the last row has no successor).
        the new scale
        metrics: []
    """
    trajectory, reward = sg((trajectory, reward))
    weight = jnp.cumprod(trajectory.cont, 1)
    count = weight[:, :-1].size

    frozen = (target.slow, jnp.asarray(objective.discount_ratio, jnp.float32), hypers)
    value_loss, (value, returns) = blocks.sum_over(
        _critic_block_loss, behavior.critic, frozen, (trajectory, reward, weight)
    )
    advantage = returns - value[:, :-1]
    scale = _update_scale(target.scale, returns, advantage, weight[:, :-1], objective, hypers)
    normed_advantage = advantage / divisor(scale, objective.floor, objective.debias)
    entropy_scale = objective.entropy_scale
    if behavior.actor.actions.kind == "continuous":
        entropy_scale = entropy_scale * hypers.continuous_entropy
    policy_loss, entropy_sum = _actor_loss(behavior.actor, trajectory, normed_advantage, weight, entropy_scale, hypers)

    # Blocks hold consecutive starts, and a start is a replayed row: [blocks, c] is [T, B].
    bootstrap = returns[:, 0].reshape(replayed.reward.shape)
    losses = {
        "policy": policy_loss / count,
        "value": value_loss / count,
        "repval": _replay_loss(behavior.critic, target.slow, replayed, bootstrap, objective.discount_ratio, hypers),
    }
    metrics = {
        "adv_mag": jnp.abs(normed_advantage).mean(),
        "ent": entropy_sum / count,
        "weight": weight.mean(),
        "ret": returns.mean(),
        "ret_scale": scale.high - scale.low,
        "val": value.mean(),
    }
    return losses, scale, metrics


def _critic_block_loss(critic: TwoHotHead, frozen, block):
    """The critic's loss on a block of imagined states, summed; and the values [L, c] and lambda-returns [H, c].

    The loss is the cross-entropy to the two-hot return and, times a weight, to the slow critic's prediction.
    """
    slow, discount_ratio, hypers = frozen
    trajectory, reward, weight = block
    # Heads read all L states, and the last one's outputs are dropped: cutting features would copy them.
    logits = critic(trajectory.feat)  # [L, c, I]
    value = sg(critic.mean(logits))
    is_last = jnp.zeros(weight.shape, bool)  # an imagined sequence does not break off
    returns = sg(lambda_return(reward, value, discount_ratio * trajectory.cont, is_last, hypers.lam))
    targets = jnp.concatenate([returns, value[-1:]])
    losses = critic.loss(logits, targets, _value(slow, trajectory.feat), weights=(1.0, hypers.slow_regularizer))
    return (weight * losses)[:-1].sum(), (value, returns)


def _update_scale(scale: ReturnScale, returns, advantage, weight, objective: Objective, hypers: Hypers) -> ReturnScale:
    """The new scale: the range of the returns, or the range or root mean square of the advantages.

    Advantages count by their weight in the actor's loss. Critics do not learn behind an imagined end: unweighted, their
    errors there would set the scale.
    """
    if objective.norm == "advantages":
        return update_percentiles(scale, advantage, hypers.return_rate, weight)
    if objective.norm == "rms":
        return update_rms(scale, advantage, hypers.return_rate, weight)
    return update_percentiles(scale, returns, hypers.return_rate)


def _actor_loss(actor: Actor, trajectory: Trajectory, advantage, weight, entropy_scale, hypers: Hypers):
    """REINFORCE and the entropy bonus, summed over imagined actions; and the summed entropy, nats."""

    def block_loss(actor, frozen, block):
        unimix, entropy_scale = frozen
        trajectory, advantage, weight = block
        policy = actor(trajectory.feat, unimix)
        entropy = policy.entropy()
        padded = jnp.concatenate([advantage, jnp.zeros_like(advantage[:1])])
        losses = -weight * (padded * policy.log_prob(trajectory.action) + entropy_scale * entropy)
        return losses[:-1].sum(), entropy[:-1].sum()

    frozen = (hypers.policy_unimix, entropy_scale)
    loss, entropy = blocks.sum_over(block_loss, actor, frozen, (trajectory, advantage, weight))
    return loss, entropy.sum()


def _replay_loss(critic: TwoHotHead, slow: TwoHotHead, replayed: Replayed, bootstrap, discount_ratio, hypers: Hypers):
    """The critic's loss on replayed rows [T-1, B]; `bootstrap` [T, B]: the imagined returns that start there."""
    logits = critic(replayed.feat)
    discount = discount_ratio * (1 - replayed.is_terminal.astype(jnp.float32)) * (1 - 1 / hypers.discount_horizon)
    returns = sg(lambda_return(replayed.reward, bootstrap, discount, replayed.is_last, hypers.lam))
    targets = jnp.concatenate([returns, bootstrap[-1:]])
    losses = critic.loss(logits, targets, _value(slow, sg(replayed.feat)), weights=(1.0, hypers.slow_regularizer))
    # Past an episode's last row lies the next reset: nothing to predict there.
    return (1 - replayed.is_last[:-1].astype(jnp.float32)) * losses[:-1]


def _value(critic: TwoHotHead, feat: Float[Array, "*b F"]) -> Float[Array, "*b"]:
    """The critic's expected value, without gradient."""
    critic = sg(critic)
    return sg(critic.mean(critic(feat)))


def update_target(target: BehaviorTarget, behavior: Behavior, scale: ReturnScale, rate) -> BehaviorTarget:
    """The slow critic one step of `rate` towards the critic; the scale replaced."""
    slow = jax.tree.map(lambda s, c: (1 - rate) * s + rate * c, target.slow, behavior.critic)
    return BehaviorTarget(slow, scale)
