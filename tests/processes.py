"""Processes that a test talks to while they run."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any


@contextmanager
def running(command: Sequence[str | PathLike[str]], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """`subprocess.Popen`, unbuffered, whose process does not outlive the block: a test that fails waits for none."""
    with subprocess.Popen(command, bufsize=0, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[bytes], patience: float = 60.0) -> bytes:
    """The next line of its standard output, which comes within so many seconds."""
    assert process.stdout is not None
    # Not select(), which knows no descriptor above 1023.
    waits = select.poll()
    waits.register(process.stdout, select.POLLIN)
    assert waits.poll(patience * 1000), "nothing was said"
    return process.stdout.readline()


def pipes() -> int:
    """How many ends of pipes this process has. Its threads may close some meanwhile."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += os.readlink(entry).startswith("pipe:")
    return found


def children(named: str) -> list[int]:
    """The processes of this one's whose name begins so."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            status = (process / "stat").read_text()
            name, rest = status.split("(", 1)[1].rsplit(")", 1)
            if int(rest.split()[1]) == os.getpid() and name.startswith(named):
                found.append(int(process.name))
    return found
