"""The novelty signal alone: which form of it tells (state, action) pairs never tried from pairs tried often?

    python docs/experiments/novelty_signal.py --tasks deepsea20 doorkey6-toggle --forms preset published counts
    python docs/experiments/novelty_signal.py --table

Uniformly random actions, and in a share of the episodes a scripted policy that takes the rare way, collect rows. Some
pairs are held out: an episode is cut where it first takes one, so the pair and all that lies beyond it are never
trained on. The world model is trained on the other rows without reward, and every form of novelty beside it. Then each
form says how new every action is in rows of each context (a cell of a map; what the agent faces and carries).

- AUC: the probability that a held-out pair, in a row whose state was seen, gets more than a pair tried often.
- ratio: the mean at held-out pairs over the mean at pairs tried often.
- correlation: Spearman's, of a pair's mean novelty and how often it was tried, over all pairs of the contexts seen.
- within: the share of the actions tried in the same context that get less than the held-out one, in the same row.
- beyond: AUC of the pairs taken after the cut, whose states were never seen either.

Results are appended to novelty_signal.json beside this file; --table prints them all. Axes: T time, N environments, C
rows kept, X contexts, U actions, R rows looked at, P numbers of an observation, Q of its projection, M members.
"""

import argparse
import dataclasses
import functools
import json
import math
import os
import pathlib
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
import envs
from envs.environment import Environment, env_step
from stages import optimizer
from stages.cli.parse import parse
from stages.config import Config, Hypers
from stages.decode import decode_mean
from stages.encode import features, preprocess_obs
from stages.ensemble import Ensemble, disagreement, ensemble_loss, init_opt_state, update_ensemble
from stages.fast.stacked import Stacked
from stages.measure.coverage import action_count, action_vectors
from stages.networks.layers import Head
from stages.networks.symlog import symlog
from stages.obs_numbers import RunningNormalizer
from stages.replay import Row, StepCounters, Windows, choose, read, write_back
from stages.rssm import Latent, imagine_step, initial
from stages.sweep.start import start_jax
from stages.world_model import Observed, WorldModel, action_vector, model_loss, observe

RESULTS = pathlib.Path(__file__).with_suffix(".json")
ENVS = 16
SCRIPTED, SLIP = 0.3, 0.15  # share of episodes that follow the script, and of their actions that are random
LOOKED_AT = 24  # rows of each context
OFTEN = 0.75  # pairs tried at least as often as this quantile of all pairs that were tried at all

# ---- pure functions of the results ---------------------------------------------------------------------------------


