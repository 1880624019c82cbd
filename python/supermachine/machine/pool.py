"""Virtual machines that are ready before they are asked for."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .. import shortage
from ..errors import ConfigurationError, PoolClosed, PoolTimeout, VMExited
from .makers import Maker

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..settings.machine import MachineOptions
    from .starts import Root
    from .vm import VM

#: Seconds before a refill that failed is tried again while nobody waits, doubled each time up to the most.
_BACKOFF = 0.5
_MAX_BACKOFF = 30.0
#: Machines that are started each by itself before a template of theirs is made: they may be all.
_WITHOUT_TEMPLATE = 2
#: Seconds between two attempts to end a machine that is being started while the pool closes.
_CLOSING = 0.05


class Pool:
    """Virtual machines of one image, at least `min` of them ready and at most `max` alive, those in use included.

    ``with pool.acquire() as vm:`` gives a machine that nobody has used before, and ends it afterwards. One thread
    refills the pool; what goes wrong there is raised by the `acquire` that would have got the machine. Ready ones
    beyond `min` are ended after `idle_timeout` seconds. `machine` are keywords of :class:`VM`.

    From the third machine on, those of a baked image on the soft engine are copies of one process, a template, which
    has restored the image's snapshot and ends with the pool.
    """

    def __init__(
        self,
        image: str | os.PathLike[str],
        min: int = 1,  # noqa: A002
        max: int = 4,  # noqa: A002
        idle_timeout: float | None = None,
        **machine: Unpack[MachineOptions],
    ) -> None:
        if not 0 <= min <= max or max < 1:
            raise ConfigurationError(f"a pool of {min} to {max} virtual machines cannot be had")
        if idle_timeout is not None and idle_timeout < 0:
            raise ConfigurationError(f"idle_timeout is {idle_timeout}; seconds are needed")
        self._image = image
        self._machine = machine
        #: The image as the first machine found it; all others are of the same.
        self._resolved: Root | None = None
        self._maker = Maker(after=_WITHOUT_TEMPLATE)
        self._min, self._max, self._idle_timeout = min, max, idle_timeout
        self._changed = threading.Condition()
        #: Ready machines and since when, the longest ready first.
        self._ready: deque[tuple[VM, float]] = deque()
        self._lent = 0
        #: Those who wait and have not been told of a failure.
        self._waiting: set[object] = set()
        self._starting: VM | None = None
        #: The last failure of a refill, until somebody has been told; and how many there were in a row and in all.
        self._untold: BaseException | None = None
        self._failed: BaseException | None = None
        self._in_a_row = 0
        self._failures = 0
        self._retry_at = 0.0
        self._closed = False
        self._owner = os.getpid()
        self._new()  # options that make no sense are the caller's to hear of
        self._thread = threading.Thread(target=self._refill, name="supermachine-pool", daemon=True)
        shortage.start(self._thread, "the pool cannot be filled")

    def _new(self) -> VM:
        from .vm import VM

        vm = VM(self._image, **self._machine)
        vm._root, vm._maker = self._resolved, self._maker
        return vm

    @property
    def ready(self) -> int:
        """How many machines wait to be acquired."""
        with self._changed:
            return len(self._ready)

    @property
    def in_use(self) -> int:
        """How many machines are acquired."""
        with self._changed:
            return self._lent

    @contextmanager
    def acquire(self, timeout: float | None = None) -> Iterator[VM]:
        """A fresh running machine, ended with the block. Raises `PoolTimeout` after `timeout` seconds.

        In a process that was forked from the pool's own, it is a closed pool.
        """
        vm = self._take(timeout)
        try:
            yield vm
        finally:
            self._end(vm)

    def _take(self, timeout: float | None, given_up: threading.Event | None = None) -> VM:
        """A machine for `_end`. Setting `given_up`, and telling `_changed` so, ends the wait."""
        if self._elsewhere():
            raise PoolClosed(f"the pool belongs to the process {self._owner}, from which this one was forked")
        deadline = None if timeout is None else time.monotonic() + timeout
        dead: list[VM] = []
        with self._changed:
            failures = self._failures
            waiter = object()
            self._waiting.add(waiter)
            self._changed.notify_all()
            try:
                while True:
                    if self._closed or (given_up is not None and given_up.is_set()):
                        raise PoolClosed("the pool is closed")
                    while self._ready:
                        vm, _ = self._ready.popleft()
                        if vm.running:
                            self._lent += 1
                            self._changed.notify_all()
                            return vm
                        dead.append(vm)
                    if self._untold is not None or self._failures != failures:
                        error, self._untold = self._failed, None
                        assert error is not None
                        raise error
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        raise PoolTimeout(
                            f"no virtual machine became free within {timeout:g} seconds; {self._lent} of at most "
                            f"{self._max} are in use"
                        )
                    self._changed.wait(left)
            finally:
                self._waiting.discard(waiter)
                for vm in dead:
                    vm.kill()

    def _elsewhere(self) -> bool:
        """Whether this is another process, in which nobody refills and the locks may be held by nobody."""
        return self._owner != os.getpid()

    def _wake(self) -> None:
        """Makes everyone who waits look again."""
        with self._changed:
            self._changed.notify_all()

    def _end(self, vm: VM) -> None:
        if self._elsewhere():
            return
        try:
            vm.kill()
        finally:
            with self._changed:
                self._lent -= 1
                self._changed.notify_all()

    def _refill(self) -> None:
        """The thread: starts what is missing, ends what is idle."""
        while True:
            with self._changed:
                idle: list[VM] = []
                while not self._closed and not self._must_start() and not (idle := self._idle()):
                    self._changed.wait(self._until())
                if self._closed:
                    return
                starting = self._starting = None if idle else self._new()
            for vm in idle:
                vm.kill()
            if starting is not None:
                self._start(starting)

    def _start(self, vm: VM) -> None:
        try:
            vm.start()
        except BaseException as error:
            with self._changed:
                self._starting = None
                if self._closed and isinstance(error, VMExited):
                    return
                self._untold = self._failed = error
                self._failures += 1
                if self._waiting:
                    # They are told by the count, and leave.
                    self._untold = None
                    self._waiting.clear()
                self._retry_at = time.monotonic() + min(_BACKOFF * 2**self._in_a_row, _MAX_BACKOFF)
                self._in_a_row = min(self._in_a_row + 1, 10)
                self._changed.notify_all()
            return
        self._resolved = vm._disks()
        with self._changed:
            self._starting = None
            self._in_a_row, self._retry_at, self._untold = 0, 0.0, None
            closed = self._closed
            if not closed:
                self._ready.append((vm, time.monotonic()))
            self._changed.notify_all()
        if closed:
            vm.kill()

    def _must_start(self) -> bool:
        alive = len(self._ready) + self._lent
        if alive >= self._max:
            return False
        return len(self._ready) < len(self._waiting) or (
            len(self._ready) < self._min and time.monotonic() >= self._retry_at
        )

    def _idle(self) -> list[VM]:
        """Takes out what nobody wants any more."""
        found: list[VM] = []
        if self._idle_timeout is not None:
            before = time.monotonic() - self._idle_timeout
            while len(self._ready) > self._min and self._ready[0][1] <= before:
                found.append(self._ready.popleft()[0])
        return found

    def _until(self) -> float | None:
        """Seconds until there is something to do without anybody's asking."""
        times = []
        if self._idle_timeout is not None and len(self._ready) > self._min:
            times.append(self._ready[0][1] + self._idle_timeout)
        if len(self._ready) < self._min and len(self._ready) + self._lent < self._max:
            times.append(self._retry_at)
        return max(0.0, min(times) - time.monotonic()) if times else None

    def close(self) -> None:
        """Ends the ready machines; those in use go on to the end of their blocks. Who waits gets `PoolClosed`."""
        if self._elsewhere():
            return
        with self._changed:
            self._closed = True
            ready = [vm for vm, _ in self._ready]
            self._ready.clear()
            self._changed.notify_all()
        for vm in ready:
            vm.kill()
        self._maker.close()
        while self._thread.is_alive():
            with self._changed:
                starting = self._starting
            if starting is not None:
                starting.kill()
            self._thread.join(_CLOSING)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        with self._changed:
            return f"<Pool {str(self._image)!r} {len(self._ready)} ready, {self._lent} in use, at most {self._max}>"
