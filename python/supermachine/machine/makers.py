"""Workers that are copies of one which has restored their snapshot, a template (rust/worker/src/template.rs)."""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import TYPE_CHECKING, TypeVar

from ..errors import SupermachineError
from . import launch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .._core import Worker
    from ..settings.machine import MachineSettings
    from ..storage.scratch import Disk
    from .starts import Root

T = TypeVar("T")

#: Forks of one call from which on a template takes less time than starting each worker does.
_PAYS = 4


def begin(
    settings: MachineSettings, root: Root, file: str, shared: Disk | None = None, decoded: Path | None = None
) -> Worker | None:
    """What will make workers of guests that restore `file`; ``None`` where each is to be started.

    `decoded` is where the file's decoded code is, if it is there.
    """
    if settings.engine.name != "soft" or sys.platform != "linux" or settings.shares:
        return None
    scratch = None if not settings.disk else shared.paths() if shared else ()
    return launch.spawn_template(
        settings.engine.name, root.disks, [file], scratch, settings.require_confinement, decoded
    )


def is_ready(template: Worker, settings: MachineSettings) -> bool:
    """Waits until it can make workers, which it does until it is killed; whether it can."""
    try:
        launch.wait_ready(template, settings.boot_timeout)
    except SupermachineError:
        # A kernel that filters no calls, for one. What is wrong with the file is said by those who restore it.
        return False
    return True


@contextlib.contextmanager
def for_forks(settings: MachineSettings, root: Root, file: str, n: int, shared: Disk | None) -> Iterator[Worker | None]:
    """What makes the workers of `n` guests that restore `file`, for `Starter.fork`; ``None`` where each is started.

    It ends with the block; its guests go on.
    """
    template = begin(settings, root, file, shared) if n >= _PAYS else None
    try:
        yield template if template is not None and is_ready(template, settings) else None
    finally:
        if template is not None:
            template.kill()


class Maker:
    """Makes guests of the same settings that restore one file, one after the other, from any thread."""

    def __init__(self, *, after: int = 0) -> None:
        """The first `after` guests are made without a template: for fewer it does not pay."""
        self._making = threading.Lock()
        self._left = after
        self._file = ""
        self._template: Worker | None = None
        #: Whether there can be a template of the file.
        self._usable = True
        self._closed = False

    def make(
        self,
        settings: MachineSettings,
        root: Root,
        file: str,
        start: Callable[[Worker | None], T],
        decoded: Path | None = None,
    ) -> T:
        """What `start` makes with a template; once more without one, where that has ended meanwhile.

        `decoded` is where the file's decoded code is, if it is there.
        """
        if (template := self._worker(settings, root, file, decoded)) is None:
            return start(None)
        try:
            return start(template)
        except SupermachineError:
            if template.exit is None or self._closed:
                raise
        return start(None)

    def _worker(self, settings: MachineSettings, root: Root, file: str, decoded: Path | None) -> Worker | None:
        with self._making:
            if self._left > 0:
                self._left -= 1
                return None
            if self._closed:
                return None
            if self._file != file:
                self._kill()
                self._file, self._usable = file, True
            # Another one for a process that was forked from this one's, and where the last was killed.
            if self._usable and (self._template is None or self._template.exit is not None):
                self._template = begin(settings, root, file, decoded=decoded)
                if self._closed:
                    self._kill()
                self._usable = self._template is not None and is_ready(self._template, settings)
            return self._template if self._usable else None

    def _kill(self) -> None:
        if (template := self._template) is not None:
            template.kill()

    def close(self) -> None:
        """Ends the template, and a wait for it. Guests that run are not touched."""
        self._closed = True
        self._kill()
