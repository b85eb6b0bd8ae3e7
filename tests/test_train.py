"""The scan: schedule, state, chunks, what an update moves, phases."""

import dataclasses
import functools

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from stages import train
from stages.agent import replace_intrinsic, trainable
from stages.config import EnsembleConfig
from stages.fast.rows import WIDTH, from_rows, tensor_rows
from stages.replay import StepCounters
from tests.conftest import pick, tree_equal


def prefilled(env, config, hypers, key):
    """A seed of this key with its first rows: state, counters, episodes."""
    state = train.init(env, config, hypers, key=key)
    return train.collect_steps(env, config, state, StepCounters.zero(), config.prefill)


@pytest.fixture(scope="module")
def started(env, config, hypers):
    """A prefilled seed."""
    return jax.jit(functools.partial(prefilled, env, config, hypers))(jr.key(3))


@pytest.fixture(scope="module")
def advance(env, config, hypers):
    """advance(state, counters, iterations), compiled for each number of iterations."""
    return functools.cache(lambda n: jax.jit(functools.partial(train.train_chunk, env, config, n)))


def test_every_leaf_of_the_state_is_an_array(started):
    state, counters, _ = started
    for leaf in jax.tree.leaves((state, counters)):
        assert isinstance(leaf, jax.Array), type(leaf)


def test_ring_holds_the_rows_in_order(started, config):
    state, counters, episodes = started
    ring, steps = state.ring, int(counters.step)
    assert steps == config.prefill
    # Catch from its first row: 10 rows an episode (9 steps), then the next one.
    first = np.arange(steps) % 10 == 0
    np.testing.assert_array_equal(ring.is_first[:steps], np.stack([first] * config.envs, 1))
    np.testing.assert_array_equal(ring.is_last[:steps], np.stack([np.arange(steps) % 10 == 9] * config.envs, 1))
    assert float(episodes.count) == int(ring.is_last[:steps].sum())


def test_schedule_meets_the_train_ratio(started, advance, config):
    steps, updates = config.schedule
    replay = config.replay
    assert updates * replay.batch_size * replay.batch_length == replay.train_ratio * steps * config.envs
    state, counters, _ = started
    _, later, _ = advance(2)(state, counters)
    assert int(later.step - counters.step) == 2 * steps


def test_one_chunk_of_2n_equals_two_of_n_to_the_bit(started, advance):
    state, counters, _ = started
    once, counters_once, _ = advance(4)(state, counters)
    half, counters_half, _ = advance(2)(state, counters)
    twice, counters_twice, _ = advance(2)(half, counters_half)
    assert tree_equal((once, counters_once), (twice, counters_twice))
    assert not tree_equal(half.agent, twice.agent)


OWN = EnsembleConfig(members=3, layers=1, input="decoded", target="projected", prior_layers=1, updates=2, batch_size=32)


@pytest.fixture(scope="module")
def exploring(env, config, hypers):
    """(config, three prefilled seeds, counters) of a run whose ensemble has updates of its own."""
    config = dataclasses.replace(config, mode="explore", ensemble=OWN)
    start = functools.partial(prefilled, env, config, dataclasses.replace(hypers, warmup=0.0))
    states, counters, _ = jax.jit(jax.vmap(start, out_axes=(0, None, 0)))(jr.split(jr.key(0), 3))
    return config, states, counters


@pytest.fixture(scope="module")
def update(exploring):
    """update(state, counters) -> state, counters, metrics of the exploring run, compiled once."""
    return jax.jit(functools.partial(train.update, exploring[0]))


@pytest.fixture(scope="module")
def updated(exploring, update):
    """What `update` makes of each of the three exploring seeds."""
    _, states, counters = exploring
    return [update(pick(states, seed), counters) for seed in range(3)]


@pytest.fixture(scope="module")
def half(env, config, hypers):
    """(config, a prefilled seed, what an update makes of it) in mode mix, whose members learn with the model, computed
    in bfloat16. Each replayed row was paid a quarter."""
    model = dataclasses.replace(config.model, dtype="bfloat16")
    mix = dataclasses.replace(config, mode="mix", model=model, enlarge_rewards=True)

    @jax.jit
    def start_and_update(key):
        state, counters, _ = prefilled(env, mix, dataclasses.replace(hypers, warmup=0.0), key)
        state = eqx.tree_at(lambda s: s.ring.reward, state, replace_fn=lambda reward: jnp.full_like(reward, 0.25))
        return state, train.update(mix, state, counters)

    return mix, *start_and_update(jr.key(0))


