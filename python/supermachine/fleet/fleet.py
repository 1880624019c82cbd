"""A fleet: machines of one kind on the hosts that a driver has."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ..errors import ConfigurationError, FleetClosed, FleetFailed, FleetFull, HostLost
from . import drivers
from .connection import HostConnection
from .driver import Driver
from .vm import FleetVM

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..network.secrets import Secret
    from ..settings.machine import MachineOptions

T = TypeVar("T")
Self = TypeVar("Self", bound="Fleet")

#: Seconds between two looks for room that others may have left, and for hosts that have come back.
_LOOK = 0.25
_REFRESH = 2.0
#: How much less room, as a share, a host may have that has the snapshot, to be chosen before one that must fetch it.
_AHEAD = 0.5
#: Threads that run functions at most.
_MAX_THREADS = 256


class HostState(NamedTuple):
    """A host of a fleet, at one moment."""

    name: str
    capacity: int
    #: Machines on it, of all its clients.
    in_use: int
    lost: bool
    labels: dict[str, str]
    #: Whether it takes no more machines of this fleet's: `Fleet.drain`.
    draining: bool = False


class Fleet:
    """Machines of an image, or of a snapshot, on the hosts of `driver`.

    ``with Fleet("python:3.12-slim", driver="ray") as fleet, fleet.acquire() as vm: vm.run(...)``.

    `driver` is "local" (this process), "processes" (`hosts=` processes of this machine), "ray" or "dask". `per_host` is
    how many machines a host takes, by default what its memory and processors are good for; `ready` how many each keeps
    started for who comes next. `snapshot` is a reference in a registry, which each host fetches, or the absolute path
    of a file that all hosts have. `max_queue` callers wait for room at most. Other keywords are those of
    :class:`supermachine.VM` that another process can be told: a `warmup` is a list of commands. `secrets` are told to
    hosts over the fleet's own connections, and not through the engine of distribution.

    A command is never repeated: what was on a host that is lost raises `HostLost`, and it is for the caller to know
    whether it may be done again.
    """

    def __init__(
        self,
        image: str | os.PathLike[str] | None = None,
        *,
        driver: str | Driver = "local",
        per_host: int | str = "auto",
        ready: int = 1,
        snapshot: str | None = None,
        max_queue: int = 1000,
        driver_options: Mapping[str, Any] | None = None,
        **machine: Unpack[MachineOptions],
    ) -> None:
        options = dict(machine)
        self._secrets = _secrets(options)
        self._spec = _spec(image, snapshot, ready, options)
        if self._secrets:
            # Machines that have them are this fleet's alone. The values are not in what hosts compare.
            self._spec["secrets"] = os.urandom(16).hex()
        self._changed = threading.Condition()
        self._hosts: dict[str, HostConnection] = {}
        self._failure: Exception | None = None
        self._waiting = 0
        self._max_queue = max_queue
        #: Of machines that were given back: how long they were held, the later the more it counts.
        self._held_for: float | None = None
        self._closed = False
        self._owner = os.getpid()
        self._threads: ThreadPoolExecutor | None = None
        self._driver = drivers.choose(driver, per_host, dict(driver_options or {}))
        try:
            self._refresh()
            if not self._hosts:
                raise self._failure or FleetFailed("the fleet has no host")
        except BaseException:
            self.close()
            raise
        threading.Thread(target=self._look_after, name="supermachine-fleet", daemon=True).start()

    # Hosts.

    def _refresh(self) -> None:
        """Connects to the hosts that the driver has and this fleet has not."""
        addresses = self._driver.addresses()
        names = {address.name for address in addresses}
        with self._changed:
            for name in [name for name, host in self._hosts.items() if host.lost is not None and name not in names]:
                del self._hosts[name]
        for address in addresses:
            known = self._hosts.get(address.name)
            if known is not None and known.lost is None:
                continue
            try:
                host = HostConnection(address, self._spec, self._wake, self._secrets)
            except (OSError, FleetFailed) as error:
                self._failure = (
                    error
                    if isinstance(error, FleetFailed)
                    else FleetFailed(f"the host {address.name} of the fleet cannot be reached", cause=str(error))
                )
                continue
            with self._changed:
                if self._closed:
                    host.close()
                    return
                self._hosts[address.name] = host
                self._changed.notify_all()

    def _look_after(self) -> None:
        """A thread: hosts that were lost are taken in again when they are back."""
        most = 0
        while not self._closed:
            alive = sum(host.lost is None for host in list(self._hosts.values()))
            most = max(most, alive)
            time.sleep(_REFRESH)
            if not self._closed and alive < most:
                try:
                    self._refresh()
                except Exception as error:
                    self._failure = error

    def drain(self, host: str, timeout: float | None = None) -> bool:
        """Puts no more machines on a host, for its maintenance, and waits until this fleet has none there.

        Gives whether that was so within `timeout` seconds; the host takes none in any case. Then the fleet is done with
        it, for as long as the fleet lasts. Other clients of the host are not concerned. Raises ConfigurationError for a
        host that the fleet has not.
        """
        self._must_be_here()
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            if self._closed:
                raise FleetClosed("the fleet has been closed")
            found = self._hosts.get(host)
            if found is None:
                names = ", ".join(sorted(self._hosts))
                raise ConfigurationError(f"the fleet has no host {host!r}", hint=f"its hosts are {names}")
            found.draining = True
            self._changed.notify_all()
            while found.held and found.lost is None and not self._closed:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._changed.wait(_LOOK if left is None else min(_LOOK, left))
        found.close()
        return True

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    @property
    def hosts(self) -> list[HostState]:
        """The hosts, those that are lost too."""
        return [
            HostState(h.address.name, h.capacity, h.in_use, h.lost is not None, dict(h.address.labels), h.draining)
            for h in list(self._hosts.values())
        ]

    @property
    def capacity(self) -> int:
        """Machines that all hosts together take."""
        return sum(host.capacity for host in list(self._hosts.values()) if host.lost is None and not host.draining)

    # Machines.

    def acquire(self, timeout: float | None = None, *, labels: Mapping[str, str] | None = None) -> FleetVM:
        """A machine that nobody has used, on the host with the most room; `labels` are what that host must have.

        One that has the fleet's `snapshot` goes before others, until half of it more is in use.

        Raises `FleetFull` when there is none within `timeout` seconds or too many wait already, `HostLost` when the
        host goes while it starts one, and what is wrong with the image or the options.
        """
        return self._take(timeout, labels)

    def _take(
        self,
        timeout: float | None = None,
        labels: Mapping[str, str] | None = None,
        given_up: threading.Event | None = None,
    ) -> FleetVM:
        """The same. Setting `given_up`, and `_wake`, ends the wait for room."""
        self._must_be_here()
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            if self._waiting >= self._max_queue:
                raise self._full(f"{self._waiting} others wait for a machine, and {self._max_queue} may")
            self._waiting += 1
        try:
            refused: set[str] = set()
            while True:
                host = self._choose(labels, refused, deadline, given_up)
                try:
                    name, said = host.acquire()
                except FleetFull:
                    refused.add(host.address.name)  # somebody else was faster
                    continue
                finally:
                    with self._changed:
                        host.held -= 1
                        self._changed.notify_all()
                return _Held(host, name, said)._timed(self._note)
        finally:
            with self._changed:
                self._waiting -= 1

    def _choose(
        self,
        labels: Mapping[str, str] | None,
        refused: set[str],
        deadline: float | None,
        given_up: threading.Event | None,
    ) -> HostConnection:
        """A host with room, in which one place is counted as taken."""
        with self._changed:
            while True:
                if self._closed or (given_up is not None and given_up.is_set()):
                    raise FleetClosed("the fleet has been closed")
                fit = [h for h in self._hosts.values() if _has(h.address.labels, labels)]
                # Without any host at the moment, those that were lost may come back.
                if not fit and self._hosts:
                    raise ConfigurationError(f"no host of the fleet has the labels {dict(labels or {})}")
                alive = [h for h in fit if h.lost is None]
                if alive and all(h.draining for h in alive):
                    raise FleetClosed("every host of the fleet is being drained")
                free = [h for h in alive if h.free > 0 and h.address.name not in refused]
                if free:
                    host = max(free, key=_fitness)
                    host.held += 1
                    return host
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    if not alive:
                        raise HostLost("every host of the fleet is lost")
                    raise self._full("no host of the fleet has room")
                self._changed.wait(_LOOK if left is None else min(_LOOK, left))
                refused.clear()

    def _full(self, message: str) -> FleetFull:
        capacity = max(1, self.capacity)
        estimate = None if self._held_for is None else self._held_for * (self._waiting + 1) / capacity
        used = sum(host.in_use for host in self._hosts.values())
        return FleetFull(f"{message}: {used} of {capacity} machines are in use", retry_after=estimate)

    def _note(self, seconds: float) -> None:
        held = self._held_for
        self._held_for = seconds if held is None else 0.8 * held + 0.2 * seconds

    # Work.

    def submit(self, function: Callable[..., T], /, *args: Any, **keywords: Any) -> Future[T]:
        """Calls ``function(vm, *args, **keywords)`` in a thread here, with a machine of its own that ends with it."""
        self._must_be_here()
        with self._changed:
            if self._closed:
                raise FleetClosed("the fleet has been closed")
            if self._threads is None:
                count = min(max(self.capacity, 1), _MAX_THREADS)
                self._threads = ThreadPoolExecutor(count, thread_name_prefix="supermachine-fleet")
            threads = self._threads

        def work() -> T:
            with self.acquire() as vm:
                return function(vm, *args, **keywords)

        return threads.submit(work)

    def map(
        self, function: Callable[..., T], /, *iterables: Iterable[Any], timeout: float | None = None
    ) -> Iterator[T]:
        """``function(vm, item, …)`` for each, in machines of their own; results in order, as `Executor.map` has it."""
        deadline = None if timeout is None else time.monotonic() + timeout
        futures = [self.submit(function, *items) for items in zip(*iterables, strict=False)]

        def results() -> Iterator[T]:
            try:
                for future in futures:
                    yield future.result(None if deadline is None else deadline - time.monotonic())
            finally:
                for future in futures:
                    future.cancel()

        return results()

    def _must_be_here(self) -> None:
        """Raises in a process that was forked from the fleet's own, whose locks may be held for ever."""
        if self._owner != os.getpid():
            raise FleetClosed(f"the fleet belongs to the process {self._owner}, from which this one was forked")

    def close(self) -> None:
        """Ends every machine of the fleet, and what the driver has started for it.

        In a process that was forked from the fleet's it does nothing.
        """
        if self._owner != os.getpid():
            return
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        for host in list(self._hosts.values()):
            host.close()
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
        driver: Driver | None = getattr(self, "_driver", None)
        if driver is not None:
            driver.close()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        what = self._spec["snapshot"] or self._spec["image"]
        return f"<{type(self).__name__} {what!r} of {len(self._hosts)} hosts, {self.capacity} machines>"


