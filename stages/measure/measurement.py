"""Measure: coverage, whether the intrinsic reward falls with visits, and the world model's prediction errors.

The intrinsic reward is measured for each action in each countable state. Where states cannot be counted, it is compared
with the same reward before learning, and with its mean at rows of random actions. The measured reward is the one that
the explorer is paid; with `constant`, a control, it is disagreement. The model's open-loop error on replayed rows is
measured beside the posterior's error. Errors of the reward and the continue head are measured at rewarded and terminal
rows apart from all others.

Axes: X states, U actions that are told apart, C capacity, N environments, K rows of a state, A action vector, H rows
ahead.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from envs.environment import Environment
from stages.agent import Agent
from stages.collect import collect, init_actor_state
from stages.config import Config, Hypers
from stages.imagine import stored_latent
from stages.intrinsic import IntrinsicReward
from stages.measure.coverage import Coverage, action_vectors
from stages.measure.heads import HeadErrors, head_errors
from stages.measure.open_loop import AHEAD, changed_accuracy, open_loop_errors
from stages.replay import ReplayBuffer, Row, StepCounters, capacity_of, read_windows, sample_windows
from stages.uniform import RandomPolicy
from stages.world_model import WorldModel, action_vector

ROWS_PER_STATE = 8
RECENT_ROWS = 128  # of each environment, the newest
RANDOM_ENVS, RANDOM_STEPS = 8, 32  # rows that uniformly random actions collect
WINDOWS = 64  # of replayed rows that the model is run forward through


class OpenLoopError(eqx.Module):
    """One seed's prediction errors on replayed rows (open_loop.PredictionErrors.loss)."""

    open_loop: Float[Array, " H"]  # the model run forward so many rows with the actions that were taken
    posterior: Float[Array, " H"]  # the posterior's at the same rows, which the model saw
    changed: Float[Array, ""]  # share predicted right of the numbers that change in a row (open_loop.changed_accuracy)


class Novelty(eqx.Module):
    """One seed's visits of countable states, and its intrinsic reward for each state and action."""

    visits: Int[Array, "X U"]
    reward: Float[Array, "X U"]  # the measured one; NaN where the ring holds no row of the state, and without a reward
    episodes: Int[Array, ""]
    goal_episode: Int[Array, ""]  # 0: not yet
    solved_episode: Int[Array, ""]  # 0: not yet


class RewardBaselines(eqx.Module):
    """One seed's mean intrinsic reward of the action taken, at one point of its training; NaN where there is no row."""

    collected: Float[Array, ""]  # at the newest rows of the ring
    untrained: Float[Array, ""]  # at the same rows, of the same reward before it has learned anything
    random: Float[Array, ""]  # at rows that uniformly random actions collect and that are never trained on


class Measurement(eqx.Module):
    """One seed at one point of its training."""

    open_loop_error: OpenLoopError
    head_errors: HeadErrors
    novelty: Novelty | None  # where states can be counted
    baselines: RewardBaselines | None  # where they cannot, and there is an intrinsic reward


def measure(
    env: Environment,
    config: Config,
    agent: Agent,
    ring: ReplayBuffer,
    coverage: Coverage | None,
    step: Int[Array, ""],
    hypers: Hypers,
    *,
    key: PRNGKeyArray,
) -> Measurement:
    """All that is measured of a seed.

    Args:
        step: rows of each environment that were collected so far.
    """
    open_loop = measure_open_loop(agent.model, ring, step, hypers, key=jr.fold_in(key, 0))
    heads = head_errors(agent.model, ring, step, hypers, key=jr.fold_in(key, 3))  # split(key, 3) has 0 to 2
    novelty = baselines = None
    if coverage is not None:
        novelty = measure_novelty(env, agent, ring, coverage, hypers, key=key)
    elif agent.intrinsic is not None:
        baselines = measure_baselines(env, config, agent, ring, step, hypers, key=key)
    return Measurement(open_loop, heads, novelty, baselines)


def measure_open_loop(
    model: WorldModel, ring: ReplayBuffer, step: Int[Array, ""], hypers: Hypers, *, key: PRNGKeyArray
) -> OpenLoopError:
    """Errors of the model run forward from stored states, over uniform windows of the ring, within an episode.

    NaN if no episode is long enough. If the ring has fewer rows than a window, one window of each environment is read,
    and only its stored rows count.
    """
    (capacity, envs), length = ring.reward.shape, max(AHEAD)
    counters = StepCounters(step, jnp.zeros((), jnp.int32))
    rows = read_windows(ring, sample_windows(counters, capacity, envs, WINDOWS, length, online=False, key=key), length)
    stored_rows, key_ahead, key_changed = jnp.minimum(step, capacity), jr.fold_in(key, 0), jr.fold_in(key, 2)
    ahead, observed, _ = open_loop_errors(
        model, rows, AHEAD, hypers.unimix, context=1, stored_rows=stored_rows, key=key_ahead
    )
    changed = changed_accuracy(model, rows, hypers.unimix, stored_rows, key=key_changed)
    return OpenLoopError(ahead.loss, observed.loss, changed)


