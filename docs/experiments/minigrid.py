"""MiniGrid through navix (https://github.com/epignatelli/navix, 4.0.0), as a custom environment.

    python run.py --env docs.experiments.minigrid:navix --env.id DoorKey-6x6 --mode explore

Observations are MiniGrid's: what lies in the 7 x 7 cells in front of the agent and is not hidden behind a wall or a
closed door, with the key that is carried in the agent's cell (`MiniGridEnv.gen_obs` and `Grid.process_vis` of
https://github.com/Farama-Foundation/Minigrid, 2.3). They are made here: navix's `symbolic_first_person` shows what is
behind walls, and not what is carried. A cell is one of eight kinds, one-hot; its colour is left out, since none of
`LIMITS`' tasks depends on it. navix's rewards: 1 at the goal, which ends the episode; `penalty` 0.9 gives MiniGrid's,
1 - 0.9 t / time limit. Actions are MiniGrid's seven; `done` does nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree
from navix import make, observations
from navix.actions import MINIGRID_ACTION_SET
from navix.entities import EntityIds
from navix.environments.environment import Environment as NavixEnvironment
from navix.environments.environment import Timestep as NavixTimestep
from navix.rendering.cache import RenderingCache
from navix.states import State as NavixWorld

from envs import ActionSpace, EnvError, Environment, ObsSpace, State, Timestep
from envs.environment import StateSpace
from envs.minigrid import reachable_states

LIMITS = {
    "DoorKey-5x5": 250,
    "DoorKey-6x6": 360,
    "DoorKey-8x8": 640,
    "DoorKey-16x16": 2560,
    "FourRooms": 100,
    "KeyCorridorS3R1": 270,
    "Empty-8x8": 256,
}
"""Id -> MiniGrid's time limit, in steps. navix's own is four times the number of cells: 144 in DoorKey-6x6."""
KINDS = ("unseen", "floor", "wall", "key", "goal", "open door", "closed door", "locked door")
"""What a cell of the view may be; the place in this tuple is the entry that is 1."""
VIEW = 2 * observations.RADIUS + 1  # cells along each side of the view
HEADINGS = ((0, 1), (1, 0), (0, -1), (-1, 0))  # (down, right) of a step east, south, west, north
AHEAD, RIGHT = np.mgrid[VIEW - 1 : -1 : -1, -observations.RADIUS : observations.RADIUS + 1]  # of the agent, [V, V]


class World(NamedTuple):
    """What navix's state holds that changes. Its pictures are constant, and its key is given anew at every step."""

    grid: Int[Array, "H W"]
    entities: PyTree[Array]
    time: Int[Array, ""]  # steps since the episode began


class Minigrid(Environment):
    """One of navix's environments. Countable states: cell, direction, whether the key is carried or was used."""

    action_space = ActionSpace("discrete", len(MINIGRID_ACTION_SET))
    obs_space = ObsSpace((VIEW * VIEW * len(KINDS),), "binary")
    goal = 0.0

    def __init__(self, name: str, inner: NavixEnvironment, cells_only: bool):
        self.name, self.inner, self.time_limit = name, inner, inner.max_steps
        height, width = inner.height, inner.width
        size, count = height * width, reachable_states(name, height - 2, width - 2)
        if cells_only:
            self.states = StateSpace(size, count, lambda world: _cell(world, width), (height, width))
        else:
            index = lambda world: (_stage(world) * 4 + _player(world).direction) * size + _cell(world, width)
            self.states = StateSpace(3 * 4 * size, count, index)

    def reset(self, key: PRNGKeyArray) -> tuple[State, Timestep]:
        with jax.numpy_rank_promotion("allow"):
            return self._row(self.inner.reset(key, _no_pictures()), is_first=True)

    def step(self, key: PRNGKeyArray, state: State, action: Array) -> tuple[State, Timestep]:
        with jax.numpy_rank_promotion("allow"):
            world = NavixWorld(key=key, grid=state.grid, cache=_no_pictures(), entities=state.entities)
            zero = jnp.zeros((), jnp.int32)
            before = NavixTimestep(
                t=state.time, observation=zero, action=zero, reward=jnp.zeros(()), step_type=zero, state=world
            )
            return self._row(self.inner._step(before, action), is_first=False)  # `step` would reset by itself

    def _row(self, now: NavixTimestep, is_first: bool) -> tuple[State, Timestep]:
        world = World(now.state.grid, _strong(now.state.entities), jnp.asarray(now.t, jnp.int32))
        is_last = jnp.array(False) if is_first else now.step_type > 0
        is_terminal = jnp.array(False) if is_first else now.step_type == 2
        reward = jnp.asarray(now.reward, jnp.float32)
        return world, Timestep(first_person(now.state), reward, jnp.array(is_first), is_last, is_terminal)


