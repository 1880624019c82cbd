"""Directories and files of the host in real guests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from supermachine import VM, Share, StaleFile, Volume
from supermachine.errors import AgentError
from supermachine.snapshots.records import Head

from ..vm.guests import output, was_restored

BUSYBOX = Path(__file__).parents[2] / "demo" / "busybox.oci.tar"


@pytest.fixture
def src(tmp_path: Path) -> Path:
    src = tmp_path / "src"
    (src / "directory").mkdir(parents=True)
    (src / "file").write_text("of the host\n")
    (src / "link").symlink_to("/etc/hostname")
    return src


@pytest.mark.parametrize("bake", [False, True])
def test_both_sides_see_one_directory(src: Path, bake: bool) -> None:
    with VM(str(BUSYBOX), mounts={"/deep/work": src}, bake=bake) as vm:
        assert output(vm, "cat /deep/work/file") == "of the host\n"
        output(vm, "cd /deep/work && echo made > made && mkdir new && mv made new/moved && ln new/moved linked")
        assert (src / "new" / "moved").read_text() == "made\n"
        assert (src / "linked").stat().st_nlink == 2
        (src / "late").write_text("late\n")
        assert output(vm, "cat /deep/work/late") == "late\n"
        # A link means the guest's own file.
        assert output(vm, "cat /deep/work/link") == output(vm, "cat /etc/hostname")
        output(vm, "rm -r /deep/work/new && test ! -e /deep/work/new")
        assert sorted(os.listdir(src)) == ["directory", "file", "late", "link", "linked"]


def test_one_baked_snapshot_serves_with_shares_and_without(src: Path) -> None:
    with VM(str(BUSYBOX)) as vm:
        output(vm, "test ! -e /work")
    with VM(str(BUSYBOX), volumes=[f"{src}:/work"]) as vm:
        assert was_restored(vm)
        assert output(vm, "cat /work/file") == "of the host\n"
    with VM(str(BUSYBOX)) as vm:
        assert was_restored(vm)
        output(vm, "test ! -e /work")


def test_read_only_is_held(src: Path) -> None:
    with VM(str(BUSYBOX), volumes=[f"{src}:/work:ro"]) as vm:
        for command in (
            "touch /work/new",
            "echo x > /work/file",
            "rm /work/file",
            "mkdir /work/new",
            "chmod 777 /work",
        ):
            assert vm.run(command, shell=True).returncode != 0, command
        # Nor is it the mount alone that holds it: the same session, mounted once more by root.
        output(vm, "mount -o remount,rw,bind /work || true")
        assert vm.run("touch /work/new", shell=True).returncode != 0
    assert sorted(os.listdir(src)) == ["directory", "file", "link"]


def test_a_file_is_shared(src: Path) -> None:
    with VM(str(BUSYBOX), mounts={"/etc/given": src / "file"}) as vm:
        output(vm, "echo more >> /etc/given")
    assert (src / "file").read_text() == "of the host\nmore\n"


def test_what_is_the_host_user_s_is_the_guest_user_s(src: Path) -> None:
    with VM(str(BUSYBOX), mounts={"/work": src}, user="1234:567") as vm:
        assert output(vm, "stat -c %u:%g /work /work/file") == "1234:567\n1234:567\n"
        output(vm, "echo mine > /work/mine && chmod 600 /work/mine && test $(stat -c %u:%g /work/mine) = 1234:567")
    assert ((src / "mine").stat().st_uid, (src / "mine").stat().st_gid) == (os.geteuid(), os.getegid())


def test_changes_are_seen_at_once_without_a_cache(src: Path) -> None:
    with VM(str(BUSYBOX), mounts={"/work": Share(src, cache="none")}) as vm:
        for number in range(20):
            (src / "file").write_text(f"{number}\n")
            assert output(vm, "cat /work/file") == f"{number}\n"


#: Keeps a file and a directory of a share open, and says what is left of them when it is told to.
_HOLDS = """
cd /work/directory && exec 3<../file && touch /tmp/holds
while test ! -e /tmp/go; do sleep 0.05; done
cat <&3 >/tmp/descriptor 2>&1; ls . >/tmp/directory 2>&1; touch /tmp/said
"""
_IS_TOLD = "touch /tmp/go; while test ! -e /tmp/said; do sleep 0.05; done; cat /tmp/descriptor /tmp/directory"


def _holding(vm: VM) -> None:
    vm.popen(_HOLDS, shell=True)
    output(vm, "while test ! -e /tmp/holds; do sleep 0.05; done")


def test_a_fork_has_the_shares(src: Path) -> None:
    with VM(str(BUSYBOX), mounts={"/work": src}) as vm:
        output(vm, "echo first > /work/one")
        _holding(vm)
        with vm.fork()[0] as fork:
            assert output(fork, "cat /work/one") == "first\n"
            output(fork, "echo second > /work/two")
            # What was open is opened again, with the place that it was read to.
            assert output(fork, _IS_TOLD) == "of the host\n"
        assert output(vm, "cat /work/two") == "second\n"
        # There it goes on.
        assert output(vm, _IS_TOLD) == "of the host\n"


def test_a_restored_guest_has_open_what_it_had_where_that_is_the_same_file(src: Path, tmp_path: Path) -> None:
    (src / "directory" / "inner").write_text("inner\n")
    with VM(str(BUSYBOX), mounts={"/work": src}) as vm:
        _holding(vm)
        vm.snapshot(tmp_path / "snapshot")
    for _ in range(2):
        with VM.restore(tmp_path / "snapshot", mounts={"/work": src}) as vm:
            assert output(vm, _IS_TOLD) == "of the host\ninner\n"
    # Another file has taken the name: that is stale, and nothing else.
    (src / "new").write_text("another\n")
    (src / "new").replace(src / "file")
    with VM.restore(tmp_path / "snapshot", mounts={"/work": src}) as vm:
        assert vm.shares.stale() == []
        assert output(vm, _IS_TOLD).splitlines() == ["cat: read error: Stale file handle", "inner"]
        assert output(vm, "cat /work/file") == "another\n"
        # Which is told.
        stale = StaleFile("/work", "file", "changed")
        assert next(vm.shares.events(60)) == stale and vm.shares.stale() == [stale]
        assert list(vm.shares.events(0)) == [stale]
        assert str(stale) == "/work/file is stale: it has been removed, moved, or replaced by another file"
    # Neither is there without a share, or with another one.
    (src.parent / "other").mkdir()
    mounts: dict[str, str | os.PathLike[str] | Share | Volume]
    for mounts in ({}, {"/else": src.parent / "other"}):
        with VM.restore(tmp_path / "snapshot", mounts=mounts) as vm:
            vm.run("ls /work/ /else/", shell=True)
            stale = StaleFile(None, "file", "other-share")
            assert next(vm.shares.events(60)) == stale and vm.shares.stale() == [stale]


def test_a_restored_guest_has_the_shares_that_it_is_given(src: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("another\n")
    with VM(str(BUSYBOX), mounts={"/work": src}) as vm:
        assert output(vm, "cat /work/file") == "of the host\n"
        vm.snapshot(tmp_path / "snapshot")
    assert str(src).encode() not in Head.read(tmp_path / "snapshot").api
    with VM.restore(tmp_path / "snapshot", volumes=[f"{other}:/work:ro"]) as vm:
        assert output(vm, "cat /work/file") == "another\n"
        assert vm.run("touch /work/new", shell=True).returncode != 0
    with VM.restore(tmp_path / "snapshot", mounts={"/else/where": other}) as vm:
        assert output(vm, "cat /else/where/file; ls -A /work") == "another\n"
    # A snapshot opens nothing of the host's by itself.
    with VM.restore(tmp_path / "snapshot") as vm:
        done = vm.run("cat /work/file; touch /work/new", shell=True, capture_output=True)
        assert done.returncode != 0 and done.stderr.count(b"Stale file handle") == 2
    assert sorted(os.listdir(src)) == ["directory", "file", "link"]
    assert os.listdir(other) == ["file"]


def test_a_place_that_cannot_be_mounted_on_ends_the_start(src: Path) -> None:
    with pytest.raises(AgentError, match="/etc/hostname/below"), VM(str(BUSYBOX), mounts={"/etc/hostname/below": src}):
        pass


def test_the_command_line_shares_too(src: Path) -> None:
    command = ["run", "-q", "-v", f"{src}:/work", str(BUSYBOX), "sh", "-c", "cat /work/file && echo cli > /work/made"]
    done = subprocess.run([sys.executable, "-m", "supermachine", *command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "of the host\n"), done.stderr
    assert (src / "made").read_text() == "cli\n"
