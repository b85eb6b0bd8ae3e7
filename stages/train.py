"""Train: collect, sample, observe, imagine, update, as nested scans. Everything here is one seed; sweep.py vmaps it.

An iteration is `steps` env steps and then `updates` updates (`Config.schedule`). `Clock` is what all seeds share; it
never becomes batched, so that writes to the ring stay slices.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from envs.environment import Environment
from stages import replay
from stages.agent import Agent, Targets, collector
from stages.behavior import update_target
from stages.collect import Episodes, Rollout, collect, start
from stages.config import Config, Hypers
from stages.loss import agent_loss
from stages.optimizer import norm, optimizer, tensor_rows
from stages.replay import Clock, Replay
from stages.rssm import classes_of


class TrainState(eqx.Module):
    """All of one seed. Every leaf is an array."""

    agent: Agent
    targets: Targets
    optimizer: Any
    ring: Replay
    rollout: Rollout
    key: PRNGKeyArray


class Progress(eqx.Module):
    """What a stretch of training tells: episodes that ended in it, and means over its updates by metric name."""

    episodes: Episodes
    metrics: dict[str, Float[Array, ""]]


def capacity(config: Config) -> int:
    """Rows that the ring keeps of each environment: no more than the run collects, and at least one window."""
    rows = min(config.replay.capacity, config.steps + config.adapt_steps) // config.envs
    return max(rows, config.replay.batch_length + 1)


def init(env: Environment, config: Config, hypers: Hypers, *, key: PRNGKeyArray) -> TrainState:
    """A seed before its first step. Its randomness is all in `key`."""
    key_agent, key_rollout, key_row, key_train = jr.split(key, 4)
    agent = Agent(config, env.obs_space, env.action_space, key=key_agent)
    rollout = start(env, agent.model, config, config.envs, key=key_rollout)
    row = jax.eval_shape(lambda: collect(env, agent, agent.tasker, rollout, hypers, key=key_row)[1])
    ring = replay.empty(row, capacity(config))
    return TrainState(agent, Targets.of(agent), optimizer(hypers).init(agent), ring, rollout, key_train)


def collect_steps(
    env: Environment, config: Config, hypers: Hypers, state: TrainState, clock: Clock, steps: int
) -> tuple[TrainState, Clock, Episodes]:
    """Step every environment `steps` times and add the rows to the ring."""
    behavior = collector(state.agent, config.mode)
    key, key_steps = jr.split(state.key)

    def step(carry, key_step):
        rollout, ring, clock = carry
        rollout, row, episodes = collect(env, state.agent, behavior, rollout, hypers, key=key_step)
        ring = replay.add(ring, row, clock.step)
        return (rollout, ring, Clock(clock.step + 1, clock.served)), episodes

    carry = (state.rollout, state.ring, clock)
    (rollout, ring, clock), episodes = lax.scan(step, carry, jr.split(key_steps, steps))
    state = eqx.tree_at(lambda s: (s.rollout, s.ring, s.key), state, (rollout, ring, key))
    return state, clock, jax.tree.map(jnp.sum, episodes)


def update(
    config: Config, hypers: Hypers, state: TrainState, clock: Clock
) -> tuple[TrainState, Clock, dict[str, Float[Array, ""]]]:
    """One batch, one gradient, one step of the optimiser, of the slow critics and of the return scales."""
    shape = (replay.capacity_of(state.ring), config.envs, config.replay.batch_size, config.replay.batch_length)
    key, key_choose, key_loss = jr.split(state.key, 3)
    windows = replay.choose(clock, *shape, config.replay.online, key=key_choose)
    rows = replay.read(state.ring, windows, config.replay.batch_length)

    loss = lambda agent: agent_loss(agent, state.targets, rows, config, hypers, key=key_loss)
    grads, outcome = jax.grad(loss, has_aux=True)(state.agent)
    updates, opt_state = optimizer(hypers).update(grads, state.optimizer, state.agent)
    agent: Agent = eqx.apply_updates(state.agent, updates)

    tasker = update_target(state.targets.tasker, agent.tasker, outcome.tasker_scale, hypers.slow_rate)
    explorer = state.targets.explorer
    if explorer is not None and agent.explorer is not None and outcome.explorer_scale is not None:
        explorer = update_target(explorer, agent.explorer, outcome.explorer_scale, hypers.slow_rate)
    deter = outcome.latent.deter.astype(state.ring.deter.dtype)
    ring = replay.write_back(state.ring, windows, deter, classes_of(outcome.latent))
    metrics = outcome.metrics | {
        "opt/grad_norm": norm(grads),
        "opt/update_norm": norm(updates),
    }
    state = TrainState(agent, Targets(tasker, explorer), opt_state, ring, state.rollout, key)
    return state, replay.serve(clock, *shape), metrics


def iteration(
    env: Environment, config: Config, hypers: Hypers, state: TrainState, clock: Clock
) -> tuple[TrainState, Clock, Progress]:
    """Collect, then update."""
    steps, updates = config.schedule
    state, clock, episodes = collect_steps(env, config, hypers, state, clock, steps)

    def one(carry, _):
        state, clock, metrics = update(config, hypers, *carry)
        return (state, clock), metrics

    (state, clock), metrics = lax.scan(one, (state, clock), length=updates)
    return state, clock, Progress(episodes, jax.tree.map(jnp.mean, metrics))


def advance(
    env: Environment, config: Config, hypers: Hypers, iterations: int, state: TrainState, clock: Clock
) -> tuple[TrainState, Clock, Progress]:
    """`iterations` iterations in one scan; metrics are means over them, episodes sums."""

    def one(carry, _):
        state, clock, progress = iteration(env, config, hypers, *carry)
        return (state, clock), progress

    (state, clock), progress = lax.scan(one, (state, clock), length=iterations)
    metrics = jax.tree.map(jnp.mean, progress.metrics)
    return state, clock, Progress(jax.tree.map(jnp.sum, progress.episodes), metrics)


def adapt(state: TrainState) -> TrainState:
    """Leave the explorer and the ensemble behind: the state that mode task goes on with."""
    agent = eqx.tree_at(lambda a: (a.explorer, a.ensemble), state.agent, (None, None), is_leaf=lambda x: x is None)
    # The optimiser keeps rows of all weights in the order of the agent's fields: what goes stands last.
    seeds = state.key.ndim  # 1 in a sweep, 0 for a seed alone
    alone = lambda agent: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[seeds:], x.dtype), agent)
    before, after = (tensor_rows(alone(a)).sum() for a in (state.agent, agent))
    shed = lambda x: x[..., :after, :] if x.shape[seeds : seeds + 1] == (before,) else x
    targets = Targets(state.targets.tasker, None)
    optimizer = jax.tree.map(shed, state.optimizer)
    return TrainState(agent, targets, optimizer, state.ring, state.rollout, state.key)
