"""Start: what jax and its compiler must know before the first array is made."""

import os
from importlib.metadata import version

# What each of them gave is in docs/speed.md.
XLA_FLAGS = {
    # No products by YNNPACK: while all cores carry seeds, the help that each one calls for stays queued until the chunk
    # ends, and memory grows with every update.
    "xla_cpu_experimental_ynn_fusion_type": "",
    # No unrolled loops: a fifth of the compiler's work, and updates take from 10 % less (tiny) to 5 % more (micro).
    "xla_backend_extra_options": "xla_cpu_disable_loop_unrolling",
}


def start_jax(cache: bool = True) -> None:
    """One virtual CPU device for each core, and the compilation cache; before jax makes its first array.

    XLA_FLAGS and JAX_COMPILATION_CACHE_DIR, where given, win.
    """
    import jax

    flags = os.environ.get("XLA_FLAGS", "")
    if version("jaxlib").startswith(("0.10.", "0.11.")):  # unknown flags are fatal
        ours = [f"--{name}={value}" for name, value in XLA_FLAGS.items() if name not in flags]
        os.environ["XLA_FLAGS"] = " ".join([flags, *ours])
    if "xla_force_host_platform_device_count" not in flags:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jax.config.update("jax_num_cpu_devices", cores)
    if cache and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        home = os.environ.get("XDG_CACHE_HOME", os.path.join(os.path.expanduser("~"), ".cache"))
        jax.config.update("jax_compilation_cache_dir", os.path.join(home, "dreamsweep", "jax"))