def navix(id: str = "DoorKey-6x6", penalty: float = 0.0, time_limit: int = 0) -> Minigrid:
    """The environment that navix registers as "Navix-{id}-v0".

    Args:
        id: one of `LIMITS`.
        penalty: what the goal pays less at the time limit than at once: 0 is navix's, 0.9 MiniGrid's.
        time_limit: in steps; 0 takes MiniGrid's.

    Raises:
        EnvError: `id` is none of `LIMITS`.
    """
    if id not in LIMITS:
        raise EnvError(f"no MiniGrid task is named {id!r}; it is one of {', '.join(LIMITS)}")
    inner = make(
        f"Navix-{id}-v0",
        max_steps=time_limit or LIMITS[id],
        penalty_coeff=penalty,
        observation_fn=observations.none,
        disable_autoreset=True,
    )
    return Minigrid(id, inner, cells_only=id.startswith(("FourRooms", "Empty")))


def first_person(world: NavixWorld) -> Bool[Array, " E"]:
    """MiniGrid's view of a navix state, one-hot over `KINDS`: E = 7 * 7 * 8, rows from far to near."""
    player, (height, width) = world.get_player(), world.grid.shape
    whole = observations.symbolic(world).astype(jnp.int32)  # [H, W, (tag, colour, state)]
    tag, door = whole[..., 0], whole[..., 2]
    kind = jnp.where(tag == EntityIds.DOOR, KINDS.index("open door") + door, KINDS.index("floor"))
    for name, value in (("wall", EntityIds.WALL), ("key", EntityIds.KEY), ("goal", EntityIds.GOAL)):
        kind = jnp.where(tag == value, KINDS.index(name), kind)
    ahead, right = jnp.asarray(HEADINGS)[player.direction], jnp.asarray(HEADINGS)[(player.direction + 1) % 4]
    row, column = player.position[:, None, None] + AHEAD * ahead[:, None, None] + RIGHT * right[:, None, None]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    view = jnp.where(inside, kind[row % height, column % width], KINDS.index("wall"))
    carried = jnp.where(player.pocket >= 0, KINDS.index("key"), KINDS.index("floor"))
    view = jnp.where((AHEAD == 0) & (RIGHT == 0), carried, view)
    opaque = (view == KINDS.index("wall")) | (view >= KINDS.index("closed door"))
    view = jnp.where(visible(~opaque), view, KINDS.index("unseen"))
    return (view[..., None] == np.arange(len(KINDS))).reshape(-1)


def visible(transparent: Bool[Array, "V V"]) -> Bool[Array, "V V"]:
    """MiniGrid's `Grid.process_vis`: which cells are seen from the middle of the last row.

    Sight spreads sideways within a row through transparent cells, and from a seen transparent cell to the three cells
    next to it in the row ahead. A row is a number with a bit for each cell: so it is 210 scalar operations.
    """
    size = transparent.shape[0]
    bits = 1 << np.arange(size)
    clear = jnp.sum(transparent * bits, axis=1)
    spread = lambda row: (row | row << 1 | row >> 1) & (2**size - 1)
    seen = jnp.asarray(1 << size // 2)
    rows = []
    for row in range(size - 1, -1, -1):
        for _ in range(size - 1):
            seen = spread(seen & clear[row]) | seen
        rows.append(seen)
        seen = spread(seen & clear[row])
    return (jnp.stack(rows[::-1])[:, None] & bits) > 0


def _no_pictures() -> RenderingCache:
    return RenderingCache(patches=jnp.zeros((0,), jnp.uint8))


def _strong(entities: PyTree) -> PyTree[Array]:
    """Every leaf as an array of its dtype: navix's resets leave some types weak, its steps do not."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.asarray(x).dtype), entities)


def _player(world: World) -> PyTree[Array]:
    return jax.tree.map(lambda x: x[0], world.entities["player"])


def _cell(world: World, width: int) -> Int[Array, ""]:
    row, column = _player(world).position
    return jnp.asarray(row * width + column, jnp.int32)


def _stage(world: World) -> Int[Array, ""]:
    """0: the key lies somewhere, 1: it is carried, 2: it has opened the door, which takes it."""
    carried = _player(world).pocket >= 0
    gone = (world.entities["key"].position[..., 1] < 0).all()  # a key that lies nowhere is carried or was used
    return carried + 2 * (gone & ~carried)
