"""Volumes that are made larger, in real guests: with what is in them, e2fsck as the judge."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import threading
from pathlib import Path

import pytest
from supermachine import VM, Volume, errors
from supermachine.storage import volumes

from ..vm.guests import output
from .test_volumes import BUSYBOX, check, cli

pytestmark = pytest.mark.usefixtures("data")

MIB = 1 << 20


def blocks(vm: VM, place: str = "/data") -> int:
    """Of 1 KiB, of the file system."""
    return int(output(vm, f"df -k {place} | tail -n 1 | awk '{{print $2}}'"))


def test_it_grows_with_what_is_in_it_when_it_is_next_mounted() -> None:
    Volume.create("data", "32m")
    contents = random.randbytes(6 * MIB)
    with VM(BUSYBOX, memory="64m", volumes=["data:/data"]) as vm:
        vm.path("/data/file").write_bytes(contents)
        assert blocks(vm) < 32 << 10
    # Three ways, over the ends of a group, of a block of descriptors and of a group of groups.
    assert Volume("data").grow("300m").inspect().size == 300 * MIB
    assert cli("volume", "grow", "data", "12g") == "data\n"
    sizes = (12 << 30, 12 << 30, 80 << 30)
    for size, volume in zip(
        sizes, (Volume("data"), Volume("data", size="1g"), Volume("data", size="80g")), strict=True
    ):
        with VM(BUSYBOX, memory="64m", mounts={"/data": volume}) as vm:
            assert 0.9 * size < blocks(vm) << 10 < size
            assert vm.path("/data/file").read_bytes() == contents
            output(vm, f"mkdir /data/{size}-{id(volume)}; cp -r /bin /data/{size}-{id(volume)}")
        assert volumes.inspect("data").size == size
        check("data")


def test_one_whose_machine_was_killed_grows() -> None:
    with VM(BUSYBOX, memory="64m", volumes=["data:/data"], mounts={"/small": Volume("small", size="32m")}) as vm:
        output(vm, "cp -r /bin /small/bin; sync; find /small/bin -type f | xargs md5sum > /small/sums; sync")
        vm.popen("while true; do cp -r /bin /small/more; rm -rf /small/more; done", shell=True)
        output(vm, "sleep 0.3")
        assert vm.pid is not None
        os.kill(vm.pid, signal.SIGKILL)
        vm.wait(10)
    Volume("small").grow("2g")
    with VM(BUSYBOX, memory="64m", volumes=["small:/small"]) as vm:
        assert blocks(vm, "/small") > 1 << 20
        output(vm, "md5sum -c -s /small/sums")
    check("small")


def test_it_grows_while_programs_use_it() -> None:
    with VM(BUSYBOX, memory="64m", mounts={"/data": Volume("data", size="64m")}) as vm:
        seed = random.randbytes(MIB)
        vm.path("/dev/shm/seed").write_bytes(seed)
        output(vm, "while cat /dev/shm/seed > /data/full.$((n=n+1)); do :; done 2>/dev/null; rm /data/full.$n; sync")
        full = int(output(vm, "ls /data | wc -l"))
        assert 40 < full < 64
        vm.grow_volume("data", "1g")
        assert blocks(vm) > 900 << 10
        assert volumes.inspect("data").size == 1 << 30
        # Programs that write meanwhile go on.
        with vm.popen(
            "n=0; while test ! -e /dev/shm/enough; do cat /dev/shm/seed > /data/more.$n; n=$((n+1)); "
            "test $n -lt 200 || break; done; echo $n",
            shell=True,
            text=True,
            stdout=-1,
        ) as writer:
            for size in ("2g", "2g", "20g"):
                vm.grow_volume("data", size)
            output(vm, "touch /dev/shm/enough")
            more = int(writer.communicate()[0])
        expected = hashlib.md5(seed).hexdigest()
        output(vm, "sync; echo 3 > /proc/sys/vm/drop_caches")
        sums = output(vm, "md5sum /data/* | cut -d ' ' -f 1").split()
        assert sums == [expected] * (full + more)
        # Discarded room is given back also of what is new.
        output(vm, "rm /data/more.* && sync")
        clones = vm.fork(volumes="copy")
        assert blocks(clones[0]) == blocks(vm)
        clones[0].kill()
    check("data")


def grow_if_smaller(size: str) -> None:
    with contextlib.suppress(errors.ConfigurationError):
        Volume("data").grow(size)


def test_another_process_has_it_grow_while_programs_use_it() -> None:
    with VM(BUSYBOX, memory="64m", mounts={"/data": Volume("data", size="64m"), "/other": Volume("other")}) as vm:
        output(vm, "echo before > /data/file")
        assert cli("volume", "grow", "data", "1g") == "data\n"
        # The file system has it by then.
        assert blocks(vm) > 900 << 10
        output(vm, "head -c 100000000 /dev/zero > /data/more && sync")
        assert cli("volume", "grow", "data", "1g") == "data\n"
        assert "cannot be made one of" in cli("volume", "grow", "data", "64m", code=125)
        assert Volume("other").grow("100g").inspect().size == 100 << 30
        assert 90 << 20 < blocks(vm, "/other") < 100 << 20
        # Several wish it at once: no wish is lost for another's.
        threads = [threading.Thread(target=grow_if_smaller, args=(f"{size}g",)) for size in (4, 2, 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert volumes.inspect("data").size == 4 << 30
        assert 3 << 20 < blocks(vm) < 4 << 20
    check("data")
    with VM(BUSYBOX, memory="64m", volumes=["data:/data"]) as vm:
        assert output(vm, "cat /data/file; stat -c %s /data/more") == "before\n100000000\n"


def test_what_is_wished_of_a_machine_that_ends_is_done_without_it() -> None:
    with VM(BUSYBOX, memory="64m", mounts={"/data": Volume("data", size="64m")}) as vm:
        assert vm.pid is not None
        # It looks at nothing any more.
        os.kill(vm.pid, signal.SIGSTOP)
        ended = threading.Timer(1, lambda: os.kill(vm.pid or 0, signal.SIGKILL))
        ended.start()
        assert Volume("data").grow("1g").inspect().size == 1 << 30
        ended.join()
    check("data")
    with VM(BUSYBOX, memory="64m", volumes=["data:/data"]) as vm:
        assert blocks(vm) > 900 << 10


def test_a_snapshot_does_not_know_it_when_it_has_grown(tmp_path: Path) -> None:
    with VM(BUSYBOX, memory="64m", mounts={"/data": Volume("data", size="64m")}) as vm:
        vm.grow_volume("data", "128m")
        vm.snapshot(tmp_path / "snapshot")
        vm.kill()
    with VM.restore(tmp_path / "snapshot") as vm:
        assert blocks(vm) > 100 << 10
        vm.kill()
    Volume("data").grow("256m")
    with pytest.raises(errors.VolumeChanged):
        VM.restore(tmp_path / "snapshot")


def test_what_cannot_grow_says_why() -> None:
    Volume.create("data", "64m")
    with pytest.raises(errors.ConfigurationError, match="67108864 bytes cannot be made one of 33554432"):
        Volume("data").grow("32m")
    with pytest.raises(errors.ConfigurationError, match="8 TiB"):
        Volume("data").grow("9t")
    with pytest.raises(errors.VolumeNotFound):
        Volume("none").grow("1g")
    assert "volume grow" in cli("volume", "create", "--size", "1g", "data", code=125)
    with VM(BUSYBOX, memory="64m", volumes=["data:/data"]) as vm:
        with pytest.raises(errors.ConfigurationError, match="cannot be made one of"):
            Volume("data").grow("32m")
        with pytest.raises(errors.ConfigurationError, match="no volume other"):
            vm.grow_volume("other", "1g")
        with pytest.raises(errors.ConfigurationError, match="cannot be made one of"):
            vm.grow_volume("data", "32m")
    with (
        VM(BUSYBOX, memory="64m", volumes=["data:/data:ro"]) as vm,
        pytest.raises(errors.ConfigurationError, match="to write to"),
    ):
        with pytest.raises(errors.VolumeInUse):
            Volume("data").grow("1g")
        vm.grow_volume("data", "1g")
    # As earlier versions made them, with sparse_super2 in place of sparse_super.
    with (volumes.place() / "data").open("r+b") as file:
        file.seek(1024 + 92)
        file.write((0x22C).to_bytes(4, "little"))
    for grow in (
        lambda: Volume("data").grow("1g"),
        lambda: VM(BUSYBOX, mounts={"/x": Volume("data", size="1g")}).start(),
    ):
        with pytest.raises(errors.NotSupported, match="earlier version"):
            grow()
    assert volumes.inspect("data").size == 64 * MIB
