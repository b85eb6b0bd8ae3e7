"""Train: collect, sample, observe, imagine, update, as nested scans. All code here is for one seed; sweep/sweep.py
vmaps it.

An iteration is `steps` env steps and then `updates` updates (`Config.schedule`). All seeds share the `StepCounters`.
These are never batched, so that a write to the ring compiles to a slice. `Hypers` are part of the state, so that each
seed of a sweep can have its own.

A seed diverges where an observation, a reward, a loss or a gradient is not finite. From then on it stays at its last
finite state: its rows and updates are dropped, while the other seeds train on.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from envs.environment import Environment
from stages import optimizer, replay
from stages.agent import Agent, Targets, collector, replace_intrinsic, trainable, update_targets, without_explorer
from stages.collect import ActorState, Episodes, collect, init_actor_state
from stages.config import Config, Hypers
from stages.fast import rows
from stages.finite import all_finite, tree_where, update_diverged_step
from stages.intrinsic import VisitCounts
from stages.loss import LossAux, agent_loss
from stages.measure.coverage import Coverage, action_vectors, count_row, init_coverage, visits_at
from stages.replay import ReplayBuffer, StepCounters
from stages.world_model import see_rewards


class TrainState(eqx.Module):
    """The whole state of one seed. Every leaf is an array."""

    agent: Agent
    targets: Targets
    opt_state: optax.OptState
    intrinsic_opt_state: optax.OptState | None  # None where the intrinsic reward has no updates of its own
    ring: ReplayBuffer
    actor_state: ActorState
    hypers: Hypers
    key: PRNGKeyArray
    env_params: Any  # what the environment drew for this seed; None if it draws nothing
    coverage: Coverage | None  # None where the environment's states cannot be counted
    diverged: Int[Array, ""]  # rows collected in each environment when the seed diverged, that row too; 0: it has not


class Progress(eqx.Module):
    """The report of an iteration or a chunk: episodes that ended in it, and means over its updates by metric name.

    Means are NaN where an update was not finite.
    """

    episodes: Episodes
    metrics: dict[str, Float[Array, "..."]]
    diverged: Int[Array, "..."]  # as in TrainState, at its end


def ring_capacity(config: Config) -> int:
    """Rows that the ring keeps of each environment: no more than the run collects, and at least one window."""
    rows = min(config.replay.capacity, config.steps + config.adapt_steps) // config.envs
    return max(rows, config.replay.batch_length + 1)


def init(env: Environment, config: Config, hypers: Hypers, *, key: PRNGKeyArray) -> TrainState:
    """The state of a seed before its first step. All of its randomness comes from `key`."""
    key_agent, key_rollout, key_row, key_train, key_params = jr.split(key, 5)
    env_params = env.sample_params(key_params)
    env = env.with_params(env_params)
    hypers = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), hypers)
    agent = Agent(config, env.obs_space, env.action_space, key=key_agent)
    actor_state = init_actor_state(env, agent.model, config.envs, key=key_rollout)
    row = jax.eval_shape(lambda: collect(env, agent, agent.tasker, actor_state, hypers, key=key_row)[1])
    ring = replay.empty(row, ring_capacity(config))
    intrinsic_opt_state = None
    if agent.intrinsic is not None and agent.intrinsic.updates:
        intrinsic_opt_state = agent.intrinsic.init_opt_state(hypers)
    return TrainState(
        agent=agent,
        targets=Targets.of(agent),
        opt_state=optimizer.optimizer(hypers).init(eqx.filter(agent, trainable(agent))),
        intrinsic_opt_state=intrinsic_opt_state,
        ring=ring,
        actor_state=actor_state,
        hypers=hypers,
        key=key_train,
        env_params=env_params,
        coverage=init_coverage(env, ring_capacity(config), config.envs),
        diverged=jnp.zeros((), jnp.int32),
    )


def collect_steps(
    env: Environment, config: Config, state: TrainState, counters: StepCounters, steps: int
) -> tuple[TrainState, StepCounters, Episodes]:
    """Step every environment `steps` times and add the rows to the ring."""
    env, behavior = env.with_params(state.env_params), collector(state.agent, config.mode)
    key, key_steps = jr.split(state.key)

    def step(carry, key_step):
        before, ring, coverage, diverged, counters = carry
        actor_state, row, episodes = collect(env, state.agent, behavior, before, state.hypers, key=key_step)
        is_finite = (diverged == 0) & all_finite((row, actor_state.timestep))
        ring = replay.add(ring, row, counters.step, is_finite)
        coverage = count_row(env, coverage, before, row, counters.step, is_finite)
        counters = StepCounters(counters.step + 1, counters.online_cursor)
        diverged = update_diverged_step(diverged, is_finite, counters.step)
        no_episodes = jax.tree.map(jnp.zeros_like, episodes)
        carry = (tree_where(is_finite, actor_state, before), ring, coverage, diverged, counters)
        return carry, tree_where(is_finite, episodes, no_episodes)

    carry = (state.actor_state, state.ring, state.coverage, state.diverged, counters)
    (actor_state, ring, coverage, diverged, counters), episodes = lax.scan(step, carry, jr.split(key_steps, steps))
    state = dataclasses.replace(
        state, actor_state=actor_state, ring=ring, coverage=coverage, diverged=diverged, key=key
    )
    return state, counters, jax.tree.map(jnp.sum, episodes)


def update(
    config: Config, state: TrainState, counters: StepCounters
) -> tuple[TrainState, StepCounters, dict[str, Float[Array, ""]]]:
    """Sample one batch, take one gradient, and step the optimiser, the slow critics and the return scales.

    The batch's new latents are written back to the ring. An intrinsic reward with updates of its own is updated last.
    """
    shape = (replay.capacity_of(state.ring), config.envs, config.replay.batch_size, config.replay.batch_length)
    key, key_windows, key_loss = jr.split(state.key, 3)
    windows = replay.sample_windows(counters, *shape, config.replay.online, key=key_windows)
    batch = replay.read_windows(state.ring, windows, config.replay.batch_length)

    agent = eqx.tree_at(lambda a: a.model, state.agent, see_rewards(state.agent.model, batch.reward))
    trained, fixed = eqx.partition(agent, trainable(agent))

    def loss(trained: Agent) -> tuple[Float[Array, ""], LossAux]:
        return agent_loss(eqx.combine(trained, fixed), state.targets, batch, config, state.hypers, key=key_loss)

    (total, aux), grads = jax.value_and_grad(loss, has_aux=True)(trained)
    updates, opt_state = optimizer.optimizer(state.hypers).update(grads, state.opt_state, trained)
    agent = eqx.combine(eqx.apply_updates(trained, updates), fixed)
    targets = update_targets(state.targets, agent, aux.tasker_scale, aux.explorer_scale, state.hypers)
    latents = (aux.latent.deter.astype(state.ring.deter.dtype), aux.latent.classes)

    norms = {"opt/grad_norm": rows.norm(grads), "opt/update_norm": rows.norm(updates)}
    is_finite = (state.diverged == 0) & all_finite((total, norms))
    before = (state.agent, state.targets, state.opt_state, (batch.deter[1:], batch.stoch[1:]))
    agent, targets, opt_state, latents = tree_where(is_finite, (agent, targets, opt_state, latents), before)
    state = dataclasses.replace(
        state,
        agent=agent,
        targets=targets,
        opt_state=opt_state,
        ring=replay.write_back(state.ring, windows, *latents),
        key=key,
        diverged=update_diverged_step(state.diverged, is_finite, counters.step),
    )
    metrics = tree_where(is_finite, aux.metrics | norms, jnp.nan)
    if state.intrinsic_opt_state is not None:
        state, intrinsic_metrics = update_intrinsic(config, state, counters)
        metrics |= intrinsic_metrics
    return state, replay.advance_cursor(counters, *shape), metrics


def update_intrinsic(
    config: Config, state: TrainState, counters: StepCounters
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """Update the intrinsic reward by its own optimiser, each time on pairs of rows drawn for that update."""
    reward = state.agent.intrinsic
    assert reward is not None
    shape = (replay.capacity_of(state.ring), config.envs, config.ensemble.batch_size)
    key, key_steps = jr.split(state.key)

    def step(carry, key):
        reward, opt_state = carry
        windows = replay.sample_pairs(counters, *shape, key=key)
        pairs = replay.read_windows(state.ring, windows, 1)
        visits = visits_at(state.coverage, windows.start, windows.env)
        counts = VisitCounts(action_vectors(state.agent.model.actions), visits)
        reward, opt_state, loss = reward.update(opt_state, state.agent.model, pairs, counts, state.hypers)
        return (reward, opt_state), loss

    before = (reward, state.intrinsic_opt_state)
    after, losses = lax.scan(step, before, jr.split(key_steps, reward.updates))
    is_finite = (state.diverged == 0) & all_finite((losses, rows.norm(after[0])))
    intrinsic, opt_state = tree_where(is_finite, after, before)
    state = dataclasses.replace(
        state,
        agent=replace_intrinsic(state.agent, intrinsic),
        intrinsic_opt_state=opt_state,
        key=key,
        diverged=update_diverged_step(state.diverged, is_finite, counters.step),
    )
    return state, tree_where(is_finite, {f"loss/{reward.loss_name}": losses.mean()}, jnp.nan)


def iteration(
    env: Environment, config: Config, state: TrainState, counters: StepCounters
) -> tuple[TrainState, StepCounters, Progress]:
    """Collect, then update."""
    steps, updates = config.schedule
    state, counters, episodes = collect_steps(env, config, state, counters, steps)

    def one(carry, _):
        state, counters, metrics = update(config, *carry)
        return (state, counters), metrics

    (state, counters), metrics = lax.scan(one, (state, counters), length=updates)
    return state, counters, Progress(episodes, jax.tree.map(jnp.mean, metrics), state.diverged)


def train_chunk(
    env: Environment, config: Config, iterations: int, state: TrainState, counters: StepCounters
) -> tuple[TrainState, StepCounters, Progress]:
    """`iterations` iterations in one scan; metrics are means over them, episodes sums."""

    def one(carry, _):
        state, counters, progress = iteration(env, config, *carry)
        return (state, counters), progress

    (state, counters), progress = lax.scan(one, (state, counters), length=iterations)
    metrics = jax.tree.map(jnp.mean, progress.metrics)
    return state, counters, Progress(jax.tree.map(jnp.sum, progress.episodes), metrics, state.diverged)


def adapt(state: TrainState) -> TrainState:
    """Drop the explorer and its intrinsic reward: the state with which mode task continues."""
    agent = without_explorer(state.agent)
    trained = eqx.filter(state.agent, trainable(state.agent))
    opt_state = optimizer.drop_opt_state(state.opt_state, trained, agent)
    targets = Targets(state.targets.tasker, None)
    return dataclasses.replace(state, agent=agent, targets=targets, opt_state=opt_state, intrinsic_opt_state=None)
