"""The blobs of a snapshot, in pieces from several connections at once, each frame checked before it is unpacked.

A registry may answer slowly, break off, ignore ranges, or send something else: what comes of it is slower, or an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Event, Lock

from .._core import Unpacker
from ..errors import (
    DigestMismatch,
    ImageNotFound,
    RegistryError,
    RegistryTimeout,
    RegistryUnauthorized,
    SnapshotDamaged,
)
from ..oci.model import Descriptor
from ..oci.registry import Repository

_PARALLEL = 8
#: Bytes that are asked for at once.
_GROUP = 1 << 20
_MAX_RESUMES = 1000

#: First frame, where it begins, where the last of the group ends.
Group = tuple[int, int, int]


class NoRangesError(Exception):
    """The registry sends all of a blob whenever a part of it is asked for."""


class StoppedError(Exception):
    """Another piece failed, so this one is not needed."""


class Download:
    """Fetches the parts of one snapshot into its files."""

    def __init__(self, repository: Repository, unpacker: Unpacker, progress: Callable[[str, int, int], None]) -> None:
        self._repository = repository
        self._unpacker = unpacker
        self._progress = progress
        self._stop = Event()
        self._lock = Lock()
        self._done: dict[str, int] = {}
        #: Hears of each group that is in the file.
        self.on_group: Callable[[int, Group], None] | None = None

    def stop(self) -> None:
        """Ends what is being fetched, and the connections for it: `take` raises StoppedError or others."""
        self._stop.set()
        self._repository.transport.abort()

    def silence(self) -> None:
        """Tells no more of what comes."""
        self._progress = lambda _digest, _done, _total: None

    def parts(self, wanted: Sequence[tuple[int, Descriptor, str]]) -> None:
        """All frames of these parts, the first ones first: number, blob, and what it is for errors.

        Raises DigestMismatch when the registry sends what was not asked for.
        """
        tasks: list[tuple[int, Descriptor, list[Group], str, bool]] = []
        for number, blob, what in wanted:
            groups = self._unpacker.groups(number, _GROUP)
            # One that is all of its blob needs no ranges.
            tasks += [(number, blob, [group], what, len(groups) == 1) for group in groups]
        with contextlib.suppress(NoRangesError):
            return self._parallel(tasks)
        for number, blob, what in wanted:
            self._done.pop(blob.digest, None)
            self.take(number, blob, self._unpacker.groups(number, _GROUP), what, True)

    def _parallel(self, tasks: Sequence[tuple[int, Descriptor, list[Group], str, bool]]) -> None:
        executor = ThreadPoolExecutor(max(1, min(_PARALLEL, len(tasks))), thread_name_prefix="supermachine-pull")
        try:
            futures = [executor.submit(self.take, *task) for task in tasks]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            failures = [error for future in done if (error := future.exception()) is not None]
            real = [error for error in failures if not isinstance(error, StoppedError)]
            # That there are no ranges is no failure, whatever has come of it.
            for error in sorted(real, key=lambda error: not isinstance(error, NoRangesError)):
                raise error
        finally:
            self._stop.set()
            executor.shutdown(wait=True, cancel_futures=True)
            self._stop.clear()

    def take(self, number: int, blob: Descriptor, groups: Sequence[Group], what: str, whole: bool) -> None:
        """Adjacent groups, in order; after a break from the last group that is whole."""
        limits = self._repository.transport.limits
        failure: Exception | None = None
        attempt = taken = 0
        for _ in range(_MAX_RESUMES):
            if self._stop.is_set():
                raise StoppedError
            if taken == len(groups):
                return
            if failure is not None:
                if attempt >= limits.attempts:
                    raise failure
                self._repository.transport.pause(attempt)
            attempt += 1
            before = taken
            try:
                for group, data in self._stream(blob, groups[taken:], what, whole=whole):
                    self._unpacker.frames(number, group[0], data)
                    taken += 1
                    if self.on_group is not None:
                        self.on_group(number, group)
                    self._told(blob, group[2] - group[1])
            except SnapshotDamaged as error:
                # Once more, since a broken cache in between may be another one the next time.
                damaged = DigestMismatch(
                    f"registry {self._repository.host} sends something else than {what}", cause=str(error)
                )
                if isinstance(failure, DigestMismatch):
                    raise damaged from error
                failure = damaged
            except (RegistryError, RegistryTimeout) as error:
                if isinstance(error, ImageNotFound | RegistryUnauthorized) or getattr(error, "final", False):
                    raise
                failure = error
            if taken > before:
                attempt = 1
        raise failure or RegistryError(f"registry {self._repository.host} did not deliver {what}")

    def _stream(
        self, blob: Descriptor, groups: Sequence[Group], what: str, *, whole: bool
    ) -> Iterator[tuple[Group, bytes]]:
        start, end = groups[0][1], groups[-1][2]
        response, partial = self._repository.piece(blob.digest, start, end, what)
        try:
            if not partial and not whole:
                raise NoRangesError
            skip = 0 if partial else start
            buffer, waiting = bytearray(), list(groups)
            for piece in response.pieces():
                if self._stop.is_set():
                    raise StoppedError
                ignored = min(skip, len(piece))
                skip -= ignored
                buffer += memoryview(piece)[ignored:]
                while waiting and len(buffer) >= (length := waiting[0][2] - waiting[0][1]):
                    yield waiting.pop(0), bytes(buffer[:length])
                    del buffer[:length]
                if not waiting and not partial:
                    return
                if not waiting and buffer:
                    raise DigestMismatch(f"registry {self._repository.host} sends more of {what} than was asked for")
            if waiting:
                raise RegistryError(f"registry {self._repository.host} broke off in the middle of {what}")
        finally:
            response.close()

    def _told(self, blob: Descriptor, count: int) -> None:
        with self._lock:
            done = self._done[blob.digest] = self._done.get(blob.digest, 0) + count
            self._progress(blob.digest, done, blob.size)
