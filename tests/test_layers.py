"""The layers of the house: every module of stages/ imports only from layers below its own; envs/ imports no stage."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = [
    {"config", "kernels", "memory", "blocks", "recur"},
    {"maths", "nets", "replay", "processes"},
    {"encode", "decode", "rssm", "ensemble"},
    {"world_model", "imagine"},
    {"behavior"},
    {"agent"},
    {"loss", "collect", "evaluate", "optimizer"},
    {"train"},
    {"sweep", "report", "folder"},
    {"rounds"},
    {"record"},
]
# Within a layer, these lean on a neighbour that leans on nobody there.
NEIGHBOURS = {("decode", "encode"), ("imagine", "world_model"), ("evaluate", "collect"), ("report", "folder")}
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imported(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def stages_of(names: set[str]) -> set[str]:
    """The stages among imported names."""
    return {n.split(".")[1] for n in names if n.startswith("stages.")} & LEVEL.keys()


@pytest.mark.parametrize("path", sorted((ROOT / "stages").glob("[!_]*.py")), ids=lambda p: p.stem)
def test_stage_imports_downward_only(path):
    assert path.stem in LEVEL, f"{path.name} has no layer: give it one in this test and in the README"
    for other in stages_of(imported(path)):
        below = LEVEL[other] < LEVEL[path.stem] or (path.stem, other) in NEIGHBOURS
        assert below, f"stages/{path.name} (layer {LEVEL[path.stem]}) imports {other} (layer {LEVEL[other]})"


@pytest.mark.parametrize("path", sorted((ROOT / "envs").glob("*.py")), ids=lambda p: p.stem)
def test_envs_import_no_stage(path):
    assert not any(name.split(".")[0] in ("stages", "run") for name in imported(path))


def test_the_checker_sees_a_wrong_import(tmp_path):
    file = tmp_path / "maths.py"
    file.write_text("def f():\n    from stages import train\n    import stages.loss\n")
    assert stages_of(imported(file)) == {"train", "loss"}


def test_no_code_at_top_level_but_run():
    assert {p.name for p in ROOT.glob("*.py")} == {"run.py"}