def ranks(x: np.ndarray) -> np.ndarray:
    """Ranks from 1; ties share their mean rank."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Area under the ROC curve: P(positive > negative) + P(equal) / 2; NaN where either is empty."""
    if not len(positive) or not len(negative):
        return math.nan
    above = ranks(np.concatenate([positive, negative]))[: len(positive)].sum() - len(positive) * (len(positive) + 1) / 2
    return float(above / (len(positive) * len(negative)))


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation; NaN where either is constant."""
    x, y = ranks(x), ranks(y)
    if len(x) < 2 or x.std() == 0 or y.std() == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


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


# ---- forms of novelty ----------------------------------------------------------------------------------------------


class Form(Protocol):
    """A network or a statistic that says how new a pair is."""

    updates: int  # for each of the model's; 0: it learns in the model's batch

    def init(self, env: Environment, base: Config, *, key: PRNGKeyArray) -> Any: ...

    def learn(self, state: Any, model: WorldModel, pairs: Row) -> Any: ...

    def learn_with_model(self, state: Any, model: WorldModel, observed: Observed, rows: Row, action: Array) -> Any: ...

    def novelty(
        self, state: Any, model: WorldModel, latent: Latent, seen: Float[Array, "R P"], action: Float[Array, "R A"]
    ) -> Float[Array, " R"]: ...


@dataclasses.dataclass(frozen=True)
class Preset:
    """A form that the program has, by words of run.py beyond those of the run."""

    words: str

    @property
    def parsed(self) -> tuple[Config, Hypers]:
        arguments = parse(["--preset", "tiny", "--mode", "explore", *self.words.split()])
        return arguments.config, arguments.hypers

    @property
    def updates(self) -> int:
        return self.parsed[0].ensemble.updates

    def init(self, env: Environment, base: Config, *, key: PRNGKeyArray) -> Any:
        config = dataclasses.replace(base, ensemble=self.parsed[0].ensemble)
        ensemble = Ensemble(config, env.obs_space, env.action_space.size, key=key)
        hypers = self.parsed[1]
        moments = init_opt_state(ensemble, hypers) if self.updates else optimizer.optimizer(hypers).init(ensemble)
        return ensemble, moments

    def learn(self, state: Any, model: WorldModel, pairs: Row) -> Any:
        return update_ensemble(*state, model, pairs, self.parsed[1])[:2]

    def learn_with_model(self, state: Any, model: WorldModel, observed: Observed, rows: Row, action: Array) -> Any:
        ensemble, moments = state
        hypers = self.parsed[1]
        loss = lambda e: ensemble_loss(e, model, observed, rows, action, hypers).mean()
        updates, moments = optimizer.optimizer(hypers).update(jax.grad(loss)(ensemble), moments, ensemble)
        return eqx.apply_updates(ensemble, updates), moments

    def novelty(self, state, model, latent, seen, action):
        del seen
        return disagreement(state[0], model, latent.feat, action, self.parsed[1])


class VariantState(eqx.Module):
    """What a variant learns and keeps."""

    members: Stacked
    start: Stacked  # the members before they learned
    prior: Stacked  # frozen; of no hidden layers where prior_layers is 0
    projection: Float[Array, "P Q"]
    waves: Float[Array, "P W"]
    standard: RunningNormalizer
    moments: Any


VARIANT_OPTIMIZER = optax.chain(optax.scale_by_adam(b1=0.9, b2=0.99), optax.scale_by_learning_rate(2e-3))


@dataclasses.dataclass(frozen=True)
class Variant:
    """A throw-away ensemble with what the program has not; the defaults are the preset's."""

    input: str = "decoded"  # decoded, projected, fourier, feat, deter; observed: what no imagined state has
    entries: str = "level"  # level: the whole at a mean square of 1; standard: each entry by what was seen
    floor: float = 1e-2  # of an entry's variance, where it is standardised
    target: str = "next"  # next; change: next minus current; zero: nothing, as in RND
    coupling: str = "concat"  # concat; heads: outputs of each action; outer: input times action
    ratio: bool = False  # divided by what the untrained members show there
    action_scale: float = 10.0
    units: int = 64
    layers: int = 2
    prior_layers: int = 1
    prior_scale: float = 1.0
    projection: int = 32
    frequencies: int = 128  # of input fourier: sines and cosines of so many random projections
    bandwidth: float = 4.5  # times their root mean square of 1; exp(-10 d^2) is their kernel, d^2 a mean over entries
    members: int = 5
    updates: int = 2

    def init(self, env: Environment, base: Config, *, key: PRNGKeyArray) -> VariantState:
        key_members, key_prior, key_projection = jr.split(key, 3)
        pixels, actions = math.prod(features(env.obs_space)), env.action_space.size
        sizes = {
            "decoded": pixels,
            "observed": pixels,
            "projected": self.projection,
            "fourier": 2 * self.frequencies,
            "feat": base.model.feat,
            "deter": base.model.deter,
        }
        size = sizes[self.input]
        inputs = {"concat": size + actions, "heads": size, "outer": (size + 1) * actions}[self.coupling]
        outputs = self.projection * (actions if self.coupling == "heads" else 1)
        make = lambda layers, key: Stacked(
            lambda k: Head(inputs, self.units if layers else inputs, layers, outputs, key=k),
            jr.split(key, self.members),
        )
        members = make(self.layers, key_members)
        projection = jr.normal(key_projection, (pixels, self.projection))
        waves = jr.normal(jr.fold_in(key_projection, 0), (pixels, self.frequencies))
        moments = VARIANT_OPTIMIZER.init(members)
        return VariantState(
            members,
            members,
            make(self.prior_layers, key_prior),
            projection,
            waves,
            RunningNormalizer.zero(pixels),
            moments,
        )

    def scaled(self, state: VariantState, numbers: Float[Array, "... P"]) -> Float[Array, "... P"]:
        """An observation's numbers, levelled or standardised."""
        if self.entries == "level":
            return numbers * math.sqrt(numbers.shape[-1]) / jnp.sqrt(jnp.square(numbers).sum(-1, keepdims=True) + 0.01)
        weight = jnp.maximum(state.standard.weight, 1e-8)
        mean = state.standard.mean / weight
        variance = jnp.maximum(state.standard.square / weight - jnp.square(mean), 0)
        return (numbers - mean) / jnp.sqrt(variance + self.floor)

    def project(self, state: VariantState, numbers: Float[Array, "... P"]) -> Float[Array, "... Q"]:
        """Of a mean square of 1 where the entries that vary have one."""
        scale = math.sqrt(numbers.shape[-1])
        if self.entries == "standard":
            weight = jnp.maximum(state.standard.weight, 1e-8)
            variance = jnp.maximum(state.standard.square / weight - jnp.square(state.standard.mean / weight), 0)
            scale = jnp.sqrt(jnp.maximum((variance / (variance + self.floor)).sum(), 1.0))
        return numbers @ state.projection / scale

    def inputs(
        self, state: VariantState, model: WorldModel, latent: Latent, seen: Float[Array, "n P"], action: Array
    ) -> Array:
        """What members read."""
        if self.input in ("feat", "deter"):
            read = latent.feat if self.input == "feat" else latent.deter
        else:
            numbers = seen if self.input == "observed" else decode_mean(model.decoder, latent)
            read = self.scaled(state, numbers)
            if self.input == "projected":
                read = self.project(state, read)
            elif self.input == "fourier":
                angle = self.bandwidth * (read @ state.waves) / math.sqrt(read.shape[-1])
                read = math.sqrt(2) * jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)
        match self.coupling:
            case "concat":
                return jnp.concatenate([read, self.action_scale * action], -1)
            case "heads":
                return read
            case _:
                read = jnp.concatenate([read, jnp.ones_like(read[..., :1])], -1)
                return (read[..., None] * action[..., None, :]).reshape(*read.shape[:-1], -1)

    def predict(self, members: Stacked, state: VariantState, inputs: Array, action: Array) -> Float[Array, "M n Q"]:
        """Members with their priors."""
        out = members.map(lambda m: m(inputs)) + self.prior_scale * state.prior.map(lambda m: m(inputs))
        if self.coupling == "heads":
            out = jnp.einsum("mnqa,na->mnq", out.reshape(*out.shape[:2], self.projection, -1), action)
        return out

    def learn(self, state: VariantState, model: WorldModel, pairs: Row) -> VariantState:
        latent = Latent.stored(pairs.deter, pairs.stoch, model.rssm.classes, model.dtype)
        action = action_vector(model, pairs.action)[0]
        seen = preprocess_obs(model.decoder.space, pairs.obs).reshape(*pairs.is_first.shape, -1)
        state = eqx.tree_at(lambda s: s.standard, state, state.standard.updated(seen[1]))
        inputs = self.inputs(state, model, jax.tree.map(lambda x: x[0], latent), seen[0], action)
        now, after = self.project(state, self.scaled(state, seen))
        target = {"next": after, "change": after - now, "zero": jnp.zeros_like(after)}[self.target]

        def loss(members):
            error = 0.5 * jnp.square(self.predict(members, state, inputs, action) - target).sum(-1)
            return jnp.where(pairs.is_first[1], 0.0, error).mean(1).sum()

        updates, moments = VARIANT_OPTIMIZER.update(jax.grad(loss)(state.members), state.moments)
        members = eqx.apply_updates(state.members, updates)
        return eqx.tree_at(lambda s: (s.members, s.moments), state, (members, moments))

    def learn_with_model(self, state, model, observed, rows, action):
        raise NotImplementedError

    def novelty(self, state, model, latent, seen, action):
        inputs = self.inputs(state, model, latent, seen, action)

        def spread(members):
            out = self.predict(members, state, inputs, action)
            return jnp.square(out).mean((0, -1)) if self.target == "zero" else jnp.var(out - out[:1], 0).mean(-1)

        return spread(state.members) / (spread(state.start) + 1e-6) if self.ratio else spread(state.members)


