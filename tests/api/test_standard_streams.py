"""Standard streams that are closed after the import: nothing of ours takes their numbers, and nothing fails for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

#: What makes descriptors, each as a program that yields while it has them.
USES = {
    "a lock": """
        with locks.locked(place / "lock"):
            yield
    """,
    "the cache": """
        cache = Cache(place / "cache")
        cache.prepare()
        with cache.locked("blob", "x"), cache.scratch():
            yield
        cache.save_image("sha256:1", "linux/arm64", {"rootfs": "x"})
        cache.save_reference("a:b", "linux/arm64", "sha256:1", "linux/arm64")
        assert cache.image_record("sha256:1", "linux/arm64")["rootfs"] == "x"
        assert cache.prune(everything=True) == 0
    """,
    "a snapshot that is written": """
        with capture.published(place / "snapshot") as fd:
            os.write(fd, b"all of it")
            yield
        assert (place / "snapshot").read_bytes() == b"all of it"
    """,
    "files without names": """
        kept = [directories.nameless_file(), descriptors.nameless_file(None)]
        with capture.private(1 << 20) as (fd, path), capture.private(1 << 50) as (other, where):
            assert min(fd, other, *kept) > 2
            yield
    """,
    "the disk of a root": """
        (place / "layer").touch()
        disk = scratch.Disk.over([place / "layer"])
        assert disk.own > 2
        yield
    """,
    "volumes": """
        volume = volumes.Mounted("/data", "one", 1 << 24, False, 1)
        opened = volumes.opened([volume, volume._replace(name="two", read_only=True, slot=2)])
        assert min(n for o in opened for n in (o.fd, o.changes or o.fd)) > 2
        yield
        volumes.close(opened)
        assert volumes.inspect("one").holder is None
    """,
    "local sockets": """
        server = local_sockets.listen(place / "socket")
        client = local_sockets.connect(place / "socket", 5)
        inner = server.accept()[0]
        client.sendall(b"x")
        assert inner.recv(5) == b"x"
        yield
    """,
    "sockets of fleets": """
        server = descriptors.server(("127.0.0.1", 0))
        client = descriptors.connection(server.getsockname(), 5)
        assert min(server.fileno(), client.fileno()) > 2
        yield
    """,
    "a pipe": """
        reader, writer = descriptors.pipe()
        assert min(reader, writer) > 2
        yield
    """,
    "a registry": """
        from http.server import BaseHTTPRequestHandler
        from socketserver import TCPServer
        import threading

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()

            log_message = lambda *_: None

        server = TCPServer(("127.0.0.1", 0), Answer, bind_and_activate=False)
        server.socket.close()
        server.socket = descriptors.server(("127.0.0.1", 0))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        from supermachine.oci.transport import Transport
        transport = Transport(insecure=True, registry=f"127.0.0.1:{server.socket.getsockname()[1]}")
        assert transport.request("GET", transport.registry, "/v2/", {}).status == 404
        yield
    """,
}

PROGRAM = """
import fcntl, json, os, sys, textwrap
from pathlib import Path
from supermachine import _core, descriptors, directories, errors, local_sockets
from supermachine.cache import locks
from supermachine.cache.store import Cache
from supermachine.snapshots import capture
from supermachine.storage import scratch, volumes

log = fcntl.fcntl(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT), fcntl.F_DUPFD, 50)
place, closed = Path(sys.argv[2]), json.loads(sys.argv[3])
(place / "cache" / "tmp").mkdir(parents=True)
exec("def use():" + sys.argv[4])
for fd in closed:
    os.close(fd)
seen = []
try:
    for _ in use():
        # What is printed meanwhile ends up nowhere.
        for fd in closed:
            try:
                seen.append(os.readlink(f"/proc/self/fd/{fd}"))
            except FileNotFoundError:
                continue
            if fd:
                os.write(fd, b"what the program prints")
except BaseException as error:
    import traceback
    seen.append(traceback.format_exc())
os.write(log, json.dumps(seen).encode())
"""


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
@pytest.mark.parametrize("what", USES)
def test_nothing_of_ours_takes_their_numbers(tmp_path: Path, what: str, closed: tuple[int, ...]) -> None:
    log, place = tmp_path / "log", tmp_path / "place"
    environment = {
        **os.environ,
        "SUPERMACHINE_CACHE": str(place / "cache"),
        "SUPERMACHINE_DATA": str(place / "data"),
    }
    words = [sys.executable, "-c", PROGRAM, log, place, json.dumps(closed), USES[what]]
    subprocess.run(words, check=True, timeout=60, env=environment, stdin=subprocess.DEVNULL)
    # Those that were closed are closed still, or lead nowhere.
    assert set(json.loads(log.read_text())) <= {"/dev/null"}
