"""Behaviour: an actor and its critics, and what they learn from. One function, used for explorer and tasker.

A behaviour has R rewards, each with a critic, a slow critic and a return scale of its own (R = 1 for the tasker and the
reward-free explorer; R = 2 for the explorer of mode mix). The losses take data: an imagined trajectory with its
rewards, and replayed rows.

The actor ascends sum_r weight_r (R_r - v_r) / max(floor_r, S_r) by REINFORCE, plus entropy. S_r is the range of the
returns R_r (DreamerV3, eq. 7), or the range or root mean square of the advantages R_r - v_r, as norm_r says. Each
critic matches its lambda-returns, and its slow copy, on imagined and on replayed rows. Only actor and critics get
gradient, and what `replayed.feat` was computed from.

Axes: R rewards, H horizon, L = H + 1 states, c starts of a block, T time, B windows, I bins.
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
from stages.config import Hypers, ModelConfig, Norm
from stages.fast import blocks
from stages.fast.stacked import Stacked
from stages.imagine import Trajectory
from stages.networks.heads import Actor, TwoHotHead
from stages.returns import ReturnScale, divisor, lambda_return, update_rms, update_scale


class Behavior(eqx.Module):
    """An actor, and a critic for each of R rewards."""

    actor: Actor
    critics: Stacked

    def __init__(self, model: ModelConfig, actions: ActionSpace, rewards: int, *, key: PRNGKeyArray):
        key_actor, key_critic = jr.split(key)
        self.actor = Actor(model, actions, key=key_actor)
        make = lambda k: TwoHotHead(model.feat, model.units, model.layers, model.bins, key=k)
        self.critics = Stacked(make, jr.split(key_critic, rewards))


class BehaviorTarget(eqx.Module):
    """What follows a behaviour without gradient: slow critics and return scales, [R, ...]."""

    slow: Stacked
    scale: ReturnScale

    @staticmethod
    def of(behavior: Behavior) -> "BehaviorTarget":
        """Slow critics equal to the critics, and scales at zero."""
        zero = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(behavior.critics),)), ReturnScale.zero())
        return BehaviorTarget(jax.tree.map(jnp.array, behavior.critics), zero)


class Replayed(eqx.Module):
    """Replayed experience, for the critics. Its feat may carry gradient into the world model."""

    feat: Float[Array, "T B F"]
    reward: Float[Array, "R T B"]
    is_last: Bool[Array, "T B"]
    is_terminal: Bool[Array, "T B"]


class Objective(NamedTuple):
    """How the advantages of one reward enter what the actor maximises."""

    weight: Float[Array, ""] | float  # of the normalised advantages
    norm: Norm  # what divides them
    floor: Float[Array, ""] | float  # the smallest divisor
    debias: bool  # whether the range is corrected for the start of its averages at zero
    shortening: Float[Array, ""] | float = 1.0  # its discount over that of the continue head's


def behavior_loss(
    behavior: Behavior,
    target: BehaviorTarget,
    trajectory: Trajectory,
    reward: Float[Array, "blocks R L c"],
    replayed: Replayed,
    objectives: tuple[Objective, ...],
    entropy: Float[Array, ""] | float,
    hypers: Hypers,
) -> tuple[dict[str, Array], ReturnScale, dict[str, Array]]:
    """Actor and critic losses, as the module says. `entropy` weighs the actor's, in continuous actions times
    `hypers.continuous_entropy`.

    Returns:
        losses: policy [] and value [], means over imagined rows, and repval [T-1, B] (the last row has no successor),
            summed over rewards.
        the new return scales [R]
        metrics: [], or [R] where each reward has its own
    """
    trajectory, reward = sg((trajectory, reward))
    weight = jnp.cumprod(trajectory.cont, 1)
    rows = weight[:, :-1].size

    shortening = jnp.stack([jnp.asarray(objective.shortening, jnp.float32) for objective in objectives])
    value_loss, (value, returns) = _critic_loss(
        behavior.critics, target.slow, trajectory, reward, weight, shortening, hypers
    )
    gain = returns - value[:, :, :-1]
    scale = _scales(target.scale, returns, gain, weight[:, :-1], objectives, hypers)
    advantage = _advantage(gain, scale, objectives)
    bonus = entropy * hypers.continuous_entropy if behavior.actor.actions.kind == "continuous" else entropy
    policy_loss, entropy_sum = _actor_loss(behavior.actor, trajectory, advantage, weight, bonus, hypers)

    # Blocks hold consecutive starts, and a start is a replayed row: [R, blocks, c] is [R, T, B].
    bootstrap = jnp.moveaxis(returns[:, :, 0], 1, 0).reshape(replayed.reward.shape)
    losses = {
        "policy": policy_loss / rows,
        "value": value_loss / rows,
        "repval": _replay_loss(behavior.critics, target.slow, replayed, bootstrap, shortening, hypers),
    }
    metrics = {
        "adv_mag": jnp.abs(advantage).mean(),
        "ent": entropy_sum / rows,
        "weight": weight.mean(),
        "ret_scale": scale.high - scale.low,
    }
    return losses, scale, metrics | _imagined_means(ret=returns, val=value)


def _imagined_means(**imagined: Float[Array, "blocks R _ c"]) -> dict[str, Float[Array, " R"]]:
    """The mean of each over all imagined rows, of every reward."""
    return {name: x.mean((0, 2, 3)) for name, x in imagined.items()}


def _critic_loss(critics: Stacked, slow: Stacked, trajectory: Trajectory, reward, weight, shortening, hypers: Hypers):
    """The critics' loss on imagined states, summed; and the values [blocks, R, L, c] and lambda-returns [.., H, c]."""

    def block_loss(critics, frozen, block):
        slow, shortening, hypers = frozen
        trajectory, reward, weight = block
        # Heads read all L states, and the last one's outputs are dropped: cutting features would copy them.
        logits = critics.map(lambda critic: critic(trajectory.feat))  # [R, L, c, I]
        value = sg(critics.map(lambda critic, logits: critic.mean(logits), logits))
        never = jnp.zeros(weight.shape, bool)
        to_returns = lambda reward, value, shorter: lambda_return(
            reward, value, shorter * trajectory.cont, never, hypers.lam
        )
        returns = sg(jax.vmap(to_returns)(reward, value, shortening))
        targets = jnp.concatenate([returns, value[:, -1:]], 1)
        losses = _value_loss(critics, logits, targets, _values(slow, trajectory.feat), hypers.slow_regularizer)
        return (weight * losses)[:-1].sum(), (value, returns)

    return blocks.sum_over(block_loss, critics, (slow, shortening, hypers), (trajectory, reward, weight))


