"""A share whose files have the owners that the guest gives them, while all of them are the host's user's."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from supermachine import VM, Share
from supermachine.errors import SupermachineError

from ..vm.guests import output

pytestmark = pytest.mark.vm

BUSYBOX = Path(__file__).parents[2] / "demo" / "busybox.oci.tar"
ATTRIBUTE = "user.supermachine.stat"


def test_owners_are_kept_beside_the_files(tmp_path: Path) -> None:
    mounts = {"/shared": Share(tmp_path, owner="virtual")}
    # Other users of the guest's get in.
    tmp_path.chmod(0o755)
    (tmp_path / "of the host").write_text("x")
    with VM(str(BUSYBOX), mounts=mounts) as vm:
        output(vm, "cd /shared && mkdir data && echo x > data/file && chown -R 70:71 data && chmod 700 data")
        output(vm, "cd /shared && chmod 4755 data/file && mkfifo data/fifo && chown 70 data/fifo && echo y > plain")
        # Another user has it to itself, and what the user makes belongs to that user.
        assert vm.run(["cat", "/shared/data/file"], user="1:1").returncode != 0
        output(vm, "mkdir -m 1777 /shared/all")
        vm.run("umask 77; echo z > /shared/all/own; ln -s own /shared/all/link", user="5:6", shell=True, check=True)
        assert output(vm, "stat -c %u:%g:%a /shared/all/own") == "5:6:600\n"
        assert vm.run(["rm", "-f", "/shared/all/own"], user="7:8").returncode != 0
    seen = "70:71:700 directory\n70:71:4755 regular file\n70:0:644 fifo\n0:0:644 regular file\n0:0:644 regular file\n"
    with VM(str(BUSYBOX), mounts=mounts) as vm:
        names = "data data/file data/fifo plain 'of the host'"
        assert output(vm, f"cd /shared && stat -c '%u:%g:%a %F' {names}") == seen
        assert output(vm, "find /shared -type p") == "/shared/data/fifo\n"
    host = (os.geteuid(), os.getegid())
    for path in (tmp_path / "data", *tmp_path.rglob("*")):
        assert (path.lstat().st_uid, path.lstat().st_gid) == host
        assert path.is_symlink() or stat.S_IMODE(path.stat().st_mode) & 0o6000 == 0
    assert os.getxattr(tmp_path / "data" / "file", ATTRIBUTE) == b"70:71:104755:0:0"
    assert (tmp_path / "data" / "fifo").is_file()
    # What the host says as well is not said twice.
    assert os.listxattr(tmp_path / "plain") == []


def test_the_guest_neither_sees_nor_sets_what_is_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    os.setxattr(tmp_path / "file", ATTRIBUTE, b"0:0:104777:0:0")
    # Of a share without owners of its own as well, which another machine may have with them.
    with VM(str(BUSYBOX), mounts={"/shared": tmp_path}) as vm:
        assert output(vm, "stat -c %a /shared/file") == "644\n"


def test_what_cannot_be_is_as_the_host_says(tmp_path: Path) -> None:
    texts = [b"", b"1:2", b"1:2:40755:0:0", b"1:2:100644:0:0:0", b"-1:2:100644:0:0", b"x" * 200, b"1:2:777777777:0:0"]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}").write_text("x")
        os.setxattr(tmp_path / f"{number}", ATTRIBUTE, text)
    with VM(str(BUSYBOX), mounts={"/shared": Share(tmp_path, owner="virtual")}) as vm:
        assert output(vm, "stat -c '%u:%g:%a %F' /shared/*") == "0:0:644 regular file\n" * len(texts)


def test_a_file_system_without_attributes_says_so() -> None:
    share = Share("/proc/sys", owner="virtual", read_only=True)
    with pytest.raises(SupermachineError, match="no extended attributes"), VM(str(BUSYBOX), mounts={"/shared": share}):
        pass
