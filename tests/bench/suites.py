"""Environments of the suites: what compiling, stepping and collecting them costs, and an update on what they show.

    python tests/bench/suites.py
    python tests/bench/suites.py --envs 1 16 128 --sizes
    python tests/bench/suites.py --env navix::Navix-DoorKey-8x8-v0 Catch-bsuite --sizes tiny micro 1m

Each environment and each number of environments side by side is a process of its own. All rates are of the processor's
seconds (all threads together), since wall time says little on a machine that others share; the first call is left out.

What a line says: `compile_seconds` is tracing and compiling a program that steps and resets, and nothing else; it makes
`bare_steps_per_second` with random actions. `collect_steps_per_second` has the world model and the policy beside it,
and writes the rows to the replay buffer, as a run does (preset --collect-size). `update_ms_SIZE` is one update of one
seed in mode task, and `update_compile_seconds_SIZE` what it took to compile. Steps are of all environments together.
`peak_memory_mb` is the process's, its compiler included.
"""

import argparse
import dataclasses
import resource
import time
from collections.abc import Callable
from typing import Any

import common
import jax
import jax.numpy as jnp
import jax.random as jr
from common import Result

import envs
from envs.environment import Environment, env_step, obs_entries
from stages import train
from stages.cli.parse import parse
from stages.collect import init_actor_state
from stages.config import Config, Hypers
from stages.replay import StepCounters
from stages.sweep.start import start_jax
from stages.train import TrainState
from stages.uniform import RandomPolicy

IDS = (
    "navix::Navix-DoorKey-6x6-v0",
    "craftax::Craftax-Classic-Symbolic-v1",
    "mujoco_playground::CartpoleBalance",
    "brax::fast",
    "jumanji::Snake-v1",
)
SIZES = ("tiny", "micro", "1m")


def entries_of(env: Environment) -> str:
    """The observation's entries in words: "12 x 12 x 5 real, 4 binary"."""
    spaces = obs_entries(env.obs_space).values()
    shape = lambda space: " x ".join(str(side) for side in space.shape) or "1"
    return ", ".join(f"{shape(space)} {space.kind}{f' of {space.classes}' * (space.classes > 0)}" for space in spaces)


def actions_of(env: Environment) -> str:
    """The actions in words: "7", "3 x 5", "1 continuous"."""
    space = env.action_space
    return " x ".join(map(str, space.choices)) or f"{space.size}{' continuous' * (space.kind == 'continuous')}"


def processor_seconds(fn: Callable[[], Any]) -> float:
    """Seconds of the processor that a call takes, its result included."""
    begun = time.process_time()
    jax.block_until_ready(fn())
    return time.process_time() - begun


def compiled(fn: Callable[..., Any], *arguments: Any, consumes: bool = False) -> tuple[jax.stages.Compiled, float]:
    """A compiled function, which may consume its first argument, and the processor's seconds that this took."""
    begun = time.process_time()
    program = jax.jit(fn, donate_argnums=0 if consumes else ()).lower(*arguments).compile()
    return program, time.process_time() - begun


def stepping(env: Environment, count: int, steps: int) -> Callable[[Any, jax.Array], Any]:
    """`steps` steps of `count` environments with random actions: (carry, key) -> carry."""
    policy = RandomPolicy(env.action_space).actor

    def step(carry, key):
        key_action, key_env = jr.split(key)
        noise = policy.noise((count,), key=key_action)
        if env.action_space.kind != "continuous":
            options = jnp.array(env.action_space.choices or env.action_space.size)
            noise = (noise * options).astype(jnp.int32)
        one = lambda key, state, timestep, action: env_step(env, key, state, timestep, action)
        return jax.vmap(one)(jr.split(key_env, count), *carry, noise), None

    return lambda carry, key: jax.lax.scan(step, carry, jr.split(key, steps))[0]


