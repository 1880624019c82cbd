"""``docker diff``: what is on a container's root otherwise than in its image, which a second machine has."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from ..errors import CopyTooLarge
from ..guest import tars
from ..guest.copying import MAX_ENTRIES
from ..machine.starts import Root
from ..machine.vm import VM
from ..settings.machine import MachineSettings

if TYPE_CHECKING:
    from ..guest.paths import Status
    from ..images.resolution import ResolvedImage

MODIFIED, ADDED, DELETED = 0, 1, 2
#: What each guest has of its own, where docker mounts something.
_GUESTS = frozenset({"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev", "/proc", "/sys"})


def of(vm: VM, image: ResolvedImage) -> list[dict[str, object]]:
    """Paths that were changed, added or deleted, in order. Blocks; takes as long as a walk over both.

    A file counts as changed by its status, as rsync and those of docker's drivers have it that compare trees: one that
    was written with the same size, and then given the time that it had, does not show.
    """
    settings = MachineSettings.of(network="none", platform=str(image.platform))
    with VM._of(image.reference, settings, Root(image)) as fresh:
        before = _entries(fresh)
    after = _entries(vm)
    kinds = {path: DELETED for path in before if path not in after}
    for path, found in after.items():
        was = before.get(path)
        if was is None:
            kinds[path] = ADDED
        elif _differs(was, found):
            kinds[path] = MODIFIED
    # A directory has changed where something in it came, went or changed; its own time says no more.
    for path in list(kinds):
        while path := path.rpartition("/")[0]:
            if path in kinds or path not in after:
                break
            kinds[path] = MODIFIED
    # Of a directory that has gone docker tells no more than that.
    gone = {path for path, kind in kinds.items() if kind == DELETED and kinds.get(path.rpartition("/")[0]) == DELETED}
    return [{"Path": path, "Kind": kind} for path, kind in sorted(kinds.items()) if path not in gone]


def _entries(vm: VM) -> dict[str, Status]:
    """All that is on the root's own file system, and where others are mounted."""
    top = vm.path("/")
    status = top.lstat()
    found: dict[str, Status] = {}
    for path, entry, _ in tars.walk(top, status, "", device=status.st_dev):
        if len(found) >= MAX_ENTRIES:
            raise CopyTooLarge(f"{top} has more than {MAX_ENTRIES} files and directories")
        if (name := str(path)) != "/" and name not in _GUESTS:
            found[name] = entry
    return found


def _differs(was: Status, found: Status) -> bool:
    if (was.st_mode, was.st_uid, was.st_gid, was.st_rdev) != (found.st_mode, found.st_uid, found.st_gid, found.st_rdev):
        return True
    same = stat.S_ISDIR(found.st_mode) or (was.st_size, was.st_mtime_ns) == (found.st_size, found.st_mtime_ns)
    return not same
