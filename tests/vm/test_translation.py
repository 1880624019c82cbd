"""The soft engine's machine code: guests compute the same with it and without, also from each other's snapshots."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from supermachine import VM, Snapshot

from .guests import output

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="there is a translator for x86-64 hosts only"),
]

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


def code_mappings(vm: VM) -> set[str]:
    """How the worker's memory for code is mapped."""
    maps = Path(f"/proc/{vm.pid}/maps").read_text().splitlines()
    writable_code = [line for line in maps if re.match(r"\S+ .w.?x", line)]
    assert writable_code == []
    return {line.split()[1] for line in maps if "memfd:code" in line}


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
