"""Machines on a private segment, with busybox's programs in real guests."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from supermachine import VM, Network
from supermachine.errors import ConfigurationError, NotSupported

BUSYBOX = Path(__file__).parents[2] / "demo" / "busybox.oci.tar"
SHOP = Network.private("shop", "none", names=["member"])


def serve(vm: VM, text: str, port: int = 80) -> None:
    vm.path("/www").mkdir()
    vm.path("/www/index.html").write_text(text)
    vm.popen(["httpd", "-f", "-p", str(port), "-h", "/www"])
    vm.run(f"until wget -q -O /dev/null http://127.0.0.1:{port}/; do sleep 0.1; done", shell=True, timeout=60)


def fetch(vm: VM, url: str) -> str:
    return str(vm.run(["wget", "-q", "-O", "-", url], text=True, check=True, timeout=60).stdout)


def fails(vm: VM, url: str) -> str:
    done = vm.run(["wget", "-O", "-", url], text=True, timeout=60)
    assert done.returncode != 0
    return str(done.stderr)


@pytest.fixture(scope="module")
def db() -> Iterator[VM]:
    with VM(BUSYBOX, network=SHOP, hostname="db") as vm:
        serve(vm, "from db")
        yield vm


@pytest.fixture(scope="module")
def web(db: VM) -> Iterator[VM]:
    with VM(BUSYBOX, network=SHOP, hostname="web") as vm:
        serve(vm, "from web", 8080)
        yield vm


def test_members_reach_each_other_by_name_and_address(db: VM, web: VM) -> None:
    assert fetch(web, "http://db/") == "from db"
    assert fetch(db, "http://web:8080/") == "from web"
    assert db.network.address != web.network.address
    assert fetch(web, f"http://{db.network.address}/") == "from db"
    assert {(f.address, f.port) for f in web.network.flows()} <= {(db.network.address, 80), ("10.0.2.2", 53)}


def test_a_guest_has_the_address_that_others_know(db: VM, web: VM) -> None:
    said = db.run(["ip", "-4", "addr", "show", "eth0"], text=True, check=True).stdout
    assert f"{db.network.address}/24" in said
    assert "1 packets received" in web.run(["ping", "-c", "1", "db"], text=True, check=True, timeout=60).stdout


def test_a_name_that_several_have_leads_to_each(db: VM, web: VM) -> None:
    said = web.run(["nslookup", "member"], text=True, check=True, timeout=60).stdout
    assert str(db.network.address) in said
    assert str(web.network.address) in said


def test_a_port_that_nobody_listens_at_is_refused_at_once(web: VM, db: VM) -> None:
    assert "Connection refused" in fails(web, "http://db:81/")


def test_many_bytes_come_as_they_are(db: VM, web: VM) -> None:
    db.run("head -c 16777216 /dev/urandom > /www/data", shell=True, check=True)
    expected = db.run(["sha256sum", "/www/data"], text=True, check=True).stdout.split()[0]
    got = web.run("wget -q -O - http://db/data | sha256sum", shell=True, text=True, check=True, timeout=300).stdout
    assert got.split()[0] == expected


def test_others_are_not_there_for_who_is_not_on_the_segment(db: VM) -> None:
    with VM(BUSYBOX, network=Network.private("elsewhere", "public"), hostname="stranger") as vm:
        assert "Connection refused" in fails(vm, f"http://{db.network.address}/")
        assert "bad address" in fails(vm, "http://db/")
        (told,) = [d for d in vm.network.denials() if d.address == db.network.address]
        assert told.protocol == "tcp"
    with VM(BUSYBOX, network="public") as vm:
        assert "Connection refused" in fails(vm, f"http://{db.network.address}/")
        with pytest.raises(NotSupported, match="address of its own"):
            vm.network.join("shop", ["other"])


def test_rules_that_deny_hold(db: VM) -> None:
    with VM(BUSYBOX, network=Network.private("shop", deny=["db:80"]), hostname="held") as vm:
        assert "Connection refused" in fails(vm, f"http://{db.network.address}/")
        assert vm.network.denials()[-1].rule == "db:80"


def test_members_come_and_go(db: VM) -> None:
    with VM(BUSYBOX, network=Network.private("elsewhere"), hostname="guest") as vm:
        vm.network.join("shop", ["visitor"])
        assert fetch(vm, "http://db/") == "from db"
        held = vm.popen(["nc", "db", "80"], stdin=-1)
        deadline = time.monotonic() + 60
        while not any(flow.port == 80 and flow.name == "db" for flow in vm.network.flows()):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        vm.network.leave("shop")
        assert held.wait(60) is not None
        assert "bad address" in fails(vm, "http://db/")
    assert "NXDOMAIN" in str(db.run(["nslookup", "visitor"], text=True, timeout=60))


def test_forks_are_members_with_addresses_of_their_own(db: VM) -> None:
    (fork,) = db.fork(1)
    with fork:
        assert fork.network.address not in (None, db.network.address)
        said = db.run(["nslookup", "member"], text=True, check=True, timeout=60).stdout
        assert str(fork.network.address) in said
        assert fetch(fork, "http://db/") == "from db"


def test_a_member_that_is_killed_leaves_nobody_waiting(web: VM) -> None:
    vm = VM(BUSYBOX, network=SHOP, hostname="short").start()
    serve(vm, "soon gone")
    held = web.popen(["nc", "short", "80"], stdin=-1)
    assert fetch(web, "http://short/") == "soon gone"
    vm.kill()
    assert held.wait(60) is not None
    assert "bad address" in fails(web, "http://short/")


def test_names_are_checked() -> None:
    with pytest.raises(ConfigurationError, match="no name of a machine"):
        Network.private("shop", names=["a b"])
