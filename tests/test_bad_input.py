"""What the program says to bad input: one line that says what to do, exit code 2, and no trace of a run."""

import os
import signal
import subprocess
import sys

import jax
import pytest

import run
from tests.runs import ROOT, start

SIZES = ("deter", "hidden", "units", "stoch", "depth", "layers")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--env", "Cach-bsuite"], ["Catch-bsuite"]),
        (["--env", "MNISTBandit-bsuite"], ["MNISTBandit-bsuite"]),
        (["--env", "os:abort"], ["--env os:abort", "standard library"]),
        (["--env", "importlib.metadata:version"], ["importlib.metadata", "standard library"]),
        (["--sweep", "env=Catch-bsuite,Cach-bsuite"], ["Cach-bsuite"]),  # before the first one is trained
        (["--preset", "mikro"], ["micro"]),
        (["--env.sizes", "3"], ["rows", "columns"]),
        (["--env.rows", "many"], ["rows"]),
        (["--env.rows"], ["needs a value"]),
        (["--seeds", "0"], ["--seeds"]),
        (["--seed-start", "-1"], ["--seed-start"]),
        (["--log-points", "0"], ["--log-points"]),
        (["--devices", "99"], ["--devices 99"]),
        (["--parallel", "0"], ["--parallel"]),
        (["--memory", "-1"], ["--memory"]),
        (["--coordinator", "somewhere", "--processes", "2", "--process", "0"], ["HOST:PORT"]),
        (["--steps", "0"], ["--steps"]),
        (["--hypers.lr", "-1"], ["--hypers.lr"]),
        (["--hypers.lr", "nan"], ["--hypers.lr"]),
        (["--hypers.lr", "1e39"], ["--hypers.lr", "32 bits"]),
        (["--hypers.lr", "1e-46"], ["--hypers.lr", "32 bits"]),
        (["--hypers.unimix", "1.5"], ["--hypers.unimix"]),
        (["--model.blocks", "3"], ["--model.blocks", "deter"]),
        (["--model.bins", "6"], ["--model.bins", "odd"]),
        (["--replay.batch-length", "600", "--steps", "300"], ["601", "--steps"]),
        (["--replay.prefill", "600", "--steps", "300"], ["600", "--replay.prefill"]),
        (["--replay.train-ratio", "0"], ["--replay.train-ratio"]),
        (["--replay.train-ratio", "0.0001"], ["--replay.train-ratio"]),
        (["--replay.capacity", "3"], ["--replay.capacity"]),
        (["--mode", "explore", "--ensemble.members", "1"], ["--ensemble.members"]),
        (["--mode", "mix", "--explorer-reward", "count", "--env", "Catch-bsuite"], ["Catch-bsuite", "take rnd"]),
        (["--adapt-steps", "5"], ["--adapt-steps"]),
        # Numbers far beyond what anyone means.
        (["--steps", "3e9"], ["--steps", "2,000,000,000"]),
        (["--steps", "1e300"], ["--steps"]),
        (["--mode", "mix", "--steps", "1.5e9", "--adapt-steps", "1e9"], ["--adapt-steps", "2,500,000,000"]),
        (["--seeds", "4e9"], ["--seeds", "--seed-start"]),
        (["--seeds", "1e6"], ["--seeds", "--seed-start"]),
        (["--envs", "1e9", "--steps", "2e9"], ["--envs"]),
        (["--horizon", "1e9"], ["--horizon"]),
        (["--eval-steps", "1e12"], ["--eval-steps"]),
        (["--eval-episodes", "1e9"], ["--eval-episodes"]),
        *(([f"--model.{name}", "1e9"], [f"--model.{name}", "at most"]) for name in SIZES),
        *(([f"--ensemble.{name}", "1e9"], [f"--ensemble.{name}", "at most"]) for name in ("members", "batch-size")),
        (["--replay.batch-size", "1e6"], ["--replay.batch-size"]),
        (["--replay.batch-length", "1e6"], ["--replay.batch-length"]),
        (["--replay.train-ratio", "1e9"], ["--replay.train-ratio", "updates a step"]),
        (["--replay.train-ratio", "1e300"], ["--replay.train-ratio", "updates a step"]),
        (["--env", "DeepSea-bsuite", "--env.size", "1e9"], ["size", "1,000"]),
        (["--env", "Pendulum-v1", "--env.l", "0"], ["Pendulum-v1", "l", "division by zero"]),
        # Numbers that anyone may mean, and that the memory is too small for, before anything compiles.
        *(
            (f"--seeds 1 --memory 1 {words}".split(), ["not even one seed fits", "1.0 GB are allowed", "--preset"])
            for words in (
                "--model.units 6e4 --model.layers 3",
                "--replay.batch-size 6e4 --replay.batch-length 1e3 --replay.train-ratio 6e7",
                "--env DeepSea-bsuite --env.size 1000 --steps 1e9",
            )
        ),
    ],
    ids=lambda value: " ".join(value)[:70],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, capsys, words, says):
    code, folder = start(tmp_path, *words)
    captured = capsys.readouterr()
    assert code == 2 and not folder.exists()
    assert captured.err.startswith("run.py: error: ") and captured.err.count("\n") == 1
    for word in says:
        assert word in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("words", [["--mode", "dance"], ["--steps", "1.5"], ["--stebs", "3"]])
def test_flags_that_cannot_be_read_exit_with_2(tmp_path, capsys, words):
    with pytest.raises(SystemExit) as stopped:
        start(tmp_path, *words)
    assert stopped.value.code == 2 and not (tmp_path / "run").exists()


