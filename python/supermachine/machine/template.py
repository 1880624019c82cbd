"""A machine's state at one moment, from which machines are started any number of times."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from ..images import Cache
from ..snapshots import working_set
from . import snapshotting
from .guest import Origin
from .starts import Starter, start_template
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
        self._making = threading.Lock()
        #: What makes the workers; `None` before it is wanted, and where it cannot be.
        self._template: Worker | None = None
        self._has_template = True
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
        # One that learns starts by itself: a copy of a process cannot see its own page tables.
        maker = self._maker() if ranges or not prefault else None
        guest = Starter(self._settings, self._root).fork(self._path, ranges, template=maker)()
        try:
            guest.publish(self._settings.ports)
        except BaseException:
            guest.kill()
            raise
        if prefault and not ranges:
            guest.record_until_answer(self._pages)
        vm = VM._of(self._reference, self._settings, self._root, Origin(()))
        vm._guest = guest
        return vm

    def _maker(self) -> Worker | None:
        with self._making:
            # Another one for a process that was forked from this one's, and where the last was killed.
            if self._has_template and (self._template is None or self._template.exit is not None):
                self._template = start_template(self._settings, self._root, self._path)
                self._has_template = self._template is not None
            return self._template if self._has_template else None

    def close(self) -> None:
        """Gives the captured state back. Forks that run are not touched."""
        with self._making:
            self._has_template = False
            if self._template is not None:
                self._template.kill()
        self._held.close()

    def __enter__(self) -> Template:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
