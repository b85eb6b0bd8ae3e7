"""Fingerprint: an environment's spaces and a hash of its code, so that a run notices when these have changed."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.random as jr
import numpy as np

from envs.environment import Environment
from stages.config import ConfigError
from stages.store.arrays import without_key_type

COMPUTATION = "computation"
"""Name of the hash in a fingerprint."""


def fingerprint(env: Environment) -> dict[str, str]:
    """The environment's spaces and time limit, and a hash of what `reset` and `step` compute, as jax traces them.

    Arrays that the two close over are in the hash, and so is the version of jax. Nothing is compiled.
    """

    def rows(key, action):
        key_params, key_reset, key_step = jr.split(key, 3)
        bound = env.with_params(env.sample_params(key_params))
        first = bound.reset(key_reset)
        return first, bound.step(key_step, first[0], action)

    program = jax.make_jaxpr(rows)(jr.key(0), env.action_space.struct)
    digest = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", str(program)).encode())  # addresses differ between processes
    for value in program.consts:
        digest.update(np.asarray(without_key_type(value)).tobytes())
    return spaces_of(env) | {COMPUTATION: f"jax {jax.__version__} {digest.hexdigest()}"}


def spaces_of(env: Environment) -> dict[str, str]:
    """Spaces and time limit of an environment, as text: what an agent's networks are made for."""
    return {name: str(getattr(env, name)) for name in ("obs_space", "action_space", "time_limit")}


def check_spaces(saved: Mapping[str, str], env: Environment, run: Path) -> None:
    """Raises ConfigError where the environment has other spaces than in the fingerprint that a run was saved with."""
    for name, present in spaces_of(env).items():
        if (was := saved.get(name, present)) != present:  # copies of older versions have none
            raise ConfigError(
                f"the environment has changed since the run in {str(run)!r} was saved: its {name} was {was} and is "
                f"{present}; put its code back as it was, or take another run"
            )