class _Held(FleetVM):
    """One that says how long it was held."""

    _told: Callable[[float], None] | None = None
    _since = 0.0

    def _timed(self, told: Callable[[float], None]) -> FleetVM:
        self._told, self._since = told, time.monotonic()
        return self

    def kill(self) -> None:
        """Ends it at once, and gives its place back to the fleet. Does nothing when it has ended."""
        told, self._told = self._told, None
        if told is not None:
            told(time.monotonic() - self._since)
        super().kill()


def _fitness(host: HostConnection) -> tuple[float, int]:
    """The most room first, as a share and then in machines; one that has the snapshot is ahead by a share."""
    return host.free / host.capacity + _AHEAD * host.has_snapshot, host.free


def _has(labels: Mapping[str, str], wanted: Mapping[str, str] | None) -> bool:
    return all(labels.get(name) == value for name, value in (wanted or {}).items())


def _secrets(options: dict[str, Any]) -> dict[str, Secret]:
    """Takes the secrets out of the options of machines, and checks them and what network they go with."""
    from ..network import policy
    from ..network.secrets import secrets

    found = secrets(options.pop("secrets", None))
    if found:
        policy.network(options.get("network") or "none", secrets=found)
    return found


def _spec(
    image: str | os.PathLike[str] | None,
    snapshot: str | None,
    ready: int,
    options: dict[str, Any],
) -> dict[str, Any]:
    """What hosts are told, checked as far as that is possible here."""
    import json

    from ..settings import parsing
    from ..settings.table import SETTINGS

    if (image is None) == (snapshot is None):
        raise ConfigurationError("a fleet is of an image or of a snapshot: name one of them")
    if unknown := sorted(options.keys() - {setting.name for setting in SETTINGS}):
        raise TypeError(f"Fleet() got an unexpected keyword argument {unknown[0]!r}")
    if (warmup := options.get("warmup")) is not None:
        if callable(warmup) or snapshot is not None:
            raise ConfigurationError("a fleet's warmup is a list of commands, and is of an image")
        options["warmup"] = [command if isinstance(command, str) else list(command) for command in warmup]
    if not isinstance(ready, int) or ready < 0:
        raise ConfigurationError(f"ready is {ready!r}; a number of machines is needed")
    default = next(setting.default for setting in SETTINGS if setting.name == "memory")
    spec = {
        "image": None if image is None else os.fspath(image),
        "snapshot": snapshot,
        "ready": ready,
        "memory": parsing.memory_bytes(options.get("memory", default)),
        "options": options,
    }
    try:
        return dict(json.loads(json.dumps(spec)))
    except TypeError as error:
        raise ConfigurationError("an option of the fleet cannot be told to another process", cause=str(error)) from None
