"""Page: one run as HTML that needs nothing else: no network, no script, pictures inside.

Axes: S seeds, P log points.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.cli.arguments import mode_title
from stages.cli.saved_settings import beyond_preset
from stages.commands.page_frame import PAGE, STYLE
from stages.figures.curves import curves_figure
from stages.figures.look import rendered
from stages.figures.metric import ARRIVALS, MOST_STROKES, metric_figure
from stages.report.compare import NO_SETTING, Line, compare, described, show_value
from stages.report.score_table import NO_INTERVAL_WORDS, decimals, number
from stages.results.metrics import METRICS, MetricGroup, find_metric, label_of
from stages.results.read import EVALUATION, EXPLORED, TRAINING, Result
from stages.results.statistics import LEAST_SEEDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIRST_GROUP = "Exploration"
"""The group of metrics that stands before the learning curves."""
UNSHOWN = {TRAINING, EVALUATION, "episode/count", "updates", "wall_seconds", "diverged"}
"""Metrics without a small picture: they have a large one, or say nothing over steps."""


def page(run: Result) -> str:
    """The whole page."""
    [group] = compare([run]).groups
    [line] = group.lines
    unknown = [name for name in sorted(run.metrics) if find_metric(name) is None]  # of another version of this program
    body = [
        _head(run),
        *(f'<p class="note">{escape(note)}</p>' for note in group.notes),
        _cards(run, line),
        _reading(run),
        *(_section(run, group) for group in METRICS if group.title == FIRST_GROUP),
        _curves(run),
        *(_section(run, group) for group in METRICS if group.title != FIRST_GROUP),
        _section(run, MetricGroup("Other", "metrics without words", ()), unknown),
        _seeds(run),
        _settings(run),
    ]
    title = escape(f"{run.env}, {mode_title(run.settings)}")
    return PAGE.format(title=title, style=STYLE, body="\n".join(filter(None, body)))


def _head(run: Result) -> str:
    # Environment and mode are always given: run.py has its own defaults for both.
    command = ["python", "run.py", "--seeds", str(len(run.seeds)), "--mode", str(run.settings["config.mode"])]
    if start := run.settings["seed_start"]:
        command += ["--seed-start", str(start)]
    if run.settings["preset"] != "tiny":
        command += ["--preset", str(run.settings["preset"])]
    if (recipe := run.settings.get("recipe", "default")) != "default":
        command += ["--recipe", str(recipe)]
    changed = [name for name in beyond_preset(run.settings) if name not in NO_SETTING]
    env = ["--env", run.settings["config.env"]]
    args = [part for name, value in run.settings["config.env_args"] for part in (f"--env.{name}", value)]
    command_line = shlex.join([*command, *env, *args]) + " " + described(run, changed)
    state = "finished" if run.finished else f"not finished: {run.done:,} of {run.planned:,} steps"
    return (
        f"<header><h1>{escape(run.env)}</h1><p>mode {escape(mode_title(run.settings))} · preset "
        f"{escape(str(run.settings['preset']))} · {state}</p><pre>{escape(command_line.strip())}</pre></header>"
    )


def _cards(run: Result, line: Line) -> str:
    """The numbers that one asks for first."""
    cards: list[tuple[str, str, str]] = []
    shown = [abs(x) for name in ("iqm", "median", "mean") for x in line.estimates.get(name, ()) if np.isfinite(x)]
    digits = max(decimals(max(shown, default=0.0)) - 1, 0)
    for name, label in (("iqm", "interquartile mean"), ("median", "median"), ("mean", "mean")):
        if estimate := line.estimates.get(name):
            between = f"{number(estimate.low, digits)} to {number(estimate.high, digits)}"
            between = between if line.seeds >= LEAST_SEEDS else NO_INTERVAL_WORDS
            cards.append((label, number(estimate.value, digits), between))
    gap = line.estimates.get("optimality_gap")
    if gap is not None and np.isfinite(gap.value):
        between = f"{gap.low:.0%} to {gap.high:.0%}, " if line.seeds >= LEAST_SEEDS else ""
        cards.append(("optimality gap", f"{gap.value:.0%}", between + "short of the best score"))
    if np.isfinite(untrained := run.per_seed("untrained")).any():
        cards.append(("untrained", number(float(np.nanmean(untrained)), digits), "mean over seeds"))
    if np.isfinite(zero_shot := run.per_seed("zero_shot")).any():
        cards.append(("zero-shot", number(float(np.nanmedian(zero_shot)), digits), "median, after exploring"))
    cards.append(("seeds", f"{len(run.seeds):,}", f"{run.seeds[0]} to {run.seeds[-1]}"))
    cards.append(("steps", f"{run.done:,}", "rows of replay, a seed"))
    if np.isfinite(speeds := run.metrics.get("fps/policy", np.zeros(0))).any():
        cards.append(("speed", f"{np.nanmedian(speeds) * len(run.seeds):,.0f}", "steps a second, all seeds"))
    if wall := run.summary.get("wall_seconds"):
        compiling = run.summary.get("compile_seconds") or 0.0
        cards.append(("time", _duration(wall), f"{_duration(compiling)} of it compiling"))
    if peak := run.summary.get("peak_memory_mb"):
        cards.append(("peak memory", f"{peak / 1000:,.1f} GB", "of the leading process"))
    cells = "".join(f"<div><dt>{a}</dt><dd>{escape(b)}</dd><small>{escape(c)}</small></div>" for a, b, c in cards)
    caption = "of the tasker's evaluation episodes after training; 95 % bootstrap intervals over seeds"
    return f'<section><h2>Final scores</h2><p>{caption}</p><dl class="cards">{cells}</dl></section>'


def _reading(run: Result) -> str:
    """What the small pictures draw: see `metric_figure`."""
    faint = "each seed faint" if len(run.seeds) <= MOST_STROKES else "10 to 90 % of them shaded"
    seeds = "the seed" if len(run.seeds) == 1 else f"the median over seeds bold, {faint}"
    legend = f"Small pictures: {seeds}, over rows of replay. The pointer on one shows its name in metrics.jsonl."
    return f'<p class="reading">{legend}</p>'


def _curves(run: Result) -> str:
    """The learning curves, as large as the page."""
    drawings = [_drawing(figure, f"{label} over steps") for label, figure in learning_curves(run).items()]
    if not drawings:
        return ""
    pictures = "".join(f'<figure class="large">{drawing}</figure>' for drawing in drawings)
    return f'<section><h2>Learning curves</h2><div class="curves">{pictures}</div></section>'


def learning_curves(run: Result, title: str = "") -> dict[str, Figure]:
    """Pictures of a run's scores over steps, by what they are of: evaluation first, where there is one."""
    return {
        label: curves_figure(
            run.steps,
            run.curve(name),
            title=title,
            ylabel=label,
            adapt_step=run.adapt_step,
            untrained=run.per_seed("untrained"),
            diverged=[run.diverged.get(seed, 0) for seed in run.seeds],
        )
        for name, label in ((EVALUATION, "evaluation score of the tasker"), (TRAINING, "training score"))
        if name in run.metrics
    }


