"""Tables: a comparison as text, for the terminal, as markdown and as JSON."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stages.cli import terminal
from stages.cli.settings_file import JsonObject
from stages.report.compare import Comparison, Line, Pair, described, differing_settings, final_scores
from stages.report.score_table import decimals, number
from stages.results.read import EXPLORED, Result
from stages.results.statistics import LEAST_SEEDS, Estimate, mean_of

if TYPE_CHECKING:
    from rich.console import Console

STATISTICS = {"iqm": "IQM", "median": "median", "mean": "mean", "optimality_gap": "optimality\ngap"}
FEW_SETTINGS = 4
NO_INTERVAL = f"of fewer than {LEAST_SEEDS} seeds there is no interval: it would run from the lowest to the highest"


class Table(NamedTuple):
    """A title, the columns' names and cells [rows][columns]; a cell may have two lines. Notes follow it."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


def tables(comparison: Comparison) -> list[Table]:
    """For each environment the scores, the probabilities of improvement, and novelty where it was measured."""
    result = []
    for group in comparison.groups:
        differing = differing_settings(group.runs)
        apart = [f"{run.name}: {_short(described(run, differing))}" for run in group.runs if differing]
        steps = sorted({run.done for run in group.runs})
        after = f" after {steps[0]:,} steps a seed" if len(steps) == 1 else ""
        result.append(_scores(f"{group.env}: final scores{after}", group.lines, group.notes + apart))
        result += _improvement(group.env, group.pairs) + _novelty(group.env, group.lines)
        result += event_table(group.env, group.runs)
    if comparison.across_envs:
        result.append(_scores("Over environments, 0 the lowest return and 1 the highest", comparison.across_envs, []))
    result += _improvement("Over environments", comparison.pairs_across_envs)
    if comparison.notes:
        result.append(Table("", [], [], comparison.notes))
    return result


def print_tables(tables: Sequence[Table], console: Console | None = None) -> None:
    """To the terminal, and as wide as it is; 80 columns where it is a pipe."""
    from rich import box
    from rich.table import Table as Rich
    from rich.text import Text

    console = console or terminal.console()
    for table in tables:
        if table.columns:
            # Text, not str: a name such as "catch[bsuite]" is not markup.
            style: dict[str, Any] = {
                "title_justify": "left",
                "title_style": "bold",
                "min_width": min(len(table.title), console.width),
            }
            shown = Rich(title=Text(table.title), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), **style)
            for index, column in enumerate(table.columns):
                shown.add_column(Text(column), justify="left" if index == 0 else "right", overflow="fold")
            for row in table.rows:
                shown.add_row(*map(Text, row))
            console.print(shown)
        for note in table.notes:
            console.print(Text(f"  {note}"))
        if table.notes:
            console.print()


