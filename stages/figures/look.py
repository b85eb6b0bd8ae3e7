"""Look: what all pictures of runs share: colours, axes, titles, legends, and how they are written.

matplotlib is imported by the functions that draw, so that `--help` stays fast.
"""

from __future__ import annotations

import io
import os
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.store.files import write_whole

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
PICTURE_WIDTH = 8.3
"""Inches of a wide picture: at 150 dots an inch GitHub shows it at two thirds, with letters of 6 points and more."""
BLUE, RED, INK, GREY = "#1f5a94", "#b3261e", "#222222", "#777777"
DASHED: dict[str, Any] = {"color": INK, "linewidth": 1.1, "linestyle": (0, (5, 3))}
"""A horizontal line that scores or counts are compared with."""


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure, laid out when it is written."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06)  # inches
    return Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")


def write_figure(path: str | os.PathLike[str], figure: Figure) -> None:
    """Write a figure in the format of the path's suffix (png, pdf or svg); it replaces the file in one step.

    Raises:
        RunFolderError: the disk refuses.
    """
    write_whole(Path(path), rendered(figure, Path(path).suffix.removeprefix(".")))


def rendered(figure: Figure, kind: str, transparent: bool = False) -> bytes:
    """A figure as png, pdf or svg, in which text stays text: the same bytes for the same figure.

    Args:
        transparent: without a background; pdf and svg only.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    picture = io.BytesIO()
    if kind == "png":
        FigureCanvasAgg(figure).print_png(picture)  # unlike savefig, whatever the user's matplotlibrc says of saving
    else:
        date = {"pdf": "CreationDate", "svg": "Date"}[kind]  # without it, the same figure is the same file
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dreamsweep", "savefig.bbox": None}):
            figure.savefig(picture, format=kind, transparent=transparent, metadata={date: None})
    return picture.getvalue()


def wrapped(text: str, width: int) -> str:
    """Text in lines of at most `width` letters, but for longer words: no word is broken."""
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def dress(axes: Axes) -> None:
    """Grid, spines and ticks as all of a run's pictures have them."""
    axes.grid(True, color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(color=GREY, labelcolor=INK, labelsize=9)


def scale_steps(axes: Axes, last: float) -> None:
    """The horizontal axis from 0 to `last` steps."""
    from matplotlib.ticker import EngFormatter

    axes.set_xlim(0, 1.02 * max(1.0, last))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 200k rather than 200000


def dress_steps(axes: Axes, last: float) -> None:
    """Axes over the steps of a seed, from 0 to `last`."""
    dress(axes)
    scale_steps(axes, last)
    axes.set_xlabel("steps of a seed (rows of replay)", fontsize=9)


def legend_below(figure: Figure, handles: list[Artist], labels: list[str]) -> None:
    """A legend below the picture, where it hides nothing, in as many columns as its width takes."""
    if not handles:
        return
    letters = 12 * figure.get_figwidth() - 4  # of 9 points, a little generous
    columns = max(1, min(len(labels), int(letters / (6 + max(map(len, labels))))))
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)
