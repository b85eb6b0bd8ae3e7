"""Heads: errors of the reward and the continue head at rewarded and terminal rows, beside those at all others.

A loss is a mean over all rows, in which rare kinds of rows have little weight. Here each kind of row has a mean of its
own, over rows drawn from the ring. The heads read the posterior state that the ring stores for a row. They also read
the state that the prior predicts from an earlier row with the actions that were taken, as in imagination.

Axes: C capacity, N environments, K kinds of rows, R rows of a kind, H numbers of rows ahead.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from stages.config import Hypers
from stages.imagine import open_loop, stored_latent
from stages.replay import ReplayBuffer, Windows, capacity_of, read_windows
from stages.rssm import Latent
from stages.world_model import WorldModel, continue_logit, expected_reward

ROWS_PER_KIND = 64  # at most
HEADS_AHEAD = (0, 5)
"""Rows that the model is run forward before the heads read; 0: they read the posterior state."""


class HeadErrors(eqx.Module):
    """One seed's mean errors over rows of each kind, by HEADS_AHEAD; NaN where there is none."""

    reward_error: Float[Array, " H"]  # |expected reward - real one|, where the real one is not 0
    reward_elsewhere: Float[Array, " H"]  # |expected reward|, where the real one is 0
    continue_at_terminal: Float[Array, " H"]  # probability that the episode goes on, at terminal rows
    terminal_elsewhere: Float[Array, " H"]  # probability that it does not, at all others


def head_errors(
    model: WorldModel, ring: ReplayBuffer, step: Int[Array, ""], hypers: Hypers, *, key: PRNGKeyArray
) -> HeadErrors:
    """The heads' errors at rows of the ring.

    The prediction from an earlier row counts where both rows are of one episode, and the ring has all rows between.

    Args:
        step: rows of each environment that were collected so far.
    """
    key_rows, key_ahead = jr.split(key)
    capacity, length = capacity_of(ring), max(HEADS_AHEAD)
    stored, rewarded = (jnp.arange(capacity) < step)[:, None], ring.reward != 0
    kinds = stored & jnp.stack([rewarded, ~rewarded, ring.is_terminal, ~ring.is_terminal])
    index, is_drawn = draw_rows(kinds, ROWS_PER_KIND, key=key_rows)
    position, env = jnp.unravel_index(index.reshape(-1), ring.reward.shape)
    # The last row of each window is the one that was drawn.
    rows = read_windows(ring, Windows((position - length) % capacity, env), length)
    age = (position - jnp.maximum(0, step - capacity)) % capacity  # rows before it in the ring
    is_reached = ((age >= length) & ~rows.is_first[1:].any(0)).reshape(index.shape)
    observed = jnp.broadcast_to((jnp.arange(length + 1) == 0)[:, None], rows.reward.shape)
    reward, goes_on = (x[-1].reshape(index.shape) for x in (rows.reward, ~rows.is_terminal))

    def means(states: Latent, is_valid: Bool[Array, "K R"]) -> Float[Array, " K"]:
        feat = states.feat[-1]
        expected = expected_reward(model, feat).reshape(index.shape)
        # The head's target carries the discount.
        cont = (jax.nn.sigmoid(continue_logit(model, feat)) / (1 - 1 / hypers.discount_horizon)).reshape(index.shape)
        errors = jnp.concatenate([(expected - reward)[:2], (jnp.minimum(cont, 1) - goes_on)[2:]])
        return jnp.where(is_valid, jnp.abs(errors), 0).sum(1) / is_valid.sum(1)

    ahead = open_loop(model, rows, observed, hypers.unimix, key=key_ahead)
    return HeadErrors(*jnp.stack([means(stored_latent(model, rows), is_drawn), means(ahead, is_drawn & is_reached)], 1))


def draw_rows(
    kinds: Bool[Array, "K C N"], count: int, *, key: PRNGKeyArray
) -> tuple[Int[Array, "K R"], Bool[Array, "K R"]]:
    """`count` rows of each kind, uniformly and none twice; all of a kind that has fewer.

    Neither rows nor their number depend on how long the ring is: a run that is given more steps has a longer one.

    Args:
        kinds: whether a row is of that kind.

    Returns:
        positions in the flattened ring; whether a row of that kind stands there (else the position means nothing).
    """
    size = kinds[0].size
    priority = jax.vmap(lambda row: jr.uniform(jr.fold_in(key, row)))(jnp.arange(size))

    def draw(of_kind):
        priorities = jnp.pad(jnp.where(of_kind, priority, -1.0), (0, max(0, count - size)), constant_values=-1.0)
        highest, index = lax.top_k(priorities, count)
        return jnp.minimum(index, size - 1), highest >= 0

    # One kind after another: XLA's selection on a CPU has at most one axis of batch, which seeds take.
    return lax.map(draw, kinds.reshape(kinds.shape[0], -1))
