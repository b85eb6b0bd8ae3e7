"""Environments played by given actions, and what their errors say."""

import jax
import jax.random as jr
import numpy as np

import envs


def play(env, actions, key):
    """Rows [len(actions) + 1] under given actions, as numpy."""

    def body(carry, inputs):
        carry = envs.env_step(env, inputs[0], *carry, inputs[1])
        return carry, carry[1]

    @jax.jit
    def start_and_scan(key, actions):
        key_reset, key_scan = jr.split(key)
        first = env.reset(key_reset)
        _, later = jax.lax.scan(body, first, (jr.split(key_scan, len(actions)), actions))
        return first[1], later

    return jax.tree.map(lambda a, b: np.concatenate([a[None], b]), *jax.device_get(start_and_scan(key, actions)))


def one_line(info):
    """The message of an error that is one of ours and fits on one line."""
    assert isinstance(info.value, envs.EnvError)
    assert "\n" not in str(info.value)
    return str(info.value)
