"""Who does not know the secret is nobody, on either side."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from supermachine import errors
from supermachine.fleet import connection, host, wire

SPEC = {"image": "none", "snapshot": None, "ready": 0, "memory": 1 << 26, "options": {}}


@pytest.fixture
def served() -> Iterator[wire.Address]:
    secret = os.urandom(32)
    serving = host.Host(secret, 2)
    yield wire.Address("test", "127.0.0.1", serving.port, secret, {})
    serving.close()


def test_a_client_that_knows_the_secret_is_answered(served: wire.Address) -> None:
    lease = connection.HostConnection(served, SPEC, lambda: None)
    assert (lease.capacity, lease.in_use) == (2, 0)
    lease.close()
    assert served.secret.hex() not in repr(served) and str(served.secret) not in repr(served)


def test_another_secret_gets_nothing(served: wire.Address) -> None:
    with pytest.raises((errors.FleetFailed, OSError)):
        wire.connect(served._replace(secret=os.urandom(32)))
    # Nor does what says nothing, says too little, or replays what another has said.
    heard = socket.create_connection((served.host, served.port))
    nonce = heard.recv(32)
    heard.sendall(bytes(64))
    assert heard.recv(1) == b""
    second = socket.create_connection((served.host, served.port))
    assert second.recv(32) != nonce
    second.shutdown(socket.SHUT_WR)
    assert second.recv(1) == b""


def test_a_false_host_gets_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        received = []

        def pretend() -> None:
            peer, _ = server.accept()
            peer.sendall(os.urandom(32))
            received.append(peer.recv(64, socket.MSG_WAITALL))
            peer.sendall(os.urandom(32))
            received.append(peer.recv(1))
            peer.close()

        thread = threading.Thread(target=pretend)
        thread.start()
        address = wire.Address("false", "127.0.0.1", server.getsockname()[1], os.urandom(32), {})
        with pytest.raises(errors.FleetFailed, match="is not the host"):
            wire.connect(address)
        thread.join()
        assert received[1] == b"", "no request was sent to it"


@pytest.mark.parametrize(
    "data", [struct.pack("<I", 1 << 31), struct.pack("<I", 3) + b"[1]", struct.pack("<I", 2) + b"x", b"\0"]
)
def test_messages_that_are_none_end_the_connection(served: wire.Address, data: bytes) -> None:
    channel = wire.connect(served)
    channel.socket.sendall(data)
    channel.socket.shutdown(socket.SHUT_WR)
    channel.socket.settimeout(5)
    assert channel.socket.recv(1) == b""


def test_strangers_are_bounded_and_do_not_keep_others_out(served: wire.Address, monkeypatch) -> None:
    monkeypatch.setattr(wire, "GREETING", 0.3)
    idle = [socket.create_connection((served.host, served.port)) for _ in range(host._MAX_STRANGERS + 20)]
    deadline = time.monotonic() + 10
    while True:
        try:
            wire.connect(served).close()
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    for each in idle:
        each.close()


def test_a_host_that_falls_silent_is_lost(monkeypatch) -> None:
    monkeypatch.setattr(connection, "_SILENCE", 0.5)
    secret = os.urandom(32)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def once() -> None:
            peer, _ = server.accept()
            assert wire.greet(peer, secret)
            channel = wire.Wire(peer)
            channel.receive()
            from supermachine import _core

            channel.send({"ok": True, "capacity": 1, "in_use": 0, "release": _core.VERSION})
            time.sleep(3)
            channel.close()

        thread = threading.Thread(target=once)
        thread.start()
        lease = connection.HostConnection(
            wire.Address("silent", "127.0.0.1", server.getsockname()[1], secret, {}), SPEC, lambda: None
        )
        deadline = time.monotonic() + 2
        while lease.lost is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with pytest.raises(errors.HostLost) as lost:
            lease.ask({"ask": "acquire"}, 1)
        assert "silent" in str(lost.value.cause)
        thread.join()


def test_a_host_of_another_release_is_refused(served: wire.Address, monkeypatch) -> None:
    from supermachine import _core

    ours = _core.VERSION
    original = wire.Wire.ask
    monkeypatch.setattr(wire.Wire, "ask", lambda self, *args: {**original(self, *args), "release": f"{ours}.other"})
    with pytest.raises(errors.FleetFailed, match="other"):
        connection.HostConnection(served, SPEC, lambda: None)


def test_a_client_that_has_gone_is_not_known(served: wire.Address) -> None:
    lease = connection.HostConnection(served, SPEC, lambda: None)
    client = lease._client
    lease.close()
    deadline = time.monotonic() + 5
    while True:
        channel = wire.connect(served)
        try:
            channel.ask({"ask": "release", "client": client, "machine": "x"}, 5)
        except errors.FleetClosed:
            break
        finally:
            channel.close()
        assert time.monotonic() < deadline
        time.sleep(0.02)
