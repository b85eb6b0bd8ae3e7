"""optimizer.py and fast/rows.py against plain numpy: tensors as rows, clipping, LaProp, warm-up.

Axes: M members.
"""

import functools

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from envs.environment import ActionSpace, ObsSpace
from stages.agent import Agent
from stages.config import Config, EnsembleConfig, Hypers, ModelConfig
from stages.ensemble import Ensemble
from stages.fast.rows import WIDTH, from_rows, norm, tensor_rows, tensor_sums, to_rows
from stages.fast.stacked import Stacked
from stages.networks.heads import Actor
from stages.networks.layers import Linear
from stages.optimizer import adaptive_clip, drop_opt_state, optimizer
from tests.conftest import arbitrary, draw, to_device

close = chex.assert_trees_all_close
HYPERS = Hypers(lr=1e-2, warmup=4.0)
LEAVES = jax.tree_util.tree_leaves_with_path
numbers = functools.partial(jax.tree.map, np.asarray)


def is_stacked(path) -> bool:
    """Whether a leaf has a leading axis of members, from its name."""
    return jax.tree_util.keystr(path).startswith(".intrinsic")


def gradients(agent: Agent, step: int) -> Agent:
    """Random ones; each tensor's (each member's) size is far below or far above what adaptive clipping lets through."""
    rng = np.random.default_rng(step)

    def one(path, x):
        sizes = (len(x), *[1] * (x.ndim - 1)) if is_stacked(path) else ()
        return np.float32(10.0 ** rng.uniform(-6, 3, sizes) * rng.normal(size=x.shape))

    return jax.tree_util.tree_map_with_path(one, agent)


def second_huge(x) -> np.ndarray:
    """`x` of several members, with a million in the second one's places."""
    return np.stack([np.full_like(part, 1e6) if m == 1 else part for m, part in enumerate(np.asarray(x))])


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
def train(agent: eqx.Module, state, grads: eqx.Module):
    """One step of the optimiser under test."""
    updates, state = optimizer(HYPERS).update(grads, state, agent)
    return optax.apply_updates(agent, updates), state


@pytest.fixture(scope="module")
def start(mix_agent) -> Agent:
    """An agent whose leaves are of very different norms, some of them zero."""
    rng = np.random.default_rng(100)
    sized = lambda x: x if not x.any() else x * np.float32(10.0 ** rng.uniform(-4, 1))
    return jax.tree.map(lambda x: to_device(sized(np.asarray(x))), mix_agent)


def test_optimizer_agrees_with_numpy(start):
    agent, state, begun = start, optimizer(HYPERS).init(start), numbers(start)
    slow = [[SlowLaProp(part) for part in (x if is_stacked(path) else x[None])] for path, x in LEAVES(begun)]
    for step in range(7):
        grads = gradients(start, step)
        agent, state = train(agent, state, grads)
        for parts, (path, grad) in zip(slow, LEAVES(grads), strict=True):
            for part, g in zip(parts, grad if is_stacked(path) else grad[None], strict=True):
                part.step(g)
        for parts, (path, x), (_, begin) in zip(slow, LEAVES(numbers(agent)), LEAVES(begun), strict=True):
            moved = np.float64(x) - np.float64(begin)
            by_hand = np.stack([part.param for part in parts]).reshape(x.shape) - np.float64(begin)
            rounding = 3e-6 * np.abs(begin).max()
            error = np.abs(moved - by_hand).max()
            assert error <= 2e-4 * HYPERS.lr * step + rounding, f"step {step}, {jax.tree_util.keystr(path)}: {error}"


def norms(tree: Agent):
    """(name, norm) of every tensor, members and rewards one by one."""
    for path, x in LEAVES(numbers(tree)):
        for i, part in enumerate(x if is_stacked(path) else x[None]):
            yield f"{jax.tree_util.keystr(path)}[{i}]", np.linalg.norm(np.float64(part).ravel())


@jax.jit
def clip(grads: eqx.Module, params: eqx.Module) -> eqx.Module:
    """Adaptive clipping alone."""
    return from_rows(adaptive_clip(to_rows(grads), to_rows(params), tensor_rows(params), 0.3), params)


def test_a_huge_gradient_is_cut_to_a_share_of_its_parameter(start):
    huge = jax.tree.map(lambda x: x * 1e9, gradients(start, 0))
    clipped = clip(huge, start)
    for (name, grad), (_, param) in zip(norms(clipped), norms(start), strict=True):
        close(grad, 0.3 * max(1e-3, param), rtol=1e-4, custom_message=name)
    one, other = (np.ravel(jax.tree.leaves(x)[0]) for x in (huge, clipped))
    close(one / np.linalg.norm(one), other / np.linalg.norm(other), rtol=1e-4)  # its direction stays


