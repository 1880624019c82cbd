"""testcontainers, its reaper included, and docker-compose: unchanged, with databases of Debian's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from docker import DockerClient

from ..real import RealRegistry, require
from . import databases
from .conftest import IMAGE, Session

pytestmark = pytest.mark.vm

#: What testcontainers reads when it is imported.
_SETTINGS = {"RYUK_RECONNECTION_TIMEOUT": "1s", "TC_POOLING_INTERVAL": "2", "TC_MAX_TRIES": "200"}


def _python(session: Session, program: str) -> str:
    """In a process of its own: testcontainers keeps what it finds in its environment for good."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **_SETTINGS, "DOCKER_HOST": session.host},
        capture_output=True,
        text=True,
        timeout=420,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


POSTGRES = """
import psycopg2
from testcontainers.community.postgres import PostgresContainer

with PostgresContainer("postgres:16") as postgres:
    with psycopg2.connect(postgres.get_connection_url(driver=None)) as connection:
        cursor = connection.cursor()
        cursor.execute("create table t (n int); insert into t values (6), (7); select sum(n) from t")
        print(cursor.fetchone()[0])
"""


def test_postgres(session: Session, client: DockerClient, tmp_path: Path) -> None:
    """From an archive that is loaded, as from `docker save`."""
    archive = databases.postgres(tmp_path)
    with archive.open("rb") as file:
        (image,) = client.images.load(file)
    assert image.tags == ["postgres:16"]
    archive.unlink()
    assert _python(session, POSTGRES) == "13\n"


REDIS = """
from testcontainers.community.redis import RedisContainer

with RedisContainer("redis:7") as redis:
    client = redis.get_client()
    client.set("name", "value")
    print(client.get("name").decode(), client.info()["redis_version"].split(".")[0])
"""


def test_redis(session: Session, registry: RealRegistry, tmp_path: Path) -> None:
    """From a registry that stands in for the hub."""
    registry.push(f"docker-archive:{databases.redis(tmp_path)}", "library/redis:7")
    assert _python(session, REDIS) == "value 7\n"


LEFT = f"""
import os
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

network = Network().create()
container = DockerContainer("{IMAGE}").with_command("sleep 1000").with_network(network).start()
print(container.get_container_host_ip() in ("localhost", "127.0.0.1"))
print(network.name)
os._exit(0)
"""


def test_the_reaper_removes_what_a_killed_program_leaves(session: Session, client: DockerClient) -> None:
    reachable, network = _python(session, LEFT).split()
    assert reachable == "True"
    assert len(client.containers.list()) == 2
    deadline = time.monotonic() + 30
    while client.containers.list(all=True) or client.networks.list(names=[network]):
        assert time.monotonic() < deadline
        time.sleep(0.1)


COMPOSE = f"""
services:
  web:
    image: {IMAGE}
    command: sh -c "echo from web > /data/file; while true; do echo $$NAME | nc -l -p 80; done"
    environment: {{NAME: compose}}
    ports: ["80"]
    volumes: ["data:/data", "./source:/source:ro"]
    healthcheck: {{test: ["CMD", "test", "-e", "/data/file"], interval: 0.2s, retries: 50}}
  later:
    image: {IMAGE}
    command: sh -c "cat /source/hello; sleep 1000"
    depends_on: {{web: {{condition: service_healthy}}}}
    volumes: ["./source:/source:ro"]
    tmpfs: [/scratch]
    networks: [default, inner]
  tool:
    image: {IMAGE}
    command: sleep 1000
    profiles: [debugging]
    networks: [inner]
networks: {{inner: {{internal: true}}}}
volumes: {{data: {{}}}}
"""


def test_compose(session: Session, client: DockerClient, tmp_path: Path) -> None:
    require("docker-compose")
    (tmp_path / "docker-compose.yml").write_text(COMPOSE)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "hello").write_text("hello from the host\n")

    def compose(*words: str) -> str:
        done = subprocess.run(
            ["/usr/bin/docker-compose", "--no-ansi", *words],
            cwd=tmp_path,
            env={**os.environ, "DOCKER_HOST": session.host},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    compose("up", "-d")
    assert compose("exec", "-T", "later", "cat", "/source/hello") == "hello from the host\n"
    assert "hello from the host" in compose("logs", "later")
    assert compose("port", "web", "80").startswith("127.0.0.1:")
    assert compose("exec", "-T", "later", "nc", "web", "80") == "compose\n"
    assert len(client.containers.list()) == 2
    compose("--profile", "debugging", "up", "-d")
    # The tool is in the inner network alone.
    compose("exec", "-T", "tool", "ping", "-c", "1", "later")
    with pytest.raises(AssertionError, match="bad address"):
        compose("exec", "-T", "tool", "ping", "-c", "1", "web")
    compose("--profile", "debugging", "down", "-v", "-t", "1")
    assert client.containers.list(all=True) == []
    assert client.volumes.list() == []
