"""The report of a run: one page, whole and by itself, by its elements and words; pictures by their lines."""

import base64
import dataclasses
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest

from stages.commands.command import command
from stages.commands.page import page
from stages.figures.metric import metric_figure
from stages.results.read import read_runs
from tests.written import COUNTED, listed, write_run

NAN = math.nan
VOID = {"meta", "img", "br"}


class Elements(HTMLParser):
    """Every element closes where it should; what refers to elsewhere is noted."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.seen, self.links, self.words = [], [], [], []
        self.feed(text)
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.stack = self.stack if tag in VOID else self.stack[:-1]

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def cards(text):
    """The numbers at the top: words -> (number, what is below it)."""
    found = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd><small>(.*?)</small>", text)
    return {name: (value, below) for name, value, below in found}


def test_a_page_holds_no_file_from_outside_the_run(tmp_path):
    (tmp_path / "secret").write_bytes(b"picture")
    path = write_run(tmp_path / "a", **COUNTED)
    (path / "novelty.png").symlink_to(tmp_path / "secret")
    assert base64.b64encode(b"picture").decode() not in page(read_runs([path])[0])


@pytest.mark.filterwarnings("error")
def test_a_page_is_whole_and_needs_nothing_else(tmp_path):
    words = ["--env", "DeepSea-bsuite", "--env.size", "6", "--hypers.lr", "0.001"]
    path = write_run(tmp_path / "a<b>", words, evaluation=[[0.25, 0.5], [0.5, NAN]], final=(0.5, 0.99),
                     wall_seconds=300.0, compile_seconds=30.0, peak_memory_mb=1500.0, **COUNTED)  # fmt: skip
    (path / "novelty.png").write_bytes(b"picture")
    text = page(read_runs([path])[0])
    elements = Elements(text)
    # Two curves, and recon, length and speed, small.
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert titles == [
        "Final scores", "Exploration", "Learning curves", "Episodes", "World model", "Optimiser and speed",
    ]  # fmt: skip
    assert elements.seen.count("img") == 6 and not {"script", "link"} & set(elements.seen)
    kinds = [link.split(";base64,")[0] for link in elements.links]
    assert sorted(kinds) == ["data:image/png"] + ["data:image/svg+xml"] * 5
    assert not re.search(r"@import|url\(", text)
    assert "data:image/png;base64,cGljdHVyZQ==" in elements.links
    assert text == page(read_runs([path])[0]), "the same run, the same page"
    for link in elements.links[1:]:
        drawing = ElementTree.fromstring(base64.b64decode(link.split(",")[1]))
        assert drawing.tag == "{http://www.w3.org/2000/svg}svg" and "viewBox" in drawing.attrib
        refers = [value for each in drawing.iter() for name, value in each.attrib.items() if name.endswith("href")]
        assert all(value.startswith("#") for value in refers), refers
    assert 'alt="training score over steps"' in text and 'alt="reconstruction"' in text
    assert '<figure title="train/loss/recon"><figcaption>reconstruction</figcaption>' in text
    found = cards(text)
    assert found["interquartile mean"][0] == "0.745" and found["untrained"][0] == "0.000"
    # Shares of 0.99 that are missing: 0.495 and none.
    assert found["optimality gap"] == ("25%", "short of the best score")
    assert found["steps"] == ("200", "rows of replay, a seed")
    assert found["time"] == ("5 min", "30 s of it compiling") and found["peak memory"][0] == "1.5 GB"
    assert found["speed"][0] == "100"
    said = " ".join(elements.words)
    assert "the median over seeds bold, each seed faint, over rows of replay" in said
    assert "--mode task" in said and "--env DeepSea-bsuite --env.size 6 --steps 200 --hypers.lr 0.001" in said
    assert re.search(r"<td>hypers.lr</td><td>0.001</td><td>0.002</td>", text)
    assert "<td>4</td><td>0.99</td><td>0</td><td>12</td><td>-</td><td>8</td>" in text, "seed 4's numbers"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("training", [[], [[NAN, NAN]], [[0.0] * 12] * 3], ids=["none", "no episode", "12 seeds"])
def test_a_page_of_a_run_at_work(tmp_path, training):
    path = write_run(tmp_path / "a", training=training, final=None if training else (1.0,))
    Elements(text := page(read_runs([path])[0]))
    assert "interquartile mean" not in cards(text) if training else "no curve of it" in text
    assert ("is not finished" in text) == bool(training)


def test_a_preset_that_is_gone_is_no_obstacle(tmp_path):
    [run] = read_runs([write_run(tmp_path / "a")])
    Elements(page(dataclasses.replace(run, settings={**run.settings, "preset": "gone"})))


def test_a_metric_over_decades_is_on_a_logarithmic_scale():
    scale = lambda *values: metric_figure(np.arange(3.0), np.array([values])).axes[0].get_yscale()
    assert [scale(1.0, 10.0, 1000.0), scale(1.0, 2.0, 3.0), scale(-1.0, 10.0, 1e4)] == ["log", "linear", "linear"]


def test_a_seed_that_has_not_arrived_is_later_in_the_picture():
    """Of four seeds one arrives in episode 9, then two more in 20 and 30: medians none, and (20 + 30) / 2."""
    episodes = np.array([[9.0, 9.0], [NAN, 20.0], [NAN, 30.0], [NAN, NAN]])
    median = lambda arrival: metric_figure(np.arange(2.0), episodes, None, arrival).axes[0].lines[-1].get_ydata()
    np.testing.assert_array_equal(median(True), [NAN, 25.0])
    np.testing.assert_array_equal(median(False), [9.0, 20.0])


def test_the_band_of_arrivals_is_open_above():
    """Of ten seeds four have arrived: 10 % of them by episode 9, and the latest in 40."""
    episodes = np.full((10, 2), NAN)
    episodes[:4, 1] = 5, 9, 20, 40
    [band] = metric_figure(np.arange(2.0), episodes, None, True).axes[0].collections
    drawn = band.get_paths()[0].vertices[:, 1]
    assert (drawn.min(), drawn.max()) == (9, 40)


def test_many_seeds_are_a_band():
    count = lambda seeds: len(metric_figure(np.arange(3.0), np.ones((seeds, 3))).axes[0].lines)
    assert (count(8), count(9)) == (9, 1)


def test_report_leaves_its_files_in_the_run_or_elsewhere(tmp_path, capsys):
    path = write_run(tmp_path / "a")
    assert command(["report", str(path)]) == 0 and command(["report", str(path), "--out", str(tmp_path / "b")]) == 0
    assert (path / "report.html").read_text() == (tmp_path / "b" / "report.html").read_text()
    assert len(listed(path / "results.csv")) == 8 and "report.html" in capsys.readouterr().out
    assert command(["report", str(tmp_path / "none")]) == 2


def test_the_curves_in_a_file_for_a_paper(tmp_path):
    path = write_run(tmp_path / "a")
    assert command(["report", str(path), "--format", "pdf"]) == 0
    assert (path / "curves.pdf").read_bytes().startswith(b"%PDF")
    empty = write_run(tmp_path / "b", training=[])
    assert command(["report", str(empty), "--format", "svg"]) == 2
