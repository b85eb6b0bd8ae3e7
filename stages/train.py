"""Train: collect, sample, observe, imagine, update, as nested scans. All of it is one seed; runs/sweep.py vmaps it.

An iteration is `steps` env steps and then `updates` updates (`Config.schedule`). `Clock` is what all seeds share; it
never becomes batched, so that writes to the ring stay slices. `Hypers` are part of the state, so that a sweep may give
each of its places its own.

A seed diverges where an observation, a reward, a loss or a gradient is not finite. From then on nothing of it is taken,
neither rows nor updates: it stays at its last finite state, while time goes on for the others.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from envs.environment import Environment
from stages import optimizer, replay
from stages.agent import Agent, Targets, collector, learned, replace_novelty, update_targets
from stages.collect import Episodes, Rollout, collect, start
from stages.config import Config, Hypers
from stages.coverage import Coverage, count, start_coverage
from stages.fast import rows
from stages.finite import finite, keep, mark
from stages.loss import agent_loss
from stages.replay import Clock, Replay
from stages.rewards import learns_with_model, network_of


class TrainState(eqx.Module):
    """All of one seed. Every leaf is an array."""

    agent: Agent
    targets: Targets
    optimizer: Any
    novelty_optimizer: Any  # of a network that learns by updates of its own, else None
    ring: Replay
    rollout: Rollout
    hypers: Hypers
    key: PRNGKeyArray
    env_params: Any  # what the environment drew for this seed; None if it draws nothing
    coverage: Coverage | None  # None where the environment's states cannot be counted
    diverged: Int[Array, ""]  # rows of each environment, the last one included, when it did; 0: it has not


class Progress(eqx.Module):
    """What a stretch of training reports: episodes that ended in it, and means over its updates by metric name.

    They are NaN where one of the updates was not taken.
    """

    episodes: Episodes
    metrics: dict[str, Float[Array, "..."]]
    diverged: Int[Array, "..."]  # as in TrainState, at its end


def capacity(config: Config) -> int:
    """Rows that the ring keeps of each environment: no more than the run collects, and at least one window."""
    rows = min(config.replay.capacity, config.steps + config.adapt_steps) // config.envs
    return max(rows, config.replay.batch_length + 1)


def init(env: Environment, config: Config, hypers: Hypers, *, key: PRNGKeyArray) -> TrainState:
    """A seed before its first step. Its randomness is all in `key`."""
    key_agent, key_rollout, key_row, key_train, key_params = jr.split(key, 5)
    env_params = env.sample_params(key_params)
    env = env.with_params(env_params)
    hypers = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), hypers)
    agent = Agent(config, env.obs_space, env.action_space, key=key_agent)
    rollout = start(env, agent.model, config.envs, key=key_rollout)
    row = jax.eval_shape(lambda: collect(env, agent, agent.tasker, rollout, hypers, key=key_row)[1])
    ring = replay.empty(row, capacity(config))
    moments = optimizer.optimizer(hypers).init(learned(config, agent))
    own = None
    if (network := network_of(config.mode)) and not learns_with_model(config):
        own = network.moments(agent.novelty, hypers)
    coverage = start_coverage(env, capacity(config), config.envs)
    never = jnp.zeros((), jnp.int32)
    rest = (rollout, hypers, key_train, env_params, coverage, never)
    return TrainState(agent, Targets.of(agent), moments, own, ring, *rest)


def collect_steps(
    env: Environment, config: Config, state: TrainState, clock: Clock, steps: int
) -> tuple[TrainState, Clock, Episodes]:
    """Step every environment `steps` times and add the rows to the ring."""
    env, behavior = env.with_params(state.env_params), collector(state.agent, config.mode)
    key, key_steps = jr.split(state.key)

    def step(carry, key_step):
        before, ring, coverage, diverged, clock = carry
        rollout, row, episodes = collect(env, state.agent, behavior, before, state.hypers, key=key_step)
        taken = (diverged == 0) & finite((row, rollout.timestep))
        ring = replay.add(ring, row, clock.step, taken)
        coverage = count(env, coverage, before, row, clock.step, taken)
        later = Clock(clock.step + 1, clock.online_cursor)
        diverged = mark(diverged, taken, later.step)
        none = jax.tree.map(jnp.zeros_like, episodes)
        return (keep(taken, rollout, before), ring, coverage, diverged, later), keep(taken, episodes, none)

    carry = (state.rollout, state.ring, state.coverage, state.diverged, clock)
    (rollout, ring, coverage, diverged, clock), episodes = lax.scan(step, carry, jr.split(key_steps, steps))
    changed = {"rollout": rollout, "ring": ring, "coverage": coverage}
    state = dataclasses.replace(state, **changed, diverged=diverged, key=key)
    return state, clock, jax.tree.map(jnp.sum, episodes)


def update(config: Config, state: TrainState, clock: Clock) -> tuple[TrainState, Clock, dict[str, Float[Array, ""]]]:
    """One batch, one gradient, one step of the optimiser, of the slow critics and of the return scales."""
    shape = (replay.capacity_of(state.ring), config.envs, config.replay.batch_size, config.replay.batch_length)
    key, key_choose, key_loss = jr.split(state.key, 3)
    windows = replay.choose(clock, *shape, config.replay.online, key=key_choose)
    batch = replay.read(state.ring, windows, config.replay.batch_length)

    moved = learned(config, state.agent)
    whole = lambda moved: replace_novelty(moved, state.agent.novelty) if moved.novelty is None else moved
    loss = lambda moved: agent_loss(whole(moved), state.targets, batch, config, state.hypers, key=key_loss)
    (total, outcome), grads = jax.value_and_grad(loss, has_aux=True)(moved)
    updates, moments = optimizer.optimizer(state.hypers).update(grads, state.optimizer, moved)
    agent: Agent = whole(eqx.apply_updates(moved, updates))
    targets = update_targets(state.targets, agent, outcome.scales, state.hypers)

    norms = {"opt/grad_norm": rows.norm(grads), "opt/update_norm": rows.norm(updates)}
    taken = (state.diverged == 0) & finite((total, norms))
    was = (state.agent, state.targets, state.optimizer, (batch.deter[1:], batch.stoch[1:]))
    fresh = (outcome.latent.deter.astype(state.ring.deter.dtype), outcome.latent.classes)
    agent, targets, moments, fresh = keep(taken, (agent, targets, moments, fresh), was)

    ring = replay.write_back(state.ring, windows, *fresh)
    changed = {"agent": agent, "targets": targets, "optimizer": moments, "ring": ring}
    state = dataclasses.replace(state, **changed, key=key, diverged=mark(state.diverged, taken, clock.step))
    metrics = _of_taken(taken, outcome.metrics | norms)
    if state.novelty_optimizer is not None:
        state, own_metrics = update_novelty(config, state, clock)
        metrics |= own_metrics
    return state, replay.advance_cursor(clock, *shape), metrics


def _of_taken(taken: Bool[Array, ""], metrics: dict[str, Float[Array, ""]]) -> dict[str, Float[Array, ""]]:
    """The metrics of an update that is taken, else NaN."""
    return {name: jnp.where(taken, value, jnp.nan) for name, value in metrics.items()}


def update_novelty(config: Config, state: TrainState, clock: Clock) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """`config.ensemble.updates` steps of the novelty network's own optimiser, each on pairs of rows of its own."""
    network = network_of(config.mode)
    assert network is not None
    shape = (replay.capacity_of(state.ring), config.envs, config.ensemble.batch_size)
    key, key_steps = jr.split(state.key)

    def step(carry, key):
        pairs = replay.read(state.ring, replay.choose_pairs(clock, *shape, key=key), 1)
        *carry, loss = network.update(*carry, state.agent.model, pairs, state.hypers)
        return tuple(carry), loss

    before = (state.agent.novelty, state.novelty_optimizer)
    after, losses = lax.scan(step, before, jr.split(key_steps, config.ensemble.updates))
    taken = (state.diverged == 0) & finite((losses, rows.norm(after[0])))
    novelty, moments = keep(taken, after, before)
    changed = {"agent": replace_novelty(state.agent, novelty), "novelty_optimizer": moments, "key": key}
    state = dataclasses.replace(state, **changed, diverged=mark(state.diverged, taken, clock.step))
    return state, _of_taken(taken, {f"loss/{network.name}": losses.mean()})