def _scales(
    scale: ReturnScale, returns, gain, weight, objectives: tuple[Objective, ...], hypers: Hypers
) -> ReturnScale:
    """The new scale of each reward, [R]: the range of its returns, or the range or root mean square of its advantages
    `gain`.

    Advantages count by their weight in the actor's loss: behind an imagined end no critic has learned, and its errors
    there, which nothing is made of, would set the scale.
    """
    new = []
    for r, objective in enumerate(objectives):
        old = jax.tree.map(lambda x, r=r: x[r], scale)
        if objective.norm == "advantages":
            new.append(update_scale(old, gain[:, r], hypers.return_rate, weight))
        elif objective.norm == "rms":
            new.append(update_rms(old, gain[:, r], hypers.return_rate, weight))
        else:
            new.append(update_scale(old, returns[:, r], hypers.return_rate))
    return jax.tree.map(lambda *x: jnp.stack(x), *new)


def _advantage(
    gain: Float[Array, "blocks R H c"], scale: ReturnScale, objectives: tuple[Objective, ...]
) -> Float[Array, "blocks H c"]:
    """Advantages `gain` of all rewards, each divided by its scale and weighted, summed (DreamerV3, eq. 7)."""
    total = jnp.zeros((gain.shape[0], *gain.shape[2:]))
    for r, objective in enumerate(objectives):
        spread = divisor(jax.tree.map(lambda x, r=r: x[r], scale), objective.floor, objective.debias)
        total += objective.weight * gain[:, r] / spread
    return total


def _actor_loss(actor: Actor, trajectory: Trajectory, advantage, weight, bonus, hypers: Hypers):
    """REINFORCE and the entropy bonus, summed over imagined actions; and the summed entropy, nats."""

    def block_loss(actor, frozen, block):
        unimix, bonus = frozen
        trajectory, advantage, weight = block
        policy = actor(trajectory.feat, unimix)
        entropy = policy.entropy()
        padded = jnp.concatenate([advantage, jnp.zeros_like(advantage[:1])])
        losses = -weight * (padded * policy.log_prob(trajectory.action) + bonus * entropy)
        return losses[:-1].sum(), entropy[:-1].sum()

    loss, entropy = blocks.sum_over(block_loss, actor, (hypers.policy_unimix, bonus), (trajectory, advantage, weight))
    return loss, entropy.sum()


def _replay_loss(critics: Stacked, slow: Stacked, replayed: Replayed, bootstrap, shortening, hypers: Hypers):
    """The critics' loss on replayed rows [T-1, B]; `bootstrap` [R, T, B]: the imagined returns that start there."""
    logits = critics.map(lambda critic: critic(replayed.feat))
    discount = (1 - replayed.is_terminal.astype(jnp.float32)) * (1 - 1 / hypers.discount_horizon)
    to_returns = lambda reward, value, shorter: lambda_return(
        reward, value, shorter * discount, replayed.is_last, hypers.lam
    )
    returns = sg(jax.vmap(to_returns)(replayed.reward, bootstrap, shortening))
    targets = jnp.concatenate([returns, bootstrap[:, -1:]], 1)
    losses = _value_loss(critics, logits, targets, _values(slow, sg(replayed.feat)), hypers.slow_regularizer)[:-1]
    # Past an episode's last row lies the next reset: nothing to predict there.
    return (1 - replayed.is_last[:-1].astype(jnp.float32)) * losses


def _values(critics: Stacked, feat: Float[Array, "*b F"]) -> Float[Array, "R *b"]:
    """Each critic's expected value, without gradient."""
    return sg(sg(critics).map(lambda critic: critic.mean(critic(feat))))


def _value_loss(critics: Stacked, logits, returns, slow, regularizer):
    """Cross-entropy to the two-hot return and, `regularizer` times, to the slow critic's prediction; summed over R."""
    loss = lambda critic, logits, *targets: critic.loss(logits, *targets, weights=(1.0, regularizer))
    return critics.map(loss, logits, returns, slow).sum(0)


def update_target(target: BehaviorTarget, behavior: Behavior, scale: ReturnScale, rate) -> BehaviorTarget:
    """Slow critics one step of `rate` towards the critics; scales replaced."""
    slow = jax.tree.map(lambda s, c: (1 - rate) * s + rate * c, target.slow, behavior.critics)
    return BehaviorTarget(slow, scale)
