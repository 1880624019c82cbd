"""Memory that a guest has freed goes back to the host, within seconds, and is in no snapshot."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from supermachine import VM, snapshots

from .guests import output, wait_for, was_restored

pytestmark = [pytest.mark.vm, pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]

MIB = 1 << 20
USED = 192 * MIB


def held(vm: VM) -> int:
    """Bytes of the host's that the worker has, without those of files that others could share."""
    lines = Path(f"/proc/{vm.pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Anonymous:"))


def use(vm: VM) -> None:
    """Random bytes: pages that would be kept, and that no compression makes small."""
    output(vm, f"dd if=/dev/urandom of=/dev/shm/used bs=1M count={USED // MIB} 2>/dev/null")


@pytest.mark.parametrize("restored", [False, True])
def test_it_goes_back_to_the_host(busybox: str, restored: bool) -> None:
    if restored:
        VM(busybox, engine="soft", memory="512m", bake=True).start().kill()
    with VM(busybox, engine="soft", memory="512m", bake=restored) as vm:
        assert was_restored(vm) == restored
        before = held(vm)
        use(vm)
        assert held(vm) > before + USED * 3 // 4
        output(vm, "rm /dev/shm/used")
        wait_for(lambda: held(vm) < before + USED // 4, "the guest's memory", 30)
        # What it frees can be used again.
        use(vm)
        assert held(vm) > before + USED * 3 // 4


def test_a_snapshot_does_not_have_it(busybox: str, tmp_path: Path) -> None:
    with VM(busybox, engine="soft", memory="512m") as vm:
        before = held(vm)
        use(vm)
        vm.snapshot(tmp_path / "used")
        output(vm, "rm /dev/shm/used")
        wait_for(lambda: held(vm) < before + USED // 4, "the guest's memory", 30)
        vm.snapshot(tmp_path / "freed")
    used, freed = (snapshots.inspect(tmp_path / name).disk_bytes for name in ("used", "freed"))
    assert used > USED
    assert freed < used - USED * 3 // 4
