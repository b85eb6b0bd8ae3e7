"""One small agent for all tests, and what costs a compile made once per session."""

import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Before jax starts. Four virtual CPU devices, so that sharding over devices is tested on any machine; and a compiler in
# a hurry, since the tests' programs run for milliseconds: XLA's passes for that, level 0, one module of machine code,
# since both cores have tests to run, and XLA's older emitters, which take half the time and memory, and which each
# version asks for in its own way (unknown flags are fatal). The last ones a program started as its own process would
# add (stages/sweep/start.py); flags are part of a compiled program's name, and so it finds what a test compiled.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=4",
        "--xla_cpu_opt_preset=FAST_COMPILE",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",
        {
            "0.10": "--xla_cpu_use_fusion_emitters=false --xla_backend_extra_options=xla_cpu_disable_loop_unrolling",
            "0.11": "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters=true",
        }.get(version("jaxlib").rpartition(".")[0], ""),
        "--xla_cpu_experimental_ynn_fusion_type=",
    ]
)
os.environ.setdefault("MPLBACKEND", "Agg")
# What one test compiled, another need not, nor another worker, nor a program that it starts, nor the next run of all
# tests: one folder for all. jax locks it where its size is bounded, and then fails at an entry that a killed process
# left without its time. Small programs compile sooner than they are stored.
COMPILED = Path(__file__).parents[1] / ".pytest_cache" / "compiled"
if "PYTEST_XDIST_WORKER" not in os.environ:
    for entry in COMPILED.glob("*-cache"):
        if not entry.with_name(entry.name.removesuffix("-cache") + "-atime").exists():
            entry.unlink()
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(COMPILED)
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2**31)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
# Where each operation stands in the source is a tenth of a small program's compiling, and only a profiler reads it.
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"

# Before they are imported: every annotated shape and type is checked wherever a test calls it, so that none can rot.
# Integers may stand for floats, as in pyright.
from jaxtyping import install_import_hook

