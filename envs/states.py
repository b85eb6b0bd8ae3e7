"""Countable states of gymnax's environments, and their goals.

Countable states are cells where the environment has cells, and bins where its state is continuous. They are read from
the environment's own state, since the observation may not determine them (MetaMaze shows only the agent's
neighbourhood). The number of reachable cells is found by a flood fill from the start. The number of reachable bins was
found by an exhaustive search with the default physics, which tests/test_states.py repeats. With other physics, all bins
count as reachable.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Int

from envs.environment import State, StateSpace

GymnaxEnv = GymnaxParams = GymnaxSpace = Any
"""gymnax's environment, its parameters and spaces, of any of its classes."""

STEPS = ((-1, 0), (1, 0), (0, -1), (0, 1))


def state_space(name: str, inner: GymnaxEnv, params: GymnaxParams) -> StateSpace | None:
    """The countable states of gymnax's environment `inner` with `params`, registered as `name`; None without any."""
    make = SPACES.get(name)
    return None if make is None else make(inner, params)


def goal_of(name: str, params: GymnaxParams) -> float | None:
    """The return above which an episode has reached the environment's goal; None where there is none to reach."""
    limit = float(params.max_steps_in_episode)
    match name:
        case "DeepSea-bsuite":  # 1 in the far corner, less the cost of moving; the stochastic version's noise hides it
            return 0.5 if params.deterministic else None
        case "MountainCar-v0" | "Acrobot-v1":  # -1 a step until it is reached
            return -limit
        case "MountainCarContinuous-v0":  # 100 on the hill, less 0.1 a step at most
            return 0.0 if limit < 1000 else None
        case "FourRooms-misc" | "FrozenLake-misc" | "MetaMaze-misc":  # paid at the goal, and nowhere else
            return 0.0
    return None


# ---- cells ---------------------------------------------------------------------------------------------------------