class NextRND(eqx.Module):
    """RND's networks on the next observation."""

    predictor: Head
    target: Head
    standard: RunningNormalizer
    moments: Any


@dataclasses.dataclass(frozen=True)
class RND:
    """Random network distillation (arXiv 1810.12894) of the next observation: replayed to learn, imagined to ask."""

    updates: int = 2
    units: int = 64
    size: int = 32

    def init(self, env: Environment, base: Config, *, key: PRNGKeyArray) -> NextRND:
        del base
        pixels = math.prod(features(env.obs_space))
        key_predictor, key_target = jr.split(key)
        predictor = Head(pixels, self.units, 2, self.size, key=key_predictor)
        target = Head(pixels, self.units, 1, self.size, key=key_target)
        return NextRND(predictor, target, RunningNormalizer.zero(pixels), VARIANT_OPTIMIZER.init(predictor))

    def scaled(self, state: NextRND, numbers: Array) -> Array:
        """Standardised and clipped, as in the source."""
        weight = jnp.maximum(state.standard.weight, 1e-8)
        mean = state.standard.mean / weight
        variance = jnp.maximum(state.standard.square / weight - jnp.square(mean), 0)
        return jnp.clip((numbers - mean) / jnp.sqrt(variance + 1e-4), -5, 5)

    def learn(self, state: NextRND, model: WorldModel, pairs: Row) -> NextRND:
        seen = preprocess_obs(model.decoder.space, pairs.obs[1]).reshape(pairs.is_first.shape[1], -1)
        state = eqx.tree_at(lambda s: s.standard, state, state.standard.updated(seen))
        x = self.scaled(state, seen)
        loss = lambda predictor: jnp.square(predictor(x) - state.target(x)).sum(-1).mean()
        updates, moments = VARIANT_OPTIMIZER.update(jax.grad(loss)(state.predictor), state.moments)
        changed = (eqx.apply_updates(state.predictor, updates), moments)
        return eqx.tree_at(lambda s: (s.predictor, s.moments), state, changed)

    def learn_with_model(self, state, model, observed, rows, action):
        raise NotImplementedError

    def novelty(self, state, model, latent, seen, action):
        del seen
        noise = jr.uniform(jr.key(0), (4, *action.shape[:1], model.rssm.stoch))

        def error(uniform):
            after = imagine_step(model.rssm, latent, action, uniform, 0.01)
            x = self.scaled(state, decode_mean(model.decoder, after))
            return jnp.square(state.predictor(x) - state.target(x)).mean(-1)

        return lax.map(error, noise).mean(0)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The variance of a Gaussian process, over its prior: an ensemble of any width whose learning is perfect.

    1 - k(x, X) (k(X, X) + ridge)^-1 k(X, x) is in (0, 1]. Each action has a process of its own, so one that was never
    tried gets 1 everywhere. What is left to choose is what it reads, and how fast it forgets that two states are alike.
    """

    input: str = "decoded"  # observed: the true observation, which no imagined state has; decoded, feat
    standard: bool = False  # each entry by what was seen
    width: float = 0.25  # of exp(-d^2 / 2 width^2), in median distances; 0: the cosine
    ridge: float = 1.0

    def answer(self, env: Environment, run: "ModelRun", latent: Latent, looked: "Looked") -> np.ndarray:
        """The variance of every action at the rows looked at, [R, U]."""
        data, model = run.data, run.snapshots[-1].model
        match self.input:
            case "observed":
                read = preprocess_obs(env.obs_space, jnp.asarray(data.streams.obs))
            case "decoded":
                read = decode_mean(model.decoder, latent)
            case _:
                read = latent.feat
        x = np.asarray(read, np.float64).reshape(*data.kept.shape, -1)
        if self.standard:
            x = (x - x[data.kept].mean(0)) / np.sqrt(x[data.kept].var(0) + 1e-2)
        asked = x[tuple(looked.where.T)]
        width = self.width * np.sqrt(np.median(_squares(asked[:256], x[data.kept][:256])))

        def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            if self.width:
                return np.exp(-_squares(a, b) / (2 * width**2))
            return _unit(a) @ _unit(b).T

        found = []
        for action in range(data.counts.shape[1]):
            tried = x[data.tried & (data.action == action)]
            across = kernel(asked, tried)
            solved = np.linalg.solve(kernel(tried, tried) + self.ridge * np.eye(len(tried)), across.T)
            found.append(1 - (across * solved.T).sum(1))
        return np.stack(found, 1)


@dataclasses.dataclass(frozen=True)
class Fourier:
    """Kernel's variance with random Fourier features of the levelled decoded observation in place of the kernel.

    ridge phi' (sum of phi phi' over the rows of the action + ridge)^-1 phi, phi = sines and cosines of random
    projections (Rahimi and Recht 2007): a matrix of each action, whatever the number of rows and of entries.
    """

    frequencies: int = 128
    bandwidth: float = 9.0  # of the projections, whose mean square is 1
    ridge: float = 0.1

    def answer(self, env: Environment, run: "ModelRun", latent: Latent, looked: "Looked") -> np.ndarray:
        """The variance of every action at the rows looked at, [R, U]."""
        del env
        data, model = run.data, run.snapshots[-1].model
        x = np.asarray(decode_mean(model.decoder, latent), np.float64).reshape(*data.kept.shape, -1)
        x /= np.sqrt(np.square(x).mean(-1, keepdims=True) + 0.01 / x.shape[-1])
        waves = np.random.default_rng(0).normal(size=(x.shape[-1], self.frequencies)) / math.sqrt(x.shape[-1])
        angle = self.bandwidth * x @ waves
        phi = np.concatenate([np.sin(angle), np.cos(angle)], -1) / math.sqrt(self.frequencies)
        asked, found = phi[tuple(looked.where.T)], []
        for action in range(data.counts.shape[1]):
            tried = phi[data.tried & (data.action == action)]
            solved = np.linalg.solve(tried.T @ tried + self.ridge * np.eye(phi.shape[-1]), asked.T)
            found.append(self.ridge * (asked * solved.T).sum(1))
        return np.stack(found, 1)


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances, [len(a), len(b)]."""
    return np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None] - 2 * a @ b.T


