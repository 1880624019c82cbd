"""A client's end of its lease with one host: what it holds there, and who is told when the host is gone."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any

from ..errors import FleetClosed, FleetFailed, HostLost, SupermachineError
from . import wire

if TYPE_CHECKING:
    from .._core import Remote
    from ..network.secrets import Secret

#: Seconds between two signs of life, and of silence after which a host counts as lost.
_BEAT = 1.0
_SILENCE = 4.0
#: Seconds that a host may take to start a machine: an image is fetched and baked the first time.
_ACQUIRE = 330.0
_ANSWER = 30.0
_MAX_IDLE = 8


class HostConnection:
    """A host, while its lease lasts."""

    def __init__(
        self,
        address: wire.Address,
        spec: dict[str, Any],
        changed: Callable[[], None],
        secrets: Mapping[str, Secret] | None = None,
    ) -> None:
        """Raises FleetFailed, or OSError when there is nobody."""
        self.address = address
        self.lost: HostLost | None = None
        #: Whether it is to take no more machines.
        self.draining = False
        self.in_use = 0
        #: Machines that are being asked for, or held.
        self.held = 0
        #: Whether it has the fleet's snapshot already.
        self.has_snapshot = False
        self._spec = spec
        self._changed = changed
        self._client = os.urandom(16).hex()
        self._names = itertools.count()
        self._machines: dict[str, Remote] = {}
        #: Of machines that run.
        self._ends: dict[str, threading.Event] = {}
        #: Of machines that have ended before anybody knew of them.
        self._early: dict[str, tuple[str, str, str]] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        #: Connections whose ends are waited for.
        self._open: set[socket.socket] = set()
        #: Connections that wait for the next request.
        self._idle: list[wire.Wire] = []
        self._lease = wire.connect(address)
        try:
            lease = {"ask": "lease", "client": self._client, "spec": spec, "secrets": wire.secrets_to_json(secrets)}
            said = self._lease.ask(lease, _ANSWER)
        except BaseException:
            self._lease.close()
            raise
        self.capacity = int(said["capacity"])
        self.in_use = int(said["in_use"])
        self.has_snapshot = bool(said.get("held"))
        from .. import _core

        if said["release"] != _core.VERSION:
            self._lease.close()
            raise FleetFailed(
                f"the host {address.name} runs supermachine {said['release']}, and this client {_core.VERSION}",
                hint="install the same release on all hosts",
            )
        threading.Thread(target=self._listen, name="supermachine-lease", daemon=True).start()
        threading.Thread(target=self._beat, name="supermachine-beat", daemon=True).start()

    @property
    def free(self) -> int:
        """Machines for which it has room, as far as is known."""
        return 0 if self.lost is not None or self.draining else self.capacity - max(self.in_use, self.held)

    def raise_if_lost(self) -> None:
        """Raises HostLost."""
        if self.lost is not None:
            raise HostLost(str(self.lost), cause=self.lost.cause)

    # The lease.

    def _beat(self) -> None:
        count = 0
        while not self._closed.wait(_BEAT):
            count += 1
            try:
                self._lease.send({"beat": count})
            except OSError as error:
                return self._lose(str(error))

    def _listen(self) -> None:
        why = "it has closed the connection"
        try:
            while (said := self._lease.receive(_SILENCE)) is not None:
                self.in_use = int(said.get("in_use", self.in_use))
                self.has_snapshot = bool(said.get("held", self.has_snapshot))
                if "ended" in said:
                    self._ended(str(said["ended"]), said["reason"], said["message"], said["console_tail"])
                self._changed()
        except TimeoutError:
            why = f"it was silent for {_SILENCE:g} seconds"
        except (OSError, ValueError) as error:
            why = str(error)
        self._lose(why)

    def _lose(self, why: str) -> None:
        with self._lock:
            if self.lost is not None or self._closed.is_set():
                return
            self.lost = HostLost(f"the host {self.address.name} of the fleet is lost", cause=why)
            machines, self._machines = dict(self._machines), {}
            waiting = [*self._open, *(channel.socket for channel in self._idle)]
            self._idle.clear()
        self._closed.set()
        self._lease.close()
        for remote in machines.values():
            remote.ended("host-lost", f"{self.lost}: {why}", "")
        for end in list(self._ends.values()):
            end.set()
        for connection in waiting:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._changed()

    def close(self) -> None:
        """Ends the lease, and with it every machine that is held."""
        self._closed.set()
        with self._lock:
            machines, self._machines = dict(self._machines), {}
            idle, self._idle = self._idle, []
        self._lease.close()
        for channel in idle:
            channel.close()
        for remote in machines.values():
            remote.ended("killed", "the fleet was closed", "")
        for end in list(self._ends.values()):
            end.set()

    # Machines.

    def new_name(self) -> str:
        return f"{self._client[:8]}-{next(self._names)}"

    def know(self, name: str, remote: Remote) -> None:
        """Has this one told of the machine's end."""
        with self._lock:
            self._ends[name] = threading.Event()
            early = self._early.pop(name, None)
            if early is None and self.lost is None:
                self._machines[name] = remote
                self.held += 1
                return
        remote.ended(*(early or ("host-lost", str(self.lost), "")))
        self._tell_end(name)

    def _ended(self, name: str, reason: str, message: str, console_tail: str) -> None:
        with self._lock:
            remote = self._machines.pop(name, None)
            if remote is None:
                self._early[name] = (reason, message, console_tail)
                return
            self.held -= 1
        remote.ended(reason, message, console_tail)
        self._tell_end(name)

    def _tell_end(self, name: str) -> None:
        if (end := self._ends.pop(name, None)) is not None:
            end.set()

    def wait(self, name: str, timeout: float | None) -> bool:
        """Whether the machine has ended within this time."""
        end = self._ends.get(name)
        return True if end is None else end.wait(timeout)

    def acquire(self) -> tuple[str, dict[str, Any]]:
        """A new machine: its name, and what the host says of it. Asked for once."""
        name = self.new_name()
        return name, self.ask({"ask": "acquire", "machine": name, "spec": self._spec}, _ACQUIRE)

    def release(self, name: str) -> None:
        """Ends a machine."""
        with self._lock:
            remote = self._machines.pop(name, None)
            if remote is None:
                return
            self.held -= 1
        # Who waits in it is told at once; that the host has ended it, whoever asks for room next.
        remote.ended("killed", "the virtual machine was ended", "")
        self._tell_end(name)
        with contextlib.suppress(OSError, HostLost, FleetClosed):
            self.ask({"ask": "release", "machine": name}, _ANSWER)
        self._changed()

    # Requests.

    @contextlib.contextmanager
    def _connected(self) -> Iterator[wire.Wire]:
        """A connection for the block, which ends when the host is lost. Its errors are HostLost then."""
        self.raise_if_lost()
        if self._closed.is_set():
            raise FleetClosed("the fleet has been closed")
        channel: wire.Wire | None = None
        try:
            with self._lock:
                channel = self._idle.pop() if self._idle else None
            channel = channel or wire.connect(self.address)
            with self._lock:
                self._open.add(channel.socket)
            self.raise_if_lost()
            yield channel
        except (HostLost, FleetClosed):
            raise
        except TimeoutError as error:
            if isinstance(error, SupermachineError):
                raise
            self.raise_if_lost()
            raise FleetFailed(f"the host {self.address.name} of the fleet does not answer") from error
        except OSError as error:
            if isinstance(error, SupermachineError):
                raise
            self._doubt()
            raise HostLost(f"the host {self.address.name} of the fleet is lost", cause=str(error)) from error
        finally:
            if channel is not None:
                with self._lock:
                    self._open.discard(channel.socket)

    def _doubt(self) -> None:
        """A connection broke: the lease says within its time whether the host is lost, which is waited for."""
        deadline = time.monotonic() + _BEAT
        while self.lost is None and not self._closed.is_set() and time.monotonic() < deadline:
            time.sleep(0.02)
        self.raise_if_lost()

    def ask(self, request: dict[str, Any], timeout: float | None) -> dict[str, Any]:
        """The answer to a request. Raises what it says, and HostLost."""
        with self._connected() as channel:
            try:
                answer = channel.ask({"client": self._client, **request}, timeout)
            except BaseException:
                channel.close()
                raise
            self._keep(channel)
        self.in_use = int(answer.get("in_use", self.in_use))
        return answer

    def _keep(self, channel: wire.Wire) -> None:
        """A connection for the next request."""
        with self._lock:
            if len(self._idle) < _MAX_IDLE and not self._closed.is_set():
                self._idle.append(channel)
                return
        channel.close()

    def dial(self, request: dict[str, Any]) -> socket.socket:
        """A connection to the guest; the caller's."""
        with self._connected() as channel:
            try:
                channel.ask({"client": self._client, **request}, _ANSWER)
            except BaseException:
                channel.close()
                raise
            channel.socket.settimeout(None)
            return channel.socket

    def fetch(self, request: dict[str, Any], target: IO[bytes], timeout: float) -> dict[str, Any]:
        """The answer to a request, and the bytes that follow it."""
        with self._connected() as channel:
            try:
                said = channel.ask({"client": self._client, **request}, timeout)
                left = int(said["bytes"])
                channel.socket.settimeout(_ANSWER)
                while left:
                    piece = channel.socket.recv(min(left, 256 << 10))
                    if not piece:
                        raise ConnectionResetError("the host has closed the connection")
                    target.write(piece)
                    left -= len(piece)
                target.flush()
            finally:
                channel.close()
        return said
