"""The product on real KVM: in emulated hosts of both architectures, with their own guests."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..hosts import Host
from ..hosts.fixtures import SITE, Hosts
from ..real import require, run

pytestmark = pytest.mark.vm

JOB = Path(__file__).with_name("job.py")
#: Debian's and the images' name of each architecture.
DEBIAN = {"x86_64": "amd64", "aarch64": "arm64"}
#: A job in an emulated host, which is slow and shares the machine with others.
PATIENCE = 600


def busybox_layout(directory: Path, architecture: str) -> Path:
    """An OCI layout with Debian's static busybox for an architecture, packed by umoci."""
    require("mmdebstrap", "umoci")
    debian, layout, tar = DEBIAN[architecture], directory / "image", directory / "rootfs.tar"
    how = ["--quiet", "--variant=extract", f"--architectures={debian}", "--include=busybox-static,base-files"]
    run("mmdebstrap", *how, "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", "bookworm", tar)
    image = f"{layout}:latest"
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", image)
    run("umoci", "raw", "add-layer", "--image", image, tar)
    config = ["--config.env", "PATH=/usr/bin:/bin", "--config.cmd", "busybox"]
    run("umoci", "config", "--image", image, "--architecture", debian, "--os", "linux", *config)
    return layout


class Site:
    """An emulated host with supermachine and an image in it."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def job(self, name: str, **environment: str) -> Any:
        """What a part of job.py found."""
        done = self.host.run(
            ["python3", "/root/job.py", name],
            PATIENCE,
            env={"PYTHONPATH": SITE, "HOME": "/root", **environment},
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module", params=["x86_64", "aarch64"])
def site(request: pytest.FixtureRequest, hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    architecture = str(request.param)
    host = hosts.installed(architecture)
    host.put(busybox_layout(tmp_path_factory.mktemp("kvm"), architecture), "/root/image")
    host.put(JOB, "/root/job.py")
    yield Site(host)


def test_auto_takes_kvm_and_says_how_fast_it_is(site: Site) -> None:
    chosen = site.job("chosen")
    assert (chosen["name"], chosen["isolation"]) == ("kvm", "hardware")
    assert "million instructions a second" in chosen["status"]


def test_the_main_job(site: Site) -> None:
    found = site.job("main_job")
    assert (found["engine"], found["isolation"]) == ("kvm", "hardware")
    assert found["out"] == f"{site.host.architecture}\n"
    # Counts, not times, are what carries over to other hosts: every exit to user space from the entry on.
    assert sum(found["exits"].values()) < 1000, found["exits"]


def test_a_guest_is_captured_and_restored_in_new_processes(site: Site) -> None:
    assert site.job("capture")["processors"] == "2\n"
    first, second = site.job("clones")
    for clone in first, second:
        assert (clone["read"], clone["processors"]) == ("kept", "2\n")
        assert sum(clone["exits"].values()) <= 200, clone["exits"]
    # What must differ from clone to clone.
    assert first["random"] != second["random"]
    assert first["hostname"] != second["hostname"]


def test_memory_beyond_the_devices_is_there_before_and_after(site: Site) -> None:
    found = site.job("large")
    assert found["booted"] == found["restored"] > 9 << 29
    # What the guest has not touched takes no room.
    assert found["size"] < 1 << 29


def test_a_worker_that_is_killed_wakes_who_waits(site: Site) -> None:
    assert site.job("killed").keys() == {"exited"}


def test_without_the_device_soft_is_taken(site: Site) -> None:
    found = site.job("refused")
    assert (found["code"], found["auto"]) == ("missing", "soft")
    assert "modprobe" in found["remedy"]


def test_a_user_without_permission_is_told_the_command(site: Site) -> None:
    script = "from supermachine import engines; e = engines.probe()[1]; print(e.code, '|', e.remedy)"
    site.host.run(["chmod", "0660", "/dev/kvm"], 60, check=True)
    try:
        done: subprocess.CompletedProcess[str] = site.host.run(
            ["python3", "-c", script],
            PATIENCE,
            user=1000,
            env={"PYTHONPATH": SITE, "HOME": "/home/user"},
            text=True,
            check=True,
        )
    finally:
        site.host.run(["chmod", "0666", "/dev/kvm"], 60, check=True)
    code, remedy = done.stdout.split(" | ", 1)
    assert code == "not permitted"
    assert remedy.startswith(("sudo usermod -aG ", "echo 'KERNEL"))
