"""Protocols by the programs that speak them: Debian's clients in a guest, Debian's servers on the host's loopback."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from supermachine import VM

from ..real import free_port, require, require_root, run, unavailable
from ..vm.conftest import packages_layout

CLIENTS = (
    "openssh-client,git,postgresql-client-15,curl,ngtcp2-client,python3-websockets,python3,iperf3,"
    "coreutils,base-files,base-passwd,netbase,dash,grep,sed"
)
HOST = "host.docker.internal"
DATA = random.Random(5).randbytes(4 << 20)
DIGEST = hashlib.sha256(DATA).hexdigest()
POSTGRES = Path("/usr/lib/postgresql/15/bin")

WEBSOCKET_SERVER = """
import asyncio, sys, websockets

async def echo(connection):
    async for message in connection:
        await connection.send(message)
    assert connection.close_code == 1001

async def serve():
    async with websockets.serve(echo, "127.0.0.1", int(sys.argv[1]), max_size=None):
        await asyncio.Future()

asyncio.run(serve())
"""

WEBSOCKET_CLIENT = """
import asyncio, hashlib, os, sys, websockets

async def converse():
    async with websockets.connect(sys.argv[1], max_size=None) as connection:
        for size in (0, 1, 125, 126, 65535, 65536, 1 << 20):
            message = os.urandom(size)
            await connection.send(message)
            assert await connection.recv() == message
        # Many at once, and their order.
        for number in range(500):
            await connection.send(str(number))
        assert [await connection.recv() for _ in range(500)] == [str(number) for number in range(500)]
        await (await connection.ping())
        await connection.close(1001, "away")
    print("closed", connection.close_code)

asyncio.run(converse())
"""


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VM]:
    require("mmdebstrap", "umoci")
    place = tmp_path_factory.mktemp("clients")
    layout = packages_layout(place, CLIENTS)
    with VM(layout, network="none host", memory="512MiB", bake=False) as vm:
        yield vm


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a file, and with the key and certificate of who serves it."""
    require("openssl")
    place = tmp_path_factory.mktemp("site")
    (place / "data").write_bytes(DATA)
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    run(*request, "-keyout", place / "key", "-out", place / "certificate", "-subj", f"/CN={HOST}", "-days", "2")
    return place


