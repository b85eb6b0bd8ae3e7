"""Does the world model remember? For runs of MemoryChain-bsuite: where the context bit is, and who reads it.

    python tests/bench/probe.py runs/memory-a runs/memory-b

The bit is shown in an episode's first row alone, and the last action is paid for by it. Uniformly random actions play
512 episodes of each seed. Printed is the share of them, or of the half that nothing was fitted to, in which

- deter, stoch: a linear readout of that part of the posterior state, fitted by least squares to the other half, tells
  the bit; after each row, or in the row in which it is asked for;
- reward: the reward head, one imagined step on, prefers the right action to the wrong one;
- actor: the tasker's likeliest action is the right one.

One half is chance. Where deter falls off, the model does not hold the bit; with deter and no reward, the head does not
read it; with both and no actor, the actor has settled for something else.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from common import table

from envs.environment import Environment
from stages.agent import Agent
from stages.config import Hypers
from stages.imagine import stored_latent
from stages.measure.open_loop import play_rows
from stages.rssm import Latent, imagine_step
from stages.store.load import load_run, take_seeds
from stages.uniform import RandomPolicy
from stages.world_model import action_vector

EPISODES, RIDGE = 512, 1e-3
MEMORY_LENGTH = "5"  # the environment's own: the row in which the bit is asked for


def readout(features: np.ndarray, bit: np.ndarray) -> float:
    """Share of the second half of the episodes in which a linear function fitted to the first half tells the bit.

    Args:
        features: [E, F].
        bit: [E], 0 or 1.
    """
    half = len(bit) // 2
    inputs = np.concatenate([features, np.ones((len(bit), 1))], 1).astype(np.float64)
    fitted, target = inputs[:half], 2.0 * bit[:half] - 1
    weights = np.linalg.solve(fitted.T @ fitted + RIDGE * half * np.eye(inputs.shape[1]), fitted.T @ target)
    return float(((inputs[half:] @ weights > 0) == bit[half:]).mean())


def probe(
    env: Environment, asked: int, agent: Agent, hypers: Hypers, *, key: jax.Array
) -> tuple[jax.Array, Latent, jax.Array, jax.Array]:
    """(bits [E], posterior states of the rows up to the one that is asked [T, E], the predicted reward of each action
    there [U, E], the actor's likeliest action there [E])."""
    key_play, key_imagine = jr.split(key)
    model, uniform = agent.model, RandomPolicy(env.action_space)
    rows = play_rows(env, agent, uniform, hypers, EPISODES, asked + 1, False, key=key_play).rows
    states = stored_latent(model, rows)
    last = jax.tree.map(lambda x: x[-1], states)
    noise = jr.uniform(key_imagine, (EPISODES, model.rssm.stoch))

    def reward(action):
        taken = action_vector(model, jnp.full(EPISODES, action))
        return model.reward.mean(model.reward(imagine_step(model.rssm, last, taken, noise, hypers.unimix).feat))

    likeliest = agent.tasker.actor(last.feat, hypers.policy_unimix).mode().argmax(-1)
    return rows.obs[0, :, -1] > 0, states, jax.vmap(reward)(jnp.arange(env.action_space.size)), likeliest


def main() -> None:
    """A row for each seed of the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    found = []
    for path in parser.parse_args().runs:
        loaded = load_run(path)
        asked = int(dict(loaded.config.env_args).get("memory_length", MEMORY_LENGTH))
        for group in loaded.groups:
            take = jax.jit(functools.partial(probe, group.env, asked))
            for place, seed in enumerate(group.seeds):
                agent, hypers = take_seeds((group.agent, group.hypers), place)
                bit, states, rewards, likeliest = jax.tree.map(np.asarray, take(agent, hypers, key=jr.key(seed)))
                deter = [readout(rows, bit) for rows in states.deter]
                right = np.where(bit, rewards[1] - rewards[0], rewards[0] - rewards[1]) > 0
                found.append(
                    {"run": path, "seed": seed}
                    | {f"deter {row}": round(share, 2) for row, share in enumerate(deter)}
                    | {"stoch": round(readout(states.stoch[-1].reshape(EPISODES, -1), bit), 2)}
                    | {"reward": round(float(right.mean()), 2), "actor": round(float((likeliest == bit).mean()), 2)}
                )
    table(found)


if __name__ == "__main__":
    main()
