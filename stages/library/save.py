"""Save: what was trained from Python as a run's folder."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from stages.cli.processes import Processes
from stages.commands.copy_run import write_agents
from stages.log.hooks import about_finished, cost_of
from stages.log.round_log import RoundLog
from stages.log.run_log import RunLog, versions
from stages.log.summary import write_finished
from stages.store.checkpoint import Checkpoints
from stages.store.files import RunFolderError, make_folder
from stages.store.folder import RunFolder
from stages.store.load import AgentBatch, Loaded


def empty_folder(path: str | os.PathLike[str]) -> Path:
    """The folder, made where it is missing.

    Raises:
        RunFolderError: it holds something, or cannot be made, or agents cannot be saved there.
    """
    folder = make_folder(path)
    if any(folder.iterdir()):
        raise RunFolderError(f"{str(folder)!r} is not empty; choose another folder to save in, or remove it")
    Checkpoints(folder, Processes(), keep=1).try_saving()
    return folder


def save_run(path: Path, log: RunLog, groups: Sequence[AgentBatch]) -> None:
    """Write the folder of a run that has ended, as `run.py export` does, with its pictures.

    `load`, eval, video, report and compare read it; training cannot go on with it.

    Args:
        path: an empty folder.
        groups: the agents of each round.

    Raises:
        RunFolderError: the disk refuses.
    """
    run, folder, merged = log.setup, RunFolder(path), RoundLog.of_all(log.rounds)
    write_agents(path, Loaded(path, run.arguments.config, list(groups), []), merged.round.seeds)
    folder.append_metrics(log.table or [])
    write_finished(folder, run.trials[0], merged, run, about_finished(log, cost_of(log)))
    # Last: with it the folder is a run's.
    folder.write_config(dataclasses.asdict(run.arguments) | {"versions": versions()})
