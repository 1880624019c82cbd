"""Descriptors: none of ours is 0, 1 or 2, and none is left over from what has ended."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import subprocess
import sys

import pytest
from supermachine import PIPE, VM
from supermachine.errors import HostShortage

DAEMON = r"""
FRAME = r"printf '\1\0\0\0\2'"
import fcntl, os, sys
log = fcntl.fcntl(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT), fcntl.F_DUPFD, 50)
import supermachine
if sys.argv[2] == "late":
    from supermachine import _core
for fd in map(int, sys.argv[3:]):
    os.close(fd)
from supermachine import VM, images
from supermachine.images import ImageConfig, Platform, ResolvedImage
from pathlib import Path
config = ImageConfig(env=("PATH=/usr/bin:/bin",))
empty = Path(os.environ["SUPERMACHINE_KERNEL"])
image = ResolvedImage("x:y", "sha256:" + "0" * 64, Platform("linux", "arm64"), config, empty, 0)
images.resolve = lambda *a, **k: image
with VM("x") as vm:
    said = [vm.run(["echo", "one"], text=True).stdout]
    # A frame, as the worker's control socket would take it: a request to end.
    said.append(vm.popen(["sh", "-c", "cat; " + FRAME + "; (" + FRAME + ") >&2; exit 3"]).wait(10))
    said.append(vm.path("/").is_dir())
    said.append(vm.run(["echo", "two"], text=True).stdout)
    ours = [os.readlink(f"/proc/self/fd/{fd}") for fd in map(int, sys.argv[3:])]
    theirs = [os.readlink(f"/proc/{vm.pid}/fd/{fd}").partition(":")[0] for fd in (0, 1, 2)]
os.write(log, repr((said, set(ours), theirs)).encode())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("when", ["before", "late"])
@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_standard_streams_are_as_dev_null(stand_in, tmp_path, closed, when):
    log = tmp_path / "log"
    words = [sys.executable, "-c", DAEMON, log, when, *map(str, closed)]
    subprocess.run(words, check=True, timeout=60, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    said, ours, theirs = eval(log.read_text())
    assert said == ["one\n", 3, True, "two\n"]
    assert ours == {"/dev/null"}
    assert theirs == ["socket", "/dev/null", "pipe"]


def count() -> int:
    return len(os.listdir("/dev/fd"))


def test_processes_leave_no_descriptor(guest):
    guest.run(["true"])
    before = count()
    kept = []
    for _ in range(20):
        guest.run(["cat"], input=b"x")
        with guest.popen(["cat"], stdin=PIPE, stdout=PIPE) as process:
            process.communicate(b"x")
        process.kill()
        kept.append(process)
    assert count() <= before


def test_connections_to_a_port_leave_no_descriptor(stand_in):
    import socket

    with VM("stand-in", ports={"80/tcp": None}) as machine:
        [place] = machine.ports["80/tcp"]

        def connect():
            with socket.create_connection(place, 10) as client:
                client.settimeout(10)
                try:
                    while client.recv(100):
                        pass
                except ConnectionError:
                    pass

        connect()
        before = count()
        for _ in range(50):
            connect()
        assert count() <= before + 4  # what the last connections are about to close


def test_machines_leave_no_descriptor(stand_in):
    with VM("stand-in"):
        pass
    before = count()
    for _ in range(5):
        with VM("stand-in", ports={"80/tcp": None}) as machine:
            machine.run(["true"])
            machine.path("/").is_dir()
    gc.collect()
    assert count() <= before + 4


@pytest.mark.skipif(sys.platform != "linux", reason="counts what /proc shows")
def test_a_program_without_descriptors_is_told_so_and_goes_on(guest, monkeypatch):
    """Of a machine that runs: whose limit it is, and how it is raised."""
    guest.run(["true"])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    calls = (
        lambda: guest.run(["true"]),
        lambda: guest.run(["cat"], input=b"x"),
        lambda: guest.popen(["cat"], stdin=PIPE, stdout=PIPE),
        lambda: guest.path("/").stat(),
    )
    guest._files.forget()
    try:
        # All numbers that are free below it are taken.
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/dev/fd"))) + 1, hard))
        held = []
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        for call in calls:
            for loaded in (resource, None):
                monkeypatch.setitem(sys.modules, "resource", loaded)
                with pytest.raises(HostShortage, match="open files") as caught:
                    call()
            assert caught.value.errno == errno.EMFILE
            assert "ulimit -n" in str(caught.value.hint)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)
    assert guest.run(["cat"], input=b"x").stdout == b"x"
