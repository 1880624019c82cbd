"""The software CPU against QEMU's TCG: the same kernel, initramfs, device tree and programs, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from . import machines, sides
from .guests import Guest
from .machines import Run, Times
from .sides import Start

#: Seconds of QEMU over seconds of the software CPU that are wanted: of most work, of what uses the host's instructions
#: for floating point and hashes, and of a boot, which translates much and runs little of it twice.
TARGET, COMPUTES, BOOTS = 1.2, 2.5, 4.0


@dataclass(frozen=True)
class Case:
    name: str
    #: The guest's command; none for a boot.
    command: str
    target: float = TARGET
    #: Whether the kernel is Debian's.
    debian: bool = False


CASES = [
    Case("kernel boot to the first process", "", BOOTS),
    Case("busybox sha256sum, 64 MiB", "/usr/bin/busybox sha256sum /data"),
    Case("coreutils sha256sum, 64 MiB", "/usr/bin/sha256sum /data"),
    Case("python3, pure-Python loop", "/usr/bin/python3 /loop.py"),
    Case("floating-point loop (doubles)", "/floats 1000000", COMPUTES),
    Case("integer program", "/integers 200"),
    Case("openssl sha256, 64 MiB (SHA instructions)", "/usr/bin/openssl dgst -sha256 /data", COMPUTES),
    Case("boot of Debian's cloud kernel", "", debian=True),
    Case("python3, start and end", "/usr/bin/python3 -c pass"),
]


def _run(start: Start, place: Path, guest: Guest, case: Case, vcpus: int = 1) -> Run:
    initramfs = guest.full if case.command else guest.small
    arguments = f"-- {case.command}" if case.command else ""
    kernel = guest.debian_kernel if case.debian else guest.kernel
    return machines.run(start(place, kernel, initramfs, arguments, vcpus))


def _times(run: Run, case: Case) -> Times:
    # A boot's processor time is that of the whole process: it ends right after the mark, and short times are not to
    # be read off a process that runs.
    return run.command() if case.command else Times(run.at["ready"].wall, run.at["exit"].cpu)


def compare(
    place: Path,
    guest: Guest,
    repeats: int,
    only: str,
    say: Callable[[str], None],
    vcpus: int = 1,
    newer: str | None = None,
) -> list[dict[str, object]]:
    """Runs the cases whose name contains `only`, all sides by turns."""
    rows: list[dict[str, object]] = []
    parties = sides.of(place, newer)
    for case in CASES:
        if only in case.name:
            name = case.name if vcpus == 1 else f"{case.name}, {vcpus} vCPUs"

            def take(start: Start, case: Case = case) -> Times:
                return _times(_run(start, place, guest, case, vcpus), case)

            rows.append({**sides.by_turns(name, parties, take, repeats, say), "vcpus": vcpus, "target": case.target})
    return rows


def start_and_end(place: Path, guest: Guest, repeats: int) -> dict[str, float]:
    """What each machine needs for a guest that ends at once; part of the boot's times."""
    return {
        f"{name}_s": median(machines.run(start(place, guest.nothing, None, "")).at["exit"].wall for _ in range(repeats))
        for name, start in sides.of(place, None).items()
    }


def instruction_rates(place: Path, guest: Guest, repeats: int) -> dict[str, float]:
    """Millions of guest instructions in a second of processor time, in a kernel's boot and in integer user code."""
    boots, programs = [], []
    for _ in range(repeats):
        boot = _run(machines.soft, place, guest, Case("boot", ""))
        # The work is what the longer run does more.
        short, long = (_run(machines.soft, place, guest, Case("integers", f"/integers {n}")) for n in (1, 101))
        assert boot.instructions and short.instructions and long.instructions
        boots.append(boot.instructions / boot.at["exit"].cpu)
        seconds = long.at["exit"].cpu - short.at["exit"].cpu
        programs.append((long.instructions - short.instructions) / seconds)
    return {"boot": median(boots), "integers": median(programs)}
