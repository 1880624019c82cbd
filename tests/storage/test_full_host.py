"""Guests on a host whose disk is full: a write fails as on any full disk, nothing is lost, and the host keeps some."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from supermachine import VM

from ..real import require, require_root, run
from ..vm.guests import output
from .test_volumes import check

BUSYBOX = str(Path(__file__).parents[2] / "demo" / "busybox.oci.tar")
#: Of the host's file system, and what the worker leaves of it (`rust/worker/src/room.rs`).
SIZE = 128 << 20
MINIMUM = SIZE // 20


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small file system that holds cache and volumes."""
    require_root("mounting a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", disk)
    monkeypatch.setenv("SUPERMACHINE_CACHE", str(disk / "cache"))
    monkeypatch.setenv("SUPERMACHINE_DATA", str(disk / "data"))
    try:
        yield disk
    finally:
        run("umount", "-l", disk)


def free(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def fill(vm: VM, place: str) -> int:
    """Writes files that all differ until there is no room; how many are whole. Each is in the list with its sum."""
    seed = os.urandom(1 << 20)
    vm.path("/dev/shm/seed").write_bytes(seed)
    script = (
        f"n=0; while (cat /dev/shm/seed; echo $n) > {place}/$n 2>/dev/shm/said; do "
        f"(cat /dev/shm/seed; echo $n) | md5sum | sed s,-,{place}/$n, >> /dev/shm/sums; n=$((n+1)); done; "
        "cat /dev/shm/said >&2; rm -f "
        f"{place}/$n; test $n -lt 1000; echo $n"
    )
    done = vm.run(script, shell=True, capture_output=True, text=True, timeout=120)
    assert "No space left on device" in done.stderr, done.stderr
    return int(done.stdout)


def whole(vm: VM) -> None:
    """Every file is as it was written, on the disk as well."""
    output(vm, "sync; echo 3 > /proc/sys/vm/drop_caches; md5sum -c -s /dev/shm/sums")
    assert "rror" not in output(vm, "dmesg | grep -i 'ext4\\|jbd2\\|I/O' || true")


def room_again(vm: VM, place: str) -> None:
    """The guest is told within seconds of what the host has got."""
    end = time.monotonic() + 120
    while vm.run(f"cat /dev/shm/seed /dev/shm/seed > {place}/again && sync", shell=True).returncode != 0:
        assert time.monotonic() < end
        time.sleep(0.5)
    output(vm, f"rm {place}/again")


def test_the_disk_of_the_root(small: Path) -> None:
    with VM(BUSYBOX, memory="64m") as vm:
        output(vm, "mkdir /data")
        # What the host has is known after the first look at it.
        time.sleep(1.5)
        written = fill(vm, "/data")
        assert written > 30
        whole(vm)
        assert free(small) > MINIMUM // 2
        # What is removed is room for something else, and so is what the host is given back.
        output(vm, "rm /data/1? && sed -i '/data.1.$/d' /dev/shm/sums")
        room_again(vm, "/data")
        output(vm, "mkdir /data/more")
        (small / "filler").write_bytes(bytes(max(0, free(small) - MINIMUM // 2)))
        time.sleep(2.5)
        assert fill(vm, "/data/more") < 10
        (small / "filler").unlink()
        room_again(vm, "/data")
        output(vm, "echo alive > /file && cat /file")


def test_a_guest_that_starts_on_a_full_host(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its snapshot is elsewhere: a tmpfs gives what is read of a file's holes room of its own.
    cache = tmp_path / "cache"
    monkeypatch.setenv("SUPERMACHINE_CACHE", str(cache))
    with VM(BUSYBOX, memory="64m") as vm:
        output(vm, "true")
    shutil.rmtree(cache / "tmp")
    small.chmod(0o700)
    (cache / "tmp").symlink_to(small)
    (small / "filler").write_bytes(bytes(free(small) - MINIMUM - (8 << 20)))
    with VM(BUSYBOX, memory="64m") as vm:
        output(vm, "mkdir /data")
        assert fill(vm, "/data") <= 9
        whole(vm)
        assert free(small) > MINIMUM // 2


def test_a_volume(small: Path) -> None:
    require("e2fsck")
    with VM(BUSYBOX, memory="64m", disk=0, volumes=["full:/data"]) as vm:
        time.sleep(1.5)
        written = fill(vm, "/data")
        assert written > 30
        whole(vm)
        assert free(small) > MINIMUM // 2
        sums = vm.path("/dev/shm/sums").read_bytes()
        vm.kill()
    run("mount", "-o", "remount,size=2g", small)
    check("full")
    with VM(BUSYBOX, memory="64m", volumes=["full:/data"]) as vm:
        vm.path("/dev/shm/sums").write_bytes(sums)
        output(vm, "md5sum -c -s /dev/shm/sums")


def test_a_share(small: Path) -> None:
    (small / "share").mkdir()
    with VM(BUSYBOX, memory="64m", volumes=[f"{small / 'share'}:/data"]) as vm:
        written = fill(vm, "/data")
        assert written > 30
        whole(vm)

    for number in range(written):
        assert (small / "share" / str(number)).read_bytes().endswith(f"{number}\n".encode())
