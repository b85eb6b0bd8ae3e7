"""Agents: the agents of all rounds of a run as one record, loaded from its folder or just trained.

Axes: S seeds.
"""

import dataclasses
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from stages.store.files import RunFolderError
from stages.store.load import AgentBatch, load_run


def load(run: str | os.PathLike[str], *, trust: bool = False, best: bool = False) -> AgentBatch:
    """The agents of a run's folder, [S, ...], from its newest checkpoints. Nothing in the folder is changed.

    Args:
        trust: import the module that the run's config.json names, where its environment is a user's own.
        best: load each seed's agent of its highest evaluation score; the run needs `--checkpoint-best`.

    Raises:
        RunFolderError: there is no run, no checkpoint, no best agents, or it cannot be read; or its rounds have
            different numbers of steps.
        ConfigError: the run was made by another version of this program, or its environment is a user's own and is
            not trusted.
        EnvError: its environment cannot be made.
    """
    loaded = load_run(run, trust, best)
    if len({(group.step, group.config) for group in loaded.groups}) > 1:
        raise RunFolderError(
            f"the rounds of {str(loaded.path)!r} are not equally far: wait for the run's end, or take one of "
            "stages.store.load.load_run(run).groups"
        )
    return joined(loaded.groups)


def joined(groups: Sequence[AgentBatch]) -> AgentBatch:
    """Join groups of one phase and step into one, in the order of seeds, on the first device."""
    order = np.argsort([seed for group in groups for seed in group.seeds])
    steps = {seed: step for group in groups for seed, step in group.agent_steps.items()}
    parts = [(group.agent, group.hypers, group.env_params) for group in groups]

    @jax.jit
    def merge(parts):
        return jax.tree.map(lambda *arrays: jnp.concatenate(arrays)[order], *parts)

    agent, hypers, env_params = merge(jax.device_put(parts, jax.local_devices()[0]))
    return dataclasses.replace(
        groups[0],
        seeds=sorted(seed for group in groups for seed in group.seeds),
        finished=all(group.finished for group in groups),
        diverged={seed: step for group in groups for seed, step in group.diverged.items()},
        agent=agent,
        hypers=hypers,
        env_params=env_params,
        best_steps=[steps[seed] for seed in sorted(steps)] if groups[0].best_steps else None,
    )
