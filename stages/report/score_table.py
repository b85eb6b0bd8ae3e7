"""Score table: the scores of a sweep's seeds on the terminal, and how numbers are formatted.

Host side only, without jax. rich is imported by the functions that print, so that `--help` stays fast.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from stages.cli import terminal
from stages.results.statistics import LEAST_SEEDS, ScoreSummary

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

NO_INTERVAL_WORDS = f"fewer than {LEAST_SEEDS} seeds: no interval"


def table(summary: ScoreSummary, title: str, diverged: Mapping[int, int]) -> Table:
    """The sweep's scores as a rich table: mean, median, IQM with its interval, worst and best seed.

    Args:
        diverged: seeds that were frozen, with the env step of each.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    seeds = "seed" if summary.count == 1 else "seeds"
    # Text, not str: a title such as "Catch[bsuite]" is not markup. As wide as the title, which else would wrap.
    style = {"title_justify": "left", "title_style": "bold", "min_width": len(title)}
    result = Table(title=Text(title), box=box.SIMPLE_HEAD, **style)
    result.add_column(f"over {summary.count} {seeds}")
    result.add_column("score", justify="right")
    result.add_column("", style="dim")
    extreme = max(abs(summary.worst), abs(summary.best))
    show = functools.partial(number, decimals=decimals(extreme))
    result.add_row("mean", show(summary.mean))
    result.add_row("median", show(summary.median))
    between = f"95 % interval {show(summary.ci_low)} to {show(summary.ci_high)}"
    if summary.count < LEAST_SEEDS:
        between = NO_INTERVAL_WORDS if summary.count > 1 else ""
    result.add_row("interquartile mean", show(summary.iqm), between, style="bold")
    for name, score, seed in (
        ("worst seed", summary.worst, summary.worst_seed),
        ("best seed", summary.best, summary.best_seed),
    ):
        result.add_row(name, show(score), "" if seed is None else f"seed {seed}")
    if summary.nonfinite:
        names = ", ".join(str(seed) for seed in summary.nonfinite)
        noun = "seed" if len(summary.nonfinite) == 1 else "seeds"
        result.add_row("no finite score", "-", f"left out above: {noun} {names}", style="red")
    if diverged:
        names = ", ".join(f"seed {seed} at step {step:,}" for seed, step in diverged.items())
        result.add_row("diverged", str(len(diverged)), f"frozen: {names}", style="red")
    return result


def print_table(
    summary: ScoreSummary, title: str, diverged: Mapping[int, int] | None = None, console: Console | None = None
) -> None:
    """Print `table(summary, title, diverged)` to `console`, standard output by default."""
    (console or terminal.console()).print(table(summary, title, diverged or {}))


def decimals(extreme: float) -> int:
    """Decimals that show four digits of the largest score, so that a column of scores lines up."""
    if not math.isfinite(extreme) or extreme == 0:
        return 0
    return min(max(3 - math.floor(math.log10(extreme)), 0), 9)


def number(value: float, decimals: int) -> str:
    """A score as text: a dash for NaN, and no minus before a score that is rounded to zero."""
    return "-" if math.isnan(value) else f"{value:z,.{decimals}f}"
