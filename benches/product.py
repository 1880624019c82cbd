"""The product through its Python interface and its command: start, memory, idle."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import supermachine

from .guests import ROOT
from .machines import cpu_seconds

IMAGE = str(ROOT / "demo" / "busybox.oci.tar")
MEMORY = 256 << 20
#: Seconds that an idle guest is watched.
IDLE = 10.0
#: Work that reaches much of a guest's code, before its worker's memory is looked at.
WORK = "ls -lR / >/dev/null; sha256sum /bin/busybox; head -c 8000000 /dev/zero | gzip | gunzip | md5sum; awk 'BEGIN{}'"


def _worker() -> int:
    """The process id of this process's only worker."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "status").read_text()
        except OSError:
            continue
        if f"\nPPid:\t{os.getpid()}\n" in text and text.startswith("Name:\tsupermachine-wo"):
            return int(process.name)
    raise RuntimeError("the worker of a running VM was not found among this process's children")


def _memory_beyond_ram(pid: int) -> float:
    """MiB that are resident beside the guest's RAM, which is the one mapping of its size."""
    total, counts = 0, True
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            start, end = (int(x, 16) for x in first.split("-"))
            counts = end - start < MEMORY
        elif first == "Rss:" and counts:
            total += int(rest[0])
    return total / 1024


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _start(bake: bool, commands: list[float]) -> float:
    """Seconds until the agent is ready; appends those of a first command then."""
    vm = supermachine.VM(IMAGE, memory=MEMORY, bake=bake)
    start = _seconds(vm.start)
    try:
        commands.append(_seconds(functools.partial(vm.run, ["true"], check=True)))
    finally:
        vm.kill()
    return start


def measure(repeats: int, say: Callable[[str], None]) -> dict[str, float]:
    """Everything, on the image that ships with the project."""
    command = Path(sys.executable).with_name("supermachine")

    def run(*options: str) -> None:
        subprocess.run([str(command), "run", *options, IMAGE, "--", "true"], check=True, capture_output=True)

    # The image is converted and the snapshot baked; then its working set recorded, and what that came to remembered.
    run()
    run()
    boots: list[float] = []
    restores: list[float] = []
    commands: list[float] = []
    whole: list[float] = []
    whole_restored: list[float] = []
    for n in range(repeats):
        boots.append(_start(False, commands))
        restores.append(_start(True, []))
        whole.append(_seconds(functools.partial(run, "--no-snapshot")))
        whole_restored.append(_seconds(run))
        say(f"product {n + 1}/{repeats}: boot {boots[-1]:.3f} s, whole command {whole[-1]:.3f} s")
    with supermachine.VM(IMAGE, memory=MEMORY, bake=False) as vm:
        pid = _worker()
        time.sleep(1)
        before = cpu_seconds(pid)
        time.sleep(IDLE)
        idle = (cpu_seconds(pid) - before) / IDLE
        vm.run(["sh", "-c", WORK], check=True, capture_output=True)
        memory = _memory_beyond_ram(pid)
    return {
        "boot_s": median(boots),
        "restore_s": median(restores),
        "command_in_running_vm_s": median(commands),
        "run_booted_s": median(whole),
        "run_restored_s": median(whole_restored),
        "memory_beyond_ram_mib": memory,
        "idle_cpu_percent": idle * 100,
    }
