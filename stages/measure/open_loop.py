"""Open loop: the world model run forward with the actions that were taken, compared with what was observed.

`play_rows` collects rows, with the agent's posterior state at each. `imagine.open_loop` predicts later rows from the
states of the first ones.

Axes: T rows, N environments, D deter, S categoricals, K classes. Source: the open-loop report of DreamerV3.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from envs.environment import Environment, Obs, Space, obs_entries, zip_entries
from stages.agent import Agent
from stages.behavior import Behavior
from stages.collect import collect, init_actor_state
from stages.config import Hypers, Scalar
from stages.decode import Decoder, recon_loss, reconstruct
from stages.encode import join
from stages.imagine import open_loop, stored_latent
from stages.replay import Row
from stages.rssm import Latent, imagine_step
from stages.uniform import RandomPolicy
from stages.world_model import WorldModel, action_vector

CONTEXT = 5
"""Rows of an episode that the model sees before it predicts, as in DreamerV3's figures (the reference's code observes
half of the sequence)."""
AHEAD = (1, 5, 15)
"""Rows ahead at which predictions are measured."""


class Played(eqx.Module):
    """Rows as they were played, [T, N, ...]."""

    rows: Row
    state: Int[Array, "T N"] | None  # which countable state (envs.environment.StateSpace); None where there are none


class PredictionErrors(eqx.Module):
    """How far predicted observations are from the real ones."""

    loss: Float[Array, "..."]  # the decoder's loss, a mean over the observation's numbers (decode.recon_loss)
    right: Float[Array, "..."]  # share of the binary and categorical numbers whose likeliest value is the real one;
    # NaN if the observation has none
    exact: Float[Array, "..."]  # 1 where all of these numbers are right, else 0; NaN as above


def play_rows(
    env: Environment,
    agent: Agent,
    behavior: Behavior | RandomPolicy,
    hypers: Hypers,
    envs: int,
    length: int,
    greedy: bool,
    *,
    key: PRNGKeyArray,
) -> Played:
    """The first `length` rows of `envs` environments."""
    key_start, key_loop = jr.split(key)

    def step(actor_state, key_step):
        state = None if env.states is None else jax.vmap(env.states.index)(actor_state.env_state)
        after, row, _ = collect(env, agent, behavior, actor_state, hypers, greedy=greedy, key=key_step)
        return after, (row, state)

    actor_state = init_actor_state(env, agent.model, envs, key=key_start)
    return Played(*lax.scan(step, actor_state, jr.split(key_loop, length))[1])


def episode_step(is_first: Bool[Array, "T N"]) -> Int[Array, "T N"]:
    """How many rows of its episode come before each row. The first row counts as the first of an episode."""
    rows = jnp.arange(is_first.shape[0])[:, None]
    return rows - lax.cummax(jnp.where(is_first, rows, 0))


def prediction_errors(decoder: Decoder, latent: Latent, obs: Obs) -> PredictionErrors:
    """Errors, each [...], of the observations predicted from states [..., D] and [..., S, K]."""
    space, lead = decoder.space, latent.deter.shape[:-1]
    loss = recon_loss(decoder, latent, obs) / sum(math.prod(entry.shape) for entry in obs_entries(space).values())
    right = _equal_numbers(space, jax.tree.map(jnp.round, reconstruct(decoder, latent)), obs, lead)
    if right.shape[-1] == 0:
        nan = jnp.full(lead, jnp.nan)
        return PredictionErrors(loss, nan, nan)
    return PredictionErrors(loss, right.mean(-1), right.min(-1))


def _equal_numbers(space: Space, obs: Obs, other_obs: Obs, lead: tuple[int, ...]) -> Float[Array, "..."]:
    """1 where two observations agree, else 0: the numbers of binary and categorical entries, [*lead, numbers]."""
    entries = zip_entries(space, obs, other_obs)
    equal = [(a == b).reshape(*lead, -1) for _, entry, a, b in entries if entry.kind in ("binary", "categorical")]
    return join([x.astype(jnp.float32) for x in equal]) if equal else jnp.zeros((*lead, 0))


def changed_accuracy(
    model: WorldModel, rows: Row, unimix: Scalar, stored_rows: Int[Array, ""], *, key: PRNGKeyArray
) -> Float[Array, ""]:
    """Of the binary and categorical numbers that differ between row 0 and row 1 of an episode, the share that the prior
    predicts right from row 0. NaN where none differs.

    Args:
        rows: [T, N, ...], with the posterior states.
        stored_rows: how many of the T rows have been collected.
    """
    first, second = (jax.tree.map(lambda x, t=t: x[t], rows) for t in (0, 1))
    lead, space = second.is_first.shape, model.decoder.space
    uniform = jr.uniform(key, (*lead, model.rssm.stoch))
    latent = imagine_step(model.rssm, stored_latent(model, first), action_vector(model, first.action), uniform, unimix)
    likeliest = jax.tree.map(jnp.round, reconstruct(model.decoder, latent))
    is_valid = ~second.is_first & (stored_rows > 1)
    changed = (1 - _equal_numbers(space, first.obs, second.obs, lead)) * is_valid[:, None]
    return (changed * _equal_numbers(space, likeliest, second.obs, lead)).sum() / changed.sum()


def open_loop_errors(
    model: WorldModel,
    rows: Row,
    ahead: tuple[int, ...],
    unimix: Scalar,
    context: int = CONTEXT,
    stored_rows: Int[Array, ""] | int | None = None,
    *,
    key: PRNGKeyArray,
) -> tuple[PredictionErrors, PredictionErrors, Int[Array, " H"]]:
    """Errors of predictions `ahead` [H] rows after the first `context` rows, which the model sees, in one episode.

    Args:
        rows: [T, N, ...], T at least context + max(ahead).
        stored_rows: how many of the T rows have been collected; None: all.

    Returns:
        (errors of the model run forward, errors of the posterior that sees those rows, number of windows whose episode
        is long enough), each [H]. Errors are means over these windows; NaN without one.
    """
    target = jnp.array(ahead) + context - 1
    same_episode = jnp.cumsum(rows.is_first, 0) == rows.is_first[0]
    row_count = rows.is_first.shape[0] if stored_rows is None else stored_rows
    is_valid = same_episode[target] & (target < row_count)[:, None]
    observed, count = episode_step(rows.is_first) < context, is_valid.sum(1)

    def mean(latent):
        latent, obs = jax.tree.map(lambda x: x[target], (latent, rows.obs))
        errors = prediction_errors(model.decoder, latent, obs)
        return jax.tree.map(lambda x: jnp.where(is_valid, x, 0).sum(1) / count, errors)

    return mean(open_loop(model, rows, observed, unimix, key=key)), mean(stored_latent(model, rows)), count
