"""Whether it learns: the program as its own process, compiled as users have it. Slow, and so only one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_deep_sea_of_size_6_is_solved_in_mix(tmp_path):
    words = "--seeds 4 --env DeepSea-bsuite --env.size 6 --mode mix --steps 6000 --log-points 4".split()
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, str(ROOT / "run.py"), *words, "--logdir", str(tmp_path / "run")]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    # The corner pays 0.99 in all; an untrained policy of four seeds finds it in about one episode of 64.
    assert sum(score > 0.8 for score in summary["score"]) >= 3, summary["score"]
    assert max(summary["untrained"]) < 0.3, summary["untrained"]
