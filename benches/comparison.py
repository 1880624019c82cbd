"""The software CPU against QEMU's TCG: the same kernel, initramfs, device tree and programs, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from . import machines
from .guests import Guest
from .machines import Run, Times

#: What the comparison has to reach: seconds of QEMU over seconds of the software CPU.
TARGET = 0.3


@dataclass(frozen=True)
class Case:
    name: str
    #: The guest's command; none for a boot.
    command: str
    #: Whether the result is held against `TARGET`.
    required: bool = True
    #: Whether the kernel is Debian's.
    debian: bool = False


CASES = [
    Case("kernel boot to the first process", ""),
    Case("busybox sha256sum, 64 MiB", "/usr/bin/busybox sha256sum /data"),
    Case("coreutils sha256sum, 64 MiB", "/usr/bin/sha256sum /data"),
    Case("python3, pure-Python loop", "/usr/bin/python3 /loop.py"),
    Case("floating-point loop (doubles)", "/floats 1000000"),
    Case("integer program", "/integers 200", required=False),
    Case("openssl sha256, 64 MiB (SHA instructions)", "/usr/bin/openssl dgst -sha256 /data", required=False),
    Case("boot of Debian's cloud kernel", "", required=False, debian=True),
    Case("python3, start and end", "/usr/bin/python3 -c pass", required=False),
]

Start = Callable[..., list[str]]


def _take(start: Start, place: Path, guest: Guest, case: Case) -> Run:
    initramfs = guest.full if case.command else guest.small
    arguments = f"-- {case.command}" if case.command else ""
    kernel = guest.debian_kernel if case.debian else guest.kernel
    return machines.run(start(place, kernel, initramfs, arguments))


def _times(run: Run, case: Case) -> Times:
    # A boot's processor time is that of the whole process: it ends right after the mark, and short times are not to
    # be read off a process that runs.
    return run.command() if case.command else Times(run.at["ready"].wall, run.at["exit"].cpu)


def compare(place: Path, guest: Guest, repeats: int, only: str, say: Callable[[str], None]) -> list[dict[str, object]]:
    """Runs the cases whose name contains `only`, both sides by turns."""
    results: list[dict[str, object]] = []
    for case in CASES:
        if only not in case.name:
            continue
        runs: list[tuple[Run, Run]] = []
        for n in range(repeats):
            pair = (_take(machines.soft, place, guest, case), _take(machines.qemu, place, guest, case))
            runs.append(pair)
            here, there = (_times(run, case) for run in pair)
            say(f"{case.name} {n + 1}/{repeats}: {here.wall:.3f} s, QEMU {there.wall:.3f} s")
        mine = [_times(run, case) for run, _ in runs]
        theirs = [_times(run, case) for _, run in runs]
        results.append(
            {
                "name": case.name,
                "soft_s": median(t.wall for t in mine),
                "soft_cpu_s": median(t.cpu for t in mine),
                "qemu_s": median(t.wall for t in theirs),
                "qemu_cpu_s": median(t.cpu for t in theirs),
                # The median of ratios, each of two runs that followed one another.
                "ratio": median(b.wall / a.wall for a, b in zip(mine, theirs, strict=True)),
                "cpu_ratio": median(b.cpu / a.cpu for a, b in zip(mine, theirs, strict=True)),
                "target": TARGET if case.required else None,
            }
        )
    return results


def start_and_end(place: Path, guest: Guest, repeats: int) -> dict[str, float]:
    """What each machine needs for a guest that ends at once; part of the boot's times."""
    sides: dict[str, Start] = {"soft_s": machines.soft, "qemu_s": machines.qemu}
    return {
        name: median(machines.run(start(place, guest.nothing, None, "")).at["exit"].wall for _ in range(repeats))
        for name, start in sides.items()
    }


def instruction_rates(place: Path, guest: Guest, repeats: int) -> dict[str, float]:
    """Millions of guest instructions in a second of processor time, in a kernel's boot and in integer user code."""
    boots, programs = [], []
    for _ in range(repeats):
        boot = _take(machines.soft, place, guest, Case("boot", ""))
        # The work is what the longer run does more.
        short, long = (_take(machines.soft, place, guest, Case("integers", f"/integers {n}")) for n in (1, 101))
        assert boot.instructions and short.instructions and long.instructions
        boots.append(boot.instructions / boot.at["exit"].cpu)
        seconds = long.at["exit"].cpu - short.at["exit"].cpu
        programs.append((long.instructions - short.instructions) / seconds)
    return {"boot": median(boots), "integers": median(programs)}
