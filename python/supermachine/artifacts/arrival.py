"""A snapshot that a guest starts from while its memory is still on its way.

What a guest needs first comes while it is being started. It says which page it waits for, and the frame with that page
is fetched before others; when nobody has waited for a moment, the rest is fetched in its order. Only the soft engine
can wait for a page. What the worker and this end say to each other is in ``rust/proto/src/arrival.rs``.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from .. import descriptors
from .._core import AwaitedPages, arrival_message
from ..errors import RegistryTimeout
from ..snapshots import working_set
from .download import NoRangesError, StoppedError

if TYPE_CHECKING:
    from .._core import Unpacker
    from ..oci.model import Descriptor
    from .download import Download, Group
    from .model import Config

#: The engine whose guests wait for a page.
ENGINE = "soft"
#: Bytes that are asked for at once when a guest waits for a page, and when nobody does.
_AWAITED_GROUP = 64 << 10
_ADJACENT = 16
_PARALLEL = 8
#: Of these, connections for what guests wait for alone: it does not stand behind the rest.
_AWAITING = 2
#: Seconds without anybody waiting after which the rest is fetched, and after which it is in any case, unless a guest's
#: first process has ended before: what a guest waits for does not share the line with what it may never need.
_QUIET = 1.0
_LATEST = 5.0
#: Seconds that a worker may take to read what it is told.
_PATIENCE = 30.0
_PAGE = 4096


def possible(config: Config) -> bool:
    """Whether a guest of this snapshot can start before all of it is there."""
    return sys.platform == "linux" and config.engine == ENGINE and config.parent is None


@dataclass
class _Piece:
    """Frames that are fetched together."""

    part: int
    blob: Descriptor
    what: str
    group: Group
    #: First page of the file and end, of each run that is in it.
    pages: Sequence[tuple[int, int]]
    #: Whether a start needs it: fetched at once, before all others.
    first: bool = False
    taken: bool = False
    here: bool = False
    #: Whether it is among those that guests wait for.
    awaited: bool = False


class Arrival:
    """Fetches a snapshot in a thread of its own, and tells its guests what has come."""

    def __init__(self, fetch: Callable[[Arrival], object]) -> None:
        """`fetch` gets all of it, and calls `begin` when a guest may start."""
        self._changed = threading.Condition()
        #: The file, whatever its name; where it is when it is complete; its configuration.
        self.path: Path | None = None
        self.place: Path | None = None
        self.config: Config | None = None
        self._download: Download | None = None
        self._pieces: list[_Piece] = []
        self._first: dict[tuple[int, int], int] = {}
        #: Part and first frame of each piece, in order.
        self._starts: list[tuple[int, int]] = []
        self._unpacker: Unpacker | None = None
        self._ram = 0
        self._awaited: deque[_Piece] = deque()
        #: All pieces before it are taken.
        self._cursor = 0
        #: Pieces that a start needs and that are not here.
        self._first_left = 0
        self._began = self._asked = 0.0
        self._guests: list[_Guest] = []
        self._failure: BaseException | None = None
        self._result: object = None
        self._over = False
        self._then: list[Callable[[], object]] = []
        self._sequential = self._hurried = False
        self._fetch = fetch
        # Not a daemon: what is on its way when a program ends has its place in the cache then.
        self._thread = threading.Thread(target=self._run, name="supermachine-arrival")
        self._thread.start()

    # The side of who starts a guest.

    def wait_until_startable(self) -> object:
        """What `fetch` gave, if it is done; ``None`` when a guest may start before. Raises what `fetch` raised."""
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._over or self.path is not None)
        except BaseException:
            self.cancel()
            raise
        self._raise()
        return self._result

    @property
    def complete(self) -> bool:
        return self._over and self._failure is None

    def wait(self, timeout: float | None = None) -> None:
        """Waits until all of it is there, which is fetched now.

        Raises what went wrong, and RegistryTimeout after `timeout` seconds.
        """
        self.hurry()
        with self._changed:
            there = self._changed.wait_for(lambda: self._over, timeout)
        if not there:
            raise RegistryTimeout(f"the rest of the snapshot was not there after {timeout:g} seconds")
        self._raise()

    def cancel(self) -> None:
        """Fetches no more of it."""
        with self._changed:
            if self._over:
                return
            if self._download is not None:
                self._download.stop()
            self._failure = self._failure or StoppedError()
            self._changed.notify_all()

    def attach(self) -> int | None:
        """A descriptor for a guest that is about to start; ``None`` when all is there. Raises what went wrong."""
        self._raise()
        with self._changed:
            if self._over:
                return None
            ours, theirs = descriptors.local_pair()
            missing = [run for piece in self._pieces if not piece.here for run in self._in_ram(piece)]
            guest = _Guest(ours, self._await, sum(end - start for start, end in missing))
            guest.tell(arrival_message("missing", missing), arrival_message("begin"))
            self._guests.append(guest)
            self._asked = time.monotonic()
        return theirs.detach()

    def wait_for_first(self) -> None:
        """Waits until all that a start needs is here. Raises what went wrong.

        Until then it is as if there were no guest: where not even that can be had, the image is booted instead.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._failure is not None or not self._first_left)
        self._raise()

    def when_over(self, then: Callable[[], object]) -> None:
        """Calls it when nothing more comes, in the thread that fetches; at once when that is so already."""
        with self._changed:
            if not self._over:
                self._then.append(then)
                return
        then()

    def working_set(self) -> working_set.Ranges:
        """The pages that a guest needs first, as far as that is known."""
        try:
            return working_set.decode(self.config.working_set) if self.config is not None else []
        except ValueError:
            return []

    def hurry(self) -> None:
        """Has the rest fetched now: the guest has what it needed first."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()

    def failure(self) -> BaseException | None:
        """What went wrong."""
        return self._failure

    def _raise(self) -> None:
        if (error := self._failure) is not None:
            raise error

    # The side of what fetches.

    def _run(self) -> None:
        try:
            self._result = self._fetch(self)
        except BaseException as error:
            self._failure = self._failure or error
        with self._changed:
            self._over = True
            why = None if self._failure is None else str(self._failure) or "it was given up"
            last = arrival_message("all") if why is None else arrival_message("lost", why=why)
            for guest in self._guests:
                guest.tell(last, None)
            then, self._then = self._then, []
            self._changed.notify_all()
        for each in then:
            each()

    def begin(
        self,
        fd: int,
        place: Path,
        config: Config,
        unpacker: Unpacker,
        download: Download,
        first: Sequence[tuple[int, Descriptor, str]],
        rest: Sequence[tuple[int, Descriptor, str]],
        ram: int,
        local: Mapping[int, Callable[[], bool]],
    ) -> None:
        """All but these parts is in the file `fd`, whose RAM begins at `ram`; fetches them. It will be at `place`.

        The `first` ones are needed by a start. `local` are parts that may be had without a registry: they say whether
        that was so.
        """
        pieces = []
        wanted = [*first, *rest]
        for part, blob, what in wanted:
            groups = unpacker.groups(part, _AWAITED_GROUP)
            for number, group in enumerate(groups):
                end = groups[number + 1][0] if number + 1 < len(groups) else sys.maxsize
                pages = unpacker.pages(part, group[0], end)
                pieces.append(_Piece(part, blob, what, group, pages, first=(part, blob, what) in first))
        with self._changed:
            self._pieces, self._unpacker, self._ram = pieces, unpacker, ram // _PAGE
            self._first_left = sum(piece.first for piece in pieces)
            self._first = {(piece.part, piece.group[0]): n for n, piece in enumerate(pieces)}
            self._starts = sorted(self._first)
            self._download, self.config = download, config
            self._began = self._asked = time.monotonic()
            self._kept = _Kept(descriptors.raised(os.dup(fd)))
            self.path, self.place = Path(f"/proc/{os.getpid()}/fd/{self._kept.fd}"), place
            self._changed.notify_all()
        download.on_group = self._came
        # Whoever shows how it goes has the guest to show by now.
        download.silence()
        count = min(_PARALLEL, len(pieces))
        threads = [
            threading.Thread(
                target=self._work,
                args=(number >= _AWAITING or count <= _AWAITING,),
                name="supermachine-arrival-fetch",
                daemon=True,
            )
            for number in range(count)
        ]
        for thread in threads:
            thread.start()
        try:
            for part, take in local.items():
                if take():
                    for piece in pieces:
                        if piece.part == part:
                            self._came(part, piece.group)
        except BaseException as error:
            self._fail(error)
        for thread in threads:
            thread.join()
        self._raise()
        if self._sequential:
            for part, blob, what in wanted:
                if not all(piece.here for piece in pieces if piece.part == part):
                    download.take(part, blob, unpacker.groups(part, _AWAITED_GROUP), what, True)

    def _work(self, rest: bool) -> None:
        """A thread: fetches what guests wait for, and the `rest` when they wait for nothing."""
        download = self._download
        assert download is not None
        while (pieces := self._next(rest)) is not None:
            first = pieces[0]
            # All of a blob needs no ranges.
            whole = first.group[1] == 0 and pieces[-1].group[2] == first.blob.size
            try:
                download.take(first.part, first.blob, [piece.group for piece in pieces], first.what, whole)
            except NoRangesError:
                with self._changed:
                    self._sequential = True
                    self._changed.notify_all()
            except BaseException as error:
                self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()
            download = self._download
        assert download is not None
        download.stop()

    def _next(self, rest: bool) -> list[_Piece] | None:
        """What to fetch now, adjacent pieces of one part; ``None`` when that is nothing any more."""
        with self._changed:
            while True:
                while self._cursor < len(self._pieces) and self._pieces[self._cursor].taken:
                    self._cursor += 1
                if self._failure is not None or self._sequential or self._cursor == len(self._pieces):
                    return None
                while self._awaited:
                    piece = self._awaited.popleft()
                    if not piece.taken:
                        piece.taken = True
                        return [piece]
                if self._pieces[self._cursor].first:
                    return self._adjacent()
                if not rest or self._first_left:
                    self._changed.wait()
                    continue
                now = time.monotonic()
                left = min(self._asked + _QUIET, self._began + _LATEST) - now
                if left <= 0 or self._hurried:
                    return self._adjacent()
                self._changed.wait(left)

    def _adjacent(self) -> list[_Piece]:
        found: list[_Piece] = []
        for piece in self._pieces[self._cursor : self._cursor + 2 * _ADJACENT]:
            if found and (piece.taken or piece.part != found[0].part or len(found) == _ADJACENT):
                break
            if not piece.taken:
                piece.taken = True
                found.append(piece)
        return found

    def _came(self, part: int, group: Group) -> None:
        with self._changed:
            piece = self._pieces[self._first[part, group[0]]]
            if piece.first and not piece.here:
                self._first_left -= 1
                # Only now does the time begin in which a guest may wait for other pages.
                self._began = self._asked = time.monotonic()
            piece.taken = piece.here = True
            if runs := self._in_ram(piece):
                message = arrival_message("pages", runs)
                for guest in self._guests:
                    guest.tell(message)
            self._changed.notify_all()

    def _in_ram(self, piece: _Piece) -> list[tuple[int, int]]:
        return [(start - self._ram, end - self._ram) for start, end in piece.pages if start >= self._ram]

    def _await(self, page: int) -> None:
        """A guest waits for a page of RAM. What a guest says may be anything."""
        with self._changed:
            if self._unpacker is None or page >= 1 << 40:
                return
            found = self._unpacker.frame_of(0, self._ram + page)
            if found is None:
                return
            # The piece that begins with this frame or the last one before it.
            number = bisect.bisect_right(self._starts, found) - 1
            if number < 0 or self._starts[number][0] != found[0]:
                return
            self._asked = time.monotonic()
            piece = self._pieces[self._first[self._starts[number]]]
            if not piece.taken and not piece.awaited:
                piece.awaited = True
                self._awaited.append(piece)
                self._changed.notify_all()


class _Kept:
    """A descriptor that is closed when nobody needs it any more."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class _Guest:
    """The socket to one guest's worker, with a thread for each direction: neither can hold the other up.

    A worker asks for each page that is missing once. One that asks for more is broken, or has been taken over by its
    guest, and is heard no more.
    """

    def __init__(self, channel: socket.socket, awaits: Callable[[int], None], missing: int) -> None:
        self._channel = channel
        self._awaits = awaits
        self._left = missing
        self._out: SimpleQueue[bytes | None] = SimpleQueue()
        channel.settimeout(_PATIENCE)
        self._reading = socket.socket(fileno=descriptors.raised(os.dup(channel.fileno())))
        self._reading.settimeout(None)
        for body in (self._tell, self._hear):
            threading.Thread(target=body, name="supermachine-arrival-guest", daemon=True).start()

    def tell(self, *messages: bytes | None) -> None:
        """``None`` is the end."""
        for message in messages:
            self._out.put(message)

    def _tell(self) -> None:
        with self._channel, contextlib.suppress(OSError):
            while (message := self._out.get()) is not None:
                self._channel.sendall(message)
            # What was said is still read there; what is asked is not any more.
            self._channel.shutdown(socket.SHUT_RDWR)

    def _hear(self) -> None:
        pages = AwaitedPages()
        with self._reading, contextlib.suppress(OSError, ValueError):
            while data := self._reading.recv(4096):
                for page in pages.push(data):
                    if not self._left:
                        self.tell(arrival_message("lost", why="its worker asked for more pages than are missing"))
                        raise ValueError(page)
                    self._left -= 1
                    self._awaits(page)
        self._out.put(None)