def test_a_small_gradient_passes_untouched(start):
    small = jax.tree.map(lambda x: x * 1e-12, gradients(start, 0))
    chex.assert_trees_all_equal(clip(small, start), small)


def test_one_members_gradient_does_not_clip_another(start):
    small = jax.tree.map(lambda x: x * 1e-12, gradients(start, 0).intrinsic)
    one_huge = jax.tree.map(second_huge, small)
    grads = eqx.tree_at(lambda a: a.intrinsic, gradients(start, 0), one_huge)
    clipped = clip(grads, start)
    for x, y in zip(jax.tree.leaves(numbers(clipped.intrinsic)), jax.tree.leaves(one_huge), strict=True):
        np.testing.assert_array_equal(x[[0, 2]], y[[0, 2]])
        assert np.abs(x[1]).max() < 1e6


def test_a_member_trains_as_it_would_alone(start):
    pick = lambda ensemble, m: jax.tree.map(lambda x: np.asarray(x)[m : m + 1], ensemble)
    alone_of = lambda tree, m: eqx.tree_at(lambda a: a.intrinsic, tree, pick(tree.intrinsic, m))
    together, state = start, optimizer(HYPERS).init(start)
    alone = [(a, optimizer(HYPERS).init(a)) for a in (alone_of(start, m) for m in range(3))]
    for step in range(4):
        grads = gradients(start, step)
        together, state = train(together, state, grads)
        alone = [train(*pair, alone_of(grads, m)) for m, pair in enumerate(alone)]
    members = [agent.intrinsic.ensemble for agent, _ in alone]
    joined = jax.tree.map(lambda *x: np.concatenate(x), *members)
    close(together.intrinsic.ensemble, joined, rtol=1e-6)
    assert isinstance(joined, Ensemble)


def test_warm_up_is_linear_and_then_the_rate_stays(start):
    # A small constant gradient is not clipped; its own RMS makes it 1, and 1 is what its mean stays at.
    grads, agent, state = jax.tree.map(lambda x: np.full_like(x, 1e-6), start), start, optimizer(HYPERS).init(start)
    biases = []
    for _ in range(7):
        biases.append(np.asarray(agent.tasker.actor.head.out.bias)[0])
        agent, state = train(agent, state, grads)
    moves = np.diff(np.array(biases))
    close(moves, np.float32(-HYPERS.lr * np.array([0, 0.25, 0.5, 0.75, 1, 1])), rtol=1e-4)


@pytest.mark.parametrize("warmup", [0.0, 0.5])
def test_without_warm_up_the_first_step_has_the_whole_rate(start, warmup):
    hypers = Hypers(lr=1e-2, warmup=warmup)
    grads, state = jax.tree.map(lambda x: np.full_like(x, 1e-6), start), optimizer(hypers).init(start)
    updates, _ = jax.jit(optimizer(hypers).update)(grads, state, start)
    for update in jax.tree.leaves(updates):
        close(update, np.full_like(update, -1e-2), rtol=1e-4)


# ---- weights as rows -----------------------------------------------------------------------------------------------