install_import_hook(["stages", "envs"], "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import collections
import contextlib
import dataclasses
import functools
import gc
import io

import jax
import jax.random as jr
import numpy as np
import psutil
import pytest

import envs
import run
from envs import registry
from envs.environment import ObsSpace
from stages.agent import Agent, Targets
from stages.config import Config, EnsembleConfig, Hypers, ModelConfig, ReplayConfig
from stages.sweep import rounds, sweep
from stages.sweep.sweep import CompiledPhase

sweep.EACH_CHUNK = sweep.ONCE  # in a hurry, too

# Compiler options that take the hurry back. Of 0.11, emitters can be chosen for a whole process only.
AS_IN_A_RUN: dict[str, Any] = {"xla_backend_optimization_level": 3}
if version("jaxlib").startswith("0.10."):
    AS_IN_A_RUN |= {"xla_cpu_use_fusion_emitters": True}

# Modules, and tests of other modules, whose runs are of one configuration go to one process. Others go by module.
GROUPS = {
    **dict.fromkeys(
        ["test_best", "test_grid", "test_library", "test_novelty", "test_offline", "test_resume"], "rounds"
    ),
    "test_metrics::test_every_key_of_a_run_is_in_the_table[explore, then adapt]": "rounds",
    "test_run::test_a_run_leaves_its_files": "rounds",
    "test_run::test_explore_then_adapt": "rounds",
    "test_scale::test_a_sweep_too_big_for_memory_is_trained_in_rounds": "rounds",
    **dict.fromkeys(["test_run", "test_watch"], "mixed"),
    "test_metrics::test_every_key_of_a_run_is_in_the_table[mix]": "mixed",
    "test_notebook::test_it_runs_to_its_end": "mixed",
}
# They take longest, and begin first: else one process would end with them while the other has nothing to do.
LONGEST = ["rounds", "mixed", "test_learning", "test_scale", "test_sweep", "test_train"]
RESIDENT = 1.5e9  # bytes of a test process from which on it lets its programs go
SMALL = ModelConfig(deter=16, blocks=2, hidden=8, units=8, stoch=4, classes=4, depth=2, bins=15, layers=1)


def group_of(test: str) -> str:
    """The group of a test that pytest names so."""
    path, _, name = test.partition("::")
    module = Path(path).stem
    return GROUPS.get(f"{module}::{name}", GROUPS.get(module, module))


def pytest_collection_modifyitems(items):
    """The longest groups come first."""
    ranks = {group: rank for rank, group in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(group_of(item.nodeid), len(ranks)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A group's tests go to one process. (Marks are no way to say so: xdist 3.8 does not see them under pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    class GroupScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group_of(nodeid)

    return GroupScheduling(config, log)


@pytest.fixture(scope="module", autouse=True)
def programs_are_let_go():
    """A process of many programs lets them go with a module: thousands of them are gigabytes.

    Until then the next module finds the small ones that every test compiles. Tracing allocates much and leaves hardly
    any garbage; the collections that it sets off take a tenth of the time. One after each module does, of what the
    module made.
    """
    gc.disable()
    yield
    gc.enable()
    if psutil.Process().memory_info().rss > RESIDENT:
        jax.clear_caches()
        gc.unfreeze()
    gc.collect()
    gc.freeze()


class Shared(CompiledPhase):
    """A phase that runs of one configuration share, with programs for each width and length of chunks."""

    def prepare(self, state, counters, iterations, adapts=False):
        programs = self.__dict__.setdefault("programs", {})
        made = programs.setdefault((state.key.shape[0], iterations, adapts), [collections.Counter(), {}, None])
        self.traces, self._compiled, self._prepared = made
        made[2] = ((state.key.shape[0], iterations), super().prepare(state, counters, iterations, adapts))
        return made[2][1]


shared_phase = functools.cache(Shared)
shared_env = functools.cache(lambda name, args: registry.make(name, dict(args)))


@pytest.fixture(scope="module")
def compiled_once():
    """Runs of one configuration share their compiled programs, and nothing else: of this module, and of those before it
    in the process (GROUPS)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(envs, "make", lambda name, args: shared_env(name, tuple(args.items())))
        patch.setattr(rounds, "CompiledPhase", shared_phase)
        yield


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """recorded(*words) -> (folder, standard output) of a finished run, made once. Who changes the folder copies it."""

    @functools.cache
    def record(*words):
        folder, said = tmp_path_factory.mktemp("recorded") / "run", io.StringIO()
        with contextlib.redirect_stdout(said):
            assert run.main([*words, "--logdir", str(folder)]) == 0
        return folder, said.getvalue()

    return record


@pytest.fixture(scope="session")
def config() -> Config:
    """A run of seconds: Catch, 2 environments, windows of 8 rows."""
    return Config(
        env="Catch-bsuite",
        steps=400,
        envs=2,
        horizon=4,
        eval_episodes=4,
        model=SMALL,
        ensemble=EnsembleConfig(members=3, layers=1),
        replay=ReplayConfig(batch_size=4, batch_length=8, train_ratio=8),
    )


@pytest.fixture(scope="session")
def hypers() -> Hypers:
    """Defaults with a learning rate that shows after a few updates."""
    return Hypers(lr=1e-3, warmup=10.0)


@pytest.fixture(scope="session")
def env():
    """Catch, made once: two of one name would be two static objects."""
    return registry.make("Catch-bsuite", {})


@pytest.fixture(scope="session")
def mix_agent(config, env) -> Agent:
    """Every part that an agent can have."""
    mix = dataclasses.replace(config, mode="mix")
    return jax.jit(lambda key: Agent(mix, env.obs_space, env.action_space, key=key))(jr.key(0))


@pytest.fixture(scope="session")
def mix_targets(mix_agent) -> Targets:
    """Its slow critics and scales."""
    return Targets.of(mix_agent)


def to_device(x, dtype=None) -> jax.Array:
    """`x` as jax's array. jnp.asarray compiles a program for every shape; this does not."""
    return jax.device_put(np.asarray(x, dtype))


def arbitrary(make, seed=0):
    """What `make` makes, but with arbitrary weights: no layer at zero, and no initialiser to compile."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: to_device(rng.normal(0.2, 0.4, x.shape), x.dtype), jax.eval_shape(make))


WIDTHS = [(3, 11), (11, 3), (5, 5), (1, 4), (4, 1)]
"""Inputs and outputs, narrow to wide and wide to narrow: each transposes another factor of a product's gradient."""


def draw(*shape: int, seed: int = 1) -> np.ndarray:
    """Standard normal numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def scrambled(make: Callable, seed: int = 0):
    """The module that `make` makes, but with every leaf random, biases and norms' scales too: none can be left out."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: to_device(rng.normal(size=x.shape) * 0.7, np.float32), jax.eval_shape(make))


@jax.jit
def pick(tree, place):
    """What stands at a place of all arrays of a tree: one program, where each array would be several."""
    return jax.tree.map(lambda x: x[place], tree)


def observations(space: ObsSpace, lead: tuple[int, ...], seed: int = 0) -> jax.Array:
    """Random observations [*lead, *obs], in the space's storage type."""
    rng, shape = np.random.default_rng(seed), (*lead, *space.shape)
    if space.kind == "real":
        return to_device(10 * rng.normal(size=shape), space.dtype)
    top = {"binary": 2, "image": 256, "categorical": space.classes}[space.kind]
    return to_device(rng.integers(0, top, shape), space.dtype)


def tree_equal(a, b) -> bool:
    """Whether two trees hold the same numbers, to the bit (typed keys included)."""
    is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    raw = lambda x: np.asarray(jr.key_data(x) if is_key(x) else x)
    same = jax.tree.map(lambda x, y: bool((raw(x) == raw(y)).all()), a, b)
    return all(jax.tree.leaves(same))
