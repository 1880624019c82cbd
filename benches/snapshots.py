"""Snapshots through the Python interface: restore to first output, warm and cold and beside QEMU's way of doing it,
capture, forks, the whole command.

`python -m benches.snapshots` prints milliseconds, medians unless they say otherwise, with the spread beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import unittest.mock
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import supermachine
from supermachine import VM, Snapshot
from supermachine.snapshots import code

from . import incoming
from .guests import ROOT, unpack

IMAGE = str(ROOT / "demo" / "busybox.oci.tar")
ECHO = ["/bin/echo", "hello"]
#: Clones of one guest at once.
FORKS = 100


def _times(work: Callable[[], object], repeats: int) -> list[float]:
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        found.append((time.perf_counter() - start) * 1000)
    return sorted(found)


def quantiles(times: list[float]) -> dict[str, float]:
    last = times[min(len(times) - 1, int(len(times) * 0.95))]
    return {"p50_ms": round(statistics.median(times), 1), "p95_ms": round(last, 1), "min_ms": round(times[0], 1)}


def _drop(path: Path) -> None:
    """Takes a file out of the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def restore(snapshot: Snapshot, prefault: bool) -> None:
    with snapshot.restore(prefault=prefault) as vm:
        vm.run(ECHO, check=True)


def _restore_decoding(snapshot: Snapshot) -> None:
    """The same without the code that another has decoded."""
    with unittest.mock.patch.object(code, "has", return_value=False):
        restore(snapshot, True)


def _restores(path: Path, memory: str, repeats: int) -> dict[str, dict[str, float]]:
    """Restores of one snapshot, with and without its working set, in turn."""
    with VM(IMAGE, memory=memory) as vm:
        vm.run(ECHO, check=True)
        snapshot = vm.snapshot(path)
    rootfs = vm.image.rootfs
    restore(snapshot, True)  # records what it touches and runs
    found: dict[str, list[float]] = {}
    for _ in range(repeats):
        start = time.perf_counter()
        _restore_decoding(snapshot)
        took = (time.perf_counter() - start) * 1000
        found.setdefault(f"restore to first output, {memory}, code decoded anew", []).append(took)
        for prefault in (True, False):
            for cold in (False, True):
                if cold:
                    _drop(snapshot.path)
                    _drop(rootfs)
                else:
                    restore(snapshot, prefault)
                how = f"{memory}, working set {'on' if prefault else 'off'}{', cold page cache' * cold}"
                start = time.perf_counter()
                restore(snapshot, prefault)
                took = (time.perf_counter() - start) * 1000
                found.setdefault(f"restore to first output, {how}", []).append(took)
    snapshot.delete()
    return {name: quantiles(sorted(times)) for name, times in found.items()}


def _beside_qemu(place: Path, repeats: int) -> dict[str, float]:
    """The same kernel with 256 MiB and busybox, restored here and by QEMU, in turn; from warm files."""
    kernel = place / "Image"
    packed = ROOT / "guest" / "aarch64" / "Image.zst"
    unpack(packed, kernel)
    initramfs, state = incoming.prepare(place, kernel, 256)
    with VM(IMAGE, memory="256m") as vm:
        vm.run(ECHO, check=True)
        snapshot = vm.snapshot(place / "beside")
    restore(snapshot, True)
    here, there = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        restore(snapshot, True)
        here.append((time.perf_counter() - start) * 1000)
        there.append(incoming.first_output(place, kernel, initramfs, state, 256) * 1000)
    snapshot.delete()
    # The median of ratios, each of two runs that followed one another.
    ratio = statistics.median(b / a for a, b in zip(here, there, strict=True))
    return {"p50_ms": statistics.median(here), "qemu_p50_ms": statistics.median(there), "times_faster": round(ratio, 1)}


def _private_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) / 1024
    return 0.0


def measure(place: Path, repeats: int, say: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """Everything, on the image that ships with the project."""
    results: dict[str, dict[str, float]] = {}

    def note(name: str, row: dict[str, float]) -> None:
        results[name] = row
        say(f"{name}: {row}")

    for memory in ("256m", "2g"):
        for name, row in _restores(place / memory, memory, repeats).items():
            note(name, row)
    note("restore beside QEMU's -incoming", _beside_qemu(place, max(5, repeats // 2)))
    with VM(IMAGE, memory="512m") as vm:
        vm.run(["dd", "if=/dev/urandom", "of=/root/data", "bs=1M", "count=100"], check=True)
        pauses, rows = [], []
        for number in range(max(3, repeats // 4)):
            taken = vm.snapshot(place / f"used-{number}")
            pauses.append(taken.pause * 1000)
            rows.append((taken.data_bytes, taken.path.stat().st_blocks * 512))
            taken.delete()
        data, disk = rows[-1]
        note("capture pause, 512 MiB with 100 MiB in use", quantiles(sorted(pauses)))
        note("its file", {"ram_mib": round(data / 2**20, 1), "disk_mib": round(disk / 2**20, 1)})
    with VM(IMAGE, memory="256m") as vm, ThreadPoolExecutor(16) as executor:
        vm.run(ECHO, check=True)
        start = time.perf_counter()
        forks = vm.fork(FORKS)
        ready = (time.perf_counter() - start) * 1000
        list(executor.map(lambda fork: fork.run(ECHO, check=True), forks))
        answered = (time.perf_counter() - start) * 1000
        private = statistics.median(_private_mib(fork.pid) for fork in forks if fork.pid is not None)
        for fork in forks:
            fork.kill()
        note(
            f"fork({FORKS})",
            {"ready_ms": round(ready), "all_answered_ms": round(answered), "private_mib_each": round(private, 1)},
        )
    supermachine.bake(IMAGE)
    command = [str(Path(sys.executable).with_name("supermachine")), "run", "-q", IMAGE, "--", *ECHO]
    # The first restore records the working set, and what it came to is remembered.
    subprocess.run(command, check=True, capture_output=True)
    whole = _times(lambda: subprocess.run(command, check=True, capture_output=True), repeats)
    note("supermachine run, whole command", quantiles(whole))
    nothing = _times(lambda: subprocess.run([sys.executable, "-c", ""], check=True), repeats)
    imported = _times(lambda: subprocess.run([sys.executable, "-c", "import supermachine"], check=True), repeats)
    note("python -c ''", quantiles(nothing))
    note("python -c 'import supermachine'", quantiles(imported))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.snapshots", description=__doc__)
    parser.add_argument("--repeats", type=int, default=20, help="runs of each kind (default %(default)s)")
    parser.add_argument("--place", type=Path, default=ROOT / "target" / "bench", help="where the snapshots go")
    args = parser.parse_args()
    args.place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.place) as place:
        results = measure(Path(place), args.repeats, lambda line: print(line, file=sys.stderr, flush=True))
    results["environment"] = {"cpus": os.cpu_count() or 1, "load_1_min": round(os.getloadavg()[0], 1)}
    (args.place / "snapshots.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
