"""Coverage and the measurement of disagreement, against plain numpy counters that replay the rows of the ring."""

import dataclasses

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jaxtyping import Array, Int

import envs
from envs.environment import ActionSpace
from stages import train
from stages.agent import replace_intrinsic
from stages.count import CountBonus
from stages.ensemble import disagreement
from stages.measure.coverage import action_count, action_index, action_vectors
from stages.measure.heads import HEADS_AHEAD
from stages.measure.measurement import ROWS_PER_STATE, measure, measure_novelty, rows_of_states
from stages.measure.open_loop import AHEAD
from stages.rnd import RND
from stages.rssm import Latent
from stages.sweep.sweep import CompiledPhase, mesh_for
from tests.conftest import pick, tree_equal

SIZE, CHUNK, CAPACITY, PREFILL = 4, 12, 60, 45


def play(config, hypers, seeds):
    """A small Deep Sea with a mapping of each seed: (environment, compiled phase, state, counters).

    All rows are collected before the first update: counting is collecting's.
    """
    sea = envs.make("DeepSea-bsuite", {"size": SIZE, "action_map_per_seed": True})
    # So that the ring wraps.
    replay = dataclasses.replace(config.replay, capacity=2 * CAPACITY, prefill=2 * PREFILL)
    config = dataclasses.replace(config, mode="mix", replay=replay)
    compiled = CompiledPhase(sea, config, mesh_for(len(seeds), jax.devices()[:1]))
    state, counters, _ = compiled.prefill(compiled.init(seeds, hypers))
    return sea, compiled, state, counters


@pytest.fixture(scope="module")
def short(config, hypers):
    """Three seeds, with all of their rows still in the ring."""
    return play(config, hypers, [0, 1, 2])


@pytest.fixture(scope="module")
def alone(config, hypers):
    """Seed 2 on its own."""
    return play(config, hypers, [2])


def replayed(ring, counters, seed, size=SIZE):
    """VisitCounts and episodes of a seed, read off its rows one by one."""
    steps = int(counters.step)
    assert steps <= CAPACITY
    rows = {name: np.asarray(getattr(ring, name))[seed, :steps] for name in ("obs", "action", "reward", "is_last")}
    envs = rows["action"].shape[1]
    visits, score = np.zeros((size * size, 2), int), np.zeros(envs)
    number = bad = goal = solved = 0
    for t in range(steps):
        for n in range(envs):
            score[n] += rows["reward"][t, n]
            if not rows["is_last"][t, n]:
                visits[rows["obs"][t, n].ravel().argmax(), rows["action"][t, n]] += 1
                continue
            number, bad = number + 1, bad + (score[n] <= 0.5)
            goal = goal or (number if score[n] > 0.5 else 0)
            solved = solved or (number if bad / number < 0.9 else 0)
            score[n] = 0.0
    return visits, number, bad, goal, solved


def test_counts_are_those_of_the_rows(short):
    _, _, state, counters = short
    for seed in range(3):
        visits, number, bad, goal, solved = replayed(state.ring, counters, seed)
        counted = jax.tree.map(lambda x, i=seed: np.asarray(x[i]), state.coverage)
        np.testing.assert_array_equal(counted.visits, visits)
        assert (counted.episodes, counted.misses, counted.goal_episode, counted.solved_episode) == (
            number, bad, goal, solved,
        )  # fmt: skip
        assert number > 10
    assert (state.coverage.goal_episode > 0).any(), "otherwise nothing about goals was tried"


def test_where_is_the_state_of_each_row(short):
    _, _, state, counters = short
    steps = int(counters.step)
    board = np.asarray(state.ring.obs)[:, :steps].reshape(3, steps, 2, -1)
    expected = np.where(np.asarray(state.ring.is_last)[:, :steps], -1, board.argmax(-1))
    where = np.asarray(state.coverage.where)
    np.testing.assert_array_equal(where[:, :steps], expected)
    assert (where[:, steps:] == -1).all()


