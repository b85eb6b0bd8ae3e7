"""Start: what jax and its compiler must know before the first array is made."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

from stages.config import ConfigError

if TYPE_CHECKING:  # imports jax
    import jax

    from stages.cli.arguments import Arguments
    from stages.cli.processes import Processes

# What each of them gave is in docs/speed.md.
XLA_FLAGS = {
    # No products by YNNPACK: each product asks other cores for help. While these carry seeds of their own, the requests
    # stay queued until the chunk ends, and memory grows with every update.
    "xla_cpu_experimental_ynn_fusion_type": "",
    # No unrolled loops: a fifth of the compiler's work, and updates take from 10 % less (tiny, 32 units) to 5 % more
    # (micro).
    "xla_backend_extra_options": "xla_cpu_disable_loop_unrolling",
}


def start_jax(cache: bool = True) -> None:
    """One virtual CPU device for each core, and the compilation cache; before jax makes its first array.

    Values that XLA_FLAGS and JAX_COMPILATION_CACHE_DIR already have are kept.

    Raises:
        ConfigError: an environment variable would end the run with a traceback later.
    """
    import jax

    if jax.config.read("jax_enable_x64"):
        raise ConfigError("JAX_ENABLE_X64 is set, and all numbers here have 32 bits: unset it")
    flags = os.environ.get("XLA_FLAGS", "")
    if flags.strip():
        _try_flags()
    if version("jaxlib").startswith(("0.10.", "0.11.")):  # unknown flags are fatal
        ours = [f"--{name}={value}" for name, value in XLA_FLAGS.items() if name not in flags]
        os.environ["XLA_FLAGS"] = " ".join([flags, *ours])
    if "xla_force_host_platform_device_count" not in flags:
        jax.config.update("jax_num_cpu_devices", usable_cores())
    if cache and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        home = os.environ.get("XDG_CACHE_HOME", os.path.join(os.path.expanduser("~"), ".cache"))
        jax.config.update("jax_compilation_cache_dir", os.path.join(home, "dreamsweep", "jax"))


def usable_cores() -> int:
    """Cores of the machine that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_devices() -> list[jax.Device]:
    """The devices of this process. Raises ConfigError where jax finds none."""
    import jax

    try:
        return jax.local_devices()
    except (AssertionError, RuntimeError) as error:  # both are jax's words for a platform that is not there
        why = " ".join(str(error).split()) or "none of its platforms starts"
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise ConfigError(f"jax finds no device ({why}): correct or unset JAX_PLATFORMS={asked}") from error


def check_machines(arguments: Arguments, processes: Processes) -> None:
    """Raises ConfigError for more devices than there are, and for processes that were started for different runs."""
    devices = local_devices()
    if arguments.devices > len(devices):
        raise ConfigError(f"--devices {arguments.devices}: there are only {len(devices)} ({devices[0].platform})")
    if len(set(processes.exchange(repr(dataclasses.replace(arguments, process=-1)).encode()))) > 1:
        raise ConfigError("the processes were not started with the same arguments")


def _try_flags() -> None:
    """Let XLA read its flags in another process: those that it does not know end the process. Raises ConfigError."""
    program = "from jaxlib import xla_client; xla_client.CompileOptions()"  # without jax: a fifth of the time
    tried = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if tried.returncode and "XLA_FLAGS" in tried.stderr:
        why = next(line for line in tried.stderr.splitlines() if "XLA_FLAGS" in line)
        raise ConfigError(f"XLA does not take its flags ({why.partition('] ')[2] or why}): correct or unset XLA_FLAGS")