def test_update_moves_every_part_and_the_slow_critic_a_little(exploring, update, hypers):
    _, states, counters = exploring
    # Output layers that start at zero hide what is below them until they have moved: so three updates. So small a
    # model's latents cost less than the free nats.
    state = eqx.tree_at(lambda s: s.hypers.free_nats, pick(states, 0), jnp.float32(0))
    after, later = state, counters
    for _ in range(3):
        before = after
        after, later, metrics = update(after, later)
    for name, old, new in zip(
        jax.tree_util.tree_leaves_with_path(state.agent),
        jax.tree.leaves(state.agent),
        jax.tree.leaves(after.agent),
        strict=True,
    ):
        path = jax.tree_util.keystr(name[0])
        is_fixed = (".prior." in path and ".ensemble" in path) or path.endswith(".projection")
        assert np.array_equal(old, new) == is_fixed, f"{path} {'moved' if is_fixed else 'did not move'}"
    expected = jax.tree.map(
        lambda slow, fast: (1 - hypers.slow_rate) * slow + hypers.slow_rate * fast,
        before.targets.tasker.slow,
        after.agent.tasker.critic,
    )
    chex.assert_trees_all_close(after.targets.tasker.slow, expected, rtol=1e-5, atol=1e-7)
    assert all(np.isfinite(v) for v in jax.tree.leaves(metrics))
    assert not np.array_equal(jr.key_data(after.key), jr.key_data(before.key))


def test_update_writes_fresh_latents_and_nothing_else_to_the_ring(exploring, updated):
    _, states, counters = exploring
    state, (after, _, _) = pick(states, 0), updated[0]
    for name in ("obs", "action", "reward", "is_first", "is_last", "is_terminal"):
        np.testing.assert_array_equal(getattr(state.ring, name), getattr(after.ring, name))
    changed = (np.asarray(state.ring.deter) != np.asarray(after.ring.deter)).any(-1)
    assert changed.any() and not changed[int(counters.step) :].any()


def test_learning_rate_warms_up_from_zero(exploring, update):
    _, states, counters = exploring
    state = eqx.tree_at(lambda s: s.hypers.warmup, pick(states, 0), jnp.float32(10))
    after, _, metrics = update(state, counters)
    assert tree_equal(replace_intrinsic(state.agent, None), replace_intrinsic(after.agent, None))
    assert float(metrics["opt/update_norm"]) == 0 and float(metrics["opt/grad_norm"]) > 0


@pytest.mark.parametrize(("mode", "own"), [("explore", True), ("mix", False)])  # each mode, each way to learn
def test_exploring_seed_learns_then_adapts(request, env, config, advance, mode, own):
    if mode == "explore":
        exploring, states, _ = request.getfixturevalue("exploring")
        state, [(after, counters, metrics), *_] = pick(states, 0), request.getfixturevalue("updated")
    else:
        exploring, state, (after, counters, metrics) = request.getfixturevalue("half")
    assert float(metrics["explorer_replay_rew_disagreement"]) > 0
    assert not tree_equal(state.agent.explorer, after.agent.explorer)
    for old, new in zip(*(jax.tree.leaves(s.agent.intrinsic.ensemble.members) for s in (state, after)), strict=True):
        assert not np.array_equal(old, new)
    assert (state.intrinsic_opt_state is not None) == own
    assert float(metrics["loss/ensemble"]) > 0

    adapted = jax.jit(train.adapt)(after)
    assert adapted.agent.explorer is None and adapted.agent.intrinsic is None and adapted.targets.explorer is None
    assert tree_equal(adapted.agent.model, after.agent.model)
    # The optimiser's moments of what goes on are kept, and of what is left behind dropped.
    assert adapted.intrinsic_opt_state is None
    before = eqx.filter(after.agent, trainable(after.agent))
    assert (jax.tree.leaves(before.intrinsic) == []) == own
    trained = eqx.filter(adapted.agent, trainable(adapted.agent))
    kept, whole = (tensor_rows(agent).sum() for agent in (trained, before))
    moments = zip(jax.tree.leaves(adapted.opt_state), jax.tree.leaves(after.opt_state), strict=True)
    rows = [(now, then) for now, then in moments if then.ndim]
    assert len(rows) == 2
    for now, then in rows:
        assert now.shape == (kept, WIDTH) and then.shape == (whole, WIDTH)
        now, then = jax.jit(from_rows)(now, trained), jax.jit(from_rows)(then, before)
        assert tree_equal((now.model, now.tasker), (then.model, then.tasker))
        assert any((x != 0).any() for x in jax.tree.leaves(now))
    # With the run's own settings, too, which the phase that adapts keeps.
    task = dataclasses.replace(exploring, mode="task")
    jax.eval_shape(functools.partial(train.train_chunk, env, task, 1), adapted, counters)
    if exploring.model.dtype == config.model.dtype:
        later, _, progress = advance(2)(adapted, counters)
        assert np.isfinite(float(progress.metrics["loss/recon"]))
        assert not tree_equal(later.agent.tasker, adapted.agent.tasker)


