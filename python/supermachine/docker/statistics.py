"""``docker stats`` and ``docker top``."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .guests import GROUP
from .logs import timestamp

if TYPE_CHECKING:
    from ..machine.vm import VM
    from .container import Container

#: Processes that one look shows.
_MAX_PROCESSES = 4096
#: proc(5), /proc/PID/stat, counted after the name in parentheses.
_PPID, _TTY, _UTIME, _STIME, _STARTED = 1, 4, 11, 12, 19
_GUEST_TICKS = 100


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
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        ticks = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0, 0
    return (int(fields[_UTIME]) + int(fields[_STIME])) * 1_000_000_000 // ticks, resident * os.sysconf("SC_PAGE_SIZE")


def _of_host() -> int:
    """Nanoseconds of all processors."""
    try:
        with Path("/proc/stat").open() as file:
            fields = file.readline().split()[1:9]
        return sum(int(field) for field in fields) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return time.monotonic_ns() * (os.cpu_count() or 1)


TITLES = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]


def processes(vm: VM) -> list[list[str]]:
    """The processes of the user's in a guest, as ``ps -ef`` shows them. Blocks."""
    ids = sorted({pid for group in _groups(vm) for pid in group})
    boot = _boot_time(vm)
    return [row for pid in ids[:_MAX_PROCESSES] if (row := _row(vm, pid, boot)) is not None]


def _groups(vm: VM) -> list[list[int]]:
    """Process ids of the control group and of those below it, which an init makes."""
    found: list[list[int]] = []
    todo = [vm.path(GROUP)]
    while todo and len(found) < _MAX_PROCESSES:
        group = todo.pop()
        try:
            text = (group / "cgroup.procs").read_text()
            todo.extend(entry for entry in group.iterdir() if entry.is_dir())
        except OSError:
            continue
        found.append([int(word) for word in text.split() if word.isdecimal()])
    return found


def _boot_time(vm: VM) -> int:
    for line in vm.path("/proc/stat").read_text().splitlines():
        if line.startswith("btime "):
            return int(line.split()[1])
    return 0


def _row(vm: VM, pid: int, boot: int) -> list[str] | None:
    place = vm.path("/proc", str(pid))
    try:
        name, _, rest = (place / "stat").read_text(errors="replace").rpartition(")")
        words = (place / "cmdline").read_bytes().split(b"\0")
        owner = place.lstat().st_uid
        fields = rest.split()
        ticks = int(fields[_UTIME]) + int(fields[_STIME])
        started = time.localtime(boot + int(fields[_STARTED]) // _GUEST_TICKS)
        tty, parent = fields[_TTY], fields[_PPID]
    except (OSError, ValueError, IndexError):
        return None  # it has gone
    command = b" ".join(words).strip().decode("utf-8", "replace") or f"[{name.partition('(')[2]}]"
    seconds = ticks // _GUEST_TICKS
    spent = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    user = "root" if owner == 0 else str(owner)
    return [
        user,
        str(pid),
        parent,
        "0",
        time.strftime("%H:%M", started),
        "?" if tty == "0" else "pts/0",
        spent,
        command,
    ]
