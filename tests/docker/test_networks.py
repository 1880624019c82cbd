"""Containers that reach each other by name: docker-py, and Debian's docker-compose 1 with Debian's redis."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from docker import DockerClient
from docker.models.containers import Container

from ..real import require
from . import databases
from .conftest import IMAGE, Session

pytestmark = pytest.mark.vm

SERVE = "mkdir /www; echo $0 > /www/index.html; exec httpd -f -p 80 -h /www"


def server(client: DockerClient, name: str, network: str) -> Container:
    found = client.containers.run(IMAGE, ["sh", "-c", SERVE, name], name=name, network=network, detach=True)
    ready = "until wget -q -O /dev/null http://127.0.0.1/; do sleep 0.1; done"
    assert found.exec_run(["timeout", "60", "sh", "-c", ready]).exit_code == 0
    return found


def fetch(container: Container, name: str) -> tuple[int, str]:
    done = container.exec_run(["wget", "-q", "-O", "-", f"http://{name}/"])
    return done.exit_code, done.output.decode()


def test_names_aliases_and_addresses(client: DockerClient) -> None:
    network = client.networks.create("shop")
    api = client.api
    held = api.create_host_config(network_mode="shop")
    aliases = api.create_networking_config({"shop": api.create_endpoint_config(aliases=["store", "Data.Base"])})
    created = api.create_container(
        IMAGE, ["sh", "-c", SERVE, "db"], name="db_1", hostname="host1", host_config=held, networking_config=aliases
    )
    db = client.containers.get(created["Id"])
    db.start()
    web = server(client, "web", "shop")
    deadline = time.monotonic() + 60
    while fetch(web, "db_1")[0] and time.monotonic() < deadline:
        time.sleep(0.2)
    db.reload()
    address = db.attrs["NetworkSettings"]["Networks"]["shop"]["IPAddress"]
    for name in ("db_1", "store", "data.base", "host1", db.short_id, address):
        assert fetch(web, name) == (0, "db\n"), name
    assert fetch(db, "web") == (0, "web\n")
    network.reload()
    assert network.attrs["Containers"][db.id]["IPv4Address"] == f"{address}/24"
    # What has ended is not there.
    db.kill()
    assert fetch(web, "store")[0] != 0
    web.remove(force=True)
    db.remove(force=True)
    network.remove()


def test_only_who_is_in_the_network(client: DockerClient) -> None:
    network, other = client.networks.create("inner", internal=True), client.networks.create("outer")
    inside = server(client, "inside", "inner")
    outside = server(client, "outside", "outer")
    assert fetch(outside, "inside")[0] != 0
    network.connect(outside, aliases=["guest"])
    assert fetch(outside, "inside") == (0, "inside\n")
    assert fetch(inside, "guest") == (0, "outside\n")
    network.disconnect(outside)
    assert fetch(outside, "inside")[0] != 0
    assert fetch(inside, "guest")[0] != 0
    for container in (inside, outside):
        container.remove(force=True)
    for made in (network, other):
        made.remove()


def test_udp_ports_are_published(client: DockerClient) -> None:
    container = client.containers.run(IMAGE, ["sleep", "600"], ports={"53/udp": None}, detach=True)
    container.reload()
    (place,) = container.attrs["NetworkSettings"]["Ports"]["53/udp"]
    assert place["HostIp"] == "127.0.0.1"
    assert int(place["HostPort"]) > 0


COMPOSE = f"""
version: "2.4"
services:
  web:
    image: {IMAGE}
    depends_on: [redis]
    command: >-
      sh -c 'until printf "PING\\r\\nSET a b\\r\\nGET a\\r\\nQUIT\\r\\n" | nc redis 6379; do sleep 0.2; done'
  redis:
    image: redis:7
"""


def test_compose_has_services_that_find_each_other(
    session: Session, client: DockerClient, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    require("docker-compose")
    if not client.images.list("redis:7"):
        with databases.redis(tmp_path_factory.mktemp("redis")).open("rb") as archive:
            client.images.load(archive)
    (tmp_path / "docker-compose.yml").write_text(COMPOSE)

    def compose(*words: str) -> str:
        done = subprocess.run(
            ["docker-compose", "--project-name", "pair", *words],
            cwd=tmp_path,
            env={**os.environ, "DOCKER_HOST": session.host, "COMPOSE_API_VERSION": "auto"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    said = compose("up", "--abort-on-container-exit", "--exit-code-from", "web", "--no-color")
    assert "+PONG" in said
    assert "+OK" in said
    compose("down", "-v")
