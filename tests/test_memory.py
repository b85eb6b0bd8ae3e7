"""What is free and what is needed: limits of containers, devices that tell and that do not, the compiler's account."""

import math

import jax
import jax.numpy as jnp
import pytest

from stages.sweep import memory


def group(root, path, **files):
    """One control group's files below a made-up root."""
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_dot_", ".")).write_text(f"{content}\n")


def listed(root, text):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(text)


def test_version_2_counts_the_page_cache_as_free(tmp_path):
    listed(tmp_path, "0::/jobs/mine\n")
    group(
        tmp_path,
        "jobs/mine",
        memory_dot_max=1000,
        memory_dot_current=700,
        memory_dot_stat="anon 400\ninactive_file 250",
    )
    assert memory.free_in_cgroups(tmp_path) == 550


def test_a_limit_further_up_binds(tmp_path):
    listed(tmp_path, "0::/jobs/mine\n")
    stat = "inactive_file 0"
    group(tmp_path, "jobs/mine", memory_dot_max="max", memory_dot_current=700, memory_dot_stat=stat)
    assert memory.free_in_cgroups(tmp_path) == math.inf
    group(tmp_path, "jobs", memory_dot_max=900, memory_dot_current=800, memory_dot_stat=stat)
    assert memory.free_in_cgroups(tmp_path) == 100
    group(tmp_path, "", memory_dot_max=50, memory_dot_current=60, memory_dot_stat=stat)
    assert memory.free_in_cgroups(tmp_path) == 0


def test_version_1_inside_a_container_where_only_the_top_is_there(tmp_path):
    listed(tmp_path, "5:cpu:/docker/7\n4:cpuset,memory:/docker/7\n0::/\n")
    group(
        tmp_path,
        "memory",
        memory_dot_limit_in_bytes=500,
        memory_dot_usage_in_bytes=300,
        memory_dot_stat="total_inactive_file 20",
    )
    assert memory.free_in_cgroups(tmp_path) == 220


def test_without_control_groups(tmp_path):
    assert memory.free_in_cgroups(tmp_path) == math.inf


def test_this_machine_has_some():
    assert memory.shared(jax.devices())
    assert 2**20 < memory.free(jax.devices()) < 2**50


class Device:
    """An accelerator."""

    platform = "gpu"

    def __init__(self, **stats):
        self.memory_stats = lambda: stats or None


def test_devices_with_memory_of_their_own():
    assert not memory.shared([Device()])
    devices = [Device(bytes_limit=100, bytes_in_use=30), Device(bytes_limit=90, bytes_in_use=50)]
    assert memory.free(devices) == 40
    assert memory.free([Device()]) == math.inf


def test_the_compilers_account():
    x = jax.ShapeDtypeStruct((1000,), jnp.float32)
    fresh = jax.jit(lambda x: x + 1).lower(x).compile()
    donated = jax.jit(lambda x: x + 1, donate_argnums=0).lower(x).compile()
    assert memory.need(fresh).held == memory.need(donated).held == 4000
    assert memory.need(fresh).extra == memory.need(donated).extra + 4000 >= 4000

    class Silent:
        def memory_analysis(self):
            return None

    assert memory.need(Silent()) == (0, 0)


@pytest.mark.parametrize(
    ("size", "says"), [(9.14e9, "9.1 GB"), (1.2e12, "1,200.0 GB"), (48.9e6, "48.9 MB"), (0, "0.0 kB")]
)
def test_words(size, says):
    assert memory.format_bytes(size) == says
