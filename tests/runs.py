"""Runs that several tests look at: their command lines, and what starts, stops and reads them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import run
from stages.loop import training_loop

ROOT = Path(__file__).parent.parent
PATIENCE = 300  # seconds, before a test gives up on its processes

TINY = [
    *("--env", "Catch-bsuite"),
    *("--model.deter", "8", "--model.blocks", "2", "--model.hidden", "8", "--model.units", "8", "--model.stoch", "2"),
    *("--model.classes", "4", "--model.depth", "2", "--model.bins", "5", "--model.layers", "1", "--horizon", "2"),
    *("--replay.batch-size", "2", "--replay.batch-length", "4", "--replay.train-ratio", "4", "--log-points", "2"),
    *("--ensemble.members", "2", "--ensemble.layers", "1", "--eval-episodes", "2"),
]

# Two phases of two chunks on a small Deep Sea.
PHASES = [
    *(*TINY, "--env", "DeepSea-bsuite", "--env.size", "4", "--env.action_map_per_seed", "true", "--devices", "1"),
    *("--mode", "explore", "--steps", "40", "--adapt-steps", "20", "--envs", "2"),
]

# They in two rounds, seeds 5 and 6, and seed 7 beside padding; saved after each chunk.
ROUNDS = [*PHASES, *"--seeds 3 --seed-start 5 --parallel 2 --checkpoint-minutes 0".split()]

# Paid for both, in two such rounds.
MIXED = [
    *(*TINY, "--env", "DeepSea-bsuite", "--env.size", "4", "--mode", "mix", "--seeds", "3", "--seed-start", "5"),
    *("--parallel", "2", "--devices", "1", "--envs", "2", "--steps", "40", "--checkpoint-minutes", "0"),
]

# Two chunks of two seeds: rows 5 to 15 to 25; saved after each.
CATCH = [*TINY, *"--seeds 2 --devices 1 --steps 25 --checkpoint-minutes 0".split()]

# The program, as a process of its own compiles it here: as conftest.py has it, so that what a test compiled is found.
HURRIED = (
    "import sys, run; from stages.sweep import sweep; sweep.EACH_CHUNK = sweep.ONCE; sys.exit(run.main(sys.argv[1:]))"
)


def start(tmp_path, *words, seeds=2):
    """Run in-process -> (exit code, folder)."""
    folder = tmp_path / "run"
    return run.main([*TINY, "--seeds", str(seeds), "--logdir", str(folder), *words]), folder


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def at_chunk(monkeypatch, number, act):
    """`act()` at the end of the run's chunk `number`, from 1, before it is saved."""
    log_chunk, count = training_loop.log_chunk, [0]

    def wrapped(*args):
        log_chunk(*args)
        count[0] += 1
        if count[0] == number:
            act()

    monkeypatch.setattr(training_loop, "log_chunk", wrapped)


def ask(number):
    """A signal to this process; returns when it has been noted."""
    os.kill(os.getpid(), number)
    time.sleep(0.2)


def start_process(*words, program=(str(ROOT / "run.py"),)):
    """The program, or another one, in a process of its own."""
    command = [sys.executable, *program, *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end_processes(*processes):
    """(exit code, stdout, stderr) of each; none outlives the test."""
    try:
        return [(p.returncode, *said) for p, said in [(p, p.communicate(timeout=PATIENCE)) for p in processes]]
    finally:
        for process in processes:
            process.kill()