def _section(run: Result, group: MetricGroup, names: Sequence[str] | None = None) -> str:
    """A group's metrics as small pictures; for FIRST_GROUP the run's novelty.png stands above them.

    Args:
        names: of the metrics; None: the run's that belong to the group, in the group's order.
    """
    if names is None:
        names = [name for metric in group.metrics for name in sorted(run.metrics) if find_metric(name) is metric]
    shown = [name for name in names if name not in UNSHOWN and np.isfinite(run.metrics[name]).any()]
    picture = _picture(run.path / "novelty.png") if group.title == FIRST_GROUP else ""
    if not shown and not picture:
        return ""
    grid = f'<div class="grid">{"".join(_panel(run, name) for name in shown)}</div>' if shown else ""
    return f"<section><h2>{group.title}</h2><p>{group.text}</p>{picture}{grid}</section>"


def _panel(run: Result, name: str) -> str:
    """The small picture of a metric; its key shows where the pointer rests."""
    figure = metric_figure(run.steps.astype(float), run.metrics[name], run.adapt_step, name in ARRIVALS)
    label = escape(label_of(name) or name)
    return f'<figure title="{escape(name)}"><figcaption>{label}</figcaption>{_drawing(figure, label)}</figure>'


def _picture(path: Path) -> str:
    """A run's own picture; empty without one."""
    if not path.is_file() or path.is_symlink():  # a page holds nothing from outside the run's folder
        return ""
    return f'<figure class="paper">{_image("visits and disagreement of states", "png", path.read_bytes())}</figure>'


def _drawing(figure: Figure, label: str) -> str:
    """A figure as an <img> of SVG without a background, read out as `label`."""
    return _image(label, "svg+xml", rendered(figure, "svg", transparent=True))


def _image(label: str, kind: str, content: bytes) -> str:
    """An <img> that holds its content."""
    return f'<img alt="{escape(label)}" src="data:image/{kind};base64,{base64.b64encode(content).decode()}">'


def _seeds(run: Result) -> str:
    """Every seed's numbers."""
    names = [name for name in ("score", "zero_shot", "untrained", *EXPLORED) if run.per_seed(name).size]
    if not names:
        return ""
    columns = {name: run.per_seed(name) for name in names}
    rows = [
        [str(seed), *("-" if np.isnan(columns[name][i]) else f"{columns[name][i]:.5g}" for name in names)]
        for i, seed in enumerate(run.seeds)
    ]
    return _details(f"{len(rows):,} seeds", ["seed", *(name.replace("_", " ") for name in names)], rows)


def _settings(run: Result) -> str:
    """All settings, those that differ from their preset first; and versions."""
    changed = beyond_preset(run.settings)
    unchanged = [name for name in run.settings if name not in changed and not name.startswith("versions.")]
    rows = [
        [name.removeprefix("config."), show_value(run.settings[name]), show_value(was)] for name, was in changed.items()
    ]
    rows += [[name.removeprefix("config."), show_value(run.settings[name]), ""] for name in unchanged]
    versions = [
        [name.split(".")[1], str(value)] for name, value in run.settings.items() if name.startswith("versions.")
    ]
    return _details("Settings", ["setting", "value", "in the preset"], rows) + _details(
        "Versions", ["", "version"], versions
    )


def _details(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that opens where it is asked for."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
    return f"<details><summary>{title}</summary>{table}</details>"


def _duration(seconds: float) -> str:
    rounded = round(seconds)
    return f"{rounded} s" if rounded < 120 else f"{rounded // 60} min" if rounded < 7200 else f"{rounded / 3600:.1f} h"
