"""Environments: what one is here, and where to get one. Imports nothing from stages/."""

from envs.environment import ActionSpace, DictSpace, Environment, ObsSpace, State, StateSpace, Timestep, env_step
from envs.errors import BadOverride, EnvError, UnavailableEnvironment, UnknownEnvironment
from envs.registry import ids, make

__all__ = [
    "ActionSpace",
    "BadOverride",
    "DictSpace",
    "EnvError",
    "Environment",
    "ObsSpace",
    "State",
    "StateSpace",
    "Timestep",
    "UnavailableEnvironment",
    "UnknownEnvironment",
    "env_step",
    "ids",
    "make",
]
