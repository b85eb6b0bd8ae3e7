"""The same sweep at once, in rounds, and over two real processes: the same numbers, logged once."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import run
from tests.bench.kills import free_place
from tests.runs import HURRIED, ROOT, TINY, end_processes, rows, start_process

SEEDS = 7
# The smallest program that explores.
SWEEP = [*TINY, "--seeds", str(SEEDS), "--steps", "60", "--mode", "explore", "--explorer-reward", "constant"]


def logged(folder):
    """Rows of metrics.jsonl by (step, seed), without what the clock says, and the summary."""
    table = {(row["step"], row["seed"]): row for row in rows(folder)}
    assert len(table) == len(rows(folder)), "a row was logged twice"
    for row in table.values():
        assert all(row.pop(name) > 0 for name in ("fps/policy", "fps/train", "wall_seconds"))
    return table, json.loads((folder / "summary.json").read_text())


def same(one, other):
    """The same rows and scores, but for the order of sums."""
    (table, summary), (table_other, summary_other) = logged(one), logged(other)
    assert table.keys() == table_other.keys() and {seed for _, seed in table} == set(range(SEEDS))
    for at, row in table.items():
        assert row.keys() == table_other[at].keys()
        for name, value in row.items():
            if isinstance(value, str) or value is None:
                assert table_other[at][name] == value, (at, name)
            else:
                # Advantages are differences of returns and values, divided by as little as 0.05.
                least = 5e-3 if name.endswith("adv_mag") else 1e-3
                np.testing.assert_allclose(table_other[at][name], value, rtol=1e-2, atol=least, err_msg=f"{at} {name}")
    for name in ("seeds", "score", "zero_shot", "untrained", "env_steps", "updates", "iqm", "ci_low", "ci_high"):
        assert summary[name] == summary_other[name], name


@pytest.fixture(scope="module")
def at_once(tmp_path_factory):
    """Seven seeds side by side on four devices: a prime number, so one place is padding."""
    folder = tmp_path_factory.mktemp("scale") / "at_once"
    assert run.main([*SWEEP, "--logdir", str(folder)]) == 0
    return folder


def test_padding_is_not_logged(at_once):
    _, summary = logged(at_once)
    assert (summary["side_by_side"], summary["rounds"], summary["processes"]) == (8, 1, 1)
    assert summary["seeds"] == list(range(SEEDS)) and summary["count"] == SEEDS
    assert all(len(summary[name]) == SEEDS for name in ("score", "zero_shot", "untrained"))


def test_rounds_give_the_same_numbers(at_once, tmp_path, capsys):
    folder = tmp_path / "rounds"
    assert run.main([*SWEEP, "--logdir", str(folder), "--parallel", "4"]) == 0
    said = capsys.readouterr().out
    assert "2 rounds of 4: 7 seeds need " in said and "are free" in said
    assert said.index("2 rounds of 4") < said.index("round 1 of 2: seeds 0 to 3") < said.index("round 2 of 2")
    assert json.loads((folder / "summary.json").read_text())["rounds"] == 2
    same(at_once, folder)


def test_a_sweep_too_big_for_memory_is_trained_in_rounds(compiled_once, tmp_path, capsys):
    # The configuration of runs.CATCH: test_grid.py has compiled it for four seeds, which need 1.1 MB, and for two.
    words = [*TINY, "--seeds", "4", "--steps", "25", "--devices", "1", "--logdir"]
    assert run.main([*words, str(tmp_path / "run"), "--memory", "8e-4"]) == 0
    said = capsys.readouterr().out
    assert " rounds of " in said and ": 4 seeds need " in said and "800.0 kB are allowed" in said
    assert said.index("are allowed") < said.index("round 1 of ") < said.index("round 2 of ")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["count"] == 4


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--memory", "1e-6"], ["not even one seed fits", "1.0 kB are allowed", "--replay.capacity", "--preset"]),
        (["--memory", "1e-5", "--parallel", "2"], ["--parallel 2 does not fit", "10.0 kB", "auto"]),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(tmp_path, capsys, words, says):
    assert run.main([*SWEEP, "--logdir", str(tmp_path / "new" / "run"), *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("run.py: error: ") and said.count("\n") == 1 and not list(tmp_path.iterdir())
    for word in says:
        assert word in said


def both(*words, each=((), ())):
    """Two processes that meet at a free port -> what `end_processes` gives; `each` are words for one of them."""
    place, program = ["--coordinator", free_place(), "--processes", "2"], ("-c", HURRIED)
    begun = [start_process(*words, *place, "--process", str(i), *each[i], program=program) for i in range(2)]
    return end_processes(*begun)


def test_two_processes_give_the_same_numbers_in_one_folder(at_once, tmp_path):
    (code, said, _), (other_code, other_said, _) = both(*SWEEP, "--logdir", str(tmp_path / "run"))
    assert (code, other_code) == (0, 0)
    assert re.fullmatch(r"waiting for process 0 at 127\.0\.0\.1:\d+ \.\.\.\n", other_said)
    assert said.startswith("waiting at 127.0.0.1:")
    assert "of each of 2 processes" in said and "interquartile mean" in said
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in at_once.iterdir()}
    assert logged(tmp_path / "run")[1]["processes"] == 2
    same(at_once, tmp_path / "run")


def test_processes_end_together_with_one_line_each(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    for index, (code, said, error) in enumerate(both(*SWEEP, "--logdir", str(tmp_path))):
        assert code == 2 and "compiling" not in said and error.count("run.py: error: ") == 1, error
        assert ("holds part of a run" in error) if index == 0 else ("process 0 of 2 has stopped" in error)
    results = both(*SWEEP, "--logdir", str(tmp_path / "new"), each=(("--horizon", "2"), ("--horizon", "3")))
    for code, _, error in results:
        assert code == 2 and "not started with the same arguments" in error
    assert not (tmp_path / "new").exists()


def test_what_is_wrong_alone_is_said_before_processes_meet(capsys):
    assert run.main([*SWEEP, "--seeds", "0", "--coordinator", "nowhere:1", "--processes", "2", "--process", "0"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("run.py: error: --seeds") and error.count("\n") == 1


SAVES = """
import sys
from pathlib import Path
import numpy as np
from stages.store.checkpoint import Checkpoints, CheckpointId
from stages.cli.processes import join_cluster
folder, coordinator, index = sys.argv[1:]
with join_cluster(coordinator, 2, int(index)) as processes:
    import jax, jax.numpy as jnp
    state = lambda step: {"weights": jnp.arange(5.0) + 10 * step + 100 * int(index), "key": jax.random.key(step)}
    here = jax.local_devices()[0]
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(here)), state(0)
    )
    saved = Checkpoints(Path(folder), processes, keep=2)
    for step in range(1, 9):
        saved.save(CheckpointId(0, step), state(step), {"process": index})
    saved.wait()
    saved.close()
    found = Checkpoints(Path(folder), processes, keep=2)
    place = found.newest()
    restored = found.restore(place, shapes)
    assert place == CheckpointId(0, 8) and found.progress(place) == {"process": index}
    np.testing.assert_array_equal(restored["weights"], state(8)["weights"])
    assert (jax.random.key_data(restored["key"]) == jax.random.key_data(state(8)["key"])).all()