def assert_a_full_ring_is_known(state, counters):
    assert int(counters.step) > CAPACITY
    board = np.asarray(state.ring.obs).reshape(3, CAPACITY, 2, -1)
    np.testing.assert_array_equal(state.coverage.where, np.where(state.ring.is_last, -1, board.argmax(-1)))
    acted = 2 * int(counters.step) - np.asarray(state.coverage.episodes)
    np.testing.assert_array_equal(state.coverage.visits.sum((1, 2)), acted, "what the ring has forgotten still counts")


def test_a_ring_that_wraps_knows_the_states_of_the_rows_it_has(short):
    sea, compiled, state, counters = short
    more = lambda state: train.collect_steps(sea, compiled.config, state, counters, PREFILL)
    state, counters, _ = jax.jit(jax.vmap(more, out_axes=(0, None, 0)))(state)
    assert int(counters.step) == 2 * PREFILL
    assert_a_full_ring_is_known(state, counters)


def test_a_seed_alone_counts_what_it_counts_in_a_sweep(short, alone):
    _, compiled, many, counters = short
    _, single, one, _ = alone
    chex.assert_trees_all_equal(pick(many.coverage, 2), pick(one.coverage, 0))
    np.testing.assert_array_equal(many.env_params[2], one.env_params[0])
    assert (np.asarray(many.env_params[0]) != many.env_params[1]).any()
    measured = compiled.measure(many, [0, 1, 2], int(counters.step)), single.measure(one, [2], int(counters.step))
    chex.assert_trees_all_close(pick(measured[0], 2), pick(measured[1], 0), rtol=1e-3, atol=1e-4)


def test_a_seeds_mapping_is_that_of_its_rows_and_of_its_evaluation(short):
    """Where the ring shows a step to the right, the action is the mapping's; and evaluation is given that mapping."""
    _, compiled, state, counters = short
    steps, seen = int(counters.step), 0
    obs, last = np.asarray(state.ring.obs), np.asarray(state.ring.is_last)
    for seed in range(3):
        for t in range(steps - 1):
            for n in range(2):
                if last[seed, t, n] or last[seed, t + 1, n]:
                    continue
                row, column = divmod(obs[seed, t, n].ravel().argmax(), SIZE)
                right = obs[seed, t + 1, n].ravel().argmax() % SIZE > column
                action = int(state.ring.action[seed, t, n])
                assert right == (action == int(state.env_params[seed, row, column]))
                seen += 1
    assert seen > 100
    # A tasker that always takes action 1 earns with mapping 1 what it cannot with mapping 0.
    where = lambda s: s.agent.tasker.actor.head.out.bias
    ones = eqx.tree_at(where, state, jnp.tile(jnp.array([-50.0, 50.0]), (3, 1)))
    mappings = jnp.stack([jnp.ones((SIZE, SIZE), jnp.int32), jnp.zeros((SIZE, SIZE), jnp.int32), state.env_params[2]])
    scores, *_ = compiled.evaluate(eqx.tree_at(lambda s: s.env_params, ones, mappings), [0, 1, 2], 0)
    np.testing.assert_allclose(scores.mean(1)[:2], [0.99, 0.0], atol=0.02)


def test_adapting_goes_on_counting(short):
    sea, compiled, state, counters = short
    before = np.asarray(state.coverage.visits).sum((1, 2))
    task = CompiledPhase(sea, dataclasses.replace(compiled.config, mode="task"), compiled.mesh)
    state, counters, _ = task.train_chunk(jax.jit(jax.vmap(train.adapt))(state), counters, CHUNK)
    assert (np.asarray(state.coverage.visits.sum((1, 2))) > before).all()
    assert_a_full_ring_is_known(state, counters)  # training between the rows
    measured = task.measure(state, [0, 1, 2], int(counters.step)).novelty
    assert np.isnan(measured.reward).all(), "the ensemble is gone"
    np.testing.assert_array_equal(measured.visits, state.coverage.visits)


