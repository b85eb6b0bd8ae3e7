"""Kill a run at random moments and start it again, until it ends; then compare it with one that nobody killed.

    python tests/bench/kills.py --kills 20

Every start is the same command with the same --logdir. Compared to the bit: all arrays of the last checkpoint, every
line of metrics.jsonl but for what the clock says, and the scores of summary.json. `--processes 2` kills one process of
a distributed run, by turns, and waits until the other has ended by itself.
"""

import argparse
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
SMALL = [
    *("--model.deter", "8", "--model.blocks", "2", "--model.hidden", "8", "--model.units", "8", "--model.stoch", "2"),
    *("--model.classes", "4", "--model.depth", "2", "--model.bins", "5", "--model.layers", "1", "--horizon", "2"),
    *("--replay.batch-size", "2", "--replay.batch-length", "4", "--replay.train-ratio", "4"),
    *("--ensemble.members", "2", "--ensemble.layers", "1", "--eval-episodes", "2"),
    # Two rounds of two phases, saved after every chunk.
    *("--mode", "explore", "--seeds", "4", "--parallel", "2", "--checkpoint-minutes", "0", "--log-points", "10"),
]
CLOCK = ("fps/policy", "fps/train", "wall_seconds")
"""Metrics that tell of the clock."""


def command(folder: Path, steps: int, place: list[str]) -> list[str]:
    """What a user types."""
    words = ["--steps", str(steps), "--adapt-steps", str(steps // 2), "--logdir", str(folder)]
    return [sys.executable, str(ROOT / "run.py"), *SMALL, *words, *place]


def free_place() -> str:
    """HOST:PORT where processes may meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def start(folder: Path, steps: int, processes: int) -> list[subprocess.Popen]:
    """The program's processes, begun."""
    places: list[list[str]] = [[]]
    if processes > 1:
        at = free_place()
        places = [["--coordinator", at, "--processes", str(processes), "--process", str(i)] for i in range(processes)]
    output = open(folder.with_suffix(".log"), "a")  # noqa: SIM115
    return [subprocess.Popen(command(folder, steps, place), stdout=output, stderr=output, cwd=ROOT) for place in places]


def metrics(folder: Path) -> list[dict]:
    """Lines of metrics.jsonl without what the clock says."""
    text = (folder / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]  # one may be half written
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """All arrays of the last checkpoints of all rounds and processes."""
    import orbax.checkpoint as ocp

    found = {}
    for path in sorted(folder.glob("checkpoints/round-*/process-*")):
        manager = ocp.CheckpointManager(path)
        args = ocp.args.Composite(state=ocp.args.StandardRestore())
        for name, x in manager.restore(manager.latest_step(), args=args)["state"].items():
            found[f"{path.relative_to(folder)} {name}"] = np.asarray(x)
    return found


def differences(one: Path, other: Path) -> list[str]:
    """What is not equal to the bit in two runs' folders."""
    found = []
    mine, theirs = arrays(one), arrays(other)
    if mine.keys() != theirs.keys():
        found.append(f"arrays: {sorted(mine.keys() ^ theirs.keys())[:3]}")
    found += [name for name in mine.keys() & theirs.keys() if mine[name].tobytes() != theirs[name].tobytes()]
    if metrics(one) != metrics(other):
        found.append("metrics.jsonl")
    summaries = [json.loads((path / "summary.json").read_text()) for path in (one, other)]
    names = ("seeds", "score", "zero_shot", "untrained", "env_steps", "updates", "iqm", "ci_low", "ci_high")
    return found + [f"summary.json: {name}" for name in names if summaries[0][name] != summaries[1][name]]


def wait_for(log: Path, word: str, after: int, process: subprocess.Popen) -> None:
    """Until `word` stands in the log behind its first `after` characters, or the process has ended."""
    while process.poll() is None and word not in log.read_text()[after:]:
        time.sleep(0.05)


def main() -> int:
    """Run, kill, compare; the exit code is 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as place:
        whole, killed = Path(place) / "whole", Path(place) / "killed"
        begun = time.time()
        running = start(whole, arguments.steps, arguments.processes)
        wait_for(whole.with_suffix(".log"), "compiled in", 0, running[0])
        starts = time.time() - begun
        if sum(p.wait() for p in running):
            print(whole.with_suffix(".log").read_text()[-2000:])
            return 1
        trains = time.time() - begun - starts
        print(f"a whole run starts in {starts:.0f} s and trains for {trains:.0f} s", flush=True)
        done, ended = 0, []
        while True:
            log = killed.with_suffix(".log")
            said = len(log.read_text()) if log.exists() else 0
            running = start(killed, arguments.steps, arguments.processes)
            if done < arguments.kills:
                # Every fourth while it starts, the others while it trains and saves.
                if done % 4:
                    wait_for(log, "compiled in", said, running[0])
                time.sleep(draw.uniform(0, 0.7) * (trains if done % 4 else starts))
                victim = running[done % len(running)]
                if victim.poll() is None:
                    victim.send_signal(signal.SIGKILL)
                    done += 1
            codes = [process.wait() for process in running]
            there = len(metrics(killed)) if (killed / "metrics.jsonl").exists() else 0
            print(f"kill {done}: exit codes {codes}, {there} lines of metrics", flush=True)
            if not any(codes):
                ended.append(killed)
                if done >= arguments.kills:
                    break
                killed = killed.with_name(f"killed-{len(ended)}")  # it came to its end first: begin another
        found = {run.name: differences(whole, run) for run in ended}
        print(f"{len(ended)} runs ended, after {done} kills; differences to the whole one: {found}")
        return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main())
