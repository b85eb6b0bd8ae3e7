"""What a new agent learns from rows that a run has collected: the world model and the tasker without exploring.

    python docs/experiments/offline.py RUN --updates 6000 --every 2000 [FLAGS OF run.py: --preset, --model.units, ...]

The rows of RUN's newest checkpoint are the replay of new agents, one for each of its seeds, and nothing is added to
them. They learn in mode task with the environment of RUN, and with the preset and the other flags that are given. So
sizes and learning rates are compared on the same rows in minutes, where a run that explores takes an hour. A line for
each evaluation:

- score: of the tasker, each seed's mean.
- value, imagined reward, replayed reward: means over the updates since the line before. Where the goal pays 1 and ends
  the episode, a value above 1 is wrong, and imagination finds the goal too often where its reward is larger than what
  the tasker's own episodes earn.
- recon, kl: nats of a row.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax
from jaxtyping import Array, Float
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "bench"))

from common import table

import envs  # by the path that common adds
from envs.environment import Environment
from stages import train
from stages.cli.parse import parse
from stages.cli.processes import Processes
from stages.config import Config, Hypers
from stages.evaluate import evaluate
from stages.replay import StepCounters
from stages.store.checkpoint import Checkpoints
from stages.store.files import RunFolderError
from stages.store.folder import read_config
from stages.train import TrainState

LATENTS = ("deter", "stoch")  # of the ring: of the agent that collected, and of its sizes
CHUNK = 250  # updates of one call
SHOWN = {
    "value": "val_extrinsic",
    "imagined reward": "rew_extrinsic",
    "replayed reward": "replay_rew_extrinsic",
    "recon": "loss/recon",
    "kl": "kl",
}
"""Column -> metric of an update."""


class Bench(NamedTuple):
    """What is learned, and from what."""

    env: Environment
    config: Config
    hypers: Hypers
    rows: dict[str, NDArray[np.generic]]  # [S, C, N, ...], fields of replay.Row


def rows_of(folder: Path) -> dict[str, NDArray[np.generic]]:
    """The replay of a run's newest checkpoint without its latents. Raises RunFolderError where there is none."""
    checkpoints = Checkpoints(folder, Processes(), keep=1, reads=True)
    if (newest := checkpoints.newest()) is None:
        raise RunFolderError(f"{str(folder)!r} has no checkpoint")
    fields = {name.rpartition(".ring.")[2]: x for name, x in checkpoints.arrays(newest).items() if ".ring." in name}
    return {name: np.asarray(x) for name, x in fields.items() if name not in LATENTS}


def bench_of(folder: Path, flags: list[str]) -> Bench:
    """The environment and rows of a run, with the settings of `flags`. Raises RunFolderError, ConfigError, EnvError."""
    saved, rows = read_config(folder)["config"], rows_of(folder)
    env_args = [word for name, value in saved["env_args"] for word in (f"--env.{name}", value)]
    capacity = rows["reward"].shape[1] * rows["reward"].shape[2]
    arguments = parse(["--env", saved["env"], *env_args, "--mode", "task", "--steps", str(capacity), *flags])
    config = dataclasses.replace(arguments.config, envs=rows["reward"].shape[2])
    return Bench(envs.make(config.env, dict(config.env_args)), config, arguments.hypers, rows)


def learn(bench: Bench, updates: int, every: int) -> list[dict[str, str | float | int]]:
    """The table's lines, each printed when it is known."""
    env, config, hypers, rows = bench
    seeds, capacity = rows["reward"].shape[:2]
    filled = jnp.asarray(capacity, jnp.int32)
    clock = StepCounters(filled, filled)  # no window is new: all are drawn uniformly

    def start(inputs):
        key, stored = inputs
        state = train.init(env, config, hypers, key=key)
        ring = dataclasses.replace(state.ring, **stored)
        return dataclasses.replace(state, ring=ring)

    def update(carry, _):
        state, clock, metrics = train.update(config, *carry)
        return (state, clock), {name: metrics[metric] for name, metric in SHOWN.items()}

    def chunk(state: TrainState) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        (state, _), metrics = lax.scan(update, (state, clock), length=CHUNK)
        return state, jax.tree.map(jnp.mean, metrics)

    def score(inputs):
        state, key = inputs
        return evaluate(env.with_params(state.env_params), state.agent, config, state.hypers, key=key)[0].mean()

    # Seeds one after the other, as run.py computes them on a core.
    states = jax.jit(lambda inputs: lax.map(start, inputs))((jr.split(jr.key(0), seeds), rows))
    chunks, scores = jax.jit(lambda states: lax.map(chunk, states)), jax.jit(lambda inputs: lax.map(score, inputs))
    lines, means = [], []
    for done in range(CHUNK, updates + 1, CHUNK):
        states, metrics = chunks(states)
        means.append({name: np.asarray(x).mean() for name, x in metrics.items()})
        if done % every == 0:
            reached = np.asarray(scores((states, jr.split(jr.key(done), seeds))))
            line = {"updates": done, "score": f"{reached.mean():.2f} ({', '.join(f'{x:.2f}' for x in reached)})"}
            lines.append(line | {name: float(np.mean([mean[name] for mean in means])) for name in SHOWN})
            print(lines[-1], flush=True)
            means = []
    return lines


def main() -> None:
    """Learn, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--updates", type=int, default=6000)
    parser.add_argument("--every", type=int, default=2000, help="updates between two evaluations")
    words, flags = parser.parse_known_args()
    try:
        bench = bench_of(words.run, flags)
    except ValueError as error:  # all errors of the program's are
        sys.exit(f"offline.py: error: {error}")
    table(learn(bench, words.updates, words.every))


if __name__ == "__main__":
    main()
