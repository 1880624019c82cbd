"""The performance monitor in a guest: counts that are exact, samples, over a snapshot too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from supermachine import VM

pytestmark = pytest.mark.vm

PROGRAM = Path(__file__).with_name("performance.c")
TURNS = 1_000_000


def ask(vm: VM) -> dict[str, int]:
    done = vm.run(["/tmp/performance", str(TURNS)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    return {name: int(value) for name, value in (line.split(": ") for line in done.stdout.splitlines())}


def check(answers: dict[str, int]) -> None:
    assert answers["instructions"] == answers["cycles"] == 2 * TURNS
    # One for each 100,000 instructions; one more or less at the ends.
    assert abs(answers["samples"] - 20) <= 2
    assert answers["in the loop"] >= answers["samples"] - 2


def test_a_program_counts_its_instructions(
    busybox: str, tmp_path: Path, c_program: Callable[[Path, str], Path]
) -> None:
    program = c_program(PROGRAM, "aarch64")
    with VM(busybox, engine="soft", vcpus=2) as vm:
        vm.copy_in(program, "/tmp/performance")
        # The kernel samples less often when a busy host makes its interrupts take long.
        vm.path("/proc/sys/kernel/perf_cpu_time_max_percent").write_text("0")
        check(ask(vm))
        vm.snapshot(tmp_path / "snapshot")
    with VM.restore(tmp_path / "snapshot") as vm:
        check(ask(vm))
