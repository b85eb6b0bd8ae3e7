"""Whether it explores and learns: the program as its own process, compiled as users have it. Slow, and so only one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WORDS = [
    *("--seeds 4 --env DeepSea-bsuite --env.size 6 --env.action_map_per_seed true --preset tiny".split()),
    *("--mode explore --steps 1500 --log-points 6".split()),
]


@pytest.mark.slow
def test_disagreement_knows_what_is_new_and_the_tasker_learns_from_what_was_found(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, str(ROOT / "run.py"), *WORDS, "--logdir", str(tmp_path / "run")]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    correlations = {step: [] for step in sorted({row["step"] for row in rows})}
    for row in rows:
        correlations[row["step"]].append(row["novelty/correlation"])
    # With visits; chance is 0, and members that follow the model's learning give more. Later on all is known.
    assert min(max(seeds) for seeds in correlations.values()) < -0.6, correlations
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    # Zero-shot. The corner pays 0.99 in all; an untrained policy finds it in about one episode of 64.
    assert sum(score > 0.8 for score in summary["zero_shot"]) >= 3, summary["zero_shot"]
    assert max(summary["untrained"]) < 0.3, summary["untrained"]
