"""A running guest: its worker, where it was restored from, its published ports, and how it ends."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from ..errors import NotSupported, VMExited, VMTimeout
from ..storage.scratch import Disk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from .._core import Worker
    from ..artifacts.arrival import Arrival
    from ..network.ports import Bound, Wanted
    from ..storage.volume_directories import Held
    from .launch import Timings

#: Seconds that the guest's processes have to end after SIGTERM when a virtual machine is stopped.
DEFAULT_STOP_TIMEOUT = 10.0
#: Seconds beyond the grace that a worker takes at most.
_STOP_SLACK = 3.0
#: Seconds from the start in which the first process must end, for its pages to be what clones need first.
_FIRST_ANSWER = 10.0


class Origin(NamedTuple):
    """What a guest was restored from. Forks have no files: theirs is gone as soon as they run."""

    files: Sequence[Path]
    #: Of the last file, where it is known.
    id: str = ""
    #: Whether the file is the cache's.
    baked: bool = False
    #: Whether it is of version 8, on which no diff can build.
    v8: bool = False
    #: What fetches the file, where that may still be going on.
    arrival: Arrival | None = None


class Guest:
    """A guest that is ready, until it ends."""

    def __init__(
        self,
        worker: Worker,
        timings: Timings,
        origin: Origin | None,
        *,
        agent: bool = True,
        disk: Disk | None = None,
    ) -> None:
        """`origin` is ``None`` for a guest that booted; `agent` is whether this package's agent runs in it."""
        self.worker = worker
        #: The files that its root's disk is in.
        self.disk = disk or Disk()
        #: Steps of the start: name, nanoseconds since the start of the worker process.
        self.timings = timings
        self.origin = origin
        #: Its volumes that are directories, locked until it has ended.
        self.directories: Held | None = None
        #: Held by who takes a snapshot: there is one at a time.
        self.capturing = threading.Lock()
        self._has_agent = agent
        self._bound: Bound | None = None
        #: What is done when the first answer has come, and until when that is soon.
        self._recording: tuple[Sequence[Callable[[Worker], None]], float] | None = None

    @property
    def running(self) -> bool:
        if self.worker.exit is not None:
            self._let_go()
            return False
        return True

    def alive(self) -> Worker:
        """The worker. Raises VMExited when the guest has ended."""
        if (end := self.worker.exit) is not None:
            reason, message, console_tail = end
            raise VMExited(message, reason=reason, console_tail=console_tail)
        return self.worker

    def served(self) -> Worker:
        """The worker of a guest with an agent. Raises NotSupported where there is none."""
        worker = self.alive()
        if not self._has_agent:
            raise NotSupported(
                "this virtual machine was restored with agent=False: nothing in it runs commands, serves files or "
                "forwards TCP ports for its host",
                hint="reach what it runs by a vsock port: ports={'5000/vsock': None}",
            )
        return worker

    def whole(self, timeout: float | None) -> Worker:
        """The worker, when all of what the guest goes on from is there; until then there is no snapshot of it."""
        if self.origin is not None and self.origin.arrival is not None:
            self.origin.arrival.wait(timeout)
        return self.alive()

    def publish(self, wanted: Wanted) -> None:
        """Listens on ports of the host for ports of the guest."""
        if wanted:
            from ..network.ports import Bound

            self._bound = Bound(self.alive(), wanted)

    @property
    def ports(self) -> Wanted:
        """Published ports while it runs, with the addresses and ports of the host that lead there."""
        return self._bound.places() if self._bound is not None and self.running else {}

    def record_until_answer(self, *recorders: Callable[[Worker], None]) -> None:
        """Has `answered` record by these what the first answer took, if that is soon."""
        self._recording = (recorders, time.monotonic() + _FIRST_ANSWER)

    def answered(self) -> None:
        """A process has ended: after the first one it is known what a clone needs for an answer."""
        if self.origin is not None and self.origin.arrival is not None:
            self.origin.arrival.hurry()
        recording, self._recording = self._recording, None
        if recording is None or not self.running or time.monotonic() > recording[1]:
            return
        for record in recording[0]:
            record(self.worker)

    def stop(self, timeout: float) -> None:
        """Ends it cleanly: SIGTERM to its processes, SIGKILL after `timeout` seconds, file systems synced."""
        if not self.running:
            return
        self.worker.shutdown(max(0, int(timeout * 1000)))
        if self.worker.wait(timeout + _STOP_SLACK) is None:
            self.kill()
        self._close()

    def kill(self) -> None:
        """Ends it at once."""
        self.worker.kill()
        self.worker.wait(_STOP_SLACK)
        self._close()

    def _let_go(self) -> None:
        self.disk.close()
        if self.directories is not None:
            self.directories.close()

    def _close(self) -> None:
        self._let_go()
        if self._bound is not None:
            self._bound.close()

    def wait(self, timeout: float | None) -> str:
        """The reason of its end. Raises VMTimeout when it still runs after `timeout` seconds."""
        end = self.worker.wait(timeout)
        if end is None:
            raise VMTimeout(f"the virtual machine still runs after {timeout:g} seconds")
        return end[0]
