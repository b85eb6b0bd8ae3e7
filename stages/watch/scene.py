"""Scene: rows that one agent plays, with its world model's predictions. The model sees some rows and predicts the next.

Axes: T rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from numpy.typing import NDArray

from envs.environment import Environment
from stages.decode import reconstruct
from stages.imagine import open_loop, stored_latent
from stages.measure.open_loop import CONTEXT, episode_step, play_rows, prediction_errors
from stages.store.load import AgentBatch, select_behavior, take_seeds
from stages.sweep.sweep import keys_of
from stages.world_model import action_vector

BLIND = 15
"""Rows that the model predicts without seeing them, before it sees CONTEXT rows again."""


@dataclass(frozen=True, eq=False)
class Scene:
    """Rows of one environment, as numpy [T, ...]; several episodes where they are short."""

    env: Environment
    obs: PyTree[np.ndarray]  # every entry in storage type
    predicted: PyTree[np.ndarray]  # decode.reconstruct: probabilities of binary entries
    error: NDArray[np.float32]  # the decoder's loss, a mean over the observation's numbers
    observed: NDArray[np.bool_]  # whether the model saw the row
    ahead: NDArray[np.int32]  # rows since the model last saw one; 0 where it sees the row
    episode_step: NDArray[np.int32]  # rows before this one in its episode
    score: NDArray[np.float64]  # reward of the episode so far
    novelty: NDArray[np.float32] | None  # intrinsic reward of the action (IntrinsicReward.novelty_signal); or None
    state: NDArray[np.int32] | None  # countable state; None where there are none
    action: NDArray  # chosen at the row: indices [T], or numbers [T, A]


def record_scene(group: AgentBatch, seed: int, policy: str, rows: int, eval_seed: int) -> Scene:
    """`rows` rows of one of the group's seeds.

    Args:
        policy: who plays, of load.POLICIES.
        eval_seed: draws the episodes.
    """
    slot = group.seeds.index(seed)
    agent, hypers, env_params = take_seeds((group.agent, group.hypers, group.env_params), slot)
    select_behavior(agent, policy)  # before anything is compiled

    def play(agent, hypers, env_params, key):
        env, model = group.env.with_params(env_params), agent.model
        key_play, key_predict = jax.random.split(key)
        behavior = select_behavior(agent, policy)
        played = play_rows(env, agent, behavior, hypers, 1, rows, group.config.eval_greedy, key=key_play)
        step = episode_step(played.rows.is_first)
        observed = step % (CONTEXT + BLIND) < CONTEXT
        latent = open_loop(model, played.rows, observed, hypers.unimix, key=key_predict)
        novelty = None
        if agent.intrinsic is not None:
            action = action_vector(model, played.rows.action)
            novelty = agent.intrinsic.novelty_signal(model, stored_latent(model, played.rows).feat, action, hypers)
            novelty = jnp.where(played.rows.is_last, 0.0, novelty)  # the action there leads nowhere
        error = prediction_errors(model.decoder, latent, played.rows.obs).loss
        arrays = (played.rows, reconstruct(model.decoder, latent), error, observed, step, novelty, played.state)
        return jax.tree.map(lambda x: x[:, 0], arrays)

    [key] = keys_of([seed], eval_seed + 1)
    # What is not finite cannot be drawn; a seed that diverged may show it.
    arrays = jax.tree.map(_finite, jax.jit(play)(agent, hypers, env_params, key))
    played, predicted, error, observed, step, novelty, state = arrays
    total = np.cumsum(played.reward.astype(np.float64))
    score = total - (total - played.reward)[np.arange(rows) - step]
    ahead = np.maximum(0, step % (CONTEXT + BLIND) - CONTEXT + 1)
    return Scene(group.env, played.obs, predicted, error, observed, ahead, step, score, novelty, state, played.action)


def _finite(x: jax.Array) -> NDArray:
    """An array with 0 where it is not finite."""
    return np.nan_to_num(np.asarray(x), posinf=0.0, neginf=0.0)
