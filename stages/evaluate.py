"""Evaluate: whole episodes with a policy, mostly the tasker's, in environments apart from those of training."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from envs.environment import Environment
from stages.agent import Agent
from stages.behavior import Behavior
from stages.collect import ActorState, collect, init_actor_state
from stages.config import Config, Hypers
from stages.finite import all_finite
from stages.uniform import RandomPolicy
from stages.world_model import expected_reward

MAX_EVAL_ROWS = 64_000
"""The most rows of one evaluation of a seed, where only the time limit bounds the length of an episode."""


def eval_episode_count(env: Environment, config: Config) -> int:
    """Episodes of one evaluation of a seed: fewer than `config.eval_episodes` where the time limit is long.

    Episodes are left out, and none is cut short, so that the mean score is of whole episodes. With `config.eval_steps`
    all are played.
    """
    if config.eval_steps:
        return config.eval_episodes
    return min(config.eval_episodes, max(1, MAX_EVAL_ROWS // env.time_limit))


class Evaluation(NamedTuple):
    """Episodes that were played, [E]."""

    score: Float[Array, " E"]
    length: Float[Array, " E"]  # rows
    expected_score: Float[Array, " E"]
    """The sum of the reward head's expectations, at the states that the agent had at these rows. If it is far above the
    score, the policy seeks states whose reward the head overestimates."""


class TaskerScores(NamedTuple):
    """Means over the episodes of one evaluation, [seeds] of all processes, without padding."""

    score: np.ndarray
    expected: np.ndarray  # what the reward head expected of the same episodes


class _Loop(eqx.Module):
    actor_state: ActorState
    step: Array
    done: Array
    played: Evaluation


def evaluate(
    env: Environment,
    agent: Agent,
    config: Config,
    hypers: Hypers,
    behavior: Behavior | RandomPolicy | None = None,
    *,
    key: PRNGKeyArray,
) -> Evaluation:
    """Score and length of `eval_episode_count` episodes, the first of as many environments side by side.

    An episode that `config.eval_steps` (or the environment's time limit) cuts short counts with what it has by then.
    Where an observation or a reward is not finite, neither is the score: NaN.

    Args:
        behavior: who plays; None is the tasker.
    """
    key_start, key_loop = jr.split(key)
    player, episodes = behavior or agent.tasker, eval_episode_count(env, config)
    limit = (config.eval_steps or env.time_limit) + 1
    zeros = jnp.zeros(episodes)
    actor_state = init_actor_state(env, agent.model, episodes, key=key_start)
    loop = _Loop(actor_state, jnp.zeros((), jnp.int32), jnp.zeros(episodes, bool), Evaluation(zeros, zeros, zeros))

    def step(loop: _Loop) -> _Loop:
        key_step = jr.fold_in(key_loop, loop.step)
        actor_state, row, _ = collect(
            env, agent, player, loop.actor_state, hypers, greedy=config.eval_greedy, resets=False, key=key_step
        )
        is_running = ~loop.done
        reward = jnp.where(jax.vmap(all_finite)(row), row.reward, jnp.nan)
        expected = expected_reward(agent.model, actor_state.latent.feat)
        played = Evaluation(
            loop.played.score + jnp.where(is_running, reward, 0.0),
            loop.played.length + is_running,
            loop.played.expected_score + jnp.where(is_running, expected, 0.0),
        )
        return _Loop(actor_state, loop.step + 1, loop.done | row.is_last, played)

    return lax.while_loop(lambda loop: (loop.step < limit) & ~loop.done.all(), step, loop).played
