"""Who has no certificate of the host's is nobody, on either side, and nobody in between reads anything."""

from __future__ import annotations

import contextlib
import errno
import random
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from supermachine import _core, descriptors, errors, shortage
from supermachine.fleet import connection, host, wire
from supermachine.fleet.vm import FleetVM

SPEC = {"image": "none", "snapshot": None, "ready": 0, "memory": 1 << 26, "options": {}}


@pytest.fixture
def served() -> Iterator[wire.Address]:
    serving = host.Host(2)
    yield wire.Address("test", "127.0.0.1", serving.port, serving.credentials, {})
    serving.close()


def parts(credentials: bytes) -> tuple[bytes, bytes, bytes]:
    """The authority's certificate, the own one and its key, in DER."""
    found, at = [], 1
    for _ in range(3):
        (length,) = struct.unpack_from("<I", credentials, at)
        found.append(credentials[at + 4 : at + 4 + length])
        at += 4 + length
    assert at == len(credentials)
    return found[0], found[1], found[2]


def test_a_client_with_the_hosts_credentials_is_answered(served: wire.Address) -> None:
    lease = connection.HostConnection(served, SPEC, lambda: None)
    assert (lease.capacity, lease.in_use) == (2, 0)
    lease.close()
    assert served.credentials.hex() not in repr(served) and str(served.credentials) not in repr(served)


