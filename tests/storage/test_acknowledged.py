"""What a guest's fsync has returned for is there: after its worker was killed at any moment, and in snapshots."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from supermachine import VM
from supermachine.guest.processes import Popen
from supermachine.storage import volumes

from ..real import require
from ..vm.guests import output
from . import acknowledged
from .test_root_disk import disk_of
from .test_volumes import BUSYBOX, MOMENTS

pytestmark = pytest.mark.usefixtures("data")

SOURCE = Path(__file__).with_name("writer.c")
#: Changes whose word the host may not have got yet.
ON_THE_WAY = 500
#: Of them at once, in directories of their own, beside what makes and removes trees.
WRITERS = 2
NOISE = "while true; do cp -r /bin $0/noise; rm -r $0/noise; done"


class Writers:
    """Programs of a guest that write to a directory, and what they have said."""

    def __init__(self, vm: VM, place: str, names: list[str]) -> None:
        self._processes = [(name, vm.popen(["/writer", f"{place}/{name}"], stdout=-1)) for name in names]
        self._noise = vm.popen(["sh", "-c", NOISE, place])

    def heard(self) -> dict[str, int]:
        """Changes of each, once no more are coming: those that it counted itself, from the first to the last."""
        found = {}
        for name, process in self._processes:
            lines = _rest(process).decode().split("\n")
            # The last is empty, or was cut off.
            assert lines[:-1] == [str(n) for n in range(len(lines) - 1)]
            found[name] = len(lines) - 1
        return found


def _rest(process: Popen) -> bytes:
    data = b""
    assert process.stdout is not None
    while True:
        try:
            more = process.stdout.read(65536)
        except OSError:
            return data
        if not more:
            return data
        data += more


def sound(image: Path) -> None:
    """The journal is replayed, and e2fsck finds nothing else to mend."""
    done = subprocess.run(["e2fsck", "-p", image], check=False, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    done = subprocess.run(["e2fsck", "-f", "-n", image], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def unpacked(image: Path, directory: str, place: Path) -> Path:
    """What a directory of a file system holds, as debugfs reads it."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    subprocess.run(["debugfs", "-R", f"rdump {directory} {place}", image], check=True, capture_output=True)
    return place / Path(directory).name


def test_a_volume_whose_worker_is_killed(tmp_path: Path, c_program: Callable[[Path, str], Path]) -> None:
    require("e2fsck", "debugfs")
    changes: dict[str, int] = {}
    program: Path | None = None
    image = tmp_path / "image"
    for moment in range(MOMENTS):
        with VM(BUSYBOX, memory="64m", volumes=["database:/data"]) as vm:
            program = program or c_program(SOURCE, output(vm, "uname -m").strip())
            vm.copy_in(program, "/writer")
            # Earlier ones go in the end, for there is no end to moments.
            for old in list(changes)[: -3 * WRITERS]:
                output(vm, f"rm -r /data/{old}; sync")
                del changes[old]
            output(vm, "rm -rf /data/noise")
            writers = Writers(vm, "/data", [f"{moment}-{n}" for n in range(WRITERS)])
            time.sleep(random.uniform(0.1, 1.5))
            assert vm.pid is not None
            os.kill(vm.pid, signal.SIGKILL)
            vm.wait(10)
            changes |= writers.heard()
        subprocess.run(["cp", "--sparse=always", volumes.place() / "database", image], check=True)
        sound(image)
        place = unpacked(image, "/volume", tmp_path / "unpacked")
        for name, count in changes.items():
            if count:
                # What was said last may have been on its way still.
                changes[name] = acknowledged.check(place / name, range(count, count + ON_THE_WAY))
    assert sum(changes.values()) > 0


def test_snapshots_of_the_disk_of_a_root(tmp_path: Path, c_program: Callable[[Path, str], Path]) -> None:
    require("e2fsck", "debugfs")
    with VM(BUSYBOX, memory="64m", disk="1g") as vm:
        vm.copy_in(c_program(SOURCE, output(vm, "uname -m").strip()), "/writer")
        output(vm, "mkdir /data")
        names = [str(n) for n in range(WRITERS)]
        writers = Writers(vm, "/data", names)
        heard: list[dict[str, int]] = []
        for moment in range(MOMENTS):
            time.sleep(random.uniform(0.05, 0.5))
            # What is in the logs by now is a part of what was said by then.
            heard.append(
                {name: int(output(vm, f"stat -c %s /data/{name}/log")) // acknowledged.RECORD for name in names}
            )
            vm.snapshot(tmp_path / f"snapshot-{moment}")
        vm.kill()
        total = writers.heard()
    for moment in range(MOMENTS):
        image = tmp_path / "image"
        disk_of(tmp_path / f"snapshot-{moment}", image)
        (tmp_path / f"snapshot-{moment}").unlink()
        sound(image)
        place = unpacked(image, "/data/data", tmp_path / "unpacked")
        for name in names:
            # How far it was follows from its log, which is no shorter than it was before.
            records = (place / name / "log").stat().st_size // acknowledged.RECORD
            assert heard[moment][name] <= records and (records - 1) * 4 <= total[name]
            acknowledged.check(place / name, range(max(0, (records - 1) * 4), records * 4 + 5))
