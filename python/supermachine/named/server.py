"""What a keeper serves on its socket."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .. import descriptors, local_sockets, shortage
from ..errors import ConfigurationError
from . import protocol

if TYPE_CHECKING:
    from .keeper import Keeper

#: Connections at most; a client has two for each command that it runs.
_MAX_CONNECTIONS = 256
#: Seconds that clients are given to take the last answer.
_LEAVING = 1.0
#: Seconds that a worker's counters may take.
_STATS = 5.0


class Server:
    """Answers requests, each connection in a thread of its own."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._socket = local_sockets.listen(keeper.place.socket)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads: set[threading.Thread] = set()
        #: What may take as long as the machine lives; without an answer when the client has gone meanwhile.
        self._waits: dict[str, Callable[[dict[str, Any], protocol.Channel], dict[str, Any] | None]] = {
            "stop": self._stop,
            "wait": self._wait,
            "watch": self._watch,
        }
        self._requests: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "alive": lambda _request: {"alive": True},
            "inspect": self._inspect,
            "stats": self._stats,
            "restart": self._restart,
            "freeze": self._freeze,
            "rename": self._rename,
            "exec": self._exec,
            "resize": self._resize,
            "signal": self._signal,
            "snapshot": self._snapshot,
            "fork": self._fork,
        }

    def start(self) -> Server:
        threading.stack_size(512 * 1024)
        threading.Thread(target=self._accept, name="server", daemon=True).start()
        return self

    def close(self) -> None:
        """Takes no more connections."""
        self._over.set()
        with contextlib.suppress(OSError):
            self._keeper.place.socket.unlink()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def join(self) -> None:
        """Waits until those who wait for the machine's end have been told."""
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(_LEAVING / max(1, len(threads)) + 0.05)

    def _accept(self) -> None:
        """A thread, until `close`. A client that cannot be taken, or a shortage, is no end: nobody could reach the
        machine any more, which runs on.
        """
        while not self._over.is_set():
            try:
                self._take(descriptors.accepted(self._socket))
            except (OSError, MemoryError):
                # What is short stays so for a while; those who connect wait meanwhile.
                self._over.wait(shortage.MOMENT)

    def _take(self, connection: socket.socket) -> None:
        """Serves a connection, or closes it. Raises OSError."""
        thread = threading.Thread(target=self._serve, args=(connection,), name="client", daemon=True)
        try:
            with self._lock:
                full = len(self._threads) >= _MAX_CONNECTIONS
            if full or not local_sockets.peer_is_us(connection):
                connection.close()
                return
            with self._lock:
                self._threads.add(thread)
            shortage.start(thread, "the keeper cannot serve a client")
        except BaseException:
            with self._lock:
                self._threads.discard(thread)
            connection.close()
            raise

    def _serve(self, connection: socket.socket) -> None:
        channel = protocol.Channel(connection)
        try:
            while (request := channel.receive()) is not None:
                self._answer(channel, request)
        except (OSError, ValueError):
            pass  # a client that has gone, or is none of ours
        finally:
            channel.close()
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _answer(self, channel: protocol.Channel, request: dict[str, Any]) -> None:
        what = request.get("ask")
        try:
            if what == "connect":
                fd = self._keeper.vm._served().connect(int(request["port"]))
                try:
                    channel.send({"ok": True}, fd)
                finally:
                    os.close(fd)
                return
            if what == "attach":
                policy, here = self._keeper.policy, self._keeper._foreground is not None
                fd = self._keeper.attached.add()
                said = {"tty": policy.tty and not here, "interactive": policy.interactive and not here}
                try:
                    channel.send({"ok": True, **said}, fd)
                finally:
                    os.close(fd)
                return
            if (waits := self._waits.get(str(what))) is not None:
                if (end := waits(request, channel)) is not None:
                    channel.send({"ok": True, **end})
                return
            work = self._requests.get(str(what))
            if work is None:
                raise ConfigurationError(
                    f"this machine's keeper does not know {what!r}",
                    hint="it is of another version of supermachine: stop it and start it again",
                )
            answer = {"ok": True, **work(request)}
        except Exception as error:
            answer = {"error": protocol.error_to_json(error)}
        channel.send(answer)

    def _inspect(self, _request: dict[str, Any]) -> dict[str, Any]:
        keeper = self._keeper
        context = keeper.context() if keeper.vm.running else None
        return {
            "record": asdict(keeper.record),
            # Its end may be known here before the keeper's own thread has come to it.
            "phase": keeper.phase if keeper.vm.running or keeper.phase != "running" else "stopping",
            "main_pid": keeper.main_pid,
            "ports": keeper.vm.ports,
            "worker": keeper.vm.pid,
            "engine": keeper.vm.engine,
            "isolation": keeper.vm.isolation,
            "health": keeper.health.as_json() if keeper.health is not None else None,
            "dropped": keeper.logs.dropped,
            "context": {"environment": context.env, "working_dir": context.cwd, "user": context.user}
            if context is not None
            else None,
        }

    def _stats(self, _request: dict[str, Any]) -> dict[str, Any]:
        worker = self._keeper.vm._running()
        counted = worker.stats(_STATS)
        exits, instructions = counted if counted is not None else ([], 0)
        return {
            "pid": worker.pid,
            "exits": dict(exits),
            "instructions": instructions,
            "memory_limit": self._keeper.vm._settings.memory,
        }

    def _stop(self, request: dict[str, Any], client: protocol.Channel) -> dict[str, Any] | None:
        timeout = request.get("timeout")
        signal = request.get("signal")
        self._keeper.stop(
            None if timeout is None else max(0.0, float(timeout)), None if signal is None else int(signal)
        )
        return self._wait(request, client)

    def _restart(self, request: dict[str, Any]) -> dict[str, Any]:
        timeout = request.get("timeout")
        self._keeper.restart(None if timeout is None else max(0.0, float(timeout)))
        return {}

    def _freeze(self, request: dict[str, Any]) -> dict[str, Any]:
        self._keeper.freeze(bool(request["frozen"]))
        return {}

    def _rename(self, request: dict[str, Any]) -> dict[str, Any]:
        self._keeper.rename(str(request["name"]))
        return {}

    def _exec(self, request: dict[str, Any]) -> dict[str, Any]:
        given = {name: request[name] for name in ("env", "cwd", "user", "tty") if request.get(name)}
        return {"pid": self._keeper.execute([str(word) for word in request["command"]], **given)}

    def _resize(self, request: dict[str, Any]) -> dict[str, Any]:
        rows, columns = (min(65535, max(1, int(request[name]))) for name in ("rows", "columns"))
        self._keeper.resize(rows, columns)
        return {}

    def _signal(self, request: dict[str, Any]) -> dict[str, Any]:
        self._keeper.signal(int(request["signal"]))
        return {}

    def _wait(self, _request: dict[str, Any], client: protocol.Channel) -> dict[str, Any] | None:
        if client.wait(self._keeper.over):
            return None
        return {"exit_code": self._keeper.record.exit_code, "error": self._keeper.record.error}

    def _watch(self, _request: dict[str, Any], client: protocol.Channel) -> dict[str, Any] | None:
        """Answers when the virtual machine that runs now has ended."""
        worker = self._keeper.vm._started().worker
        ended = worker.exit_fd()
        try:
            if client.wait(ended):
                return None
        finally:
            os.close(ended)
        reason, message, console_tail = worker.wait() or ("ended", "", "")
        return {"reason": reason, "message": message, "console_tail": console_tail}

    def _snapshot(self, request: dict[str, Any]) -> dict[str, Any]:
        made = self._keeper.vm.snapshot(str(request["path"]), diff=bool(request.get("diff")))
        return {
            "path": str(made.path),
            "id": made.id,
            "parent": made.parent,
            "data_bytes": made.data_bytes,
            "pause": made.pause,
            "timings": made.timings,
        }

    def _fork(self, request: dict[str, Any]) -> dict[str, Any]:
        from .forks import fork

        names = None if request.get("names") is None else [str(name) for name in request["names"]]
        count = int(request["count"]) if names is None else len(names)
        return {"names": fork(self._keeper, count, names, self._keeper.say)}
