"""A snapshot that a machine took."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigurationError
from ..snapshots import capture

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..artifacts.arrival import Arrival
    from ..artifacts.push import Pushed
    from ..images import Progress
    from .vm import VM, RestoreOptions


@dataclass(frozen=True)
class Snapshot:
    """A snapshot on disk. It is never changed; virtual machines that run from it keep it from being deleted."""

    path: Path
    #: What its contents are known by, 64 hexadecimal digits; ``None`` for version 8, which has nothing of the kind.
    id: str | None
    #: The id of the snapshot that this one holds the changes to; ``None`` when it is whole.
    parent: str | None
    #: Bytes of RAM in the file; the rest is holes.
    data_bytes: int
    #: Seconds that the virtual machine stood still.
    pause: float
    #: Steps of the capture: name, nanoseconds since it was asked for.
    timings: list[tuple[str, int]]
    #: Version of the format, 8 or 9.
    format: int = 9
    _arrival: Arrival | None = field(default=None, repr=False, compare=False)

    def restore(self, **options: Unpack[RestoreOptions]) -> VM:
        """A running virtual machine that goes on here; see :meth:`supermachine.VM.restore`.

        Of a snapshot that is still being pulled it may start before all of that is there. When the rest does not come,
        it ends: `VMExited` with the reason "snapshot-incomplete".
        """
        from .vm import VM

        if self._arrival is not None:
            return VM._arriving(self._arrival.path or self.path, self._arrival, options).start()
        return VM.restore(self.path, **options)

    def wait(self, timeout: float | None = None) -> None:
        """Waits until all of a snapshot that is being pulled is at `path`: at most `timeout` seconds, else for ever.

        Raises what went wrong with the pull, and RegistryTimeout.
        """
        if self._arrival is not None:
            self._arrival.wait(timeout)

    def flatten(self, path: str | os.PathLike[str]) -> Path:
        """Makes one whole snapshot, in a new file, of this diff and all that it builds on."""
        from ..snapshots import files, records

        self.wait()
        files.flatten([head.path for head in records.chain(self.path)], path)
        return Path(path)

    def push(
        self, reference: str, *, sign: str | None = None, insecure: bool = False, progress: Progress | None = None
    ) -> Pushed:
        """Puts it, and what it builds on, into a registry, and gives what it is pinned by there.

        `sign` names a key of ``supermachine key generate``. What the guest's memory holds, passwords as well, can be
        read by whoever can read the repository; `Pushed.environment` has the names of the variables in the snapshot.
        Raises `RegistryUnauthorized` and other errors of registries.
        """
        from ..artifacts.push import push

        self.wait()
        return push(self.path, reference, sign=sign, insecure=insecure, progress=progress)

    def delete(self) -> None:
        """Removes the file. Raises `SnapshotInUse` while a virtual machine runs from it."""
        from ..images import Cache
        from ..snapshots import code

        self.wait()
        decoded = code.beside(Cache(), self.id, self.path) if self.id else None
        capture.delete(self.path)
        if decoded is not None:
            code.remove(decoded)

    def __fspath__(self) -> str:
        return str(self.path)


def pull(
    reference: str,
    output: str | os.PathLike[str] | None = None,
    *,
    wait: bool = True,
    insecure: bool = False,
    progress: Progress | None = None,
) -> Snapshot:
    """The snapshot that `reference` names in a registry, in the cache, or in a new file at `output`.

    It is code: it must be named by its digest, or be signed by a key that this user trusts (``supermachine key
    trust``), otherwise this raises `UntrustedSnapshot` and fetches nothing. Raises `DigestMismatch` for a registry that
    sends something else, and other errors of registries. The image of a snapshot is not fetched here.

    With ``wait=False`` it is there, on the soft engine, when a machine can start from it, and the rest comes while it
    runs: `Snapshot.wait`. `Snapshot.data_bytes` is of what was there by then.
    """
    from .. import _core
    from ..artifacts import pull as artifacts
    from ..artifacts.arrival import Arrival

    path = None if output is None else Path(os.path.abspath(output))  # noqa: PTH100 - a link is not followed
    if path is not None and not wait:
        raise ConfigurationError("wait=False is for a snapshot in the cache", hint="leave output out")
    found: object
    if wait:
        found = artifacts.pull(reference, path, insecure=insecure, progress=progress)
    else:
        arrival = Arrival(lambda early: artifacts.pull(reference, insecure=insecure, progress=progress, early=early))
        found = arrival.wait_until_startable()
        if (said := arrival.config) is not None and arrival.path is not None and arrival.place is not None:
            there = _core.read_snapshot(str(arrival.path))["disk_bytes"]
            return Snapshot(arrival.place, said.id, said.parent, there, 0.0, [], _arrival=arrival)
    assert isinstance(found, artifacts.Pulled)
    data_bytes = _core.read_snapshot(str(found.path))["disk_bytes"]
    return Snapshot(found.path, found.config.id, found.config.parent, data_bytes, 0.0, [])
