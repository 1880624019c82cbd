"""An init system as a command is process 1 of namespaces of its own, and what is started beside it can talk to it."""

from __future__ import annotations

import subprocess
import tarfile

import pytest
from supermachine import VM

from . import conftest

pytestmark = pytest.mark.vm

PACKAGES = "systemd,systemd-sysv,dash,coreutils,base-files,base-passwd,mount"
#: Until its socket is there, systemd cannot be asked.
REACHED = (
    "until [ -S /run/systemd/private ]; do sleep 0.1; done; systemctl is-system-running --wait; "
    "systemctl is-active basic.target multi-user.target"
)


@pytest.fixture(scope="module")
def systemd(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An OCI layout with Debian's systemd for arm64."""
    place = tmp_path_factory.mktemp("systemd")
    rootfs = conftest.packages(place / "rootfs.tar", PACKAGES)
    with tarfile.open(rootfs, "a") as tar:
        # As the package's own script leaves it; without, systemd asks its questions of a first boot.
        tar.addfile(tarfile.TarInfo("./etc/machine-id"))
    conftest.umoci_layout(place / "oci", [rootfs], "--config.cmd", "/sbin/init")
    return str(place / "oci")


def test_systemd_reaches_its_target_and_ends_its_units_with_the_machine(systemd: str) -> None:
    with VM(systemd, memory="1g", vcpus=2, bake=False) as vm:
        init = vm.popen(["/sbin/init"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        done = vm.run(["sh", "-c", REACHED], capture_output=True, text=True, timeout=300)
        assert done.stdout.split()[1:] == ["active", "active"], done.stdout + done.stderr
        assert vm.run(["cat", "/proc/1/comm"], capture_output=True, text=True).stdout == "systemd\n"
        group = vm.run(["cat", "/proc/1/cgroup"], capture_output=True, text=True).stdout
        assert group == "0::/init.scope\n"
        # Another guest's files and clock are its own business: the agent's mounts are as they were.
        assert vm.path("/proc/1/comm").read_text() != "systemd\n"
        halted = vm.run(["systemctl", "halt", "--no-block"], capture_output=True, text=True, timeout=60)
        assert halted.returncode == 0, halted.stderr
        assert init.wait(120) is not None
        # Without an init that runs, commands are the machine's own again.
        assert vm.run(["cat", "/proc/1/comm"], capture_output=True, text=True).stdout != "systemd\n"
