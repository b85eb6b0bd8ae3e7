"""What a new agent learns from rows that a run has collected: the world model and the tasker without exploring.

    python docs/experiments/offline.py RUN --updates 6000 --every 2000 [FLAGS OF run.py: --preset, --model.units, ...]

The rows of RUN's newest checkpoint are the replay of new agents, one for each seed of its newest round, and nothing is
added to them. They learn in mode task with the environment of RUN, and with the preset and the other flags that are
given. So sizes and learning rates are compared on the same rows in minutes, where a run that explores takes an hour. A
line for each evaluation:

- score: of the tasker, the mean over seeds and each seed's own. earned: its reward a row in those episodes.
- imagined score: what the world model says that the tasker scores from replayed rows on, within the time limit. A model
  that is right says about as much as the score.
- value, imagined reward, replayed reward: means over the updates since the line before. Imagined states behind an end
  count in full. Where the goal pays 1 and ends the episode, a value above 1 is wrong. Where imagination pays far more
  than is earned, the model errs.
- recon, kl: nats of a row.
"""

import argparse
import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "bench"))

from common import table

from envs.environment import Environment  # by the path that common adds
from stages import train
from stages.cli.parse import parse
from stages.cli.processes import Processes
from stages.config import Config, Hypers
from stages.evaluate import evaluate
from stages.imagine import draw_noise, imagine, stored_latent
from stages.replay import StepCounters
from stages.store.arrays import leaves_by_path
from stages.store.checkpoint import FOLDER, CheckpointId, Checkpoints
from stages.store.files import RunFolderError
from stages.store.load import load_run
from stages.train import TrainState
from stages.world_model import expected_reward

CHUNK = 250  # updates of one call
SHOWN = {
    "value": "val_extrinsic",
    "imagined reward": "rew_extrinsic",
    "replayed reward": "replay_rew_extrinsic",
    "recon": "loss/recon",
    "kl": "kl",
}
"""Column -> metric of an update."""


IMAGINED = 256  # replayed rows that an imagined score starts from


class Bench(NamedTuple):
    """What is learned, and from what."""

    env: Environment
    env_params: PyTree[Array]  # [S, ...], what the run's environments drew
    config: Config
    hypers: Hypers
    rows: dict[str, NDArray[np.generic]]  # [S, C, N, ...], fields of replay.Row by their paths, without the latents
    collected: int  # rows of each environment: fewer than C where the run is unfinished, more where the ring is full


