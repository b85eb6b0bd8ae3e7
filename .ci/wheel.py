"""The wheel: one package `dreamsweep` made of run.py, stages/ and envs/, with their imports of each other rewritten.

The checkout has these three at its top, where an installed `stages` or `envs` could be anybody's. An editable install
gets a package `dreamsweep` of two lines a module, which hands on what the checkout has.
"""

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

IMPORTS = [
    (r"^(\s*)from (stages|envs)\b", r"\1from dreamsweep.\2"),
    (r"^(\s*)import (stages|envs)$", r"\1from dreamsweep import \2"),
    (r"^(\s*)import (stages|envs)\.", r"\1import dreamsweep.\2."),
]
WORDS = [("python run.py", "dreamsweep"), ("run.py: ", "dreamsweep: "), ('f"run.py {', 'f"dreamsweep {')]
PACKAGE = '''"""DreamerV3 with Plan2Explore, the whole of it one compiled program, vmapped over seeds."""

import importlib


def __getattr__(name):
    """`dreamsweep.library`, imported when it is asked for: the command line's --help needs no jax."""
    if name != "library":
        raise AttributeError(name)
    return importlib.import_module("{stages}.library")
'''
HANDED_ON = {
    "__init__.py": PACKAGE.format(stages="stages"),
    "run.py": '"""The command line."""\n\nfrom run import program\n\n__all__ = ["program"]\n',
    "envs.py": '"""Environments."""\n\nfrom envs import *  # noqa: F403\n',
}


def rewritten(text: str) -> str:
    """A module of the checkout as it stands in the package."""
    for pattern, replacement in IMPORTS:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    for words, replacement in WORDS:
        text = text.replace(words, replacement)
    return text


class Hook(BuildHookInterface):
    """Make the package that the wheel consists of."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write it beside the checkout, and tell hatchling to take it from there."""
        root, self.built = Path(self.root), Path(tempfile.mkdtemp())
        if version == "editable":
            files = HANDED_ON
        else:
            sources = [root / "run.py", *root.glob("stages/**/*.py"), *root.glob("envs/**/*.py")]
            files = {path.relative_to(root).as_posix(): rewritten(path.read_text("utf-8")) for path in sources}
            files["__init__.py"] = PACKAGE.format(stages="dreamsweep.stages")
        for name, text in files.items():
            (self.built / name).parent.mkdir(parents=True, exist_ok=True)
            (self.built / name).write_text(text, "utf-8")
        kind = "force_include_editable" if version == "editable" else "force_include"
        build_data[kind][str(self.built)] = "dreamsweep"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was written."""
        shutil.rmtree(self.built)
