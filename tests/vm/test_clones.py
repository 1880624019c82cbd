"""Clones are safe: what two guests of one snapshot share and what they must not, and that the guest's work goes on.

docs/concepts/clones.md lists the hazards and names these tests.
"""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from supermachine import VM, GuestPath, Snapshot, errors
from supermachine.machine import launch

from .guests import answer, output, wait_for

pytestmark = pytest.mark.vm

#: Moments at which the determinism test captures its guest.
MOMENTS = int(os.environ.get("SUPERMACHINE_TEST_MOMENTS", "6"))


SCRIPT = r"""
# A machine-id, as images have one.
echo 00000000000000000000000000000000 > /etc/machine-id
# Writes its host name and the monotonic clock as fast as it can.
(while true; do echo "$(hostname) $(cut -d' ' -f1 /proc/uptime)"; done > /tmp/log) &
# Sleeps, on a timer that is pending at the capture.
(sleep 2; echo woke > /tmp/woke) &
# A pipe with data that nobody has read yet.
(echo "through a pipe"; sleep 1000) | (sleep 2; head -n 1 > /tmp/piped) &
# A file that is open and has no name any more, written by an open descriptor.
(exec 3<> /tmp/nameless; rm /tmp/nameless; echo "still here" >&3; sleep 2; head -n 1 < /proc/self/fd/3 > /tmp/named) &
dd if=/dev/urandom of=/tmp/large bs=1M count=8 2> /dev/null
sha256sum /tmp/large > /tmp/large.sum
sleep 1
"""


@pytest.fixture(scope="module")
def year_old(busybox: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Snapshot]:
    """A snapshot of a guest at work, taken, as far as the guest knows, a year ago."""
    with VM(busybox, vcpus=2) as vm:
        vm.run(["sh", "-c", f"({SCRIPT}) > /dev/null 2>&1"], check=True)
        output(vm, f"date -s @{int(time.time()) - 365 * 86400}")
        yield vm.snapshot(tmp_path_factory.mktemp("clones") / "year-old")


@pytest.fixture(scope="module")
def clones(year_old: Snapshot) -> Iterator[list[VM]]:
    """Three of them."""
    made = [year_old.restore() for _ in range(3)]
    yield made
    for vm in made:
        vm.kill()


def all_differ(clones: list[VM], command: str) -> bool:
    said = [output(vm, command) for vm in clones]
    assert all(said)
    return len(set(said)) == len(said)


#: The random of a TLS client's first message, and the key share that it offers (RFC 8446, 4.1.2 and 4.2.8).
CLIENT_HELLO = """
import ssl
out = ssl.MemoryBIO()
client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), out, server_hostname="example.org")
try:
    client.do_handshake()
except ssl.SSLWantReadError:
    pass
hello = out.read()
assert hello[0] == 22 and hello[5] == 1, hello
share = hello.index(bytes.fromhex("001d0020")) + 4  # x25519, 32 bytes
print(hello[11:43].hex(), hello[share : share + 32].hex())
"""


def test_randoms_and_keys_of_tls_sessions_differ(debian: Path) -> None:
    with VM(debian, user="root") as vm:
        # OpenSSL is in the guest's page cache, and its process long gone, when the clones are made.
        hellos = [str(vm.run(["python3", "-c", CLIENT_HELLO], text=True, check=True).stdout)]
        # As many as a template makes.
        clones = vm.fork(4)
        try:
            for clone in clones:
                hellos.append(str(clone.run(["python3", "-c", CLIENT_HELLO], text=True, check=True).stdout))
        finally:
            for clone in clones:
                clone.kill()
    fields = [field for hello in hellos for field in hello.split()]
    assert len(fields) == 10
    assert len(set(fields)) == 10


def test_the_kernels_random_numbers_differ(clones: list[VM]) -> None:
    # The generator behind getrandom(2) is the one behind both of these.
    assert all_differ(clones, "cat /proc/sys/kernel/random/uuid")
    assert all_differ(clones, "head -c 32 /dev/urandom | sha256sum")


def test_machine_id_and_host_name_differ(clones: list[VM]) -> None:
    assert all_differ(clones, "cat /etc/machine-id")
    assert all_differ(clones, "hostname")
    for vm in clones:
        machine_id = output(vm, "cat /etc/machine-id").strip()
        assert len(machine_id) == 32 and int(machine_id, 16)
        name = output(vm, "hostname").strip()
        assert output(vm, "grep 127.0.1.1 /etc/hosts; cat /etc/hostname") == f"127.0.1.1\t{name}\n{name}\n"


def test_the_clock_is_right_in_a_clone_of_a_year_old_snapshot(clones: list[VM]) -> None:
    for vm in clones:
        probe = vm.path("/tmp/probe")
        before = time.time()
        probe.write_bytes(b"")
        after = time.time()
        assert before - 0.05 <= probe.stat().st_mtime <= after + 0.05


