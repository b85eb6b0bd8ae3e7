"""Collect: one environment step of every environment of a seed -> rows for replay.

Axes: N environments.
"""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from envs.environment import Environment, Obs, Timestep, env_step
from stages.agent import Agent, Collector, Turns
from stages.behavior import Behavior
from stages.config import Hypers
from stages.replay import Row
from stages.rssm import Latent, initial_latent, observe_step
from stages.uniform import RandomPolicy
from stages.world_model import WorldModel


class ActorState(eqx.Module):
    """The environments and the agent's state in each, [N, ...]."""

    env_state: PyTree
    timestep: Timestep
    latent: Latent
    action: Float[Array, "N A"]  # the action before `timestep`
    score: Float[Array, " N"]  # reward of the episode so far
    length: Int[Array, " N"]  # rows of the episode so far
    events: dict[str, Int[Array, " N"]]  # how often each happened in the episode so far; {} without events
    tasker_acts: Bool[Array, " N"]  # whether it is the tasker's turn, where explorer and tasker take turns


class Episodes(eqx.Module):
    """Sums over the episodes that ended, []. The mean score is score / count."""

    count: Float[Array, ""]
    score: Float[Array, ""]
    length: Float[Array, ""]
    events: dict[str, Float[Array, ""]] = eqx.field(default_factory=dict)  # episodes in which each happened
    tasker_count: Float[Array, ""] | None = None  # episodes in which the tasker acted, where it takes turns
    tasker_score: Float[Array, ""] | None = None


def init_actor_state(env: Environment, model: WorldModel, envs: int, *, key: PRNGKeyArray) -> ActorState:
    """`envs` environments at their first observation, with the model's initial state."""
    env_state, timestep = jax.vmap(env.reset)(jr.split(key, envs))
    latent = initial_latent(model.rssm, (envs,), model.dtype)
    action = jnp.zeros((envs, env.action_space.size))
    score, length = jnp.zeros(envs), jnp.zeros(envs, jnp.int32)
    events = {name: jnp.zeros(envs, jnp.int32) for name in timestep.events}
    return ActorState(env_state, timestep, latent, action, score, length, events, jnp.zeros(envs, bool))


def act(
    model: WorldModel,
    behavior: Behavior | RandomPolicy,
    latent: Latent,
    action: Float[Array, "*b A"],
    obs: Obs,
    is_first: Bool[Array, "*b"],
    hypers: Hypers,
    greedy: bool,
    *,
    key: PRNGKeyArray,
) -> tuple[Latent, Float[Array, "*b A"]]:
    """Observe a row and choose an action there: (posterior state, action vector).

    Args:
        latent: state at the row before, [*b, ...].
        action: vector of the action taken there.
        obs: the observation, [*b, *obs], in its storage type.
        is_first: whether the row begins an episode; then `latent` and `action` count as zeros.
    """
    key_latent, key_action = jr.split(key)
    latent = observe_row(model, latent, action, obs, is_first, hypers, key=key_latent)
    return latent, choose_action(behavior, latent, hypers, greedy, key=key_action)


def observe_row(
    model: WorldModel,
    latent: Latent,
    action: Float[Array, "*b A"],
    obs: Obs,
    is_first: Bool[Array, "*b"],
    hypers: Hypers,
    *,
    key: PRNGKeyArray,
) -> Latent:
    """The posterior state at a row; arguments as for `act`."""
    embed = model.encoder(obs, model.dtype)
    uniform = jr.uniform(key, (*is_first.shape, model.rssm.stoch))
    return observe_step(model.rssm, latent, embed, action, is_first, uniform, hypers.unimix)


def choose_action(
    behavior: Behavior | RandomPolicy, latent: Latent, hypers: Hypers, greedy: bool, *, key: PRNGKeyArray
) -> Float[Array, "*b A"]:
    """The vector of an action: a sample of the policy, or its mode."""
    policy = behavior.actor(latent.feat, hypers.policy_unimix)
    noise = behavior.actor.noise(latent.deter.shape[:-1], key=key)
    action = policy.mode() if greedy else policy.sample(noise)
    return action.astype(jnp.float32)  # the model may compute in bfloat16, and environments take the action as it is


