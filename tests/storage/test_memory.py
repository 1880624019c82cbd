"""Memory as directories, and a root that is not written to, in real guests."""

from __future__ import annotations

from pathlib import Path

import pytest
from supermachine import VM, errors

from ..vm.guests import output

BUSYBOX = str(Path(__file__).parents[2] / "demo" / "busybox.oci.tar")


def mount_of(vm: VM, place: str) -> list[str]:
    (line,) = [line for line in output(vm, "cat /proc/mounts").splitlines() if line.split()[1] == place]
    return line.split()[3].split(",")


@pytest.mark.parametrize("bake", [True, False])
def test_memory_is_what_was_asked_for(bake: bool) -> None:
    with VM(
        BUSYBOX,
        memory="64m",
        bake=None if bake else False,
        tmpfs=["/cache:size=2m,mode=700,uid=7", "/etc", "/tmp:exec"],
        mounts=["type=tmpfs,dst=/deep/er,tmpfs-size=1m,readonly"],
        shm_size="3m",
    ) as vm:
        assert output(vm, "stat -c %a:%u /cache /etc /tmp") == f"700:7\n{mode(vm)}:0\n1777:0\n"
        assert {"nosuid", "nodev", "noexec", "size=2048k"} <= set(mount_of(vm, "/cache"))
        assert "noexec" not in mount_of(vm, "/tmp") and "ro" in mount_of(vm, "/deep/er")
        assert "size=3072k" in mount_of(vm, "/dev/shm")
        # As with docker, what the image has there is not seen.
        assert output(vm, "ls -A /etc") == ""
        for place, most in (("/cache", 2 << 20), ("/dev/shm", 3 << 20)):
            done = vm.run(f"dd if=/dev/zero of={place}/file bs=64k", shell=True, capture_output=True, text=True)
            assert "No space left on device" in done.stderr
            assert vm.path(place, "file").stat().st_size == most


def mode(vm: VM) -> str:
    """Of the image's /etc, which its successor has as well."""
    with VM(BUSYBOX, memory="64m") as plain:
        return output(plain, "stat -c %a /etc").strip()


def test_it_goes_with_the_guest_and_stays_when_shares_are_given_anew(tmp_path: Path) -> None:
    (tmp_path / "share").mkdir()
    share = f"{tmp_path / 'share'}:/shared"
    with VM(BUSYBOX, memory="64m", tmpfs=["/memory", "/shared/inside"], volumes=[share], read_only=True) as vm:
        output(vm, "echo one > /memory/file; echo two > /shared/inside/file; echo three > /shared/file")
        assert list((tmp_path / "share" / "inside").iterdir()) == []
        (fork,) = vm.fork(1)
        with fork:
            assert output(fork, "cat /memory/file /shared/inside/file /shared/file") == "one\ntwo\nthree\n"
            refused(fork, "/file")
        vm.snapshot(tmp_path / "snapshot")
    with VM.restore(tmp_path / "snapshot", tmpfs=["/new"], volumes=[f"{tmp_path / 'share'}:/other"]) as vm:
        assert output(vm, "cat /memory/file /other/file") == "one\nthree\n"
        output(vm, "echo four > /new/file")
        refused(vm, "/file")
    with VM(BUSYBOX, memory="64m") as vm:
        # Nobody else has any of it.
        assert vm.run("test -e /memory", shell=True).returncode != 0
        output(vm, "echo written > /file")


def refused(vm: VM, path: str) -> None:
    done = vm.run(f"echo text > {path}", shell=True, capture_output=True, text=True)
    assert done.returncode != 0 and "Read-only file system" in done.stderr
    with pytest.raises(OSError, match="ead-only"):
        vm.path(path).write_text("text")


def test_a_root_that_is_only_read() -> None:
    with VM(BUSYBOX, memory="64m", read_only=True, working_dir="/made/for/it", tmpfs=["/tmp"]) as vm:
        assert output(vm, "pwd") == "/made/for/it\n"
        for path in ("/file", "/etc/file", "/made/for/it/file"):
            refused(vm, path)
        # As in docker's containers: what is mounted, devices, and the files with names.
        output(vm, "echo a > /tmp/file; echo b > /dev/shm/file; echo c > /dev/null; echo 10.0.0.9 x >> /etc/hosts")
        assert "rw" in mount_of(vm, "/proc")
        with pytest.raises(errors.AgentError, match="nowhere"):
            VM(BUSYBOX, memory="64m", tmpfs=["/etc/passwd/nowhere"]).start()


def test_a_file_that_is_written_to_keeps_the_root_writable() -> None:
    warmup = ["sleep 600 > /log 2>&1 & echo"]
    with (
        pytest.raises(errors.AgentError, match="open for writing"),
        VM(BUSYBOX, memory="64m", warmup=warmup, read_only=True, bake=False),
    ):
        pass