@pytest.mark.parametrize("mode", ["task", "mix"])
def test_where_states_cannot_be_counted_there_is_no_record(env, config, hypers, mode):
    config = dataclasses.replace(config, mode=mode)
    state, _ = CompiledPhase(env, config, mesh_for(1, jax.devices()[:1])).shapes(1)
    assert state.coverage is None and state.env_params is None
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), state)
    take = lambda s, step, key: measure(env, config, s.agent, s.ring, s.coverage, step, s.hypers, key=key)
    measured = jax.eval_shape(take, one, jnp.int32(9), jr.key(0))
    assert measured.novelty is None and (measured.baselines is None) == (mode == "task")
    errors = measured.open_loop_error
    chex.assert_shape([errors.open_loop, errors.posterior, errors.changed], [(len(AHEAD),), (len(AHEAD),), ()])
    chex.assert_shape(jax.tree.leaves(measured.head_errors), (len(HEADS_AHEAD),))


# ---- the measurement ------------------------------------------------------------------------------------------------


def test_disagreement_of_a_state_is_the_mean_over_its_rows(short):
    """Of the rows that were chosen, which are the state's own, against a loop over states and actions."""
    sea, _, state, _ = short
    one = pick(state, 1)
    rows, present = rows_of_states(one.coverage.where, SIZE * SIZE, key=jr.key(0))
    measured = jax.jit(lambda s: measure_novelty(sea, s.agent, s.ring, s.coverage, s.hypers, key=jr.key(0)))(one)
    expected = jax.jit(
        lambda feat, vectors: disagreement(one.agent.intrinsic.ensemble, one.agent.model, feat, vectors, one.hypers)
    )
    where = np.asarray(one.coverage.where).ravel()
    stoch = jax.nn.one_hot(one.ring.stoch, one.agent.model.rssm.classes)
    feat = Latent(one.ring.deter, stoch).feat.reshape(where.size, -1)
    for cell in range(SIZE * SIZE):
        if not (where == cell).any():
            assert not present[cell] and np.isnan(measured.reward[cell]).all()
            continue
        assert (where[rows[cell]] == cell).all()
        for action in range(2):
            each = expected(feat[rows[cell]], np.tile(np.eye(2, dtype=np.float32)[action], (ROWS_PER_STATE, 1)))
            np.testing.assert_allclose(measured.reward[cell, action], each.mean(), rtol=1e-4)
    chex.assert_shape([measured.visits, measured.reward], (SIZE * SIZE, 2))


@pytest.mark.parametrize("cls", [RND, CountBonus], ids=lambda cls: cls.name)
def test_every_reward_is_held_beside_visits(short, cls):
    """What it pays for each action at the rows of a state, after it has learned from the seed's rows."""
    sea, compiled, state, counters = short
    config = dataclasses.replace(compiled.config.ensemble, updates=20, batch_size=32, projection=4)
    config = dataclasses.replace(compiled.config, ensemble=config)

    def learned(seed):
        reward = cls(config, sea.obs_space, sea.action_space, key=jr.key(1))
        agent = replace_intrinsic(seed.agent, reward)
        seed = dataclasses.replace(seed, agent=agent, intrinsic_opt_state=reward.init_opt_state(seed.hypers))
        seed, _ = train.update_intrinsic(config, seed, counters)
        latent = Latent.stored(seed.ring.deter, seed.ring.stoch, seed.agent.model.rssm.classes, jnp.float32)
        paid = jax.vmap(
            lambda action: seed.agent.intrinsic(
                seed.agent.model, latent.feat, jnp.broadcast_to(action, (*seed.ring.action.shape, 2)), seed.hypers
            )
        )(jnp.eye(2))
        return measure_novelty(sea, seed.agent, seed.ring, seed.coverage, seed.hypers, key=jr.key(0)), paid

    one = pick(state, 1)
    measured, paid = jax.jit(learned)(one)
    rows, present = rows_of_states(one.coverage.where, SIZE * SIZE, key=jr.key(0))
    expected = np.asarray(paid).reshape(2, -1)[:, rows].mean(-1).T  # [actions, rows] -> [states, actions]
    np.testing.assert_allclose(measured.reward, np.where(present[:, None], expected, np.nan), rtol=1e-4)
    np.testing.assert_array_equal(measured.visits, one.coverage.visits)
    assert len(np.unique(np.asarray(measured.reward)[np.asarray(present)])) > 4


