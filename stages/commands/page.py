"""Report: a run as one page of HTML that needs nothing else: no network, no script, pictures inside.

Axes: S seeds, P log points.
"""

from __future__ import annotations

import base64
import io
import re
import shlex
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from stages.cli.arguments import mode_title
from stages.cli.saved_settings import beyond_preset
from stages.commands.page_frame import PAGE
from stages.figures.curves import curves_figure
from stages.figures.metric import ARRIVALS, metric_figure
from stages.report.compare import NO_SETTING, Line, compare, described, show_value
from stages.report.read import EVALUATION, EXPLORED, TRAINING, Result
from stages.report.score_table import decimals, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SECTIONS = (
    ("Losses", "what the model, the behaviours and the ensemble learn from", r"^train/loss/"),
    ("Entropies", "of the model's prior and posterior, and of the actors, in nats", r"[_/]ent$"),
    (
        "Foresight",
        "errors of the model run forward from replayed rows, and of states that saw them",
        r"^open_loop/",
    ),
    ("Exploration", "what the ensemble disagrees about, and what was visited", r"disagreement|^novelty/"),
    ("Optimiser and speed", "norms; env steps and rows of replay in a second, per seed", r"^train/opt/|^fps/"),
    ("Behaviours", "rewards, returns and values, as the actors and critics see them", r""),
)
"""Titles, words, and what is in their metrics' names; a metric is in the first that fits."""

MEANINGS = {
    "train/loss/dyn": "KL, for the prior",
    "train/loss/rep": "KL, for the posterior",
    "train/loss/recon": "reconstruction",
    "train/loss/reward": "reward",
    "train/loss/cont": "continuation",
    "train/loss/ensemble": "ensemble's prediction",
    "train/loss/policy": "actor",
    "train/loss/value": "critic, imagined",
    "train/loss/repval": "critic, replayed",
    "train/loss/explorer_policy": "explorer's actor",
    "train/loss/explorer_value": "explorer's critics, imagined",
    "train/loss/explorer_repval": "explorer's critics, replayed",
    "train/kl": "KL, posterior from prior",
    "train/kl_free": "share of rows within the free nats",
    "train/dyn_ent": "prior",
    "train/rep_ent": "posterior",
    "train/ent": "actor",
    "train/explorer_ent": "explorer's actor",
    "train/explorer_rew_disagreement": "disagreement, imagined",
    "train/explorer_replay_rew_disagreement": "disagreement, replayed",
    "train/explorer_gain_disagreement": "disagreement, beyond the slow policy's",
    "train/opt/grad_norm": "gradient",
    "train/opt/update_norm": "update",
    "fps/policy": "env steps / s",
    "fps/train": "replayed rows / s",
    "novelty/visited_states": "states visited",
    "novelty/visited_pairs": "states and actions visited",
    "novelty/correlation": "rank correlation with visits",
    "novelty/disagreement_never": "disagreement, never visited",
    "novelty/disagreement_1_3": "disagreement, 1 to 3 visits",
    "novelty/disagreement_4_15": "disagreement, 4 to 15 visits",
    "novelty/disagreement_16_63": "disagreement, 16 to 63 visits",
    "novelty/disagreement_64_255": "disagreement, 64 to 255 visits",
    "novelty/disagreement_256": "disagreement, 256 visits or more",
    "novelty/goal_episode": "episode of the first goal",
    "novelty/solved_episode": "episode by which it is solved",
    "novelty/untrained_share": "disagreement, share of an untrained ensemble's",
    "novelty/disagreement_collected": "disagreement at the newest rows",
    "novelty/disagreement_random": "disagreement at rows of random actions",
    "open_loop/error_1": "prediction error, 1 row ahead",
    "open_loop/error_5": "prediction error, 5 rows ahead",
    "open_loop/error_15": "prediction error, 15 rows ahead",
    "open_loop/posterior_1": "the same rows, seen",
    "open_loop/posterior_5": "the same rows, seen",
    "open_loop/posterior_15": "the same rows, seen",
    "episode/length": "episode's length",
}


def page(run: Result) -> str:
    """The whole page."""
    [group] = compare([run]).groups
    [line] = group.lines
    body = [
        _head(run),
        *(f'<p class="note">{escape(note)}</p>' for note in group.notes),
        _cards(run, line),
        _curves(run),
        *_metrics(run),
        _novelty(run),
        _seeds(run),
        _settings(run),
    ]
    return PAGE.format(title=escape(f"{run.env}, {mode_title(run.settings)}"), body="\n".join(filter(None, body)))


