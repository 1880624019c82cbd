"""A virtual machine on a host of a fleet, with the methods of one on this host."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .. import descriptors, shortage
from .._core import Remote
from ..errors import ConfigurationError, VMExited
from ..guest.process_context import Context
from . import wire

if TYPE_CHECKING:
    from subprocess import CompletedProcess

    from ..guest.paths import FileSystem, GuestPath
    from ..guest.processes import Args, Popen
    from ..machine.snapshot import Snapshot
    from .connection import HostConnection

Self = TypeVar("Self", bound="FleetVM")

#: Seconds that a host has to take a snapshot, or to make forks.
_CAPTURE = 180.0


def _dial(host: HostConnection, machine: str, port: int) -> socket.socket:
    """A connection to a port of the guest's."""
    return host.dial({"ask": "connect", "machine": machine, "port": port})


class _Said:
    """What processes of the machine inherit; its host says it."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        self.environment: Mapping[str, str] = said["environment"]
        self.working_dir: str = said["working_dir"]
        self.user: str = said["user"]
        self.entrypoint: Sequence[str] = ()
        self.cmd: Sequence[str] = ()


class FleetVM:
    """A machine that :meth:`Fleet.acquire` gave; ``with`` ends it, as `kill` does.

    `run`, `popen`, `path`, `copy_in`, `copy_out` and `fork` are those of :class:`supermachine.VM`. When its host is
    lost they raise `HostLost`, whoever waits at that moment too.
    """

    def __init__(self, host: HostConnection, name: str, said: Mapping[str, Any]) -> None:
        self._host = host
        self._name = name
        self._said = _Said(said["context"])
        self._published: list[str] = list(said["ports"])
        self._filesystem: FileSystem | None = None
        self._listeners: dict[str, socket.socket] = {}
        self._lock = threading.Lock()
        self._owner = os.getpid()
        #: The engine that runs it, and its isolation: "hardware" or "software".
        self.engine: str = said["engine"]
        self.isolation: str = said["isolation"]
        # Not a method of this object's: the extension's objects are not looked into for cycles.
        self._remote = Remote(partial(_dial, host, name))
        host.know(name, self._remote)

    @property
    def host(self) -> str:
        """The name of the host that it is on."""
        return self._host.address.name

    @property
    def running(self) -> bool:
        return self._remote.exit is None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name} on {self.host} {'running' if self.running else 'ended'}>"

    # What runs in it.

    def run(self, args: Args, **options: Any) -> CompletedProcess[Any]:
        """`subprocess.run` in the guest, with the arguments of :meth:`supermachine.VM.run`."""
        from ..guest.processes import run

        return run(self._context(), args, **options)

    def popen(self, args: Args, **options: Any) -> Popen:
        """`subprocess.Popen` in the guest, with the arguments of :meth:`supermachine.VM.popen`."""
        from ..guest.processes import Popen

        return Popen(self._context(), args, **options)

    def path(self, *parts: str | os.PathLike[str]) -> GuestPath:
        """A path in the guest, with the interface of `pathlib.Path`."""
        from ..guest.paths import FileSystem, GuestPath

        if self._filesystem is None:
            self._filesystem = FileSystem(self._reach, lambda: self._said.user)
        return GuestPath(*(parts or ("/",)), filesystem=self._filesystem)

    def copy_in(self, source: str | os.PathLike[str], target: str | os.PathLike[str], **options: Any) -> GuestPath:
        """See :meth:`supermachine.VM.copy_in`."""
        from ..guest.copying import copy_in

        return copy_in(source, self.path(target), into=os.fspath(target).endswith("/"), **options)

    def copy_out(self, source: str | os.PathLike[str], target: str | os.PathLike[str], **options: Any) -> str:
        """See :meth:`supermachine.VM.copy_out`."""
        from ..guest.copying import copy_out

        return copy_out(self.path(source), target, **options)

    def _context(self) -> Context:
        return Context(self._reach, self._said, environment={}, working_dir=None, user=None)

    def _reach(self) -> Remote:
        if (ended := self._remote.exit) is not None:
            self._host.raise_if_lost()
            raise VMExited(ended[1], reason=ended[0], console_tail=ended[2])
        return self._remote

    # Its ports.

    @property
    def ports(self) -> dict[str, list[tuple[str, int]]]:
        """The guest's published ports, each with an address of this host's that leads there while the machine runs."""
        with self._lock:
            for name in self._published if self.running else ():
                if name not in self._listeners:
                    self._listeners[name] = listener = descriptors.server(("127.0.0.1", 0))
                    threading.Thread(target=self._forward, args=(name, listener), daemon=True).start()
            return {name: [listener.getsockname()[:2]] for name, listener in self._listeners.items()}

    def _forward(self, name: str, listener: socket.socket) -> None:
        """A thread, while the port is open here: each connection is one to the guest's port."""
        while True:
            try:
                connection = descriptors.accepted(listener)
            except OSError:
                if listener.fileno() < 0:
                    return
                time.sleep(shortage.MOMENT)  # short of descriptors; those who connect wait meanwhile
                continue
            try:
                carrier = threading.Thread(target=self._carry, args=(name, connection), daemon=True)
                shortage.start(carrier, "a connection to a published port cannot be carried")
            except OSError:
                connection.close()

    def _carry(self, name: str, connection: socket.socket) -> None:
        try:
            other = self._host.dial({"ask": "port", "machine": self._name, "port": name})
        except (OSError, ValueError):
            connection.close()
            return
        wire.relay(connection, other)

    # Its life.

    def fork(self: Self, n: int = 1) -> list[Self]:
        """`n` running machines on the same host that go on where this one is. Raises `FleetFull` without room."""
        if n < 1:
            raise ConfigurationError(f"fork() makes 1 or more machines, not {n}")
        self._reach()
        names = [self._host.new_name() for _ in range(n)]
        said = self._host.ask({"ask": "fork", "machine": self._name, "names": names}, _CAPTURE + n)
        return [type(self)(self._host, name, each) for name, each in zip(names, said["clones"], strict=True)]

    def snapshot(self, path: str | os.PathLike[str]) -> Snapshot:
        """Takes a snapshot into a new file on this host; it travels packed. The machine goes on."""
        from ..machine.snapshot import Snapshot
        from ..snapshots import files

        self._reach()
        request = {"ask": "snapshot", "machine": self._name}
        target = Path(os.path.abspath(path))  # noqa: PTH100 - a link is not followed
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.") as packed:
            said = self._host.fetch(request, packed, _CAPTURE)
            files.import_(packed.name, target)
        return Snapshot(target, said["id"], None, said["data_bytes"], said["pause"], said["timings"])

    def push(self, reference: str, *, sign: str | None = None, insecure: bool = False) -> str:
        """Takes a snapshot and has the host push it to a registry, with the host's credentials and keys.

        Gives the reference that it is pinned by.
        """
        self._reach()
        request = {"ask": "snapshot", "machine": self._name, "reference": reference, "sign": sign}
        return str(self._host.ask({**request, "insecure": insecure}, None)["reference"])

    def wait(self, timeout: float | None = None) -> str:
        """Waits until it has ended, and says why. Raises `VMTimeout`."""
        from ..errors import VMTimeout

        if not self._host.wait(self._name, timeout):
            raise VMTimeout(f"the virtual machine still runs after {timeout:g} seconds")
        ended = self._remote.exit
        return ended[0] if ended is not None else "ended"

    def kill(self) -> None:
        """Ends it at once, and gives its place back to the fleet.

        Does nothing when it has ended, and in a process that was forked from its own.
        """
        if self._owner != os.getpid():
            return
        with self._lock:
            listeners, self._listeners = list(self._listeners.values()), {}
        for listener in listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        if self._filesystem is not None:
            self._filesystem.forget()
        self._host.release(self._name)

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.kill()
