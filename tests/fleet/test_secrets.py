"""Secrets of a fleet's machines: they reach the hosts over TLS, are used for guests, and are nowhere else."""

from __future__ import annotations

import contextlib
import http.server
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from supermachine import Secret, errors
from supermachine.fleet import Fleet, FleetVM, wire
from supermachine.fleet.driver import Driver
from supermachine.fleet.drivers import ProcessesDriver
from supermachine.network.secrets import placeholder

from ..network.test_secrets import HOST, certificates
from ..real import require
from .conftest import BUSYBOX, SMALL

pytestmark = pytest.mark.vm

VALUE = "value-that-only-hosts-have-0815"


class Site:
    """An HTTPS server that notes what it is told."""

    def __init__(self, place: Path) -> None:
        self.heard: list[str] = []
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.heard.append(self.headers.get("Authorization", ""))
                self.send_response(200)
                self.send_header("Content-Length", "3")
                self.end_headers()
                self.wfile.write(b"ok\n")

            def log_message(self, *_args: object) -> None:
                pass

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(place / "server.pem")
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.address = f"{HOST}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    require("openssl")
    certificates(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "roots.pem"))
    site = Site(tmp_path)
    yield site
    site.close()


class Overheard(Driver):
    """Another driver's hosts, with somebody in between who keeps every byte."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._servers: dict[int, socket.socket] = {}
        self.bytes: list[bytes] = []

    def addresses(self) -> list[wire.Address]:
        return [each._replace(port=self._between(each.port)) for each in self._driver.addresses()]

    def _between(self, port: int) -> int:
        server = self._servers.get(port)
        if server is None:
            server = self._servers[port] = socket.create_server(("127.0.0.1", 0))
            threading.Thread(target=self._accept, args=(server, port), daemon=True).start()
        return int(server.getsockname()[1])

    def _accept(self, server: socket.socket, port: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                one, _ = server.accept()
                other = socket.create_connection(("127.0.0.1", port))
                for words in ((one, other), (other, one)):
                    threading.Thread(target=self._pump, args=words, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.bytes.append(data)
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Several fleets have it: the end of `ended` does."""

    @contextlib.contextmanager
    def ended(self) -> Iterator[None]:
        """At the end of the block."""
        try:
            yield
        finally:
            for server in self._servers.values():
                server.close()
            self._driver.close()


def get(vm: FleetVM, address: str, authorization: str) -> str:
    """A request from within the guest, whose own programs know no TLS that is good enough: TLS is here, `nc` there."""
    from supermachine._core import TRUST_BUNDLE

    host, _, port = address.partition(":")
    context = ssl.create_default_context(cadata=vm.path(TRUST_BUNDLE).read_text())
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=host)
    carrier = vm.popen(["nc", host, port], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    assert carrier.stdin is not None and carrier.stdout is not None

    def done(step: Callable[[], object]) -> object:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                carrier.stdin.write(outgoing.read())  # type: ignore[union-attr]
                data = carrier.stdout.read(1 << 14)  # type: ignore[union-attr]
                incoming.write(data) if data else incoming.write_eof()

    try:
        done(tls.do_handshake)
        tls.write(f"GET / HTTP/1.1\r\nHost: {address}\r\nAuthorization: {authorization}\r\n\r\n".encode())
        carrier.stdin.write(outgoing.read())
        return str(done(lambda: tls.read(1 << 14)), "utf-8")  # type: ignore[call-overload]
    finally:
        carrier.kill()


def files_with(value: str, *places: Path) -> list[Path]:
    """The files below these directories that have it."""
    found = []
    for path in (path for place in places for path in place.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # of something that runs
            if path.is_file() and value.encode() in path.read_bytes():
                found.append(path)
    return found


def test_secrets_are_used_for_guests_and_are_nowhere_else(site: Site, cache: Path, tmp_path: Path) -> None:
    def used(vm: FleetVM) -> None:
        assert vm.run("echo $TOKEN", shell=True, text=True).stdout == f"{placeholder('TOKEN')}\n"
        site.heard.clear()
        assert " 200 " in get(vm, site.address, f"Bearer {placeholder('TOKEN')}")
        assert site.heard == [f"Bearer {VALUE}"]

    overheard = Overheard(ProcessesDriver(4, 1))
    secret = {"TOKEN": Secret(VALUE, hosts=[site.address])}
    with overheard.ended(), Fleet(BUSYBOX, driver=overheard, secrets=secret, **SMALL) as fleet:
        [pid] = [host.labels["pid"] for host in fleet.hosts]
        with fleet.acquire() as vm:
            used(vm)
            [clone] = vm.fork(1)
            used(clone)
            vm.snapshot(tmp_path / "snapshot")
        # Another fleet of the same hosts, image and options has nothing of it.
        with Fleet(BUSYBOX, driver=overheard, **SMALL) as other, other.acquire() as vm:
            assert vm.run("echo $TOKEN", shell=True, text=True).stdout == "\n"
            with pytest.raises(errors.FleetClosed, match="kind of machine"):
                [host] = other._hosts.values()
                host.ask({"ask": "acquire", "machine": "x", "spec": fleet._spec}, 60)
        assert overheard.bytes and VALUE.encode() not in b"".join(overheard.bytes)
        [host] = fleet._hosts.values()
        assert VALUE not in f"{fleet!r} {fleet._spec} {vars(host)}"
        for about in ("cmdline", "environ"):
            assert VALUE.encode() not in Path(f"/proc/{pid}/{about}").read_bytes()
        again = Fleet(snapshot=str(tmp_path / "snapshot"), driver=overheard, secrets=secret, per_host=1)
        with again, again.acquire() as vm:
            used(vm)
    assert files_with(VALUE, cache, tmp_path) == []


def test_secrets_that_are_none_are_refused_here(tmp_path: Path) -> None:
    good = {"TOKEN": Secret(VALUE, hosts=["api.example.com"])}
    with pytest.raises(errors.ConfigurationError, match="public"):
        Fleet(BUSYBOX, secrets=good, network="public")
    with pytest.raises(errors.ConfigurationError, match="is none"):
        Fleet(BUSYBOX, secrets={"TOKEN": VALUE})  # type: ignore[dict-item]
    # As many as there may be, each as long as it may be and of what JSON writes longest.
    many = {f"T{n}": Secret('"' * 8192, hosts=["api.example.com"]) for n in range(64)}
    with Fleet(BUSYBOX, per_host=1, secrets=many, ready=0) as fleet:
        assert fleet.capacity == 1