def test_a_shortage_ends_no_host(served: wire.Address, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do those whom it could not serve keep their places, of which there are fewer."""
    lacking = iter([True] * 100)
    start = shortage.start

    def starts(thread: threading.Thread, failed: str) -> None:
        if next(lacking, False):
            raise errors.HostShortage(failed)
        start(thread, failed)

    monkeypatch.setattr(shortage, "start", starts)
    for _ in range(100):
        with socket.create_connection((served.host, served.port), 5) as client:
            assert client.recv(1) == b""
    connection.HostConnection(served, SPEC, lambda: None).close()


def test_a_shortage_ends_no_published_port(monkeypatch: pytest.MonkeyPatch) -> None:
    guest, ours = socket.socketpair()
    machine = FleetVM.__new__(FleetVM)
    machine._name = "web"
    machine._host = SimpleNamespace(dial=lambda _request: ours)  # type: ignore[assignment]
    lacking = iter([True] * 3)
    accepted = descriptors.accepted

    def accepts(listener: socket.socket) -> socket.socket:
        if next(lacking, False):
            raise OSError(errno.EMFILE, "Too many open files")
        return accepted(listener)

    monkeypatch.setattr(descriptors, "accepted", accepts)
    listener = socket.create_server(("127.0.0.1", 0))
    forwards = threading.Thread(target=machine._forward, args=("80/tcp", listener), daemon=True)
    forwards.start()
    with socket.create_connection(listener.getsockname(), 20) as client, guest:
        client.sendall(b"ping")
        assert guest.recv(4) == b"ping"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    forwards.join(20)
    assert not forwards.is_alive()


def pem(kind: str, der: bytes) -> str:
    import base64

    return f"-----BEGIN {kind}-----\n{base64.encodebytes(der).decode()}-----END {kind}-----\n"


def context(place: Path, credentials: bytes | None, authority: bytes, **options: object) -> ssl.SSLContext:
    """OpenSSL's client, which believes this authority and shows these credentials."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.load_verify_locations(cadata=pem("CERTIFICATE", authority))
    if credentials is not None:
        _, certificate, key = parts(credentials)
        (place / "own.pem").write_text(pem("CERTIFICATE", certificate) + pem("PRIVATE KEY", key))
        made.load_cert_chain(place / "own.pem")
    for name, value in options.items():
        setattr(made, name, value)
    return made


def answer(served: wire.Address, made: ssl.SSLContext) -> bytes:
    """What the host says to this client's request. Raises OSError for nothing."""
    raw = socket.create_connection((served.host, served.port), 5)
    with raw, made.wrap_socket(raw, server_hostname="host.supermachine.internal") as channel:
        channel.sendall(struct.pack("<I", 2) + b"{}")
        return channel.recv(1000)


def test_openssl_agrees_on_who_is_who(served: wire.Address, tmp_path: Path) -> None:
    authority = parts(served.credentials)[0]
    assert b"does not know the client" in answer(served, context(tmp_path, served.credentials, authority))
    others = host.Host(1)
    others.close()
    own, _ = _core.fleet_credentials()
    for credentials in (None, others.credentials, own):
        with pytest.raises(OSError):
            if not answer(served, context(tmp_path, credentials, authority)):
                raise ConnectionResetError
    with pytest.raises(ssl.SSLError):
        answer(served, context(tmp_path, served.credentials, authority, maximum_version=ssl.TLSVersion.TLSv1_2))
    with pytest.raises(ssl.SSLCertVerificationError):
        answer(served, context(tmp_path, served.credentials, parts(others.credentials)[0]))
    # The certificates are what they are for: one of a client's is no host's.
    for kind, credentials in (("sslserver", served.credentials), ("sslclient", served.credentials)):
        (tmp_path / "ca.pem").write_text(pem("CERTIFICATE", authority))
        (tmp_path / "cert.pem").write_text(pem("CERTIFICATE", parts(credentials)[1]))
        command = ["openssl", "verify", "-x509_strict", "-purpose", kind, "-CAfile", "ca.pem", "cert.pem"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode == 0) == (kind == "sslclient"), done.stderr


def test_other_credentials_get_nothing(served: wire.Address) -> None:
    _, others = _core.fleet_credentials()
    for credentials in (others, b"", b"\0", served.credentials[:-1], b"\2" + served.credentials[1:]):
        with pytest.raises((errors.FleetFailed, OSError)):
            wire.connect(served._replace(credentials=credentials))
    # Nor does what says nothing, says what is not TLS, or speaks as before there was TLS.
    for said in (b"", bytes(64), b"GET / HTTP/1.1\r\n\r\n", struct.pack("<I", 2) + b"{}"):
        with socket.create_connection((served.host, served.port), 5) as heard:
            heard.sendall(said)
            heard.shutdown(socket.SHUT_WR)
            rest = b"".join(iter(lambda: heard.recv(1000), b""))
            assert b"{" not in rest


def test_a_false_host_gets_nothing(served: wire.Address) -> None:
    """One with certificates of its own authority, and one that shows those of a client."""
    false, _ = _core.fleet_credentials()
    for credentials in (false, b"\1" + served.credentials[1:]):
        with socket.create_server(("127.0.0.1", 0)) as server:
            received: list[object] = []

            def pretend(server=server, credentials=credentials, received=received) -> None:  # type: ignore[no-untyped-def]
                peer, _ = server.accept()
                with peer:
                    try:
                        received.append(wire.greet(peer, credentials))
                    except OSError as error:
                        received.append(error)

            thread = threading.Thread(target=pretend)
            thread.start()
            with pytest.raises(errors.FleetFailed, match="is not the host"):
                wire.connect(served._replace(port=server.getsockname()[1]))
            thread.join()
            assert received[0] is None or isinstance(received[0], OSError), "no request was sent to it"


def pair(served: wire.Address) -> tuple[wire.Wire, wire.Wire, list[bytes]]:
    """Both ends of a connection as a fleet has them, and what went over the wire from one to the other."""
    own, clients = _core.fleet_credentials()
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as outer:
        ends: list[wire.Wire] = []

        def greet() -> None:
            peer, _ = server.accept()
            with peer:
                ends.append(wire.greet(peer, own))  # type: ignore[arg-type]

        def between() -> None:
            one, _ = outer.accept()
            other = socket.create_connection(server.getsockname())

            def pump(source: socket.socket, target: socket.socket, note: bool) -> None:
                with contextlib.suppress(OSError):
                    while data := source.recv(1 << 16):
                        if note:
                            seen.append(data)
                        target.sendall(data)
                for each in (source, target):
                    with contextlib.suppress(OSError):
                        each.shutdown(socket.SHUT_RD if each is source else socket.SHUT_WR)

            for words in ((one, other, True), (other, one, False)):
                threading.Thread(target=pump, args=words, daemon=True).start()

        for body in (greet, between):
            threading.Thread(target=body).start()
        client = wire.connect(wire.Address("x", "127.0.0.1", outer.getsockname()[1], clients, {}))
        while not ends:
            time.sleep(0.001)
    return client, ends[0], seen


def test_what_is_sent_arrives_and_cannot_be_read(served: wire.Address) -> None:
    client, serving, seen = pair(served)
    source = random.Random(3)
    secret = b"a marker that is long enough to be found " * 20
    sent = [secret, *(source.randbytes(source.choice((1, 100, 16 << 10, 300_000))) for _ in range(20))]
    got: dict[str, bytes] = {}

    def read(name: str, channel: wire.Wire) -> None:
        got[name] = b"".join(iter(lambda: channel.socket.recv(70_000), b""))

    readers = [threading.Thread(target=read, args=each) for each in (("host", serving), ("client", client))]
    for reader in readers:
        reader.start()
    for data in sent:
        client.socket.sendall(data)
    # One end that has nothing more to say still hears the other.
    client.socket.shutdown(socket.SHUT_WR)
    readers[0].join(30)
    serving.socket.sendall(b"".join(sent))
    serving.socket.shutdown(socket.SHUT_WR)
    readers[1].join(30)
    assert got == {"host": b"".join(sent), "client": b"".join(sent)}
    assert seen and secret[:20] not in b"".join(seen)


def test_a_slow_reader_holds_the_writer_up(served: wire.Address) -> None:
    client, serving, _ = pair(served)
    client.socket.settimeout(0.5)
    count = 0
    with pytest.raises(TimeoutError):
        while count < 1 << 30:
            count += client.socket.send(bytes(1 << 20))
    assert count < 64 << 20
    serving.close()
    client.socket.settimeout(10)
    with pytest.raises(OSError):
        for _ in range(4096):
            client.socket.sendall(bytes(1 << 16))


@pytest.mark.parametrize("end", ["close", "shutdown"])
def test_the_end_of_one_is_the_end_of_the_other(served: wire.Address, end: str) -> None:
    client, serving, _ = pair(served)
    client.send({"last": "words"})
    if end == "close":
        client.socket.close()
    else:
        client.close()
    assert serving.receive(5) == {"last": "words"}
    assert serving.receive(5) is None
    serving.close()


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
    own, clients = _core.fleet_credentials()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def once() -> None:
            peer, _ = server.accept()
            with peer:
                channel = wire.greet(peer, own)
            assert channel is not None
            channel.receive()
            channel.send({"ok": True, "capacity": 1, "in_use": 0, "release": _core.VERSION})
            time.sleep(3)
            channel.close()

        thread = threading.Thread(target=once)
        thread.start()
        lease = connection.HostConnection(
            wire.Address("silent", "127.0.0.1", server.getsockname()[1], clients, {}), SPEC, lambda: None
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
