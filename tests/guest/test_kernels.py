"""Each guest kernel boots on an emulated machine of QEMU's, and has what programs and container runtimes need."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.real import unavailable

pytestmark = pytest.mark.vm

GUEST = Path(__file__).parents[2] / "guest"
KERNELS = {"x86_64": "vmlinux", "aarch64": "Image"}
MACHINES = {
    # Without ACPI, QEMU's firmware describes the processors in an MP table, as our machine does.
    "x86_64": ["-machine", "pc,acpi=off", "-cpu", "qemu64", "-append", "console=ttyS0 quiet reboot=t"],
    "aarch64": ["-machine", "virt,gic-version=3", "-cpu", "cortex-a76", "-append", "console=ttyAMA0 quiet"],
}


@pytest.mark.parametrize("architecture", sorted(KERNELS))
def test_a_kernel_has_what_guests_need(
    architecture: str, tmp_path: Path, c_program: Callable[[Path, str], Path]
) -> None:
    emulator = f"qemu-system-{architecture}"
    if missing := [tool for tool in (emulator, "zstd") if shutil.which(tool) is None]:
        unavailable(f"not installed: {', '.join(missing)}")
    kernel, initramfs = tmp_path / "kernel", tmp_path / "initramfs"
    compressed = GUEST / architecture / f"{KERNELS[architecture]}.zst"
    unpack = [sys.executable, str(GUEST / "branches.py"), "unpack", str(compressed), str(kernel)]
    subprocess.run(unpack, check=True, timeout=180)
    program = c_program(Path(__file__).with_name("features.c"), architecture)
    pack = [sys.executable, str(GUEST / "cpio.py"), str(program), str(initramfs)]
    subprocess.run(pack, check=True, timeout=60)
    done = subprocess.run(
        [emulator, *MACHINES[architecture], "-accel", "tcg", "-smp", "2,sockets=2", "-m", "256M", "-nodefaults",
         "-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", str(kernel), "-initrd", str(initramfs)],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    said = done.stdout.decode(errors="replace").replace("\r", "")
    assert "that is all\n" in said, said + done.stderr.decode(errors="replace")
    lines = re.findall(r"^(.+?): (.+)$", said, re.MULTILINE)
    answers = [answer for answer in lines if not answer[0].startswith("[")]
    assert [answer for answer in answers if answer[1] != "ok"] == [("processors", "2")]
    assert len(answers) > 60
