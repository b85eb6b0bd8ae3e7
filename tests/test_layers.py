"""The layers of the house: the wings of stages/ and its flat files import downward only; envs/ imports no stage."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the bottom up. A module may import from the lines before its own, and from those before it on its line.
LAYERS = [
    ["config", "presets"],
    ["fast", "finite"],
    ["networks"],
    ["replay", "returns", "encode", "rssm", "decode"],
    ["world_model", "imagine", "obs_numbers", "ensemble", "intrinsic", "rnd", "count", "episodic"],
    ["behavior", "rewards", "uniform", "agent"],
    ["loss", "optimizer", "collect", "evaluate"],
    ["measure"],
    ["train"],
    ["cli"],
    ["store"],
    ["sweep"],
    ["results"],
    ["report"],
    ["figures"],
    ["log"],
    ["watch"],
    ["loop"],
    ["commands"],
    ["library"],
]
ORDER = {room: place for place, room in enumerate(room for rooms in LAYERS for room in rooms)}
MODULES = sorted(p for p in (ROOT / "stages").rglob("*.py") if p.name != "__init__.py")


def room_of(module: str) -> str:
    """The wing or flat file that a module of stages/ is in: "stages.fast.kernels" -> "fast"."""
    return module.split(".")[1]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms_of(names: set[str]) -> set[str]:
    """The rooms among imported names."""
    return {room_of(n) for n in names if n.startswith("stages.")} & ORDER.keys()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_stages_import_downward_only(path):
    room = room_of(name_of(path))
    assert room in ORDER, f"stages/{room} has no layer: give it one in this test and in docs/design.md"
    for other in rooms_of(imported(path)) - {room}:
        assert ORDER[other] < ORDER[room], f"{name_of(path)} imports {other}, which stands above it"


def modules_imported(path: Path) -> set[str]:
    """The modules of stages/ that a file imports."""
    known = {name_of(p) for p in MODULES}
    return imported(path) & known


def test_no_modules_import_each_other_in_a_circle():
    edges = {name_of(p): modules_imported(p) for p in MODULES}
    while edges:
        free = {name for name, others in edges.items() if not others & edges.keys()}
        assert free, f"a circle among {sorted(edges)}"
        edges = {name: others for name, others in edges.items() if name not in free}


def test_nothing_imports_the_command_line():
    assert not [path for path in MODULES if "run" in {name.split(".")[0] for name in imported(path)}]


@pytest.mark.parametrize("path", sorted((ROOT / "envs").glob("*.py")), ids=lambda p: p.stem)
def test_envs_import_no_stage(path):
    assert not any(name.split(".")[0] in ("stages", "run") for name in imported(path))


def test_the_checker_sees_a_wrong_import(tmp_path):
    file = tmp_path / "rssm.py"
    file.write_text("def f():\n    from stages import train\n    import stages.sweep.sweep\n")
    assert rooms_of(imported(file)) == {"train", "sweep"}
    assert ORDER["train"] > ORDER["rssm"] and ORDER["sweep"] > ORDER["rssm"]


def test_every_layer_is_of_something_that_is_there():
    for room in ORDER:
        assert (ROOT / "stages" / room).is_dir() or (ROOT / "stages" / f"{room}.py").is_file(), room


def test_no_code_at_top_level_but_run():
    assert {p.name for p in ROOT.glob("*.py")} == {"run.py"}
