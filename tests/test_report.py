"""The report against hand computations, plain loops, scipy and a disk that refuses."""

import errno
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from stages import report
from stages.report import RunFolder, RunFolderError, iqm_curve, plot_curves, summarise

NAN, INF = float("nan"), float("inf")


# ---- statistics --------------------------------------------------------------------------------------------


def plain_interval(scores, resamples):
    """The bootstrap as a loop over resamples, from the same stream of draws. [S] -> low, high."""
    draws = np.random.default_rng(report.BOOTSTRAP_SEED).integers(
        0, len(scores), size=(resamples, len(scores))
    )
    iqms = []
    for draw in draws:
        sample = [scores[k] for k in draw if math.isfinite(scores[k])]
        if sample:
            iqms.append(scipy.stats.trim_mean(sample, 0.25))
    return np.percentile(iqms, 2.5), np.percentile(iqms, 97.5)


def test_summary_by_hand():
    result = summarise([8, 1, 7, 2, 100, 3, -50, 4], seeds=[10, 11, 12, 13, 14, 15, 16, 17])
    # Ordered: -50 1 | 2 3 4 7 | 8 100.
    assert result.iqm == (2 + 3 + 4 + 7) / 4
    assert result.median == 3.5
    assert result.mean == 75 / 8
    assert (result.worst, result.worst_seed) == (-50, 16)
    assert (result.best, result.best_seed) == (100, 14)
    assert (result.count, result.nonfinite) == (8, ())
    assert result.ci_low < result.iqm < result.ci_high


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 11, 32])
def test_iqm_and_interval_equal_a_plain_loop(count):
    scores = np.random.default_rng(count).normal(size=count)
    result = summarise(scores, range(count), resamples=200)
    assert result.iqm == pytest.approx(scipy.stats.trim_mean(scores, 0.25), rel=1e-12)
    assert (result.ci_low, result.ci_high) == pytest.approx(plain_interval(scores, 200), rel=1e-12)
    assert result == summarise(scores, range(count), resamples=200)


def test_interval_covers_the_truth():
    rng = np.random.default_rng(3)
    runs = rng.normal(loc=5.0, size=(24, 500))  # 500 sweeps of 24 seeds; the IQM of a normal is its mean
    curve = iqm_curve(runs, resamples=500)
    covered = np.mean((curve.low <= 5.0) & (curve.high >= 5.0))
    assert 0.88 <= covered <= 0.98
    # The IQM's efficiency on normal data is about 0.83, so its standard error is near 1 / sqrt(0.83 * 24).
    assert np.mean(curve.high - curve.low) == pytest.approx(2 * 1.96 / math.sqrt(0.83 * 24), rel=0.1)


def test_interval_tightens_with_seeds_and_closes_on_one():
    wide, narrow = (summarise(np.arange(n) % 4, range(n)) for n in (8, 128))
    assert narrow.ci_high - narrow.ci_low < (wide.ci_high - wide.ci_low) / 2
    alone = summarise([2.5], [7])
    assert (alone.iqm, alone.ci_low, alone.ci_high, alone.worst_seed, alone.best_seed) == (
        2.5,
        2.5,
        2.5,
        7,
        7,
    )


def test_scores_that_are_not_finite_are_reported():
    scores = [NAN, 1.0, INF, 3.0, 5.0, -INF]
    result = summarise(scores, [20, 21, 22, 23, 24, 25])
    assert result.nonfinite == (20, 22, 25)
    assert (result.count, result.mean, result.median, result.iqm) == (3, 3.0, 3.0, 3.0)
    assert (result.worst_seed, result.best_seed) == (21, 24)
    assert (result.ci_low, result.ci_high) == pytest.approx(plain_interval(scores, 2000), rel=1e-12)


def test_no_finite_score_at_all():
    result = summarise([NAN, INF], [0, 1])
    assert result.count == 0 and result.nonfinite == (0, 1)
    assert result.worst_seed is None and result.best_seed is None
    assert all(math.isnan(x) for x in (result.mean, result.iqm, result.ci_low, result.ci_high, result.best))


@pytest.mark.filterwarnings("error")
def test_curve_equals_summaries_point_by_point(monkeypatch):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(9, 30))
    scores[rng.random(scores.shape) < 0.4] = NAN
    scores[:, 4] = NAN  # nobody has a score here
    scores[1:, 5] = NAN  # one seed has
    scores[2, 6] = INF
    monkeypatch.setattr(report, "CHUNK_ELEMENTS", 300 * 9 * 7)  # 30 points in chunks of 7: a ragged last one
    curve = iqm_curve(scores, resamples=300)
    assert all(values.shape == (30,) for values in curve)
    for point in range(30):
        each = summarise(scores[:, point], range(9), resamples=300)
        expected = (each.iqm, each.ci_low, each.ci_high)
        assert (curve.iqm[point], curve.low[point], curve.high[point]) == pytest.approx(expected, nan_ok=True)
    assert np.flatnonzero(np.isnan(curve.iqm)).tolist() == [4]
    assert [curve.low[5], curve.iqm[5], curve.high[5]] == pytest.approx([scores[0, 5]] * 3)


