"""The table by its numbers, the curves by their pixels, and on a disk that refuses."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stages.figures import curves, look
from stages.figures.curves import curves_figure
from stages.report import score_table
from stages.results.statistics import summarise
from stages.store.files import RunFolderError
from tests.written import pixels

NAN, INF = float("nan"), float("inf")


# ---- the table ---------------------------------------------------------------------------------------------


def printed(summary, title, diverged=None):
    from rich.console import Console

    stream = io.StringIO()
    score_table.print_table(summary, title, diverged, Console(file=stream, width=90, color_system=None))
    return stream.getvalue()


def test_table_shows_every_number_and_the_seeds():
    summary = summarise([0.5, 0.25, NAN, 1.0, 0.75, 0.625], [3, 4, 5, 6, 7, 8])
    text = printed(summary, "Score [bold]")  # a title is not markup
    rows = {line[2:21].strip(): line[21:].split() for line in text.splitlines() if line.strip()}
    assert "Score [bold]" in text and "over 5 seeds" in text
    assert rows["mean"] == ["0.625"] and rows["median"] == ["0.625"]
    assert rows["interquartile mean"][0] == "0.625"
    assert rows["interquartile mean"][-3:] == [f"{summary.ci_low:.3f}", "to", f"{summary.ci_high:.3f}"]
    assert rows["worst seed"] == ["0.250", "seed", "4"] and rows["best seed"] == ["1.000", "seed", "6"]
    assert rows["no finite score"][-2:] == ["seed", "5"]


def test_table_of_few_seeds_has_no_interval():
    assert "fewer than 5 seeds: no interval" in printed(summarise([0.5, 0.25, 1.0, 0.75], [3, 4, 5, 6]), "t")
    assert "interval" not in printed(summarise([0.5], [3]), "t")


def test_what_is_rounded_to_zero_has_no_minus():
    assert [score_table.number(value, 2) for value in (-0.004, -0.006, 0.004)] == ["0.00", "-0.01", "0.00"]


def test_table_marks_seeds_that_diverged():
    text = printed(summarise([0.5, NAN], [3, 4]), "t", {3: 1200, 4: 7})
    (line,) = [line for line in text.splitlines() if "diverged" in line]
    assert line.split() == "diverged 2 frozen: seed 3 at step 1,200, seed 4 at step 7".split()
    assert "diverged" not in printed(summarise([0.5], [3]), "t")


def test_table_of_large_small_and_missing_scores():
    assert "123,456" in printed(summarise([123456.0], [0]), "one")
    assert "0.00012" in printed(summarise([0.00012, 0.0001], [0, 1]), "small")
    assert "seeds 0, 1" in printed(summarise([NAN, NAN], [0, 1]), "none")
    assert "0" in printed(summarise([0.0, 0.0], [0, 1]), "zero")


# ---- the curves --------------------------------------------------------------------------------------------


def plot_curves(path, *args, **kwargs):
    look.write_figure(path, curves_figure(*args, **kwargs))


def blue(image):
    """Share of pixels in the IQM's full colour."""
    target = np.array([int(curves.BLUE[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    return np.mean(np.abs(image - target).max(-1) < 0.02)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("seeds", "points"), [(32, 60), (1, 60), (8, 3), (1, 1), (5, 1)])
def test_curves_are_drawn(tmp_path, seeds, points):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(seeds, points)).cumsum(1)
    path = tmp_path / "curves.png"
    plot_curves(path, 100 * np.arange(1, points + 1), scores, title="t", ylabel="score")
    image = pixels(path)
    assert image.shape == (660, 1080, 3) and [p.name for p in tmp_path.iterdir()] == ["curves.png"]
    body = image[60:560, 120:]  # without title, axis labels and legend
    assert np.mean((body > 0.99).all(-1)) > 0.3 and blue(body) > 1e-5 * (10 if points > 1 else 1)


def test_few_seeds_are_drawn_and_have_no_band():
    """Of four seeds their curves and the mean with its rim; the band and its words come with the fifth."""
    labels = lambda seeds: [
        text.get_text()
        for text in curves_figure([0, 1], np.zeros((seeds, 2)), title="t", ylabel="y").legends[0].get_texts()
    ]
    assert labels(4) == ["interquartile mean", "4 seeds"]
    assert labels(5) == ["interquartile mean", "its 95 % bootstrap interval", "5 seeds"]
    bands = lambda seeds: len(curves_figure([0, 1], np.zeros((seeds, 2)), title="t", ylabel="y").axes[0].collections)
    assert bands(4) == 0 < bands(5)


def test_no_word_is_broken():
    title = "Navix-DoorKey-8x8-v0-with-a-rather-long-suffix (max_steps_in_episode 640): seeds"
    first, second = "Navix-DoorKey-8x8-v0-with-a-rather-long-suffix", "(max_steps_in_episode 640):"
    assert look.wrapped(title, 30).split("\n") == [first, second, "seeds"]
    assert look.wrapped("score (a b)", 6) == "score\n(a b)"


@pytest.mark.parametrize(("kind", "head"), [("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_the_suffix_says_the_format(tmp_path, kind, head):
    paths = [tmp_path / f"{name}.{kind}" for name in "ab"]
    for path in paths:
        plot_curves(path, [0, 1], [[0, 1]], title="t", ylabel="y")
    a, b = (path.read_bytes() for path in paths)
    assert a.startswith(head) and a == b


def test_the_users_way_to_save_pictures_is_not_ours(tmp_path):
    import matplotlib

    with matplotlib.rc_context({"savefig.dpi": 40, "savefig.bbox": "tight"}):
        plot_curves(tmp_path / "curves.png", [0, 1], [[0, 1]], title="t", ylabel="y")
    assert pixels(tmp_path / "curves.png").shape == (660, 1080, 3)


@pytest.mark.filterwarnings("error")
def test_curves_with_gaps_long_titles_and_every_line(tmp_path):
    rng = np.random.default_rng(0)
    scores = np.where(rng.random((6, 40)) < 0.8, NAN, rng.normal(size=(6, 40)))
    scores[0, 3], scores[1, 3] = INF, -INF
    plot_curves(
        tmp_path / "curves.png",
        np.arange(40) * 1000,
        scores,
        title=r"$\frac$ is no mathematics here, nor is [this] " * 4,
        ylabel=r"$\frac$ a long label that would not fit beside the axis on a single line",
        adapt_step=39_000,
        untrained=[5.0, NAN],
    )
    image = pixels(tmp_path / "curves.png")
    assert image.shape == (660, 1080, 3)
    for border in (image[:4], image[-4:], image[:, :4], image[:, -4:]):
        assert (border > 0.99).all()  # nothing runs out of the picture


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("points", [0, 4])
def test_curves_without_any_score(tmp_path, points):
    plot_curves(
        tmp_path / "c.png",
        np.arange(points),
        np.full((3, points), NAN),
        title="t",
        ylabel="y",
        untrained=[1.0] * 3,
    )
    assert pixels(tmp_path / "c.png").min() < 0.6


def test_curves_show_where_a_run_adapts_and_the_untrained_score(tmp_path):
    kwargs = {"steps": np.arange(50), "scores": np.zeros((2, 50)), "title": "t", "ylabel": "y"}
    plot_curves(tmp_path / "a.png", **kwargs)
    plot_curves(tmp_path / "b.png", **kwargs, adapt_step=25)
    plot_curves(tmp_path / "c.png", **kwargs, untrained=[0.0, 2.0])
    plain, marked, based = (pixels(tmp_path / f"{name}.png")[50:500, 200:1000] for name in "abc")
    grey_columns = (marked < 0.7).all(-1).mean(0) > 0.3
    assert 1 <= grey_columns.sum() <= 4 and not ((plain < 0.7).all(-1).mean(0) > 0.3).any()
    black_rows = (based < 0.5).all(-1).mean(1) > 0.3
    assert 1 <= black_rows.sum() <= 4 and not ((plain < 0.5).all(-1).mean(1) > 0.3).any()


def test_curves_mark_where_a_seed_diverged(tmp_path):
    """In red: at its last score, or on the axis if it had none."""
    scores = np.ones((3, 50))
    scores[1, 20:], scores[2] = NAN, NAN
    kwargs = {"steps": np.arange(50), "scores": scores, "title": "t", "ylabel": "y"}
    plot_curves(tmp_path / "a.png", **kwargs)
    plot_curves(tmp_path / "b.png", **kwargs, diverged=[0, 20, 40])
    red = [
        (image[..., 0] > image[..., 2] + 0.4)[:570] for image in map(pixels, (tmp_path / "a.png", tmp_path / "b.png"))
    ]
    assert not red[0].any()
    columns = np.flatnonzero(red[1].any(0))
    assert (np.diff(columns) > 50).sum() == 1, "two crosses, apart"
    left, right = (
        np.flatnonzero(red[1][:, each].any(1)).mean()
        for each in np.split(columns, 1 + np.argmax(np.diff(columns)).reshape(1))
    )
    assert right > left + 100, "the seed without a score is marked on the axis"


@pytest.mark.parametrize("step", [0, 500, 1000])
def test_the_label_of_a_line_stays_within_the_axes(step):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = curves_figure([0, 1000], np.zeros((2, 2)), title="t", ylabel="y", adapt_step=step)
    FigureCanvasAgg(figure).draw()
    [axes] = figure.axes
    [label], frame = axes.texts, axes.get_window_extent()
    assert frame.x0 <= label.get_window_extent().x0 and label.get_window_extent().x1 <= frame.x1


def test_curves_refuse_bad_shapes_and_bad_disks(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="wants steps"):
        plot_curves(tmp_path / "c.png", np.arange(3), np.zeros((2, 4)), title="t", ylabel="y")

    def disk_full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", disk_full)
    with pytest.raises(RunFolderError, match=r"c\.png.*free space"):
        plot_curves(tmp_path / "c.png", [0, 1], [[0, 1]], title="t", ylabel="y")
    assert list(tmp_path.iterdir()) == []


def test_drawing_leaves_pyplot_alone_and_the_import_is_light(tmp_path):
    code = """
import sys
from stages.figures.curves import curves_figure
from stages.figures.look import write_figure
heavy = {"matplotlib", "scipy", "rich", "jax"} & set(sys.modules)
assert not heavy, heavy
write_figure(sys.argv[1], curves_figure([0, 1], [[0, 1]], title="t", ylabel="y"))
assert not {"matplotlib.pyplot", "jax"} & set(sys.modules)
"""
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "c.png")], cwd=root, check=True)
