"""Open a run: its folder and its trials' folders, new or with the same run in them."""

from pathlib import Path
from typing import NamedTuple

from stages.cli.processes import Processes
from stages.cli.saved_settings import check_same_run
from stages.store.folder import RunFolder, check_config
from stages.sweep.trials import Program


class OpenedRun(NamedTuple):
    """The run's folder."""

    folder: RunFolder | None  # None in processes that do not write
    trials: list[RunFolder]  # of each trial; the run's own where there is one; empty in processes that do not write
    path: Path
    finished: bool  # the run that is there has come to its end

    def close(self) -> None:
        """Let others have the folders."""
        for folder in {*self.trials, *filter(None, [self.folder])}:
            folder.close()


def open_run(program: Program, processes: Processes) -> OpenedRun:
    """Open the run's folder, new or with the same run in it, and those of its trials.

    Raises:
        RunFolderError: the folder cannot be used, or another run is at work there.
        ConfigError: the run that is there was made with other arguments.
    """
    opened = OpenedRun(None, [], Path(), False)
    if processes.leads:
        arguments = program.arguments
        folder = RunFolder.open(arguments.logdir)
        opened = OpenedRun(folder, [], folder.path, False)
        try:
            saved = folder.config
            if saved is not None:
                prolonged = check_same_run(arguments, check_config(saved, folder.path))
                opened = opened._replace(finished=not prolonged and bool((folder.summary or {}).get("finished")))
            for trial in program.trials:
                opened.trials.append(RunFolder.open(folder.path / trial.name) if trial.name else folder)
        except BaseException:
            opened.close()
            raise
    path, finished = processes.exchange_json([str(opened.path), opened.finished])[0]
    return opened._replace(path=Path(path), finished=finished)
