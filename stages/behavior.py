"""Behaviour: an actor and its critics. One function, used twice: explorer and tasker.

A behaviour has R rewards, each with a critic, a slow critic and a return scale of its own (R = 1 for the tasker and the
reward-free explorer; R = 2 for the explorer of mode mix). Axes: R rewards, H horizon, n starts, T time, B windows.
Source: DreamerV3, eq. 4-7, and the reference's imag_loss and repl_loss.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from envs.environment import ActionSpace
from stages import blocks, maths
from stages.config import Hypers, ModelConfig
from stages.decode import TwoHotHead
from stages.maths import Categorical, ReturnScale, sg
from stages.nets import Head

MIN_STD, MAX_STD = 0.1, 1.0


class Normal(eqx.Module):
    """Diagonal normal over action dimensions."""

    mean: Float[Array, "... A"]
    std: Float[Array, "... A"]


class Actor(eqx.Module):
    """Feature -> action distribution: categorical with unimix, or bounded normal (std 0.1 to 1)."""

    head: Head
    actions: ActionSpace = eqx.field(static=True)

    def __init__(self, inputs: int, model: ModelConfig, actions: ActionSpace, *, key: PRNGKeyArray):
        outputs = actions.size if actions.kind == "discrete" else 2 * actions.size
        self.head = Head(inputs, model.units, model.layers, outputs, scale=0.01, key=key)
        self.actions = actions

    def __call__(self, feat: Float[Array, "... F"], ratio: Float[Array, ""] | float) -> Categorical | Normal:
        """The distribution; `ratio` is the unimix of a discrete one."""
        raw = self.head(feat)
        if self.actions.kind == "discrete":
            return maths.unimix(raw, ratio)
        mean, std = jnp.split(raw, 2, -1)
        return Normal(jnp.tanh(mean), (MAX_STD - MIN_STD) * jax.nn.sigmoid(std + 2) + MIN_STD)


class Behavior(eqx.Module):
    """What is learned to act. The critics' leaves have a leading reward axis [R, ...]."""

    actor: Actor
    critics: TwoHotHead

    def __init__(self, inputs: int, model: ModelConfig, actions: ActionSpace, rewards: int, *, key: PRNGKeyArray):
        key_actor, key_critic = jr.split(key)
        self.actor = Actor(inputs, model, actions, key=key_actor)
        make = lambda k: TwoHotHead(inputs, model.units, model.layers, model.bins, key=k)
        self.critics = eqx.filter_vmap(make)(jr.split(key_critic, rewards))


class BehaviorTarget(eqx.Module):
    """What follows a behaviour without gradient: slow critics and return scales, [R, ...]."""

    slow: TwoHotHead
    scale: ReturnScale

    @staticmethod
    def of(behavior: Behavior) -> "BehaviorTarget":
        """Slow critics equal to the critics, and scales at zero."""
        rewards = behavior.critics.head.out.bias.shape[0]
        zero = jax.tree.map(lambda x: jnp.broadcast_to(x, (rewards,)), ReturnScale.zero())
        return BehaviorTarget(jax.tree.map(jnp.array, behavior.critics), zero)


# ---- acting --------------------------------------------------------------------------------------------------------


def action_noise(actions: ActionSpace, lead: tuple[int, ...], *, key: PRNGKeyArray) -> Float[Array, "..."]:
    """The random numbers that acting needs, [*lead] uniform for discrete actions and [*lead, A] normal otherwise."""
    return jr.uniform(key, lead) if actions.kind == "discrete" else jr.normal(key, (*lead, actions.size))


def act(
    actor: Actor, feat: Float[Array, "... F"], noise: Float[Array, "..."], ratio: Float[Array, ""] | float
) -> Float[Array, "... A"]:
    """A sampled action vector (one-hot if discrete), without gradient. Noise as from action_noise."""
    dist = actor(feat, ratio)
    if isinstance(dist, Categorical):
        index = maths.sample_index(dist.probs, noise)
        return jax.nn.one_hot(index, dist.probs.shape[-1], dtype=feat.dtype)
    return sg(dist.mean + dist.std * noise).astype(feat.dtype)


