"""A share that the guest may make grow by so much."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from supermachine import VM, Share

from ..vm.guests import output

pytestmark = pytest.mark.vm

BUSYBOX = Path(__file__).parents[2] / "demo" / "busybox.oci.tar"
MEBIBYTE = 1 << 20


def taken(place: Path) -> int:
    """Bytes of the host's disk."""
    os.sync()
    return int(subprocess.run(["du", "-sk", place], capture_output=True, text=True, check=True).stdout.split()[0]) << 10


@pytest.mark.parametrize("cache", ["auto", "none"])
def test_more_does_not_fit_and_nothing_is_lost(tmp_path: Path, cache: str) -> None:
    (tmp_path / "before").write_bytes(b"x" * 3 * MEBIBYTE)
    share = Share(tmp_path, quota="2m", cache=cache)  # type: ignore[arg-type]
    before = taken(tmp_path)
    with VM(str(BUSYBOX), mounts={"/shared": share}) as vm:

        def fails(command: str) -> None:
            done = vm.run(command, shell=True, capture_output=True, text=True)
            assert done.returncode != 0 and "No space left on device" in done.stderr, (command, done)

        total, free = output(vm, "df -k /shared | tail -1").split()[1:4:2]
        assert (int(total), int(free)) == (2048, 2048)
        vm.path("/letters").write_bytes(b"a" * 3 * MEBIBYTE)
        fails("dd if=/letters of=/shared/big bs=64k")
        size = (tmp_path / "big").stat().st_size
        assert MEBIBYTE < size <= 2 * MEBIBYTE
        assert set((tmp_path / "big").read_bytes()) == {ord("a")}
        assert taken(tmp_path) - before <= 2 * MEBIBYTE
        # What is there can be written over, and names removed.
        output(vm, "dd if=/dev/zero of=/shared/big bs=64k count=16 conv=notrunc 2>&1")
        output(vm, "dd if=/dev/zero of=/shared/before bs=64k count=48 conv=notrunc 2>&1")
        for command in (
            "mkdir /shared/directory",
            "cp /bin/busybox /shared/new",
            "dd if=/dev/zero bs=1M count=1 >> /shared/big",
        ):
            fails(command)
        # A file that is open takes its room until it is closed.
        output(vm, "exec 3</shared/big; rm /shared/big; ! dd if=/dev/zero of=/shared/other bs=64k count=16 2>/dev/null")
        output(vm, "rm -f /shared/other; dd if=/dev/zero of=/shared/other bs=64k count=30 2>&1")
        # And truncated, sparse and moved files take what they take.
        output(
            vm,
            ": > /shared/other; dd if=/dev/zero of=/shared/other bs=1 count=1 seek=1073741823 2>&1; : > /shared/other",
        )
        output(vm, "dd if=/dev/zero of=/shared/more bs=64k count=30 2>&1; mv /shared/more /shared/other")
        fails("dd if=/dev/zero of=/shared/third bs=64k count=8")
        # What was there before is worth as much.
        output(vm, "rm /shared/before /shared/third; dd if=/dev/zero of=/shared/fourth bs=1M count=3 2>&1")
    assert taken(tmp_path) - before <= 2 * MEBIBYTE


def test_each_share_has_its_own(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    mounts = {"/one": Share(one, quota="1m"), "/other": Share(other)}
    with VM(str(BUSYBOX), mounts=mounts) as vm:
        output(vm, "dd if=/dev/zero of=/other/file bs=1M count=2 2>&1")
        assert vm.run("mv /other/file /one/file", shell=True).returncode != 0
        with vm.fork()[0] as fork:
            output(fork, "dd if=/dev/zero of=/one/file bs=64k count=12 2>&1")
    assert taken(one) <= MEBIBYTE
