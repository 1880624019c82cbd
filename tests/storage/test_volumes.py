"""Volumes in real guests: made on first use, filled, kept, locked, known to snapshots by what they were."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from supermachine import VM, Volume, errors
from supermachine.storage import volumes

from ..vm.guests import output

#: Random moments at which a worker is killed; `make soak` takes more.
MOMENTS = int(os.environ.get("SUPERMACHINE_TEST_MOMENTS", "3"))
BUSYBOX = str(Path(__file__).parents[2] / "demo" / "busybox.oci.tar")

pytestmark = pytest.mark.usefixtures("data")


def check(name: str, *how: str) -> None:
    """A file system that e2fsck finds nothing wrong with, after its journal has been replayed."""
    copy = volumes.place() / ".checked"
    subprocess.run(["cp", "--sparse=always", volumes.place() / name, copy], check=True)
    subprocess.run(["e2fsck", "-p", copy], check=False, capture_output=True)
    done = subprocess.run(["e2fsck", "-f", "-n", copy], check=False, capture_output=True, text=True)
    copy.unlink()
    assert done.returncode == 0, done.stdout


def cli(*words: str, code: int = 0) -> str:
    done = subprocess.run([sys.executable, "-m", "supermachine", *words], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_it_is_made_filled_and_kept(data: Path) -> None:
    with VM(BUSYBOX, memory="64m", volumes=["kept:/etc"]) as vm:
        # As docker does: what the image has there, and nothing that a file system brings along.
        assert output(vm, "ls -A /etc") == output(vm, "ls -A /etc; true")
        assert "passwd" in output(vm, "ls -A /etc") and "lost+found" not in output(vm, "ls -A /etc")
        output(vm, "echo first > /etc/made && chown 5:6 /etc/made && ln -s made /etc/link && rm /etc/passwd")
        with pytest.raises(errors.VolumeInUse) as caught, VM(BUSYBOX, memory="64m", volumes=["kept:/data"]):
            pass
        assert caught.value.holder == vm.pid and str(vm.pid) in str(caught.value)
        assert volumes.inspect("kept").holder == vm.pid
        with pytest.raises(errors.VolumeInUse):
            Volume("kept").remove()
    check("kept")
    with VM(BUSYBOX, memory="64m", mounts={"/deep/data": Volume("kept")}) as vm:
        assert output(vm, "cat /deep/data/link; stat -c %u:%g /deep/data/made; ls /deep/data/passwd || true") == (
            "first\n5:6\n"
        )
        # No process of the user's sees the directory below, and what is removed gives its room back.
        output(vm, "dd if=/dev/zero of=/deep/data/large bs=1M count=20; sync")
        assert volumes.inspect("kept").disk_bytes > 20 << 20
    with VM(BUSYBOX, memory="64m", volumes=["kept:/data"]) as vm:
        output(vm, "rm /data/large")
    assert volumes.inspect("kept").disk_bytes < 10 << 20
    assert os.listdir(data) == ["kept"]


def test_one_that_is_only_read_is_shared_and_stays_as_it_is() -> None:
    with VM(BUSYBOX, memory="64m", volumes=["common:/data"]) as vm:
        output(vm, "echo contents > /data/file")
    before = os.stat(volumes.place() / "common")
    with VM(BUSYBOX, memory="64m", volumes=["common:/data:ro"]) as one:
        with VM(BUSYBOX, memory="64m", mounts={"/data": Volume("common", read_only=True)}) as two:
            for vm in (one, two):
                assert output(vm, "cat /data/file") == "contents\n"
                assert vm.run("echo other > /data/file", shell=True, capture_output=True).returncode != 0
                # Whoever writes to the disk itself writes to nobody else's.
                output(vm, "dd if=/dev/zero of=/dev/vdc bs=1M count=8 conv=notrunc; sync")
        with pytest.raises(errors.VolumeInUse), VM(BUSYBOX, memory="64m", volumes=["common:/data"]):
            pass
    after = os.stat(volumes.place() / "common")
    assert (before.st_mtime_ns, before.st_blocks) == (after.st_mtime_ns, after.st_blocks)
    with VM(BUSYBOX, memory="64m", volumes=["common:/data:ro"]) as vm:
        assert output(vm, "cat /data/file") == "contents\n"


def test_what_was_synced_outlives_a_killed_worker() -> None:
    for number in range(MOMENTS):
        with VM(BUSYBOX, memory="64m", volumes=["database:/data"]) as vm:
            assert output(vm, "cat /data/log 2>/dev/null | wc -l") == f"{number}\n"
            output(vm, f"echo {number} >> /data/log && sync /data/log")
            vm.popen("while true; do cp -r /bin /data/more; rm -rf /data/more; sync; done", shell=True)
            time.sleep(random.uniform(0, 0.4))
            assert vm.pid is not None
            os.kill(vm.pid, signal.SIGKILL)
            vm.wait(10)
        check("database")


def test_snapshots_know_a_volume_by_what_it_was(tmp_path: Path) -> None:
    with VM(BUSYBOX, memory="64m", volumes=["state:/data"]) as vm:
        output(vm, "echo one > /data/file")
        vm.popen(
            "exec 3>> /data/file; touch /tmp/open; while test ! -e /tmp/go; do sleep 0.1; done; echo two >&3",
            shell=True,
        )
        output(vm, "while test ! -e /tmp/open; do sleep 0.05; done")
        with pytest.raises(errors.NotSupported, match="volume"):
            vm.fork()
        vm.snapshot(tmp_path / "snapshot")
        vm.kill()
    with VM.restore(tmp_path / "snapshot") as vm:
        # What was open goes on.
        output(vm, "touch /tmp/go; while ! grep -q two /data/file; do sleep 0.1; done")
        assert output(vm, "cat /data/file") == "one\ntwo\n"
    check("state")
    with pytest.raises(errors.VolumeChanged, match="state"):
        VM.restore(tmp_path / "snapshot")
    # Without it, or with another beside its place, the guest goes on.
    with VM.restore(tmp_path / "snapshot", volumes=["other:/other"]) as vm:
        assert output(vm, "echo new > /other/file; cat /other/file") == "new\n"
        assert vm.run("cat /data/file", shell=True, capture_output=True).returncode != 0
    Volume("state").remove()
    with pytest.raises(errors.VolumeNotFound, match="state"):
        VM.restore(tmp_path / "snapshot")


def test_forks_have_copies_on_request() -> None:
    with VM(BUSYBOX, memory="64m", volumes=["state:/data"]) as vm:
        output(vm, "echo one > /data/file")
        # As many as a template makes.
        clones = vm.fork(4, volumes="copy")
        output(vm, "echo of the original > /data/own")
        for number, clone in enumerate(clones):
            assert output(clone, "cat /data/file; ls /data") == "one\nfile\n"
            output(clone, f"echo {number} > /data/own; sync")
        assert [output(clone, "cat /data/own") for clone in clones] == ["0\n", "1\n", "2\n", "3\n"]
        with pytest.raises(errors.NotSupported, match="copy"):
            clones[0].fork(volumes="copy")
        for clone in clones:
            clone.kill()
        assert output(vm, "cat /data/own") == "of the original\n"
    check("state")


def test_a_terabyte_is_made_at_once(data: Path) -> None:
    began = time.perf_counter()
    Volume.create("large", "1t")
    assert time.perf_counter() - began < 1
    info = Volume.get("large").inspect()
    assert (info.size, info.holder) == (1 << 40, None)
    assert info.disk_bytes < 4 << 20
    assert [volume.name for volume in Volume.list()] == ["large"]
    with pytest.raises(errors.VolumeExists):
        Volume.create("large")
    assert os.listdir(data) == ["large"]


@pytest.mark.parametrize("said", ["../x:/data", "a b:/data", ":/data", "-x:/data", "x:data"])
def test_names_that_cannot_be(said: str) -> None:
    with pytest.raises((errors.ConfigurationError, errors.ShareNotFound)):
        VM(BUSYBOX, volumes=[said])


def test_too_many_and_the_same_twice() -> None:
    with pytest.raises(errors.ConfigurationError, match="4 volumes"):
        VM(BUSYBOX, volumes=[f"v{n}:/v{n}" for n in range(4)])
    with pytest.raises(errors.ConfigurationError, match="twice"):
        VM(BUSYBOX, volumes=["v:/one", "v:/two"])


def test_the_commands() -> None:
    assert cli("volume", "create", "--size", "1g", "one") == "one\n"
    assert cli("volume", "create", "two") == "two\n"
    assert "there already" in cli("volume", "create", "two", code=125)
    assert cli("volume", "ls", "-q") == "one\ntwo\n"
    assert "1.0 GiB" in cli("volume", "ls")
    (found,) = json.loads(cli("volume", "inspect", "one"))
    assert (found["name"], found["size"], found["holder"]) == ("one", 1 << 30, None)
    run = ["run", "-q", "--memory", "64m", "-v", "one:/data", BUSYBOX, "sh", "-c"]
    cli(*run, "echo from the command line > /data/file")
    mount = ["run", "-q", "--memory", "64m", "--mount", "type=volume,src=one,dst=/data", BUSYBOX]
    assert cli(*mount, "cat", "/data/file") == "from the command line\n"
    assert cli("volume", "rm", "one") == "one\n"
    assert "no volume one" in cli("volume", "inspect", "one", code=125)
    assert cli("volume", "prune", "-f").startswith("two\n")
    assert cli("volume", "ls", "-q") == ""
