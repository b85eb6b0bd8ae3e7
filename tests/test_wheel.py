"""The wheel: built from a copy of the checkout, without the network, and used where no checkout can be imported."""

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
USE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("stages", "envs", "run"):
            raise ImportError(name + " is the checkout's")
sys.meta_path.insert(0, Refuse())
import dreamsweep
from dreamsweep.envs import Environment, make
from dreamsweep.run import program
assert dreamsweep.library.configure and isinstance(make("Catch-bsuite", {}), Environment)
sys.argv = ["dreamsweep", *sys.argv[1:]]
sys.exit(program())
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What the wheel holds, in a folder; as pip would have it."""
    copy, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "run.py"):
        shutil.copy(ROOT / name, copy)
    for name in ("stages", "envs", ".ci"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    words = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(words, cwd=copy, check=True, capture_output=True)
    [wheel] = out.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(out / "site")
    return out / "site"


def test_the_wheel_has_one_name_and_a_command(installed):
    assert {path.name.partition("-")[0] for path in installed.iterdir()} == {"dreamsweep"}
    [entries] = installed.glob("*.dist-info/entry_points.txt")
    assert "dreamsweep = dreamsweep.run:program" in entries.read_text()
    for folder in ("stages", "envs"):
        modules = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.py")}
        assert modules == {path.relative_to(installed / "dreamsweep") for path in installed.rglob(f"{folder}/**/*.py")}


def test_no_module_of_it_imports_the_checkouts(installed):
    for path in installed.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & {"stages", "envs", "run"}, path


def test_it_is_used_by_its_one_name(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", USE, "envs"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Catch-bsuite" in done.stdout and "dreamsweep envs SUITE lists another suite's" in done.stdout
