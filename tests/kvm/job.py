"""Runs in an emulated host: one part of the product on its KVM, by the name in the first argument. Prints JSON."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from supermachine import VM, VMExited, engines

IMAGE = "/root/image"
SNAPSHOT = "/root/taken"


def exits(machine: VM) -> dict[str, int]:
    """How often vCPUs have left the guest for the worker."""
    counted = machine._worker.stats(60) if machine._worker is not None else None
    assert counted is not None
    return dict(counted[0])


def chosen() -> Any:
    engine = engines.choose()
    return {"name": engine.name, "isolation": engine.isolation, "status": engine.status}


def main_job() -> Any:
    with VM(IMAGE, bake=False) as machine:
        done = machine.run(["busybox", "uname", "-m"], text=True)
        return {"engine": machine.engine, "isolation": machine.isolation, "out": done.stdout, "exits": exits(machine)}


def capture() -> Any:
    with VM(IMAGE, bake=False, vcpus=2) as machine:
        machine.path("/tmp/before").write_text("kept")
        machine.snapshot(SNAPSHOT)
        machine.path("/tmp/before").write_text("gone on")
        return {"processors": machine.run(["busybox", "nproc"], text=True).stdout}


def clones() -> Any:
    found = []
    machines = [VM.restore(SNAPSHOT) for _ in range(2)]
    for machine in machines:
        with machine:
            counted = exits(machine)
            read = machine.path("/tmp/before").read_text()
            random = machine.path("/proc/sys/kernel/random/uuid").read_text()
            hostname = machine.path("/proc/sys/kernel/hostname").read_text()
            processors = machine.run(["busybox", "nproc"], text=True).stdout
            found.append(
                {"read": read, "random": random, "hostname": hostname, "exits": counted, "processors": processors}
            )
    return found


def killed() -> Any:
    with VM(IMAGE, bake=False) as machine:
        process = machine.popen(["busybox", "sleep", "1000"])
        os.kill(machine.pid or 0, signal.SIGKILL)
        try:
            return {"status": process.wait(timeout=60)}
        except VMExited as error:
            return {"exited": error.reason}


def large() -> Any:
    """More memory than fits below the devices of a PC."""

    def total(machine: VM) -> int:
        line = machine.path("/proc/meminfo").read_text().splitlines()[0]
        return int(line.split()[1]) << 10

    with VM(IMAGE, bake=False, memory="5g") as machine:
        booted = total(machine)
        machine.snapshot("/root/large")
    size = Path("/root/large").stat().st_blocks * 512
    with VM.restore("/root/large") as machine:
        return {"booted": booted, "restored": total(machine), "size": size}


def refused() -> Any:
    """Without the device KVM is refused by name, and auto goes on with soft."""
    Path("/dev/kvm").rename("/dev/kvm-hidden")
    try:
        engine = next(engine for engine in engines.probe() if engine.name == "kvm")
        return {"code": engine.code, "remedy": engine.remedy, "auto": engines.choose().name}
    finally:
        Path("/dev/kvm-hidden").rename("/dev/kvm")


print(json.dumps({name: job for name, job in globals().items() if callable(job)}[sys.argv[1]]()))
