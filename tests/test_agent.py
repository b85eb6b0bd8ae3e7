"""stages/agent.py: sizes equal to the reference's, and the optimiser against plain numpy.

Axes: M members, R rewards.
"""

import dataclasses
import itertools

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from envs.environment import ActionSpace, ObsSpace
from stages.agent import Agent, Targets, adaptive_clip, collector, optimizer, parameter_counts
from stages.config import Config, Hypers, preset
from stages.ensemble import Ensemble

close = chex.assert_trees_all_close
OBS, ACTIONS = ObsSpace((50,), "real"), ActionSpace("discrete", 3)
HYPERS = Hypers(lr=1e-2, warmup=4.0)
LEAVES = jax.tree_util.tree_leaves_with_path


def shapes_of(config: Config, obs: ObsSpace = OBS, actions: ActionSpace = ACTIONS) -> Agent:
    """The agent's shapes; no number is drawn."""
    return jax.eval_shape(lambda key: Agent(config, obs, actions, key=key), jr.key(0))


# ---- sizes ---------------------------------------------------------------------------------------------------------


def test_parameters_of_size_1m_by_part():
    assert parameter_counts(shapes_of(preset("1m")[0])) == {
        "dynamics": 364_224,
        "encoder": 11_776,
        "decoder": 52_786,
        "reward": 57_663,
        "continue": 41_153,
        "actor": 49_731,
        "critic": 66_111,
    }


@pytest.mark.parametrize("name, total", [("1m", 643_444), ("12m", 9_748_276), ("micro", 223_604)])
def test_parameters_in_total(name, total):
    agent = shapes_of(preset(name)[0])
    assert sum(parameter_counts(agent).values()) == total == sum(x.size for x in jax.tree.leaves(agent))


@pytest.mark.parametrize("mode, rewards", [("explore", 1), ("mix", 2)])
def test_parameters_of_exploration(mode, rewards):
    config = dataclasses.replace(preset("1m")[0], mode=mode)
    counts = parameter_counts(shapes_of(config))
    assert counts["critic"] == 66_111  # the tasker's, always one
    assert counts["explorer"] == counts["actor"] + rewards * counts["critic"]
    feat, units, outputs = 512 + 32 * 4, 64, 32 * 4
    member = (feat + 3) * units + 2 * units + units * units + 2 * units + units * outputs + outputs
    assert counts["ensemble"] == config.ensemble.members * member


def test_every_leaf_is_a_float32_array(mix_agent):
    assert all(isinstance(x, jax.Array) and x.dtype == jnp.float32 for x in jax.tree.leaves(mix_agent))


# ---- parts ---------------------------------------------------------------------------------------------------------


def test_modes_have_the_parts_that_they_need(config):
    task, explore, mix = (shapes_of(dataclasses.replace(config, mode=m)) for m in ("task", "explore", "mix"))
    assert task.explorer is None and task.ensemble is None and jax.eval_shape(Targets.of, task).explorer is None
    chex.assert_shape([a.tasker.critics.head.out.bias for a in (task, explore, mix)], (1, config.model.bins))
    chex.assert_shape(explore.explorer.critics.head.out.bias, (1, config.model.bins))
    chex.assert_shape(mix.explorer.critics.head.out.bias, (2, config.model.bins))


def test_who_collects(mix_agent):
    assert collector(mix_agent, "task") is mix_agent.tasker
    assert collector(mix_agent, "mix") is collector(mix_agent, "explore") is mix_agent.explorer
    adapted = eqx.tree_at(lambda a: (a.explorer, a.ensemble), mix_agent, (None, None))
    assert collector(adapted, "mix") is adapted.tasker


def stacked_weights(agent: Agent):
    """(name, weight) of every matrix that has a leading axis of members or rewards."""
    parts = {"ensemble": agent.ensemble, "critics": agent.explorer.critics}
    for name, part in parts.items():
        for path, leaf in LEAVES(part):
            if leaf.ndim == 3 and leaf.any():  # not the critics' output layer: zero at the start
                yield name + jax.tree_util.keystr(path), np.asarray(leaf)


