"""An intrinsic scale that adapts: how much disagreement weighs beside reward in mode mix, learned instead of set.

The scale falls while the explorer's actions collect more disagreement than those of a slow copy of its policy do at the
same states, and rises while they collect less. So disagreement counts as long as there is ever more to be found, and
what is too much of it needs no number of its own, which would depend on the environment and on what was learned.

Source: MaxInfoRL (Sukhija et al. 2024, arXiv 2412.12098) and its code (maxinforl_torch/commons/maxinfo_sac.py), from
which are: a loss in the scale's logarithm, Adam, states as they are replayed, and a slow policy that follows at the
slow critics' rate. Not from there: disagreement is not brought to unit variance first, as Adam's steps do not depend on
its size; and both policies act with the same random numbers, so that equal ones collect exactly the same.

Axes: n states, F feat, A action vector.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient as sg
from jaxtyping import Array, Float

from stages.config import Hypers
from stages.networks.heads import Actor
from stages.rewards import Reward, immediate
from stages.world_model import WorldModel

ADAM = optax.scale_by_adam(eps=1e-20)  # so small that no step depends on how large disagreement is


class IntrinsicScale(eqx.Module):
    """The scale as a factor of `Hypers.intrinsic_scale`, and the slow policy that it is measured by."""

    log: Float[Array, ""]
    moments: Any  # Adam's
    slow: Actor

    @staticmethod
    def of(actor: Actor) -> "IntrinsicScale":
        """A factor of 1, and a slow policy equal to the explorer's."""
        log = jnp.zeros(())
        return IntrinsicScale(log, ADAM.init(log), jax.tree.map(jnp.array, actor))


def with_scale(hypers: Hypers, scale: IntrinsicScale | None) -> Hypers:
    """Hypers whose intrinsic scale is the learned one, if one is learned."""
    if scale is None:
        return hypers
    return eqx.tree_at(lambda h: h.intrinsic_scale, hypers, hypers.intrinsic_scale * jnp.exp(scale.log))


def gain_over_slow(
    scale: IntrinsicScale,
    reward: Reward,
    model: WorldModel,
    network: Any,
    feat: Float[Array, "n F"],
    action: Float[Array, "n A"],
    noise: Float[Array, "n ..."],
    hypers: Hypers,
) -> Float[Array, ""]:
    """E_s[I(s, a) - I(s, slow policy's action)], the intrinsic reward that the policy collects beyond its slow copy.

    Args:
        reward: I.
        action: the explorer's, which it drew with `noise`.
    """
    slow = scale.slow(feat, hypers.policy_unimix).sample(noise).astype(action.dtype)
    collected = lambda action: immediate(reward, model, network, feat, action, hypers)
    return sg((collected(action) - collected(slow)).mean())


def update_scale(scale: IntrinsicScale, actor: Actor, gain: Float[Array, ""], hypers: Hypers) -> IntrinsicScale:
    """One step down the gradient of L = log(scale) * gain, and the slow policy's one step towards the explorer's."""
    step: Any
    step, moments = ADAM.update(gain, scale.moments)
    rate = hypers.slow_rate
    slow = jax.tree.map(lambda s, a: (1 - rate) * s + rate * a, scale.slow, actor)
    return IntrinsicScale(scale.log - hypers.intrinsic_scale_lr * step, moments, slow)
