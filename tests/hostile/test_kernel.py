"""A kernel that does the worst to every device in every state of a driver: the worker bears it, and ends when told."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from supermachine import VM, errors, images
from supermachine.host import engines
from supermachine.images import ImageConfig, Platform, ResolvedImage

from ..real import unavailable
from ..vm.guests import wait_for
from .watch import Watch, workers

pytestmark = [pytest.mark.vm, pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]

SOURCE = Path(__file__).with_name("kernel.c")
ROUNDS = int(os.environ.get("SUPERMACHINE_TEST_ROUNDS", "20"))
#: Seconds for all of them, also where KVM emulates: a million instructions a second.
PATIENCE = 120 + 2 * ROUNDS
#: What the program is told is behind this in it.
MAGIC = b"sunvailt"
#: Where each architecture's machine has its RAM, or its kernel.
BASE = {"aarch64": 0x4000_0000, "x86_64": 0x10_0000}
MEMORY = 64 << 20
#: Bytes that a worker may have beside its guest's RAM.
OWN = 64 << 20
#: Descriptors that a worker may have.
DESCRIPTORS = 64

BY_ITSELF, NOTIFYING, SPINNING = 0, 1, 2


@pytest.fixture(scope="module", params=["soft", "kvm"])
def engine(request: pytest.FixtureRequest) -> str:
    found = next((e for e in engines.probe() if e.name == request.param), None)
    # One that is too slow for guests bears it as well, in a minute a round.
    if found is None or not (found.usable or (found.forcible and "SUPERMACHINE_TEST_ROUNDS" in os.environ)):
        pytest.skip(f"{request.param} cannot be used here: {found.status if found else 'not known'}")
    return str(request.param)


@pytest.fixture(scope="module")
def program(engine: str, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The kernel as the machine boots it: an Image for arm64, an ELF file for x86_64."""
    architecture = "aarch64" if engine == "soft" else platform.machine()
    prefix = f"{architecture}-linux-gnu-"
    if shutil.which(f"{prefix}gcc") is None:
        unavailable(f"not installed: {prefix}gcc")
    place = tmp_path_factory.mktemp("kernel")
    script = place / "kernel.ld"
    script.write_text(
        f"ENTRY(start) SECTIONS {{ . = {BASE[architecture]:#x};"
        " .text : { *(.head) *(.text*) *(.rodata*) *(.data*) *(.bss*) *(COMMON) } :all"
        " /DISCARD/ : { *(.comment) *(.note*) *(.eh_frame*) } } PHDRS { all PT_LOAD FLAGS(7); }"
        if architecture == "x86_64"
        else f"ENTRY(start) SECTIONS {{ . = {BASE[architecture]:#x};"
        " .text : { *(.head) *(.text*) *(.rodata*) *(.data*) *(.bss*) *(COMMON) }"
        " /DISCARD/ : { *(.comment) *(.note*) *(.eh_frame*) } }"
    )
    options = ["-O1", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-nostdlib", "-static", "-fno-pie", "-no-pie"]
    options += ["-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-Wl,--build-id=none", "-Wl,-T", str(script)]
    # Without its own translation of addresses, a CPU takes all memory for a device's, which must be aligned.
    options += ["-mgeneral-regs-only"]
    options += (
        ["-mstrict-align", "-ffixed-x18"]
        if architecture == "aarch64"
        else ["-mno-red-zone", "-Wl,-z,max-page-size=4096"]
    )
    elf = place / "kernel.elf"
    subprocess.run([f"{prefix}gcc", *options, "-o", elf, SOURCE], check=True)
    if architecture == "x86_64":
        return elf.read_bytes()
    subprocess.run([f"{prefix}objcopy", "-O", "binary", elf, place / "Image"], check=True)
    return (place / "Image").read_bytes()


Boots = Callable[..., VM]


@pytest.fixture
def boots(engine: str, program: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Boots:
    """A machine whose kernel is this one."""
    monkeypatch.setenv("SUPERMACHINE_NO_SNAPSHOT", "1")
    disk = tmp_path / "disk"
    disk.write_bytes(os.urandom(1 << 20))
    platform_ = Platform("linux", "arm64" if program[56:60] == b"ARM\x64" else "amd64")
    image = ResolvedImage("hostile", "sha256:" + "0" * 64, platform_, ImageConfig(), disk, 0)
    monkeypatch.setattr(images, "resolve", lambda *_args, **_options: image, raising=False)

    def make(seed: int, then: int, rounds: int = ROUNDS, timeout: float = PATIENCE) -> VM:
        at = program.index(MAGIC)
        told = MAGIC + seed.to_bytes(8, "little") + rounds.to_bytes(4, "little") + then.to_bytes(4, "little")
        kernel = tmp_path / "kernel"
        kernel.write_bytes(program[:at] + told + program[at + len(told) :])
        monkeypatch.setenv("SUPERMACHINE_KERNEL", str(kernel))
        return VM("hostile", engine=engine, memory=MEMORY, boot_timeout=timeout)

    return make


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_worst_to_every_device_in_every_state(boots: Boots, seed: int) -> None:
    with Watch() as seen, pytest.raises(errors.VMExited) as caught:
        boots(seed, BY_ITSELF).start()
    # The guest's own doing, and not that of a worker that fell.
    assert caught.value.reason in ("guest-power-off", "guest-reset"), caught.value
    assert 0 < seen.memory < MEMORY + OWN
    assert seen.descriptors < DESCRIPTORS
    wait_for(lambda: not list(workers()), "the end of the worker", 10)


@pytest.mark.parametrize("then", [NOTIFYING, SPINNING])
def test_a_kernel_that_never_stops_is_ended(boots: Boots, then: int) -> None:
    vm = boots(4, then, rounds=1, timeout=3)
    with Watch() as seen, pytest.raises(errors.VMTimeout):
        vm.start()
    assert not vm.running
    assert 0 < seen.memory < MEMORY + OWN
    wait_for(lambda: not list(workers()), "the end of the worker", 10)


@pytest.mark.parametrize("then", [NOTIFYING, SPINNING])
def test_its_worker_ends_with_its_owner(boots: Boots, then: int) -> None:
    reader, writer = os.pipe()
    if (owner := os.fork()) == 0:
        vm = boots(5, then, rounds=1, timeout=60)
        threading.Thread(target=vm.start, daemon=True).start()
        wait_for(lambda: list(workers()), "a worker", 30)
        found = list(workers())
        time.sleep(1)  # it is at its worst
        os.write(writer, b"%d" % found[0])
        os.close(writer)
        time.sleep(60)
        os._exit(1)
    os.close(writer)
    with open(reader) as said:
        worker = int(said.read())
    os.kill(owner, signal.SIGKILL)
    os.waitpid(owner, 0)
    wait_for(lambda: _state(worker) == "Z", "the end of a worker whose owner is gone", 10)


def _state(process: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    return "Z"
