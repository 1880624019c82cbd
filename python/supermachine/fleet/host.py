"""What runs on each host of a fleet: virtual machines for clients elsewhere, for as long as those are heard of.

A client has a *lease*: a connection on which it is heard each second. When that ends, or falls silent, its machines are
ended. Each request, and each connection to a guest, is a connection of its own. Nothing is ever done twice: a client
asks once, and what it does not hear the answer of ends with its lease.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import descriptors, shortage
from .._core import fleet_credentials
from ..errors import ConfigurationError, FleetClosed, FleetFull, SupermachineError, VMExited
from . import wire

if TYPE_CHECKING:
    from ..artifacts.arrival import Arrival
    from ..machine.pool import Pool
    from ..machine.vm import VM
    from ..network.secrets import Secret

#: Seconds of silence after which a client counts as lost; it is heard each second.
SILENCE = 6.0
#: Connections whose other end has not said who it is.
_MAX_STRANGERS = 64
#: Connections in all.
_MAX_CONNECTIONS = 8192
#: Seconds for which an acquire waits for a machine that is being started, before it says that it does not come.
_START = 300.0


def automatic(memory: int) -> int:
    """How many guests of so many bytes a host takes when nobody says: by its memory, and four for each processor."""
    from ..snapshots.capture import available_memory

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    room = available_memory() * 3 // 4 // max(memory, 1)
    return max(1, min(cores * 4, room) if room else cores)


class _Machines:
    """The machines of one kind: an image or a snapshot, and options."""

    def __init__(self, spec: dict[str, Any], capacity: int, secrets: dict[str, Secret]) -> None:
        self._spec = spec
        self._secrets = secrets
        self._capacity = capacity
        self._pool: Pool | None = None
        self._path: Path | None = None
        #: What fetches the rest of it.
        self._arrival: Arrival | None = None
        self._lock = threading.Lock()
        self.clients: set[str] = set()

    def held(self) -> bool:
        """Whether the snapshot of its machines is on this host, or on its way there."""
        named = self._spec["snapshot"]
        if named is None:
            return False
        if os.path.isabs(named):  # noqa: PTH117
            return os.path.isfile(named)  # noqa: PTH113
        from ..artifacts.pull import is_here

        return self._path is not None or is_here(str(named))

    def take(self, timeout: float) -> VM:
        options = dict(self._spec["options"])
        if self._secrets:
            options["secrets"] = self._secrets
        if self._spec["snapshot"] is not None:
            return self._restored(options)
        with self._lock:
            if self._pool is None:
                from ..machine.pool import Pool

                ready = min(int(self._spec["ready"]), self._capacity)
                self._pool = Pool(self._spec["image"], ready, self._capacity, **options)
            pool = self._pool
        return pool._take(timeout)

    def give_back(self, vm: VM) -> None:
        pool = self._pool
        if pool is not None and self._spec["snapshot"] is None:
            pool._end(vm)
        else:
            vm.kill()

    def _restored(self, options: dict[str, Any]) -> VM:
        """A machine of the snapshot, which is fetched once. The first ones may start before all of it is there."""
        from ..machine import remote

        with self._lock:
            # What did not come is asked for anew.
            if self._path is None or (self._arrival is not None and self._arrival.failure() is not None):
                named = str(self._spec["snapshot"])
                if os.path.isabs(named):  # noqa: PTH117
                    self._path = Path(named)
                else:
                    self._path, self._arrival = remote.arriving(named, options)
            path, arrival = self._path, self._arrival
        return remote.machine_of(path, arrival, options).start()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
        if self._arrival is not None:
            self._arrival.cancel()


class _Machine:
    def __init__(self, vm: VM, kind: _Machines | None, client: _Client) -> None:
        self.vm = vm
        self.kind = kind
        self.client = client
        self._ended = threading.Lock()

    def end(self) -> None:
        """Once."""
        if not self._ended.acquire(blocking=False):
            return
        if self.kind is not None:
            self.kind.give_back(self.vm)
        else:
            self.vm.kill()


class _Client:
    def __init__(self, name: str, lease: wire.Wire) -> None:
        self.name = name
        self.lease = lease
        self.machines: dict[str, _Machine] = {}
        self.gone = False


class Host:
    """Serves clients that have its `credentials`, at an address. `capacity` machines are alive at once at most."""

    def __init__(self, capacity: int | None, address: str = "127.0.0.1") -> None:
        self._own, self.credentials = fleet_credentials()
        self._capacity = capacity
        self._lock = threading.Lock()
        self._clients: dict[str, _Client] = {}
        self._kinds: dict[str, _Machines] = {}
        self._in_use = 0
        self._closed = False
        self._strangers = self._connections = 0
        self._server = descriptors.server((address, 0), backlog=256)
        self.port: int = self._server.getsockname()[1]
        self._answers: dict[str, Callable[[_Client, dict[str, Any], wire.Wire], dict[str, Any]]] = {
            "acquire": self._acquire,
            "release": self._release,
            "fork": self._fork,
            "snapshot": self._snapshot,
        }
        threading.Thread(target=self._accept, name="supermachine-host", daemon=True).start()

    def close(self) -> None:
        """Ends every machine."""
        with self._lock:
            self._closed = True
            clients = list(self._clients.values())
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for client in clients:
            client.lease.close()
            self._leave(client)

    # Connections.

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                if self._closed:
                    return
                time.sleep(shortage.MOMENT)  # short of descriptors
                continue
            with self._lock:
                full = self._strangers >= _MAX_STRANGERS or self._connections >= _MAX_CONNECTIONS
                self._strangers += not full
                self._connections += not full
            if full:
                connection.close()
                continue
            client = threading.Thread(target=self._serve, args=(connection,), name="supermachine-client", daemon=True)
            try:
                shortage.start(client, "the host cannot serve a client")
            except OSError:
                connection.close()
                with self._lock:
                    self._strangers -= 1
                    self._connections -= 1

    def _serve(self, connection: socket.socket) -> None:
        channel: wire.Wire | None = None
        try:
            try:
                with connection:
                    channel = wire.greet(connection, self._own)
            finally:
                with self._lock:
                    self._strangers -= 1
            if channel is not None:
                self._requests(channel)
        except (OSError, ValueError, KeyError, TypeError):
            pass  # gone, or none of ours
        finally:
            if channel is not None:
                channel.socket.close()
            with self._lock:
                self._connections -= 1

    def _requests(self, channel: wire.Wire) -> None:
        """One after another, until one of them takes the connection for itself or the client ends it."""
        request = channel.receive(wire.GREETING)
        while request is not None and self._request(channel, request):
            request = channel.receive(None)

    def _request(self, channel: wire.Wire, request: dict[str, Any]) -> bool:
        """Whether the connection is for further ones."""
        what = str(request.get("ask"))
        if what == "lease":
            self._lease(channel, request)
            return False
        try:
            with self._lock:
                client = self._clients.get(str(request.get("client")))
            if client is None or client.gone:
                raise FleetClosed("this host does not know the client, or has given it up")
            if what in ("connect", "port"):
                self._join(channel, client, request)
                return False
            work = self._answers.get(what)
            if work is None:
                raise ConfigurationError(f"this host does not know {what!r}", hint="it runs another release")
            channel.socket.settimeout(None)
            answer = work(client, request, channel)
        except Exception as error:
            answer = {"error": wire.error_to_json(error)}
            if isinstance(error, FleetFull):
                answer["full"] = True
        if answer:
            channel.send({**answer, "in_use": self._in_use})
        return bool(answer)

    # Leases.

    def _lease(self, channel: wire.Wire, request: dict[str, Any]) -> None:
        """The whole life of a client."""
        client = _Client(str(request["client"]), channel)
        spec = request["spec"]
        key = json.dumps(spec, sort_keys=True)
        secrets = wire.secrets_from_json(request.get("secrets") or {})
        from .. import _core

        with self._lock:
            if self._closed or client.name in self._clients:
                return
            if self._capacity is None:
                self._capacity = automatic(int(spec["memory"]))
            kind = self._kinds.setdefault(key, _Machines(spec, self._capacity, secrets))
            kind.clients.add(client.name)
            self._clients[client.name] = client
        try:
            said = {"capacity": self._capacity, "release": _core.VERSION, "in_use": self._in_use, "held": kind.held()}
            channel.send({"ok": True, **said})
            while (beat := channel.receive(SILENCE)) is not None:
                channel.send({"beat": beat.get("beat"), "in_use": self._in_use, "held": kind.held()})
        finally:
            self._leave(client)

    def _leave(self, client: _Client) -> None:
        with self._lock:
            if client.gone:
                return
            client.gone = True
            self._clients.pop(client.name, None)
            machines = list(client.machines.values())
            client.machines.clear()
            self._in_use -= len(machines)
            idle = []
            for key, kind in list(self._kinds.items()):
                kind.clients.discard(client.name)
                if not kind.clients:
                    idle.append(self._kinds.pop(key))
        for machine in machines:
            machine.end()
        for kind in idle:
            kind.close()

    # Requests.

    def _reserve(self, count: int) -> None:
        with self._lock:
            assert self._capacity is not None
            if self._in_use + count > self._capacity:
                raise FleetFull(f"this host has {self._in_use} of {self._capacity} machines")
            self._in_use += count

    def _unreserve(self, count: int) -> None:
        with self._lock:
            self._in_use -= count

    def _acquire(self, client: _Client, request: dict[str, Any], _channel: wire.Wire) -> dict[str, Any]:
        with self._lock:
            kind = self._kinds.get(json.dumps(request["spec"], sort_keys=True))
        if kind is None or client.name not in kind.clients:
            raise FleetClosed("this host does not know this kind of machine")
        self._reserve(1)
        try:
            vm = kind.take(_START)
        except BaseException:
            self._unreserve(1)
            raise
        return self._keep(client, str(request["machine"]), vm, kind)

    def _keep(self, client: _Client, name: str, vm: VM, kind: _Machines | None) -> dict[str, Any]:
        """A machine that is reserved becomes the client's, unless that has gone meanwhile."""
        machine = _Machine(vm, kind, client)
        with self._lock:
            lost = client.gone or name in client.machines
            if lost:
                self._in_use -= 1
            else:
                client.machines[name] = machine
        if lost:
            machine.end()
            raise FleetClosed("the client of this machine has gone")
        threading.Thread(
            target=self._watch, args=(client, name, machine), name="supermachine-watch", daemon=True
        ).start()
        context = vm._context()
        return {
            "context": {"environment": context.env, "working_dir": context.cwd, "user": context.user},
            "ports": sorted(vm.ports),
            "engine": vm.engine,
            "isolation": vm.isolation,
        }

    def _watch(self, client: _Client, name: str, machine: _Machine) -> None:
        """A thread: tells the client of the end of a machine."""
        said = machine.vm._started().worker.wait() or ("ended", "the virtual machine has ended", "")
        with self._lock:
            if client.machines.pop(name, None) is not machine:
                return  # the client has ended it itself
            self._in_use -= 1
        machine.end()
        with contextlib.suppress(OSError):
            client.lease.send({"ended": name, "reason": said[0], "message": said[1], "console_tail": said[2]})

    def _release(self, client: _Client, request: dict[str, Any], _channel: wire.Wire) -> dict[str, Any]:
        with self._lock:
            machine = client.machines.pop(str(request["machine"]), None)
            if machine is not None:
                self._in_use -= 1
        if machine is not None:
            machine.end()
        return {"ok": True}

    def _vm(self, client: _Client, request: dict[str, Any]) -> VM:
        with self._lock:
            machine = client.machines.get(str(request["machine"]))
        if machine is None:
            raise VMExited("the virtual machine has ended", reason="ended")
        return machine.vm

    def _fork(self, client: _Client, request: dict[str, Any], _channel: wire.Wire) -> dict[str, Any]:
        vm, names = self._vm(client, request), [str(name) for name in request["names"]]
        self._reserve(len(names))
        try:
            clones = vm.fork(len(names))
        except BaseException:
            self._unreserve(len(names))
            raise
        return {"clones": [self._keep(client, n, clone, None) for n, clone in zip(names, clones, strict=True)]}

    def _snapshot(self, client: _Client, request: dict[str, Any], channel: wire.Wire) -> dict[str, Any]:
        """Into a registry, which this host pushes to; or packed, through the connection."""
        from .. import _core
        from ..images import Cache

        vm = self._vm(client, request)
        with Cache().scratch() as place:
            taken = vm.snapshot(place / "snapshot")
            said = {"id": taken.id, "data_bytes": taken.data_bytes, "pause": taken.pause, "timings": taken.timings}
            if (reference := request.get("reference")) is not None:
                pushed = taken.push(reference, sign=request.get("sign"), insecure=bool(request.get("insecure")))
                return {**said, "reference": pushed.reference}
            size = _core.export_snapshot(str(place / "snapshot"), str(place / "packed"), False)
            channel.send({"ok": True, **said, "bytes": size})
            with (place / "packed").open("rb") as source:
                channel.socket.sendfile(source)
        return {}  # said already

    def _join(self, channel: wire.Wire, client: _Client, request: dict[str, Any]) -> None:
        """Joins the connection to one into the guest."""
        vm = self._vm(client, request)
        if request["ask"] == "port":
            places = vm.ports.get(str(request["port"]))
            if not places:
                raise ConfigurationError(f"the port {request['port']} of the guest is not published")
            inner = descriptors.connection(places[0], wire.GREETING)
        else:
            inner = socket.socket(fileno=vm._served().connect(int(request["port"])))
        try:
            channel.send({"ok": True})
        except BaseException:
            inner.close()
            raise
        wire.relay(channel.socket, inner)


def main() -> None:
    """A host as a process of its own, which ends with whoever started it: ``python -m supermachine.fleet.host``."""
    spec = json.loads(sys.stdin.readline())
    host = Host(spec["capacity"])
    print(json.dumps({"port": host.port, "credentials": host.credentials.hex()}), flush=True)
    # The pipe ends when the starter does, in whatever way.
    while sys.stdin.read(1 << 16):
        pass
    with contextlib.suppress(SupermachineError):
        host.close()
    os._exit(0)


if __name__ == "__main__":
    main()
