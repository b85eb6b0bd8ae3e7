"""Library: the program from Python. It prints nothing, and writes files only if asked. See docs/library.md."""

import stages.cli.quiet  # noqa: F401, before all that imports jax
from stages.library.agents import load
from stages.library.policy import Policy, PolicyState, policy_of
from stages.library.settings import configure
from stages.library.training import Training, TrainingProgress, train

__all__ = ["Policy", "PolicyState", "Training", "TrainingProgress", "configure", "load", "policy_of", "train"]