def bench_of(folder: Path, flags: list[str]) -> Bench:
    """The environment and rows of a run, with the settings of `flags`. Raises RunFolderError, ConfigError, EnvError."""
    loaded = load_run(folder, trust=True)
    group = loaded.groups[-1]
    if not (loaded.path / FOLDER).exists():
        raise RunFolderError(
            f"{str(folder)!r} is a trial of a sweep, whose rows are not saved by trial: name another run"
        )
    with contextlib.closing(Checkpoints(loaded.path, Processes(), keep=0, reads=True)) as checkpoints:
        arrays = checkpoints.arrays(CheckpointId(len(loaded.groups) - 1, group.step))
    paths = {name: name.removeprefix("[0].ring") for name in arrays if name.startswith("[0].ring")}
    # Behind the seeds there may be some that fill up a round.
    seeds = slice(len(group.seeds))
    rows = {path: np.asarray(arrays[name])[seeds] for name, path in paths.items() if path not in (".deter", ".stoch")}
    capacity, envs = rows[".reward"].shape[1:]
    env_args = [word for name, value in group.config.env_args for word in (f"--env.{name}", value)]
    words = ["--env", group.config.env, *env_args, "--mode", "task", "--steps", str(capacity * envs), *flags]
    arguments = parse(words)
    config = dataclasses.replace(arguments.config, envs=envs)
    return Bench(group.env, group.env_params, config, arguments.hypers, rows, group.step // envs)


def imagined_score(state: TrainState, collected: int, env: Environment, *, key: PRNGKeyArray) -> Float[Array, ""]:
    """The undiscounted rewards that model and tasker expect, each times the probability that the episode goes on."""
    key_rows, key_noise = jr.split(key)
    model, actor, hypers = state.agent.model, state.agent.tasker.actor, state.hypers
    capacity, envs = state.ring.reward.shape
    chosen = jr.randint(key_rows, (IMAGINED,), 0, min(collected, capacity) * envs)
    rows = jax.tree.map(lambda x: x.reshape(capacity * envs, *x.shape[2:])[chosen], state.ring)
    noise = draw_noise(model, actor, env.time_limit, IMAGINED, key=key_noise)
    start, shares = stored_latent(model, rows), (hypers.unimix, hypers.policy_unimix)
    trajectory = imagine(model, actor, start, noise, *shares, block_size=IMAGINED)
    reward = expected_reward(model, trajectory.feat[0])
    goes_on = jnp.minimum(1.0, trajectory.cont[0] / (1 - 1 / hypers.discount_horizon))
    # Nothing follows a replayed last row; every other start goes on, whatever the head says.
    before = jnp.concatenate([(~rows.is_last)[None].astype(jnp.float32), goes_on[1:-1]])
    total = (reward[1:] * jnp.cumprod(before, 0)).sum(0)
    return total.sum() / (~rows.is_last).sum()


def learn(bench: Bench, updates: int, every: int) -> list[dict[str, str | float | int]]:
    """The table's lines, each printed when it is known."""
    env, _, config, hypers, rows, collected = bench
    seeds = rows[".reward"].shape[0]
    step = jnp.asarray(collected, jnp.int32)
    counters = StepCounters(step, step * config.envs)  # no window is new: all are drawn uniformly

    def start(inputs):
        key, stored, env_params = inputs
        state = train.init(env, config, hypers, key=key)
        leaves = [stored.get(path, leaf) for path, leaf in leaves_by_path(state.ring).items()]
        ring = jax.tree.unflatten(jax.tree.structure(state.ring), leaves)
        return dataclasses.replace(state, ring=ring, env_params=env_params)

    def update(carry, _):
        state, counters, metrics = train.update(config, *carry)
        return (state, counters), {name: metrics[metric] for name, metric in SHOWN.items()}

    def chunk(state: TrainState) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        (state, _), metrics = lax.scan(update, (state, counters), length=CHUNK)
        return state, jax.tree.map(jnp.mean, metrics)

    def play(inputs):
        state, key = inputs
        score, length = evaluate(env.with_params(state.env_params), state.agent, config, state.hypers, key=key)
        imagined = imagined_score(state, collected, env, key=jr.fold_in(key, 0))
        return score.mean(), score.sum() / length.sum(), imagined

    # Seeds one after the other, as run.py computes them on a core.
    started = (jr.split(jr.key(0), seeds), rows, bench.env_params)
    states = jax.jit(lambda inputs: lax.map(start, inputs))(started)
    chunks, plays = jax.jit(lambda states: lax.map(chunk, states)), jax.jit(lambda inputs: lax.map(play, inputs))
    lines, means = [], []
    for done in range(CHUNK, updates + 1, CHUNK):
        states, metrics = chunks(states)
        means.append({name: np.asarray(x).mean() for name, x in metrics.items()})
        if done % every == 0:
            score, earned, imagined = map(np.asarray, plays((states, jr.split(jr.key(done), seeds))))
            line = {"updates": done, "score": f"{score.mean():.2f} ({', '.join(f'{x:.2f}' for x in score)})"}
            line |= {"earned": float(earned.mean()), "imagined score": float(imagined.mean())}
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
    if min(words.every, words.updates) < CHUNK or words.every % CHUNK or words.updates % words.every:
        parser.error(f"--every must be a multiple of {CHUNK}, and --updates a multiple of --every")
    try:
        bench = bench_of(words.run, flags)
    except ValueError as error:  # all errors of the program's are
        sys.exit(f"offline.py: error: {error}")
    table(learn(bench, words.updates, words.every))


if __name__ == "__main__":
    main()
