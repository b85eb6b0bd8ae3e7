"""Coverage: how often each action was taken in each countable state, and when the goal was reached.

Rows are counted as they are collected, on the device. envs/states.py and envs/minigrid.py define the countable states
of environments. Other environments have no record.

Axes: X states, U actions that are told apart (`action_count`), N environments, C capacity of the ring, n rows, A action
vector.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from envs.environment import ActionSpace, Environment
from stages.collect import ActorState
from stages.replay import Row, write_row

ACTION_BINS = 5  # equal bins of [-1, 1] for the first dimension of a continuous action
SOLVED_TENTHS = 9  # a seed has solved its task once less than this many tenths of its episodes missed the goal


class Coverage(eqx.Module):
    """Counts of one seed, over all its environments. Episodes are numbered from 1 in the order in which they end, and
    by environment where they end in the same step. Number 0 means not yet, or that there is no goal."""

    visits: Int[Array, "X U"]  # of each action; the one at an episode's last row is not executed and not counted
    where: Int[Array, "C N"]  # the state of each row of the ring; -1: no row yet, or no action was taken there
    episodes: Int[Array, ""]  # that have ended
    misses: Int[Array, ""]  # of them, those that did not reach the goal
    goal_episode: Int[Array, ""]  # the first that reached the goal
    solved_episode: Int[Array, ""]  # the first after which fewer than 90 % of all episodes had missed the goal


def init_coverage(env: Environment, capacity: int, envs: int) -> Coverage | None:
    """The record of a seed before its first row; None where states cannot be counted."""
    if env.states is None:
        return None
    zero = jnp.zeros((), jnp.int32)
    visits = jnp.zeros((env.states.size, action_count(env.action_space)), jnp.int32)
    return Coverage(visits, jnp.full((capacity, envs), -1, jnp.int32), zero, zero, zero, zero)


def count_row(
    env: Environment,
    coverage: Coverage | None,
    actor_state: ActorState,
    row: Row,
    step: Int[Array, ""],
    is_kept: Bool[Array, ""] | bool = True,
) -> Coverage | None:
    """The record with one more row of every environment.

    Args:
        actor_state: as it was at this row, before the step.
        row: [N, ...].
        step: the number of the row, as the ring counts; not batched.
        is_kept: whether the ring kept the row; if not, the record is returned unchanged.

    `solved_episode` is bsuite's rule for Deep Sea (Osband et al. 2020): the first episode at which the average regret
    is below 0.9. An episode without the goal has regret 1. All episodes are looked at, not only the logged ones.
    """
    if coverage is None or env.states is None:
        return coverage
    state = jnp.where(row.is_last, -1, jax.vmap(env.states.index)(actor_state.env_state))
    # Where no action was taken, an index out of range, which `drop` ignores; -1 would be the last state.
    visited = jnp.where(row.is_last | ~is_kept, env.states.size, state), action_index(env.action_space, row.action)
    visits = coverage.visits.at[visited].add(1, mode="drop")
    states = write_row(coverage.where, state, step, is_kept)

    ended = row.is_last & is_kept
    number = coverage.episodes + jnp.cumsum(ended)  # of the episode that ends here
    episodes, misses, goal, solved = number[-1], coverage.misses, coverage.goal_episode, coverage.solved_episode
    if env.goal is not None:
        reached = ended & (actor_state.score + row.reward > env.goal)
        missed = misses + jnp.cumsum(ended & ~reached)
        goal = _first_event(goal, reached, number)
        solved = _first_event(solved, ended & (10 * missed < SOLVED_TENTHS * number), number)
        misses = missed[-1]
    return Coverage(visits, states, episodes, misses, goal, solved)


def visits_at(coverage: Coverage | None, position: Int[Array, " n"], env: Int[Array, " n"]) -> Int[Array, "n U"] | None:
    """How often each action was taken in the states of these rows of the ring; 0 where none was taken at the row.

    Args:
        position: of the row; positions beyond the ring's end wrap around.
        env: which environment's row it is.
    """
    if coverage is None:
        return None
    state = coverage.where[position % coverage.where.shape[0], env]
    return jnp.where(state[:, None] < 0, 0, coverage.visits[state])


def _first_event(before: Int[Array, ""], event: Bool[Array, " N"], number: Int[Array, " N"]) -> Int[Array, ""]:
    """The number of the first event: `before` unless that is 0, else the first here; 0 without one."""
    current = jnp.where(event.any(), number[jnp.argmax(event)], 0)
    return jnp.where(before > 0, before, current)


# ---- actions that are told apart -----------------------------------------------------------------------------------


def action_count(actions: ActionSpace) -> int:
    """U, the number of actions that are told apart: each discrete action, the options of the first of several choices,
    or the bins of a continuous action's first dimension."""
    if actions.kind == "continuous":
        return ACTION_BINS
    return actions.choices[0] if actions.choices else actions.size


def action_index(actions: ActionSpace, action: Array) -> Int[Array, "..."]:
    """Stored actions, int32 [...] or [..., D], or [..., A] -> which of the U actions they are."""
    if actions.kind != "continuous":
        return action[..., 0] if actions.choices else action
    bins = jnp.floor((action[..., 0] + 1) / 2 * ACTION_BINS)
    return jnp.clip(bins, 0, ACTION_BINS - 1).astype(jnp.int32)


def action_vectors(actions: ActionSpace) -> Float[Array, "U A"]:
    """An action vector for each of the U actions: one-hot, where all other choices take their first option, or the
    middle of the bin, with 0 in all other dimensions."""
    if actions.kind == "discrete":
        return jnp.eye(actions.size)
    if actions.kind == "multi_discrete":
        count, *other_counts = actions.choices
        first_options = jnp.concatenate([*(jnp.eye(1, n)[0] for n in other_counts), jnp.zeros(0)])
        return jnp.concatenate([jnp.eye(count), jnp.broadcast_to(first_options, (count, first_options.size))], -1)
    middles = (2 * jnp.arange(ACTION_BINS) + 1) / ACTION_BINS - 1
    return jnp.zeros((ACTION_BINS, actions.size)).at[:, 0].set(middles)
