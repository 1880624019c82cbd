"""Directories of the host: this package's file server, virtiofsd with QEMU, and a tmpfs; `python -m benches.shares`.

All three do the same operations (programs/shares.c) with the kernel of this package's guests, by turns, each in a
machine of its own whose CPU is software. What counts is the processor time of the machine and of who serves it: a row
is the median of each, and ours over theirs. Needs aarch64-linux-gnu-gcc, qemu-system-aarch64 and QEMU's virtiofsd.

Beside, how long after a change on the host a program in the guest that watches the share (inotify) says so.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from supermachine import VM, Share

from .guests import Member, archive, nodes, unpack
from .machines import COMMAND_LINE, DEADLINE, QEMU, cpu_seconds

ROOT = Path(__file__).parents[1]
BUSYBOX = str(ROOT / "demo" / "busybox.oci.tar")
VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")
#: Marks that end what is not measured.
BETWEEN = ("begin", "made", "forgot", "new", "forgot_again")
_MARK = re.compile(r"bench: (\w+) (-?\d+)")
#: What mounts virtiofsd's directory and starts the program: all that the guest of QEMU has.
_INIT = r"""
#include <stdio.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void) {
    mkdir("/proc", 0755);
    mkdir("/shared", 0755);
    mount("proc", "/proc", "proc", 0, "");
    if (mount("shared", "/shared", "virtiofs", 0, "")) perror("mount"), printf("bench: failed 1\n");
    if (!fork()) execl("/shares", "shares", "/shared", FILES, MEGABYTES, NULL);
    wait(NULL);
    reboot(RB_POWER_OFF);
    return 1;
}
"""


def _compiled(source: Path, to: Path, *options: str) -> Path:
    command = ["aarch64-linux-gnu-gcc", "-static", "-O2", "-o", str(to), str(source), *options]
    subprocess.run(command, check=True)
    return to


def _tree(place: Path, files: int, megabytes: int) -> None:
    for number in range(files):
        path = place / "tree" / f"{number // 100}" / f"file{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 100)
    (place / "large").write_bytes(os.urandom(1 << 20) * megabytes)


def _followed(console: Iterable[str], processes: list[int]) -> dict[str, float]:
    """Processor time from each mark to the next, of all the processes."""
    found: dict[str, float] = {}
    before = 0.0
    for line in console:
        if mark := _MARK.search(line):
            if mark[2] != "0":
                raise RuntimeError(f"the guest failed: {line}")
            now = sum(map(cpu_seconds, processes))
            if mark[1] not in BETWEEN:
                found[mark[1]] = now - before
            before = now
    if "random_read" not in found:
        raise RuntimeError("the guest has ended early")
    return found


def _ours(place: Path, program: Path, sizes: tuple[str, str], where: str) -> dict[str, float]:
    mounts = {"/shared": Share(place)}
    with VM(BUSYBOX, memory="1g", engine="soft", mounts=mounts, tmpfs=["/memory:size=700m"]) as vm:
        vm.copy_in(program, "/shares")
        if where == "/memory":
            vm.run(["cp", "-r", "/shared/tree", "/shared/large", "/memory"], check=True)
        worker = vm._running().pid
        process = vm.popen(["/shares", where, *sizes], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        return _followed(process.stdout, [worker])


def _theirs(place: Path, scratch: Path, kernel: Path, initramfs: Path) -> dict[str, float]:
    socket = scratch / "virtiofsd"
    daemon = [str(VIRTIOFSD), f"--socket-path={socket}", "-o", f"source={place},cache=auto", "-o", "sandbox=chroot"]
    command = [QEMU, "-M", "virt,gic-version=3", "-cpu", "cortex-a72", "-accel", "tcg", "-smp", "1", "-m", "1024"]
    command += ["-object", "memory-backend-memfd,id=memory,size=1024M,share=on", "-numa", "node,memdev=memory"]
    command += ["-chardev", f"socket,id=fs,path={socket}", "-device", "vhost-user-fs-device,chardev=fs,tag=shared"]
    command += [
        "-global",
        "virtio-mmio.force-legacy=false",
        "-nodefaults",
        "-display",
        "none",
        "-monitor",
        "none",
        "-serial",
        "stdio",
        "-no-reboot",
    ]
    command += ["-kernel", str(kernel), "-initrd", str(initramfs), "-append", COMMAND_LINE]
    with subprocess.Popen(daemon, stderr=subprocess.DEVNULL) as served:
        deadline = threading.Timer(DEADLINE, served.kill)
        deadline.start()
        try:
            while not socket.exists() and served.poll() is None:
                time.sleep(0.01)
            pipe = subprocess.PIPE
            with subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=pipe, text=True, errors="replace"
            ) as machine:
                end = threading.Timer(DEADLINE, machine.kill)
                end.start()
                try:
                    assert machine.stdout is not None
                    # The one that serves is a child of the one that was started.
                    own = Path(f"/proc/{served.pid}/task/{served.pid}/children").read_text().split()
                    return _followed(machine.stdout, [machine.pid, served.pid, *map(int, own)])
                finally:
                    end.cancel()
                    machine.kill()
        finally:
            deadline.cancel()
            served.terminate()
            socket.unlink(missing_ok=True)


def _initramfs(scratch: Path, program: Path, sizes: tuple[str, str]) -> Path:
    source = scratch / "init.c"
    source.write_text(_INIT)
    init = _compiled(source, scratch / "init", f'-DFILES="{sizes[0]}"', f'-DMEGABYTES="{sizes[1]}"')

    def members() -> Iterator[Member]:
        yield from nodes()
        for path in (init, program):
            yield path.name, 0o100755, (0, 0), path.read_bytes()

    out = scratch / "initramfs"
    out.write_bytes(archive(members()))
    return out


def measure(scratch: Path, repeats: int, files: int, megabytes: int) -> dict[str, dict[str, float]]:
    place, sizes = scratch / "place", (str(files), str(megabytes))
    place.mkdir()
    _tree(place, files, megabytes)
    program = _compiled(ROOT / "benches" / "programs" / "shares.c", scratch / "shares")
    kernel = scratch / "Image"
    unpack(ROOT / "guest/aarch64/Image.zst", kernel)
    initramfs = _initramfs(scratch, program, sizes)
    sides = {
        "share": lambda: _ours(place, program, sizes, "/shared"),
        "virtiofsd": lambda: _theirs(place, scratch, kernel, initramfs),
        "tmpfs": lambda: _ours(place, program, sizes, "/memory"),
    }
    if not VIRTIOFSD.exists() or shutil.which(QEMU) is None:
        del sides["virtiofsd"]
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(repeats):
        for side, run in sides.items():
            for name, seconds in run().items():
                found.setdefault(name, {}).setdefault(side, []).append(seconds)
    return {name: {side: statistics.median(all_) for side, all_ in by.items()} for name, by in found.items()}


def latencies(place: Path, scratch: Path, changes: int) -> dict[str, float]:
    """Milliseconds from a directory's creation on the host until the guest's program has said so here; and, as `asked`,
    what it takes a line to go to a program of the guest's and back.
    """
    place.mkdir()
    rows = {}
    program = _compiled(ROOT / "tests" / "storage" / "watcher.c", scratch / "watcher")
    with VM(BUSYBOX, memory="128m", engine="soft", mounts={"/shared": Share(place, watch=True)}) as vm:
        vm.copy_in(program, "/watcher")
        process = vm.popen(["/watcher", "/shared"], stdout=subprocess.PIPE, text=True)
        echo = vm.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and echo.stdin is not None and echo.stdout is not None
        assert process.stdout.readline() == "ready\n"
        times: dict[str, list[float]] = {"told": [], "asked": []}
        for number in range(changes):
            began = time.perf_counter()
            (place / f"{number}").mkdir()
            line = process.stdout.readline()
            times["told"].append((time.perf_counter() - began) * 1e3)
            assert line == f"/shared CREATE,DIR {number}\n", line
            began = time.perf_counter()
            echo.stdin.write("line\n")
            echo.stdin.flush()
            echo.stdout.readline()
            times["asked"].append((time.perf_counter() - began) * 1e3)
        for name, found in times.items():
            rows[name] = statistics.median(found)
            rows[f"{name}, 99 of 100"] = sorted(found)[len(found) * 99 // 100]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.shares", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "target" / "bench", help="where shares.json goes")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--files", type=int, default=4000)
    parser.add_argument("--megabytes", type=int, default=128)
    parser.add_argument("--changes", type=int, default=500, help="that a watcher is told of")
    said = parser.parse_args()
    said.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=said.out) as scratch:
        watched = latencies(Path(scratch) / "watched", Path(scratch), said.changes)
        for name, milliseconds in watched.items():
            print(f"a change on the host, ms until it is {name}: {milliseconds:.2f}", flush=True)
        rows = measure(Path(scratch), said.repeats, said.files, said.megabytes)
    print(f"{'seconds of processor time':26}", *(f"{side:>10}" for side in next(iter(rows.values()))))
    for name, by in rows.items():
        ratio = f"{by['share'] / by['virtiofsd']:8.2f} of virtiofsd's" if "virtiofsd" in by else ""
        print(f"{name:26}", *(f"{seconds:10.3f}" for seconds in by.values()), ratio)
    (said.out / "shares.json").write_text(json.dumps(rows | {"watched, ms": watched}, indent=1) + "\n")


if __name__ == "__main__":
    main()
