"""What people run in guests, as it comes from Debian, against servers on the host's loopback."""

from __future__ import annotations

import hashlib
import http.server
import random
import socket
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from supermachine import VM

from ..real import free_port, require, run
from ..vm.conftest import packages_layout

CLIENTS = "curl,git,apt,dpkg,python3,python3-pip,redis-tools,coreutils,base-files,base-passwd,netbase,dash,grep,sed"
HOST = "host.docker.internal"
DATA = random.Random(2).randbytes(8 << 20)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_args: object) -> None:
        pass


def wheel(place: Path) -> None:
    place.mkdir()
    info = "hello_guest-1.0.dist-info"
    with zipfile.ZipFile(place / "hello_guest-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("hello_guest.py", "print('hello from a wheel')\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: hello-guest\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", f"hello_guest.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


def repository(bare: Path, source: Path) -> None:
    """A repository of one commit, to be served as files."""
    run("git", "init", "-q", source)
    (source / "README").write_text("hello from a repository\n")
    run("git", "-C", source, "add", ".")
    run("git", "-C", source, "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-q", "-m", "one")
    run("git", "clone", "-q", "--bare", source, bare)
    run("git", "-C", bare, "update-server-info")


def _debian_mirror(place: Path, work: Path) -> None:
    place.mkdir()
    control = "Package: hello-guest\nVersion: 1.0\nArchitecture: all\nMaintainer: a <a@example.org>\nDescription: a\n"
    (work / "DEBIAN").mkdir(parents=True)
    (work / "DEBIAN" / "control").write_text(control)
    (work / "opt").mkdir()
    (work / "opt" / "hello").write_text("hello from a package\n")
    run("dpkg-deb", "--root-owner-group", "-b", work, place / "hello.deb")
    data = (place / "hello.deb").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    entry = f"{control}Filename: ./hello.deb\nSize: {len(data)}\nSHA256: {digest}\n"
    (place / "Packages").write_text(entry)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A site with a file, a package index, a mirror and a repository; its address as guests have it."""
    require("git", "dpkg-deb")
    place = tmp_path_factory.mktemp("site")
    root = place / "root"
    root.mkdir()
    (root / "data").write_bytes(DATA)
    (root / "simple").mkdir()
    wheel(root / "simple" / "hello-guest")
    _debian_mirror(root / "debian", place / "package")
    repository(root / "repository.git", place / "source")
    handler = partial(_Quiet, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{HOST}:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VM]:
    """A guest with the clients."""
    require("mmdebstrap", "umoci")
    place = tmp_path_factory.mktemp("clients")
    layout = packages_layout(place, CLIENTS)
    with VM(layout, network="none host", memory="1g", bake=False) as vm:
        yield vm


def output(vm: VM, command: str) -> str:
    return str(vm.run(command, shell=True, text=True, check=True, timeout=300).stdout)


def test_curl(guest: VM, site: str) -> None:
    assert output(guest, f"curl -fsS {site}/data | sha256sum").split()[0] == hashlib.sha256(DATA).hexdigest()
    denied = guest.run(["curl", "-sS", "http://example.org/"], text=True, timeout=60)
    assert denied.returncode == 6  # no such name
    assert guest.network.denials()[-1].name == "example.org"


def test_pip(guest: VM, site: str) -> None:
    command = (
        f"python3 -m pip install -q --break-system-packages --index-url {site}/simple --trusted-host {HOST} hello-guest"
    )
    output(guest, f"{command} 2>&1")
    assert output(guest, "python3 -m hello_guest") == "hello from a wheel\n"


def test_git(guest: VM, site: str) -> None:
    output(guest, f"git clone -q {site}/repository.git /tmp/clone 2>&1")
    assert output(guest, "cat /tmp/clone/README") == "hello from a repository\n"


def test_apt(guest: VM, site: str) -> None:
    guest.path("/etc/apt/sources.list").write_text(f"deb [trusted=yes] {site}/debian ./\n")
    output(guest, "mkdir -p /var/lib/dpkg; touch /var/lib/dpkg/status")
    output(guest, "apt-get -o APT::Sandbox::User=root update 2>&1")
    output(
        guest, "cd /tmp && apt-get -o APT::Sandbox::User=root download hello-guest 2>&1 && dpkg -x hello-guest*.deb /"
    )
    assert output(guest, "cat /opt/hello") == "hello from a package\n"


def test_redis(guest: VM) -> None:
    require("redis-server")
    port = free_port()
    server = subprocess.Popen(["redis-server", "--port", str(port), "--save", "", "--bind", "127.0.0.1"], stdout=-3)
    try:
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)) != 0:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        client = f"redis-cli -h {HOST} -p {port}"
        assert output(guest, f"{client} set key 'a value' && {client} get key") == "OK\na value\n"
        assert output(guest, f"(for i in $(seq 500); do echo incr n; done) | {client} | tail -n 1") == "500\n"
    finally:
        server.kill()
        server.wait()
