"""Resets that cost much are computed only when one of all lanes begins anew, and change no number."""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from envs import env_step
from tests.corridor import Corridor

T = 30


class Costly(Corridor):
    """A corridor that says so, though it costs nothing to begin anew."""

    costly_reset = True


def rows_of(env, lanes):
    """Rows [*lanes, T] of random actions."""

    def body(carry, key):
        carry = env_step(env, key, *carry, jr.randint(key, (), 0, 2))
        return carry, carry[1]

    def play(key):
        return jax.lax.scan(body, env.reset(key), jr.split(key, T))[1]

    for _ in lanes:
        play = jax.vmap(play)
    return jax.jit(play)(jr.split(jr.key(0), lanes) if lanes else jr.key(0))


@pytest.mark.parametrize("lanes", [(), (3,), (2, 2)])
def test_costly_resets_run_where_they_are_needed(lanes):
    count = []

    class Counted(Costly):
        def reset(self, key):
            jax.debug.callback(lambda _: count.append(1), jr.key_data(key))
            return super().reset(key)

    plain, costly = rows_of(Corridor(), lanes), rows_of(Counted(), lanes)
    jax.effects_barrier()
    jax.tree.map(np.testing.assert_array_equal, plain, costly)
    ends = np.asarray(plain.is_last).reshape(-1, T).any(0)[:-1].sum()  # the row after the last is none
    assert 0 < ends < T - 1
    assert len(count) == np.prod(lanes, dtype=int) * (1 + ends)


def test_what_all_lanes_share_may_be_shared():
    """A state that is the same in all lanes is not batched; neither is a key."""
    env = Costly()
    state, timestep = env.reset(jr.key(0))
    step = functools.partial(env_step, env, jr.key(1), state, timestep)
    states, rows = jax.vmap(step)(jnp.array([0, 1]))
    np.testing.assert_array_equal(rows.obs, np.eye(4)[:2])
    np.testing.assert_array_equal(states[1], [1, 1])
