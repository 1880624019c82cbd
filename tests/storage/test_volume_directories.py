"""Volumes that are directories of the host, in real guests: filled, kept with owners, had by several at once."""

from __future__ import annotations

import io
import json
import os
import tarfile
import threading
from pathlib import Path

import pytest
from supermachine import VM, Volume, errors
from supermachine.machine.volume_tars import export_volume, import_volume
from supermachine.storage import volumes

from ..vm.guests import output
from .test_volumes import BUSYBOX, cli

pytestmark = pytest.mark.usefixtures("data")


def given(name: str = "common", *, read_only: bool = False) -> Volume:
    return Volume(name, kind="directory", read_only=read_only)


def test_it_is_made_filled_shared_and_kept(data: Path) -> None:
    with VM(BUSYBOX, memory="64m", mounts={"/etc": given()}) as one:
        # As docker does: what the image has there, and not what a share has beside it.
        assert "passwd" in output(one, "ls -A /etc") and "volume" not in output(one, "ls -A /etc")
        output(
            one,
            "echo first > /etc/made && chown 5:6 /etc/made && chmod 4755 /etc/made && ln -s made /etc/link && "
            "rm /etc/passwd && mkfifo /etc/fifo && chown 70:71 /etc",
        )
        # By what it is called from here on, as another user, who is not the host's in it, and at the same time.
        with VM(BUSYBOX, memory="64m", volumes=["common:/deep/data"], user="1234:1234") as two:
            listed = output(two, "cd /deep/data; stat -c '%u:%g %a %F' . made fifo; cat link; ls passwd || true")
            assert listed == "70:71 755 directory\n5:6 4755 regular file\n0:0 644 fifo\nfirst\n"
            assert two.run("echo no > /deep/data/file", shell=True, capture_output=True).returncode != 0
            output(one, "mkdir -m 777 /etc/open")
            output(two, "while ! test -d /deep/data/open; do sleep 0.1; done; echo 2 > /deep/data/open/file")
            assert output(one, "stat -c %u:%g /etc/open/file; cat /etc/open/file") == "1234:1234\n2\n"
            found = volumes.inspect("common")
            assert (found.kind, found.size, found.holder) == ("directory", 0, os.getpid())
            with pytest.raises(errors.VolumeInUse) as caught:
                Volume("common").remove()
            assert caught.value.holder == os.getpid()
            assert volumes.prune() == {}
    # The host's user reads all of it.
    assert (volumes.inspect("common").path / "volume" / "made").read_text() == "first\n"
    with VM(BUSYBOX, memory="64m", volumes=["common:/data"]) as vm:
        assert output(vm, "stat -c %u:%g:%a /data/made /data/open/file") == "5:6:4755\n1234:1234:644\n"
        vm.kill()
    assert volumes.inspect("common").holder is None
    assert list(volumes.prune()) == ["common"] and os.listdir(data) == []


def test_two_machines_that_begin_at_once_fill_it_once() -> None:
    said = []

    def start() -> None:
        with VM(BUSYBOX, memory="64m", mounts={"/bin": given()}) as vm:
            said.append(output(vm, "find /bin | sort | md5sum"))

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with VM(BUSYBOX, memory="64m") as vm:
        assert said == [output(vm, "find /bin | sort | md5sum")] * 2


def test_what_a_machine_was_killed_amid_filling_is_begun_anew() -> None:
    Volume.create("common", kind="directory")
    unfinished = volumes.inspect("common").path / "volume.new"
    unfinished.mkdir()
    (unfinished / "half").write_text("of it")
    with VM(BUSYBOX, memory="64m", volumes=["common:/etc"]) as vm:
        assert "passwd" in output(vm, "ls /etc") and "half" not in output(vm, "ls /etc")
    assert not unfinished.exists()


def test_one_that_is_only_read() -> None:
    # New, it is what it would be filled with, as a disk is.
    with VM(BUSYBOX, memory="64m", mounts={"/etc": given(read_only=True)}) as vm:
        assert "passwd" in output(vm, "ls /etc")
        assert vm.run("echo no > /etc/file", shell=True, capture_output=True).returncode != 0
    assert os.listdir(volumes.inspect("common").path) == []
    with VM(BUSYBOX, memory="64m", volumes=["common:/data"]) as writer:
        output(writer, "echo contents > /data/file")
        with VM(BUSYBOX, memory="64m", volumes=["common:/data:ro"]) as vm:
            assert output(vm, "cat /data/file") == "contents\n"
            assert vm.run("echo no > /data/file", shell=True, capture_output=True).returncode != 0


