"""The soft engine's machine code: guests compute the same with it and without, also from each other's snapshots."""

from __future__ import annotations

import hashlib
import os
import platform
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from supermachine import VM, Snapshot

from .guests import output
from .test_clones import WORK as LONG_WORK
from .test_clones import expected as long_expected
from .test_clones import result as long_result

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="there is a translator for x86-64 hosts only"),
]

#: Moments at which a guest is captured under one, to go on under the other; by hand 100.
MOMENTS = int(os.environ.get("SUPERMACHINE_TEST_MOMENTS", "2"))

#: Bytes that a worker may have beyond the guest's RAM.
WORKER = 40 << 20
RAM = 512 << 20

SIZE = 3_000_000
ZEROS = hashlib.sha256(bytes(SIZE)).hexdigest()
#: Integers, pages of code of several programs, and processes that come and go.
WORK = f"""
head -c {SIZE} /dev/zero | sha256sum | cut -c1-64
i=0; sum=0; while [ $i -lt 3000 ]; do i=$((i+1)); sum=$((sum * 31 % 65521 + i)); done; echo $sum
seq 300 | sort -rn | awk '{{ s = s * 7 % 65521 + $1 }} END {{ print s }}'
"""


def expected() -> list[str]:
    loop = reverse = 0
    for i in range(1, 3001):
        loop = loop * 31 % 65521 + i
    for i in range(300, 0, -1):
        reverse = reverse * 7 % 65521 + i
    return [ZEROS, str(loop), str(reverse)]


def code_lines(vm: VM) -> list[str]:
    """The worker's memory for code, as /proc tells of it. No other memory is writable and executable."""
    maps = Path(f"/proc/{vm.pid}/maps").read_text().splitlines()
    writable_code = [line for line in maps if re.match(r"\S+ .w.?x", line)]
    assert writable_code == []
    return [line for line in maps if "memfd:code" in line]


def code_mappings(vm: VM) -> set[str]:
    """How it is mapped."""
    return {line.split()[1] for line in code_lines(vm)}


@pytest.mark.parametrize("vcpus", [1, 4])
@pytest.mark.parametrize("mode", ["always", "1", "0"])
def test_a_guest_computes_the_same(busybox: str, monkeypatch: pytest.MonkeyPatch, mode: str, vcpus: int) -> None:
    monkeypatch.setenv("SUPERMACHINE_JIT", mode)
    with VM(busybox, engine="soft", vcpus=vcpus, bake=False) as vm:
        both = f"({WORK}) > /tmp/other & {WORK} wait; cat /tmp/other"
        assert output(vm, both).split() == expected() * 2
        assert code_mappings(vm) == (set() if mode == "0" else {"r-xs", "rw-s"})


@pytest.mark.parametrize(("before", "after"), [("always", "0"), ("0", "always"), ("always", "1")])
def test_a_snapshot_of_one_goes_on_under_the_other(
    busybox: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, before: str, after: str
) -> None:
    monkeypatch.setenv("SUPERMACHINE_JIT", before)
    with VM(busybox, engine="soft", vcpus=2, bake=False) as vm:
        output(vm, f"({WORK}) > /tmp/result 2>&1 & sleep 0.05")
        taken: Snapshot = vm.snapshot(tmp_path / "taken")
    monkeypatch.setenv("SUPERMACHINE_JIT", after)
    with taken.restore() as vm:
        done = "until [ $(wc -l < /tmp/result) = 3 ]; do sleep 0.1; done; cat /tmp/result"
        assert output(vm, done).split() == expected()


@pytest.mark.parametrize(("mode", "vcpus"), [("always", 1), ("always", 4), ("1", 2), ("0", 4)])
def test_a_program_makes_its_own_code(
    busybox: str, c_program: Callable[[Path, str], Path], monkeypatch: pytest.MonkeyPatch, mode: str, vcpus: int
) -> None:
    monkeypatch.setenv("SUPERMACHINE_JIT", mode)
    program = c_program(Path(__file__).with_name("rewriting.c"), "aarch64")
    with VM(busybox, engine="soft", vcpus=vcpus, bake=False) as vm:
        vm.copy_in(program, "/tmp/rewriting")
        done = vm.run(["/tmp/rewriting"], capture_output=True, text=True, check=True, timeout=300)
        assert done.stdout.split("\n") == ["flips: ok", "twice: ok", "moves: ok", "patches: ok", ""]


@pytest.mark.parametrize(("before", "after"), [("always", "0"), ("0", "always")])
def test_work_that_is_captured_at_any_moment_goes_on_under_the_other(
    busybox: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, before: str, after: str
) -> None:
    monkeypatch.setenv("SUPERMACHINE_JIT", before)
    taken: list[Snapshot] = []
    while len(taken) < MOMENTS:
        with VM(busybox, engine="soft", vcpus=2, memory="128m", bake=False) as vm:
            vm.popen(["sh", "-c", LONG_WORK])
            while len(taken) < MOMENTS and not vm.path("/tmp/result").exists():
                time.sleep(random.uniform(0, 0.4))
                taken.append(vm.snapshot(tmp_path / str(len(taken))))
            assert long_result(vm) == long_expected()
    monkeypatch.setenv("SUPERMACHINE_JIT", after)
    for snapshot in taken:
        with snapshot.restore() as vm:
            assert long_result(vm) == long_expected()
        snapshot.delete()


def test_no_memory_of_forks_is_writable_and_executable(busybox: str) -> None:
    """They are copies of one process, whose code memory would be shared."""
    with VM(busybox, engine="soft", bake=False) as vm:
        forks = vm.fork(4)
        try:
            assert [code_mappings(fork) for fork in forks] == [{"r-xs", "rw-s"}] * 4
            files = {line.split()[4] for fork in forks for line in code_lines(fork)}
            assert len(files) == 4, "each has a file of its own"
        finally:
            for fork in forks:
                fork.kill()


def beyond_ram(vm: VM) -> int:
    """Bytes that a worker has in use, without the guest's RAM; what is mapped twice counts once."""
    total, guest = 0, False
    for line in Path(f"/proc/{vm.pid}/smaps").read_text().splitlines():
        name, *fields = line.split()
        if "-" in name and not name.endswith(":"):
            start, end = (int(part, 16) for part in name.split("-"))
            guest = end - start >= RAM
        elif name == "Pss:" and not guest:
            total += int(fields[0]) << 10
    return total


#: Programs of busybox's, one after the other: the kernel's ways and theirs get hot.
MANY = """
for i in 1 2 3 4 5 6; do
    find / -xdev -type f 2>/dev/null | sort | sed s/a/b/ | awk '{ n += length($0) } END { print n }' > /dev/null
    seq 500 | gzip | gunzip | md5sum > /dev/null
    echo "scale=40; a(1)*4" | bc -l > /dev/null 2>&1
    ls -lR /etc | tr a-z A-Z | cut -c1-40 | uniq | wc > /dev/null
done
"""


@pytest.mark.parametrize("mode", ["always", "1"])
def test_a_worker_with_hot_code_is_small(busybox: str, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setenv("SUPERMACHINE_JIT", mode)
    with VM(busybox, engine="soft", vcpus=2, memory=RAM, bake=False) as vm:
        output(vm, f"({MANY}) & {MANY} wait")
        assert any(line.split()[1] == "r-xs" for line in code_lines(vm))
        used = beyond_ram(vm)
        print(f"{used / (1 << 20):.1f} MiB")
        assert used <= WORKER