class MissedCounts(CountBonus):
    """Its loss is by how much the counts that it is given differ from a table's, of the states that its pairs show."""

    table: Int[Array, "X U"]

    def __init__(self, *about, table, key):
        super().__init__(*about, key=key)
        self.table = table

    def update(self, opt_state, model, pairs, counts, hypers):
        state, is_last = pairs.obs[0].reshape(pairs.is_last.shape[1], -1).argmax(-1), pairs.is_last[0]
        missed = counts.visits - jnp.where(is_last[:, None], 0, self.table[state])
        return self, opt_state, jnp.abs(missed).sum()


def test_a_reward_is_given_the_counts_of_the_states_that_its_pairs_begin_in(short):
    sea, compiled, state, counters = short
    ensemble = dataclasses.replace(compiled.config.ensemble, updates=2, batch_size=32)
    config = dataclasses.replace(compiled.config, ensemble=ensemble)
    one = pick(state, 1)

    @jax.jit
    def missed(one, table):
        reward = MissedCounts(config, sea.obs_space, sea.action_space, table=table, key=jr.key(1))
        agent, opt_state = replace_intrinsic(one.agent, reward), reward.init_opt_state(one.hypers)
        one = dataclasses.replace(one, agent=agent, intrinsic_opt_state=opt_state)
        return train.update_intrinsic(config, one, counters)[1]["loss/count"]

    assert missed(one, one.coverage.visits) == 0
    assert missed(one, one.coverage.visits + 1) > 0


def test_measuring_reads_and_changes_nothing(short):
    _, compiled, state, counters = short
    first, again = (compiled.measure(state, [0, 1, 2], int(counters.step)).novelty for _ in range(2))
    assert tree_equal(first.visits, again.visits)
    np.testing.assert_array_equal(first.reward, again.reward)


# ---- actions that are told apart ------------------------------------------------------------------------------------


def test_actions():
    discrete, continuous = ActionSpace("discrete", 3), ActionSpace("continuous", 2)
    assert (action_count(discrete), action_count(continuous)) == (3, 5)
    np.testing.assert_array_equal(action_index(discrete, jnp.array([2, 0])), [2, 0])
    taken = jnp.array(
        [[-7.0, 9], [-1.0, 0], [-0.61, 0], [-0.59, 0], [0.0, 0], [0.21, 0], [0.99, 0], [1.0, 0], [3.0, 0]]
    )
    np.testing.assert_array_equal(action_index(continuous, taken), [0, 0, 0, 1, 2, 3, 4, 4, 4])
    np.testing.assert_array_equal(action_vectors(discrete), np.eye(3))
    several = ActionSpace.of_choices(2, 3)
    assert action_count(several) == 2
    np.testing.assert_array_equal(action_index(several, jnp.array([[1, 2], [0, 2]])), [1, 0])
    np.testing.assert_array_equal(action_vectors(several), [[1, 0, 1, 0, 0], [0, 1, 1, 0, 0]])
    vectors = action_vectors(continuous)
    np.testing.assert_allclose(vectors, [[-0.8, 0], [-0.4, 0], [0, 0], [0.4, 0], [0.8, 0]], atol=1e-6)
    np.testing.assert_array_equal(action_index(continuous, vectors), range(5))