def _head(run: Result) -> str:
    command = ["python", "run.py", "--seeds", str(len(run.seeds))]
    if start := run.settings["seed_start"]:
        command += ["--seed-start", str(start)]
    if run.settings["preset"] != "tiny":
        command += ["--preset", str(run.settings["preset"])]
    changed = [name for name in beyond_preset(run.settings) if name not in NO_SETTING]
    env = [] if run.settings["config.env"] == "Catch-bsuite" else ["--env", run.settings["config.env"]]
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
            cards.append((label, number(estimate.value, digits), between))
    gap = line.estimates.get("optimality_gap")
    if gap is not None and np.isfinite(gap.value):
        cards.append(("optimality gap", f"{gap.value:.0%}", f"{gap.low:.0%} to {gap.high:.0%} of the scale"))
    if np.isfinite(untrained := run.per_seed("untrained")).any():
        cards.append(("untrained", number(float(np.nanmean(untrained)), digits), "mean over seeds"))
    if np.isfinite(zero_shot := run.per_seed("zero_shot")).any():
        cards.append(("zero-shot", number(float(np.nanmedian(zero_shot)), digits), "median, after exploring"))
    cards.append(("seeds", f"{len(run.seeds):,}", f"{run.seeds[0]} to {run.seeds[-1]}"))
    cards.append(("env steps", f"{run.done:,}", "a seed"))
    if (speed := _middle(run, "fps/policy")) is not None:
        cards.append(("speed", f"{speed * len(run.seeds):,.0f}", "env steps a second, all seeds"))
    if wall := run.summary.get("wall_seconds"):
        compiling = run.summary.get("compile_seconds") or 0.0
        cards.append(("time", _duration(wall), f"{_duration(compiling)} of it compiling"))
    if peak := run.summary.get("peak_memory_mb"):
        cards.append(("peak memory", f"{peak / 1000:,.1f} GB", "of the leading process"))
    cells = "".join(f"<div><dt>{a}</dt><dd>{escape(b)}</dd><small>{escape(c)}</small></div>" for a, b, c in cards)
    heading = "<h2>Final scores</h2><p>evaluation episodes after training; 95 % bootstrap intervals over seeds</p>"
    return f'<section>{heading}<dl class="cards">{cells}</dl></section>'


def _curves(run: Result) -> str:
    """The learning curves, as large as the page."""
    untrained = run.per_seed("untrained")
    shown = [(EVALUATION, "evaluation score of the tasker"), (TRAINING, "training score")]
    pictures = []
    for name, label in shown:
        if name not in run.metrics:
            continue
        figure = curves_figure(
            run.steps,
            run.curve(name),
            title="",
            ylabel=label,
            markers=None if run.adapt_step is None else [(run.adapt_step, "adapts from here")],
            baseline=(float(np.nanmean(untrained)), "untrained") if np.isfinite(untrained).any() else None,
            diverged=[run.diverged.get(seed, 0) for seed in run.seeds],
        )
        pictures.append(f'<figure class="large">{_drawing(figure, f"{label} over env steps")}</figure>')
    if not pictures:
        return ""
    return f'<section><h2>Learning curves</h2><div class="curves">{"".join(pictures)}</div></section>'


def _metrics(run: Result) -> list[str]:
    """A section of small pictures for each of SECTIONS."""
    remaining = [name for name in sorted(run.metrics) if np.isfinite(run.metrics[name]).any()]
    remaining = [name for name in remaining if name not in (TRAINING, EVALUATION, "episode/count", "diverged")]
    known = list(MEANINGS)
    sections = []
    for title, text, mark in SECTIONS:
        matching = [name for name in remaining if re.search(mark, name)]
        remaining = [name for name in remaining if name not in matching]
        pictures = []
        for name in sorted(matching, key=lambda name: known.index(name) if name in known else len(known)):
            figure = metric_figure(run.steps.astype(float), run.metrics[name], run.adapt_step, name in ARRIVALS)
            meaning = f"<b>{MEANINGS[name]}</b> " if name in MEANINGS else ""
            caption = f"<figcaption>{meaning}<code>{escape(name)}</code></figcaption>"
            pictures.append(f"<figure>{caption}{_drawing(figure, name)}</figure>")
        if pictures:
            grid = f'<div class="grid">{"".join(pictures)}</div>'
            sections.append(f"<section><h2>{title}</h2><p>{text}</p>{grid}</section>")
    return sections


def _novelty(run: Result) -> str:
    """The run's own picture of where it has been."""
    path = run.path / "novelty.png"
    if not path.is_file() or path.is_symlink():  # a page holds nothing from outside the run's folder
        return ""
    image = _image("visits and disagreement of states", "png", path.read_bytes())
    return f'<section><h2>Where it has been</h2><figure class="paper">{image}</figure></section>'


def _drawing(figure: Figure, label: str) -> str:
    """A figure as an <img> of SVG without a background, read out as `label`; the same bytes for the same figure."""
    import matplotlib

    drawing = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):  # text stays text
        figure.savefig(drawing, format="svg", transparent=True, metadata={"Date": None})
    return _image(label, "svg+xml", drawing.getvalue())


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


def _middle(run: Result, name: str) -> float | None:
    """A metric's median over seeds and points."""
    values = run.metrics.get(name, np.zeros(0))
    return float(np.nanmedian(values)) if np.isfinite(values).any() else None


def _duration(seconds: float) -> str:
    rounded = round(seconds)
    return f"{rounded} s" if rounded < 120 else f"{rounded // 60} min" if rounded < 7200 else f"{rounded / 3600:.1f} h"
