"""Docker's API as real clients meet it: a session in a process of its own, with the demo's busybox as an image."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import docker
import pytest
from docker import DockerClient

from ..real import RealRegistry, require

ROOT = Path(__file__).parents[2]
BUSYBOX = ROOT / "demo" / "busybox.oci.tar"
#: What the session knows the demo's image by; no registry has it.
IMAGE = "tests/busybox:1"

pytestmark = pytest.mark.vm


class Session:
    """`supermachine docker serve`"""

    def __init__(self, cache: Path, *options: str, **environment: str) -> None:
        environment = {**os.environ, "SUPERMACHINE_CACHE": str(cache), **environment}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "supermachine", "docker", *options, "serve"],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("export DOCKER_HOST=unix://"), line
        self.host = line.partition("=")[2].strip()
        self.socket = Path(self.host.removeprefix("unix://"))

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


def children(pid: int) -> set[int]:
    """Processes below one, as Linux tells."""
    found: set[int] = set()
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in thread.read_text().split():
            found |= {int(child)} | children(int(child))
    return found


@pytest.fixture(scope="session")
def docker_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("docker-cache")


@pytest.fixture(scope="session")
def sessions(docker_cache: Path) -> Callable[..., AbstractContextManager[Session]]:
    """Sessions of a test's own, with the same cache."""

    @contextmanager
    def started(*options: str, **environment: str) -> Iterator[Session]:
        session = Session(docker_cache, "--image", f"{IMAGE}={BUSYBOX}", *options, **environment)
        try:
            yield session
        finally:
            session.end()

    return started


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRegistry]:
    """Debian's registry, in which the session looks first for what it would ask the hub for."""
    server = RealRegistry(tmp_path_factory.mktemp("registry") / "it")
    yield server
    server.close()


@pytest.fixture(scope="session")
def session(sessions: Callable[..., AbstractContextManager[Session]], registry: RealRegistry) -> Iterator[Session]:
    """The session that most tests share; it must end well."""
    with sessions(SUPERMACHINE_REGISTRY_MIRRORS=f"docker.io={registry.host}") as found:
        yield found
        workers = children(found.process.pid)
        assert found.end() == 0
        assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
        assert not found.socket.parent.exists()


@pytest.fixture
def client(session: Session) -> Iterator[DockerClient]:
    """docker-py. What a test leaves is removed."""
    found = docker.DockerClient(base_url=session.host, timeout=60)
    yield found
    for container in found.containers.list(all=True):
        container.remove(force=True, v=True)
    found.close()


@pytest.fixture(scope="session")
def docker_program() -> str:
    """Debian's client, or another that is installed."""
    debian = "/usr/bin/docker"
    if os.access(debian, os.X_OK):
        return debian
    require("docker")
    return str(shutil.which("docker"))


@pytest.fixture
def cli(session: Session, client: DockerClient, docker_program: str, tmp_path: Path) -> Callable[..., str]:
    """Runs docker's command line, which must succeed unless `status` says otherwise; gives its output."""

    def run(*arguments: str, status: int = 0, input: str | None = None) -> str:  # noqa: A002
        environment = {**os.environ, "DOCKER_HOST": session.host, "DOCKER_CONFIG": str(tmp_path / "docker")}
        done = subprocess.run(
            [docker_program, *arguments],
            env=environment,
            input=input,
            stdin=None if input is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    return run
