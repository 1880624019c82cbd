"""What Linux says of a process in /proc/PID/stat (proc(5)): of this host's, and of a guest's."""

from __future__ import annotations

from typing import NamedTuple


class ProcessStat(NamedTuple):
    """The fields that are of use here. Times are in ticks: sysconf(SC_CLK_TCK) a second here, 100 in a guest."""

    name: bytes
    parent: int
    tty: int
    #: User and system time that it has taken.
    ticks: int
    #: When it began, since the boot.
    started: int
    resident_pages: int


def parse(text: bytes) -> ProcessStat:
    """Reads the file's one line. Raises ValueError for what is none."""
    # The name may hold any byte, parentheses too, so that the last one ends it.
    head, _, rest = text.rpartition(b")")
    fields = rest.split()
    try:
        return ProcessStat(
            name=head.partition(b"(")[2],
            parent=int(fields[1]),
            tty=int(fields[4]),
            ticks=int(fields[11]) + int(fields[12]),
            started=int(fields[19]),
            resident_pages=int(fields[21]),
        )
    except IndexError:
        raise ValueError("a line of /proc/PID/stat is too short") from None


def of(pid: int) -> ProcessStat | None:
    """Of a process of this host; ``None`` where there is none, or the host has no such file."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            return parse(file.read())
    except (OSError, ValueError):
        return None
