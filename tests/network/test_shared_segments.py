"""Private segments of all processes of a user: programs, and machines with names, in a directory apart."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from supermachine import VM, Network
from supermachine.errors import ConfigurationError, RuntimeDirectoryNotTrusted
from supermachine.network import policy

from .test_segments import BUSYBOX, fails, fetch, serve

SEGMENT = "across"
#: A program of its own whose machine says which address it has, and lives until its input ends.
OTHER = """
import sys
from supermachine import VM, Network
sys.path.insert(0, sys.argv[2])
from tests.network.test_segments import serve
with VM(sys.argv[1], network=Network.private("across", "none", shared=True), hostname="db") as vm:
    serve(vm, "from db")
    print(vm.network.address, vm.network.address_v6, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module", autouse=True)
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("runtime")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUPERMACHINE_RUNTIME", str(place))
        yield place


@pytest.fixture
def web(runtime: Path) -> Iterator[VM]:
    with VM(BUSYBOX, network=f"none segment:{SEGMENT}", hostname="web") as vm:
        serve(vm, "from web", 8080)
        yield vm


def test_machines_of_two_programs_reach_each_other_until_one_is_killed(web: VM, runtime: Path) -> None:
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", OTHER, str(BUSYBOX), root]
    with subprocess.Popen(command, stdin=-1, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        address, v6 = other.stdout.readline().split()
        assert address.startswith("10.0.3.") and address != web.network.address
        for host in ("db", address, f"[{v6}]"):
            assert fetch(web, f"http://{host}/") == "from db", host
        assert "1 packets received" in web.run(["ping", "-c", "1", "db"], text=True, timeout=60).stdout
        assert v6 in web.run(["nslookup", "-type=aaaa", "db"], text=True, timeout=60).stdout
        held = web.popen(["nc", "db", "80"], stdin=-1)
        assert "Connection refused" in fails(web, "http://db:81/")
        other.kill()
        other.wait()
        assert held.wait(60) is not None
    assert "bad address" in fails(web, "http://db/")
    # Who comes next takes away what it has left.
    assert (runtime / "segments" / address).is_socket()
    web.network.join("another", [])
    assert not (runtime / "segments" / address).exists()


def test_a_machine_with_a_name_is_on_it(web: VM) -> None:
    run = [sys.executable, "-m", "supermachine"]
    start = ["run", "-d", "--rm", "--name", "cache", "--network", f"none segment:{SEGMENT}", str(BUSYBOX)]
    env = {**os.environ, "SUPERMACHINE_NETWORK": "none"}
    # Its line is there once it serves.
    service = "echo $(wget -q -O - http://web:8080/); echo x > /index.html; httpd -f -p 80 -h /"
    subprocess.run([*run, *start, "--", "sh", "-c", service], check=True, env=env, stdout=-3)
    try:
        web.run("until wget -q -O - http://cache/; do sleep 0.1; done", shell=True, check=True, timeout=120)
        said = subprocess.run([*run, "logs", "cache"], check=True, env=env, capture_output=True, text=True)
        assert "from web" in said.stdout
    finally:
        subprocess.run([*run, "rm", "-f", "cache"], check=True, env=env, stdout=-3)


def test_segments_apart_and_forks_and_those_that_leave(web: VM) -> None:
    with VM(BUSYBOX, network="none segment:elsewhere", hostname="stranger") as vm:
        assert "bad address" in fails(vm, "http://web:8080/")
        assert "Connection refused" in fails(vm, f"http://{web.network.address}:8080/")
        vm.network.join(SEGMENT, ["visitor"])
        assert fetch(vm, "http://web:8080/") == "from web"
        (fork,) = vm.fork(1)
        with fork:
            assert fork.network.address not in (vm.network.address, web.network.address, None)
        vm.network.leave(SEGMENT)
        assert "bad address" in fails(vm, "http://web:8080/")


def test_a_word_of_the_network_names_the_segment() -> None:
    found = policy.network("segment:shop")
    assert (found.preset, found.segments, found.shared) == ("public", (("shop", ()),), True)
    found = policy.network("none host:80 segment:shop segment:more !evil.test")
    assert (found.preset, found.allow, found.deny) == ("none", ("host:80",), ("evil.test",))
    assert [name for name, _ in found.segments] == ["shop", "more"]
    assert not Network.private("shop").shared
    for wrong in ("segment:", "segment:../x", "segment:a/b"):
        with pytest.raises(ConfigurationError, match="no name of a segment"):
            policy.network(wrong)


def test_a_directory_that_others_can_write_to_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERMACHINE_RUNTIME", str(tmp_path / "runtime"))
    (tmp_path / "runtime" / "segments").mkdir(parents=True)
    (tmp_path / "runtime" / "segments").chmod(0o777)
    with pytest.raises(RuntimeDirectoryNotTrusted, match="can be written by other users"):
        VM(BUSYBOX, network="segment:shop").start()
