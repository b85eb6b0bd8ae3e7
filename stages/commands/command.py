"""Commands: what `python run.py NAME ...` does beside training.

Commands that let agents play import and start jax inside the function, so that the others start fast.
"""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from envs.errors import EnvError
from stages.cli import terminal
from stages.cli.arguments import mode_title
from stages.cli.validate import check_pictures
from stages.commands.page import learning_curves, page
from stages.config import ConfigError
from stages.figures.comparison import plot_comparison
from stages.figures.grid import plot_grid
from stages.figures.look import write_figure
from stages.report.compare import compare
from stages.report.export import write_scores, write_table
from stages.report.grid import grid_of
from stages.report.tables import comparison_json, markdown, print_tables, tables
from stages.results.read import read_run, read_runs
from stages.store.files import RunFolderError, make_folder, write_json, write_whole

MOST_PLAYED = 65_536  # episodes of a seed side by side, or rows of a film; the same limit as of --eval-episodes
Run = Annotated[Path, tyro.conf.arg(metavar="RUN")]
PolicyName = Literal["task", "explore", "random"]
Trust = Annotated[
    bool,
    tyro.conf.arg(help="Import the module that the run's config.json names, where its environment is one of your own."),
    tyro.conf.FlagCreatePairsOff,
]
Best = Annotated[
    bool,
    tyro.conf.arg(help="Each seed's agent as it was where its evaluation scored most: runs with --checkpoint-best."),
    tyro.conf.FlagCreatePairsOff,
]
Format = Literal["png", "pdf", "svg"]
Runs = Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN ...")]


def compare_runs(runs: Runs, /, out: str = "", format: Format = "png") -> None:
    """Compare runs: final scores with intervals, the probability that one is better, curves and exploration.

    Runs of one environment are compared with each other. Settings that were run on several environments are also
    aggregated over these.

    Args:
        runs: folders of runs, finished or not; the folder of a sweep, or of several runs, stands for all runs in it.
        out: folder for compare.png (and sweep.png, of a sweep's trials), compare.md, compare.json, results.csv (one
            long table for pandas) and scores/ (for DreamerV3's plotting script); runs/compare-TIME if empty.
        format: of the pictures.
    """
    comparison = compare(read_runs(runs))
    folder = make_folder(out or f"runs/compare-{time.strftime('%Y%m%d-%H%M%S')}")
    with terminal.printing():
        print_tables(tables(comparison))
    write_whole(folder / "compare.md", markdown(tables(comparison)).encode())
    write_json(folder / "compare.json", comparison_json(comparison))
    write_table(folder / "results.csv", comparison.runs, comparison.differing)
    write_scores(folder / "scores", comparison.runs)
    plot_comparison(folder / f"compare.{format}", comparison)
    if any(run.summary.get("settings") for run in comparison.runs):
        plot_grid(folder / f"sweep.{format}", grid_of(comparison.runs))
    terminal.say(f"see {folder}: compare.{format}, compare.md, compare.json, results.csv, scores/")


def report_run(run: Run, /, out: str = "", format: Format | None = None) -> None:
    """A run as one page of HTML that needs nothing else: scores, curves, losses, entropies, exploration, settings.

    Args:
        run: folder of a run, finished or not.
        out: folder for report.html and results.csv (one long table for pandas); the run's own if empty.
        format: of the learning curves in a file of their own, curves.FORMAT; none if it is not given.
    """
    result = read_run(run)
    folder = make_folder(out or run)
    write_table(folder / "results.csv", [result], [])
    write_whole(folder / "report.html", page(result).encode())
    if format:
        figures = learning_curves(result, f"{result.env}, {mode_title(result.settings)}")
        if not figures:
            raise RunFolderError(f"{str(run)!r} has no line in its metrics.jsonl: there are no curves to draw")
        write_figure(folder / f"curves.{format}", next(iter(figures.values())))
    terminal.say(f"see {folder / 'report.html'}, and results.csv beside it")


def eval_run(
    run: Run,
    /,
    episodes: int = 100,
    policy: PolicyName = "task",
    best: Best = False,
    eval_seed: int | None = None,
    trust: Trust = False,
) -> None:
    """Let a run's agents play again, from their newest checkpoints. Leaves eval.json in the run's folder.

    It shows the scores of each seed, and how well the world model predicts. The model sees 5 rows of an episode and is
    then run forward with the actions that were taken. The errors are of the observations 1, 5 and 15 rows later. Beside
    them stand the errors where the model sees those rows, too.

    Args:
        run: folder of a run, finished or not.
        episodes: of each seed.
        policy: who plays: the tasker, the explorer, or uniformly random actions.
        eval_seed: the number from which the episodes are drawn. If it is not given, they are those of the run's own
            evaluation at that step, provided that --episodes equals the run's --eval-episodes.
    """
    _check_count("--episodes", episodes)
    if eval_seed is not None and not 0 <= eval_seed < 2**31 - 1:
        raise ConfigError(f"--eval-seed must be 0 or more and below 2^31 - 1, not {eval_seed}")
    _start_jax()
    from stages.store.load import load_run
    from stages.watch import scores

    loaded = load_run(run, trust, best)
    for note in scores.notes(loaded):
        terminal.warn(note)
    played = scores.play(loaded, policy, episodes, eval_seed)
    with terminal.printing():
        scores.print_scores(loaded, played, policy)
    write_json(loaded.path / "eval.json", scores.scores_json(loaded, played, policy, eval_seed))
    terminal.say(f"see {loaded.path / 'eval.json'}")


