"""What happened to this user's machines: files of JSON lines as logs are, bounded, to which every keeper appends.

What is noted is what a keeper did. One that is killed notes nothing: `ps` tells of such a machine, and this does not.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from .. import descriptors, directories
from ..cache import locks
from . import logs

#: Bytes of one file, of which there are two: some 5,000 events.
MAX_BYTES = 1 << 20


class Event(NamedTuple):
    """Something that a machine did, or that was done to it."""

    #: RFC 3339, UTC.
    time: str
    #: As docker calls it: "start", "restart", "die", "kill", "pause", "unpause", "rename", "destroy",
    #: "health_status: healthy".
    action: str
    name: str
    id: str
    image: str
    #: What there is to say beside: "exitCode", "signal", "oldName".
    more: dict[str, str]


def _directory() -> Path:
    return Path(directories.runtime_directory(), "events")


def note(action: str, name: str, id: str, image: str, **more: str) -> None:  # noqa: A002 - as it is called
    """Appends an event, from any process. What cannot be written is dropped: no machine waits for it."""
    directory = _directory()
    said = json.dumps({"action": action, "name": name, "id": id, "image": image, "more": more})
    with contextlib.suppress(OSError):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        current = directory / logs.CURRENT
        if current.exists() and current.stat().st_size > MAX_BYTES:
            _rotate(directory)
        # One write to the end of a file: lines of several writers do not mix.
        fd = descriptors.open_file(current, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.write(fd, logs.line("event", said.encode()))
        finally:
            os.close(fd)


def _rotate(directory: Path) -> None:
    """Makes the file the one before. Where another process is about to, it does."""
    with locks.locked(directory / ".lock", block=False) as ours:
        current = directory / logs.CURRENT
        if ours and current.stat().st_size > MAX_BYTES:
            current.replace(directory / logs.BEFORE)


def read(
    *, since: float | None = None, until: float | None = None, follow: Callable[[], bool] | None = None
) -> Iterator[Event]:
    """The events so far, and with `follow` further ones for as long as it says true.

    None is before `since` or after `until`, in seconds since 1970.
    """
    for entry in logs.read(_directory(), follow=follow, since=since, until=until):
        # What is no event was written by nobody of ours, or cut by a full disk.
        with contextlib.suppress(ValueError, KeyError, TypeError):
            said = json.loads(entry.data)
            yield Event(entry.time, said["action"], said["name"], said["id"], said["image"], dict(said["more"]))