def test_unwritable_folder_is_one_line(tmp_path, capsys):
    (tmp_path / "run").write_text("a file")
    code, folder = start(tmp_path)
    captured = capsys.readouterr()
    assert code == 2 and folder.read_text() == "a file"
    assert captured.err.count("\n") == 1 and "--logdir" in captured.err


def test_numbers_of_64_bits_are_refused(tmp_path, capsys):
    with jax.enable_x64(True):
        code = run.main(["--logdir", str(tmp_path / "run")], run.start_jax)
    assert code == 2 and not (tmp_path / "run").exists()
    error = capsys.readouterr().err
    assert error.startswith("run.py: error: JAX_ENABLE_X64") and error.count("\n") == 1


def ended(words, cwd=ROOT, **variables):
    """The program in a process of its own -> exit code, its lines of errors."""
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *words], env=environment, cwd=cwd, capture_output=True, text=True
    )
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"XLA_FLAGS": "--xla_nonsense=1"}, ["XLA_FLAGS", "--xla_nonsense=1"]),
        ({"JAX_PLATFORMS": "nonsense"}, ["JAX_PLATFORMS=nonsense"]),
        ({"JAX_PLATFORMS": "cuda"}, ["JAX_PLATFORMS=cuda"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_jax_stumbles_over_is_one_line(tmp_path, variables, says):
    code, lines = ended(["--logdir", str(tmp_path / "run")], **variables)
    assert code == 2 and len(lines) == 1 and not (tmp_path / "run").exists()
    assert lines[0].startswith("run.py: error: ") and all(word in lines[0] for word in says)


def test_a_working_directory_that_is_gone_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run.main(["--logdir", "run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("run.py: error: cannot write 'run'") and error.count("\n") == 1


INTERRUPTED = """
import os, signal, run
signal.signal(signal.SIGINT, signal.default_int_handler)  # as on a terminal
run.command = lambda words: os.kill(os.getpid(), signal.SIGINT)
run.program()
"""


def test_ctrl_c_ends_a_command_without_a_traceback():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


# ---- a terminal that is gone, full, or without a character ---------------------------------------------------------

PRINTS = """
import sys
from stages.report import score_table
from stages.cli import terminal
from stages.results.statistics import summarise
terminal.replace_unencodable()
for _ in range(2):
    terminal.say("a line of größe")
    with terminal.printing():
        score_table.print_table(summarise([0.5], [0]), "größe")
terminal.say("alive", error=True)
terminal.discard_unflushed()
"""


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_end_nothing_and_no_file_is_taken_for_them(tmp_path, closed):
    opens = f"{PRINTS}\nfile = open({str(tmp_path / 'file')!r}, 'w')\nassert file.fileno() > 2\nsys.exit(7)\n"
    command = f'{sys.executable} -c "$PROGRAM" {closed}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PROGRAM": opens}
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True)
    assert done.returncode == 7 and "Traceback" not in done.stderr
    assert (tmp_path / "file").read_text() == ""


def test_a_picture_program_that_does_not_start_is_found_before_training(tmp_path):
    (tmp_path / "matplotlibrc").write_bytes(b"\xff\xfe")
    words = ["--logdir", str(tmp_path / "run"), "--devices", "99"]
    code, lines = ended(words, MATPLOTLIBRC=str(tmp_path / "matplotlibrc"))
    assert code == 2 and "correct or remove its matplotlibrc" in lines[-1] and "Traceback" not in " ".join(lines)
    code, lines = ended(words, MPLBACKEND="nonsense")
    assert code == 2 and len(lines) == 1 and "--devices 99" in lines[0]


@pytest.mark.parametrize(("words", "code"), [(["--help"], 0), (["--stebs", "3"], 2)])
def test_help_whose_reader_is_gone_ends_quietly(words, code):
    reader, output = os.pipe()
    os.close(reader)
    command = [sys.executable, str(ROOT / "run.py"), *words]
    done = subprocess.run(command, stdout=output, stderr=output if code else subprocess.PIPE)
    os.close(output)
    assert done.returncode == code and not done.stderr


@pytest.mark.parametrize("where", ["reader gone", "disk full", "ascii"])
def test_printing_ends_nothing(where):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii" if where == "ascii" else "utf-8"}
    if where == "disk full":
        output = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, output = os.pipe()
        if where == "reader gone":
            os.close(reader)
    command = [sys.executable, "-c", PRINTS]
    done = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.PIPE, text=True)
    os.close(output)
    assert (done.returncode, done.stderr) == (0, "alive\n")
    if where == "ascii":
        with open(reader, encoding="ascii") as said:
            assert said.read().count("gr??e") == 4


def test_the_compilers_banners_are_silenced_unless_asked_for():
    """A constant that XLA's own evaluator takes seconds for: folding it is what it complains of first."""
    program = (
        "import run, jax; from jax import lax, numpy as jnp; "
        "x = lambda: lax.reduce_window(jnp.ones((80, 80)), 0.0, lax.add, (25, 25), (1, 1), 'SAME').sum(); "
        "jax.jit(x).lower().compile()"
    )
    said = {}
    for level in ("", "0"):
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "TF_", "JAX_"))}
        variables |= {"TF_CPP_MIN_LOG_LEVEL": level} if level else {}
        done = subprocess.run([sys.executable, "-c", program], env=variables, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said[level] = "Constant folding" in done.stderr
    assert said == {"": False, "0": True}


@pytest.mark.parametrize("entrance", ["run.py", "stages/library/__init__.py"])
def test_every_way_into_the_program_is_quiet_before_it_imports_jax(entrance):
    starts = ("import stages", "from stages", "import jax", "from jax")
    lines = [line for line in (ROOT / entrance).read_text().splitlines() if line.startswith(starts)]
    assert lines[0].startswith("import stages.cli.quiet")
