"""Fleets of the demo's image."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import supermachine
from supermachine.fleet import Fleet

BUSYBOX = str(Path(__file__).parents[2] / "demo" / "busybox.oci.tar")
#: What every machine of these tests is; and what the fleet is beside that.
SMALL: dict[str, Any] = {"memory": "64m"}


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of this run's own, in which the image is baked."""
    path = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUPERMACHINE_CACHE", str(path))
        patch.setenv("SUPERMACHINE_KEYS", str(path / "keys"))
        supermachine.bake(BUSYBOX, **SMALL)
        yield path


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """Two hosts, three machines each."""
    options = {"hosts": 2}
    with Fleet(BUSYBOX, driver="processes", per_host=3, driver_options=options, **SMALL) as fleet:
        yield fleet


@pytest.fixture(scope="session")
def cluster(cache: Path) -> Iterator[Any]:
    """Ray on three nodes."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    # Its workers run at a low priority otherwise, and what else this machine does comes first.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - its name
    store = 80 << 20
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": store})
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=store)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, namespace="tests")
    yield cluster
    from supermachine.fleet import ray_driver

    ray_driver.remove()
    ray.shutdown()
    cluster.shutdown()


def pid_of(fleet: Fleet, name: str) -> int:
    """Of the process that is the host of this name: the one that listens on its port."""
    port = fleet._hosts[name].address.port
    out = subprocess.run(["ss", "-Hltnp", f"sport = :{port}"], capture_output=True, text=True, check=True).stdout
    return int(out.partition("pid=")[2].partition(",")[0])
