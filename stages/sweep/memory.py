"""Memory: how much is free for a sweep, how much its compiled programs take, and the peak. Host side."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import jax
import psutil

Devices = Sequence[Any]
"""jax's devices, or stand-ins with a platform and memory_stats."""

USABLE_SHARE = 0.8  # of the free memory may be used: the rest is for the compiler, fragmentation and other programs


class Need(NamedTuple):
    """Bytes of one device that a compiled program takes."""

    held: float  # its arguments
    extra: float  # what it allocates in addition: temporaries, and results that do not replace a donated argument


def need(program: Any) -> Need:
    """The memory of a compiled program as the compiler reports it; zeros if it reports nothing."""
    analysis = program.memory_analysis()
    if analysis is None:
        return Need(0, 0)
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return Need(analysis.argument_size_in_bytes, analysis.temp_size_in_bytes + results)


def shared(devices: Devices) -> bool:
    """Whether these devices take their memory from one pool: a CPU's do."""
    return devices[0].platform == "cpu"


def free(devices: Devices) -> float:
    """Free bytes: of the machine or container if the devices share its memory, else of the device with least.

    Infinite if no device reports its memory.
    """
    if shared(devices):
        return min(psutil.virtual_memory().available, free_in_cgroups())
    stats = [device.memory_stats() or {} for device in devices]
    return min(s.get("bytes_limit", math.inf) - s.get("bytes_in_use", 0) for s in stats)


def free_in_cgroups(root: Path = Path("/")) -> float:
    """Bytes below the limits of this process's control groups (a container's limit), infinite without a limit.

    Both versions of Linux's control groups; `root` is where /proc and /sys are.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return math.inf
    lowest = math.inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, names = "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # A parent group's limit applies as well, and inside a container only the top group may be readable.
        group = PurePosixPath(path)
        lowest = min(
            [lowest, *(_group_free(root / top / folder.relative_to("/"), *names) for folder in (group, *group.parents))]
        )
    return lowest


def _group_free(group: Path, limit: str, usage: str, cache: str) -> float:
    try:
        maximum = (group / limit).read_text().strip()
        if maximum == "max":
            return math.inf
        stats = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # The page cache counts as used, but is freed when memory is short.
        return max(0, int(maximum) - int((group / usage).read_text()) + int(stats.get(cache, 0)))
    except (OSError, ValueError):
        return math.inf


def peak_memory_mb() -> float:
    """Peak memory of this process: the first accelerator's own count, or the resident set."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 1e6
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def format_bytes(size: float) -> str:
    """A number of bytes with its unit, such as "1.2 GB"."""
    unit, name = next(((u, n) for u, n in ((1e9, "GB"), (1e6, "MB")) if size >= u), (1e3, "kB"))
    return f"{size / unit:,.1f} {name}"


class MemoryBudget(NamedTuple):
    """The memory that a process may use."""

    devices: Devices
    sharers: int  # processes that share the devices' memory
    allowed: float  # bytes that the user allows; 0: no limit but the free memory, of which a plan takes USABLE_SHARE

    def free(self) -> float:
        """Bytes: all that the user allows, or this process's share of what is free now."""
        return self.allowed or free(self.devices) / self.sharers

    def usable(self) -> float:
        """Bytes that a plan may take: all that the user allows, or a share of what is free."""
        return self.allowed or USABLE_SHARE * self.free()

    def describe(self) -> str:
        """How much memory there is, as text for a message."""
        text = f"{format_bytes(self.free())} are {'allowed' if self.allowed else 'free'}"
        return text if shared(self.devices) else f"{text} on each device"