"""


def test_each_process_saves_and_restores_its_own(tmp_path):
    """Small states, quickly one after another, by processes that do not wait for each other's writing."""
    place = free_place()
    started = [start_process(str(tmp_path), place, str(index), program=("-c", SAVES)) for index in range(2)]
    ended = end_processes(*started)
    for code, _, error in ended:
        assert code == 0, error


def test_no_cluster_is_one_line():
    ((code, said, error),) = end_processes(start_process(*SWEEP, "--distributed"))
    assert code == 2 and not said and error.count("\n") == 1
    assert error.startswith("run.py: error: --distributed found no cluster") and "--coordinator HOST:PORT" in error


GROWTH = """
import jax, jax.numpy as jnp, psutil, run
run.start_jax(cache=False)
mesh = jax.make_mesh((2,), ("seeds",), axis_types=(jax.sharding.AxisType.Auto,))
def walk(x):
    w = jnp.ones((128, 128)) / 128
    return jax.lax.scan(lambda x, _: (jnp.tanh(x @ (w * x[0, 0, 0])) @ w, None), x, length=6000)[0]
spec = jax.sharding.PartitionSpec("seeds")
program = jax.jit(jax.shard_map(walk, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
x = jnp.ones((2, 1024, 128))
program = program.lower(x).compile()
held = lambda: psutil.Process().memory_info().rss / 1e6
before = held()
jax.block_until_ready(program(x))
print(held() - before)
"""


def test_memory_does_not_grow_while_all_cores_carry_seeds():
    """One long call on two devices: XLA's own products queue 60 MB of help here that no core is free to give."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run([sys.executable, "-c", GROWTH], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 25