def _unit(x: np.ndarray) -> np.ndarray:
    return x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-8)


PROJECTED = "--ensemble.input projected"
FEAT = "--ensemble.input feat --ensemble.target"
PUBLISHED = (
    f"{FEAT} probs --ensemble.updates 0 --ensemble.prior-layers 0 --ensemble.spread std --ensemble.members 8 "
    "--hypers.action-scale 1"
)
LINEAR: dict[str, Any] = {"input": "fourier", "coupling": "heads", "layers": 0, "prior_layers": 0}
LINEAR |= {"frequencies": 64, "projection": 8, "updates": 1}
VARIANTS: dict[str, dict[str, Any]] = {
    "ratio": {"ratio": True},
    "change": {"target": "change"},
    "standard": {"entries": "standard"},
    "standard-change": {"entries": "standard", "target": "change"},
    "standard-projected": {"entries": "standard", "target": "change", "input": "projected"},
    "heads": {"coupling": "heads"},
    "heads-standard-change": {"coupling": "heads", "entries": "standard", "target": "change"},
    "projected-outer": {"input": "projected", "coupling": "outer"},
    "feat-standard": {"input": "feat", "entries": "standard"},
    "feat-heads-standard": {"input": "feat", "entries": "standard", "coupling": "heads"},
    "deter-standard": {"input": "deter", "entries": "standard"},
    "deter-outer-standard": {"input": "deter", "entries": "standard", "coupling": "outer"},
    "observed": {"input": "observed"},
    "observed-standard": {"input": "observed", "entries": "standard"},
    "observed-heads": {"input": "observed", "coupling": "heads"},
    "observed-heads-standard-change": {
        "input": "observed",
        "entries": "standard",
        "coupling": "heads",
        "target": "change",
    },
    "fourier": {"input": "fourier"},
    "fourier-heads": {"input": "fourier", "coupling": "heads"},
    "fourier-linear": LINEAR,
    "fourier-linear-ratio": LINEAR | {"ratio": True},
    "fourier-linear-wide": LINEAR | {"bandwidth": 9.0},
    "decoded-linear": LINEAR | {"input": "decoded"},
    "rnd": {"target": "zero"},
    "rnd-standard": {"target": "zero", "entries": "standard"},
    "rnd-feat": {"target": "zero", "input": "feat"},
}
FORMS: dict[str, "Form | Kernel | Fourier"] = {
    "preset": Preset(""),
    "published": Preset(PUBLISHED),
    "feat": Preset(f"{FEAT} projected"),
    "feat-stoch": Preset(f"{FEAT} stoch"),
    "feat-deter": Preset(f"{FEAT} deter"),
    "feat-embed": Preset(f"{FEAT} embed"),
    "projected": Preset(PROJECTED),
    "no-prior": Preset(f"{PROJECTED} --ensemble.prior-layers 0"),
    "action-1": Preset(f"{PROJECTED} --hypers.action-scale 1"),
    "updates-8": Preset(f"{PROJECTED} --ensemble.updates 8"),
    "projection-128": Preset(f"{PROJECTED} --ensemble.projection 128"),
    "wide": Preset(f"{PROJECTED} --ensemble.units 256"),
    **{name: Variant(**choices) for name, choices in VARIANTS.items()},
    "rnd-next": RND(),
    **{f"fourier-{k}-{b}": Fourier(k, float(b)) for k in (64, 128) for b in (3, 6, 9)},
    "kernel-observed": Kernel("observed"),
    "kernel-decoded": Kernel("decoded"),
    "kernel-feat": Kernel("feat", standard=True),
    "linear-observed": Kernel("observed", width=0),
    "linear-decoded": Kernel("decoded", width=0),
    "linear-feat": Kernel("feat", standard=True, width=0),
}