def made_up_state(env: Environment, config: Config, hypers: Hypers) -> TrainState:
    """A state of zeros, with true hyperparameters and environments at their first rows.

    Making a whole state would take long to compile.
    """
    shapes = jax.eval_shape(lambda key: train.init(env, config, hypers, key=key), jr.key(0))
    is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    state = jax.tree.map(lambda x: jr.key(0) if is_key(x) else jnp.zeros(x.shape, x.dtype), shapes)
    begin = jax.jit(lambda model, key: init_actor_state(env, model, config.envs, key=key))
    actor_state = begin(state.agent.model, jr.key(1))
    return dataclasses.replace(state, actor_state=actor_state, hypers=jax.tree.map(jnp.float32, hypers))


def measure(point: Result) -> Result:
    """One environment, so many side by side."""
    start_jax(cache=False)
    env, count, steps = envs.make(point["env"]), point["envs"], point["steps"]
    arguments = lambda size: parse(f"--env {point['env']} --preset {size} --envs {count} --steps 20000".split())
    said = {"entries": entries_of(env), "actions": actions_of(env)}
    config, hypers = arguments(point["collect_size"]).config, arguments(point["collect_size"]).hypers
    state, counters = made_up_state(env, config, hypers), StepCounters.zero()
    carry = state.actor_state.env_state, state.actor_state.timestep
    bare, compile_seconds = compiled(stepping(env, count, steps), carry, jr.key(2))
    carry = bare(carry, jr.key(3))
    found = {
        "compile_seconds": compile_seconds,
        "bare_steps_per_second": count * steps / processor_seconds(lambda: bare(carry, jr.key(4))),
    }
    collect, _ = compiled(
        lambda state, counters: train.collect_steps(env, config, state, counters, steps)[:2], state, counters
    )
    state, counters = collect(state, counters)
    found["collect_steps_per_second"] = count * steps / processor_seconds(lambda: collect(state, counters))
    for size in point["sizes"]:
        config, hypers = arguments(size).config, arguments(size).hypers
        found |= measured_update(made_up_state(env, config, hypers), config, size)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return point | said | found | {"peak_memory_mb": peak}


def measured_update(state: TrainState, config: Config, size: str, repeats: int = 5) -> Result:
    """Milliseconds of an update, the median of `repeats`, and what compiling it took."""
    counters = StepCounters(jnp.int32(2 * config.replay.batch_length), jnp.int32(0))
    update, compile_seconds = compiled(
        lambda state, counters: train.update(config, state, counters)[0], state, counters, consumes=True
    )
    state, spent = update(state, counters), []
    for _ in range(repeats):
        begun = time.process_time()
        state = jax.block_until_ready(update(state, counters))
        spent.append(time.process_time() - begun)
    return {f"update_ms_{size}": 1e3 * common.median(spent), f"update_compile_seconds_{size}": compile_seconds}


COLUMNS = "env envs entries actions compile_seconds bare_steps_per_second collect_steps_per_second".split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", default=IDS)
    parser.add_argument("--envs", type=int, nargs="+", default=[1])
    parser.add_argument("--sizes", nargs="*", default=["tiny"], choices=SIZES, help="whose update is measured")
    parser.add_argument("--collect-size", default="tiny", choices=SIZES, help="of the agent that collects")
    parser.add_argument("--steps", type=int, default=200, help="of each environment, in each call")
    args = parser.parse_args()
    rows = []
    for env in args.env:
        for count in args.envs:
            sizes = args.sizes if count == args.envs[0] else []  # an update is the same for any number of them
            point = {"env": env, "envs": count, "steps": args.steps, "collect_size": args.collect_size, "sizes": sizes}
            rows.append(common.in_process(__file__, point))
    updates = [f"{name}_{size}" for size in SIZES for name in ("update_ms", "update_compile_seconds")]
    common.table(rows, [*COLUMNS, *updates, "peak_memory_mb", "failed"])


if __name__ == "__main__":
    common.here(measure)
    main()