def test_forks_and_snapshots_have_it(tmp_path: Path) -> None:
    with VM(BUSYBOX, memory="64m", mounts={"/data": given()}) as vm:
        output(vm, "echo one > /data/file && chown 5:6 /data/file")
        vm.snapshot(tmp_path / "snapshot")
        (clone,) = vm.fork()
        output(clone, "echo of the clone > /data/own")
        assert output(vm, "cat /data/own") == "of the clone\n"
        vm.kill()
        with pytest.raises(errors.VolumeInUse):
            Volume("common").remove()
        clone.kill()
    # By its name, as it is now.
    with VM.restore(tmp_path / "snapshot") as vm:
        assert output(vm, "cat /data/own; stat -c %u:%g /data/file") == "of the clone\n5:6\n"
        with pytest.raises(errors.VolumeInUse):
            Volume("common").remove()
    with VM.restore(tmp_path / "snapshot", volumes=[]) as vm:
        assert vm.run("cat /data/own", shell=True, capture_output=True).returncode != 0
    Volume("common").remove()
    with pytest.raises(errors.VolumeNotFound, match="common"):
        VM.restore(tmp_path / "snapshot")


def test_as_a_tar_and_back() -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, uid in (("file", 70), ("other", 0)):
            member = tarfile.TarInfo(name)
            member.uid, member.gid, member.size = uid, uid + 1, 3
            tar.addfile(member, io.BytesIO(b"abc"))
    Volume.create("common", kind="directory")
    import_volume("common", io.BytesIO(archive.getvalue()))
    assert volumes.inspect("common").kind == "directory"
    with VM(BUSYBOX, memory="64m", volumes=["common:/data"]):
        # Also while machines have it.
        out = io.BytesIO()
        export_volume("common", out)
    out.seek(0)
    with tarfile.open(fileobj=out) as tar:
        found = {member.name: (member.uid, member.gid, member.size) for member in tar if member.isfile()}
    assert found == {"./file": (70, 71, 3), "./other": (0, 1, 3)}


def test_the_commands_and_what_cannot_be() -> None:
    assert cli("volume", "create", "--kind", "directory", "common") == "common\n"
    assert "there already" in cli("volume", "create", "common", code=125)
    assert "directory" in cli("volume", "ls")
    (found,) = json.loads(cli("volume", "inspect", "common"))
    assert (found["kind"], found["size"], found["holder"]) == ("directory", 0, None)
    mount = ["--mount", "type=volume,src=made,dst=/data,kind=directory"]
    cli("run", "-q", "--memory", "64m", *mount, BUSYBOX, "sh", "-c", "echo text > /data/file")
    assert (volumes.inspect("made").path / "volume" / "file").read_text() == "text\n"
    assert cli("volume", "rm", "made") == "made\n"
    Volume.create("disk", "32m")
    for volume, said in (
        (given("disk"), "is a disk, and a directory is asked for"),
        (Volume("common", kind="disk"), "is a directory, and a disk is asked for"),
        (Volume("common", size="1g"), "no size of its own"),
        (Volume("other", size="1g", kind="directory"), "no size of its own"),
        (Volume("other", kind="tape"), "disk or directory"),  # type: ignore[arg-type]
    ):
        with pytest.raises(errors.ConfigurationError, match=said):
            VM(BUSYBOX, mounts={"/data": volume})
    with pytest.raises(errors.ConfigurationError, match="is a directory"):
        Volume("common").grow("1g")
    with pytest.raises(errors.ConfigurationError, match="is of a volume"):
        VM(BUSYBOX, mounts=["type=bind,src=.,dst=/data,kind=directory"])
    with pytest.raises(errors.VolumeExists):
        Volume.create("disk", kind="directory")
    assert cli("volume", "prune", "-f").startswith("common\ndisk\n")
