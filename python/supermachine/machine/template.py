"""A machine's state at one moment, from which machines are started any number of times."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ..images import Cache
from ..snapshots import working_set
from . import snapshotting
from .guest import Guest, Origin
from .makers import Maker
from .starts import Starter
from .vm import SNAPSHOT_TIMEOUT, VM

if TYPE_CHECKING:
    from types import TracebackType

    from .._core import Worker


class Template:
    """What `vm.fork` makes of a machine, kept: each `fork` goes on from the same moment, and the machine may end.

    Which pages a fork needs first is learnt from the first one; later ones are copies of a process that has restored
    the snapshot, where there can be one. So they start faster.
    """

    def __init__(self, vm: VM, *, timeout: float = SNAPSHOT_TIMEOUT) -> None:
        """Captures the machine, which goes on."""
        self._reference = vm._reference
        self._root = vm._disks()
        self._settings = snapshotting.of_fork(vm._settings)
        self._held = contextlib.ExitStack()
        self._maker = Maker()
        try:
            # In the cache: the working set is moved to it from there.
            self._pages = self._held.enter_context(Cache().scratch()) / "working-set"
            self._path = self._held.enter_context(
                snapshotting.captured(vm._started(), vm._settings, self._root, timeout=timeout)
            )
        except BaseException:
            self._held.close()
            raise

    def fork(self) -> VM:
        """A running machine that goes on from that moment, with an identity and ports of its own."""
        prefault = working_set.enabled(None)
        ranges = working_set.load(self._pages) if prefault else ()

        def start(template: Worker | None) -> Guest:
            return Starter(self._settings, self._root).fork(self._path, ranges, template=template)()

        # One that learns starts by itself: a copy of a process cannot see its own page tables.
        guest = (
            self._maker.make(self._settings, self._root, self._path, start) if ranges or not prefault else start(None)
        )
        try:
            guest.publish(self._settings.ports)
        except BaseException:
            guest.kill()
            raise
        if prefault and not ranges:
            guest.record_until_answer(lambda worker: working_set.record(worker, self._pages, Cache()))
        vm = VM._of(self._reference, self._settings, self._root, Origin(()))
        vm._guest = guest
        return vm

    def close(self) -> None:
        """Gives the captured state back. Forks that run are not touched."""
        self._maker.close()
        self._held.close()

    def __enter__(self) -> Template:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
