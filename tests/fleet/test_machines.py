"""Machines of a fleet: on this host and on others, and what becomes of everybody when a host or a client is killed."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from supermachine import VM, errors
from supermachine.fleet import Fleet

from ..processes import pipes
from .conftest import BUSYBOX, SMALL

pytestmark = pytest.mark.vm


def workers_of(pid: int) -> list[int]:
    """The worker processes below a process."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            name = (entry / "comm").read_text().strip()
        except OSError:
            continue
        if int(fields[1]) == pid and name.startswith("supermachine-wo"):
            found.append(int(entry.name))
    return found


def gone(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("driver", ["local", "processes"])
def test_a_machine_of_a_fleet_is_like_one_of_this_host(driver: str, tmp_path: Path) -> None:
    options = {"hosts": 1} if driver == "processes" else None
    with Fleet(BUSYBOX, driver=driver, per_host=4, driver_options=options, environment={"A": "b"}, **SMALL) as fleet:
        with fleet.acquire() as vm:
            assert vm.run("echo $A; echo err >&2; exit 3", shell=True, text=True).stdout == "b\n"
            with pytest.raises(subprocess.CalledProcessError):
                vm.run(["false"], check=True)
            with pytest.raises(subprocess.TimeoutExpired):
                vm.run(["sleep", "60"], timeout=0.2)
            with pytest.raises(errors.CommandNotFound):
                vm.run(["no-such-program"])
            data = os.urandom(3_000_000)
            assert vm.run(["cat"], input=data).stdout == data
            vm.path("/tmp/data").write_bytes(data)
            assert vm.path("/tmp/data").read_bytes() == data
            (tmp_path / "tree").mkdir()
            (tmp_path / "tree" / "a").write_text("a")
            vm.copy_in(tmp_path / "tree", "/tmp/tree")
            vm.copy_out("/tmp/tree", tmp_path / "back")
            assert (tmp_path / "back" / "a").read_text() == "a"
            clones = vm.fork(2)
            assert [clone.path("/tmp/data").stat().st_size for clone in clones] == [len(data)] * 2
            names = {machine.run(["hostname"], text=True).stdout for machine in (vm, *clones)}
            assert len(names) == 3
            with pytest.raises(errors.FleetFull):
                vm.fork(9)
            for clone in clones:
                clone.kill()
            taken = vm.snapshot(tmp_path / "snapshot")
            assert taken.id is not None
        assert not vm.running
        with pytest.raises(errors.VMExited):
            vm.run(["true"])
        with VM.restore(tmp_path / "snapshot") as again:
            assert again.path("/tmp/data").read_bytes() == data
        assert fleet.hosts[0].in_use == 0
    with Fleet(snapshot=str(tmp_path / "snapshot"), per_host=1) as fleet, fleet.acquire() as vm:
        assert vm.path("/tmp/data").stat().st_size == len(data)


def test_work_is_spread_bounded_and_in_order(fleet: Fleet) -> None:
    def work(vm, number):  # type: ignore[no-untyped-def]
        return vm.host, int(vm.run(["echo", str(number * number)], text=True).stdout)

    done = list(fleet.map(work, range(18)))
    assert [value for _, value in done] == [n * n for n in range(18)]
    assert len({host for host, _ in done}) == 2
    held = [fleet.acquire() for _ in range(6)]
    assert sorted(vm.host for vm in held) == ["process-0"] * 3 + ["process-1"] * 3
    with pytest.raises(errors.FleetFull, match="6 of 6") as full:
        fleet.acquire(timeout=0.1)
    assert full.value.retry_after is not None and isinstance(full.value, TimeoutError)
    waiting = threading.Thread(target=lambda: held.append(fleet.acquire(timeout=60)))
    waiting.start()
    time.sleep(0.3)
    fleet._max_queue = 1
    with pytest.raises(errors.FleetFull, match="others wait"):
        fleet.acquire()
    held[2].kill()
    waiting.join()
    assert held[-1].host == held[2].host
    with pytest.raises(errors.ConfigurationError, match="labels"):
        fleet.acquire(labels={"zone": "b"})
    pid = fleet.hosts[1].labels["pid"]
    held[-1].kill()
    for vm in [vm for vm in held if vm.host == "process-1"]:
        vm.kill()
    assert fleet.acquire(labels={"pid": pid}).host == "process-1"


def test_a_host_is_drained(fleet: Fleet) -> None:
    with pytest.raises(errors.ConfigurationError, match="no host 'nowhere'"):
        fleet.drain("nowhere")
    held = [fleet.acquire() for _ in range(2)]
    assert {vm.host for vm in held} == {"process-0", "process-1"}
    leaving = next(vm for vm in held if vm.host == "process-0")
    assert not fleet.drain("process-0", timeout=0.1)
    assert [host.draining for host in fleet.hosts] == [True, False] and fleet.capacity == 3
    assert leaving.run(["echo", "still"], text=True).stdout == "still\n"
    assert fleet.acquire().host == fleet.acquire().host == "process-1"
    with pytest.raises(errors.FleetFull):
        fleet.acquire(timeout=0.1)
    done: list[bool] = []
    draining = threading.Thread(target=lambda: done.append(fleet.drain("process-0", timeout=60)))
    draining.start()
    assert not done
    leaving.kill()
    draining.join()
    assert done == [True]
    assert not fleet.drain("process-1", timeout=0)
    with pytest.raises(errors.FleetClosed, match="drained"):
        fleet.acquire()


def test_a_published_port_leads_here(fleet: Fleet) -> None:
    options = {"hosts": 1}
    with (
        Fleet(BUSYBOX, driver="processes", per_host=1, driver_options=options, ports={"7/tcp": None}, **SMALL) as other,
        other.acquire() as vm,
    ):
        vm.popen("while true; do nc -l -p 7 -e cat; done", shell=True, stdin=subprocess.DEVNULL)
        [address] = vm.ports["7/tcp"]
        deadline = time.monotonic() + 20
        while True:
            with socket.create_connection(address, 10) as connection:
                try:
                    connection.sendall(b"hello")
                    connection.shutdown(socket.SHUT_WR)
                    answer = connection.recv(100)
                except OSError:
                    answer = b""
            if answer == b"hello":
                break
            assert time.monotonic() < deadline


def test_the_end_of_a_machine_wakes_who_waits(fleet: Fleet) -> None:
    vm = fleet.acquire()
    process = vm.popen(["sleep", "1000"], stdin=subprocess.DEVNULL)
    threading.Timer(0.2, vm.kill).start()
    with pytest.raises(errors.VMExited):
        process.wait(timeout=30)
    assert vm.wait(10) == "killed"
    other = fleet.acquire()
    pid = int(next(host.labels["pid"] for host in fleet.hosts if host.name == other.host))
    before = set(workers_of(pid))
    process = other.popen(["sleep", "1000"], stdin=subprocess.DEVNULL)
    for worker in before:
        os.kill(worker, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(errors.VMExited) as ended:
        process.wait(timeout=30)
    assert not isinstance(ended.value, errors.HostLost)
    assert time.monotonic() - began < 5
    assert fleet.acquire(timeout=60).run(["true"]).returncode == 0


def test_a_host_that_is_killed_is_told_to_everybody_who_waits(fleet: Fleet) -> None:
    held = [fleet.acquire() for _ in range(6)]
    victims = [vm for vm in held if vm.host == "process-0"]
    others = [vm for vm in held if vm.host == "process-1"]
    pid = int(fleet.hosts[0].labels["pid"])
    workers = workers_of(pid)
    assert len(workers) >= 3
    told: list[tuple[BaseException, float]] = []

    def wait(work):  # type: ignore[no-untyped-def]
        try:
            work()
        except BaseException as error:
            told.append((error, time.monotonic()))

    works = [
        lambda: victims[0].run(["sleep", "1000"]),
        lambda: victims[0].popen(["sleep", "1000"], stdin=subprocess.DEVNULL).wait(),
        lambda: victims[1].run(["cat", "/dev/zero"], stdout=subprocess.DEVNULL),
        lambda: victims[1].path("/dev/zero").read_bytes(),
        lambda: victims[2].fork(1) and victims[2].run(["sleep", "1000"]),
    ]
    threads = [threading.Thread(target=wait, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    time.sleep(1)
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    for thread in threads:
        thread.join(20)
    assert len(told) == len(works)
    assert {type(error) for error, _ in told} <= {errors.HostLost, errors.FleetFull}
    assert sum(isinstance(error, errors.HostLost) for error, _ in told) >= 4
    assert max(when for _, when in told) - began < 5
    with pytest.raises(errors.HostLost):
        victims[0].run(["true"])
    assert [vm.run(["echo", "here"], text=True).stdout for vm in others] == ["here\n"] * 3
    assert gone(workers, 10), "no worker outlives its host"
    deadline = time.monotonic() + 30
    while True:
        try:
            replacement = fleet.acquire(timeout=30)
            break
        except errors.HostLost:
            assert time.monotonic() < deadline
    assert replacement.run(["echo", "again"], text=True).stdout == "again\n"


def test_a_client_that_is_killed_leaves_no_machine(tmp_path: Path) -> None:
    """Its hosts are another process's, as an engine's are."""
    script = f"""
import sys, json, time, os
from supermachine.fleet import Fleet, wire
from supermachine.fleet.driver import Driver
class Given(Driver):
    def addresses(self):
        said = json.loads(sys.argv[1])
        return [wire.Address("given", "127.0.0.1", said["port"], bytes.fromhex(said["credentials"]), {{}})]
    def close(self):
        pass
fleet = Fleet({BUSYBOX!r}, driver=Given(), memory="64m")
held = [fleet.acquire() for _ in range(3)]
print("ready", flush=True)
held[0].run(["sleep", "1000"])
"""
    import json

    from supermachine.fleet.drivers import ProcessesDriver

    driver = ProcessesDriver(4, 1)
    try:
        [address] = driver.addresses()
        said = json.dumps({"port": address.port, "credentials": address.credentials.hex()})
        client = subprocess.Popen([sys.executable, "-c", script, said], stdout=subprocess.PIPE)
        assert client.stdout is not None and client.stdout.readline() == b"ready\n"
        workers = workers_of(int(address.labels["pid"]))
        assert len(workers) >= 3
        client.kill()
        client.wait()
        assert gone(workers, 10)
        client.stdout.close()
    finally:
        driver.close()


@pytest.mark.skipif(sys.platform != "linux", reason="forking a process with threads is Linux's habit")
def test_a_child_of_the_fleets_process_ends_nothing(fleet: Fleet) -> None:
    with fleet.acquire() as vm:
        if (pid := os.fork()) == 0:
            try:
                vm.kill()
                with pytest.raises(errors.FleetClosed):
                    fleet.acquire()
                fleet.close()
            except BaseException:
                os._exit(1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert vm.run(["echo", "alive"], text=True).stdout == "alive\n"
    with fleet.acquire() as vm:
        assert vm.run(["true"]).returncode == 0


def test_a_fleet_that_is_closed_ends_everything() -> None:
    options = {"hosts": 1}
    fleet = Fleet(BUSYBOX, driver="processes", per_host=2, driver_options=options, **SMALL)
    pid = int(fleet.hosts[0].labels["pid"])
    vm = fleet.acquire()

    def sleep() -> None:
        with pytest.raises(errors.VMExited):
            vm.run(["sleep", "1000"])

    waiting = threading.Thread(target=sleep)
    waiting.start()
    workers = workers_of(pid)
    fleet.close()
    waiting.join(10)
    assert not waiting.is_alive()
    assert gone([pid, *workers], 10)
    for work in (fleet.acquire, lambda: fleet.submit(print)):
        with pytest.raises(errors.FleetClosed):
            work()
    fleet.close()


def test_options_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    for keywords in (
        {},
        {"image": BUSYBOX, "snapshot": "x"},
        {"image": BUSYBOX, "driver": "nomad"},
        {"image": BUSYBOX, "per_host": 0},
        {"image": BUSYBOX, "per_host": "many"},
        {"image": BUSYBOX, "ready": -1},
        {"image": BUSYBOX, "warmup": lambda vm: None},
        {"image": BUSYBOX, "progress": print},
        {"image": BUSYBOX, "memory": "a lot"},
    ):
        with pytest.raises(errors.ConfigurationError):
            Fleet(**keywords)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="colour"):
        Fleet(BUSYBOX, colour="green")  # type: ignore[call-arg]
    with Fleet(str(tmp_path / "none"), per_host=1) as fleet, pytest.raises(errors.SupermachineError, match="none"):
        fleet.acquire(timeout=30)


def test_hosts_that_are_killed_at_any_moment_leave_nothing_and_nobody_waiting() -> None:
    """While machines are made, forked, used and ended; FLEET_KILLS says how often."""
    import random

    source = random.Random(int(os.environ.get("FLEET_SEED", "1")))
    options = {"hosts": 2}
    ends: list[str] = []
    stop = threading.Event()
    slow: list[float] = []
    lost_at = [0.0]

    def work(fleet: Fleet) -> None:
        while not stop.is_set():
            began = time.monotonic()
            try:
                with fleet.acquire(timeout=60) as vm:
                    vm.path("/tmp/x").write_bytes(bytes(200_000))
                    assert vm.run(["cat", "/tmp/x"]).stdout == bytes(200_000)
                    for clone in vm.fork(1):
                        assert clone.run(["echo", "x"], text=True).stdout == "x\n"
                        clone.kill()
                ends.append("done")
            except errors.SupermachineError as error:
                ends.append(type(error).__name__)
                if isinstance(error, errors.HostLost):
                    slow.append(time.monotonic() - max(lost_at[0], began))
            except OSError as error:
                ends.append(f"{type(error).__name__} {error}")

    orphans: list[int] = []
    with Fleet(BUSYBOX, driver="processes", per_host=4, driver_options=options, **SMALL) as fleet:
        threads = [threading.Thread(target=work, args=(fleet,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(int(os.environ.get("FLEET_KILLS", "3"))):
                deadline = time.monotonic() + 60
                while sum(not host.lost for host in fleet.hosts) < 2:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                time.sleep(source.uniform(0.0, 1.0))
                victim = source.choice([host for host in fleet.hosts if not host.lost])
                orphans += workers_of(int(victim.labels["pid"]))
                lost_at[0] = time.monotonic()
                os.kill(int(victim.labels["pid"]), signal.SIGKILL)
        finally:
            stop.set()
            for thread in threads:
                thread.join(120)
        assert not any(thread.is_alive() for thread in threads)
    assert gone(orphans, 10)
    assert set(ends) <= {"done", "HostLost", "FleetFull"}, set(ends)
    assert "done" in ends
    assert max(slow, default=0.0) < 5


@pytest.mark.skipif(sys.platform != "linux", reason="counts what /proc shows")
def test_machines_that_were_given_back_leave_nothing_here(fleet: Fleet) -> None:
    def work() -> None:
        with fleet.acquire(timeout=60) as vm:
            vm.run(["true"])
            vm.path("/tmp/x").write_text("x")
            for clone in vm.fork(1):
                clone.kill()

    work()
    gc.collect()
    before = pipes()
    for _ in range(4):
        work()
    gc.collect()
    assert pipes() <= before
    assert not any(host._ends for host in fleet._hosts.values())
