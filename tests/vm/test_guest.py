"""What a caller sees of a real guest: processes, files, identity, endings."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import supermachine
from supermachine import VM

pytestmark = pytest.mark.vm


def test_output_status_and_input(guest: VM) -> None:
    done = guest.run(["sh", "-c", "cat; echo to stderr >&2; exit 3"], input=b"to stdin", capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"to stdin", b"to stderr\n")


def test_a_failed_command_raises_what_subprocess_raises(guest: VM) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        guest.run(["sh", "-c", "echo out; exit 9"], check=True, capture_output=True, text=True)
    assert (caught.value.returncode, caught.value.stdout) == (9, "out\n")


def test_a_signal_is_a_negative_status(guest: VM) -> None:
    assert guest.run(["sh", "-c", "kill -TERM $$"]).returncode == -signal.SIGTERM


def test_a_timeout_kills_the_whole_group_and_keeps_the_output(guest: VM) -> None:
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        guest.run(["sh", "-c", "echo partial; sleep 1000 & sleep 1000"], timeout=1, capture_output=True)
    assert caught.value.stdout == b"partial\n"
    found = guest.run("grep -l '^sleep' /proc/[0-9]*/comm; echo looked", shell=True, capture_output=True)
    assert found.stdout == b"looked\n"


def test_what_is_not_there_and_what_cannot_run(guest: VM) -> None:
    with pytest.raises(FileNotFoundError):
        guest.run(["no-such-program"])
    with pytest.raises(PermissionError):
        guest.run(["/etc/passwd"])


def test_megabytes_pass_both_ways_unchanged(guest: VM) -> None:
    data = os.urandom(3 << 20)
    done = guest.run(["cat"], input=data, capture_output=True, check=True)
    assert done.stdout == data


def test_processes_run_side_by_side(guest: VM) -> None:
    first = guest.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    second = guest.popen(["sh", "-c", "echo second"], stdout=subprocess.PIPE)
    assert second.communicate(timeout=60)[0] == b"second\n"
    assert first.poll() is None
    assert first.communicate(b"first", timeout=60)[0] == b"first"
    assert (first.returncode, second.returncode) == (0, 0)


def test_a_process_is_signalled(guest: VM) -> None:
    process = guest.popen(["sleep", "1000"])
    process.terminate()
    assert process.wait(timeout=60) == -signal.SIGTERM


def test_files_are_as_pathlib_has_them(guest: VM, tmp_path: Path) -> None:
    directory = guest.path("/tmp/files")
    directory.mkdir()
    file = directory / "name with spaces"
    file.write_text("contents")
    file.chmod(0o600)
    assert file.read_text() == "contents"
    assert file.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in directory.iterdir()] == ["name with spaces"]
    assert guest.run(["cat", str(file)], capture_output=True).stdout == b"contents"
    with pytest.raises(FileNotFoundError):
        (directory / "missing").read_bytes()
    guest.copy_out(file, tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "contents"


def test_the_guest_knows_the_time_its_name_and_fresh_random_numbers(guest: VM, busybox: str) -> None:
    now = float(guest.run(["date", "+%s"], capture_output=True).stdout)
    assert abs(now - time.time()) < 5
    with VM(busybox, hostname="somebody") as other:
        name = other.run(["hostname"], capture_output=True).stdout
        assert name == b"somebody\n"
        uuid = ["cat", "/proc/sys/kernel/random/uuid"]
        assert other.run(uuid, capture_output=True).stdout != guest.run(uuid, capture_output=True).stdout


def test_several_vcpus(busybox: str) -> None:
    with VM(busybox, vcpus=4) as vm:
        assert vm.run(["nproc"], capture_output=True).stdout == b"4\n"
        script = "for i in 1 2 3 4; do (seq 1 3000 | sha256sum) & done; wait"
        lines = vm.run(["sh", "-c", script], capture_output=True, check=True).stdout.split(b"\n")
        assert len(set(lines[:4])) == 1
        expected = subprocess.run("seq 1 3000 | sha256sum", shell=True, capture_output=True, check=True)
        assert lines[0] + b"\n" == expected.stdout


@pytest.mark.parametrize("what", ["exec", "read", "idle"])
def test_the_death_of_a_vm_wakes_who_waits(busybox: str, what: str) -> None:
    with VM(busybox) as vm:
        caught: list[BaseException] = []
        started = threading.Event()

        def wait() -> None:
            try:
                started.set()
                if what == "exec":
                    vm.run(["sleep", "1000"])
                elif what == "read":
                    vm.path("/dev/zero").read_bytes()
                else:
                    vm.wait()
            except BaseException as error:
                caught.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        started.wait()
        time.sleep(0.3)
        assert vm.pid is not None
        os.kill(vm.pid, signal.SIGKILL)
        thread.join(30)
        assert not thread.is_alive()
    if what != "idle":
        assert isinstance(caught[0], supermachine.errors.VMExited)


def test_a_guest_that_powers_itself_off_says_so(busybox: str) -> None:
    with VM(busybox) as vm:
        with pytest.raises(supermachine.errors.VMExited) as caught:
            vm.run(["sh", "-c", "poweroff -f; sleep 1000"], timeout=60)
        assert "powered off" in str(caught.value)


def test_more_of_a_file_is_read_ahead_than_the_kernel_would(guest: VM) -> None:
    assert int(guest.path("/sys/block/vda/queue/read_ahead_kb").read_text()) == 1024
