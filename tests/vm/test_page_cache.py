"""What a guest that goes on from a baked snapshot has in memory of its image."""

from __future__ import annotations

from pathlib import Path

import pytest
from supermachine import VM
from supermachine.guest import read_ahead

from .guests import was_restored


def reads(vm: VM) -> int:
    """Requests to read that the guest has made of its image (Documentation/block/stat.rst)."""
    return int(vm.path("/sys/block/vda/stat").read_text().split()[0])


def reads_of_a_first(command: list[str], image: Path, memory: str) -> int:
    """Those that it makes of a guest which has just been restored."""
    with VM(image, memory=memory, user="root"):
        pass
    with VM(image, memory=memory, user="root") as vm:
        assert was_restored(vm)
        before = reads(vm)
        vm.run(command, check=True)
        return reads(vm) - before


def test_the_shell_and_the_images_program_are_there(debian: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell, python = ["/bin/sh", "-c", ":"], ["python3", "--version"]
    assert reads_of_a_first(shell, debian, "130m") == 0
    # A locale, perhaps.
    assert reads_of_a_first(python, debian, "130m") <= 2
    # What that is worth: nobody reads them before.
    monkeypatch.setattr(read_ahead, "fill", lambda *_: None)
    assert reads_of_a_first(shell, debian, "132m") > 2
    assert reads_of_a_first(python, debian, "132m") > 10


def test_what_cannot_be_read_is_passed_over(debian: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ("/bin/missing", "/dev/zero", "/proc/kmsg", "/proc/self/mem", "/proc/kcore", "/etc", "/nowhere/at/all")
    monkeypatch.setattr(read_ahead, "_ALWAYS", (*files, *read_ahead._ALWAYS))
    assert reads_of_a_first(["/bin/sh", "-c", ":"], debian, "134m") == 0
