"""The emulated hosts themselves: KVM in them is real, and commands in them behave as commands here."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hosts import Host, HostError

pytestmark = pytest.mark.vm

PROBE = Path(__file__).with_name("kvm_probe.c")


def test_kvm_runs_guest_code(host: Host, c_program: Callable[[Path, str], Path]) -> None:
    host.put(c_program(PROBE, host.architecture), "/root/probe")
    done = host.run(["/root/probe"], 60, text=True, check=True)
    # KVM_EXIT_MMIO is 6.
    assert done.stdout == "exit 6 write 1 at 0xc000: 8888888, memory 8888888\n"


def test_users_other_than_root_may_use_it(host: Host, c_program: Callable[[Path, str], Path]) -> None:
    host.put(c_program(PROBE, host.architecture), "/home/user/probe")
    done = host.run(["/home/user/probe"], 60, user=1000, cwd="/home/user", text=True, check=True)
    assert "8888888" in done.stdout


def test_streams_status_environment_and_directory(host: Host) -> None:
    script = "cat; echo $WORD $PWD >&2; exit 3"
    done = host.run(["sh", "-c", script], 60, input="in", text=True, env={"WORD": "w"}, cwd="/tmp")
    assert (done.returncode, done.stdout, done.stderr) == (3, "in", "w /tmp\n")
    assert host.run(["sh", "-c", "kill -9 $$"], 60).returncode == -9


def test_what_cannot_be_started_says_why(host: Host) -> None:
    with pytest.raises(FileNotFoundError, match="host"):
        host.run(["/no/such/program"], 60)
    with pytest.raises(HostError, match="status 4: bad"):
        host.run(["sh", "-c", "echo bad; exit 4"], 60, check=True)


def test_a_deadline_ends_the_whole_group(host: Host) -> None:
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        host.run(["sh", "-c", "echo begun; sleep 1000 & sleep 1001"], 5)
    assert caught.value.output == b"begun\n"
    left = host.run(["sh", "-c", "for n in 1 2 3 4 5; do pgrep -f 'sleep 100[01]' || exit 0; sleep 1; done"], 60)
    assert left.stdout == b""


def test_files_and_trees_are_copied_in_and_out(host: Host, tmp_path: Path) -> None:
    data = bytes(range(256)) * 8192
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/file").write_bytes(data)
    (tmp_path / "link").symlink_to("deep/file")
    host.put(tmp_path, "/root/tree")
    assert host.get("/root/tree/link") == data
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho ran\n")
    program.chmod(0o755)
    host.put(program, "/root/new/program")
    assert host.run(["/root/new/program"], 60).stdout == b"ran\n"


def test_a_host_does_not_outlive_who_started_it() -> None:
    script = (
        "import os, signal; from tests.hosts import Host; host = Host('aarch64', memory=512 << 20, cpus=1); "
        "host.start(); print(host.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=900)
    emulator = Path(f"/proc/{int(done.stdout)}/cmdline")
    deadline = time.monotonic() + 300
    while emulator.exists() and b"qemu" in emulator.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_host_that_ends_wakes_who_waits() -> None:
    with Host("x86_64", memory=512 << 20, cpus=1) as host, pytest.raises(HostError, match="gone"):
        host.run(["poweroff", "-f"], 120)
