"""Seeds side by side: one seed's functions under vmap, sharded over devices, and compiled for one phase of a run."""

import collections
import concurrent.futures
import functools
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from envs.environment import Environment
from stages import train
from stages.agent import parameter_counts
from stages.collect import Episodes
from stages.config import Config, Hypers
from stages.evaluate import Evaluation, evaluate
from stages.measure.measurement import Measurement, measure
from stages.replay import StepCounters
from stages.sweep import memory
from stages.sweep.start import usable_cores
from stages.train import Progress, TrainState

FIRST_MEASURE_STREAM = 2**31
"""The first random stream of measurements (`keys_of`): theirs are this number and above."""
CPU_VMAP_WIDTH = 1
"""Seeds that a CPU device computes at once, measured: see docs/speed.md."""
ONCE, EACH_CHUNK = 0, 1
"""XLA's optimisation levels on a CPU: of programs that run once, and of programs that run after each chunk."""


def mesh_for(seeds: int, devices: memory.Devices | None = None) -> Mesh:
    """The most devices that share the seeds out evenly."""
    devices = list(jax.devices() if devices is None else devices)
    count = max(d for d in range(1, len(devices) + 1) if seeds % d == 0)
    return Mesh(np.array(devices[:count]), ("seeds",))


def keys_of(seeds: Sequence[int], stream: int) -> jax.Array:
    """A key for each seed. Random stream 0 trains; those from FIRST_MEASURE_STREAM on measure; all others evaluate."""
    keys = jax.vmap(jr.key)(jnp.asarray(seeds, jnp.uint32))
    return jax.vmap(jr.fold_in, (0, None))(keys, stream)


def over_seeds(mesh: Mesh, fn: Callable, seed_args: int, has_counters: bool, vmap_width: int = 0) -> Callable:
    """`fn` of one seed -> a function of a sweep: the first `seed_args` arguments have a seed axis, and so do results.

    With `has_counters`, the last argument and the second result are the counters. They are the same for all seeds and
    never batched. With `vmap_width`, a device computes at most that many seeds at once (in_lanes).
    """
    axes = (0,) * seed_args + ((None,) if has_counters else ())
    out_axes: Any = (0, None, 0) if has_counters else 0
    specs = tuple(P("seeds") if a == 0 else P() for a in axes)
    out_specs: Any = (P("seeds"), P(), P("seeds")) if has_counters else P("seeds")
    batched = in_lanes(fn, vmap_width) if vmap_width else jax.vmap(fn, in_axes=axes, out_axes=out_axes)
    return jax.shard_map(batched, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=False)


