"""The engine for Macs under the Python interface, on Linux: over a software Hypervisor.framework.

What the engine itself does there is rust/worker's to test; here it is that the interface and the engine fit.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import supermachine
from supermachine import VM, errors
from supermachine.host import engines

from .guests import output, was_restored

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(sys.platform != "linux", reason="on a Mac every test is of this engine"),
]


@pytest.fixture
def guest(hvf: str, busybox: str) -> Iterator[VM]:
    with VM(busybox, engine=hvf, vcpus=2) as vm:
        yield vm


def test_the_main_job(hvf: str, busybox: str) -> None:
    done = supermachine.run(busybox, ["sh", "-c", "uname -m; nproc; cat; exit 3"], engine=hvf, vcpus=4, input=b"in")
    assert (done.returncode, done.stdout) == (3, b"aarch64\n4\nin")


def test_processes_signals_and_files(guest: VM, tmp_path: Path) -> None:
    # Each character of the kernel's log would be two exits.
    assert output(guest, "cat /proc/cmdline").startswith("quiet ")
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        guest.run("echo begun; sleep 1000", shell=True, timeout=1)
    assert caught.value.output == b"begun\n"
    process = guest.popen(["sleep", "1000"])
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM
    data = os.urandom(3 << 20)
    (tmp_path / "data").write_bytes(data)
    guest.copy_in(tmp_path / "data", "/root/data")
    assert guest.path("/root/data").stat().st_size == len(data)
    guest.copy_out("/root/data", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    with pytest.raises(FileNotFoundError):
        guest.path("/root/missing").read_bytes()


def test_snapshots_restores_and_forks(guest: VM, tmp_path: Path) -> None:
    guest.path("/root/state").write_text("before")
    guest.run("(sleep 1; echo woke > /tmp/woke) > /dev/null 2>&1 &", shell=True, check=True)
    snapshot = guest.snapshot(tmp_path / "snapshot")
    assert supermachine.snapshots.inspect(snapshot.path).engine == "hvf"
    guest.path("/root/state").write_text("after")
    with snapshot.restore() as clone:
        assert (clone.engine, output(clone, "cat /root/state; nproc")) == ("hvf", "before2\n")
        assert output(clone, "while ! cat /tmp/woke 2>/dev/null; do sleep 0.1; done") == "woke\n"
        assert abs(float(output(clone, "date +%s")) - time.time()) < 60
        clone.path("/root/state").write_text("in the clone")
        diff = clone.snapshot(tmp_path / "diff", diff=True)
        assert diff.data_bytes < snapshot.data_bytes
    with diff.restore() as clone:
        assert output(clone, "cat /root/state") == "in the clone"
    forks = guest.fork(2)
    try:
        assert {output(vm, "cat /root/state; hostname") for vm in forks}.isdisjoint([output(guest, "hostname")])
        assert len({output(vm, "cat /proc/sys/kernel/random/uuid") for vm in [*forks, guest]}) == 3
    finally:
        for vm in forks:
            vm.kill()
    assert output(guest, "cat /root/state") == "after"


def test_a_start_after_the_first_goes_on_from_a_snapshot(
    hvf: str, busybox: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPERMACHINE_CACHE", str(tmp_path / "cache"))
    for restored in (False, True):
        with VM(busybox, engine=hvf) as vm:
            assert was_restored(vm) == restored
            assert output(vm, "echo hi") == "hi\n"


def test_whoever_waits_learns_of_a_worker_that_is_gone(guest: VM) -> None:
    process = guest.popen(["sleep", "1000"])
    assert guest.pid is not None
    os.kill(guest.pid, signal.SIGKILL)
    with pytest.raises(errors.VMExited) as caught:
        process.wait(30)
    assert caught.value.reason == "crashed"
    with pytest.raises(errors.VMExited):
        guest.run(["true"])


def test_a_snapshot_of_another_engine_is_refused(hvf: str, busybox: str, tmp_path: Path) -> None:
    with VM(busybox, engine="soft") as vm:
        snapshot = vm.snapshot(tmp_path / "soft")
    with VM.restore(snapshot.path) as vm:
        assert vm.engine == "soft"
    with VM(busybox, engine=hvf) as vm:
        ours = vm.snapshot(tmp_path / "hvf")
    with pytest.MonkeyPatch.context() as patch:
        # As on any host without the framework.
        patch.setitem(engines._PROBES, "hvf", engines._hvf)
        with pytest.raises(errors.EngineUnavailable, match="macOS only"):
            ours.restore()


def test_it_is_not_passed_off_as_hardware(guest: VM, hvf: str, busybox: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (guest.engine, guest.isolation) == ("hvf", "software")
    with pytest.raises(errors.HardwareRequired):
        VM(busybox, engine=hvf, require_hardware=True)
    # The worker alone changes nothing: without the tests' own word there is no such engine here.
    monkeypatch.setitem(engines._PROBES, "hvf", engines._hvf)
    with pytest.raises(errors.EngineUnavailable, match="macOS only"):
        VM(busybox, engine=hvf)
    assert not next(e for e in engines.probe() if e.name == "hvf").usable


def test_the_workers_that_ship_have_no_software_framework(busybox: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engines._PROBES, "hvf", lambda: engines.Engine("hvf", "software", True, "not so"))
    with pytest.raises(errors.VMExited, match="this build has no hvf engine"):
        VM(busybox, engine="hvf", bake=False).start()