def act_greedily(actor: Actor, feat: Float[Array, "... F"], ratio: Float[Array, ""] | float) -> Float[Array, "... A"]:
    """The most likely action vector."""
    dist = actor(feat, ratio)
    if isinstance(dist, Categorical):
        return jax.nn.one_hot(jnp.argmax(dist.probs, -1), dist.probs.shape[-1], dtype=feat.dtype)
    return dist.mean.astype(feat.dtype)


def log_prob_and_entropy(
    dist: Categorical | Normal, action: Float[Array, "... A"]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Log-probability of an action vector and the distribution's entropy, nats, summed over action dimensions."""
    if isinstance(dist, Categorical):
        return jnp.sum(dist.logp * action, -1), maths.entropy(dist)
    logp = jax.scipy.stats.norm.logpdf(action.astype(jnp.float32), dist.mean, dist.std)
    return logp.sum(-1), (0.5 * jnp.log(2 * jnp.pi * jnp.square(dist.std)) + 0.5).sum(-1)


# ---- learning ------------------------------------------------------------------------------------------------------


class Imagined(NamedTuple):
    """Imagined experience. reward[r, t] arrived with feat[t]; cont[t]: probability of going on after it, discounted."""

    feat: Float[Array, "H+1 n F"]
    action: Float[Array, "H+1 n A"]
    reward: Float[Array, "R H+1 n"]
    cont: Float[Array, "H+1 n"]


class Replayed(NamedTuple):
    """Replayed experience, for the critics. Its feat may carry gradient into the world model."""

    feat: Float[Array, "T B F"]
    reward: Float[Array, "R T B"]
    is_last: Bool[Array, "T B"]
    is_terminal: Bool[Array, "T B"]


class Weights(NamedTuple):
    """Per-reward settings [R] and the actor's entropy bonus []."""

    scale: tuple[Float[Array, ""] | float, ...]
    floor: tuple[Float[Array, ""] | float, ...]
    debias: tuple[bool, ...]
    entropy: Float[Array, ""] | float


class Dreamt(NamedTuple):
    """What is kept of the dreams, in blocks of c starts."""

    feat: Float[Array, "blocks H+1 c F"]
    action: Float[Array, "blocks H+1 c A"]
    weight: Float[Array, "blocks H+1 c"]
    reward: Float[Array, "blocks R H+1 c"]
    value: Float[Array, "blocks R H+1 c"]
    returns: Float[Array, "blocks R H c"]


def behavior_loss(
    behavior: Behavior,
    target: BehaviorTarget,
    dream: Callable[[Any, Any], Imagined],
    known: Any,
    starts: Any,
    replayed: Replayed,
    weights: Weights,
    hypers: Hypers,
) -> tuple[dict[str, Array], ReturnScale, dict[str, Float[Array, ""]]]:
    """Actor and critic losses.

    The actor ascends sum_r scale_r (R_r - v_r) / max(floor_r, S_r) by REINFORCE, plus entropy; each critic matches its
    lambda-returns, and its slow copy, on imagined and on replayed rows.

    Args:
        dream: (known, one block of starts) -> what is imagined from them. Closes over nothing traced.
        known: what dreaming reads; gets no gradient.
        starts: blocks of starts, [blocks, ...] (stages/blocks.py).

    Returns:
        losses: policy [] and value [], means over imagined rows, and repval [T-1, B] (the last row has no successor),
            summed over rewards.
        the new return scales [R]
        metrics
    """

    def dream_and_value(critics, known, start):
        slow, hypers, known = known
        imagined = sg(dream(known, start))
        weight = jnp.cumprod(imagined.cont, 0)
        # Heads see all H+1 steps, and the last one's outputs are dropped: cutting features would copy them.
        logits = jax.vmap(lambda critic: critic(imagined.feat))(critics)  # [R, H+1, c, I]
        value = sg(jax.vmap(critics.mean)(logits))
        never = jnp.zeros(weight.shape, bool)
        back = lambda reward, value: maths.lambda_return(reward, value, imagined.cont, never, hypers.lam)
        returns = sg(jax.vmap(back)(imagined.reward, value))
        goals = jnp.concatenate([returns, value[:, -1:]], 1)
        loss = _critic_loss(critics, logits, goals, _values(slow, imagined.feat), hypers.slow_regularizer)
        kept = Dreamt(imagined.feat, imagined.action, weight, imagined.reward, value, returns)
        return (weight * loss)[:-1].sum(), kept

    value_loss, dreamt = blocks.sum_over(dream_and_value, behavior.critics, (target.slow, hypers, known), starts)

    returns = jnp.moveaxis(dreamt.returns, 1, 0)  # [R, blocks, H, c]
    scale = jax.vmap(lambda s, r: maths.update_scale(s, r, hypers.return_rate))(target.scale, returns)
    advantage = jnp.zeros(returns.shape[1:])
    for r, (share, floor, debias) in enumerate(zip(weights.scale, weights.floor, weights.debias, strict=True)):
        divisor = maths.divisor(jax.tree.map(lambda x, r=r: x[r], scale), floor, debias)
        advantage += share * (returns[r] - dreamt.value[:, r, :-1]) / divisor

    def act_better(actor, known, block):
        dreamt, advantage = block
        unimix, bonus = known
        logp, ent = log_prob_and_entropy(actor(dreamt.feat, unimix), dreamt.action)
        return -(dreamt.weight * (_padded(advantage) * logp + bonus * ent))[:-1].sum(), ent[:-1].sum()

    policy, ent = blocks.sum_over(act_better, behavior.actor, (hypers.unimix, weights.entropy), (dreamt, advantage))

    # Blocks hold consecutive starts, and a start is a replayed row: [R, blocks, c] is [R, T, B].
    boot = returns[:, :, 0].reshape(replayed.reward.shape)
    repval = _replay_value_loss(behavior, target, replayed, boot, hypers)
    metrics = {
        "adv_mag": jnp.abs(advantage).mean(),
        "ent": ent.sum() / advantage.size,
        "ret": returns[0].mean(),
        "ret_scale": (scale.high - scale.low)[0],
        "val": dreamt.value[:, 0].mean(),
        "rew": dreamt.reward[:, 0, 1:].mean(),
        "weight": dreamt.weight.mean(),
    }
    losses = {"policy": policy / advantage.size, "value": value_loss / advantage.size, "repval": repval}
    return losses, scale, metrics


def _padded(x: Float[Array, "H n"]) -> Float[Array, "H+1 n"]:
    return jnp.concatenate([x, jnp.zeros_like(x[:1])])


def _replay_value_loss(behavior, target, replayed: Replayed, boot, hypers: Hypers):
    """The critics' loss on replayed rows, bootstrapped with the imagined returns that start there [R, T, B]."""
    logits = jax.vmap(lambda critic: critic(replayed.feat))(behavior.critics)
    slow = _values(target.slow, sg(replayed.feat))
    live = (1 - replayed.is_terminal.astype(jnp.float32)) * (1 - 1 / hypers.discount_horizon)
    back = lambda reward, boot: maths.lambda_return(reward, boot, live, replayed.is_last, hypers.lam)
    returns = sg(jax.vmap(back)(replayed.reward, boot))
    goals = jnp.concatenate([returns, boot[:, -1:]], 1)
    loss = _critic_loss(behavior.critics, logits, goals, slow, hypers.slow_regularizer)[:-1]
    # Past an episode's last row lies the next reset: nothing to predict there.
    return (1 - replayed.is_last[:-1].astype(jnp.float32)) * loss


def _values(critics: TwoHotHead, feat):
    """What each critic expects, [R, ...], without gradient."""
    return sg(jax.vmap(lambda critic: critic.mean(critic(feat)))(sg(critics)))


def _critic_loss(critics: TwoHotHead, logits, returns, slow, regularizer):
    """Cross-entropy to the two-hot return and, `regularizer` times, to the slow critic's prediction; summed over R."""
    loss = lambda logits, *targets: critics.loss(logits, *targets, weights=(1.0, regularizer))
    return jax.vmap(loss)(logits, returns, slow).sum(0)


def update_target(target: BehaviorTarget, behavior: Behavior, scale: ReturnScale, rate) -> BehaviorTarget:
    """Slow critics one step of `rate` towards the critics; scales replaced."""
    slow = jax.tree.map(lambda s, c: (1 - rate) * s + rate * c, target.slow, behavior.critics)
    return BehaviorTarget(slow, scale)
