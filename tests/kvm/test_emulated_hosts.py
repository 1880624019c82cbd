"""The product on real KVM: in emulated hosts of both architectures, with their own guests."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..hosts import Host
from ..hosts.fixtures import SITE, Hosts
from ..hosts.site import test_program as program_of_tests
from ..real import require, run
from . import golden

pytestmark = pytest.mark.vm

JOB = Path(__file__).with_name("job.py")
#: Debian's and the images' name of each architecture.
DEBIAN = {"x86_64": "amd64", "aarch64": "arm64"}
#: A job in an emulated host, which is slow and shares the machine with others.
PATIENCE = 600
#: What a guest is given of vCPUs at most. On arm64 it may have no more; with the 32 of x86_64 it is these hosts that do
#: not last: now and then the emulator of their virtualisation resets guest or host.
MOST_VCPUS = 8
#: Of chain.c: seconds in these hosts.
ROUNDS = "40"


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

    def job(self, name: str, *arguments: str) -> Any:
        """What a part of job.py found."""
        command = ["python3", "/root/job.py", name, *arguments]
        done = self.host.run(command, PATIENCE, env={"PYTHONPATH": SITE, "HOME": "/root"}, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


def prepared(host: Host, hosts: Hosts, place: Path) -> Site:
    hosts.install(host)
    host.put(busybox_layout(place, host.architecture), "/root/image")
    host.put(JOB, "/root/job.py")
    return Site(host)


@pytest.fixture(scope="module", params=["x86_64", "aarch64"])
def site(request: pytest.FixtureRequest, hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return prepared(hosts.get(str(request.param)), hosts, tmp_path_factory.mktemp("kvm"))


@pytest.fixture(scope="module")
def scalable(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """An arm64 host whose CPU has scalable vectors and pointer authentication."""
    with Host("aarch64", cpu="max,pauth-impdef=on") as host:
        yield prepared(host, hosts, tmp_path_factory.mktemp("kvm"))


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
    assert found["huge_pages"] is True
    # And the guest's network, by the policy process of the host's architecture.
    assert (found["denied"], found["bytes"]) == ([True, [True]], True)


def test_the_command_goes_straight_to_where_it_was_before(site: Site) -> None:
    found = site.job("command")
    assert [status for status, *_ in found["again"]] == [0] * 4
    assert {out for _, out, *_ in found["again"]} == {f"{site.host.architecture}\n"}
    assert found["again"][-1][2] is True
    # A vCPU faults over and over on pages that are being brought in, so none runs before that is done.
    steps = found["again"][-1][3]
    assert steps.index("devices") < steps.index("prefault") < steps.index("agent"), steps
    # Another engine, or none that runs this image: it must be looked for.
    assert found["without"][2] is False


def test_a_guest_is_captured_and_restored_in_new_processes(site: Site) -> None:
    assert site.job("capture")["processors"] == "2\n"
    first, second = site.job("clones")
    for clone in first, second:
        assert (clone["read"], clone["processors"]) == ("kept", "2\n")
        assert sum(clone["exits"].values()) <= 200, clone["exits"]
    # What must differ from clone to clone.
    assert first["random"] != second["random"]
    assert first["hostname"] != second["hostname"]


def test_a_program_that_is_captured_at_any_moment_comes_to_the_same_result(
    site: Site, c_program: Callable[[Path, str], Path]
) -> None:
    site.host.put(c_program(JOB.with_name("chain.c"), site.host.architecture), "/root/chain")
    found = site.job("disturbed", "chain", ROUNDS)
    assert found["expected"].endswith(" interrupted\n")
    assert found["original"] == found["restored"] == found["expected"], found
    assert found["captures"] > 0, found


@pytest.mark.parametrize("count", [4, MOST_VCPUS])
def test_many_vcpus_are_there_before_and_after(site: Site, count: int) -> None:
    found = site.job("processors", str(count))
    assert found["booted"] == found["restored"] == "".join(f"{n}," for n in range(count))


def test_snapshots_of_earlier_versions_go_on(site: Site) -> None:
    golden.prepare(site.host)
    said = golden.run(site.host)
    (went_on,) = [line for line in said.splitlines() if line.startswith("went on: ")]
    versions = [path.name for path in golden.FILES.glob(f"kvm-{site.host.architecture}-*")]
    assert versions
    assert set(versions) <= set(went_on.removeprefix("went on: ").split(", ")), said


def test_scalable_vectors_and_signed_pointers_survive(scalable: Site, c_program: Callable[[Path, str], Path]) -> None:
    scalable.host.put(c_program(JOB.with_name("sve.c"), "aarch64"), "/root/sve")
    found = scalable.job("disturbed", "sve", "1000")
    assert found["expected"].startswith("held ") and found["expected"].endswith(" bytes, signed\n"), found
    assert found["original"] == found["restored"] == found["expected"], found
    assert found["captures"] > 0, found


def test_every_register_of_a_bare_arm64_guest_goes_over(hosts: Hosts, scalable: Site) -> None:
    program = program_of_tests("aarch64", "supermachine-engine", "kvm_arm64_state")
    for host, more in ((hosts.get("aarch64"), "false"), (scalable.host, "true")):
        host.put(program, "/root/registers")
        done = host.run(["/root/registers", "--nocapture"], PATIENCE, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "SKIPPED" not in done.stderr
        assert f"Has {{ scalable_vectors: {more}, address_keys: {more}, generic_key: {more} }}" in done.stdout


def test_a_host_that_gives_its_guests_no_gicv3_is_lacking_it(hosts: Hosts) -> None:
    worker = hosts.site("aarch64") / "supermachine/_bin/supermachine-worker"
    with Host("aarch64", machine="virt,virtualization=on,gic-version=2") as host:
        host.put(worker, "/root/worker")
        done = host.run(["/root/worker", "--probe-kvm"], PATIENCE, text=True, check=True)
    found = json.loads(done.stdout)
    assert (found["usable"], found["code"]) == (False, "lacking")
    assert "KVM_DEV_TYPE_ARM_VGIC_V3" in found["status"], found


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
    script = "from supermachine.host import engines; e = engines.probe()[1]; print(e.code, '|', e.remedy)"
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