def test_seeds_are_resampled_jointly():
    scores = np.random.default_rng(1).normal(size=(12, 1))
    curve = iqm_curve(scores + np.linspace(0, 3, 5))  # the same seeds, shifted: so must be the band
    np.testing.assert_allclose(curve.high - curve.low, (curve.high - curve.low)[0], rtol=1e-12)


def test_curve_without_points():
    assert all(values.shape == (0,) for values in iqm_curve(np.zeros((3, 0))))


@pytest.mark.parametrize(
    "call",
    [
        lambda: summarise([], []),
        lambda: summarise([1.0, 2.0], [0]),
        lambda: summarise([[1.0]], [0]),
        lambda: summarise([1.0], [0], resamples=0),
        lambda: iqm_curve(np.zeros(3)),
        lambda: iqm_curve(np.zeros((0, 3))),
    ],
)
def test_bad_shapes_are_refused(call):
    with pytest.raises(ValueError, match=r"wants|resamples"):
        call()


# ---- the run's folder --------------------------------------------------------------------------------------


def refused(call, *words):
    """`call` raises a RunFolderError of one line that holds all `words`."""
    with pytest.raises(RunFolderError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def disk_full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def lines(path):
    def no_constant(name):
        raise AssertionError(f"{name} is not JSON")

    text = path.read_text()
    assert not text or text.endswith("\n")
    return [json.loads(line, parse_constant=no_constant) for line in text.splitlines()]


def names(path):
    return sorted(each.name for each in path.iterdir())


def test_create_makes_parents_and_leaves_nothing_else(tmp_path):
    folder = RunFolder.create(tmp_path / "a" / "b")
    assert folder.path == tmp_path / "a" / "b" and names(folder.path) == []


def test_create_accepts_a_string_a_relative_path_and_an_existing_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    assert RunFolder.create(".").path.samefile(tmp_path)
    folder = RunFolder.create("run")
    assert folder.path.is_absolute() and names(tmp_path) == ["notes.txt", "run"]


def test_create_expands_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunFolder.create("~/run").path == tmp_path / "run"


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "summary.json"])
def test_create_refuses_a_run(tmp_path, name):
    (tmp_path / name).write_text("{}")
    refused(
        lambda: RunFolder.create(tmp_path), "already holds a run", name, "choose another --logdir", "remove"
    )
    assert names(tmp_path) == [name]


