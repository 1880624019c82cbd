"""Boot with the same kernel and first process: ours beside QEMU's smallest machines, both on the host's KVM."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.hosts import Host
from tests.hosts.fixtures import SITE

from .. import guests
from . import inside, sides

GUEST, INITRAMFS = "/root/kernel", "/root/end.cpio"
#: Debian's packages of QEMU on the hosts.
PACKAGES = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm"}
KERNELS = {"x86_64": "vmlinux.zst", "aarch64": "Image.zst"}
#: Neither side has the kernel write to a console. Of ours the machine adds what its devices and its one vCPU need.
COMMAND_LINES = {
    "x86_64": "quiet panic=-1 reboot=t 8250.nr_uarts=0 noreplace-smp",
    "aarch64": "quiet panic=-1",
}
MACHINES = {
    "x86_64": {
        "QEMU microvm": ["-M", "microvm,accel=kvm,acpi=off", "-cpu", "host"],
        "QEMU q35": ["-M", "q35,accel=kvm", "-cpu", "host"],
    },
    "aarch64": {"QEMU virt": ["-M", "virt,accel=kvm,gic-version=3", "-cpu", "host"]},
}


def install(host: Host, place: Path) -> None:
    """The kernel as a plain file, and an initramfs with nothing but programs/end.c."""
    packed = guests.ROOT / "guest" / host.architecture / KERNELS[host.architecture]
    kernel, initramfs = place / f"kernel-{host.architecture}", place / f"end-{host.architecture}.cpio"
    guests.unpack(packed, kernel)
    program = place / f"end-{host.architecture}"
    compiler = f"{host.architecture}-linux-gnu-gcc"
    source = guests.PROGRAMS / "end.c"
    subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o", program, source], check=True)

    def members() -> Iterator[guests.Member]:
        yield from guests.nodes()
        yield "init", stat.S_IFREG | 0o755, (0, 0), program.read_bytes()

    initramfs.write_bytes(guests.archive(members()))
    host.put(kernel, GUEST)
    host.put(initramfs, INITRAMFS)


def ours(host: Host) -> Any:
    return sides.run(host, ["supermachine_end", GUEST, INITRAMFS], SITE)


def qemu(host: Host, machine: str) -> Any:
    command = [f"qemu-system-{host.architecture}", *MACHINES[host.architecture][machine], "-smp", "1"]
    command += ["-m", f"{inside.MEMORY_MIB}M", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    command += ["-kernel", GUEST, "-initrd", INITRAMFS, "-append", COMMAND_LINES[host.architecture]]
    return sides.run(host, ["qemu_end", *command])
