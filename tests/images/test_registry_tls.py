"""Registries over TLS: whose certificates are believed, and how often the host's authorities are read for that."""

from __future__ import annotations

import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from supermachine import errors
from supermachine.oci.transport import Limits, Transport

from ..network.test_secrets import HOST, certificates
from ..real import require


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server with a certificate of the tests' authority, by a name that is not this machine's."""
    require("openssl")
    certificates(tmp_path)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            together.wait(10)
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_args: object) -> None:
            pass

    #: Answers come when four wait: so each has a connection of its own.
    together = threading.Barrier(4)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    real = socket.getaddrinfo
    here = lambda name, *said, **more: real("127.0.0.1" if name == HOST else name, *said, **more)  # noqa: E731
    monkeypatch.setattr(socket, "getaddrinfo", here)
    yield f"{HOST}:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def fetch(transport: Transport, host: str) -> list[bytes]:
    """Four requests at once."""

    def one(_: int) -> bytes:
        response = transport.request("GET", host, "/", {})
        return response.body(10)

    try:
        with ThreadPoolExecutor(4) as executor:
            return list(executor.map(one, range(4)))
    finally:
        transport.close()


LIMITS = Limits(connect=10, read=10, attempts=1)


def test_an_authority_of_the_hosts_is_believed_and_read_once(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "roots.pem"))
    read: list[Any] = []
    real = ssl.SSLContext.load_default_certs
    monkeypatch.setattr(
        ssl.SSLContext, "load_default_certs", lambda self, *said: (read.append(self), real(self, *said))[1]
    )
    assert fetch(Transport(limits=LIMITS), host) == [b"ok"] * 4
    assert len(read) == 1


def test_another_authority_is_not(host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    certificates(tmp_path / "other")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "other" / "roots.pem"))
    with pytest.raises(errors.RegistryError, match="TLS"):
        fetch(Transport(limits=LIMITS), host)
    assert fetch(Transport(limits=LIMITS, insecure=True, registry=host), host) == [b"ok"] * 4


def test_another_hosts_certificate_is_not(host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "roots.pem"))
    real = socket.getaddrinfo
    other = "other.example.com"
    monkeypatch.setattr(socket, "getaddrinfo", lambda name, *a, **k: real(HOST if name == other else name, *a, **k))
    with pytest.raises(errors.RegistryError, match="TLS"):
        fetch(Transport(limits=LIMITS), host.replace(HOST, other))
