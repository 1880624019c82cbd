"""The processes of a guest, as ``ps -ef`` would show them: images need not have a ``ps``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..host import process_stat
from .group import GROUP

if TYPE_CHECKING:
    from .group import Guest

#: Processes that one look shows.
_MAX_PROCESSES = 4096
#: Of a guest a second.
_GUEST_TICKS = 100

#: What the columns are.
TITLES = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]


def processes(vm: Guest) -> list[list[str]]:
    """The processes of the user's in a guest, as ``ps -ef`` shows them. Blocks."""
    ids = sorted({pid for group in _groups(vm) for pid in group})
    boot = _boot_time(vm)
    return [row for pid in ids[:_MAX_PROCESSES] if (row := _row(vm, pid, boot)) is not None]


def _groups(vm: Guest) -> list[list[int]]:
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


def _boot_time(vm: Guest) -> int:
    for line in vm.path("/proc/stat").read_text().splitlines():
        if line.startswith("btime "):
            return int(line.split()[1])
    return 0


def _row(vm: Guest, pid: int, boot: int) -> list[str] | None:
    place = vm.path("/proc", str(pid))
    try:
        stat = process_stat.parse((place / "stat").read_bytes())
        words = (place / "cmdline").read_bytes().split(b"\0")
        owner = place.lstat().st_uid
        started = time.localtime(boot + stat.started // _GUEST_TICKS)
    except (OSError, ValueError):
        return None  # it has gone
    command = (b" ".join(words).strip() or b"[" + stat.name + b"]").decode("utf-8", "replace")
    seconds = stat.ticks // _GUEST_TICKS
    spent = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    user = "root" if owner == 0 else str(owner)
    return [
        user,
        str(pid),
        str(stat.parent),
        "0",
        time.strftime("%H:%M", started),
        "?" if stat.tty == 0 else "pts/0",
        spent,
        command,
    ]
