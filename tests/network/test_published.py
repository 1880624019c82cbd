"""Published ports of Debian's servers in real guests: redis by TCP, dnsmasq by both."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from supermachine import VM, Network
from supermachine.errors import NotSupported

from ..real import require, run
from ..vm.conftest import packages_layout

BUSYBOX = Path(__file__).parents[2] / "demo" / "busybox.oci.tar"
SERVERS = "redis-server,redis-tools,dnsmasq-base,coreutils,base-files,base-passwd,dash"
REDIS = ("redis-server", "--save", "", "--protected-mode", "no", "--maxclients", "5000")
#: Connections that one port holds at once.
MANY = 1000


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("mmdebstrap", "umoci", "redis-cli")
    place = tmp_path_factory.mktemp("servers")
    return packages_layout(place, SERVERS)


@pytest.fixture(scope="module")
def guest(image: Path) -> Iterator[VM]:
    ports = {f"{port}/tcp": None for port in (6379, 6380, 6381, 7777)}
    with VM(image, network="none gateway", ports={**ports, "53/udp": None, "53/tcp": None}, bake=False) as vm:
        for port, address in ((6379, "0.0.0.0"), (6380, "127.0.0.1"), (6381, "::1")):
            vm.popen(
                [*REDIS, "--port", str(port), "--bind", address],
                stdout=-3,
            )
        vm.popen(
            ["dnsmasq", "--no-daemon", "--no-resolv", "--no-hosts", "--user=root", "--address=/there.test/192.0.2.9"],
            stdout=-3,
            stderr=-3,
        )
        yield vm


def redis(vm: VM, port: int, *command: str) -> str:
    """What redis-cli says on the host, once the server is there."""
    _, place = vm.ports[f"{port}/tcp"][0]
    deadline = time.monotonic() + 60
    while True:
        try:
            return run("redis-cli", "-p", str(place), *command)
        except AssertionError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def question(name: str, number: int) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack(">HHHHHH", number, 0x100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"


def asked(client: socket.socket, number: int) -> bytes:
    """The answer of a server that may not be there yet."""
    client.settimeout(1)
    for _ in range(60):
        client.send(question("there.test", number))
        try:
            return client.recv(512)
        except TimeoutError:
            continue
    raise AssertionError("dnsmasq does not answer")


@pytest.mark.parametrize("port", [6379, 6380, 6381])
def test_a_service_on_any_address_of_the_guest_is_there(guest: VM, port: int) -> None:
    assert redis(guest, port, "set", "key", "a" * 100_000).strip() == "OK"
    assert redis(guest, port, "get", "key").strip() == "a" * 100_000


def test_a_service_sees_the_gateway_where_the_client_is_the_host(guest: VM) -> None:
    assert "addr=10.0.2.2:" in redis(guest, 6379, "client", "list")


def test_a_thousand_connections_are_held_and_served_at_once(guest: VM) -> None:
    redis(guest, 6379, "ping")
    place = guest.ports["6379/tcp"][0]
    held: list[socket.socket] = []
    failed: list[str] = []

    def connect() -> None:
        try:
            client = socket.create_connection(place, timeout=120)
            client.sendall(b"PING\r\n")
            assert client.recv(7) == b"+PONG\r\n"
            held.append(client)
        except (OSError, AssertionError) as error:
            failed.append(repr(error))

    threads = [threading.Thread(target=connect) for _ in range(MANY)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), failed) == (MANY, [])
    for client in held:
        client.sendall(b"PING\r\n")
    assert all(client.recv(7) == b"+PONG\r\n" for client in held)
    assert sum(flow.guest_port == 6379 for flow in guest.network.flows()) == MANY
    for client in held:
        client.close()
    # And the port is as it was.
    assert redis(guest, 6379, "ping").strip() == "PONG"


def test_datagrams_come_and_go_for_each_client(guest: VM) -> None:
    place = guest.ports["53/udp"][0]
    clients = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(20)]
    for number, client in enumerate(clients):
        client.connect(place)
        answer = asked(client, number)
        assert answer[:2] == struct.pack(">H", number)
        assert answer.endswith(socket.inet_aton("192.0.2.9"))
    for number, client in enumerate(clients):
        client.send(question("there.test", 1000 + number))
    for number, client in enumerate(clients):
        assert client.recv(512)[:2] == struct.pack(">H", 1000 + number)
        client.close()


def test_one_port_is_there_by_tcp_and_by_udp(guest: VM) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(guest.ports["53/udp"][0])
        asked(client, 1)
    with socket.create_connection(guest.ports["53/tcp"][0], timeout=60) as client:
        sent = question("there.test", 5)
        client.sendall(struct.pack(">H", len(sent)) + sent)
        assert client.recv(512).endswith(socket.inet_aton("192.0.2.9"))


def test_a_port_that_nobody_listens_at_ends_at_once(guest: VM) -> None:
    with socket.create_connection(guest.ports["7777/tcp"][0], timeout=60) as client:
        assert client.recv(1) == b""


def test_forks_publish_on_ports_of_their_own(guest: VM) -> None:
    (fork,) = guest.fork(1)
    with fork, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        assert fork.ports["53/udp"] != guest.ports["53/udp"]
        client.connect(fork.ports["53/udp"][0])
        assert asked(client, 9)[:2] == b"\0\t"
        assert redis(fork, 6379, "ping").strip() == "PONG"
    assert redis(guest, 6379, "ping").strip() == "PONG"


def test_connections_go_on_without_the_policy_process_and_new_ones_come_by_the_agent(image: Path) -> None:
    with VM(image, ports={"6379/tcp": None}, bake=False) as vm:
        vm.popen(REDIS, stdout=-3)
        redis(vm, 6379, "ping")
        with socket.create_connection(vm.ports["6379/tcp"][0], timeout=60) as client:
            client.sendall(b"PING\r\n")
            assert client.recv(7) == b"+PONG\r\n"
            pid = vm._running().network_pid
            assert pid is not None
            run("kill", "-9", str(pid))
            while vm._running().network_pid is not None:
                time.sleep(0.05)
            client.sendall(b"PING\r\n")
            assert client.recv(7) == b"+PONG\r\n"
            assert redis(vm, 6379, "ping").strip() == "PONG"


def test_on_a_segment_its_services_are_there_by_ipv6(image: Path) -> None:
    network = Network.private("servers", "none")
    with VM(image, network=network, hostname="names") as vm, VM(BUSYBOX, network=network, hostname="asks") as asks:
        vm.popen(["redis-server", "--save", "", "--protected-mode", "no", "--bind", "::"], stdout=-3)
        vm.popen(
            ["dnsmasq", "--no-daemon", "--no-resolv", "--no-hosts", "--user=root", "--address=/there.test/192.0.2.9"],
            stdout=-3,
            stderr=-3,
        )
        look = f"nslookup -type=a there.test {vm.network.address_v6}"
        asks.run(f"until {look} | grep -q 192.0.2.9; do sleep 0.2; done", shell=True, check=True, timeout=60)
        ping = f"(echo PING; sleep 1) | nc {vm.network.address_v6} 6379 | grep -q PONG"
        asks.run(f"until {ping}; do sleep 0.2; done", shell=True, check=True, timeout=60)
        assert {flow.protocol for flow in asks.network.flows() if flow.address == vm.network.address_v6} >= {"udp"}


def test_a_guest_without_a_network_has_tcp_ports_and_none_of_udp(image: Path) -> None:
    with VM(image, network="none", ports={"6379/tcp": None}, bake=False) as vm:
        vm.popen(REDIS, stdout=-3)
        assert redis(vm, 6379, "ping").strip() == "PONG"
    with pytest.raises(NotSupported, match=r"53/udp.*network"):
        VM(BUSYBOX, network="none", ports={"53/udp": None}, bake=False).start()
