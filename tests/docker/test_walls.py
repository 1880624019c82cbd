"""A client that means ill: what it can make the server keep is bounded, and the others are served."""

from __future__ import annotations

import json
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker import DockerClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from supermachine.docker.http import MAX_DOCUMENT, MAX_HEAD

from .conftest import IMAGE, Session

pytestmark = pytest.mark.vm


def _connected(session: Session) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(30)
    connection.connect(str(session.socket))
    return connection


def _answer(session: Session, *parts: bytes) -> bytes:
    """What is answered until the end; the server may end first."""
    with _connected(session) as connection:
        try:
            for part in parts:
                connection.sendall(part)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        return _rest(connection)


def _rest(connection: socket.socket) -> bytes:
    received = b""
    try:
        while data := connection.recv(65536):
            received += data
    except ConnectionError:
        pass
    return received


def _memory(session: Session) -> int:
    """Bytes that the server has in memory."""
    fields = Path(f"/proc/{session.process.pid}/statm").read_text().split()
    return int(fields[1]) * resource.getpagesize()


def test_heads_and_documents_have_a_size(session: Session) -> None:
    huge = b"GET /_ping HTTP/1.1\r\nX: " + b"x" * (2 * MAX_HEAD) + b"\r\n\r\n"
    assert _answer(session, huge).startswith(b"HTTP/1.1 431 ")
    said = b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (1 << 40)
    assert _answer(session, said, b" " * (MAX_DOCUMENT + 1)).startswith(b"HTTP/1.1 413 ")


def test_chunks_without_end(session: Session) -> None:
    before = _memory(session)
    with _connected(session) as connection:
        connection.sendall(b"POST /containers/create HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        with pytest.raises(OSError):
            for _ in range(1 << 30):
                connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
    assert _memory(session) - before < 32 << 20


def test_slow_clients_do_not_keep_others_from_being_served(session: Session, client: DockerClient) -> None:
    slow = []
    for _ in range(200):
        connection = _connected(session)
        connection.sendall(b"GET /_ping HTTP/1.1\r\nHo")
        slow.append(connection)
    began = time.monotonic()
    assert client.containers.run(IMAGE, ["echo", "x"], remove=True) == b"x\n"
    assert time.monotonic() - began < 20  # the limit of a head: none was waited for
    for connection in slow:
        connection.close()


def test_a_reader_that_stops_costs_no_memory(session: Session, client: DockerClient) -> None:
    container = client.containers.run(IMAGE, ["sh", "-c", "head -c 30000000 /dev/zero; sleep 1000"], detach=True)
    with _connected(session) as connection:
        connection.sendall(
            b"GET /containers/%b/logs?stdout=1&follow=1 HTTP/1.1\r\nHost: x\r\n\r\n" % container.id.encode()
        )
        assert connection.recv(16)
        before = _memory(session)
        deadline = time.monotonic() + 180
        while container.exec_run(["pidof", "head"]).exit_code == 0:
            assert time.monotonic() < deadline
        assert _memory(session) - before < 64 << 20
        logs = sum(path.stat().st_size for path in session.socket.parent.glob("logs/*/*"))
        assert logs < 20 << 20


@pytest.mark.parametrize(
    "request_",
    [
        b"\r\n\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /_ping HTTP/3.0\r\n\r\n",
        b"GET /_ping HTTP/1.1\r\nBad Header: x\r\n\r\n",
        b"GET /_ping HTTP/1.1\r\n folded: x\r\n\r\n",
        b"POST /containers/create HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /containers/create HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /containers/create HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"POST /containers/create HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /containers/create HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}xx",
        b"POST /containers/create HTTP/1.1\r\nContent-Length: 5\r\n\r\n[1,2]",
        b"POST /v9.99/containers/create HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
        b"GET /containers/json?filters=[1] HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused(session: Session, request_: bytes) -> None:
    answer = _answer(session, request_)
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["message"]


@pytest.mark.parametrize("port", ["", "x", "0", "70000", "80/tcp/x/"])
def test_a_port_that_is_none_is_refused(session: Session, port: str) -> None:
    """It was taken, and no list of the session's containers could be given after that."""
    data = json.dumps({"Image": IMAGE, "ExposedPorts": {port: {}}}).encode()
    head = b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    answer = _answer(session, head % len(data), data)
    assert answer.startswith(b"HTTP/1.1 400 ") and b"invalid port specification" in answer, answer
    assert b" 200 " in _answer(session, b"GET /containers/json?all=1 HTTP/1.1\r\nConnection: close\r\n\r\n")


_ROUTES = [
    "containers/create",
    "networks/create",
    "volumes/create",
    "containers/x/exec",
    "exec/x/start",
    "images/create",
]
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_NAMES = ["Image", "Cmd", "Entrypoint", "Env", "HostConfig", "Labels", "ExposedPorts", "Healthcheck", "Name", "Driver"]
_HOST = ["Binds", "Mounts", "PortBindings", "Memory", "NanoCpus", "RestartPolicy", "Tmpfs", "NetworkMode", "LogConfig"]
_BODIES = st.dictionaries(
    st.sampled_from(_NAMES), _VALUES | st.dictionaries(st.sampled_from(_HOST), _VALUES, max_size=4), max_size=5
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(route=st.sampled_from(_ROUTES), body=_BODIES)
def test_any_document_is_answered(session: Session, route: str, body: dict[str, object]) -> None:
    """With a document, and never by a fault of the server's own."""
    if "Image" in body:
        body["Image"] = IMAGE
    data = json.dumps(body).encode()
    head = b"POST /%b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (
        route.encode(),
        len(data),
    )
    answer = _answer(session, head, data)
    status = int(answer.split(b" ", 2)[1])
    assert status < 500 or status == 501, (body, answer)


@pytest.fixture(autouse=True)
def served_to_the_end(client: DockerClient) -> Iterator[None]:
    yield
    assert client.ping()


def test_many_connections_at_once(session: Session, client: DockerClient) -> None:
    def one() -> None:
        for _ in range(20):
            assert _answer(session, b"GET /_ping HTTP/1.1\r\nConnection: close\r\n\r\n").endswith(b"OK")

    threads = [threading.Thread(target=one) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


def test_who_reads_late_reads_the_head_alone(session: Session, client: DockerClient) -> None:
    """docker-py reads what comes after it from the socket, and not what it has read together with the head."""
    container = client.containers.run(IMAGE, ["sleep", "1000"], detach=True)
    try:
        execution = client.api.exec_create(container.id, ["sh", "-c", "echo one; sleep 0.1; echo two"])["Id"]
        asked = b'{"Detach": false, "Tty": true}'
        head = f"POST /exec/{execution}/start HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(asked)}\r\n\r\n"
        with _connected(session) as connection:
            connection.sendall(head.encode() + asked)
            time.sleep(0.4)
            first = connection.recv(65536)
            assert first.startswith(b"HTTP/1.1 101 ")
            assert first.endswith(b"\r\n\r\n")
            assert b"one" in _rest(connection)
    finally:
        container.remove(force=True)