def in_lanes(fn: Callable, vmap_width: int) -> Callable:
    """`fn(state, counters) -> (state, counters, progress)` of one seed -> of seeds [S, ...], `vmap_width` at a time.

    Each lane runs to the end before the next begins, so that a processor's cache holds the lane's whole state. That
    state is sliced from the state of all seeds and written back to it. A lane of one seed has no seed axis. A single
    lane works in place.
    """

    # A lane's index is never negative. Without this argument XLA compiles a check of that for every array.
    take = functools.partial(lax.dynamic_index_in_dim, keepdims=False, allow_negative_indices=False)
    put = functools.partial(lax.dynamic_update_index_in_dim, allow_negative_indices=False)

    def run(state, counters):
        seeds = jax.tree.leaves(state)[0].shape[0]
        width = max(w for w in range(1, min(vmap_width, seeds) + 1) if seeds % w == 0)
        batched = fn if width == 1 else jax.vmap(fn, in_axes=(0, None), out_axes=(0, None, 0))
        lanes = state if width == 1 else jax.tree.map(lambda x: x.reshape(-1, width, *x.shape[1:]), state)

        def one(carry, lane):
            lanes, _ = carry
            part, after, progress = batched(jax.tree.map(lambda x: _row_major(take(x, lane)), lanes), counters)
            lanes = jax.tree.map(lambda x, new: put(x, _row_major(new), lane, 0), lanes, part)
            return (lanes, after), progress

        if width < seeds:
            (lanes, after), progress = lax.scan(one, (lanes, counters), jnp.arange(seeds // width))
        else:
            part, after, progress = batched(jax.tree.map(lambda x: _row_major(x.reshape(x.shape[1:])), lanes), counters)
            lanes, progress = jax.tree.map(lambda x: _row_major(x.reshape(1, *x.shape)), (part, progress))
        axes = 2 if width > 1 else 1
        lanes, progress = jax.tree.map(lambda x: x.reshape(seeds, *x.shape[axes:]), (lanes, progress))
        return lanes, after, progress

    return run


def _row_major(x: jax.Array) -> jax.Array:
    """`x` with a row-major layout: XLA may order axes of length 1 in another way, and then copies the whole ring.
    An array of one axis has only one layout and is returned as it is."""
    if x.ndim < 2 or jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return x
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def vmap_width_of(config: Config, mesh: Mesh) -> int:
    """Seeds that a device computes at once; 0 is all."""
    return config.vmap_width or (CPU_VMAP_WIDTH if mesh.devices.flat[0].platform == "cpu" else 0)


def _fast_compile_options(mesh: Mesh, level: int) -> dict[str, int | bool] | None:
    """Compiler options of a program that runs seldom: on a CPU, full optimisation takes longer than running it."""
    if mesh.devices.flat[0].platform != "cpu":
        return None
    # jaxlib 0.10 still has its older emitters: they compile in half the time, and some kernels are slower.
    emitters = {"xla_cpu_use_fusion_emitters": False} if version("jaxlib").startswith("0.10.") else {}
    return {"xla_backend_optimization_level": level} | emitters


def _measure_inputs(state: TrainState) -> tuple[PyTree, ...]:
    """The parts of a state that `measure` reads."""
    return state.agent, state.ring, state.coverage, state.hypers, state.env_params


class CompiledPhase:
    """The compiled programs of one phase of a run, for one environment, Config and mesh. States are donated.

    `traces` counts how often each program was traced. The training loop asserts that `train_chunk` was traced once.
    """

    def __init__(self, env: Environment, config: Config, mesh: Mesh):
        self.config, self.mesh = config, mesh
        self.traces = collections.Counter()
        wrap = functools.partial(over_seeds, mesh)

        def init(hypers, key):
            return train.init(env, config, hypers, key=key)

        def prefill(state, counters):
            return train.collect_steps(env, config, state, counters, config.prefill)

        def train_chunk(iterations, state, counters):
            self.traces["train_chunk"] += 1
            return train.train_chunk(env, config, iterations, state, counters)

        def score(agent, hypers, env_params, key):
            self.traces["evaluate"] += 1
            return evaluate(env.with_params(env_params), agent, config, hypers, key=key)

        def take(agent, ring, coverage, hypers, env_params, step, key):
            return measure(env.with_params(env_params), config, agent, ring, coverage, step, hypers, key=key)

        def jit(level: int) -> Callable[..., jax.stages.Wrapped]:
            return functools.partial(jax.jit, compiler_options=_fast_compile_options(mesh, level))

        self._jitted = {
            "init": jit(ONCE)(wrap(init, 2, False)),
            "prefill": jit(ONCE)(wrap(prefill, 1, True), donate_argnums=0),
            "adapt": jit(ONCE)(wrap(train.adapt, 1, False), donate_argnums=0),
            "evaluate": jit(EACH_CHUNK)(wrap(score, 4, False)),
            "measure": jit(EACH_CHUNK)(wrap(take, 7, False)),
        }
        vmap_width = vmap_width_of(config, mesh)
        self._train_chunk = lambda n: jax.jit(
            wrap(functools.partial(train_chunk, n), 1, True, vmap_width), donate_argnums=0
        )
        self._compiled: dict[int | str, jax.stages.Compiled] = {}  # train_chunk by its iterations
        self._prepared: tuple[tuple[int, int], float] | None = None  # (seeds, iterations) of `prepare`, and its result

    def shapes(self, seeds: int) -> tuple[TrainState, StepCounters]:
        """The state of so many seeds after `prefill`, and the counters, as shapes: nothing is computed or allocated."""
        traced = self._jitted["init"].trace(self._hyper_shapes(seeds), self._key_shapes(seeds))
        return self._placed(traced.out_info, P("seeds")), self._placed(jax.eval_shape(StepCounters.zero), P())

    def adapted_shapes(self, state: TrainState) -> TrainState:
        """The shapes of what `adapt` makes of a state of these shapes."""
        return self._placed(jax.eval_shape(jax.vmap(train.adapt), state), P("seeds"))

    def parameters(self, seeds: int) -> dict[str, int]:
        """Parameter counts of a seed, by part, from the shapes of so many seeds side by side."""
        state, _ = self.shapes(seeds)
        return parameter_counts(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), state.agent))

    def min_bytes_per_seed(self, state: TrainState) -> float:
        """A lower bound of the bytes that one seed needs in addition to its state, from shapes alone.

        While it trains, these are in memory at once: a batch, its features, what two heads store for their gradients,
        and imagination's noise. While it is evaluated, a row of each episode is. Only the compiler knows the exact
        need, but if this bound does not fit there is no need to compile.
        """
        model, half = self.config.model, 2  # bytes of bfloat16
        row = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.ring)) / state.ring.reward.size
        starts = self.config.replay.batch_size * self.config.replay.batch_length
        kept, noise = (model.feat + 2 * model.units) * half, self.config.horizon * model.stoch * 4
        return max(starts * (row + kept + noise), self.config.eval_episodes * row)

    def prepare(self, state: TrainState, counters: StepCounters, iterations: int, adapts: bool = False) -> float:
        """Compile all programs from shapes alone, unless they are compiled already.

        Args:
            adapts: whether this phase continues from the state of an exploring phase. `state` then has the shapes of
                that phase, and `adapt` is compiled instead of `init` and `prefill`.

        Returns:
            bytes of memory that a device needs at the most demanding moment.
        """
        seeds, before = state.key.shape[0], state
        if self._prepared and self._prepared[0] == (seeds, iterations):
            return self._prepared[1]
        keys = self._key_shapes(seeds)
        state = self.adapted_shapes(before) if adapts else before
        step = self._placed(jax.ShapeDtypeStruct(keys.shape, jnp.int32), P("seeds"))
        # The longest first. One on each core, since each takes memory; the next is traced while one compiles.
        jobs = {
            "train_chunk": (self._train_chunk(iterations), state, counters),
            "evaluate": (self._jitted["evaluate"], state.agent, state.hypers, state.env_params, keys),
            "measure": (self._jitted["measure"], *_measure_inputs(state), step, keys),
        }
        if adapts:
            jobs["adapt"] = (self._jitted["adapt"], before)
        else:
            jobs["init"] = (self._jitted["init"], state.hypers, keys)
            jobs["prefill"] = (self._jitted["prefill"], state, counters)
        with concurrent.futures.ThreadPoolExecutor(usable_cores()) as pool, warnings.catch_warnings():
            # The buffers that `adapt` drops are donated, too, and cannot be reused for its results.
            warnings.filterwarnings("ignore", "Some donated buffers were not usable", UserWarning)
            compiling = {name: pool.submit(fn.lower(*shapes).compile) for name, (fn, *shapes) in jobs.items()}
            done = {name: job.result() for name, job in compiling.items()}
        self._compiled |= {iterations if name == "train_chunk" else name: program for name, program in done.items()}
        needs = {name: memory.need(program) for name, program in done.items()}
        held = needs["train_chunk"].held  # the whole state: `init` allocates it, the other programs are given it
        held_of = {name: need.held if name == "init" else max(held, need.held) for name, need in needs.items()}
        highest = max(need.extra + held_of[name] for name, need in needs.items())
        self._prepared = (seeds, iterations), highest
        return highest

    def compile_chunk(self, state: TrainState, counters: StepCounters, iterations: int) -> jax.stages.Compiled:
        """Compile `train_chunk` for chunks of so many iterations; returns the compiled program."""
        self._compiled[iterations] = self._train_chunk(iterations).lower(state, counters).compile()
        return self._compiled[iterations]

    def init(self, seeds: Sequence[int], hypers: Hypers) -> TrainState:
        """States of all seeds; all of a seed's randomness comes from its number.

        Args:
            hypers: numbers, the same for all seeds, or arrays [seeds].
        """
        hypers = jax.tree.map(lambda x: jnp.broadcast_to(jnp.asarray(x, jnp.float32), (len(seeds),)), hypers)
        hypers = jax.device_put(hypers, NamedSharding(self.mesh, P("seeds")))
        return self._run("init", hypers, self._keys(seeds))

    def prefill(self, state: TrainState) -> tuple[TrainState, StepCounters, Episodes]:
        """Collect the rows that the first batch needs. Consumes `state`."""
        return self._run("prefill", state, StepCounters.zero())

    def train_chunk(
        self, state: TrainState, counters: StepCounters, iterations: int
    ) -> tuple[TrainState, StepCounters, Progress]:
        """One chunk. Consumes `state`."""
        if iterations not in self._compiled:
            self.compile_chunk(state, counters, iterations)
        return self._compiled[iterations](state, counters)

    def adapt(self, state: TrainState) -> TrainState:
        """An exploring phase's state without the explorer, as mode task trains it. Consumes `state`."""
        return self._run("adapt", state)

    def evaluate(self, state: TrainState, seeds: Sequence[int], evaluation: int) -> Evaluation:
        """Episodes, [seeds, E]. `evaluation` numbers the stream that draws them."""
        return self._run("evaluate", state.agent, state.hypers, state.env_params, self._keys(seeds, evaluation + 1))

    def measure(self, state: TrainState, seeds: Sequence[int], step: int) -> Measurement:
        """The measurements of each seed, [seeds, ...], after `step` steps of each environment."""
        steps = jax.device_put(np.full(len(seeds), step, np.int32), NamedSharding(self.mesh, P("seeds")))
        return self._run("measure", *_measure_inputs(state), steps, self._keys(seeds, FIRST_MEASURE_STREAM + step))

    def _run(self, name: str, *args: PyTree) -> Any:
        """Call a program. If `prepare` has not compiled it, it is compiled now."""
        return self._compiled.get(name, self._jitted[name])(*args)

    def _placed(self, shapes: PyTree, spec: P) -> Any:
        """Shapes with their sharding, so that programs that are compiled for them accept other programs' results."""
        sharding = NamedSharding(self.mesh, spec)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)

    def _hyper_shapes(self, seeds: int) -> Hypers:
        per_seed = jax.ShapeDtypeStruct((seeds,), jnp.float32)
        return self._placed(jax.tree.map(lambda _: per_seed, Hypers()), P("seeds"))

    def _key_shapes(self, seeds: int) -> jax.ShapeDtypeStruct:
        return self._placed(jax.eval_shape(lambda: jr.split(jr.key(0), seeds)), P("seeds"))

    def _keys(self, seeds: Sequence[int], stream: int = 0) -> jax.Array:
        return jax.device_put(keys_of(seeds, stream), NamedSharding(self.mesh, P("seeds")))