def test_members_and_critics_differ_at_the_start(mix_agent):
    for name, weight in stacked_weights(mix_agent):
        for one, other in itertools.combinations(weight, 2):
            correlation = np.corrcoef(one.ravel(), other.ravel())[0, 1]
            assert abs(correlation) < 0.6, f"{name}: correlation {correlation}"


def test_explorer_and_tasker_differ_at_the_start(mix_agent):
    one, other = (b.actor.head.mlp.layers[0].linear.weight for b in (mix_agent.explorer, mix_agent.tasker))
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.5


def test_slow_critics_start_as_the_critics(mix_agent, mix_targets):
    chex.assert_trees_all_equal(mix_targets.explorer.slow, mix_agent.explorer.critics)
    chex.assert_trees_all_equal(mix_targets.tasker.slow, mix_agent.tasker.critics)
    chex.assert_trees_all_equal_shapes(mix_targets.explorer.scale.low, jnp.zeros(2))
    chex.assert_trees_all_equal(*[jax.tree.leaves(mix_targets.tasker.scale), [jnp.zeros(1)] * 3])


# ---- optimiser -----------------------------------------------------------------------------------------------------


def is_stacked(path) -> bool:
    """Whether a leaf has a leading axis of members or rewards, from its name."""
    name = jax.tree_util.keystr(path)
    return name.startswith(".ensemble") or ".critics" in name