def take_turns(
    turns: Turns,
    latent: Latent,
    is_first: Bool[Array, " N"],
    tasker_acts: Bool[Array, " N"],
    hypers: Hypers,
    *,
    key: PRNGKeyArray,
) -> tuple[Float[Array, "N A"], Bool[Array, " N"]]:
    """The action of the behaviour whose turn it is, and whether that is the tasker: drawn at an episode's first row."""
    key_turn, key_action = jr.split(key)
    tasker_acts = jnp.where(is_first, jr.bernoulli(key_turn, hypers.tasker_share, is_first.shape), tasker_acts)
    explorer_action, tasker_action = (
        choose_action(behavior, latent, hypers, greedy=False, key=key_action)
        for behavior in (turns.explorer, turns.tasker)
    )
    return jnp.where(tasker_acts[:, None], tasker_action, explorer_action), tasker_acts


def env_action(model: WorldModel, action: Float[Array, "... A"]) -> Array:
    """Action vector -> what environments take and replay stores: int32 indices, or float32 numbers."""
    if model.actions.kind == "continuous":
        return action.astype(jnp.float32)
    if model.actions.kind == "discrete":
        return jnp.argmax(action, -1).astype(jnp.int32)
    return jnp.stack([jnp.argmax(part, -1) for part in model.actions.split(action)], -1).astype(jnp.int32)


def collect(
    env: Environment,
    agent: Agent,
    behavior: Collector,
    actor_state: ActorState,
    hypers: Hypers,
    *,
    greedy: bool = False,
    resets: bool = True,
    key: PRNGKeyArray,
) -> tuple[ActorState, Row, Episodes]:
    """One step of every environment: observe, act, step.

    Args:
        resets: whether the next episode begins where one has ended. Compiling a reset may take half a minute.

    Returns:
        the actors' state at the next observation; the present row [N, ...] with the action and latent the agent had
        there; the episodes whose last row this was.
    """
    key_act, key_env = jr.split(key)
    key_latent, key_action = jr.split(key_act)
    timestep, tasker_acts = actor_state.timestep, actor_state.tasker_acts
    before = (actor_state.latent, actor_state.action, timestep.obs, timestep.is_first)
    latent = observe_row(agent.model, *before, hypers, key=key_latent)
    if isinstance(behavior, Turns):
        action, tasker_acts = take_turns(behavior, latent, timestep.is_first, tasker_acts, hypers, key=key_action)
    else:
        action = choose_action(behavior, latent, hypers, greedy, key=key_action)
    executed_action = env_action(agent.model, action)
    row = Row(
        timestep.obs,
        executed_action,
        timestep.reward,
        timestep.is_first,
        timestep.is_last,
        timestep.is_terminal,
        latent.deter,
        latent.classes,
    )
    score, length = actor_state.score + timestep.reward, actor_state.length + 1
    ended = timestep.is_last.astype(jnp.float32)
    events = {name: count + timestep.events[name].astype(jnp.int32) for name, count in actor_state.events.items()}
    happened = {name: (ended * (count > 0)).sum() for name, count in events.items()}
    episodes = Episodes(ended.sum(), (ended * score).sum(), (ended * length).sum(), happened)
    if isinstance(behavior, Turns):
        of_tasker = ended * tasker_acts
        episodes = dataclasses.replace(episodes, tasker_count=of_tasker.sum(), tasker_score=(of_tasker * score).sum())
    keys = jr.split(key_env, timestep.reward.shape[0])
    step = jax.vmap(functools.partial(env_step, env, resets=resets))
    env_state, following = step(keys, actor_state.env_state, timestep, executed_action)
    score, length, events = jax.tree.map(lambda x: x * ~timestep.is_last, (score, length, events))
    actor_state = ActorState(env_state, following, latent, action, score, length, events, tasker_acts)
    return actor_state, row, episodes
