"""Shares that are watched: what the host changes in them reaches the programs of the guest that watch files."""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import shortage
from ..errors import ConfigurationError, SupermachineError
from ..host.warnings import warn

if TYPE_CHECKING:
    from .._core import Watch, Worker

_LOST = (
    "changes on the host came faster than its guest takes them; it is told of what can be found of them, and programs "
    "in it may have missed the removal of files"
)
_UNWATCHED = (
    "it has more directories than can be watched, and its guest is not told of changes in some; "
    "raise fs.inotify.max_user_watches"
)


def follow(worker: Worker, shares: Sequence[tuple[int, str]]) -> None:
    """Watches shares, by their number and path, until the guest has ended; a thread for each.

    Raises ConfigurationError for one that has too many directories.
    """
    from .._core import watch_share

    watches = []
    for number, path in shares:
        try:
            watches.append((watch_share(worker, number, path), path))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ConfigurationError(
                f"{path} cannot be watched: it has too many directories",
                cause=str(error),
                hint="raise fs.inotify.max_user_watches, up to 65536 are used; or share fewer with watch",
            ) from None
    for watch, path in watches:
        thread = threading.Thread(target=_tell, args=(watch, path), name="supermachine-watch", daemon=True)
        shortage.start(thread, f"{path} cannot be watched")


def _tell(watch: Watch, path: str) -> None:
    said = set()
    try:
        while (known := watch.wait()) is not None:
            for is_so, text in zip(known, (_LOST, _UNWATCHED), strict=True):
                if is_so and text not in said:
                    said.add(text)
                    warn(f"{path} is watched: {text}")
    except SupermachineError:
        # The guest has ended, and all who wait for it are told.
        return
    except OSError as error:
        warn(f"{path} is not watched any more: {error}")
