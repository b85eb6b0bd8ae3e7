"""Open a run: its folder and its trials' folders, which are new or hold this run's earlier sessions."""

from pathlib import Path
from typing import NamedTuple

from stages.cli.processes import Processes
from stages.cli.saved_settings import check_same_run
from stages.store.folder import RunFolder, check_config
from stages.sweep.trials import Program


class OpenedRun(NamedTuple):
    """The folders of a run, opened for this process."""

    folder: RunFolder | None  # None in processes that do not write
    trials: list[RunFolder]  # of each trial; the run's own for a single trial; empty in processes that do not write
    path: Path
    finished: bool  # the folder holds a finished run

    def close(self) -> None:
        """Release the folders' locks."""
        for folder in {*self.trials, *filter(None, [self.folder])}:
            folder.close()


def open_run(program: Program, processes: Processes) -> OpenedRun:
    """Open the folders of the run and of its trials. They are new, or hold a run with the same arguments.

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
