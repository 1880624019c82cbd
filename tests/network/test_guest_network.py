"""Real clients in real guests, over the network, to real servers on the host's loopback."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from supermachine import VM, Network
from supermachine.errors import ConfigurationError, NotSupported

BUSYBOX = Path(__file__).parents[2] / "demo" / "busybox.oci.tar"
DATA = random.Random(1).randbytes(8 << 20)


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(DATA)))
        self.end_headers()
        self.wfile.write(DATA)

    def do_POST(self) -> None:
        left, digest = int(self.headers["content-length"]), hashlib.sha256()
        while left and (part := self.rfile.read(min(left, 1 << 16))):
            digest.update(part)
            left -= len(part)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(digest.hexdigest().encode())

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture(scope="module")
def guest() -> Iterator[VM]:
    with VM(BUSYBOX, network="public host", bake=False) as vm:
        yield vm


def with_layer(image: Path, layer: bytes, target: Path) -> None:
    """The OCI archive with one more layer."""

    def described(kind: str, data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    with tarfile.open(image) as archive:
        files = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
        blobs = {name.split("/")[-1]: file.read() for name, file in files.items() if file is not None}
    index = json.loads(blobs["index.json"])
    while "manifests" in index:
        index = json.loads(blobs[index["manifests"][0]["digest"].split(":")[1]])
    config = json.loads(blobs[index["config"]["digest"].split(":")[1]])
    config["rootfs"]["diff_ids"].append(f"sha256:{hashlib.sha256(layer).hexdigest()}")
    index["layers"].append(described("layer.v1.tar", layer))
    index["config"] = described("config.v1+json", json.dumps(config).encode())
    top = {"schemaVersion": 2, "manifests": [described("manifest.v1+json", json.dumps(index).encode())]}
    with tarfile.open(target, "w") as archive:
        for name, data in {
            "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
            "index.json": json.dumps(top).encode(),
            **{f"blobs/sha256/{name}": data for name, data in blobs.items() if len(name) == 64},
        }.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def output(vm: VM, command: str) -> str:
    return str(vm.run(command, shell=True, text=True, check=True, timeout=120).stdout)


def fetch(vm: VM, port: int) -> str:
    return output(vm, f"wget -q -O - http://host.docker.internal:{port}/ | sha256sum").split()[0]


def test_a_guest_has_its_place_and_the_gateway_answers(guest: VM) -> None:
    said = output(guest, "ip -4 addr show eth0; ip route; cat /etc/resolv.conf; ping -c 1 gateway")
    assert "10.0.2.15/24" in said
    assert "default via 10.0.2.2" in said
    assert "nameserver 10.0.2.2" in said
    assert "1 packets received" in said


def test_the_interface_is_one_for_multicast_as_the_driver_made_it(guest: VM) -> None:
    # IFF_UP, IFF_BROADCAST, IFF_MULTICAST (linux/if.h).
    assert int(output(guest, "cat /sys/class/net/eth0/flags"), 16) & 0x1003 == 0x1003


def test_bytes_come_from_the_host_as_they_are(guest: VM, port: int) -> None:
    assert fetch(guest, port) == hashlib.sha256(DATA).hexdigest()


def test_bytes_go_to_the_host_as_they_are(guest: VM, port: int) -> None:
    # busybox ends what it sends at the first NUL.
    data = DATA.replace(b"\0", b"0")
    guest.path("/tmp/up").write_bytes(data)
    command = f"wget -q -O - --post-file /tmp/up http://host.docker.internal:{port}/"
    assert output(guest, command) == hashlib.sha256(data).hexdigest()


def test_many_connections_at_once(guest: VM, port: int) -> None:
    one = f"wget -q -O - http://host.docker.internal:{port}/ | wc -c"
    said = output(guest, f"for i in 1 2 3 4 5 6 7 8; do ({one}) & done; wait")
    assert said.split() == [str(len(DATA))] * 8


def test_each_half_of_a_connection_ends_by_itself(guest: VM) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        got: list[bytes] = []

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                while part := connection.recv(4096):
                    got.append(part)
                connection.sendall(b"after the end: " + b"".join(got))

        thread = threading.Thread(target=serve)
        thread.start()
        answer = output(guest, f"echo question | nc host.docker.internal {server.getsockname()[1]}")
        thread.join(60)
    assert answer == "after the end: question\n"


def test_a_port_that_nobody_listens_at_refuses_at_once(guest: VM) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        unused = server.getsockname()[1]
    done = guest.run(f"wget -O - http://host.docker.internal:{unused}/", shell=True, text=True, timeout=30)
    assert done.returncode != 0
    assert "Connection refused" in done.stderr


@pytest.mark.parametrize("address", ["192.168.77.1", "169.254.169.254", "10.0.0.1", "100.64.0.1"])
def test_what_is_not_public_is_denied_at_once_and_told(guest: VM, address: str) -> None:
    done = guest.run(["wget", "-O", "-", f"http://{address}/"], text=True, timeout=30)
    assert done.returncode != 0
    assert "Connection refused" in done.stderr
    (told,) = [d for d in guest.network.denials() if d.address == address]
    assert (told.port, told.protocol, told.remedy) == (80, "tcp", f"{address}:80")


def test_names_come_from_the_name_servers_that_are_named() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def serve() -> None:
            while True:
                query, peer = server.recvfrom(2048)
                if query == b"end":
                    return
                end = query.index(b"\0", 12) + 5
                record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton("203.0.113.9")
                a = query[end - 4 : end - 2] == b"\0\1"
                header = query[:2] + b"\x81\x80\0\1" + (b"\0\1" if a else b"\0\0") + b"\0\0\0\0"
                server.sendto(header + query[12:end] + (record if a else b""), peer)

        thread = threading.Thread(target=serve)
        thread.start()
        place = f"127.0.0.1:{server.getsockname()[1]}"
        network = Network("none", allow=["allowed.test"], dns=[place])
        try:
            with VM(BUSYBOX, network=network, bake=False) as vm:
                assert "203.0.113.9" in output(vm, "nslookup allowed.test")
                denied = vm.run(["nslookup", "secret.evil.test"], text=True, timeout=30)
                assert "NXDOMAIN" in denied.stdout + denied.stderr
                assert {(d.name, d.protocol) for d in vm.network.denials()} == {("secret.evil.test", "dns")}
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bell:
                bell.sendto(b"end", server.getsockname())
            thread.join(60)


@pytest.mark.parametrize("n", [1, 4], ids=["one", "of a template"])
def test_forks_have_the_network_and_not_their_parents_connections(port: int, n: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, VM(BUSYBOX, network="none host", bake=False) as vm:
        place = f"host.docker.internal {server.getsockname()[1]}"
        held = vm.popen(["sh", "-c", f"sleep 600 | nc {place}"])
        connection, _ = server.accept()
        fork, *others = vm.fork(n)
        for other in others:
            with other:
                assert fetch(other, port) == hashlib.sha256(DATA).hexdigest()
        with connection, fork:
            assert fetch(fork, port) == hashlib.sha256(DATA).hexdigest()
            # The source's connection is as it was.
            connection.sendall(b"still there")
            assert held.poll() is None
        held.kill()


def test_without_its_policy_process_nothing_new_is_let_through_and_the_guest_lives(port: int) -> None:
    with VM(BUSYBOX, network="none host", bake=False) as vm:
        assert fetch(vm, port) == hashlib.sha256(DATA).hexdigest()
        pid = vm._running().network_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while vm.run(["wget", "-q", "-O", "/dev/null", f"http://10.0.2.2:{port}/"], timeout=60).returncode == 0:
            assert time.monotonic() < deadline
        assert output(vm, "echo lives") == "lives\n"
        (told,) = vm.network.denials()
        assert (told.protocol, "signal: 9" in told.reason) == ("any", True)


def test_a_guest_without_a_network_has_none() -> None:
    with VM(BUSYBOX, network="none", bake=False) as vm:
        assert "inet" not in output(vm, "ip addr show eth0")
        assert output(vm, "cat /etc/resolv.conf || true") == ""
        assert not vm._running().has_network
        assert vm.network.denials() == []


def test_the_network_is_public_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    with VM(BUSYBOX) as vm:  # of a baked snapshot, where there is one
        assert "10.0.2.15/24" in output(vm, "ip -4 addr show eth0")
        # A guest that asks for no connection costs no process.
        assert vm._running().network_pid is None
        assert vm.run(["wget", "http://192.168.77.1/"], text=True, timeout=30).returncode != 0
        assert [d.address for d in vm.network.denials()] == ["192.168.77.1"]
        assert vm._running().network_pid is not None
    with VM(BUSYBOX, network="none") as vm:
        assert "inet" not in output(vm, "ip addr show eth0")
    monkeypatch.setenv("SUPERMACHINE_NETWORK", "none 10.99.0.0/16")
    with VM(BUSYBOX) as vm:
        assert vm.run(["wget", "http://192.168.77.1/"], text=True, timeout=30).returncode != 0
        (told,) = vm.network.denials()
        assert told.reason == "no rule allows it"


def test_a_snapshots_machine_reaches_no_more_than_it_did(tmp_path: Path) -> None:
    with VM(BUSYBOX, network="none", bake=False) as vm:
        snapshot = vm.snapshot(tmp_path / "none")
    with snapshot.restore() as vm:
        assert not vm._running().has_network
    with snapshot.restore(network="public") as vm:
        assert "10.0.2.15/24" in output(vm, "ip -4 addr show eth0")
        assert output(vm, "cat /etc/resolv.conf").startswith("nameserver 10.0.2.2\n")


@pytest.mark.parametrize("executable", ["/etc/hosts", "/bin/false"])
def test_a_policy_process_that_does_not_start_leaves_the_rest_as_it_is(
    executable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPERMACHINE_NETD", executable)
    with VM(BUSYBOX) as vm:
        assert output(vm, "echo works") == "works\n"
        done = vm.run(["wget", "http://1.1.1.1/"], text=True, timeout=30)
        assert done.returncode != 0
        (told,) = vm.network.denials()
        assert told.protocol == "any"
        assert "policy process" in str(told)
        assert output(vm, "echo works") == "works\n"


@pytest.mark.parametrize("before", ["file", "link"])
def test_name_servers_of_the_image_give_way_to_the_guests_own(before: str, tmp_path: Path) -> None:
    image, rest = tmp_path / "image.tar", io.BytesIO()
    with tarfile.open(fileobj=rest, mode="w") as layer:
        entry = tarfile.TarInfo("etc/resolv.conf")
        if before == "file":
            data = b"nameserver 192.0.2.1\n"
            entry.size = len(data)
            layer.addfile(entry, io.BytesIO(data))
        else:
            entry.type, entry.linkname = tarfile.SYMTYPE, "../run/systemd/resolve/stub-resolv.conf"
            layer.addfile(entry)
    with_layer(BUSYBOX, rest.getvalue(), image)
    with VM(image, bake=False) as vm:
        assert output(vm, "cat /etc/resolv.conf").startswith("nameserver 10.0.2.2\n")
        (fork,) = vm.fork(1)
        with fork:
            assert output(fork, "cat /etc/resolv.conf").startswith("nameserver 10.0.2.2\n")
        vm.path("/etc/resolv.conf").write_text("nameserver 192.0.2.7\n")
        (fork,) = vm.fork(1)
        with fork:
            assert output(fork, "cat /etc/resolv.conf") == "nameserver 192.0.2.7\n"


def test_rules_change_while_it_runs_and_what_they_no_longer_allow_is_reset(tmp_path: Path) -> None:
    audit = tmp_path / "audit"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        VM(BUSYBOX, network=Network("none", audit=audit), allow=["host"], bake=False) as vm,
    ):
        port = server.getsockname()[1]
        held = vm.popen(["sh", "-c", f"sleep 600 | nc host.docker.internal {port}"])
        connection, _ = server.accept()
        (flow,) = [flow for flow in vm.network.flows() if flow.protocol == "tcp"]
        assert (flow.address, flow.port) == ("10.0.2.2", port)
        vm.network.update(deny=[f"host:{port}"])
        with connection, pytest.raises(ConnectionResetError):
            connection.recv(1)
        assert [flow for flow in vm.network.flows() if flow.protocol == "tcp"] == []
        assert output(vm, "while pidof nc; do sleep 0.1; done").strip("0123456789\n") == ""
        held.kill()
        assert vm.run(["nc", "host.docker.internal", str(port)], timeout=60).returncode != 0
        (denial,) = vm.network.denials()
        assert (denial.port, denial.rule) == (port, f"host:{port}")
        assert vm.network.policy == Network("none", allow=["host"], deny=[f"host:{port}"], audit=audit)
        vm.network.update("none", allow=[f"host:{port}"])
        again = vm.popen(["nc", "host.docker.internal", str(port)])
        server.accept()[0].close()
        again.wait(60)
    events = [json.loads(line) for line in audit.read_text().splitlines()]
    told = [(event["event"], event["protocol"], event["port"]) for event in events if event["port"] == port]
    assert told[:3] == [("opened", "tcp", port), ("closed", "tcp", port), ("denied", "tcp", port)]
    assert len({event["machine"] for event in events}) == 1


def test_a_machine_without_a_network_gets_none_by_an_update() -> None:
    with VM(BUSYBOX, network="none") as vm, pytest.raises(NotSupported):
        vm.network.update("public")


def test_the_command_line_says_what_is_allowed_and_denied(port: int) -> None:
    def fetched(*options: str) -> subprocess.CompletedProcess[str]:
        url = f"http://host.docker.internal:{port}/"
        command = [
            sys.executable,
            "-m",
            "supermachine",
            "run",
            *options,
            str(BUSYBOX),
            "wget",
            "-q",
            "-O",
            "/dev/null",
            url,
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    refused = fetched()
    assert refused.returncode == 1
    assert f"--allow host:{port} lets it" in refused.stderr
    assert fetched("--allow", f"host:{port}").returncode == 0
    assert fetched("--allow", "host", "--deny", f"host:{port}").returncode == 1
    assert "is not a rule" in fetched("--allow", "127.1").stderr


@pytest.mark.parametrize("rule", ["127.1", "exa mple", "10.0.0.1/8", "host:0", "*"])
def test_what_is_no_rule_is_an_error_that_says_so(rule: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a rule"):
        Network(allow=[rule])


def test_a_command_that_fails_is_told_what_was_denied() -> None:
    command = [
        sys.executable,
        "-m",
        "supermachine",
        "run",
        "--network",
        "public",
        str(BUSYBOX),
        "wget",
        "http://192.168.77.1/",
    ]

    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "denied 192.168.77.1:80 by tcp: its address is not public" in done.stderr
