"""``docker stats``."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..host import process_stat
from .logs import timestamp

if TYPE_CHECKING:
    from .container import Container


def sample(container: Container, before: dict[str, Any] | None) -> dict[str, Any]:
    """What a container's machine uses of this host: its worker process's time and memory. Blocks shortly."""
    pid = container.worker_pid
    now = time.time_ns()
    cpu, memory = (_of_worker(pid) if pid else (0, 0)) if container.alive else (0, 0)
    usage = {
        "cpu_usage": {"total_usage": cpu, "usage_in_kernelmode": 0, "usage_in_usermode": cpu},
        "system_cpu_usage": _of_host(),
        "online_cpus": os.cpu_count() or 1,
        "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0},
    }
    nothing: dict[str, Any] = {"cpu_usage": {"total_usage": 0}, "system_cpu_usage": 0, "online_cpus": 0}
    return {
        "id": container.id,
        "name": f"/{container.name}",
        "read": timestamp(now),
        "preread": before["read"] if before else "0001-01-01T00:00:00Z",
        "num_procs": 0,
        "storage_stats": {},
        "pids_stats": {},
        "blkio_stats": {"io_service_bytes_recursive": None},
        "networks": {},
        "cpu_stats": usage,
        "precpu_stats": before["cpu_stats"] if before else nothing,
        "memory_stats": {"usage": memory, "limit": container.wanted.memory, "stats": {}} if memory else {},
    }


def _of_worker(pid: int) -> tuple[int, int]:
    """Nanoseconds of processor time, and bytes of memory; nothing where the host does not tell as Linux does."""
    if (stat := process_stat.of(pid)) is None:
        return 0, 0
    return stat.ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK"), stat.resident_pages * os.sysconf("SC_PAGE_SIZE")


def _of_host() -> int:
    """Nanoseconds of all processors."""
    try:
        with Path("/proc/stat").open() as file:
            fields = file.readline().split()[1:9]
        return sum(int(field) for field in fields) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return time.monotonic_ns() * (os.cpu_count() or 1)
