"""Imagination: the world model run forward under a policy, without gradient.

Axes: H horizon, n starts. The policy is an argument, so explorer and tasker imagine with one function.
Source: DreamerV3, "Actor critic learning".
"""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from stages import rssm
from stages.maths import sg
from stages.rssm import Latent
from stages.world_model import WorldModel

Policy = Callable[[Float[Array, "n F"], Float[Array, "n *noise"]], Float[Array, "n A"]]
"""(feature, noise) -> action vector."""


class Trajectory(eqx.Module):
    """H imagined steps and their start. action[t] was chosen at feat[t]; both carry no gradient."""

    feat: Float[Array, "H+1 n F"]
    action: Float[Array, "H+1 n A"]


def imagine(
    model: WorldModel,
    policy: Policy,
    start: Latent,
    noise: Float[Array, "H+1 n *noise"],
    ratio: Float[Array, ""] | float,
    *,
    key: PRNGKeyArray,
) -> Trajectory:
    """Imagine from each start, which is step 0 of the trajectory.

    Args:
        policy: acts on features; its random numbers come in as `noise`, drawn before the scan.
        start: [n, ...] latents.
        ratio: unimix of the prior.
        key: for the latents' own noise.
    """
    model, start = sg(model), sg(start)
    never = jnp.zeros(start.deter.shape[:-1], bool)
    uniform = jr.uniform(key, (noise.shape[0] - 1, *start.stoch.shape[:-1]))

    def step(latent, inputs):
        noise_action, noise_latent = inputs
        feat = rssm.feat(latent)
        action = policy(feat, noise_action)
        projected = rssm.action_share(model.rssm, action, never)
        return rssm.prior_step(model.rssm, latent, projected, noise_latent, ratio), (feat, action)

    last, (feats, actions) = lax.scan(step, start, (noise[:-1], uniform))
    feat = rssm.feat(last)
    action = policy(feat, noise[-1])
    return sg(Trajectory(_append(feats, feat), _append(actions, action)))


def _append(xs, x):
    return jnp.concatenate([xs, x[None]])
