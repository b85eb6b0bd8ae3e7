"""The environment interface: pure functions of one state, and rows that distinguish an end from a time limit.

Axes: A action dimensions. Everything acts on ONE environment; the caller vmaps.

An episode is `time_limit + 1` rows at most. The observation at its end is a row of its own (is_last); the
row after it is the reset (is_first, reward 0). is_last is terminated or truncated, is_terminal is terminated
only: after a time limit the last state keeps its value. An episode that runs into both
at once (DeepSea) is terminal.
Source: the row layout of DreamerV3 (Hafner et al., 2025) and of dm_env.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Shaped

State = PyTree[Array, "S"]
Obs = PyTree[Shaped[Array, "..."]]
"""An observation: an array, or a dict of arrays (DictSpace)."""

STORAGE = {"real": np.float32, "binary": np.bool_, "image": np.uint8, "categorical": np.int32}


@dataclasses.dataclass(frozen=True)
class ObsSpace:
    """What an observation looks like.

    - "real": any float. - "binary": every entry is 0 or 1. - "image": [height, width, channel] of 0..255.
    - "categorical": every entry is an integer in [0, classes).
    """

    shape: tuple[int, ...]
    kind: Literal["real", "binary", "image", "categorical"]
    classes: int = 0  # categorical only

    def __post_init__(self) -> None:
        if (self.kind == "categorical") != (self.classes > 0):
            raise ValueError(f"classes > 0 goes with kind 'categorical', and only with it: {self}")

    @property
    def dtype(self) -> np.dtype:
        """The dtype that observations have and are stored in."""
        return np.dtype(STORAGE[self.kind])


@dataclasses.dataclass(frozen=True)
class DictSpace:
    """An observation of several entries: a dict of arrays, each with a space of its own.

    Entries are ordered by name, as jax orders dicts.
    """

    entries: Mapping[str, ObsSpace]

    def __post_init__(self) -> None:
        if not self.entries:
            raise ValueError("an observation has at least one entry")
        object.__setattr__(self, "entries", dict(sorted(self.entries.items())))

    def __hash__(self) -> int:
        return hash(tuple(self.entries.items()))


Space = ObsSpace | DictSpace
"""The space of an observation: of one array, or of a dict of arrays."""


def obs_entries(space: Space) -> dict[str, ObsSpace]:
    """The space of each entry, by name; the only entry of an observation without names is ""."""
    return dict(space.entries) if isinstance(space, DictSpace) else {"": space}


def zip_entries(space: Space, *obs: Any) -> Iterator[tuple[str, ObsSpace, *tuple[Any, ...]]]:
    """(name, space, array of each `obs`...) of every entry, in order."""
    for name, entry in obs_entries(space).items():
        yield name, entry, *(tree if isinstance(space, ObsSpace) else tree[name] for tree in obs)


def map_entries(space: Space, function: Callable[..., Any], *obs: Any) -> Any:
    """`function(space, array of each obs...)` of every entry, in the structure of an observation of `space`."""
    results = {name: function(entry, *arrays) for name, entry, *arrays in zip_entries(space, *obs)}
    return results[""] if isinstance(space, ObsSpace) else results


@dataclasses.dataclass(frozen=True)
class ActionSpace:
    """The actions of an environment, and the length of the vector in which the model reads an action.

    - "discrete": an int32 scalar in [0, size).
    - "continuous": float32 [size] in [-1, 1].
    - "multi_discrete": int32 [D], several choices at once, each in [0, choices[d]). Its vector is the D one-hot vectors
      one after another. Make it by `ActionSpace.of_choices`.
    """

    kind: Literal["discrete", "continuous", "multi_discrete"]
    size: int  # of the action vector
    choices: tuple[int, ...] = ()  # options of each of D choices; multi_discrete only

    def __post_init__(self) -> None:
        wanted = self.size if self.kind == "multi_discrete" else 0
        if sum(self.choices) != wanted or min(self.choices, default=1) < 1:
            raise ValueError(f"the choices of a multi_discrete space, and only of one, sum to its size: {self}")

    @staticmethod
    def of_choices(*choices: int) -> "ActionSpace":
        """Several choices at once, each among so many options."""
        return ActionSpace("multi_discrete", sum(choices), choices)

    def split(self, vector: Float[Array, "... A"]) -> list[Float[Array, "... K"]]:
        """The part of each choice of an action vector; multi_discrete only."""
        return jnp.split(vector, np.cumsum(self.choices)[:-1], -1)

    @property
    def struct(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of an action as an environment takes it."""
        if self.kind == "continuous":
            return jax.ShapeDtypeStruct((self.size,), jnp.float32)
        return jax.ShapeDtypeStruct((len(self.choices),) if self.choices else (), jnp.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class StateSpace:
    """Which of finitely many states an environment is in, for counting visits.

    Only states in which an action is taken are counted. A state that occurs only at an episode's last row (below Deep
    Sea's last row, on a goal that ends the episode) is not counted.
    """

    size: int  # X: indices are in [0, X)
    count: int  # how many of them can be reached, at most X
    index: Callable[[State], Int[Array, ""]]  # state of the environment -> index; any index at an episode's last row
    grid: tuple[int, int] = (0, 0)  # (rows, columns) of a map, state = row * columns + column; (0, 0): there is no map
    labels: tuple[str, str] = ("row", "column")  # of the map's axes
    walls: tuple[int, ...] = ()  # states that are drawn as walls: no episode is ever in them


class Timestep(eqx.Module):
    """The environment's output at one row; the reward arrived with the observation."""

    obs: Obs  # obs_space.shape and obs_space.dtype, of every entry
    reward: Float[Array, ""]
    is_first: Bool[Array, ""]
    is_last: Bool[Array, ""]
    is_terminal: Bool[Array, ""]
    events: dict[str, Shaped[Array, ""]] = eqx.field(default_factory=dict)
    """What happened in the step to this row, by name: flags or counts. A reset has the same names, and zeros."""


class Environment(abc.ABC):
    """One environment with its settings fixed; make it once, then close over it in jitted functions.

    Hashable by identity, hence usable as a static argument, and retraced if made twice. Subclasses are final.
    `reset` and `step` return the same structure, shapes and strong dtypes: each is a scan's carry.
    """

    name: str  # the registered id
    obs_space: Space
    action_space: ActionSpace
    time_limit: int  # env steps: no episode is longer
    states: StateSpace | None = None  # None: its states cannot be counted
    goal: float | None = None  # an episode whose return is above has reached the goal; None: it has no goal
    costly_reset: bool = False  # whether a reset costs much more than a step: see `env_step`
    achievements: tuple[str, ...] = ()  # events that Crafter's score counts; without any there is no such score
    tiles: Callable[[PyTree[np.ndarray]], np.ndarray] | None = None
    """An observation, as numpy -> the board that films draw: colours [rows, columns, K, K, 3] in 0..1, K dots a side.
    It also draws the model's predictions: means, and likeliest classes. None: films draw entries by their spaces."""

    def sample_params(self, key: PRNGKeyArray) -> PyTree[Array]:
        """Parameters that are drawn once for each seed, such as an action mapping; None without any."""
        del key
        return None

    def with_params(self, params: PyTree[Array]) -> "Environment":
        """This environment with `params` of `sample_params`. They may be traced: bind them where they are used."""
        del params
        return self

    @abc.abstractmethod
    def reset(self, key: PRNGKeyArray) -> tuple[State, Timestep]:
        """Begin an episode: is_first, reward 0."""

    @abc.abstractmethod
    def step(self, key: PRNGKeyArray, state: State, action: Array) -> tuple[State, Timestep]:
        """Take one step; never resets. After is_last the result means nothing.

        `action` is an int32 scalar, int32 [D], or float32 [A] in [-1, 1], which is clipped and rescaled to the
        environment's own range. Errors: AssertionError on another shape, or floats for a discrete action.
        """


def env_step(
    env: Environment, key: PRNGKeyArray, state: State, timestep: Timestep, action: Array, resets: bool = True
) -> tuple[State, Timestep]:
    """Make the next row: the reset if `timestep` is its episode's last (`action` is ignored), else the step.

    `state` and `timestep` are the outputs of one `reset`, `step` or `env_step`. Shapes and dtypes of the results are
    the same. Step and reset are both computed, as they would be for a condition under vmap. But a costly reset is
    computed only if at least one of the environments side by side begins an episode.
    Without `resets` it is always the step: rows after an episode's last one mean nothing.
    """
    key_step, key_reset = jr.split(key)  # in gymnax's order, so that a test can compare with its own step
    stepped = env.step(key_step, state, action)
    if not resets:
        return stepped
    if env.costly_reset:
        return _reset_where(env, timestep.is_last, key_reset, stepped)
    fresh = env.reset(key_reset)
    return jax.tree.map(lambda new, old: jnp.where(timestep.is_last, new, old), fresh, stepped)


def _reset_where(env: Environment, is_last: Array, key: PRNGKeyArray, stepped: PyTree) -> PyTree:
    """`stepped`, and a reset where `is_last`; under any number of vmaps one condition decides for all elements.

    vmap of a condition on a batched value computes both branches. So the batching rule here makes the vmapped axis an
    axis of the arrays, [...], and tests whether any element of `is_last` is true.
    """

    @jax.custom_batching.custom_vmap
    def choose(is_last: Array, key: Array, stepped: PyTree) -> PyTree:
        def with_resets() -> PyTree:
            reset = env.reset
            for _ in is_last.shape:
                reset = jax.vmap(reset)
            wide = lambda x: is_last.reshape(is_last.shape + (1,) * (x.ndim - is_last.ndim))
            return jax.tree.map(lambda new, old: jnp.where(wide(old), new, old), reset(key), stepped)

        return jax.lax.cond(is_last.any(), with_resets, lambda: stepped)

    @choose.def_vmap
    def lanes(size: int, batched: PyTree, *arguments: PyTree) -> tuple[PyTree, PyTree]:
        widen = lambda x, has: x if has else jnp.broadcast_to(x, (size, *jnp.shape(x)))
        out = choose(*jax.tree.map(widen, arguments, tuple(batched)))
        return out, jax.tree.map(lambda _: True, out)

    return choose(is_last, key, stepped)
