"""Ends without a word, at random moments, under real engines, while machines are made, forked, used and given back: a
host, a raylet, a client or the worker of a machine is killed with SIGKILL.

Whoever waits is told by an error of this package's, and no process and no file is left.
``SUPERMACHINE_TEST_MOMENTS`` says how often, under Ray and under Dask.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from supermachine import errors
from supermachine.cache.store import Cache
from supermachine.fleet import Fleet
from supermachine.host import bundle

from ..processes import line, running
from .conftest import BUSYBOX, SMALL, pid_of
from .test_machines import alive, gone, workers_of

pytestmark = [pytest.mark.vm, pytest.mark.engine]

MOMENTS = int(os.environ.get("SUPERMACHINE_TEST_MOMENTS", "4"))
#: Seconds within which anything here has happened; what a fleet promises is less, and is printed.
PATIENCE = 300.0
#: Machines of a client that is killed.
HELD = 2

#: A client: its machines each hold a connection to the port that it is told, by which their ends are seen.
CLIENT = """
import sys, threading
from supermachine.fleet import Fleet
from supermachine.host import bundle
driver, address, image, port, machines = sys.argv[1:]
options = {}
if driver == "ray":
    import ray
    ray.init(address=address, log_to_driver=False, namespace="client")
else:
    import distributed
    options["client"] = distributed.Client(address)
fleet = Fleet(image, driver=driver, per_host=8, driver_options=options, memory="64m", ready=0, network="none",
              allow=[f"host:{port}"])
held = [fleet.acquire(timeout=250) for _ in range(int(machines))]
for vm in held:
    waits = lambda vm=vm: vm.run(f"sleep 1000 | nc host.docker.internal {port}", shell=True)
    threading.Thread(target=waits, daemon=True).start()
print("ready", flush=True)
threading.Event().wait()
"""


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


class Crowd:
    """Threads that make, fork, use and give back machines, and note how each round of that ended."""

    def __init__(self, fleet: Fleet, count: int = 3) -> None:
        self.ends = Counter[str]()
        self.untyped: list[BaseException] = []
        #: What was said by errors that no kill explains.
        self.others: list[str] = []
        #: Seconds from a kill to the word of it, for each who waited.
        self.told: list[float] = []
        self._fleet = fleet
        self._killed = 0.0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def killed(self) -> None:
        """Now."""
        self._killed = time.monotonic()

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in self._threads), "somebody waits for ever"

    def _work(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                with self._fleet.acquire(timeout=PATIENCE) as vm:
                    vm.path("/tmp/x").write_bytes(bytes(200_000))
                    assert vm.run(["cat", "/tmp/x"]).stdout == bytes(200_000)
                    vm.run(["sleep", "0.3"])
                    for clone in vm.fork(1):
                        assert clone.run(["echo", "x"], text=True).stdout == "x\n"
                        clone.kill()
                self.ends["done"] += 1
            except errors.SupermachineError as error:
                # A host that has too much to do ends a guest that is not ready in its time.
                starved = isinstance(error, errors.RenewFailed) and "was not ready within" in str(error)
                self.ends["starved" if starved else type(error).__name__] += 1
                if not isinstance(error, errors.VMExited | errors.FleetFull) and not starved:
                    self.others.append(f"{error!r}, {error.cause}")
                if isinstance(error, errors.VMExited):
                    self.told.append(time.monotonic() - max(self._killed, began))
            except BaseException as error:
                self.untyped.append(error)


class Line:
    """A port to which guests connect, so that the end of each is seen from here."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._server.settimeout(PATIENCE)
        self._guests: list[socket.socket] = []

    def await_guests(self, count: int) -> None:
        self._guests = [self._server.accept()[0] for _ in range(count)]

    def await_ends(self) -> None:
        for guest in self._guests:
            guest.settimeout(PATIENCE)
            with guest, contextlib.suppress(ConnectionResetError):
                assert guest.recv(1) == b""
        self._guests = []

    def close(self) -> None:
        self._server.close()


def left() -> list[str]:
    """Processes of machines, of this installation's."""
    ours = {bundle.worker(), bundle.policy_process()}
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(entry / "exe") in ours and alive(int(entry.name)):
                found.append(entry.name)
    return found


def moments(fleet: Fleet, hosts: int, victims: dict[str, Callable[[random.Random, Crowd, list[int]], None]]) -> None:
    """Kills what `victims` says, by turns, and sees to it that all is well after each."""
    source = random.Random(int(os.environ.get("FLEET_SEED", "1")))
    killed, orphans = Counter[str](), list[int]()
    slowest = 0.0
    crowd = Crowd(fleet)
    try:
        for number in range(MOMENTS):
            until(lambda: sum(not host.lost for host in fleet.hosts) >= hosts, "hosts come back")
            done = crowd.ends["done"]
            until(lambda done=done: crowd.ends["done"] > done, "the fleet works")  # type: ignore[misc]
            victim = list(victims)[number % len(victims)]
            time.sleep(source.uniform(0.0, 1.0))
            victims[victim](source, crowd, orphans)
            killed[victim] += 1
            began = time.monotonic()
            until(lambda: gone(orphans, 0), "no worker outlives its host")
            slowest = max(slowest, time.monotonic() - began)
            orphans.clear()
        assert left(), "its processes are known"
    finally:
        crowd.close()
    print(f"\n{dict(killed)}: rounds {dict(crowd.ends)}, told within {max(crowd.told, default=0):.2f} s", end=", ")
    print(f"workers of what was killed gone within {slowest:.2f} s, load {os.getloadavg()[0]:.1f}")
    assert not crowd.untyped, crowd.untyped
    known = {"done", "starved", "HostLost", "VMExited", "WorkerKilled", "FleetFull"}
    assert set(crowd.ends) <= known, (crowd.ends, crowd.others)
    assert crowd.ends["done"]
    assert killed.total() == MOMENTS