def iteration(env: Environment, config: Config, state: TrainState, clock: Clock) -> tuple[TrainState, Clock, Progress]:
    """Collect, then update."""
    steps, updates = config.schedule
    state, clock, episodes = collect_steps(env, config, state, clock, steps)

    def one(carry, _):
        state, clock, metrics = update(config, *carry)
        return (state, clock), metrics

    (state, clock), metrics = lax.scan(one, (state, clock), length=updates)
    return state, clock, Progress(episodes, jax.tree.map(jnp.mean, metrics), state.diverged)


def advance(
    env: Environment, config: Config, iterations: int, state: TrainState, clock: Clock
) -> tuple[TrainState, Clock, Progress]:
    """`iterations` iterations in one scan; metrics are means over them, episodes sums."""

    def one(carry, _):
        state, clock, progress = iteration(env, config, *carry)
        return (state, clock), progress

    (state, clock), progress = lax.scan(one, (state, clock), length=iterations)
    metrics = jax.tree.map(jnp.mean, progress.metrics)
    return state, clock, Progress(jax.tree.map(jnp.sum, progress.episodes), metrics, state.diverged)


def adapt(state: TrainState) -> TrainState:
    """Leave the explorer and its reward's network behind: the state that mode task goes on with."""
    agent = eqx.tree_at(lambda a: (a.explorer, a.novelty), state.agent, (None, None), is_leaf=lambda x: x is None)
    before = state.agent if state.novelty_optimizer is None else replace_novelty(state.agent, None)
    moments = optimizer.shed(state.optimizer, before, agent)
    targets = Targets(state.targets.tasker, None)
    changed = {"agent": agent, "targets": targets, "optimizer": moments, "novelty_optimizer": None}
    return dataclasses.replace(state, **changed)
