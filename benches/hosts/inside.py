"""Runs in an emulated host: one measurement, by the name in the first argument and by the host's clock. Prints JSON.

Each is a process of its own. What is imported, and an image that is in the cache, is there before the clock starts; a
whole command is timed from outside, its interpreter's start and its end included.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

IMAGE = "/root/image"
#: What microsandbox calls the same image.
LOADED = "bench:latest"
MEMORY_MIB = 256
ECHO = ["echo", "hello"]
#: Where boxlite keeps its boxes.
BOXES = "/root/boxes"
#: Seconds that a command may take.
PATIENCE = 300


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    done = work()
    return time.perf_counter() - start, done


def exits(vm: Any) -> dict[str, int]:
    """How often the vCPU has left the guest for user space, by cause."""
    return dict(vm._running().stats(60)[0])


def supermachine_ready() -> Any:
    """A boot, to a guest that serves requests."""
    from supermachine import VM

    vm = VM(IMAGE, engine="kvm", memory=MEMORY_MIB << 20, bake=False)
    assert vm.image.rootfs.exists()
    seconds, _ = timed(vm.start)
    counted = exits(vm)
    vm.kill()
    return {"seconds": seconds, "exits": counted, "steps": [[name, at / 1e9] for name, at in vm.timings]}


def supermachine_restored() -> Any:
    """From a snapshot, to the first output of a program in the guest."""
    from supermachine import VM
    from supermachine.guest import processes

    vm = VM(IMAGE, engine="kvm", memory=MEMORY_MIB << 20)
    assert vm.image.rootfs.exists() and processes

    def first() -> Any:
        vm.start()
        return vm.run(ECHO, check=True, text=True)

    seconds, done = timed(first)
    assert done.stdout == "hello\n"
    counted = exits(vm)
    steps = vm.timings
    vm.kill()
    return {"seconds": seconds, "exits": counted, "steps": [[name, at / 1e9] for name, at in steps]}


def microsandbox_ready() -> Any:
    """What its own interface waits for: a sandbox that executes commands."""
    from microsandbox import Sandbox  # type: ignore[import-not-found,unused-ignore]

    async def run() -> float:
        start = time.perf_counter()
        sandbox = await Sandbox.create("ready", image=LOADED, cpus=1, memory=MEMORY_MIB, replace=True)
        seconds = time.perf_counter() - start
        assert (await sandbox.exec(ECHO[0], ECHO[1:])).stdout_text == "hello\n"
        await sandbox.destroy()
        return seconds

    return {"seconds": asyncio.run(run())}


async def boxlite_box() -> tuple[float, Any]:
    """Seconds until a box has started, and the box."""
    import boxlite  # type: ignore[import-not-found,unused-ignore]

    runtime = boxlite.Boxlite(boxlite.Options(home_dir=BOXES))
    options = boxlite.BoxOptions(rootfs_path=IMAGE, cpus=1, memory_mib=MEMORY_MIB, auto_remove=True)
    start = time.perf_counter()
    box = await runtime.create(options)
    await box.start()
    return time.perf_counter() - start, box


def boxlite_ready() -> Any:
    """What its interface calls started."""
    import boxlite  # type: ignore[import-not-found,unused-ignore]

    assert boxlite

    async def run() -> float:
        seconds, box = await boxlite_box()
        await box.stop()
        return seconds

    return {"seconds": asyncio.run(run())}


def boxlite_run() -> None:
    """The whole of a command with boxlite, which has none of its own: to be timed from outside."""

    async def run() -> None:
        _, box = await boxlite_box()
        execution = await box.exec(ECHO[0], ECHO[1:])
        async for line in execution.stdout():
            print(line.rstrip("\n"))
        await execution.wait()
        await box.stop()

    asyncio.run(run())


def command(*args: str) -> Any:
    """A whole command, that says hello."""
    seconds, done = timed(lambda: subprocess.run(args, capture_output=True, text=True, timeout=PATIENCE, check=False))
    if done.returncode or done.stdout != "hello\n":
        raise SystemExit(f"{args} ended with {done.returncode} and said {done.stdout!r}: {done.stderr}")
    return {"seconds": seconds}


def supermachine_end(kernel: str, initramfs: str) -> Any:
    """From the start of the worker to its end, with a guest whose first process ends the machine."""
    import os

    from supermachine._core import Worker
    from supermachine.host import bundle

    def run() -> Any:
        worker = Worker.spawn(
            bundle.worker(),
            engine="kvm",
            kernel=kernel,
            initramfs=initramfs,
            disks=[],
            memory_bytes=MEMORY_MIB << 20,
            vcpus=1,
            hostname="bench",
            machine_id=os.urandom(16),
            entropy=os.urandom(64),
            root_fs=None,
            agent=False,
        )
        return worker.wait(PATIENCE)

    seconds, end = timed(run)
    if end is None or end[0] not in ("guest-reset", "guest-power-off"):
        raise SystemExit(f"the guest did not end by itself: {end}")
    return {"seconds": seconds}


def qemu_end(*args: str) -> Any:
    """The same of QEMU."""
    seconds, done = timed(lambda: subprocess.run(args, capture_output=True, text=True, timeout=PATIENCE, check=False))
    if done.returncode:
        raise SystemExit(f"{args} ended with {done.returncode}: {done.stdout} {done.stderr}")
    return {"seconds": seconds}


if __name__ == "__main__":
    found = globals()[sys.argv[1]](*sys.argv[2:])
    if found is not None:
        print(json.dumps(found))
