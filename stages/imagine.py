"""Imagination: the world model run forward under a policy, or along actions that were taken. Without gradient.

Starts are imagined in blocks of c, one block after another (fast/blocks.py): everything imagined keeps that leading
axis. Axes: H horizon, L = H + 1 states, n starts, c starts of a block, S categoricals, F feat, A action vector; T rows,
N environments. Source: DreamerV3, "Actor critic learning".
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jax.lax import stop_gradient as sg
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from stages.config import Scalar
from stages.fast import blocks
from stages.networks.heads import Actor
from stages.replay import Row
from stages.rssm import Latent, imagine_step
from stages.world_model import WorldModel, action_vector, continue_logit


class Noise(eqx.Module):
    """The random numbers of all imagined steps, drawn before the scan."""

    latent: Float[Array, "H n S"]  # uniform in [0, 1)
    action: Float[Array, "L n ..."]  # the actor's own


class Trajectory(eqx.Module):
    """H imagined steps and their start, without gradient. action[t] was chosen at feat[t]."""

    feat: Float[Array, "*blocks L c F"]
    action: Float[Array, "*blocks L c A"]
    cont: Float[Array, "*blocks L c"]  # probability that the episode goes on after this state, times the discount


def draw_noise(model: WorldModel, actor: Actor, horizon: int, starts: int, *, key: PRNGKeyArray) -> Noise:
    """Noise for `horizon` imagined steps from each start."""
    key_latent, key_action = jr.split(key)
    latent = jr.uniform(key_latent, (horizon, starts, model.rssm.stoch))
    return Noise(latent, actor.noise((horizon + 1, starts), key=key_action))


def imagine(
    model: WorldModel,
    actor: Actor,
    start: Latent,
    noise: Noise,
    unimix: Scalar,
    policy_unimix: Scalar,
    block_size: int = 0,
) -> Trajectory:
    """Imagine from each start, which is step 0 of its trajectory.

    Args:
        start: [n, ...] states.
        unimix: uniform share of the prior.
        policy_unimix: uniform share of a categorical policy.
        block_size: starts of a block, at most; 0 takes what suits the machine. It changes no number.
    """
    model, actor, start = sg((model, actor, start))
    count = blocks.count(start.deter.shape[0], block_size)
    starts, noises = blocks.split(start, count), blocks.split(noise, count, axis=1)

    def imagine_block(block: tuple[Latent, Noise]) -> Trajectory:
        return _imagine_block(model, actor, *block, unimix, policy_unimix)

    return sg(lax.map(imagine_block, (starts, noises)))


def _imagine_block(model: WorldModel, actor: Actor, start: Latent, noise: Noise, unimix, policy_unimix) -> Trajectory:
    """A trajectory without its leading axis."""

    def act(feat, noise):
        return actor(feat, policy_unimix).sample(noise)  # float32: its log-probability is taken

    def step(latent, noise):
        latent_noise, action_noise = noise
        feat = latent.feat
        action = act(feat, action_noise)
        return imagine_step(model.rssm, latent, action, latent_noise, unimix), (feat, action)

    last, (feats, actions) = lax.scan(step, start, (noise.latent, noise.action[:-1]))
    feats, actions = _append(feats, last.feat), _append(actions, act(last.feat, noise.action[-1]))
    return Trajectory(feats, actions, jax.nn.sigmoid(continue_logit(model, feats)))


def _append(xs, x):
    # As rows: XLA else writes the features twice, as rows and as steps, since both are read.
    return jnp.concatenate([xs.reshape(-1, x.shape[-1]), x]).reshape(-1, *x.shape)


# ---- along replayed actions ----------------------------------------------------------------------------------------


def stored_latent(model: WorldModel, rows: Row) -> Latent:
    """The posterior states that replay stores with its rows: those that the agent had there."""
    return Latent.stored(rows.deter, rows.stoch, model.rssm.classes, model.dtype)


def open_loop(
    model: WorldModel, rows: Row, observed: Bool[Array, "T N"], unimix: Scalar, *, key: PRNGKeyArray
) -> Latent:
    """The model's states at rows, [T, N, ...]: the posterior where it observes the row, else a sample of the prior.

    Args:
        rows: [T, N, ...], with the posterior states.
        observed: whether the model observes the row. An episode's first row must be observed.
        unimix: uniform share of the prior.
    """
    uniform = jr.uniform(key, (*observed.shape, model.rssm.stoch))
    states, actions = stored_latent(model, rows), action_vector(model, rows.action)

    def step(carry, inputs):
        (latent, last_action), (state, observed, uniform, action) = carry, inputs
        imagined = imagine_step(model.rssm, latent, last_action, uniform, unimix)
        latent = Latent(
            jnp.where(observed[:, None], state.deter, imagined.deter),
            jnp.where(observed[:, None, None], state.stoch, imagined.stoch),
        )
        return (latent, action), latent

    zeros = jax.tree.map(lambda x: jnp.zeros_like(x[0]), (states, actions))
    return lax.scan(step, zeros, (states, observed, uniform, actions))[1]
