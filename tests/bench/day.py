"""A day in the life of a run: every command after the other, and all that they say, to be read.

    python tests/bench/day.py

Train, kill, move the folder, go on there, raise --steps, eval, video, report, compare, export, load in a script. The
exit code is 1 where a command ends otherwise than it should, or leaves by a traceback.
"""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMALL = [
    *("--env DeepSea-bsuite --env.size 4 --mode mix --seeds 2 --preset micro --log-points 4".split()),
    *("--replay.batch-size 4 --replay.batch-length 8 --replay.train-ratio 8 --ensemble.members 2".split()),
    *("--checkpoint-minutes 0 --eval-episodes 4".split()),
]
SCRIPT = """
import sys, jax
from stages import library
agents = library.load(sys.argv[1])
policy = library.policy_of(agents, seed=0)
state, timestep = agents.env.with_params(jax.tree.map(lambda x: x[0], agents.env_params)).reset(jax.random.key(0))
action, _ = policy.act(policy.reset(), timestep.obs, timestep.is_first, key=jax.random.key(1))
print("loaded", agents.seeds, "at", agents.step, "steps; first action", int(action))
"""


def say(*words: str, code: int = 0, kill_at: str = "") -> None:
    """Run a command, print what it says, and end this program where it ends otherwise than with `code`."""
    print("$ python", *words, flush=True)
    command = [sys.executable, *words]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        print("   ", line, end="", flush=True)
        said += line
        if kill_at and kill_at in line:
            process.send_signal(signal.SIGKILL)
    print(f"    exit code {process.wait()}", flush=True)
    if process.returncode != code or "Traceback" in said:
        sys.exit(1)


def main() -> None:
    """The day."""
    with tempfile.TemporaryDirectory() as folder:
        first, moved, copy = (f"{folder}/{name}" for name in ("first", "elsewhere/run", "copy"))
        train = ["run.py", *SMALL, "--steps", "400", "--logdir"]
        say(*train, first, code=-signal.SIGKILL, kill_at=" 50%")
        Path(moved).parent.mkdir()
        Path(first).rename(moved)
        say("run.py", "report", moved)
        say(*train, moved)
        say(*train, moved)
        say("run.py", *SMALL, "--steps", "800", "--logdir", moved)
        say("run.py", "eval", moved, "--episodes", "4")
        say("run.py", "video", moved, "--rows", "20")
        say("run.py", "report", moved)
        say("run.py", "export", moved, "--out", copy)
        say("run.py", "eval", copy, "--episodes", "4")
        say("run.py", "compare", moved, copy, "--out", f"{folder}/compared")
        say("-c", SCRIPT, moved)
        say("run.py", *SMALL, "--steps", "1200", "--logdir", copy, code=2)


if __name__ == "__main__":
    main()
