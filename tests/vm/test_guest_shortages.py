"""A guest that has too little left for what its agent is asked: that is said, and it goes on."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from supermachine import VM, errors

pytestmark = pytest.mark.vm

#: Each takes all that there is of something at a line of its input, and gives it back at the next.
DESCRIPTORS = """
import os, resource
input()
# As many as it has, and none more: the agent is the first process.
before = resource.prlimit(1, resource.RLIMIT_NOFILE)
taken = set(map(int, os.listdir("/proc/1/fd")))
free = min(set(range(len(taken) + 1)) - taken)
resource.prlimit(1, resource.RLIMIT_NOFILE, (free, before[1]))
print("taken", flush=True)
input()
resource.prlimit(1, resource.RLIMIT_NOFILE, before)
print("given", flush=True)
"""
PROCESSES = """
most=$(cat /proc/sys/kernel/pid_max)
read line
echo 301 > /proc/sys/kernel/pid_max
# It ends when there is no other process to be had.
(while :; do sleep 1000 & done) 2>/dev/null
echo taken
read line
echo $most > /proc/sys/kernel/pid_max
killall sleep
echo given
"""


@contextmanager
def taken(vm: VM, program: list[str]) -> Iterator[None]:
    """While a process of root's has all of it."""
    process = vm.popen(program, user="root", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    print("take", file=process.stdin, flush=True)
    assert process.stdout.readline() == "taken\n"
    try:
        yield
    finally:
        print("give back", file=process.stdin, flush=True)
        assert process.stdout.readline() == "given\n"
        process.communicate(timeout=60)


def refuses_and_goes_on(vm: VM, program: list[str], says: str, number: int) -> None:
    with taken(vm, program):
        for _ in range(5):
            with pytest.raises(errors.SupermachineError, match=says) as caught:
                vm.run(["busybox", "true"], timeout=60)
            assert caught.value.code
        with pytest.raises(OSError, match=os.strerror(number)) as refused:
            vm.path("/etc/passwd").read_text()
        assert refused.value.errno == number
    assert vm.run(["busybox", "echo", "x"], capture_output=True, text=True, timeout=60).stdout == "x\n"
    assert vm.path("/etc/passwd").read_text()
    assert [process.wait(60) for process in [vm.popen(["busybox", "true"]) for _ in range(20)]] == [0] * 20


def test_an_agent_without_descriptors_says_so(debian: Path) -> None:
    with VM(str(debian)) as vm:
        refuses_and_goes_on(vm, ["python3", "-c", DESCRIPTORS], "descriptors", errno.EMFILE)


def test_a_guest_without_processes_says_so(busybox: str) -> None:
    with VM(busybox) as vm:
        refuses_and_goes_on(vm, ["sh", "-c", PROCESSES], "pid_max", errno.EAGAIN)
