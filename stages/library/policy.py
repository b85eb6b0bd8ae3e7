"""Policy: a trained agent in a loop of your own.

    policy = policy_of(agents, seed=0)
    state = policy.reset()
    action, state = policy.act(state, obs, is_first, key=key)

Both are pure functions of their arguments, and Policy and PolicyState are pytrees of arrays: they may be jitted,
scanned and vmapped. Axes: S seeds, N environments, A action vector; "..." are the axes that `reset` was asked for.
"""

from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from envs.environment import DictSpace, Obs, ObsSpace, Space, zip_entries
from stages.behavior import Behavior
from stages.collect import act, env_action
from stages.config import ConfigError, Hypers
from stages.rssm import Latent, initial_latent
from stages.store.load import POLICIES, AgentBatch, select_behavior, take_seeds
from stages.uniform import RandomPolicy
from stages.world_model import WorldModel


class PolicyState(eqx.Module):
    """The state that an agent carries from one row of an environment to the next."""

    latent: Latent  # of the world model, at the row before
    action: Float[Array, "... A"]  # vector of the action taken there


class Policy(eqx.Module):
    """A trained agent that acts: its world model, and the behaviour that chooses actions.

    In the policy of all seeds each array has the axis S in front; vmap over it:
    `jax.vmap(Policy.act)(policies, states, obs, is_first, key=keys)`.
    """

    model: WorldModel
    behavior: Behavior | RandomPolicy
    hypers: Hypers
    greedy: bool = eqx.field(static=True)  # the likeliest action instead of a sample

    def reset(self, lead: tuple[int, ...] = ()) -> PolicyState:
        """The state before the first row, [*lead, ...]: () for one environment, (N,) for N, (S, N) for N of each seed.

        Call it once, not for each episode: at an episode's first row, `is_first` makes `act` reset the state.
        """
        action = jnp.zeros((*lead, self.model.actions.size))
        return PolicyState(initial_latent(self.model.rssm, lead, self.model.dtype), action)

    def act(
        self, state: PolicyState, obs: ArrayLike | Mapping[str, ArrayLike], is_first: ArrayLike, *, key: PRNGKeyArray
    ) -> tuple[Array, PolicyState]:
        """Look at a row and choose an action there.

        Args:
            state: returned by `reset`, or by `act` at the row before. The action in it must have been executed.
            obs: [..., *obs], of the shape and meaning that the agent was trained on, or a dict of such arrays; numpy
                will do. Images are bytes, 0 to 255. Under jit and vmap the values are not known: there only shape and
                type are checked.
            is_first: [...] of bools, whether the row begins an episode.
            key: for the samples of latent and action; a new one at each row.

        Returns:
            (action, state at this row). The action is an int32 index [...], int32 [..., D] of several choices, or
            float32 [..., A] in [-1, 1]: rescale it to the range of the environment.

        Raises:
            ConfigError: obs or is_first has another shape, type or range.
        """
        lead, is_first = state.action.shape[:-1], _array("is_first", is_first)
        if is_first.shape != lead:
            raise ConfigError(
                f"is_first is {list(is_first.shape)}, but the state is of {list(lead)}: give {list(lead)}, or vmap over"
                " the seeds"
            )
        if is_first.dtype != np.bool_:
            raise ConfigError(f"is_first must be of bools, not {is_first.dtype}")
        seen = _observation(self.model.encoder.space, obs, lead)
        before = (state.latent, state.action, seen, jnp.asarray(is_first))
        latent, action = act(self.model, self.behavior, *before, self.hypers, self.greedy, key=key)
        chosen = env_action(self.model, action)
        if self.model.actions.kind == "continuous":
            chosen = jnp.clip(chosen, -1.0, 1.0)  # as environments do; the state keeps the unclipped sample
        return chosen, PolicyState(latent, action)


def _array(name: str, values: object) -> Array | np.ndarray:
    """An array of numbers: jax's as it is, all else as numpy has it. Raises ConfigError."""
    if isinstance(values, jax.Array):
        return values
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ConfigError(f"{name} must be one array ({error})") from error
    if array.dtype.kind not in "biuf":
        raise ConfigError(f"{name} must be an array of numbers, not {type(values).__name__} of type {array.dtype}")
    return array


