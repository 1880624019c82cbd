"""Images that are legal and strange: what can be made of them runs, and the rest is refused in words."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from supermachine import VM, errors

from ..real import require, run
from .conftest import BUSYBOX
from .layers import Layer

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("skopeo", "umoci")
    layout = tmp_path_factory.mktemp("plain") / "oci"
    run("skopeo", "--insecure-policy", "copy", "-q", f"oci-archive:{BUSYBOX}", f"oci:{layout}:v1")
    return layout


def image(plain: Path, place: Path, *changes: Callable[[Layer], object]) -> str:
    """busybox with one more layer."""
    layout = place / "oci"
    shutil.copytree(plain, layout)
    with Layer(place / "layer.tar") as layer:
        for change in changes:
            change(layer)
    run("umoci", "raw", "add-layer", "--image", f"{layout}:v1", place / "layer.tar")
    return f"oci:{layout}:v1"


ODD: dict[str, Callable[[Layer], object]] = {
    "hosts is a link to nowhere": lambda layer: layer.symlink("etc/hosts", "/nowhere/hosts"),
    "hosts is a directory": lambda layer: layer.add("etc/hosts/"),
    "hosts is a FIFO": lambda layer: layer.add("etc/hosts", type=tarfile.FIFOTYPE),
    "hostname is a link to nowhere": lambda layer: layer.symlink("etc/hostname", "../run/none/hostname"),
    "resolv.conf is a link to nowhere": lambda layer: layer.symlink("etc/resolv.conf", "../run/none/stub"),
    "machine-id is a directory": lambda layer: layer.add("etc/machine-id/"),
    "machine-id is a FIFO": lambda layer: layer.add("etc/machine-id", type=tarfile.FIFOTYPE),
    "passwd is a directory": lambda layer: [layer.whiteout("etc/passwd"), layer.add("etc/passwd/")],
    "passwd is a FIFO": lambda layer: layer.add("etc/passwd", type=tarfile.FIFOTYPE),
    "group is an endless device": lambda layer: layer.add("etc/group", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    "passwd is large": lambda layer: layer.add("etc/passwd", b"root:x:0:0::/root:\n" + b"x:" * 3_000_000),
    "proc is a link": lambda layer: layer.symlink("proc", "tmp"),
    "the root is closed": lambda layer: layer.add("./", mode=0),
}


@pytest.mark.parametrize("what", ODD)
def test_it_runs_all_the_same(plain: Path, tmp_path: Path, what: str) -> None:
    with VM(image(plain, tmp_path, ODD[what]), bake=False, boot_timeout=30) as vm:
        assert vm.run(["echo", "runs"], timeout=60).stdout == b"runs\n"
        # Not `id`, which looks into passwd itself.
        who = ["awk", "/^Uid/ {print $2}", "/proc/self/status"]
        user = "0" if what == "the root is closed" else "1234"
        assert vm.run(who, user=user, timeout=60, text=True).stdout == f"{user}\n"


def test_etc_is_a_file(plain: Path, tmp_path: Path) -> None:
    odd = image(plain, tmp_path, lambda layer: [layer.whiteout("etc"), layer.add("etc", b"a file")])
    with VM(odd, bake=False) as vm:
        assert vm.run(["cat", "/etc"], timeout=60).stdout == b"a file"


@pytest.mark.parametrize("name", ["proc", "dev", "sys"])
def test_what_stands_where_the_kernel_is_to_be_mounted(plain: Path, tmp_path: Path, name: str) -> None:
    vm = VM(image(plain, tmp_path, lambda layer: layer.add(name, b"a file")), bake=False)
    with pytest.raises(errors.VMExited, match=f"/{name} cannot be mounted") as caught:
        vm.start()
    assert caught.value.reason == "agent-failed"


def test_a_time_out_covers_the_start_too(busybox: str) -> None:
    with VM(busybox, bake=False) as vm:
        # A process that is made in the frozen group of all of them does not come to its program.
        vm.path("/sys/fs/cgroup/supermachine/cgroup.freeze").write_text("1")
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            vm.run(["true"], timeout=1)
        assert caught.value.timeout == 1


# Guests that use up what they have.


def test_a_guest_without_memory_left_ends_a_process_and_goes_on(busybox: str) -> None:
    with VM(busybox, memory="96m") as vm:
        assert vm.run(["tail", "/dev/zero"], timeout=120).returncode == -9
        assert vm.run(["echo", "still here"], timeout=60).stdout == b"still here\n"


@pytest.mark.parametrize("disk", [0, "256m"])
def test_a_full_root_is_an_error_in_the_guest_only(busybox: str, disk: int | str) -> None:
    with VM(busybox, memory="96m", disk=disk) as vm:
        done = vm.run(["dd", "if=/dev/zero", "of=/root/fill", "bs=64k"], timeout=120, text=True)
        assert done.returncode == 1
        assert "No space left on device" in done.stderr
        with pytest.raises(OSError, match="No space left"):
            vm.path("/root/more").write_bytes(bytes(1 << 20))
        vm.path("/root/fill").unlink()
        assert vm.path("/root/more").write_bytes(bytes(1 << 20)) == 1 << 20


@pytest.mark.parametrize(("memory", "vcpus"), [("64m", 1), ("64m", 8), ("4g", 2)])
def test_the_smallest_and_the_large(busybox: str, memory: str, vcpus: int) -> None:
    with VM(busybox, memory=memory, vcpus=vcpus, bake=False) as vm:
        assert vm.run(["nproc"], text=True, timeout=60).stdout == f"{vcpus}\n"
        total = int(vm.run(["grep", "MemTotal", "/proc/meminfo"], timeout=60).stdout.split()[1])
        asked = {"64m": 64 << 10, "4g": 4 << 20}[memory]
        assert 0.6 * asked < total < asked