# ---- the world model -----------------------------------------------------------------------------------------------


class Training(eqx.Module):
    """A world model that learns."""

    model: WorldModel
    moments: Any
    ring: Row
    key: PRNGKeyArray


class Snapshot(NamedTuple):
    """A world model on its way, and the states of the ring's rows as it sees them."""

    model: WorldModel
    deter: np.ndarray  # [C, 1, D]
    stoch: np.ndarray  # [C, 1, S]


def model_updates(
    config: Config, hypers: Hypers, recon: Callable[..., Array] | None, training: Training, count: Array, length: int
) -> tuple[Training, Array]:
    """So many steps of the world model, as mode explore takes them, and their reconstruction error."""

    def update(training: Training, _: None) -> tuple[Training, Array]:
        key, key_windows, key_observe = jr.split(training.key, 3)
        windows, batch = sample_windows(config, training.ring, count, key=key_windows)
        rows = jax.tree.map(lambda x: x[1:], batch)

        def loss(model: WorldModel) -> tuple[Array, tuple[Latent, Array]]:
            observed = observe_window(model, batch, hypers, key=key_observe)
            losses, _ = model_loss(model, observed, rows.obs, rows.reward, rows.is_terminal, hypers, True)
            if recon is not None:
                losses["recon"] = recon(model.decoder, observed.latent, rows.obs)
            scaled = [getattr(hypers, f"scale_{name}") * value.mean() for name, value in losses.items()]
            return jnp.stack(scaled).sum(), (observed.latent, losses["recon"].mean())

        (_, (latent, error)), grads = jax.value_and_grad(loss, has_aux=True)(training.model)
        updates, moments = optimizer.optimizer(hypers).update(grads, training.moments, training.model)
        ring = write_back(training.ring, windows, latent.deter, latent.classes)
        return Training(eqx.apply_updates(training.model, updates), moments, ring, key), error

    training, errors = lax.scan(update, training, length=length)
    return training, errors.mean()


