"""docs/quickstart.ipynb: it runs, the outputs that it holds are of that kind, and it is a page of the site."""

import importlib.util
import json
from base64 import b64decode
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.runs import MIXED

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"
# A run that other tests compile, in the place of the notebook's, which takes minutes.
SETTINGS = f"""import functools
from stages.cli.parse import parse
from stages.sweep import rounds, sweep
sweep.EACH_CHUNK = sweep.ONCE  # as conftest.py has it
arguments = parse({MIXED})
config, hypers = arguments.config, arguments.hypers
training = dict(seeds=2, log_points=2, devices=1, parallel=2)
# Both trainings have the programs of the first.
rounds.CompiledPhase = functools.cache(rounds.CompiledPhase)
envs.make = functools.partial(lambda env, *_: env, envs.make(config.env, dict(config.env_args)))"""


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(cell) -> tuple[str, list[bytes]]:
    """What it printed, and its pictures."""
    data = [output.get("data") or {"text/plain": output.text} for output in cell.outputs]
    pictures = [b64decode(each["image/png"]) for each in data if "image/png" in each]
    return "".join(each["text/plain"] for each in data if "image/png" not in each), pictures


def assert_shows_what_it_promises(notebook):
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    *_, train, novelty, act, compare = [outputs(cell) for cell in cells]
    assert train[0].count("states visited, the taskers score") >= 2
    assert act[0].startswith("5 . .") and "scores [" in act[0]
    assert all(words in compare[0] for words in ("IQM", "alone", "2 seeds", "states visited"))
    pictures = novelty[1] + compare[1]
    assert len(pictures) == 2 and all(picture.startswith(b"\x89PNG") for picture in pictures)


def test_it_runs_to_its_end(notebook, tmp_path, monkeypatch):
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    [settings] = [cell for cell in notebook.cells if "settings" in cell.metadata.get("tags", [])]
    settings.source = SETTINGS
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=where).execute()
    assert_shows_what_it_promises(notebook)


def test_it_is_kept_with_its_outputs(notebook):
    assert_shows_what_it_promises(notebook)
    assert NOTEBOOK.stat().st_size < 600_000


def test_it_is_a_page_of_the_site(notebook):
    spec = importlib.util.spec_from_file_location("notebook", ROOT / ".ci" / "notebook.py")
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    page = hook.markdown(json.loads(NOTEBOOK.read_text()))
    assert page.startswith("# Quickstart\n") and page.count("](data:image/png;base64,") == 2
    for cell in notebook.cells:
        assert cell.source in page
    printed = [line for cell in code_cells(notebook) for line in outputs(cell)[0].rstrip().splitlines()]
    assert len(printed) > 30 and all(hook.STYLE.sub("", line) in page for line in printed)
    assert "\x1b" not in page and "/tmp" not in page