def gradients(agent: Agent, step: int) -> Agent:
    """Random ones; each tensor's (each member's) size is far below or far above what adaptive clipping lets through."""
    rng = np.random.default_rng(step)

    def one(path, x):
        sizes = (len(x), *[1] * (x.ndim - 1)) if is_stacked(path) else ()
        return jnp.asarray(10.0 ** rng.uniform(-6, 3, sizes) * rng.normal(size=x.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(one, agent)


class SlowLaProp:
    """The optimiser of one tensor, in float64: AGC, RMS, momentum, warm-up, in this order."""

    def __init__(self, param):
        self.param = np.float64(param)
        self.square, self.mean, self.count = np.zeros(param.shape), np.zeros(param.shape), 0

    def step(self, grad) -> None:
        largest = 0.3 * max(1e-3, np.sqrt((self.param**2).sum()))
        norm = np.sqrt((np.float64(grad) ** 2).sum())
        grad = np.float64(grad) * (largest / norm if norm > largest else 1)
        self.count += 1
        self.square = 0.999 * self.square + 0.001 * grad**2
        grad = grad / (np.sqrt(self.square / (1 - 0.999**self.count)) + 1e-20)
        self.mean = 0.9 * self.mean + 0.1 * grad
        warm = min(1, (self.count - 1) / HYPERS.warmup)  # the first step is zero, as the reference's
        self.param = self.param - HYPERS.lr * warm * self.mean / (1 - 0.9**self.count)


@jax.jit
def train(agent: Agent, state, grads: Agent):
    """One step of the optimiser under test."""
    updates, state = optimizer(HYPERS).update(grads, state, agent)
    return optax.apply_updates(agent, updates), state


@pytest.fixture(scope="module")
def start(mix_agent) -> Agent:
    """An agent whose leaves are of very different norms, some of them zero."""
    rng = np.random.default_rng(100)
    size = lambda x: 10.0 ** rng.uniform(-4, 1)
    return jax.tree.map(lambda x: x if not x.any() else x * size(x), mix_agent)


def test_optimizer_agrees_with_numpy(start):
    agent, state = start, optimizer(HYPERS).init(start)
    slow = [[SlowLaProp(part) for part in (x if is_stacked(path) else x[None])] for path, x in LEAVES(start)]
    for step in range(7):
        grads = gradients(start, step)
        agent, state = train(agent, state, grads)
        for parts, (path, grad) in zip(slow, LEAVES(grads), strict=True):
            for part, g in zip(parts, grad if is_stacked(path) else grad[None], strict=True):
                part.step(g)
        for parts, (path, x), (_, begin) in zip(slow, LEAVES(agent), LEAVES(start), strict=True):
            moved = np.float64(x) - np.float64(begin)
            by_hand = np.stack([part.param for part in parts]).reshape(x.shape) - np.float64(begin)
            rounding = 3e-6 * np.abs(np.asarray(begin)).max()
            error = np.abs(moved - by_hand).max()
            assert error <= 2e-4 * HYPERS.lr * step + rounding, f"step {step}, {jax.tree_util.keystr(path)}: {error}"


def norms(tree: Agent):
    """(name, norm) of every tensor, members and rewards one by one."""
    for path, x in LEAVES(tree):
        for i, part in enumerate(x if is_stacked(path) else x[None]):
            yield f"{jax.tree_util.keystr(path)}[{i}]", np.linalg.norm(np.float64(part).ravel())


@jax.jit
def clip(grads: Agent, params: Agent) -> Agent:
    """Adaptive clipping alone."""
    return adaptive_clip(0.3).update(grads, optax.EmptyState(), params)[0]


def test_a_huge_gradient_is_cut_to_a_share_of_its_parameter(start):
    huge = jax.tree.map(lambda x: x * 1e9, gradients(start, 0))
    clipped = clip(huge, start)
    for (name, norm), (_, param) in zip(norms(clipped), norms(start), strict=True):
        close(norm, 0.3 * max(1e-3, param), rtol=1e-4, custom_message=name)
    one, other = (jax.tree.leaves(x)[0].ravel() for x in (huge, clipped))
    close(one / jnp.linalg.norm(one), other / jnp.linalg.norm(other), rtol=1e-4)  # its direction stays


def test_a_small_gradient_passes_untouched(start):
    small = jax.tree.map(lambda x: x * 1e-12, gradients(start, 0))
    chex.assert_trees_all_equal(clip(small, start), small)


def test_one_members_gradient_does_not_clip_another(start):
    small = jax.tree.map(lambda x: x * 1e-12, gradients(start, 0).ensemble)
    one_huge = jax.tree.map(lambda x: x.at[1].set(1e6), small)
    grads = eqx.tree_at(lambda a: a.ensemble, gradients(start, 0), one_huge)
    clipped = clip(grads, start)
    for x, y in zip(jax.tree.leaves(clipped.ensemble), jax.tree.leaves(one_huge), strict=True):
        chex.assert_trees_all_equal(x[0], y[0])
        chex.assert_trees_all_equal(x[2], y[2])
        assert jnp.abs(x[1]).max() < 1e6


def test_a_member_trains_as_it_would_alone(start):
    pick = lambda ensemble, m: jax.tree.map(lambda x: x[m : m + 1], ensemble)
    alone_of = lambda tree, m: eqx.tree_at(lambda a: a.ensemble, tree, pick(tree.ensemble, m))
    together, state = start, optimizer(HYPERS).init(start)
    alone = [(a, optimizer(HYPERS).init(a)) for a in (alone_of(start, m) for m in range(3))]
    for step in range(4):
        grads = gradients(start, step)
        together, state = train(together, state, grads)
        alone = [train(*pair, alone_of(grads, m)) for m, pair in enumerate(alone)]
    members = [agent.ensemble for agent, _ in alone]
    joined = jax.tree.map(lambda *x: jnp.concatenate(x), *members)
    close(together.ensemble, joined, rtol=1e-6)
    assert isinstance(joined, Ensemble)


def test_warm_up_is_linear_and_then_the_rate_stays(start):
    # A small constant gradient is not clipped; its own RMS makes it 1, and 1 is what its mean stays at.
    grads, agent, state = jax.tree.map(lambda x: jnp.full_like(x, 1e-6), start), start, optimizer(HYPERS).init(start)
    biases = []
    for _ in range(7):
        biases.append(agent.tasker.actor.head.out.bias[0])
        agent, state = train(agent, state, grads)
    moves = np.diff(np.array(biases))
    close(moves, np.float32(-HYPERS.lr * np.array([0, 0.25, 0.5, 0.75, 1, 1])), rtol=1e-4)
