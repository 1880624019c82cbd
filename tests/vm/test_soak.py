"""Many events of each sort leave nothing behind: descriptors, threads, memory of the caller, the worker, the network's
policy process and the agent.

A run in continuous integration takes a few hundred of each; ``make soak`` takes 100,000, or as many as
``SUPERMACHINE_SOAK_EVENTS`` says.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from supermachine import VM
from supermachine.errors import CommandNotFound

from ..processes import children
from .guests import answer, output, wait_for

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(sys.platform != "linux", reason="counts what /proc shows"),
]

EVENTS = int(os.environ.get("SUPERMACHINE_SOAK_EVENTS", "200"))
#: Events before the first count: pools fill, allocators reach their size.
FIRST = 60
#: Bytes that a process may have grown by, whatever the number of events. A restored guest's worker has decoded and
#: translated little at the first count, and up to 10 MiB more once all that the events run is hot.
GROWTH = 16 << 20
MEMORY = 256 << 20


def own(process: int) -> int:
    """Bytes that a process alone holds, without a guest's RAM."""
    total, guest = 0, False
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        name, *fields = line.split()
        if "-" in name and not name.endswith(":"):
            start, end = (int(part, 16) for part in name.split("-"))
            guest = end - start >= MEMORY
        elif name == "Anonymous:" and not guest:
            total += int(fields[0]) << 10
    return total


class Counts:
    """What a process has open, runs and holds; and what the agent has open."""

    def __init__(self, vm: VM) -> None:
        (worker,) = children("supermachine-wo")
        (policy,) = children("supermachine-ne")
        all_of_them = (os.getpid(), worker, policy)
        self.descriptors = [len(os.listdir(f"/proc/{process}/fd")) for process in all_of_them]
        self.threads = [len(os.listdir(f"/proc/{process}/task")) for process in all_of_them]
        self.memory = [own(process) for process in all_of_them]
        # The shell that counts is there each time. The kernel's own threads come and go.
        self.agent = int(output(vm, "ls /proc/1/fd | wc -l"))
        self.processes = int(output(vm, "cat /proc/[0-9]*/statm | grep -vc '^0 '"))


def run(vm: VM, _: int) -> None:
    assert vm.run(["echo", "x"], capture_output=True, text=True).stdout == "x\n"


def popen(vm: VM, number: int) -> None:
    process = vm.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    if number % 2:
        process.kill()
        process.communicate()
    else:
        assert process.communicate(b"abc")[0] == b"abc"


def missing(vm: VM, _: int) -> None:
    with pytest.raises(CommandNotFound):
        vm.run(["/no/such/program"])
    with pytest.raises(FileNotFoundError):
        vm.path("/no/such/file").read_bytes()


def late(vm: VM, _: int) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        vm.run(["sleep", "60"], timeout=0.02)


def files(vm: VM, number: int) -> None:
    path = vm.path("/tmp/soak")
    path.write_bytes(b"%d" % number)
    assert path.read_bytes() == b"%d" % number
    path.unlink()


def port(vm: VM, _: int) -> None:
    assert b"200 OK" in answer(vm.ports["80/tcp"][0], b"GET /index.html HTTP/1.0\r\n\r\n")


def unheard(vm: VM, _: int) -> None:
    assert answer(vm.ports["81/tcp"][0], b"nobody listens there") == b""


def flow(vm: VM, _: int) -> None:
    """Out of the guest, to where the policy process says no."""
    assert vm.run(["nc", "-w", "5", "10.0.2.2", "9"], stdin=subprocess.DEVNULL).returncode == 1


def tree(vm: VM, number: int, place: Path) -> None:
    (place / "tree" / "below").mkdir(parents=True, exist_ok=True)
    (place / "tree" / "below" / "file").write_text(str(number))
    vm.copy_in(place / "tree", f"/tmp/tree-{number}", timeout=60)
    vm.copy_out(f"/tmp/tree-{number}", place / "back", timeout=60)
    shutil.rmtree(place / "back")
    vm.path(f"/tmp/tree-{number}").rmtree()


SORTS: dict[str, tuple[Callable[..., None], int]] = {
    # What each is, and how many of them are one of the others': these take longer.
    "run": (run, 1),
    "popen": (popen, 2),
    "missing": (missing, 1),
    "late": (late, 4),
    "files": (files, 1),
    "port": (port, 1),
    "unheard": (unheard, 1),
    "flow": (flow, 2),
    "tree": (tree, 4),
}


@pytest.mark.parametrize("sort", SORTS)
def test_nothing_is_left_of_many(busybox: str, sort: str, tmp_path: Path) -> None:
    event, share = SORTS[sort]
    if event is tree:
        event = functools.partial(tree, place=tmp_path)
    with VM(busybox, memory=MEMORY, ports={"80/tcp": None, "81/tcp": None}) as vm:
        # The policy process is there from now on.
        flow(vm, 0)
        vm.run(
            "mkdir -p /tmp/www && echo hello >/tmp/www/index.html && httpd -p 80 -h /tmp/www", shell=True, check=True
        )
        for number in range(FIRST):
            event(vm, number)
        before = Counts(vm)
        for number in range(EVENTS // share):
            event(vm, number)

        def settled() -> bool:
            after = Counts(vm)
            less = after.descriptors <= before.descriptors and after.threads <= before.threads
            return less and after.agent <= before.agent

        # What ends on its own thread may take a moment, and the agent tells the host before it closes what has ended.
        wait_for(settled, f"{vars(before)}", 30)
        after = Counts(vm)
        print(f"\n{sort}: {EVENTS // share} events, {vars(before)} before, {vars(after)} after")
        # Those that count see one another or do not.
        assert after.processes <= before.processes + 3
        for was, now in zip(before.memory, after.memory, strict=True):
            assert now - was < GROWTH, f"{now - was} bytes more after {EVENTS // share} events"
    # The policy process ends by itself when its machine has.
    wait_for(lambda: not children("supermachine-"), "no process", 10)
    assert threading.active_count() < 20