def measure_novelty(
    env: Environment, agent: Agent, ring: ReplayBuffer, coverage: Coverage, hypers: Hypers, *, key: PRNGKeyArray
) -> Novelty:
    """Visits as counted, and the reward of every action in each state, averaged over stored rows of the state.

    Rows are read with their stored latents. Each state has the same number of them, however seldom it was visited.
    """
    by_state = jnp.full(coverage.visits.shape, jnp.nan)
    if (reward := agent.intrinsic) is not None:
        rows, has_rows = rows_of_states(coverage.where, env.states.size if env.states else 0, key=key)
        actions = action_vectors(env.action_space)
        by_row = lax.map(
            lambda index: _rewards_at_rows(reward.novelty_signal, agent.model, ring, index, actions, hypers), rows.T
        )
        by_state = jnp.where(has_rows[:, None], by_row.mean(0), jnp.nan)  # over K
    return Novelty(coverage.visits, by_state, coverage.episodes, coverage.goal_episode, coverage.solved_episode)


def measure_baselines(
    env: Environment,
    config: Config,
    agent: Agent,
    ring: ReplayBuffer,
    step: Int[Array, ""],
    hypers: Hypers,
    *,
    key: PRNGKeyArray,
) -> RewardBaselines:
    """The intrinsic reward and two baselines, for environments whose states cannot be counted.

    Args:
        step: rows of each environment that were collected so far.
    """
    key_start, key_steps, key_members = jr.split(key, 3)
    capacity = capacity_of(ring)
    newest = (step - 1 - jnp.arange(min(RECENT_ROWS, capacity))) % capacity
    recent = jax.tree.map(lambda x: x[newest], ring)
    is_valid = (jnp.arange(newest.size) < step)[:, None] & ~recent.is_last

    def act(actor_state, key):
        actor_state, row, _ = collect(env, agent, RandomPolicy(env.action_space), actor_state, hypers, key=key)
        return actor_state, row

    actor_state = init_actor_state(env, agent.model, RANDOM_ENVS, key=key_start)
    _, fresh = lax.scan(act, actor_state, jr.split(key_steps, RANDOM_STEPS))
    assert agent.intrinsic is not None
    intrinsic = agent.intrinsic.novelty_signal
    untrained = intrinsic.reinitialize(config, env.obs_space, env.action_space, key=key_members)
    return RewardBaselines(
        _mean_reward(intrinsic, agent.model, recent, is_valid, hypers),
        _mean_reward(untrained, agent.model, recent, is_valid, hypers),
        _mean_reward(intrinsic, agent.model, fresh, ~fresh.is_last, hypers),
    )


def _mean_reward(
    reward: IntrinsicReward, model: WorldModel, rows: Row, is_valid: Bool[Array, "R N"], hypers: Hypers
) -> Float[Array, ""]:
    """The mean over stored rows. An episode's last row is left out, since no action was taken there."""
    feat = stored_latent(model, rows).feat
    by_row = reward(model, feat, action_vector(model, rows.action), hypers)
    return jnp.where(is_valid, by_row, 0.0).sum() / is_valid.sum()


def _rewards_at_rows(
    reward: IntrinsicReward,
    model: WorldModel,
    ring: ReplayBuffer,
    index: Int[Array, " X"],
    actions: Float[Array, "U A"],
    hypers: Hypers,
) -> Float[Array, "X U"]:
    """The reward of each action at these rows of the ring."""
    position = jnp.unravel_index(index, ring.reward.shape)
    feat = stored_latent(model, jax.tree.map(lambda x: x[position], ring)).feat

    def of_action(action):
        return reward(model, feat, jnp.broadcast_to(action, (*index.shape, *action.shape)), hypers)

    return lax.map(of_action, actions).T.astype(jnp.float32)


def rows_of_states(row_states: Int[Array, "C N"], states: int, *, key: PRNGKeyArray) -> tuple[Int[Array, "X K"], Array]:
    """K rows of each state, spread evenly by age over all its rows in the ring. With K rows or more none is repeated.

    Args:
        row_states: the state of each row of the ring, -1 for none.

    Returns:
        positions in the flattened ring; whether the state has any row, [X] (else the positions mean nothing).
    """
    order = jnp.argsort(row_states.reshape(-1), stable=True)  # rows of a state are together, those of none come first
    count = jnp.bincount(jnp.where(row_states < 0, states, row_states).reshape(-1), length=states + 1)[:states]
    first = row_states.size - count.sum() + jnp.cumsum(count) - count
    offset = jr.randint(key, (states,), 0, jnp.maximum(count, 1))
    spread = jnp.arange(ROWS_PER_STATE) * count[:, None] // ROWS_PER_STATE
    rank = first[:, None] + (offset[:, None] + spread) % jnp.maximum(count, 1)[:, None]
    return order[jnp.minimum(rank, row_states.size - 1)], count > 0
