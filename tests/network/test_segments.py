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


def test_members_reach_each_other_by_ipv6_whatever_the_host_has(db: VM, web: VM) -> None:
    addresses = (db.network.address_v6, web.network.address_v6)
    assert addresses[0] != addresses[1]
    for vm, address in zip((db, web), addresses, strict=True):
        assert f"{address}/64" in vm.run(["ip", "-6", "addr", "show", "eth0"], text=True, check=True).stdout
    found = web.run(["nslookup", "-type=aaaa", "db"], text=True, check=True, timeout=60).stdout
    assert str(addresses[0]) in found
    assert "1 packets received" in web.run(["ping", "-6", "-c", "1", "db"], text=True, check=True, timeout=60).stdout
    assert fetch(web, f"http://[{addresses[0]}]/") == "from db"
    assert fetch(db, f"http://[{addresses[1]}]:8080/") == "from web"
    assert "Connection refused" in fails(web, f"http://[{addresses[0]}]:81/")
    # An address that no member has.
    assert fails(web, "http://[fd53:4d2f:9c17::a00:2fe]/")
    assert web.network.denials()[-1].address == "fd53:4d2f:9c17::a00:2fe"
    seen = {flow.address for flow in web.network.flows()}
    assert seen <= {*addresses, db.network.address, "10.0.2.2"}


def test_a_datagram_by_ipv6_that_nobody_takes_is_refused(db: VM, web: VM) -> None:
    asked = web.run(["nslookup", "-type=a", "there.test", str(db.network.address_v6)], text=True, timeout=60)
    assert "Connection refused" in asked.stdout + asked.stderr


def test_many_bytes_come_by_ipv6_as_they_are(db: VM, web: VM) -> None:
    db.run("head -c 4194304 /dev/urandom > /www/more", shell=True, check=True)
    expected = db.run(["sha256sum", "/www/more"], text=True, check=True).stdout.split()[0]
    url = f"http://[{db.network.address_v6}]/more"
    got = web.run(f"wget -q -O - {url} | sha256sum", shell=True, text=True, check=True, timeout=300).stdout
    assert got.split()[0] == expected


def test_names_lead_to_ipv4_alone_where_the_segment_is_so(db: VM) -> None:
    with VM(BUSYBOX, network=Network.private("elsewhere"), hostname="four") as vm:
        for machine, name in ((vm, "four"), (db, "five")):
            machine.network.join("v4", [name], ipv6=False)
        found = vm.run(["nslookup", "five"], text=True, timeout=60).stdout
        assert (str(db.network.address) in found, "fd53" in found) == (True, False)
        assert fetch(vm, "http://five/") == "from db"
        assert fails(vm, f"http://[{db.network.address_v6}]/")
        assert vm.network.denials()[-1].address == db.network.address_v6
    db.network.leave("v4")


def test_a_member_that_has_turned_ipv6_off_is_reached_by_ipv4(web: VM) -> None:
    with VM(BUSYBOX, network=SHOP, hostname="old") as vm:
        vm.run(["sysctl", "-w", "net.ipv6.conf.all.disable_ipv6=1"], check=True, capture_output=True)
        serve(vm, "by four")
        assert "refused" in fails(web, f"http://[{vm.network.address_v6}]/")
        assert fetch(web, f"http://{vm.network.address}/") == "by four"


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
        for host in (db.network.address, f"[{db.network.address_v6}]"):
            assert "Connection refused" in fails(vm, f"http://{host}/")
            assert vm.network.denials()[-1].rule == "db:80"
        assert {denial.address for denial in vm.network.denials()} == {db.network.address, db.network.address_v6}


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
        assert fork.network.address_v6 not in (None, db.network.address_v6)
        assert fetch(fork, f"http://[{db.network.address_v6}]/") == "from db"
        held = fork.run(["ip", "-6", "addr", "show", "eth0"], text=True, check=True).stdout
        assert (f"{fork.network.address_v6}/64" in held, str(db.network.address_v6) in held) == (True, False)
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