def log(vm: VM) -> list[tuple[str, float]]:
    lines = vm.path("/tmp/log").read_text().splitlines()[:-1]
    return [(name, float(uptime)) for name, uptime in (line.split() for line in lines)]


def logs_its_name(vm: VM) -> bool:
    return output(vm, "hostname").strip() in {name for name, _ in log(vm)}


def test_monotonic_time_never_goes_back(clones: list[VM]) -> None:
    for vm in clones:
        names = {name for name, _ in log(vm)}
        wait_for(partial(logs_its_name, vm), "the clone's own name in its log")
        times = [uptime for _, uptime in log(vm)]
        assert times == sorted(times)
        # And not far ahead: a year has not passed on it.
        assert times[-1] < 600
        assert names


def test_nothing_of_the_users_runs_before_the_clone_is_somebody_else(clones: list[VM]) -> None:
    logs = [log(vm) for vm in clones]
    originals = [[entry for entry in entries if entry[0] == entries[0][0]] for entries in logs]
    # A process that ran on in a clone under the original's name would have written more of these there. One line may
    # have been under way: its name was asked for before the capture.
    shortest = min(len(entries) for entries in originals)
    assert all(len(entries) - shortest <= 1 for entries in originals)
    for vm, entries, old in zip(clones, logs, originals, strict=True):
        own = output(vm, "hostname").strip()
        assert {name for name, _ in entries[len(old) :]} <= {own}


def written(path: GuestPath) -> bool:
    """Whether the file has contents: it is there a moment before them."""
    return path.exists() and bool(path.read_text())


def test_processes_go_on_with_what_they_had(clones: list[VM]) -> None:
    for vm in clones:
        for name in ("named", "woke", "piped"):
            wait_for(partial(written, vm.path(f"/tmp/{name}")), f"something in /tmp/{name}")
        assert vm.path("/tmp/piped").read_text() == "through a pipe\n"
        assert vm.path("/tmp/named").read_text() == "still here\n"
        assert output(vm, "sha256sum /tmp/large") == vm.path("/tmp/large.sum").read_text()


def test_a_clone_of_a_guest_without_processes_is_somebody_else(busybox: str) -> None:
    names = "cat /etc/hostname; grep 127.0.1.1 /etc/hosts"
    with VM(busybox) as vm:
        own = output(vm, "hostname").strip()
        clones = vm.fork(4)
        try:
            for clone in clones:
                name = output(clone, "hostname").strip()
                assert name != own
                assert output(clone, names) == f"{name}\n127.0.1.1\t{name}\n"
            assert all_differ(clones, "cat /proc/sys/kernel/random/uuid")
        finally:
            for clone in clones:
                clone.kill()
        assert output(vm, names) == f"{own}\n127.0.1.1\t{own}\n"
        # What its user has written stays, be it before one capture or after it and before another.
        for path in ("/etc/hosts", "/etc/hostname"):
            output(vm, f"echo mine > {path}")
            (clone,) = vm.fork(1)
            with clone:
                assert output(clone, f"cat {path}") == "mine\n"
                assert output(clone, "hostname").strip() != own


def test_processes_in_a_group_of_their_own_stand_still_too(busybox: str) -> None:
    group = "/sys/fs/cgroup/supermachine/own"
    loop = 'while true; do echo "$(hostname)"; done > /tmp/own'
    with VM(busybox) as vm:
        # The group above it has the process alone that waits to become a command.
        output(vm, f"mkdir {group}; (echo 0 > {group}/cgroup.procs; {loop}) > /dev/null 2>&1 &")
        wait_for(lambda: vm.path("/tmp/own").exists() and vm.path("/tmp/own").stat().st_size > 200, "its log")
        own = output(vm, "hostname").strip()
        clones = vm.fork(3)
    try:
        before = []
        for clone in clones:
            name = output(clone, "hostname").strip()
            wait_for(partial(_says, clone, name), "the clone's own name in its log")
            lines = clone.path("/tmp/own").read_text().split()
            before.append(lines.index(name))
            assert set(lines[: before[-1]]) == {own}
        # One line may have been under way.
        assert max(before) - min(before) <= 1
    finally:
        for clone in clones:
            clone.kill()


def _says(vm: VM, name: str) -> bool:
    return name in vm.path("/tmp/own").read_text().split()


def test_commands_that_begin_while_the_guest_is_captured_run_once(busybox: str, tmp_path: Path) -> None:
    with VM(busybox) as vm, ThreadPoolExecutor(3) as executor:
        own = output(vm, "hostname; touch /log").strip()
        over = threading.Event()

        def ask() -> int:
            asked = 0
            while not over.is_set():
                assert vm.run(["sh", "-c", "echo $(hostname) >> /log"]).returncode == 0
                asked += 1
            return asked

        asking = [executor.submit(ask) for _ in range(3)]
        try:
            snapshots = [vm.snapshot(tmp_path / str(number)) for number in range(6)]
        finally:
            over.set()
        asked = sum(future.result() for future in asking)
        assert asked > 0
        assert output(vm, "cat /log") == f"{own}\n" * asked
    for snapshot in snapshots:
        with snapshot.restore() as clone:
            # Those that had begun go on, as somebody else.
            assert {own, output(clone, "hostname").strip()} >= set(output(clone, "cat /log").split())