def _observation(space: Space, obs: object, lead: tuple[int, ...]) -> Obs:
    """Every entry of an observation as the encoder takes it. Raises ConfigError."""
    if isinstance(space, DictSpace) and (not isinstance(obs, Mapping) or obs.keys() != space.entries.keys()):
        given = f"{sorted(obs)}" if isinstance(obs, Mapping) else type(obs).__name__
        raise ConfigError(f"obs must be a dict of {', '.join(space.entries)}, not {given}")
    entries = zip_entries(space, obs)
    stored = {name: _entry(f"obs[{name!r}]" if name else "obs", entry, x, lead) for name, entry, x in entries}
    return stored if isinstance(space, DictSpace) else stored[""]


def _entry(name: str, space: ObsSpace, values: object, lead: tuple[int, ...]) -> Array:
    values = _array(name, values)
    if values.shape != lead + space.shape:
        raise ConfigError(
            f"{name} is {list(values.shape)}, but the agent was trained on {list(space.shape)} and the state is of "
            f"{list(lead)}: give {list(lead + space.shape)}, or vmap over the seeds"
        )
    return jnp.asarray(_stored(name, space, values))


def _stored(name: str, space: ObsSpace, obs: Array | np.ndarray) -> Array | np.ndarray:
    """Observations in the type that the encoder takes; values that are not traced are checked before that.

    Raises:
        ConfigError: their type or, where it is known, a value is outside the space.
    """
    is_float = jnp.issubdtype(obs.dtype, jnp.floating)
    if is_float and space.kind in ("image", "categorical"):
        meaning = "bytes, 0 to 255" if space.kind == "image" else f"whole numbers, 0 to {space.classes - 1}"
        advice = "; scale floats of 0 to 1 by 255 and cast them to uint8" if space.kind == "image" else ""
        raise ConfigError(f"{name} is {obs.dtype}, but the agent was trained on {meaning}{advice}")
    if not isinstance(obs, Tracer):
        with np.errstate(over="ignore"):  # it becomes infinite, which is refused
            values = np.asarray(obs, np.float32 if space.kind == "real" else None)
        largest = {"binary": 1, "image": 255, "categorical": space.classes - 1}.get(space.kind)
        if largest is None and not np.isfinite(values).all():
            raise ConfigError(f"{name} is not finite: it holds NaN or infinities, or more than a 32-bit float can hold")
        if largest is not None and not ((values >= 0) & (values <= largest) & (values == np.rint(values))).all():
            low, high = values.min(), values.max()
            raise ConfigError(
                f"the agent was trained on whole numbers from 0 to {largest}; {name} goes from {low} to {high}"
            )
    return obs.astype(space.dtype)


def policy_of(
    agents: AgentBatch, seed: int | None = None, *, policy: str = "task", greedy: bool | None = None
) -> Policy:
    """The policy of one seed, or of all of them, [S, ...].

    Args:
        agents: what `train` or `load` returned.
        seed: its number; None: all.
        policy: who plays: the tasker ("task"), the explorer ("explore"), or uniformly random actions ("random").
        greedy: take the likeliest action instead of a sample; None: as the run's evaluation did.

    Raises:
        ConfigError: there are no agents, no such seed, or no such policy.
    """
    if not isinstance(agents, AgentBatch):
        raise ConfigError(f"agents must be what `load` returned, or `train(...).agents`, not {type(agents).__name__}")
    if policy not in POLICIES:
        raise ConfigError(f"policy must be one of {', '.join(POLICIES)}, not {policy!r}")
    if seed is not None and seed not in agents.seeds:
        raise ConfigError(f"there is no seed {seed}; choose one of {agents.seeds}")
    behavior = select_behavior(agents.agent, policy)
    greedy = agents.config.eval_greedy if greedy is None else greedy
    policies = Policy(agents.agent.model, behavior, agents.hypers, greedy)
    return policies if seed is None else take_seeds(policies, agents.seeds.index(seed))