def video_run(
    run: Run,
    /,
    seed: int | None = None,
    policy: PolicyName = "task",
    best: Best = False,
    out: str = "",
    rows: int = 120,
    fps: float = 8.0,
    eval_seed: int = 0,
    trust: Trust = False,
) -> None:
    """A GIF of an agent playing, from a run's newest checkpoint, and beside it what its world model expects.

    The model sees 5 rows of an episode, predicts the next 15 from the actions that were taken, and sees 5 again. Below
    stand the error of the prediction and, where the run has an explorer, the novelty of the chosen action: the
    ensemble's disagreement, or the run's other intrinsic reward.

    Args:
        run: folder of a run, finished or not.
        seed: which agent; the first one if it is not given.
        policy: who plays: the tasker, the explorer, or uniformly random actions.
        out: the file, a .gif; RUN/seed-N-POLICY.gif if empty.
        rows: length of the film; short episodes follow each other.
        fps: rows a second.
        eval_seed: the number from which the episodes are drawn.
    """
    _check_count("--rows", rows)
    if not 1 <= fps <= 50:
        raise ConfigError(f"--fps must be 1 to 50, not {fps:g}")
    if out and Path(out).suffix.lower() != ".gif":
        raise ConfigError(f"--out must end in .gif, not {out!r}: films are GIFs")
    if not 0 <= eval_seed < 2**31 - 1:
        raise ConfigError(f"--eval-seed must be 0 or more and below 2^31 - 1, not {eval_seed}")
    _start_jax()
    from stages.store.load import group_of, load_run
    from stages.watch.video import write_video

    loaded = load_run(run, trust, best)
    seed = loaded.groups[0].seeds[0] if seed is None else seed
    group = group_of(loaded, seed)
    file = Path(out) if out else loaded.path / f"seed-{seed}-{policy}.gif"
    make_folder(file.parent)
    write_video(file, group, seed, policy, rows, fps, eval_seed)
    terminal.say(f"see {file}")


def export_run(run: Run, /, out: str, seeds: int | None = None, best: Best = False, trust: Trust = False) -> None:
    """A copy of a run that holds what eval, video, report and compare need, and no optimiser, replay or picture: small
    enough to be kept or sent. Training cannot go on with it.

    Args:
        run: folder of a run, finished or not.
        out: the new folder.
        seeds: how many of its seeds, from the first; all if it is not given.
    """
    _start_jax()
    from stages.commands.copy_run import copy_run

    folder = copy_run(run, out, seeds, trust, best)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    terminal.say(f"see {folder}: {size / 1e6:.2f} MB")


def list_environments(suite: Annotated[str, tyro.conf.arg(metavar="SUITE")] = "", /) -> None:
    """List what --env takes: gymnax's ids, or those of another suite, SUITE::ID.

    Args:
        suite: navix, craftax, mujoco_playground, brax or jumanji; its extra has to be installed.
    """
    from envs import envelope_suite, registry

    for name in envelope_suite.suite_ids(suite) if suite not in ("", "gymnax") else registry.ids():
        terminal.say(name)
    if not suite:
        terminal.say(
            f"python run.py envs SUITE lists another suite's: {', '.join(envelope_suite.SUITES)}; --env module:factory "
            "takes one of your own"
        )


def _check_count(flag: str, value: int) -> None:
    if not 1 <= value <= MOST_PLAYED:
        raise ConfigError(f"{flag} must be 1 to {MOST_PLAYED:,}, not {value:,}")


def _start_jax() -> None:
    from stages.sweep import start

    start.start_jax()
    start.local_devices()


def _fit_help(function: Callable[..., None]) -> str:
    """The paragraphs before `Args:`, in lines as wide as the terminal. tyro keeps a line break only before a space.

    The docstring gets each argument's help on one line, since tyro would keep the source's line breaks.
    """
    words, _, arguments = (inspect.getdoc(function) or "").partition("\n\nArgs:")
    width = shutil.get_terminal_size().columns
    paragraphs = [textwrap.fill(" ".join(text.split()), width, subsequent_indent="  ") for text in words.split("\n\n")]
    function.__doc__ = f"{words}\n\nArgs:" + re.sub(r"\n {8,}", " ", arguments)
    return "\n\n".join(paragraphs)


COMMANDS: dict[str, Callable[..., None]] = {
    "compare": compare_runs,
    "report": report_run,
    "eval": eval_run,
    "video": video_run,
    "export": export_run,
    "envs": list_environments,
}


def command(argv: Sequence[str]) -> int | None:
    """Run the command that the first word names. Returns the exit code, or None if the word is no command."""
    if not argv or argv[0] not in COMMANDS:
        return None
    terminal.replace_unencodable()
    try:
        check_pictures()
        function = COMMANDS[argv[0]]
        tyro.cli(function, args=argv[1:], prog=f"run.py {argv[0]}", description=_fit_help(function))
    except (ConfigError, EnvError) as error:
        terminal.say(f"run.py: error: {error}", error=True)
        return 2
    except RunFolderError as error:
        # The message names --logdir, but in a command the folder is an argument or another flag's value.
        flag = "--out" if "out" in inspect.signature(COMMANDS[argv[0]]).parameters else "folder"
        terminal.say(f"run.py: error: {str(error).replace('--logdir', flag)}", error=True)
        return 2
    finally:
        terminal.discard_unflushed()
    return 0