def test_create_refuses_a_file_and_a_path_through_a_file(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    refused(lambda: RunFolder.create(file), "Not a directory", "choose another --logdir")
    refused(lambda: RunFolder.create(file / "run"), "Not a directory", "choose another --logdir")
    assert file.read_text() == "mine" and names(tmp_path) == ["file"]


def test_create_refuses_a_dangling_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    refused(lambda: RunFolder.create(tmp_path / "link"), "choose another --logdir")
    assert names(tmp_path) == ["link"]


@pytest.mark.parametrize("path", ["", "nul\0byte", "x" * 5000, "new/" + "x" * 300, "two\nlines/" + "x" * 300])
def test_create_refuses_odd_names_and_cleans_up(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    refused(lambda: RunFolder.create(path), "--logdir")
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that even root cannot write")
def test_create_refuses_where_even_root_cannot_write():
    refused(lambda: RunFolder.create("/proc/run"), "--logdir")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_create_refuses_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    refused(lambda: RunFolder.create(tmp_path), "ermission", "--logdir")
    tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("code", "word"),
    [(errno.ENOSPC, "free space"), (errno.EROFS, "can be written"), (errno.EACCES, "permission")],
)
def test_create_removes_what_it_made_when_the_probe_fails(tmp_path, monkeypatch, code, word):
    def fsync(file):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    refused(lambda: RunFolder.create(tmp_path / "a" / "b"), os.strerror(code), word)
    assert names(tmp_path) == []
    (tmp_path / "old").mkdir()
    refused(lambda: RunFolder.create(tmp_path / "old"), word)
    assert names(tmp_path) == ["old"] and names(tmp_path / "old") == []


def test_create_cleans_up_after_an_interrupt(tmp_path, monkeypatch):
    def fsync(file):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(KeyboardInterrupt):
        RunFolder.create(tmp_path / "a" / "b")
    assert names(tmp_path) == []


def test_config_and_summary_are_valid_json(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    folder.write_config({"env": "Catch-bsuite", "sizes": (1, 2), "path": Path("x"), "lr": np.float32(0.5)})
    folder.write_summary(
        {"iqm": NAN, "best": INF, "worst": np.float64(-np.inf), "scores": np.array([1, NAN])}
    )
    assert names(folder.path) == ["config.json", "summary.json"]
    config = json.loads((folder.path / "config.json").read_text())
    assert config == {"env": "Catch-bsuite", "sizes": [1, 2], "path": "x", "lr": 0.5}
    summary = json.loads((folder.path / "summary.json").read_text())
    assert summary == {"iqm": None, "best": "Infinity", "worst": "-Infinity", "scores": [1.0, None]}
    assert float(summary["worst"]) == -INF


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch, broken):
    folder = RunFolder.create(tmp_path / "run")
    folder.write_summary({"round": 1})
    monkeypatch.setattr(os, broken, disk_full)
    refused(lambda: folder.write_summary({"round": 2}), "summary.json", "No space left", "free space")
    assert names(folder.path) == ["summary.json"]
    assert json.loads((folder.path / "summary.json").read_text()) == {"round": 1}


def test_metrics_are_appended_as_json_lines(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    folder.append_metrics([{"step": 10, "seed": s, "episode/score": [NAN, 1.5][s]} for s in range(2)])
    folder.append_metrics([])
    folder.append_metrics([{"step": np.int32(20), "seed": 0, "train/loss/rew": INF, "note": "a\nb"}])
    assert lines(folder.path / "metrics.jsonl") == [
        {"step": 10, "seed": 0, "episode/score": None},
        {"step": 10, "seed": 1, "episode/score": 1.5},
        {"step": 20, "seed": 0, "train/loss/rew": "Infinity", "note": "a\nb"},
    ]


def test_disk_full_amid_a_row_leaves_whole_lines(tmp_path, monkeypatch):
    folder = RunFolder.create(tmp_path / "run")
    folder.append_metrics([{"step": 0}])
    write, calls = os.write, []

    def half(file, data):
        calls.append(len(data))
        return write(file, bytes(data[: len(data) // 2])) if len(calls) == 1 else disk_full()

    monkeypatch.setattr(os, "write", half)
    refused(lambda: folder.append_metrics([{"step": k} for k in (1, 2, 3)]), "metrics.jsonl", "free space")
    assert len(calls) == 2
    monkeypatch.undo()
    assert lines(folder.path / "metrics.jsonl") == [{"step": 0}]
    folder.append_metrics([{"step": 1}])
    assert lines(folder.path / "metrics.jsonl") == [{"step": 0}, {"step": 1}]


def test_short_writes_are_continued(tmp_path, monkeypatch):
    folder = RunFolder.create(tmp_path / "run")
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, bytes(data[:7])))
    rows = [{"step": k, "seed": k % 3} for k in range(20)]
    folder.append_metrics(rows)
    assert lines(folder.path / "metrics.jsonl") == rows


@pytest.mark.parametrize("whole", ["", '{"step": 0}\n'])
@pytest.mark.parametrize("tail", ['{"step": 1, "sc', "x" * 200_000])
def test_a_half_written_tail_is_repaired(tmp_path, whole, tail):
    folder = RunFolder.create(tmp_path / "run")
    (folder.path / "metrics.jsonl").write_text(whole + tail)
    folder.append_metrics([{"step": 2}])
    assert lines(folder.path / "metrics.jsonl") == [json.loads(line) for line in whole.splitlines()] + [
        {"step": 2}
    ]


def test_a_row_that_is_not_json_costs_nothing(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    folder.append_metrics([{"step": 0}])
    with pytest.raises(TypeError):
        folder.append_metrics([{"step": 1}, {"step": object()}])
    assert lines(folder.path / "metrics.jsonl") == [{"step": 0}]


def test_a_vanished_folder_is_explained(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    folder.path.rmdir()
    for call in (lambda: folder.append_metrics([{"step": 0}]), lambda: folder.write_summary({})):
        refused(call, "No such file", "removed")


# ---- the table ---------------------------------------------------------------------------------------------


def printed(interval, title):
    from rich.console import Console

    stream = io.StringIO()
    report.print_table(interval, title, Console(file=stream, width=90, color_system=None))
    return stream.getvalue()


def test_table_shows_every_number_and_the_seeds():
    interval = summarise([0.5, 0.25, NAN, 1.0, 0.75], [3, 4, 5, 6, 7])
    text = printed(interval, "Score [bold]")  # a title is not markup
    rows = {line[2:21].strip(): line[21:].split() for line in text.splitlines() if line.strip()}
    assert "Score [bold]" in text and "over 4 seeds" in text
    assert rows["mean"] == ["0.625"] and rows["median"] == ["0.625"]
    assert rows["interquartile mean"][0] == "0.625"
    assert rows["interquartile mean"][-3:] == [f"{interval.ci_low:.3f}", "to", f"{interval.ci_high:.3f}"]
    assert rows["worst seed"] == ["0.250", "seed", "4"] and rows["best seed"] == ["1.000", "seed", "6"]
    assert rows["no finite score"][-2:] == ["seed", "5"]


def test_table_of_large_small_and_missing_scores():
    assert "123,456" in printed(summarise([123456.0], [0]), "one")
    assert "0.00012" in printed(summarise([0.00012, 0.0001], [0, 1]), "small")
    assert "seeds 0, 1" in printed(summarise([NAN, NAN], [0, 1]), "none")
    assert "0" in printed(summarise([0.0, 0.0], [0, 1]), "zero")


# ---- the curves --------------------------------------------------------------------------------------------


def pixels(path):
    from matplotlib.image import imread

    return imread(path)[..., :3]  # [height, width, 3], 0 to 1


def blue(image):
    """Share of pixels in the IQM's full colour."""
    target = np.array([int(report.BLUE[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    return np.mean(np.abs(image - target).max(-1) < 0.02)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("seeds", "points"), [(32, 60), (1, 60), (8, 3), (1, 1), (5, 1)])
def test_curves_are_drawn(tmp_path, seeds, points):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(seeds, points)).cumsum(1)
    path = tmp_path / "curves.png"
    plot_curves(path, 100 * np.arange(1, points + 1), scores, title="t", ylabel="score")
    image = pixels(path)
    assert image.shape == (660, 1080, 3) and names(tmp_path) == ["curves.png"]
    body = image[60:560, 120:]  # without title, axis labels and legend
    assert np.mean((body > 0.99).all(-1)) > 0.3 and blue(body) > 1e-5 * (10 if points > 1 else 1)


@pytest.mark.filterwarnings("error")
def test_curves_with_gaps_long_titles_markers_and_baseline(tmp_path):
    rng = np.random.default_rng(0)
    scores = np.where(rng.random((6, 40)) < 0.8, NAN, rng.normal(size=(6, 40)))
    scores[0, 3], scores[1, 3] = INF, -INF
    plot_curves(
        tmp_path / "curves.png",
        np.arange(40) * 1000,
        scores,
        title=r"$\frac$ is no mathematics here, nor is [this] " * 4,
        ylabel=r"$\frac$ a long label that would not fit beside the axis on a single line",
        markers=[(39_000, "end of the run"), (0, "explore"), (20_000, "adapt"), (21_000, r"$\frac$")],
        baseline=(5.0, r"random policy $\frac$"),
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
        baseline=(1.0, "b"),
    )
    assert pixels(tmp_path / "c.png").min() < 0.6


def test_curves_show_marker_and_baseline(tmp_path):
    kwargs = {"steps": np.arange(50), "scores": np.zeros((2, 50)), "title": "t", "ylabel": "y"}
    plot_curves(tmp_path / "a.png", **kwargs)
    plot_curves(tmp_path / "b.png", **kwargs, markers=[(25, "adapt")])
    plot_curves(tmp_path / "c.png", **kwargs, baseline=(1.0, "random"))
    plain, marked, based = (pixels(tmp_path / f"{name}.png")[50:500, 200:1000] for name in "abc")
    grey_columns = (marked < 0.7).all(-1).mean(0) > 0.3
    assert 1 <= grey_columns.sum() <= 4 and not ((plain < 0.7).all(-1).mean(0) > 0.3).any()
    black_rows = (based < 0.5).all(-1).mean(1) > 0.3
    assert 1 <= black_rows.sum() <= 4 and not ((plain < 0.5).all(-1).mean(1) > 0.3).any()


def test_marker_labels_do_not_meet():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=report.SIZE_INCHES, dpi=report.DPI)
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    axes.set_xlim(0, 100)
    markers = [(0, "explore"), (1, "a rather long phase"), (50, "middle"), (99, "adapt"), (100, "the end")]
    assert report._draw_markers(axes, markers) == 2
    canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 5
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])


def test_curves_refuse_bad_shapes_and_bad_disks(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="wants steps"):
        plot_curves(tmp_path / "c.png", np.arange(3), np.zeros((2, 4)), title="t", ylabel="y")
    monkeypatch.setattr(os, "replace", disk_full)
    refused(
        lambda: plot_curves(tmp_path / "c.png", [0, 1], [[0, 1]], title="t", ylabel="y"),
        "c.png",
        "free space",
    )
    assert names(tmp_path) == []


def test_drawing_leaves_pyplot_alone_and_the_import_is_light(tmp_path):
    code = """
import sys
from stages.report import plot_curves
heavy = {"matplotlib", "scipy", "rich", "jax"} & set(sys.modules)
assert not heavy, heavy
plot_curves(sys.argv[1], [0, 1], [[0, 1]], title="t", ylabel="y")
assert not {"matplotlib.pyplot", "jax"} & set(sys.modules)
"""
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "c.png")], cwd=root, check=True)
