"""Imagination: the world model run forward under a policy, without gradient.

Axes: H horizon, n starts. The policy is an argument, so explorer and tasker imagine with one function.
Source: DreamerV3, "Actor critic learning".
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from stages import rssm
from stages.maths import sg
from stages.rssm import Latent
from stages.world_model import WorldModel

Policy = Callable[[Float[Array, "n F"], Float[Array, "n *noise"]], Float[Array, "n A"]]
"""(feature, noise) -> action vector."""


class Noise(NamedTuple):
    """Uniform numbers for the latents and the policy's own, drawn before the scan."""

    latent: Float[Array, "H n S"]
    action: Float[Array, "H+1 n *noise"]


class Trajectory(eqx.Module):
    """H imagined steps and their start. action[t] was chosen at feat[t]; both carry no gradient."""

    feat: Float[Array, "H+1 n F"]
    action: Float[Array, "H+1 n A"]


def imagine(
    model: WorldModel, policy: Policy, start: Latent, noise: Noise, ratio: Float[Array, ""] | float
) -> Trajectory:
    """Imagine from each start, which is step 0 of the trajectory.

    Args:
        policy: acts on features, with its share of the noise.
        start: [n, ...] latents.
        ratio: unimix of the prior.
    """
    dynamics, start = rssm.laid_out(sg(model.rssm)), sg(start)
    never = jnp.zeros(start.deter.shape[:-1], bool)

    def step(latent, noise):
        feat = rssm.feat(latent)
        action = policy(feat, noise.action)
        share = rssm.action_share(dynamics, action, never)
        return rssm.prior_step(dynamics, latent, share, noise.latent, ratio), (feat, action)

    last, (feats, actions) = lax.scan(step, start, Noise(noise.latent, noise.action[:-1]))
    feat = rssm.feat(last)
    action = policy(feat, noise.action[-1])
    return sg(Trajectory(_append(feats, feat), _append(actions, action)))


def _append(xs, x):
    # As rows: XLA else writes the features twice, as rows and as steps, since both are read.
    return jnp.concatenate([xs.reshape(-1, x.shape[-1]), x]).reshape(-1, *x.shape)