def kill_a_host(fleet: Fleet, source: random.Random, crowd: Crowd, orphans: list[int]) -> None:
    pid = pid_of(fleet, source.choice([host.name for host in fleet.hosts if not host.lost]))
    orphans += workers_of(pid)
    crowd.killed()
    os.kill(pid, signal.SIGKILL)


def kill_a_worker(fleet: Fleet, source: random.Random, crowd: Crowd, orphans: list[int]) -> None:
    """The process of one machine: its host lives, and tells whoever uses it."""
    workers: list[int] = []
    while not workers:
        workers = [worker for host in fleet.hosts if not host.lost for worker in workers_of(pid_of(fleet, host.name))]
    worker = source.choice(workers)
    crowd.killed()
    with contextlib.suppress(ProcessLookupError):  # it was given back just now
        os.kill(worker, signal.SIGKILL)
    orphans.append(worker)


def kill_a_client(driver: str, address: str, source: random.Random, ended: list[float]) -> None:
    """Another process with machines on the same hosts."""
    listens = Line()
    command = [sys.executable, "-c", CLIENT, driver, address, BUSYBOX, str(listens.port), str(HELD)]
    try:
        with running(command, stdout=subprocess.PIPE) as client:
            while (said := line(client, PATIENCE)) != b"ready\n":
                assert said, "the client has ended"
            listens.await_guests(HELD)
            time.sleep(source.uniform(0.0, 0.5))
            client.kill()
            began = time.monotonic()
            listens.await_ends()
            ended.append(time.monotonic() - began)
    finally:
        listens.close()


def after(cache: Path) -> None:
    """Nothing is left when all fleets are closed and their hosts are gone."""
    until(lambda: not left(), "no process is left")
    Cache(cache).remove_stale()
    assert list((cache / "tmp").iterdir()) == []


def test_whatever_is_killed_under_ray_everybody_is_told(cluster: Any, cache: Path) -> None:
    from supermachine.fleet import ray_driver

    ended: list[float] = []

    def kill_a_node(source: random.Random, crowd: Crowd, orphans: list[int]) -> None:
        """Its raylet alone, which its processes notice; another node takes its place."""
        node = source.choice(list(cluster.worker_nodes))
        name = node.node_id[:12]
        if name in fleet._hosts and fleet._hosts[name].lost is None:
            orphans += workers_of(pid_of(fleet, name))
        crowd.killed()
        [raylet] = node.all_processes["raylet"]
        os.kill(raylet.process.pid, signal.SIGKILL)
        raylet.process.wait()  # one that is still in the table of processes is alive in its workers' eyes
        until(lambda: all(h.lost for h in fleet.hosts if h.name == name), "the host of a dead node is lost")
        cluster.remove_node(node, allow_graceful=False)
        # Ray gives a node half a minute to come up, which is short on a machine that has much to do.
        for _ in range(4):
            with contextlib.suppress(Exception):
                cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
                break

    with Fleet(BUSYBOX, driver="ray", per_host=8, **SMALL) as fleet:
        victims = {
            "host": lambda *said: kill_a_host(fleet, *said),
            "worker": lambda *said: kill_a_worker(fleet, *said),
            "client": lambda source, _crowd, _orphans: kill_a_client("ray", cluster.address, source, ended),
            "raylet": kill_a_node,
        }
        moments(fleet, 3, victims)
    print(f"machines of killed clients ended within {max(ended, default=0):.2f} s")
    ray_driver.remove()
    after(cache)


def test_whatever_is_killed_under_dask_everybody_is_told(cache: Path) -> None:
    distributed = pytest.importorskip("distributed")
    import dask

    ended: list[float] = []
    with (
        # A local cluster closes the nanny of a worker that it has lost so long ago, whatever has come in its place.
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1 day"}),
        distributed.LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        with Fleet(BUSYBOX, driver="dask", per_host=8, driver_options={"client": client}, **SMALL) as fleet:
            victims = {
                "host": lambda *said: kill_a_host(fleet, *said),
                "worker": lambda *said: kill_a_worker(fleet, *said),
                "client": lambda source, _c, _o: kill_a_client("dask", cluster.scheduler_address, source, ended),
            }
            moments(fleet, 3, victims)
        print(f"machines of killed clients ended within {max(ended, default=0):.2f} s")
    after(cache)