def test_a_clone_that_cannot_confirm_does_not_start(year_old: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent takes at most 64 bytes of entropy; more is a step of the renewal that fails."""
    urandom = os.urandom
    monkeypatch.setattr(launch.os, "urandom", lambda size: urandom(65 if size == 64 else size))
    with pytest.raises(errors.RenewFailed) as caught:
        year_old.restore()
    assert caught.value.code == "vm.renew-failed"
    assert "identity" in str(caught.value)


def test_connections_of_the_original_are_reset_and_new_ones_work(busybox: str, tmp_path: Path) -> None:
    serve = "while true; do echo answer | nc -l -p 80; done"
    with VM(busybox, ports={"80/tcp": None}) as vm:
        server = vm.popen(serve, shell=True)
        (address,) = vm.ports["80/tcp"]
        wait_for(lambda: answer(address, b"question\n") == b"answer\n", "an answer of the original")
        snapshot = vm.snapshot(tmp_path / "snapshot")
        with snapshot.restore() as clone:
            # Its own port of the host, and the process that listens in the guest is the original's.
            (other,) = clone.ports["80/tcp"]
            assert other != address
            wait_for(lambda: answer(other, b"question\n") == b"answer\n", "an answer of the clone")
            wait_for(lambda: answer(address, b"question\n") == b"answer\n", "an answer of the original")
            with pytest.raises(errors.PortUnavailable):
                snapshot.restore(ports="same")
        assert server.poll() is None
    with snapshot.restore(ports="same") as clone:
        assert clone.ports == {"80/tcp": [address]}
        wait_for(lambda: answer(address, b"question\n") == b"answer\n", "an answer of the clone")


# Determinism.

STEPS = 12_000
#: Both vCPUs are busy, one with floating point in vector registers, one with integers; timers are pending.
WORK = f"""
exec > /tmp/out 2>&1
(awk 'BEGIN {{ x = 0.4; for (i = 0; i < {STEPS}; i++) x = 3.9 * x * (1 - x); printf "%.17g\\n", x }}' > /tmp/x) &
(h=start; i=0; while [ $i -lt 30 ]; do h=$(echo "$h" | sha256sum); i=$((i+1)); done; echo "$h" > /tmp/h) &
(i=0; while [ $i -lt 20 ]; do sleep 0.05; i=$((i+1)); done; echo $i > /tmp/t) &
wait
cat /tmp/x /tmp/h /tmp/t > /tmp/partial
mv /tmp/partial /tmp/result
"""


def expected() -> str:
    import hashlib

    x = 0.4
    for _ in range(STEPS):
        x = 3.9 * x * (1 - x)
    assert math.isfinite(x)
    chain = "start"
    for _ in range(30):
        chain = hashlib.sha256(f"{chain}\n".encode()).hexdigest() + "  -"
    return f"{x:.17g}\n{chain}\n20\n"


def result(vm: VM) -> str:
    wait_for(vm.path("/tmp/result").exists, "a result of the work", 300)
    return vm.path("/tmp/result").read_text()


def test_work_that_is_captured_at_any_moment_ends_with_the_same_result(busybox: str, tmp_path: Path) -> None:
    with VM(busybox, vcpus=2, memory="128m") as vm:
        began = time.monotonic()
        vm.popen(["sh", "-c", WORK])
        assert result(vm) == expected()
        took = time.monotonic() - began
    done = 0
    while done < MOMENTS:
        with VM(busybox, vcpus=2, memory="128m") as vm:
            vm.popen(["sh", "-c", WORK])
            # A few captures of one run, each of which is restored.
            snapshots = []
            for number in range(min(3, MOMENTS - done)):
                time.sleep(random.uniform(0, took / 4))
                snapshots.append(vm.snapshot(tmp_path / f"{done}-{number}"))
            assert result(vm) == expected()
        for snapshot in snapshots:
            with snapshot.restore() as clone:
                assert result(clone) == expected()
            snapshot.delete()
        done += len(snapshots)


def test_a_clone_in_a_process_of_its_own_ends_with_the_same_result(busybox: str, tmp_path: Path) -> None:
    with VM(busybox, vcpus=2, memory="128m") as vm:
        vm.popen(["sh", "-c", WORK])
        time.sleep(0.3)
        snapshot = vm.snapshot(tmp_path / "snapshot")
    script = (
        "import sys, time, supermachine\n"
        "with supermachine.VM.restore(sys.argv[1]) as vm:\n"
        "    while not vm.path('/tmp/result').exists(): time.sleep(0.05)\n"
        "    print(vm.path('/tmp/result').read_text(), end='')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, snapshot.path], capture_output=True, text=True, timeout=300)
    assert done.stdout == expected(), done.stderr
