"""Tasks of the novelty signal: where rows come from, which pairs are held out, and which rows are looked at.

Axes: T time, N environments, X contexts, U actions, R rows looked at.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Int

from envs.environment import Environment, env_step
from stages.measure.coverage import action_count
from stages.replay import Row
from stages.world_model import WorldModel

ENVS = 16
SCRIPTED, SLIP = 0.3, 0.15  # share of episodes that follow the script, and of their actions that are random
LOOKED_AT = 24  # rows of each context


def cut(held: np.ndarray, is_first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is kept of streams of rows when every episode ends at its first held-out pair.

    Args:
        held: [T, N], rows whose (state, action) is held out.
        is_first: [T, N], rows that begin an episode.

    Returns:
        rows that are kept, the one whose action is held out included; rows whose action is kept, too. [T, N]
    """
    kept, tried = np.zeros_like(held), np.zeros_like(held)
    over = np.zeros(held.shape[1], bool)
    for t in range(len(held)):
        over &= ~is_first[t]
        kept[t] = ~over
        over |= held[t]
        tried[t] = ~over
    return kept, tried


# ---- tasks ---------------------------------------------------------------------------------------------------------


class Task(NamedTuple):
    """An environment, what its pairs are, the way to the rare ones, and which of them are held out."""

    words: str  # of run.py
    contexts: Callable[[Environment], int]  # X
    context: Callable[[Environment, Any], Int[Array, ""]]  # of a state of the environment
    script: Callable[[Environment, Any, np.random.Generator], np.ndarray]  # states [N, ...] -> actions [N]
    held: Callable[[Environment, Any, int, int], np.ndarray]  # (environment, a first state, X, U) -> bool [X, U]
    time: int = 256  # T


def _states(env: Environment) -> int:
    assert env.states is not None
    return env.states.size


def _state(env: Environment, state: Any) -> Int[Array, ""]:
    assert env.states is not None
    return env.states.index(state)


def _to_the_right(env: Environment, states: Any, rng: np.random.Generator) -> np.ndarray:
    del env, rng
    row, column = np.asarray(states.row), np.asarray(states.column)
    right = np.asarray(states.action_mapping)
    return right[np.arange(len(row)), np.minimum(row, right.shape[1] - 1), np.minimum(column, right.shape[1] - 1)]


def _right_from(share: float) -> Callable[..., np.ndarray]:
    """Deep Sea: going right from the columns beyond a share of the width."""

    def held(env: Environment, state: Any, contexts: int, actions: int) -> np.ndarray:
        del env
        mapping = np.asarray(state.action_mapping)
        size = len(mapping)
        row, column = np.divmod(np.arange(contexts), size)
        table = np.zeros((contexts, actions), bool)
        table[np.arange(contexts), mapping[row, column]] = (column >= share * size) & (column <= row)
        return table

    return held


def _paths(free: np.ndarray, goal: tuple[int, int]) -> np.ndarray:
    """Steps from every cell to the goal, infinite where there is no way."""
    distance, frontier = np.full(free.shape, np.inf), [goal]
    distance[goal] = 0
    while frontier:
        row, column = frontier.pop(0)
        for cell in ((row - 1, column), (row, column + 1), (row + 1, column), (row, column - 1)):
            if free[cell] and distance[cell] == np.inf:
                distance[cell] = distance[row, column] + 1
                frontier.append(cell)
    return distance


def _to_the_goal(env: Any, states: Any, rng: np.random.Generator) -> np.ndarray:
    """FourRooms: a step nearer to the goal."""
    del rng
    inner = env.inner
    distance = _paths(np.asarray(inner.env_map, bool), tuple(np.asarray(inner.goal_fixed).tolist()))
    after = np.asarray(states.pos)[:, None] + np.asarray(inner.directions)
    return distance[after[..., 0], after[..., 1]].argmin(1)


def _goal_room(env: Any, state: Any, contexts: int, actions: int) -> np.ndarray:
    """FourRooms: every action in the room of the goal."""
    del state
    row, column = np.divmod(np.arange(contexts), np.asarray(env.inner.env_map).shape[1])
    return np.repeat(((row >= 8) & (column >= 7))[:, None], actions, 1)


def _with_velocity(env: Environment, states: Any, rng: np.random.Generator) -> np.ndarray:
    del env, rng
    return np.where(np.asarray(states.velocity) >= 0, 2, 0)


