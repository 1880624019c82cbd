"""What the workers of this process take."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path


def workers() -> Iterator[int]:
    """Those that live."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            name, rest = (process / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
            if rest.split()[0] != "Z" and int(rest.split()[1]) == os.getpid() and name.startswith("supermachine-wo"):
                yield int(process.name)


class Watch:
    """What the workers of this process take, at most, while the block lasts."""

    def __init__(self) -> None:
        self.memory = self.descriptors = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._over.wait(0.05):
            for worker in workers():
                with contextlib.suppress(OSError, ValueError, StopIteration):
                    status = Path(f"/proc/{worker}/status").read_text()
                    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
                    self.memory = max(self.memory, int(line.split()[1]) << 10)
                    self.descriptors = max(self.descriptors, len(os.listdir(f"/proc/{worker}/fd")))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        self._thread.join()