def test_rows_hold_every_tensor_from_a_row_of_its_own(start):
    rows, at = np.asarray(jax.jit(to_rows)(start)), 0
    tensors = [part for path, x in LEAVES(numbers(start)) for part in (x if is_stacked(path) else x[None])]
    counts = tensor_rows(start)
    assert len(counts) == len(tensors) and rows.shape == (counts.sum(), WIDTH)
    for tensor, count in zip(tensors, counts, strict=True):
        assert count == -(-tensor.size // WIDTH)
        mine = rows[at : at + count].ravel()
        np.testing.assert_array_equal(mine[: tensor.size], np.ravel(tensor))
        assert not mine[tensor.size :].any()
        at += count


def test_rows_go_back_to_what_they_were(start):
    chex.assert_trees_all_equal(jax.jit(lambda x: from_rows(to_rows(x), x))(start), start)


def test_norm_is_of_all_numbers(start):
    values = np.concatenate([np.float64(x).ravel() for x in jax.tree.leaves(start)])
    close(jax.jit(norm)(start), np.sqrt((values**2).sum()), rtol=1e-5)


def test_rows_of_shapes_are_those_of_numbers(start):
    np.testing.assert_array_equal(tensor_rows(jax.eval_shape(lambda: start)), tensor_rows(start))


@pytest.mark.parametrize("counts", [[1], [1, 1, 1], [64], [65, 1], [3, 4096, 4097, 1, 63, 9000]])
def test_sums_of_stretches(counts):
    x = np.random.default_rng(0).normal(size=(2, sum(counts))).astype(np.float32)
    expected = [[part.sum() for part in np.split(np.float64(row), np.cumsum(counts)[:-1])] for row in x]
    sums = jax.jit(lambda x: tensor_sums(x, np.array(counts)))(x)
    np.testing.assert_allclose(sums, expected, rtol=1e-5, atol=1e-4)


class Parts(eqx.Module):
    """A stacked module between two others, and more of it behind."""

    first: Linear
    several: Stacked
    last: Linear | None


def test_a_stacked_module_says_so_itself_wherever_it_stands():
    make = lambda key: Linear(3, 2, key=key)
    parts = arbitrary(lambda: Parts(make(jr.key(0)), Stacked(make, jr.split(jr.key(1), 5)), make(jr.key(2))))
    assert len(parts.several) == 5
    np.testing.assert_array_equal(tensor_rows(parts), np.ones(2 + 5 * 2 + 2))
    huge = jax.tree.map(lambda x: jnp.full_like(x, 1e6), parts)
    huge = eqx.tree_at(lambda p: p.several.module.weight, huge, huge.several.module.weight.at[1:].set(1e-9))
    clipped = clip(huge, parts)
    np.testing.assert_array_equal(clipped.several.module.weight[1:], huge.several.module.weight[1:])
    assert (clipped.several.module.weight[0] < 1).all()


def test_a_continuous_actors_mean_and_deviation_are_clipped_apart():
    model, actions = ModelConfig(deter=4, stoch=2, classes=2, units=8, layers=1), ActionSpace("continuous", 3)
    actor = arbitrary(lambda: Actor(model, actions, key=jr.key(0)))
    noise = to_device(draw(5, model.feat))

    @functools.partial(jax.jit, static_argnums=0)
    def only(half):
        """The gradient of the outputs' mean half or deviation half, huge."""
        return jax.grad(lambda a: 1e6 * jnp.split(a.head(noise), 2, -1)[half].sum())(actor)

    both = jax.tree.map(lambda x, y: np.asarray(x) + np.float32(1e-12) * np.asarray(y), only(0), only(1))
    clipped = clip(both, actor)
    weight, raw = clipped.head.out.parts.module.weight, both.head.out.parts.module.weight
    close(np.linalg.norm(weight[0]), 0.3 * np.linalg.norm(actor.head.out.parts.module.weight[0]), rtol=1e-3)
    chex.assert_trees_all_equal(weight[1], raw[1])  # however large the other one's is


def test_an_ensembles_members_are_clipped_one_by_one():
    sizes = EnsembleConfig(members=3, layers=1)
    config = Config(mode="explore", model=ModelConfig(deter=4, stoch=2, classes=2, units=8, layers=1), ensemble=sizes)
    ensemble = arbitrary(lambda: Ensemble(config, ObsSpace((5,), "real"), 2, key=jr.key(0)))
    # weight, bias and norm of each member's one hidden layer, and its output's weight and bias
    assert len(tensor_rows(ensemble)) == 3 * (3 + 2)
    grads = jax.tree.map(lambda x: np.full_like(x, 1e-9), ensemble)
    grads = eqx.tree_at(lambda e: e.members, grads, replace_fn=lambda members: jax.tree.map(second_huge, members))
    clipped = clip(grads, ensemble)
    for path, x in LEAVES(numbers(ensemble)):
        (before,), (after,) = ([leaf for p, leaf in LEAVES(numbers(tree)) if p == path] for tree in (grads, clipped))
        for m in range(3):
            largest = 0.3 * max(1e-3, np.linalg.norm(np.float64(x[m])))
            expected = before[m] * min(1, largest / np.linalg.norm(np.float64(before[m])))
            close(after[m], np.float32(expected), rtol=1e-4)


@pytest.mark.parametrize("gone", ["first", "last"])
def test_shed_moments_are_those_of_the_parts_that_stay(gone):
    """Whether what goes stands before or behind what stays."""
    make = lambda key: Linear(3, 50, key=key)
    parts = arbitrary(lambda: Parts(make(jr.key(0)), Stacked(make, jr.split(jr.key(1), 2)), make(jr.key(2))))
    state = optimizer(HYPERS).init(parts)
    for seed in range(3):
        grads = jax.tree.map(lambda x, seed=seed: draw(*x.shape, seed=seed), parts)
        _, state = train(parts, state, grads)
    after = eqx.tree_at(lambda p: getattr(p, gone), parts, None)
    kept = drop_opt_state(state, parts, after)
    chex.assert_trees_all_equal_shapes(kept, optimizer(HYPERS).init(after))
    for now, then in zip(jax.tree.leaves(kept), jax.tree.leaves(state), strict=True):
        if not then.ndim:
            chex.assert_trees_all_equal(now, then)
            continue
        expected = eqx.tree_at(lambda p: getattr(p, gone), from_rows(then, parts), None)
        chex.assert_trees_all_equal(from_rows(now, after), expected)
        assert (np.asarray(now) != 0).any()