def sample_windows(config: Config, ring: Row, count: Array, *, key: PRNGKeyArray) -> tuple[Windows, Row]:
    """A batch of the ring's first `count` rows, [T+1, B, ...]."""
    size, length = config.replay.batch_size, config.replay.batch_length
    clock = StepCounters(count, jnp.zeros((), jnp.int32))
    windows = choose(clock, ring.reward.shape[0], 1, size, length, False, key=key)
    return windows, read(ring, windows, length)


def observe_window(model: WorldModel, batch: Row, hypers: Hypers, *, key: PRNGKeyArray) -> Observed:
    """The account of rows 1 to T of a batch."""
    action, rows = action_vector(model, batch.action), jax.tree.map(lambda x: x[1:], batch)
    context = Latent.stored(batch.deter[0], batch.stoch[0], model.rssm.classes, model.dtype)
    return observe(model, context, action[:-1], rows.obs, rows.is_first, hypers.unimix, key=key)


def posterior(model: WorldModel, rows: Row, unimix: Array) -> Latent:
    """States of whole streams [T, N]."""
    action = action_vector(model, rows.action)
    context = initial(model.rssm, rows.is_first.shape[1:], model.dtype)
    before = jnp.concatenate([jnp.zeros_like(action[:1]), action[:-1]])
    return observe(model, context, before, rows.obs, rows.is_first, unimix, key=jr.key(7)).latent


class ModelRun(NamedTuple):
    """One seed of a task: its rows, and a world model trained on the kept ones."""

    data: Data
    ring: Row  # [C, 1]
    count: int
    snapshots: list[Snapshot]
    latent: Latent  # [T, N]: of all rows, with the last of them
    recon: float


