"""Storage: what a root on a disk costs a start, and unpacking a source tree, beside memory; a volume of 1 TiB."""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from supermachine import VM, Volume

ROOT = Path(__file__).parents[1]
BUSYBOX = str(ROOT / "demo" / "busybox.oci.tar")
SIZES = {"disk": "64g", "tmpfs": "0"}


def _restores(repeats: int) -> dict[str, float]:
    """Milliseconds to the agent's word that it is ready, by turns."""
    found: dict[str, list[float]] = {name: [] for name in SIZES}
    for number in range(repeats + 1):
        for name, size in SIZES.items():
            # The first start of each bakes, or finds what was baked.
            with VM(BUSYBOX, disk=size) as vm:
                ready = dict(vm.timings)["ready"] / 1e6
            if number:
                found[name].append(ready)
    medians = {f"restore with {name}, ms": statistics.median(times) for name, times in found.items()}
    pairs = [disk - tmpfs for disk, tmpfs in zip(found["disk"], found["tmpfs"], strict=True)]
    return {**medians, "restore: median of the differences, ms": statistics.median(pairs)}


def _source_tree() -> bytes:
    """A tar of the project's own sources."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("rust", "python", "tests"):
            archive.add(
                ROOT / name, name, filter=lambda info: None if info.name.endswith((".so", "_bin", "_guest")) else info
            )
    return buffer.getvalue()


def _unpacking(repeats: int) -> dict[str, float]:
    """Seconds of the guest's own, by turns in one guest: onto the root's disk, and into a tmpfs."""
    found: dict[str, list[float]] = {name: [] for name in SIZES}
    with VM(BUSYBOX, memory="1g", engine="soft") as vm:
        vm.run(["sh", "-c", "mkdir /memory && mount -t tmpfs tmpfs /memory"], check=True)
        vm.path("/memory/tree.tar").write_bytes(_source_tree())
        for number in range(repeats + 1):
            for name, place in (("disk", "/tree"), ("tmpfs", "/memory/tree")):
                began = time.perf_counter()
                vm.run(["sh", "-c", f"mkdir {place} && tar -xf /memory/tree.tar -C {place} && sync"], check=True)
                if number:
                    found[name].append(time.perf_counter() - began)
                vm.run(["rm", "-r", place], check=True)
    medians = {f"tar x on {name}, s": statistics.median(times) for name, times in found.items()}
    ratios = [disk / tmpfs for disk, tmpfs in zip(found["disk"], found["tmpfs"], strict=True)]
    return {**medians, "tar x: median of the ratios": statistics.median(ratios)}


def _volume(place: Path, repeats: int) -> dict[str, float]:
    os.environ["SUPERMACHINE_DATA"] = str(place)
    times = []
    for number in range(repeats):
        began = time.perf_counter()
        volume = Volume.create(f"volume-{number}", "1t")
        times.append((time.perf_counter() - began) * 1e3)
        on_disk = volume.inspect().disk_bytes
        volume.remove()
    return {"volume of 1 TiB made, ms": statistics.median(times), "volume of 1 TiB on disk, KiB": on_disk / 1024}


def measure(place: Path, repeats: int, say: Callable[[str], None]) -> dict[str, float]:
    rows: dict[str, float] = {}
    for part in (lambda: _restores(4 * repeats), lambda: _unpacking(repeats), lambda: _volume(place, repeats)):
        for name, value in part().items():
            rows[name] = value
            say(f"{name}: {value:.2f}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.storage", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "target" / "bench", help="where storage.json goes")
    parser.add_argument("--repeats", type=int, default=9)
    said = parser.parse_args()
    said.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=said.out) as place:
        rows = measure(Path(place), said.repeats, print)
    (said.out / "storage.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