def _near_the_flag(env: Environment, state: Any, contexts: int, actions: int) -> np.ndarray:
    """MountainCar: every action right of a position of 0.1 (the 18 bins go from -1.2 to 0.6)."""
    del env, state
    position = -1.2 + (np.arange(contexts) // 14) * 0.1
    return np.repeat((position > 0.05)[:, None], actions, 1)


# DoorKey, of docs/experiments/minigrid.py: what the agent faces (a wall, floor, the key, the door locked, open, closed,
# the goal), twice: without and with the key.
WALL, FLOOR, KEY, LOCKED, OPEN, CLOSED, GOAL = range(7)
FORWARD, PICKUP, TOGGLE = 2, 3, 5
AHEAD = np.array([[0, 1], [1, 0], [0, -1], [-1, 0]])


def _facing(env: Environment, world: Any) -> Int[Array, ""]:
    del env
    player, door = (jax.tree.map(lambda x: x[0], world.entities[name]) for name in ("player", "door"))
    ahead = player.position + jnp.asarray(AHEAD)[player.direction]
    same = lambda name: (world.entities[name].position == ahead).all(-1).any()
    wall = same("wall") | (world.grid[ahead[0], ahead[1]] != 0)
    kind = jnp.where(wall, WALL, FLOOR)
    kind = jnp.where(same("key"), KEY, kind)
    kind = jnp.where(same("goal"), GOAL, kind)
    state = jnp.where(door.open, OPEN, jnp.where(door.requires >= 0, LOCKED, CLOSED))
    kind = jnp.where(same("door"), state, kind)
    return (kind + 7 * (player.pocket >= 0)).astype(jnp.int32)


def _key_door_goal(env: Environment, worlds: Any, rng: np.random.Generator) -> np.ndarray:
    """DoorKey: fetch the key, open the door, go to the goal."""
    del env, rng
    return np.array([_one_way(jax.tree.map(lambda x, n=n: x[n], worlds)) for n in range(len(worlds.time))])


def _one_way(world: Any) -> int:
    """The next action of the way in one world."""
    one = lambda name: jax.tree.map(lambda x: x[0], world.entities[name])
    player, door, key, goal = one("player"), one("door"), one("key"), one("goal")
    free = world.grid == 0
    for row, column in world.entities["wall"].position:
        free[row, column] = False
    free[tuple(door.position)] = bool(door.open)
    carries = player.pocket >= 0
    if door.open:
        aim, final = tuple(goal.position), FORWARD
    elif carries or door.requires < 0:
        aim, final = tuple(door.position), TOGGLE
    else:
        aim, final = tuple(key.position), PICKUP
    if min(key.position) >= 0:
        free[tuple(key.position)] = False
    free[aim] = True
    here, at = tuple(player.position), int(player.direction)
    distance = _paths(free, aim)
    neighbours = [tuple(here + step) for step in AHEAD]
    wanted = int(np.argmin([distance[cell] if free[cell] else np.inf for cell in neighbours]))
    if at == wanted:
        return final if neighbours[at] == aim else FORWARD
    return 1 if (wanted - at) % 4 <= 2 else 0


def _held_pair(facing: tuple[int, ...], action: int) -> Callable[..., np.ndarray]:
    """DoorKey: one action in these contexts."""

    def held(env: Environment, state: Any, contexts: int, actions: int) -> np.ndarray:
        del env, state
        table = np.zeros((contexts, actions), bool)
        table[list(facing), action] = True
        return table

    return held


DEEP_SEA = "--env DeepSea-bsuite --env.size 20 --env.action_map_per_seed true"
TASKS: dict[str, Task] = {
    "deepsea20": Task(DEEP_SEA, _states, _state, _to_the_right, _right_from(0.5)),
    "fourrooms": Task("--env FourRooms-misc --env.max_steps_in_episode 64", _states, _state, _to_the_goal, _goal_room),
    "mountaincar": Task(
        "--env MountainCar-v0 --env.rescale_observations true", _states, _state, _with_velocity, _near_the_flag
    ),
    **{
        f"doorkey6-{event}": Task(
            "--env docs.experiments.minigrid:navix --env.id DoorKey-6x6 --env.time_limit 100",
            lambda env: 14,
            _facing,
            _key_door_goal,
            _held_pair(*pair),
        )
        for event, pair in {
            "pickup": ((KEY,), PICKUP),
            "toggle": ((7 + LOCKED,), TOGGLE),
            "through": ((OPEN, 7 + OPEN), FORWARD),
            "goal": ((GOAL, 7 + GOAL), FORWARD),
        }.items()
    },
}

# ---- rows ----------------------------------------------------------------------------------------------------------


class Data(NamedTuple):
    """Rows of one seed."""

    streams: Row  # [T, N]: all rows, latents empty
    context: np.ndarray  # [T, N]
    action: np.ndarray  # [T, N]: which of the U actions
    kept: np.ndarray  # [T, N]
    tried: np.ndarray  # [T, N]: the action is kept, too, and is one
    held: np.ndarray  # [X, U]
    counts: np.ndarray  # [X, U]: how often the kept rows try each pair


def collect(task: Task, env: Environment, model: WorldModel, seed: int, steps: dict[str, Any]) -> Data:
    """Rows of `ENVS` environments, with what is held out of them. `steps` keeps compiled functions."""
    rng = np.random.default_rng(seed)
    params = env.sample_params(jr.key(seed))
    if "step" not in steps:

        def reset(params, key):
            return jax.vmap(env.with_params(params).reset)(jr.split(key, ENVS))

        def step(params, key, state, timestep, action):
            one = lambda *args: env_step(env.with_params(params), *args)
            return jax.vmap(one)(jr.split(key, ENVS), state, timestep, action)

        steps["reset"], steps["step"] = jax.jit(reset), jax.jit(step)
        steps["context"] = jax.jit(jax.vmap(lambda state: task.context(env, state)))
    actions, discrete = action_count(env.action_space), env.action_space.kind == "discrete"
    assert discrete, "scripts choose among actions"
    state, timestep = steps["reset"](params, jr.key(seed + 1000))
    first = jax.tree.map(lambda x: np.asarray(x[0]), state)
    rows, contexts, scripted = [], [], rng.random(ENVS) < SCRIPTED
    for t in range(task.time):
        scripted = np.where(np.asarray(timestep.is_first), rng.random(ENVS) < SCRIPTED, scripted)
        action = rng.integers(0, actions, ENVS)
        follow = scripted & (rng.random(ENVS) >= SLIP)
        if follow.any():
            action = np.where(follow, task.script(env, jax.tree.map(np.asarray, state), rng), action)
        action = action.astype(np.int32)
        contexts.append(steps["context"](state))
        empty = (np.zeros((ENVS, model.rssm.deter), np.float32), np.zeros((ENVS, model.rssm.stoch), np.uint8))
        flags = (timestep.is_first, timestep.is_last, timestep.is_terminal)
        rows.append(Row(timestep.obs, action, timestep.reward, *flags, *empty))
        state, timestep = steps["step"](
            params, jr.fold_in(jr.key(seed + 2000), t), state, timestep, jnp.asarray(action)
        )
    streams = jax.tree.map(lambda *x: np.stack([np.asarray(y) for y in x]), *rows)
    context, action = np.stack(contexts), np.asarray(streams.action)
    size = task.contexts(env)
    held = task.held(env, first, size, actions)
    acts = ~streams.is_last
    kept, tried = cut(held[context, action] & acts, streams.is_first)
    tried &= acts
    counts = np.zeros((size, actions), int)
    np.add.at(counts, (context[tried], action[tried]), 1)
    return Data(streams, context, action, kept, tried, held, counts)


def ring_of(data: Data, streams: Any) -> tuple[Any, int]:
    """Arrays [T, N, ...] -> (their kept rows, one environment after the other, [C, 1, ...]; how many there are).

    C is T N for all seeds: zeros fill it.
    """
    time, width = data.kept.shape
    kept = data.kept.T.reshape(-1)

    def pack(x: np.ndarray) -> np.ndarray:
        flat = np.moveaxis(x, 1, 0).reshape(time * width, *x.shape[2:])[kept]
        padding = np.zeros((time * width - len(flat), *flat.shape[1:]), flat.dtype)
        return np.concatenate([flat, padding])[:, None]

    return jax.tree.map(pack, streams), int(kept.sum())


class Looked(NamedTuple):
    """Rows at which novelty is read: up to LOOKED_AT of each context, padded."""

    where: np.ndarray  # [R, 2]: t, n
    present: np.ndarray  # [R]
    beyond: np.ndarray  # [R]: behind a cut


def looked_at(data: Data, rng: np.random.Generator, contexts: int) -> Looked:
    """Rows of kept states, and as many behind the cuts."""
    where, beyond = [], []
    acts = ~np.asarray(data.streams.is_last)
    for behind, mask in ((False, data.kept & acts), (True, ~data.kept & acts)):
        found = np.argwhere(mask)
        found = found[rng.permutation(len(found))]
        of = data.context[found[:, 0], found[:, 1]]
        order = np.argsort(of, kind="stable")
        found, of = found[order], of[order]
        first = np.searchsorted(of, of)
        take = np.arange(len(of)) - first < LOOKED_AT
        where.append(found[take])
        beyond.append(np.full(take.sum(), behind))
    where, beyond = np.concatenate(where), np.concatenate(beyond)
    size = min(2 * contexts * LOOKED_AT, data.kept.size)
    size = min(size, 3072)
    pick = rng.permutation(len(where))[:size]
    where, beyond = where[pick], beyond[pick]
    pad = size - len(where)
    present = np.arange(size) < len(where)
    return Looked(np.pad(where, ((0, pad), (0, 0))), present, np.pad(beyond, (0, pad)))
