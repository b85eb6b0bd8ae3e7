"""Sweep: seeds side by side. vmap inside, sharded over devices outside; called in chunks with donated state."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from envs.environment import Environment
from stages import train
from stages.config import Config, Hypers
from stages.evaluate import evaluate
from stages.replay import Clock
from stages.train import Progress, TrainState


def mesh_for(seeds: int, devices: Sequence[Any] | None = None) -> Mesh:
    """The most devices that share the seeds out evenly."""
    devices = list(jax.devices() if devices is None else devices)
    count = max(d for d in range(1, len(devices) + 1) if seeds % d == 0)
    return Mesh(np.array(devices[:count]), ("seeds",))


def over_seeds(mesh: Mesh, fn: Callable, seed_args: int, clock: bool) -> Callable:
    """`fn` of one seed -> of a sweep: leading arguments carry a seed axis, and so do results.

    With `clock`, the last argument and the second result are the Clock, the same for all seeds, never batched.
    """
    axes = (0,) * seed_args + ((None,) if clock else ())
    out_axes: Any = (0, None, 0) if clock else 0
    specs = tuple(P("seeds") if a == 0 else P() for a in axes)
    out_specs: Any = (P("seeds"), P(), P("seeds")) if clock else P("seeds")
    batched = jax.vmap(fn, in_axes=axes, out_axes=out_axes)
    return jax.shard_map(batched, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=False)


class Sweep:
    """Compiled stages of one phase of a run, for one environment, Config and mesh.

    Every stage is traced once, however often it is called (asserted).
    """

    def __init__(self, env: Environment, config: Config, hypers: Hypers, mesh: Mesh):
        self.env, self.config, self.hypers, self.mesh = env, config, hypers, mesh
        once = chex.assert_max_traces(n=1)
        wrap = functools.partial(over_seeds, mesh)
        self._init = jax.jit(wrap(lambda key: train.init(env, config, hypers, key=key), 1, False))
        collect = lambda state, clock: train.collect_steps(env, config, hypers, state, clock, config.prefill)
        self._prefill = jax.jit(wrap(collect, 1, True), donate_argnums=0)
        score = lambda agent, key: evaluate(env, agent, config, hypers, key=key)
        self._evaluate = jax.jit(wrap(once(score), 2, False))
        self._chunk: tuple[int, Any] | None = None

    def init(self, seeds: Sequence[int]) -> TrainState:
        """States of all seeds; all of a seed's randomness comes from its number."""
        keys = jax.device_put(self._keys(seeds), NamedSharding(self.mesh, P("seeds")))
        return self._init(keys)

    def prefill(self, state: TrainState) -> tuple[TrainState, Clock, Any]:
        """Collect what the first batch needs. Consumes `state`."""
        return self._prefill(state, Clock.zero())

    def compile(self, state: TrainState, clock: Clock, iterations: int) -> Any:
        """Compile `advance` for chunks of `iterations` iterations; returns the compiled program."""

        @chex.assert_max_traces(n=1)
        def chunk(state, clock):
            return train.advance(self.env, self.config, self.hypers, iterations, state, clock)

        jitted = jax.jit(over_seeds(self.mesh, chunk, 1, True), donate_argnums=0)
        compiled = jitted.lower(state, clock).compile()
        self._chunk = (iterations, compiled)
        return compiled

    def advance(self, state: TrainState, clock: Clock, iterations: int) -> tuple[TrainState, Clock, Progress]:
        """One chunk. Consumes `state`."""
        if self._chunk is None or self._chunk[0] != iterations:
            self.compile(state, clock, iterations)
        assert self._chunk is not None
        return self._chunk[1](state, clock)

    def evaluate(self, state: TrainState, seeds: Sequence[int], point: int) -> tuple[Any, Any]:
        """Scores and lengths [seeds, E] of evaluation episodes. `point` numbers the evaluation."""
        keys = jax.vmap(lambda k: jr.fold_in(jr.fold_in(k, 0xE7A1), point))(self._keys(seeds))
        keys = jax.device_put(keys, NamedSharding(self.mesh, P("seeds")))
        return self._evaluate(state.agent, keys)

    @staticmethod
    def _keys(seeds: Sequence[int]):
        return jax.vmap(jr.key)(jnp.asarray(seeds, jnp.uint32))