def run_model(setting: "Setting", seed: int, updates: int, points: int, steps: dict[str, Any]) -> ModelRun:
    """Collect and train. Every point refreshes the states of all rows, as acting would have left them."""
    config, hypers, env = setting.config, setting.hypers, setting.env
    if "model" not in steps:
        steps["model"] = jax.jit(lambda key: WorldModel(config, env.obs_space, env.action_space, key=key))
        steps["posterior"] = jax.jit(posterior)
    model = steps["model"](jr.key(seed))
    data = collect(setting.task, env, model, seed, steps)
    if "update" not in steps or setting.weighted:
        recon = weighted_recon(data) if setting.weighted else None
        steps["update"] = jax.jit(functools.partial(model_updates, config, hypers, recon, length=updates // points))
    ring, count = ring_of(data, data.streams)
    training = Training(model, optimizer.optimizer(hypers).init(model), jax.tree.map(jnp.asarray, ring), jr.key(seed))
    snapshots, error = [], jnp.nan
    for _ in range(points):
        latent = steps["posterior"](training.model, data.streams, hypers.unimix)
        deter, stoch = ring_of(data, (np.asarray(latent.deter), np.asarray(latent.classes)))[0]
        refreshed = eqx.tree_at(lambda r: (r.deter, r.stoch), training.ring, (jnp.asarray(deter), jnp.asarray(stoch)))
        training, error = steps["update"](dataclasses.replace(training, ring=refreshed), jnp.asarray(count))
        snapshots.append(Snapshot(training.model, *map(np.asarray, (training.ring.deter, training.ring.stoch))))
    latent = steps["posterior"](training.model, data.streams, hypers.unimix)
    return ModelRun(data, ring, count, snapshots, latent, float(error))


# ---- forms beside it -----------------------------------------------------------------------------------------------


def rows_at(streams: Any, looked: Looked) -> Any:
    """Arrays [T, N, ...] -> those of the rows looked at, [R, ...]."""
    t, n = looked.where.T
    return jax.tree.map(lambda x: x[t, n], streams)


class Setting(NamedTuple):
    """What is measured in."""

    name: str
    task: Task
    env: Environment
    config: Config
    hypers: Hypers
    weighted: bool  # rare entries weigh more in the reconstruction


def learn_form(form: Form, config: Config, hypers: Hypers, state: Any, model: WorldModel, ring: Row, count: Array, key):
    """One update's worth of a form's learning beside a world model."""
    if form.updates == 0:
        key_windows, key_observe = jr.split(key)
        _, batch = sample_windows(config, ring, count, key=key_windows)
        observed, rows = observe_window(model, batch, hypers, key=key_observe), jax.tree.map(lambda x: x[1:], batch)
        return form.learn_with_model(state, model, observed, rows, action_vector(model, rows.action))

    def step(state, key):
        start = jr.randint(key, (config.ensemble.batch_size,), 0, count - 1)
        return form.learn(state, model, read(ring, Windows(start, jnp.zeros_like(start)), 1)), None

    return lax.scan(step, state, jr.split(key, form.updates))[0]


def run_form(setting: Setting, form: Form, runs: dict[int, ModelRun], updates: int, looked: dict[int, Looked]):
    """Train a form beside each seed's snapshots: its novelty of every action at the rows looked at, {seed: [R, U]}."""
    env, config, hypers = setting.env, setting.config, setting.hypers

    def learn(state, snapshot, ring, count, key):
        ring = eqx.tree_at(lambda r: (r.deter, r.stoch), ring, (snapshot.deter, snapshot.stoch))
        step = lambda state, key: (learn_form(form, config, hypers, state, snapshot.model, ring, count, key), None)
        return lax.scan(step, state, jr.split(key, updates))[0]

    def ask(state, model, latent, obs):
        seen = preprocess_obs(env.obs_space, obs).reshape(len(obs), -1)

        def about(action):
            return form.novelty(state, model, latent, seen, jnp.broadcast_to(action, (len(seen), len(action))))

        return lax.map(about, action_vectors(env.action_space)).T

    learn, ask, found = jax.jit(learn), jax.jit(ask), {}
    init = jax.jit(lambda key: form.init(env, config, key=key))
    for seed, run in runs.items():
        state, ring, count = init(jr.key(100 + seed)), jax.tree.map(jnp.asarray, run.ring), jnp.asarray(run.count)
        for i, snapshot in enumerate(run.snapshots):
            state = learn(state, snapshot, ring, count, jr.fold_in(jr.key(seed), i))
        at = rows_at((run.latent, run.data.streams.obs), looked[seed])
        found[seed] = np.asarray(ask(state, run.snapshots[-1].model, *at))
    return found


# ---- what the answers say ------------------------------------------------------------------------------------------


def judge(data: Data, looked: Looked, novelty: Float[np.ndarray, "R U"]) -> dict[str, float]:
    """The figures of one form."""
    t, n = looked.where.T
    context = data.context[t, n]
    seen = looked.present & ~looked.beyond
    tried = data.counts[data.counts > 0]
    often = data.counts >= np.quantile(tried, OFTEN)
    held, many = (mask[context] & seen[:, None] for mask in (data.held, often))
    behind = looked.present & looked.beyond
    taken = novelty[np.arange(len(t)), data.action[t, n]]
    known, sums = np.zeros(data.counts.shape), np.zeros(data.counts.shape)
    np.add.at(known, context[seen], 1)
    np.add.at(sums, context[seen], novelty[seen])
    pairs = known > 0
    never = pairs & (data.counts == 0)
    others = (data.counts > 0)[context] & seen[:, None]
    pick, act = np.nonzero(held)
    less = (novelty[pick] < novelty[pick, act][:, None]) + 0.5 * (novelty[pick] == novelty[pick, act][:, None])
    beside = others[pick]
    within = (less * beside).sum(1)[beside.any(1)] / beside.sum(1)[beside.any(1)]
    new, old = novelty[held], novelty[many]
    mean = sums[pairs] / known[pairs]
    return {
        "auc": auc(new, old),
        "within": float(within.mean()) if len(within) else math.nan,
        "ratio": float(new.mean() / old.mean()) if len(new) else math.nan,
        "correlation": spearman(mean, data.counts[pairs]),
        "beyond": auc(taken[behind], old),
        "beyond_ratio": float(taken[behind].mean() / old.mean()) if behind.any() else math.nan,
        "never": auc((sums / np.maximum(known, 1))[never], (sums / np.maximum(known, 1))[pairs & often]),
        "held_mean": float(new.mean()) if len(new) else math.nan,
        "often_mean": float(old.mean()),
    }


def weighted_recon(data: Data, floor: float = 0.01, most: float = 10.0) -> Callable[..., Array]:
    """A binary observation's reconstruction loss with rare entries weighted up: by how far they vary, 1 on average."""
    numbers = np.asarray(data.streams.obs)[data.kept].astype(np.float32)
    variance = numbers.reshape(len(numbers), -1).var(0)
    weight = np.minimum(most, 0.25 / (variance + floor)).reshape(numbers.shape[1:])

    def recon(decoder, latent, obs):
        raw = decoder(latent)
        real = decoder.space.kind == "real"
        loss = jnp.square(raw - symlog(obs)) if real else jax.nn.softplus(raw) - raw * obs
        return (weight * loss).sum(tuple(range(-weight.ndim, 0)))

    return recon


def measure(
    name: str, names: list[str], seeds: int, updates: int, points: int, add: str, weighted: bool, cache: str, last: int
) -> Iterator[list[dict[str, Any]]]:
    """Train and judge the forms in one task; yields results form by form."""
    task = TASKS[name]
    arguments = parse([*"--preset tiny --mode explore".split(), *task.words.split(), *add.split()])
    hypers = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), arguments.hypers)
    env = envs.make(arguments.config.env, dict(arguments.config.env_args))
    setting = Setting(name, task, env, arguments.config, hypers, weighted)
    runs, looked, steps = {}, {}, {}
    for seed in range(seeds):
        began = time.process_time()
        what = f"{name} {add} {weighted} {seed} {updates} {points}".replace(" ", "_").replace("/", "_")
        file = pathlib.Path(cache, what + ".pickle") if cache else None
        if file and file.exists():
            runs[seed] = load(file, setting, points)
        else:
            runs[seed] = run_model(setting, seed, updates, points, steps)
            if file:
                save(runs[seed], file)
        runs[seed] = runs[seed]._replace(snapshots=runs[seed].snapshots[-last:])
        looked[seed] = looked_at(runs[seed].data, np.random.default_rng(seed), len(runs[seed].data.counts))
        seconds, run = time.process_time() - began, runs[seed]
        print(f"# {name} seed {seed}: {run.count} rows, recon {run.recon:.3g}, {seconds:.0f} s", flush=True)
    for form in names:
        began = time.process_time()
        if form == "counts":
            where = {seed: run.data.context[tuple(looked[seed].where.T)] for seed, run in runs.items()}
            answers = {seed: 1 / np.sqrt(1 + run.data.counts[where[seed]]) for seed, run in runs.items()}
        elif isinstance(made := FORMS[form], Kernel | Fourier):
            answers = {seed: made.answer(env, run, run.latent, looked[seed]) for seed, run in runs.items()}
        else:
            answers = run_form(setting, made, runs, updates // points, looked)
        seconds = round((time.process_time() - began) / seeds, 1)
        at = {"task": name, "add": add + (" recon-weighted" if weighted else ""), "updates": updates, "last": last}
        at["form"] = form
        yield [
            at
            | {"seed": seed, "rows": run.count, "recon": round(run.recon, 4), "seconds": seconds}
            | judge(run.data, looked[seed], answers[seed])
            for seed, run in runs.items()
        ]


def save(run: ModelRun, file: pathlib.Path) -> None:
    """Keep a run's arrays."""
    file.write_bytes(pickle.dumps([np.asarray(x) for x in jax.tree.leaves(run)]))


def load(file: pathlib.Path, setting: Setting, points: int) -> ModelRun:
    """Undo `save`."""
    env, leaves = setting.env, iter(pickle.loads(file.read_bytes()))
    model = jax.eval_shape(lambda: WorldModel(setting.config, env.obs_space, env.action_space, key=jr.key(0)))
    row, latent = Row(*[0] * 8), Latent(*[0] * 2)
    like = ModelRun(Data(row, *[0] * 6), row, 0, [Snapshot(model, 0, 0)] * points, latent, 0.0)
    run = jax.tree.map(lambda _: next(leaves), like)
    return run._replace(count=int(run.count), recon=float(run.recon))


FIGURES = ("auc", "ratio", "within", "correlation", "beyond", "beyond_ratio", "never", "held_mean", "often_mean")


def show(results: list[dict[str, Any]]) -> None:
    """A markdown table: the mean over seeds, and from the lowest to the highest."""
    columns = ("task", "add", "updates", "last", "form")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(tuple(result[name] for name in columns), []).append(result)
    names = [*columns, "seeds", *FIGURES]
    print(f"| {' | '.join(names)} |\n" + "| --- " * len(names) + "|")
    for group, mine in groups.items():
        cells = [*map(str, group), str(len(mine))]
        for figure in FIGURES:
            values = np.array([result[figure] for result in mine], float)
            spread = f" ({values.min():.2g} to {values.max():.2g})" if len(values) > 1 else ""
            cells.append(f"{values.mean():.2g}{spread}")
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Measure, keep and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=[], choices=list(TASKS))
    parser.add_argument("--forms", nargs="*", default=[*FORMS, "counts"])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--updates", type=int, default=1500, help="of the world model")
    parser.add_argument(
        "--points", type=int, default=50, help="stretches of updates with one world model for the forms"
    )
    parser.add_argument("--last", type=int, default=50, help="of them, how many at the end forms learn beside")
    parser.add_argument("--add", default="", metavar="WORDS", help="further words of run.py for the world model")
    parser.add_argument("--recon-weighted", action="store_true", help="rare entries weigh more in the reconstruction")
    parser.add_argument("--cache", default="", metavar="FOLDER", help="keep trained world models there")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print what was kept")
    asked = parser.parse_args()
    start_jax()
    if asked.cache:
        os.makedirs(asked.cache, exist_ok=True)
    for task in asked.tasks:
        rest = asked.updates, asked.points, asked.add, asked.recon_weighted, asked.cache, asked.last
        for found in measure(task, asked.forms, asked.seeds, *rest):
            # Read again each time: several of these programs may write.
            kept = json.loads(asked.out.read_text()) if asked.out.exists() else []
            asked.out.write_text("[\n" + ",\n".join(json.dumps(r) for r in kept + found) + "\n]\n")
            show(found)
    if asked.table:
        show(json.loads(asked.out.read_text()))


if __name__ == "__main__":
    main()
