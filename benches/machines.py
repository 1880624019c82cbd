"""Boots a guest on the software CPU or on QEMU and times what it does, by the marks it makes on its console."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .guests import PROGRAMS, ROOT

#: Where the software CPU's example puts an initramfs.
INITRAMFS = 0x4400_0000
MEMORY = 512 << 20
COMMAND_LINE = "earlycon=pl011,mmio32,0x9000000 keep_bootcon quiet printk.devkmsg=on panic=-1"
#: Seconds after which a guest has failed.
DEADLINE = 600
QEMU = "qemu-system-aarch64"
BOOT = ROOT / "target" / "release" / "examples" / "boot"
_MARK = re.compile(rb"bench: (\w+) (-?\d+)")
_COUNT = re.compile(r"([\d.]+) M instructions")


@dataclass(frozen=True)
class Times:
    """Seconds on the clock, and seconds of processor time of all the machine's threads."""

    wall: float
    cpu: float

    def __sub__(self, other: Times) -> Times:
        return Times(self.wall - other.wall, self.cpu - other.cpu)


@dataclass
class Run:
    """A guest's life: times since the machine's process was started, by mark, and "exit"."""

    at: dict[str, Times] = field(default_factory=dict)
    #: Millions of guest instructions, from the software CPU.
    instructions: float | None = None

    def command(self) -> Times:
        """What the guest's command took."""
        return self.at["end"] - self.at["begin"]


def _tree(place: Path, command_line: str, initramfs: Path | None, vcpus: int, memory: int) -> Path:
    chosen = f'bootargs = "{command_line}";'
    if initramfs is not None:
        end = INITRAMFS + initramfs.stat().st_size
        chosen += f" linux,initrd-start = <{INITRAMFS:#x}>; linux,initrd-end = <{end:#x}>;"
    cpu = 'cpu@{0} {{ device_type = "cpu"; compatible = "arm,armv8"; reg = <{0}>; enable-method = "psci"; }};'
    text = (PROGRAMS / "machine.dts").read_text()
    text = text.replace(" CHOSEN }", f" {chosen} }}").replace(" MEMORY>", f" {memory:#x}>")
    text = text.replace("\tCPUS", "\t" + " ".join(cpu.format(n) for n in range(vcpus)))
    tree = place / "machine.dtb"
    subprocess.run(["dtc", "-q", "-I", "dts", "-O", "dtb", "-o", str(tree)], input=text.encode(), check=True)
    return tree


def soft(
    place: Path, kernel: Path, initramfs: Path | None, arguments: str, vcpus: int = 1, memory: int = MEMORY
) -> list[str]:
    """How the software CPU is started: the bare core, with no device but a console."""
    tree = _tree(place, f"{COMMAND_LINE} {arguments}", initramfs, vcpus, memory)
    command = [str(BOOT), str(kernel), str(tree), str(vcpus), str(memory >> 20)]
    return command if initramfs is None else [*command, str(initramfs)]


@dataclass(frozen=True)
class Qemu:
    """The same machine in QEMU, every instruction translated (TCG)."""

    program: tuple[str, ...] = (QEMU,)

    def __call__(
        self, place: Path, kernel: Path, initramfs: Path | None, arguments: str, vcpus: int = 1, memory: int = MEMORY
    ) -> list[str]:
        tree = _tree(place, "", None, vcpus, memory)
        command = [*self.program, "-M", "virt,gic-version=3", "-cpu", "cortex-a72", "-accel", "tcg"]
        command += ["-smp", str(vcpus), "-m", str(memory >> 20), "-nodefaults", "-display", "none"]
        command += ["-monitor", "none", "-serial", "stdio", "-no-reboot", "-kernel", str(kernel)]
        command += ["-dtb", str(tree), "-append", f"{COMMAND_LINE} {arguments}"]
        return command if initramfs is None else [*command, "-initrd", str(initramfs)]


def of_suite(place: Path, suite: str) -> tuple[str, ...]:
    """QEMU of another suite of Debian's, with the libraries that it is built for; fetched when it is not there."""
    root = place / suite
    if not root.exists():
        partial = place / f"{suite}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        include = ["--quiet", "--variant=essential", "--include=qemu-system-arm"]
        subprocess.run(["mmdebstrap", *include, suite, str(partial)], check=True)
        partial.rename(root)
    (loader,) = root.glob("lib64/ld-linux*")
    libraries = [root / "usr/lib" / f"{platform.machine()}-linux-gnu"]
    libraries.append(libraries[0] / "pulseaudio")
    path = ":".join(map(str, libraries))
    return (str(loader), "--library-path", path, str(root / "usr/bin" / QEMU))


def cpu_seconds(pid: int) -> float:
    """Processor time of a process that runs, threads that have ended included."""
    # What clock_getcpuclockid(3) gives for a process on Linux.
    return time.clock_gettime(~pid << 3 | 2)


def run(command: Sequence[str]) -> Run:
    """Starts a machine and follows its guest to the end."""
    out = Run()
    start = time.perf_counter()
    read, write = os.pipe()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=write, stderr=subprocess.PIPE) as process:
        os.close(write)
        assert process.stderr is not None
        deadline = threading.Timer(DEADLINE, process.kill)
        deadline.start()
        try:
            with os.fdopen(read, "rb", buffering=0) as console:
                pending = b""
                while chunk := console.read(4096):
                    *lines, pending = (pending + chunk).split(b"\n")
                    for mark in filter(None, map(_MARK.search, lines)):
                        out.at[mark[1].decode()] = Times(time.perf_counter() - start, cpu_seconds(process.pid))
                        if mark[2] != b"0":
                            raise RuntimeError(f"the guest's command failed with status {int(mark[2])}")
            errors = process.stderr.read().decode(errors="replace")
            # The process is waited for here and not by Popen, which would not say what it used.
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        finally:
            deadline.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with status {process.returncode}: {errors}")
    out.at["exit"] = Times(time.perf_counter() - start, usage.ru_utime + usage.ru_stime)
    if count := _COUNT.search(errors):
        out.instructions = float(count[1])
    return out