def test_own_updates_move_members_alone_and_the_models_update_all_else(exploring, updated):
    config, states, counters = exploring
    state, (with_own, _, _) = pick(states, 0), updated[0]

    @jax.jit
    def apart(state):
        """The model's update and the ensemble's own."""
        model, _, _ = train.update(config, dataclasses.replace(state, intrinsic_opt_state=None), counters)
        return model, train.update_intrinsic(config, state, counters)

    alone, (after, metrics) = apart(state)
    assert list(metrics) == ["loss/ensemble"]
    for old, new in zip(*(jax.tree.leaves(s.agent.intrinsic.ensemble.members) for s in (state, after)), strict=True):
        assert not np.array_equal(old, new)
    frozen = lambda ensemble: (ensemble.prior, ensemble.numbers.projection)
    fixed = lambda s: (frozen(s.agent.intrinsic.ensemble), replace_intrinsic(s.agent, None), s.ring)
    assert tree_equal(fixed(state), fixed(after))

    # The model learns the same whether the ensemble learns beside it or not.
    assert tree_equal(replace_intrinsic(with_own.agent, None), replace_intrinsic(alone.agent, None))
    assert tree_equal(alone.agent.intrinsic, state.agent.intrinsic)
    assert not tree_equal(with_own.agent.intrinsic.ensemble.members, state.agent.intrinsic.ensemble.members)
    assert tree_equal(fixed(with_own)[0], fixed(state)[0])


def test_a_seed_alone_learns_what_it_learns_in_a_sweep(exploring, updated):
    config, states, counters = exploring
    together, later, _ = jax.jit(jax.vmap(functools.partial(train.update, config), (0, None), (0, None, 0)))(
        states, counters
    )
    assert not later.step.ndim and not later.online_cursor.ndim  # the counters are not batched
    for seed in range(3):
        (alone, _, _), mine = updated[seed], pick(together, seed)
        chex.assert_trees_all_close(
            (mine.agent, mine.intrinsic_opt_state), (alone.agent, alone.intrinsic_opt_state), rtol=1e-3, atol=1e-4
        )
        assert tree_equal(mine.key, alone.key)


def test_bfloat16_trains_with_float32_parameters(half):
    _, state, (after, _, metrics) = half
    assert state.actor_state.latent.deter.dtype == state.ring.deter.dtype == after.ring.deter.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(after.agent)} == {jnp.dtype("float32")}
    assert not tree_equal(after.agent, state.agent)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((after.agent, metrics)))


def test_an_update_enlarges_rewards_by_the_range_of_those_in_its_batch(half):
    _, state, (after, _, metrics) = half
    np.testing.assert_array_equal(state.agent.model.reward_range, [0.0, 0.0])
    np.testing.assert_array_equal(after.agent.model.reward_range, [0.0, 0.25])
    assert float(metrics["replay_rew_extrinsic"]) == 0.25


def test_capacity_is_what_the_run_collects_at_most(config):
    rows = train.ring_capacity(config)
    assert rows * config.envs >= config.steps
    small = dataclasses.replace(config, replay=dataclasses.replace(config.replay, capacity=50))
    assert train.ring_capacity(small) == 25
    assert jnp.asarray(rows).dtype == jnp.int32
