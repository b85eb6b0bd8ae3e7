"""Grid: the files of a sweep over all of its trials: a table, a picture, and every score as a csv file."""

from __future__ import annotations

import os
from pathlib import Path

from stages.cli import terminal
from stages.figures.grid import plot_grid
from stages.report.compare import differing_settings
from stages.report.export import write_table
from stages.report.grid import grid_of, table_of
from stages.report.tables import markdown, print_tables
from stages.results.read import read_runs
from stages.store.files import write_whole


def leave_grid(folder: str | os.PathLike[str]) -> None:
    """Write sweep.md, sweep.png and results.csv to a sweep's folder, and print the table.

    Raises:
        RunFolderError: a run cannot be read, or the disk refuses.
    """
    path, runs = Path(os.path.expanduser(folder)).absolute(), read_runs([folder])
    grid = grid_of(runs)
    table = table_of(grid)
    with terminal.printing():
        print_tables([table])
    write_whole(path / "sweep.md", markdown([table]).encode())
    write_table(path / "results.csv", runs, differing_settings(runs))
    plot_grid(path / "sweep.png", grid)
    terminal.say(f"see {path}: sweep.md, sweep.png, results.csv, and a folder of each trial")
