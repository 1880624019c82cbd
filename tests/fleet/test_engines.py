"""Fleets under real engines of distribution on this machine: Ray with three nodes, Dask with three workers.

`make test-fleet` installs the engines and runs these; without them they are skipped.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from supermachine import Secret, errors
from supermachine.fleet import Fleet
from supermachine.network.secrets import placeholder

from .conftest import BUSYBOX, SMALL, pid_of
from .test_machines import gone, workers_of
from .test_secrets import files_with

pytestmark = [pytest.mark.vm, pytest.mark.engine]


def test_ray_spreads_machines_over_its_nodes_and_survives_the_loss_of_a_host(cluster: Any) -> None:
    with Fleet(BUSYBOX, driver="ray", per_host=4, **SMALL) as fleet:
        assert (len(fleet.hosts), fleet.capacity) == (3, 12)
        held = [fleet.acquire() for _ in range(6)]
        assert sorted(vm.host for vm in held) == sorted(host.name for host in fleet.hosts for _ in range(2))
        data = os.urandom(8 << 20)
        held[0].path("/tmp/data").write_bytes(data)
        assert held[0].path("/tmp/data").read_bytes() == data
        assert [clone.path("/tmp/data").stat().st_size for clone in held[0].fork(2)] == [len(data)] * 2
        assert list(fleet.map(lambda vm, n: vm.run(["echo", str(n)], text=True).stdout, range(6))) == [
            f"{n}\n" for n in range(6)
        ]

        victim = held[0].host
        pid = pid_of(fleet, victim)
        workers = workers_of(pid)
        told: list[tuple[BaseException, float]] = []

        def wait(vm: Any) -> None:
            try:
                vm.run(["sleep", "1000"])
            except BaseException as error:
                told.append((error, time.monotonic()))

        mine = [vm for vm in held if vm.host == victim]
        threads = [threading.Thread(target=wait, args=(vm,)) for vm in mine]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        for thread in threads:
            thread.join(20)
        assert [type(error) for error, _ in told] == [errors.HostLost] * len(mine)
        assert max(when for _, when in told) - began < 5
        assert gone(workers, 10)
        survivors = [vm for vm in held if vm.host != victim]
        assert [vm.run(["echo", "x"], text=True).stdout for vm in survivors] == ["x\n"] * 4
        # Ray starts the actor again, and the fleet finds it.
        deadline = time.monotonic() + 60
        while sum(not host.lost for host in fleet.hosts) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        with fleet.acquire(labels={"node": next(h.labels["node"] for h in fleet.hosts if h.name == victim)}) as vm:
            assert vm.run(["echo", "back"], text=True).stdout == "back\n"


def test_a_second_fleet_finds_the_hosts_of_the_first(cluster: Any) -> None:
    with Fleet(BUSYBOX, driver="ray", per_host=4, **SMALL) as first, first.acquire() as vm:
        began = time.monotonic()
        with Fleet(BUSYBOX, driver="ray", per_host=4, **SMALL) as second:
            assert {h.name for h in first.hosts} == {h.name for h in second.hosts}
            assert sum(host.in_use for host in second.hosts) == 1
            with second.acquire() as other:
                assert other.run(["true"]).returncode == 0
        assert time.monotonic() - began < 30
        assert vm.run(["true"]).returncode == 0, "what the first has goes on"


def test_a_node_that_is_lost_takes_its_machines_with_it(cluster: Any) -> None:
    node = cluster.add_node(num_cpus=1, object_store_memory=80 << 20, resources={"extra": 1})
    cluster.wait_for_nodes()
    with Fleet(BUSYBOX, driver="ray", per_host=4, **SMALL) as fleet:
        assert len(fleet.hosts) == 4
        vm = fleet.acquire(labels={"node": node.node_id})
        threading.Timer(0.5, cluster.remove_node, (node, False)).start()
        began = time.monotonic()
        with pytest.raises(errors.HostLost):
            vm.run(["sleep", "1000"])
        assert time.monotonic() - began < 10
        assert fleet.acquire(timeout=60).run(["true"]).returncode == 0


def test_nodes_with_the_resource_are_the_hosts_and_say_how_many_machines(cluster: Any) -> None:
    node = cluster.add_node(num_cpus=1, object_store_memory=80 << 20, resources={"supermachine": 2})
    try:
        cluster.wait_for_nodes()
        with Fleet(BUSYBOX, driver="ray", **SMALL) as fleet:
            assert [(host.labels["node"], host.capacity) for host in fleet.hosts] == [(node.node_id, 2)]
            held = [fleet.acquire(timeout=60) for _ in range(2)]
            with pytest.raises(errors.FleetFull, match="2 of 2"):
                fleet.acquire(timeout=0.1)
            assert [vm.run(["echo", "x"], text=True).stdout for vm in held] == ["x\n"] * 2
    finally:
        cluster.remove_node(node, False)


def test_a_thousand_forks_and_none_is_lost(cluster: Any) -> None:
    """Made, used and ended a few at a time, over all nodes."""
    with Fleet(BUSYBOX, driver="ray", per_host=12, ready=0, **SMALL) as fleet:
        parents = [fleet.acquire(labels={"node": host.labels["node"]}) for host in fleet.hosts]
        done: list[str] = []

        def work(parent: Any, rounds: int) -> None:
            for number in range(rounds):
                clones = parent.fork(8)
                for clone in clones:
                    done.append(clone.run(["echo", f"{parent.host}-{number}"], text=True).stdout)
                    clone.kill()

        each = int(os.environ.get("FLEET_FORKS", "96")) // (8 * len(parents))
        threads = [threading.Thread(target=work, args=(parent, each)) for parent in parents]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(900)
        assert len(done) == each * 8 * len(parents)
        assert all(done)


def test_secrets_are_nothing_that_ray_carries(cluster: Any) -> None:
    secret = {"TOKEN": Secret("value-that-is-no-affair-of-rays", hosts=["api.example.com"])}
    with Fleet(BUSYBOX, driver="ray", per_host=4, secrets=secret, **SMALL) as fleet, fleet.acquire() as vm:
        assert vm.run("echo $TOKEN", shell=True, text=True).stdout == f"{placeholder('TOKEN')}\n"
        session = Path(cluster.head_node.get_session_dir_path())
        pids = [pid_of(fleet, host.name) for host in fleet.hosts]
        assert any(str(pid) in path.name for pid in pids for path in session.rglob("*.log")), "logs are there"
        assert files_with("no-affair-of-rays", session, Path("/dev/shm")) == []


def test_dask_workers_are_hosts() -> None:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
        Fleet(BUSYBOX, driver="dask", per_host=2, driver_options={"client": client}, **SMALL) as fleet,
    ):
        held = [fleet.acquire() for _ in range(6)]
        assert len({vm.host for vm in held}) == 3
        assert [vm.run(["echo", "x"], text=True).stdout for vm in held] == ["x\n"] * 6
        pid = pid_of(fleet, held[0].host)
        threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()
        with pytest.raises(errors.HostLost):
            held[0].run(["sleep", "1000"])