def markdown(tables: Sequence[Table]) -> str:
    """The same for a README or an issue."""
    lines: list[str] = []
    for table in tables:
        if table.columns:
            lines += [f"### {table.title}", ""]
            cells = [table.columns, ["---"] + ["---:"] * (len(table.columns) - 1), *table.rows]
            lines += ["| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in cells]
            lines.append("")
        lines += [f"- {_escaped(note)}" for note in table.notes]
        lines += [""] if table.notes else []
    return "\n".join(lines)


def comparison_json(comparison: Comparison) -> JsonObject:
    """All numbers, with every seed's, for programs."""
    groups = {}
    for group in comparison.groups:
        runs = {
            run.name: {
                "finished": run.finished,
                "steps": run.done,
                "settings": {name: run.settings.get(name) for name in comparison.differing},
                "versions": {name: run.settings[name] for name in run.settings if name.startswith("versions.")},
                "seeds": run.seeds,
                "score": final_scores(run),
            }
            | {name: run.per_seed(name) for name in ("zero_shot", *EXPLORED) if run.per_seed(name).size}
            | {"estimates": _line_json(line)}
            for run, line in zip(group.runs, group.lines, strict=True)
        }
        groups[group.env] = {
            "runs": runs,
            "improvement": [_pair_json(pair) for pair in group.pairs],
            "notes": group.notes,
        }
    across_envs = {line.name: _line_json(line) for line in comparison.across_envs}
    return {
        "environments": groups,
        "over_environments": {
            "scores": across_envs,
            "improvement": [_pair_json(pair) for pair in comparison.pairs_across_envs],
        },
        "notes": comparison.notes,
    }


def _line_json(line: Line) -> JsonObject:
    estimates = {name: estimate._asdict() for name, estimate in line.estimates.items()}
    return {"seeds": line.seeds, **estimates, **line.novelty}


def _pair_json(pair: Pair) -> JsonObject:
    return {"ours": pair.ours, "theirs": pair.theirs, "seeds": pair.seeds, **pair.probability._asdict()}


def _scores(title: str, lines: Sequence[Line], notes: list[str]) -> Table:
    shown = [name for name in STATISTICS if any(np.isfinite(_value(line, name)) for line in lines)]
    digits = {name: _digits([line.estimates[name] for line in lines if name in line.estimates]) for name in shown}
    rows = [
        [f"{line.name}\n{line.seeds} seed{'' if line.seeds == 1 else 's'}"]
        + [_cell(line.estimates[name], digits[name], line.seeds) if name in line.estimates else "-" for name in shown]
        for line in lines
    ]
    few = [NO_INTERVAL] if any(0 < line.seeds < LEAST_SEEDS for line in lines) else []
    return Table(title, ["run", *(STATISTICS[name] for name in shown)], rows, few + notes)


def _improvement(title: str, pairs: Sequence[Pair]) -> list[Table]:
    rows = [[f"{pair.ours} over {pair.theirs}", _cell(pair.probability, 2, pair.seeds, " ")] for pair in pairs]
    return [Table(f"{title}: probability of improvement", ["", "probability"], rows, [])] if pairs else []


def _novelty(title: str, lines: Sequence[Line]) -> list[Table]:
    if not any(line.novelty for line in lines):
        return []
    columns = ["run", "states visited", "reached the goal", "solved", "rank correlation"]
    rows = [[line.name, *explored(line.novelty)] for line in lines]
    return [Table(f"{title}: exploration (medians over seeds)", columns, rows, [])]


def event_table(title: str, runs: Sequence[Result]) -> list[Table]:
    """In what share of each run's episodes each event happened, and Crafter's score in %: means over seeds."""
    names = list(dict.fromkeys(name for run in runs for name in run.summary.get("events", ())))
    if not names:
        return []
    share = lambda run, name: mean_of(run.summary.get("events", {}).get(name, ()))
    rows = [[name, *(number(100 * share(run, name), 1) for run in runs)] for name in names]
    if any("crafter_score" in run.summary for run in runs):
        rows.append(["Crafter's score", *(number(mean_of(run.summary.get("crafter_score", ())), 2) for run in runs)])
    return [Table(f"{title}: % of episodes with each event", ["event", *(run.name for run in runs)], rows, [])]


def explored(novelty: Mapping[str, float]) -> list[str]:
    """Cells: states visited, how many seeds reached the goal and solved it, rank correlation; medians over seeds."""
    known = collections.defaultdict(lambda: np.nan, novelty)
    states = f"{known['visited_states']:g}\nof {known['states']:,g}" if novelty else "-"
    ends = [_episodes(known[f"{name}_seeds"], known["seeds"], known[f"{name}_episode"]) for name in ("goal", "solved")]
    return [states, *ends, number(known["novelty_correlation"], 2)]


def _episodes(reached: float, seeds: float, episode: float) -> str:
    """How many seeds reached it, and the median episode over all seeds; one that has not counts as later than all."""
    if np.isnan(reached):
        return "-"
    when = f"\nepisode {episode:,g}" if np.isfinite(episode) else "\nmedian not yet" if reached else ""
    return f"by {reached:g} of {seeds:g}{when}"


def _value(line: Line, name: str) -> float:
    return line.estimates[name].value if name in line.estimates else np.nan


def _digits(estimates: Sequence[Estimate]) -> int:
    """Decimals that show three digits of the largest number; two where that is between 0.1 and 1."""
    extreme = max((abs(x) for estimate in estimates for x in estimate if np.isfinite(x)), default=0.0)
    return max(decimals(max(extreme, 1.0) if extreme > 0.1 else extreme) - 1, 0)


def _cell(estimate: Estimate, digits: int, seeds: int, between: str = "\n") -> str:
    """A number and, of enough seeds, its interval; a dash alone where there is no number."""
    value, low, high = (number(x, digits) for x in estimate)
    if not np.isfinite(estimate.value) or seeds < LEAST_SEEDS:
        return value
    return value + between + (f"{low} to {high}" if between == "\n" else f"({low} to {high})")


def _short(text: str) -> str:
    flags = text.split(" --")
    return " --".join(flags[:FEW_SETTINGS]) + (
        f" and {len(flags) - FEW_SETTINGS} more" if len(flags) > FEW_SETTINGS else ""
    )


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", "<br>")
