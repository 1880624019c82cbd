"""QEMU's way of starting a guest that has run before: its state migrated to a file, and read back by a new process."""

from __future__ import annotations

import json
import select
import socket
import stat
import subprocess
import tarfile
import time
from pathlib import Path
from typing import IO, Any

from .guests import ROOT, archive, nodes
from .machines import QEMU

#: What the guest does for ever: one line of output, by a program, for each line of input.
_INIT = b"""#!/bin/busybox sh
/bin/busybox stty -F /dev/console -echo
/bin/busybox echo ready
while read line; do /bin/busybox echo "got $line"; done
"""
#: Seconds after which QEMU has failed.
DEADLINE = 120.0
#: Seconds between two lines typed to a guest that may not be there yet.
ASK_AGAIN = 0.002


def _initramfs(place: Path) -> Path:
    """The busybox of the image that ships with the project, and a first process that answers."""
    with tarfile.open(ROOT / "demo" / "busybox.oci.tar") as outer:
        layers = [m for m in outer if m.isfile() and m.size > 500_000]
        layer = max(layers, key=lambda m: m.size)
        with tarfile.open(fileobj=outer.extractfile(layer)) as inner:
            member = next(m for m in inner if m.name.removeprefix("./") == "bin/busybox")
            content = inner.extractfile(member)
            assert content is not None
            busybox = content.read()
    out = place / "answering.cpio"
    members = [
        *nodes(),
        ("bin", stat.S_IFDIR | 0o755, (0, 0), b""),
        ("bin/busybox", stat.S_IFREG | 0o755, (0, 0), busybox),
        ("init", stat.S_IFREG | 0o755, (0, 0), _INIT),
    ]
    out.write_bytes(archive(iter(members)))
    return out


class Qemu:
    """A QEMU process with its guest's console on pipes and its monitor on a socket."""

    def __init__(self, kernel: Path, initramfs: Path, memory_mib: int, monitor: Path, *more: str) -> None:
        command = [QEMU, "-M", "virt,gic-version=3", "-cpu", "cortex-a72", "-accel", "tcg", "-smp", "1"]
        command += ["-m", str(memory_mib), "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"]
        command += ["-qmp", f"unix:{monitor},server=on,wait=off", "-kernel", str(kernel), "-initrd", str(initramfs)]
        command += ["-append", "console=ttyAMA0 quiet panic=-1", *more]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self._monitor = monitor

    @property
    def _console(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self.process.stdin is not None and self.process.stdout is not None
        return self.process.stdin, self.process.stdout

    def write(self, line: bytes) -> None:
        """Types a line."""
        self._console[0].write(line + b"\n")

    def wait_for(self, text: bytes) -> None:
        """Reads the guest's console until it has said so."""
        seen = b""
        while text not in seen:
            chunk = self._console[1].read(4096)
            if not chunk:
                raise RuntimeError(f"QEMU ended before its guest said {text!r}; it said {seen!r}")
            seen += chunk

    def says(self, text: bytes, within: float) -> bool:
        """Whether the guest says so in so many seconds."""
        ready, _, _ = select.select([self._console[1]], [], [], within)
        if ready:
            self.wait_for(text)
        return bool(ready)

    def save(self, file: Path) -> None:
        """Writes the guest's state to the file, at the end of which it stands still, and ends."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(DEADLINE)
            monitor.connect(str(self._monitor))
            stream = monitor.makefile("rwb")

            def ask(command: str, **arguments: Any) -> Any:
                stream.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
                stream.flush()
                while True:
                    answer = json.loads(stream.readline())
                    if "error" in answer:
                        raise RuntimeError(f"QEMU refuses {command}: {answer['error']}")
                    if "return" in answer:
                        return answer["return"]

            json.loads(stream.readline())
            ask("qmp_capabilities")
            ask("migrate-set-parameters", **{"max-bandwidth": 10 << 30})
            ask("migrate", uri=f"exec:cat > {file}")
            end = time.monotonic() + DEADLINE
            while (state := ask("query-migrate")["status"]) != "completed":
                if state == "failed" or time.monotonic() > end:
                    raise RuntimeError(f"QEMU's migration to a file is {state}")
                time.sleep(0.05)
            ask("quit")
        self.process.wait(DEADLINE)

    def kill(self) -> None:
        """Ends it at once."""
        self.process.kill()
        self.process.wait()


def prepare(place: Path, kernel: Path, memory_mib: int) -> tuple[Path, Path]:
    """Boots the guest once and saves it: its initramfs and the file of its state."""
    initramfs, state = _initramfs(place), place / f"state-{memory_mib}"
    machine = Qemu(kernel, initramfs, memory_mib, place / "monitor")
    try:
        machine.wait_for(b"ready")
        machine.save(state)
    finally:
        machine.kill()
    return initramfs, state


def first_output(place: Path, kernel: Path, initramfs: Path, state: Path, memory_mib: int) -> float:
    """Seconds from starting QEMU on the saved state to the first output of a program in its guest."""
    start = time.perf_counter()
    machine = Qemu(kernel, initramfs, memory_mib, place / "monitor", "-incoming", f"exec:cat {state}")
    try:
        # What is typed before the state is read in is lost with the UART that it came to.
        while not machine.says(b"got hello", ASK_AGAIN):
            machine.write(b"hello")
        return time.perf_counter() - start
    finally:
        machine.kill()
