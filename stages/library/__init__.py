"""Library: the program from Python, without a folder and without printing. docs/library.md has an example."""

import stages.cli.quiet  # noqa: F401, before all that imports jax
from stages.library.agents import load
from stages.library.policy import Policy, PolicyState, policy_of
from stages.library.settings import configure
from stages.library.training import Training, TrainingProgress, train

__all__ = ["Policy", "PolicyState", "Training", "TrainingProgress", "configure", "load", "policy_of", "train"]
