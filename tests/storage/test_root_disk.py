"""The root on a disk of its own, in real guests: more than memory holds, and the same bytes after every start."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from pathlib import Path

import pytest
from supermachine import VM, errors, snapshots

from ..vm.guests import output, wait_for

BUSYBOX = Path(__file__).parents[2] / "demo" / "busybox.oci.tar"


def sums(vm: VM) -> str:
    """Of what is on the disk, not of what the guest has in memory of it."""
    return output(vm, "sync; echo 3 > /proc/sys/vm/drop_caches; find /data -type f | sort | xargs md5sum")


def write(vm: VM, name: str, mebibytes: int) -> None:
    """A file that no other equals."""
    contents = random.randbytes(1 << 20)
    vm.path("/data").mkdir(exist_ok=True)
    vm.path("/tmp/seed").write_bytes(contents)
    output(vm, f"for n in $(seq {mebibytes}); do cat /tmp/seed; echo $n; done > /data/{name}")


def test_more_is_written_than_there_is_memory() -> None:
    with VM(str(BUSYBOX), memory="64m") as vm:
        # Both starts have it: the one that bakes, and those that go on from it.
        output(vm, "echo of the first > /file")
    with VM(str(BUSYBOX), memory="64m") as vm:
        output(vm, "dd if=/dev/zero of=/big bs=1M count=150; test $(stat -c %s /big) = 157286400; rm /big")
        write(vm, "file", 40)
        seed = vm.path("/tmp/seed").read_bytes()
        expected = hashlib.md5(b"".join(seed + b"%d\n" % n for n in range(1, 41))).hexdigest()
        assert output(vm, "echo 3 > /proc/sys/vm/drop_caches; md5sum /data/file").split()[0] == expected


@pytest.mark.parametrize("size", ["0", "32m"])
def test_the_size_is_what_was_asked_for(size: str) -> None:
    with VM(str(BUSYBOX), memory="128m", disk=size, bake=False) as vm:
        done = vm.run("dd if=/dev/zero of=/big bs=1M count=100", shell=True, capture_output=True, text=True)
        assert done.returncode != 0 and "No space left on device" in done.stderr
        used = "awk '$3 == \"vdb\" && $4 > 0' /proc/diskstats"
        assert (size != "0") == ("vdb" in output(vm, used))
        output(vm, "rm /big && echo again > /small && cat /small")


@pytest.mark.parametrize("size", ["1m", "9t", "much"])
def test_sizes_that_cannot_be_are_refused(size: str) -> None:
    with pytest.raises(errors.ConfigurationError):
        VM(str(BUSYBOX), disk=size)


def test_snapshots_diffs_of_diffs_and_forks_have_the_same_bytes(tmp_path: Path) -> None:
    whole, one, two, flat, again = (tmp_path / name for name in ("whole", "one", "two", "flat", "again"))
    with VM(str(BUSYBOX), memory="64m") as vm:
        write(vm, "first", 6)
        write(vm, "second", 3)
        before = sums(vm)
        vm.snapshot(whole)
        output(vm, "rm /data/first")
    assert snapshots.inspect(whole).root_disk_bytes == 64 << 30
    held = snapshots.inspect(whole).root_disk_held_bytes
    assert held is not None and 9 << 20 < held < 40 << 20
    with VM.restore(whole) as vm:
        assert sums(vm) == before
        output(vm, "rm /data/second")
        write(vm, "third", 2)
        after_one = sums(vm)
        vm.snapshot(one, diff=True)
    held = snapshots.inspect(one).root_disk_held_bytes
    assert held is not None and held < 8 << 20
    with VM.restore(one) as vm:
        assert sums(vm) == after_one
        write(vm, "fourth", 1)
        output(vm, "cp /data/third /data/copy; dd if=/dev/zero of=/data/first bs=4096 count=100 conv=notrunc")
        after_two = sums(vm)
        vm.snapshot(two, diff=True).flatten(flat)
        # Written after the capture, it is in none.
        write(vm, "fifth", 1)
        clones = vm.fork(2)
        of_fork = sums(vm)
        output(vm, "echo changed > /data/fourth")
        for n, clone in enumerate(clones):
            output(clone, f"echo {n} > /data/own")
        for n, clone in enumerate(clones):
            assert sums(clone).replace(sums_of(clone, "own"), "") == of_fork
            assert output(clone, "cat /data/own") == f"{n}\n"
        (grandchild,) = clones[0].fork()
        clones[0].snapshot(again)
        clones[0].kill()
        assert output(grandchild, "cat /data/own") == "0\n"
        for clone in (*clones, grandchild):
            clone.kill()
    for snapshot in (two, flat):
        with VM.restore(snapshot) as vm:
            assert sums(vm) == after_two
    with VM.restore(again) as vm:
        assert output(vm, "cat /data/own") == "0\n" and of_fork in sums(vm).replace(sums_of(vm, "own"), "")
    exported = tmp_path / "exported"
    snapshots.export(flat, exported)
    assert snapshots.import_(exported, tmp_path / "imported") == snapshots.verify(flat)
    with VM.restore(tmp_path / "imported") as vm:
        assert sums(vm) == after_two
    assert sorted(os.listdir(tmp_path)) == ["again", "exported", "flat", "imported", "one", "two", "whole"]


def sums_of(vm: VM, name: str) -> str:
    return output(vm, f"md5sum /data/{name}")


def test_the_disk_of_a_snapshot_is_sound(tmp_path: Path) -> None:
    """Taken amid writing: the file system's journal makes it whole again, as e2fsck sees it."""
    with VM(str(BUSYBOX), memory="64m", disk="1g") as vm:
        vm.popen("while true; do cp -r /bin /data 2>/dev/null; rm -rf /data; sync; done", shell=True)
        for n in range(3):
            vm.snapshot(tmp_path / f"snapshot-{n}")
    for n in range(3):
        image = tmp_path / "image"
        disk_of(tmp_path / f"snapshot-{n}", image)
        subprocess.run(["e2fsck", "-p", image], check=False, capture_output=True)
        done = subprocess.run(["e2fsck", "-f", "-n", image], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def disk_of(snapshot: Path, image: Path) -> None:
    """Unpacks the disk of a whole snapshot, by docs/reference/snapshot-format.md alone."""
    data = snapshot.read_bytes()
    sections, ram, memory = (int.from_bytes(data[at : at + 8], "little") for at in (16, 24, 32))
    at = 160
    while data[at : at + 16].rstrip(b"\0") != b"disk":
        at += 40 + -(-int.from_bytes(data[at + 24 : at + 32], "little") // 8) * 8
        assert at < 160 + sections
    body = data[at + 40 :]
    length = int.from_bytes(body[40:44], "little")
    numbers = iter(_varints(body[44 : 44 + length]))
    where, end = ram + memory, 0
    with image.open("wb") as file:
        file.truncate(int.from_bytes(body[:8], "little"))
        for distance in numbers:
            start = end + distance * 4096
            end = start + next(numbers) * 4096
            file.seek(start)
            file.write(data[where : where + end - start])
            where += end - start
    assert where == len(data)


def _varints(data: bytes) -> list[int]:
    found, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            found.append(value)
            value = shift = 0
    return found


def test_a_file_that_is_removed_gives_its_room_back(cache: Path) -> None:
    with VM(str(BUSYBOX), memory="64m") as vm:
        own = Path(f"/proc/self/fd/{vm._started().disk.own}")
        write(vm, "file", 20)
        output(vm, "sync")
        assert own.stat().st_blocks * 512 > 20 << 20
        output(vm, "rm /data/file /tmp/seed; sync")
        # Discards follow the commit of the journal.
        wait_for(lambda: own.stat().st_blocks * 512 < 8 << 20, "the room of what was removed")
    assert not [path for path in (cache / "tmp").iterdir() if path.is_file()]


def test_removing_a_tree_is_not_a_request_for_each_file() -> None:
    def exits() -> int:
        kinds, _ = vm._started().worker.stats() or ((), 0)
        return sum(count for _, count in kinds)

    with VM(str(BUSYBOX), memory="64m") as vm:
        output(vm, "mkdir /tree; for n in $(seq 1000); do echo $n > /tree/$n; done; sync")
        before = exits()
        output(vm, "rm -r /tree; sync")
        # One for each was 1,000 and more.
        assert exits() - before < 500


def test_version_8_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with (
        VM(str(BUSYBOX), engine="soft", memory="64m") as vm,
        pytest.raises(errors.NotSupported, match="version 8"),
    ):
        vm.snapshot(tmp_path / "old", format=8)
    assert os.listdir(tmp_path) == []