def deep_sea(inner: GymnaxEnv, params: GymnaxParams) -> StateSpace:
    """Cells (row, column) of the triangle that an episode can pass: column <= row. Below the last row is no state."""
    size = inner.size
    rows = min(size, int(params.max_steps_in_episode))

    def index(state: State) -> Int[Array, ""]:
        return _cell(jnp.minimum(state.row, size - 1), state.column, size)

    cells = np.arange(size * size)
    walls = cells[(cells % size > cells // size) | (cells // size >= rows)]
    return StateSpace(size * size, rows * (rows + 1) // 2, index, (size, size), walls=_ints(walls))


def four_rooms(inner: GymnaxEnv, params: GymnaxParams) -> StateSpace:
    """Cells that are no wall. The goal's cell ends the episode and is left out, unless the goal moves."""
    free = np.asarray(inner.env_map, bool)
    free = flood(free, _ints(inner.pos_fixed)) if not params.resample_init_pos else free
    goal = None if params.resample_goal_pos else _ints(inner.goal_fixed)
    return _maze(free, goal, lambda state: state.pos)


def meta_maze(inner: GymnaxEnv, params: GymnaxParams) -> StateSpace:
    """Cells that are no wall. On reaching the goal the agent is moved elsewhere; each episode has its own goal."""
    del params
    return _maze(flood(np.asarray(inner.env_map, bool), _ints(inner.center_position)), None, lambda state: state.pos)


def frozen_lake(inner: GymnaxEnv, params: GymnaxParams) -> StateSpace:
    """Cells of ice: holes and the goal end the episode."""
    del params
    tiles = np.asarray(inner.desc)  # 0 start, 1 frozen, 2 hole, 3 goal
    rows, columns = tiles.shape
    start = divmod(int(np.argmax(tiles == 0)), columns)
    reached = flood(tiles <= 1, start)
    return StateSpace(
        tiles.size, int(reached.sum()), lambda state: jnp.asarray(state.position, jnp.int32), (rows, columns)
    )


def flood(free: np.ndarray, start: tuple[int, ...]) -> np.ndarray:
    """Cells that can be reached from `start` by steps up, down, left and right over free ones, bool like `free`."""
    reached, frontier = np.zeros_like(free), [tuple(start)]
    while frontier:
        row, column = frontier.pop()
        inside = 0 <= row < free.shape[0] and 0 <= column < free.shape[1]
        if inside and free[row, column] and not reached[row, column]:
            reached[row, column] = True
            frontier += [(row + down, column + right) for down, right in STEPS]
    return reached


def _maze(free: np.ndarray, goal: tuple[int, ...] | None, position: Callable[[State], Array]) -> StateSpace:
    rows, columns = free.shape

    def index(state: State) -> Int[Array, ""]:
        return _cell(position(state)[0], position(state)[1], columns)

    walls = _ints(np.flatnonzero(~free))
    return StateSpace(free.size, int(free.sum()) - (goal is not None), index, (rows, columns), walls=walls)


def _cell(row: Array, column: Array, columns: int) -> Int[Array, ""]:
    return jnp.asarray(row * columns + column, jnp.int32)


def _ints(values: ArrayLike) -> tuple[int, ...]:
    return tuple(int(value) for value in np.asarray(values))


# ---- bins ----------------------------------------------------------------------------------------------------------


def mountain_car(inner: GymnaxEnv, params: GymnaxParams) -> StateSpace:
    """18 bins of position by 14 of velocity."""
    count = {"MountainCar-v0": 200, "MountainCarContinuous-v0": 211}[inner.name]
    position = Axis("position", lambda state: state.position, params.min_position, params.max_position, 18)
    velocity = Axis("velocity", lambda state: state.velocity, -params.max_speed, params.max_speed, 14)
    return _binned(inner, params, count, position, velocity)


def pendulum(inner: GymnaxEnv, params: GymnaxParams) -> StateSpace:
    """24 bins of the angle, 0 is upright, by 16 of the speed."""
    angle = Axis("angle", lambda state: (state.theta + math.pi) % (2 * math.pi) - math.pi, -math.pi, math.pi, 24)
    speed = Axis("speed", lambda state: state.theta_dot, -params.max_speed, params.max_speed, 16)
    return _binned(inner, params, 370, angle, speed)


def acrobot(inner: GymnaxEnv, params: GymnaxParams) -> StateSpace:
    """12 bins of each joint's angle; velocities are left out."""
    first = Axis("first joint", lambda state: state.joint_angle1, -math.pi, math.pi, 12)
    second = Axis("second joint", lambda state: state.joint_angle2, -math.pi, math.pi, 12)
    return _binned(inner, params, 130, first, second)


class Axis(NamedTuple):
    """A number of the state in equal bins of [low, high]; beyond them it is in the nearest one."""

    label: str
    value: Callable[[State], Array]
    low: float
    high: float
    bins: int

    def bin(self, state: State) -> Int[Array, ""]:
        """The bin of a state, in [0, bins)."""
        scaled = jnp.floor((self.value(state) - self.low) / (self.high - self.low) * self.bins)
        return jnp.clip(scaled, 0, self.bins - 1).astype(jnp.int32)


def _binned(inner: GymnaxEnv, params: GymnaxParams, count: int, rows: Axis, columns: Axis) -> StateSpace:
    """The bins of two numbers. `count` is how many the default physics reaches; with other physics all bins count."""
    size, usual = rows.bins * columns.bins, repr(params) == repr(inner.default_params)

    def index(state: State) -> Int[Array, ""]:
        return _cell(rows.bin(state), columns.bin(state), columns.bins)

    return StateSpace(size, count if usual else size, index, (rows.bins, columns.bins), (rows.label, columns.label))


DEGREE = math.pi / 180
BOXES = (
    ("x", (-0.8, 0.8)),
    ("x_dot", (-0.5, 0.5)),
    ("theta", (-6 * DEGREE, -DEGREE, 0.0, DEGREE, 6 * DEGREE)),
    ("theta_dot", (-50 * DEGREE, 50 * DEGREE)),
)


def cart_pole(inner: GymnaxEnv, params: GymnaxParams) -> StateSpace:
    """The 162 boxes of Michie and Chambers (1968), as in Barto, Sutton and Anderson (1983): 3 x 3 x 6 x 3 bins of
    position, its velocity, angle and its velocity. All count as reachable; the search found 161."""
    del inner, params

    def index(state: State) -> Int[Array, ""]:
        box = jnp.zeros((), jnp.int32)
        for name, edges in BOXES:
            box = box * (len(edges) + 1) + jnp.searchsorted(jnp.array(edges), getattr(state, name), side="right")
        return jnp.asarray(box, jnp.int32)

    return StateSpace(162, 162, index)


SPACES: dict[str, Callable[[GymnaxEnv, GymnaxParams], StateSpace]] = {
    "DeepSea-bsuite": deep_sea,
    "FourRooms-misc": four_rooms,
    "MetaMaze-misc": meta_maze,
    "FrozenLake-misc": frozen_lake,
    "MountainCar-v0": mountain_car,
    "MountainCarContinuous-v0": mountain_car,
    "Pendulum-v1": pendulum,
    "Acrobot-v1": acrobot,
    "CartPole-v1": cart_pole,
}
"""Environments whose states can be counted."""