@contextmanager
def server(port: int, *command: str | Path, user: str | None = None) -> Iterator[None]:
    """A server that is there once it listens; on a port of UDP it is given a second."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, user=user, cwd="/")
    try:
        deadline = time.monotonic() + 60
        while process.poll() is None and not _listens(port):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        yield
    finally:
        process.terminate()
        process.communicate(timeout=60)


def _listens(port: int) -> bool:
    """Whether somebody has this port, by TCP or UDP."""
    end = f":{port:04X}"
    tables = (Path(f"/proc/net/{name}").read_text() for name in ("tcp", "udp"))
    lines = [line.split() for table in tables for line in table.splitlines()[1:]]
    return any(words[1].endswith(end) and words[3] in ("0A", "07") for words in lines)


def output(vm: VM, command: str) -> str:
    done = vm.run(command, shell=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


def test_iperf3(guest: VM) -> None:
    require("iperf3")
    port, count = free_port(), 8 << 20
    with server(port, "iperf3", "--server", "--port", str(port), "--bind", "127.0.0.1"):
        client = f"iperf3 --client {HOST} --port {port} --json"
        for way in ("", "--reverse", "--parallel 8"):
            said = json.loads(output(guest, f"{client} --bytes {count} {way}"))["end"]
            assert said["sum_sent"]["bytes"] >= count, way
            # Its server stops to count when the client has sent all: what is on the way then is not in it.
            assert said["sum_received"]["bytes"] >= count // 2, way
        both = json.loads(output(guest, f"{client} --bidir --time 1"))["end"]
        assert both["sum_received"]["bytes"] > 0 and both["sum_received_bidir_reverse"]["bytes"] > 0
        for way in ("", "--reverse"):
            said = json.loads(output(guest, f"{client} --udp --bitrate 2M --length 1400 --bytes 100K {way}"))["end"]
            # Datagrams may be lost where the machine is busy; not all are.
            assert said["sum"]["packets"] > said["sum"]["lost_packets"], way


def test_git_over_ssh(guest: VM, tmp_path: Path) -> None:
    require("git", "/usr/sbin/sshd")
    require_root("a server of SSH")
    Path("/run/sshd").mkdir(exist_ok=True)
    port = free_port()
    for name in ("host", "guest"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name)
    run("git", "init", "-q", "--bare", tmp_path / "repository.git")
    options = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": tmp_path / "host",
        "AuthorizedKeysFile": tmp_path / "guest.pub",
        "StrictModes": "no",
        "UsePAM": "no",
        "PidFile": "none",
    }
    (tmp_path / "config").write_text("".join(f"{name} {value}\n" for name, value in options.items()))
    guest.path("/root/.ssh").mkdir(parents=True, exist_ok=True)
    guest.path("/root/.ssh/id_ed25519").write_bytes((tmp_path / "guest").read_bytes())
    guest.path("/root/.ssh/id_ed25519").chmod(0o600)
    guest.path("/root/.ssh/known_hosts").write_text(f"[{HOST}]:{port} {(tmp_path / 'host.pub').read_text()}")
    with server(port, "/usr/sbin/sshd", "-D", "-e", "-f", tmp_path / "config"):
        guest.path("/tmp/data").write_bytes(DATA)
        place = f"ssh://root@{HOST}:{port}{tmp_path}/repository.git"
        output(
            guest,
            "export HOME=/root GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=a"
            " GIT_COMMITTER_EMAIL=a@example.org; cd /tmp && git init -q pushed && cd pushed && cp ../data . &&"
            f" git add data && git commit -q -m one && git push -q {place} HEAD:main 2>&1",
        )
        output(guest, f"HOME=/root git clone -q -b main {place} /tmp/cloned 2>&1")
        assert output(guest, "sha256sum < /tmp/cloned/data").split()[0] == DIGEST
    assert run("git", "-C", tmp_path / "repository.git", "log", "--format=%s", "main") == "one\n"


def test_psql(guest: VM) -> None:
    require(str(POSTGRES / "initdb"), str(POSTGRES / "postgres"))
    require_root("a server under another user")
    place, port = Path(tempfile.mkdtemp()), free_port()
    try:
        shutil.chown(place, "postgres")
        subprocess.run(
            [POSTGRES / "initdb", "-D", place / "data", "-U", "guest", "-A", "trust", "--no-sync"],
            user="postgres", check=True, stdout=subprocess.DEVNULL, cwd="/",
        )  # fmt: skip
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": str(place),
            "fsync": "off",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with server(port, POSTGRES / "postgres", "-D", place / "data", *options, user="postgres"):
            psql = (
                f"/usr/lib/postgresql/15/bin/psql -X -q -A -t -v ON_ERROR_STOP=1 -h {HOST} -p {port} -U guest postgres"
            )
            guest.path("/tmp/rows").write_text("".join(f"{n}\t{n * n % 9973}\n" for n in range(50_000)))
            commands = [
                "create table numbers (n int, square int)",
                r"\copy numbers from /tmp/rows",
                "select count(*), sum(square) from numbers",
                r"\copy (select n, square from numbers order by n) to /tmp/back",
            ]
            words = " ".join(f"-c '{command}'" for command in commands)
            expected = f"50000|{sum(n * n % 9973 for n in range(50_000))}\n"
            assert output(guest, f"{psql} {words}") == expected
            digests = output(guest, "sha256sum < /tmp/rows; sha256sum < /tmp/back").split()[::2]
            assert digests[0] == digests[1]
            cancelled = guest.run(
                f"{psql} -c 'set statement_timeout = 200' -c 'select pg_sleep(100)'", shell=True, text=True
            )
            assert "statement timeout" in cancelled.stderr
    finally:
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.parametrize("tls", [True, False])
def test_http2(guest: VM, site: Path, tls: bool) -> None:
    require("nghttpd")
    port = free_port()
    certificate = [site / "key", site / "certificate"] if tls else []
    options = ["--address=127.0.0.1", f"--htdocs={site}", *([] if tls else ["--no-tls"])]
    with server(port, "nghttpd", *options, str(port), *certificate):
        url = f"{'https' if tls else 'http'}://{HOST}:{port}/data"
        how = "--http2" if tls else "--http2-prior-knowledge"
        # Four streams of one connection; of those by prior knowledge Debian's curl serves the first alone.
        count = 4 if tls else 1
        urls = " ".join(f"-o /tmp/h2.{n} {url}" for n in range(count))
        said = output(guest, f"curl -fsSk {how} --parallel --parallel-max 4 -w '%{{http_version}} ' {urls}")
        assert said.split() == ["2"] * count
        digests = output(guest, "sha256sum /tmp/h2.*; rm /tmp/h2.*").split()[::2]
        assert digests == [DIGEST] * count


def test_websockets(guest: VM) -> None:
    # Debian's interpreter has Debian's module.
    if subprocess.run(
        ["/usr/bin/python3", "-c", "import websockets"], stderr=subprocess.DEVNULL, check=False
    ).returncode:
        unavailable("not installed: python3-websockets")
    port = free_port()
    guest.path("/tmp/client.py").write_text(WEBSOCKET_CLIENT)
    with server(port, "/usr/bin/python3", "-c", WEBSOCKET_SERVER, str(port)):
        assert output(guest, f"python3 /tmp/client.py ws://{HOST}:{port}/") == "closed 1001\n"


def test_quic(guest: VM, site: Path) -> None:
    require("gtlsserver")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["gtlsserver", "-q", "-d", site, "127.0.0.1", str(port), site / "key", site / "certificate"]
    with server(port, *command):
        output(
            guest,
            "rm -rf /tmp/quic; mkdir /tmp/quic; gtlsclient -q --exit-on-all-streams-close --download=/tmp/quic"
            f" {HOST} {port} https://{HOST}:{port}/data 2>&1",
        )
        assert output(guest, "sha256sum < /tmp/quic/data").split()[0] == DIGEST
