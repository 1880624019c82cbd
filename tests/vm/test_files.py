"""Files of a real guest that are no ordinary ones: endless, empty by their size alone, with nobody at the other end."""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path

import pytest
from supermachine import VM, errors
from supermachine.guest import paths

pytestmark = pytest.mark.vm

TERABYTES = 8 << 40


def threads_of_the_agent(vm: VM) -> int:
    return len(list(vm.path("/proc/1/task").iterdir()))


def test_a_sparse_file_of_nobodys_costs_nothing(guest: VM, tmp_path: Path) -> None:
    guest.run(["truncate", "-s", str(TERABYTES), "/tmp/huge"], user="65534:65534", check=True)
    began = time.monotonic()
    for read in (guest.path("/tmp/huge").read_bytes, guest.path("/tmp/huge").read_text):
        with pytest.raises(errors.FileTooLarge, match="more than 1073741824 bytes"):
            read()
    # A gigabyte of zeros would come through the interpreted guest otherwise.
    assert time.monotonic() - began < 10
    copy = Path(guest.copy_out("/tmp/huge", tmp_path / "huge", max_bytes=1))
    assert copy.stat().st_size == TERABYTES
    assert copy.stat().st_blocks == 0
    guest.path("/tmp/huge").unlink()


def test_holes_are_read_as_zeros(guest: VM) -> None:
    guest.run("truncate -s 3145728 /tmp/holes && printf end >>/tmp/holes", shell=True, check=True)
    assert guest.path("/tmp/holes").read_bytes() == bytes(3 << 20) + b"end"
    with pytest.raises(errors.FileTooLarge):
        guest.path("/tmp/holes").read_bytes(max_bytes=(3 << 20) + 2)
    assert len(guest.path("/tmp/holes").read_bytes(max_bytes=(3 << 20) + 3)) == (3 << 20) + 3


def test_nobody_waits_at_a_fifo_for_longer_than_is_said(
    guest: VM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "ANSWER_TIMEOUT", 0.5)
    guest.run(["mkfifo", "/tmp/fifo"], user="65534:65534", check=True)
    (tmp_path / "file").write_text("x")
    fifo = guest.path("/tmp/fifo")
    # Connections that earlier tests have left wait as long as was usual then.
    fifo._fs.forget()
    before = threads_of_the_agent(guest)
    for _ in range(5):
        with pytest.raises(errors.VMTimeout):
            fifo.read_bytes()
        with pytest.raises(errors.VMTimeout):
            fifo.write_bytes(b"x")
    monkeypatch.undo()
    # A copy has a time of its own.
    with pytest.raises(errors.VMTimeout, match=r"within 0\.5 seconds"):
        guest.copy_in(tmp_path / "file", "/tmp/fifo", timeout=0.5)
    deadline = time.monotonic() + 60
    while threads_of_the_agent(guest) > before + 1:
        assert time.monotonic() < deadline, "the agent goes on waiting for a caller that has gone"
        time.sleep(0.1)


def test_a_fifo_with_somebody_at_its_other_end(guest: VM) -> None:
    fifo = guest.path("/tmp/pair")
    guest.run(["mkfifo", "/tmp/pair"], check=True)
    writer = guest.popen("sleep 0.3; (echo one; sleep 0.3; echo two) >/tmp/pair", shell=True)
    assert fifo.read_text() == "one\ntwo\n"
    assert writer.wait(60) == 0
    reader = guest.popen("sleep 0.3; wc -c </tmp/pair >/tmp/counted", shell=True)
    # More than a FIFO holds.
    fifo.write_bytes(bytes(1 << 20))
    assert reader.wait(60) == 0
    assert guest.path("/tmp/counted").read_text().split() == [str(1 << 20)]


def test_files_of_the_kernel_have_contents_whatever_their_size(guest: VM, tmp_path: Path) -> None:
    assert guest.path("/proc/version").stat().st_size == 0
    copy = Path(guest.copy_out("/proc/version", tmp_path / "version"))
    assert copy.read_text() == guest.path("/proc/version").read_text()
    copy = Path(guest.copy_out("/sys/kernel/mm/transparent_hugepage/enabled", tmp_path / "enabled"))
    assert "never" in copy.read_text()


@pytest.mark.filterwarnings("ignore:.*was copied without")
def test_a_tree_that_changes_all_the_time(guest: VM, tmp_path: Path) -> None:
    """Files, links, directories and FIFOs take one another's places while they are copied."""
    guest.path("/tmp/changing").mkdir()
    script = """
    cd /tmp/changing
    i=0
    while :; do
        for n in 1 2 3 4 5 6 7 8; do
            rm -rf $n
            case $(((i + n) % 5)) in
                0) mkdir $n; echo x >$n/file;;
                1) ln -s /etc/passwd $n;;
                2) mkfifo $n;;
                3) echo contents >$n;;
            esac
        done
        i=$((i + 1))
    done
    """
    changes = guest.popen(script, shell=True)
    try:
        for number in range(20):
            # What has become a FIFO may be waited for; nothing is said of it that is not so.
            try:
                guest.copy_out("/tmp/changing", tmp_path / str(number), timeout=2)
            except errors.CopyIncomplete as error:
                assert isinstance(error.__cause__, errors.VMTimeout), error
    finally:
        changes.kill()
    for path in tmp_path.rglob("*"):
        assert stat.S_IFMT(path.lstat().st_mode) in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO)


def test_a_device_without_an_end_is_read_up_to_the_limit(guest: VM, tmp_path: Path) -> None:
    with pytest.raises(errors.FileTooLarge):
        guest.path("/dev/zero").read_bytes(max_bytes=1 << 20)
    with pytest.raises(errors.NotSupported, match="a device"):
        guest.copy_out("/dev/zero", tmp_path / "zero")
    assert not os.listdir(tmp_path)


def test_callers_of_a_machine_that_dies_are_woken_at_a_fifo(busybox: str) -> None:
    vm = VM(busybox, memory="128m")
    vm.start()
    vm.run(["mkfifo", "/tmp/fifo"], check=True)
    found: list[BaseException] = []

    def read() -> None:
        try:
            vm.path("/tmp/fifo").read_bytes()
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    time.sleep(0.5)
    vm.kill()
    thread.join(10)
    assert isinstance(found[0], errors.VMExited)
