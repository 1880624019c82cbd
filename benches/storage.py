"""Storage: what a root on a disk costs starts, captures and unpacking, beside memory; volumes; shares."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from supermachine import VM, Share, Volume

from .machines import cpu_seconds

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


#: In a directory of a share and in one of memory: what a guest's shell times.
_SHARED = {
    "find, cold": "echo 3 > /proc/sys/vm/drop_caches; TIME find {place}/tree -type f -size +1000k",
    "find, warm": "find {place}/tree -type f -size +1000k; TIME find {place}/tree -type f -size +1000k",
    "read": "echo 3 > /proc/sys/vm/drop_caches; TIME dd if={place}/large of=/dev/null bs=1M",
    "write": "TIME dd if=/dev/zero of={place}/new bs=1M count=128 conv=fsync; rm {place}/new",
    "create": "mkdir {place}/made; cd {place}/made; seq 3000 > /tmp/names; TIME xargs touch < /tmp/names",
    "remove": "TIME rm -r {place}/made",
}
_FILES, _LARGE = 10_000, 128 << 20


def _shares(place: Path, repeats: int) -> dict[str, float]:
    """Of the guest's own seconds; the same tree is in a share and in a tmpfs, and asked for by turns."""
    for number in range(_FILES):
        path = place / "tree" / f"{number // 100}" / f"file{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 100)
    (place / "large").write_bytes(os.urandom(1 << 20) * (_LARGE >> 20))
    found: dict[tuple[str, str], list[float]] = {}
    mounts = {"/shared": Share(place)}
    with VM(BUSYBOX, memory="1g", engine="soft", mounts=mounts, tmpfs=["/memory:size=700m"]) as vm:
        vm.run(["cp", "-r", "/shared/tree", "/shared/large", "/memory"], check=True)
        for _ in range(repeats):
            for name, command in _SHARED.items():
                for side in ("/shared", "/memory"):
                    script = command.format(place=side).replace("TIME", "time -p")
                    done = vm.run(["sh", "-c", script], text=True, capture_output=True, check=True)
                    real = next(line for line in done.stderr.splitlines() if line.startswith("real"))
                    found.setdefault((name, side), []).append(float(real.split()[1]))
    rows = {}
    for name in _SHARED:
        share, memory = (found[name, side] for side in ("/shared", "/memory"))
        rows[f"share: {name}, s"] = statistics.median(share)
        if name not in ("find, cold", "read"):
            rows[f"share: {name}, median of the ratios to tmpfs"] = statistics.median(
                one / max(other, 0.01) for one, other in zip(share, memory, strict=True)
            )
    rows["share: lookups and attributes, cold, a second"] = _FILES / rows["share: find, cold, s"]
    for name in ("read", "write"):
        rows[f"share: {name}, MB/s"] = _LARGE / 1e6 / rows[f"share: {name}, s"]
    return rows


#: What developers' tools do in a directory, and what comes before it that is not measured.
_GIT = "git -c safe.directory='*' -c user.name=a -c user.email=a@example.org"
_TOOLS = {
    "git status, 10,000 files, warm": (
        f"cd {{place}}/tree && test -e .git || ({_GIT} init -q && {_GIT} add . && {_GIT} commit -q -m one); "
        f"{_GIT} status --porcelain",
        f"cd {{place}}/tree && {_GIT} status --porcelain",
    ),
    "pip install, 30 wheels": (
        "rm -rf {place}/site",
        "python3 -m pip install -q --no-compile --no-index --find-links /wheels --target {place}/site PARTS",
    ),
    "rm -rf, 30,000 files": (
        "mkdir -p {place}/many && cd {place}/many && seq 300 | xargs mkdir -p && "
        "for d in *; do (cd $d && seq 100 | xargs touch); done",
        "rm -rf {place}/many",
    ),
}
_WHEELS, _MODULES = 30, 40


def _wheels(place: Path) -> str:
    """Wheels of so many modules each; their names."""
    place.mkdir()
    for number in range(_WHEELS):
        name = f"part{number}"
        with zipfile.ZipFile(place / f"{name}-1-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
            for module in range(_MODULES):
                wheel.writestr(f"{name}/module{module}.py", f"value = {module}\n" * 200)
            about = f"{name}-1.dist-info"
            wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/RECORD", "")
    return " ".join(f"part{number}" for number in range(_WHEELS))


def _tools(place: Path, repeats: int) -> dict[str, float]:
    """Seconds of processor time, the server's among them, by turns in a share and in a tmpfs."""
    from tests.vm.conftest import packages, umoci_layout

    place.mkdir()
    tar = packages(place / "rootfs.tar", "git,python3,python3-pip,coreutils,findutils,dash,base-files,base-passwd")
    image = umoci_layout(place / "oci", [tar], "--config.env", "PATH=/usr/bin:/bin", "--config.env", "HOME=/root")
    parts = _wheels(place / "wheels")
    for number in range(_FILES):
        path = place / "share" / "tree" / f"{number // 100}" / f"file{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d\n" % number * 10)
    found: dict[tuple[str, str], list[float]] = {}
    mounts = {"/shared": place / "share", "/wheels": Share(place / "wheels", read_only=True)}
    with VM(image, memory="1g", engine="soft", mounts=mounts, tmpfs=["/memory:size=600m"]) as vm:
        vm.run(["cp", "-r", "/shared/tree", "/memory"], check=True)
        pid = vm.pid
        assert pid is not None
        for number in range(repeats + 1):
            for name, scripts in _TOOLS.items():
                for side in ("/shared", "/memory"):
                    before, measured = (script.format(place=side).replace("PARTS", parts) for script in scripts)
                    vm.run(["sh", "-c", before], check=True)
                    began = cpu_seconds(pid)
                    vm.run(["sh", "-c", measured], check=True)
                    if number:
                        found.setdefault((name, side), []).append(cpu_seconds(pid) - began)
    rows = {}
    for name in _TOOLS:
        share, memory = (found[name, side] for side in ("/shared", "/memory"))
        rows[f"share: {name}, s"] = statistics.median(share)
        ratios = [one / max(other, 0.01) for one, other in zip(share, memory, strict=True)]
        rows[f"share: {name}, median of the ratios to tmpfs"] = statistics.median(ratios)
    return rows


def _restores_with(place: Path, repeats: int) -> dict[str, float]:
    """Milliseconds until the first command has run, by turns, with what is mounted beside the image and without: by the
    clock, and of processor time of the machine and of this process.
    """
    sides: dict[str, Mapping[str, Share | Volume]] = {
        "nothing": {},
        "a share": {"/shared": Share(place)},
        "a volume": {"/data": Volume("disk")},
        "a share and a volume": {"/shared": Share(place), "/data": Volume("disk")},
        "a volume that is a directory": {"/data": Volume("directory", kind="directory")},
    }
    found: dict[str, list[float]] = {name: [] for name in sides}
    ready: dict[str, list[float]] = {name: [] for name in sides}
    processors: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(repeats + 1):
        for name, mounts in sides.items():
            began, own = time.perf_counter(), time.process_time()
            with VM(BUSYBOX, mounts=mounts) as vm:
                vm.run(["true"], check=True)
                took = (time.perf_counter() - began) * 1e3
                assert vm.pid is not None
                used = (cpu_seconds(vm.pid) + time.process_time() - own) * 1e3
                until = dict(vm.timings)["ready"] / 1e6
            if number:
                found[name].append(took)
                ready[name].append(until)
                processors[name].append(used)
    rows = {}
    for what, times in (
        ("a restore", ready),
        ("a restore and a command", found),
        ("a restore and a command, processor time", processors),
    ):
        for name in list(sides)[1:]:
            pairs = [one - other for one, other in zip(times[name], times["nothing"], strict=True)]
            rows[f"{what}: median of what {name} adds, ms"] = statistics.median(pairs)
    return rows


def _pauses(place: Path, repeats: int) -> dict[str, float]:
    """Milliseconds that no vCPU runs at a capture, by turns, of guests that differ in their root's disk alone."""
    with contextlib.ExitStack() as stack:
        start = partial(VM, BUSYBOX, memory="64m")
        guests = {
            "a disk that holds 200 MiB": stack.enter_context(start(disk="64g")),
            "a disk": stack.enter_context(start(disk="64g")),
            "a tmpfs": stack.enter_context(start(disk=0)),
        }
        for name, vm in guests.items():
            # All have had the same in memory, which is what a capture writes; one has it on its disk still.
            size = 24 if name == "a tmpfs" else 200
            fill = f"dd if=/dev/zero of=/large bs=1M count={size}; sync; echo 3 > /proc/sys/vm/drop_caches"
            vm.run(["sh", "-c", fill if "holds" in name else f"{fill}; rm /large; sync"], check=True)
        found: dict[str, list[float]] = {name: [] for name in guests}
        for number in range(repeats + 1):
            for name, vm in guests.items():
                pause = vm.snapshot(place / "snapshot").pause * 1e3
                (place / "snapshot").unlink()
                if number:
                    found[name].append(pause)
    rows = {f"capture: pause with {name}, ms": statistics.median(times) for name, times in found.items()}
    for name in list(found)[:2]:
        ratios = [one / other for one, other in zip(found[name], found["a tmpfs"], strict=True)]
        rows[f"capture: pause with {name}, median of the ratios to a tmpfs"] = statistics.median(ratios)
    return rows


def _volume(repeats: int) -> dict[str, float]:
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
    (place / "share").mkdir()
    os.environ["SUPERMACHINE_DATA"] = str(place / "data")
    for part in (
        lambda: _restores(4 * repeats),
        lambda: _unpacking(repeats),
        lambda: _volume(repeats),
        lambda: _shares(place / "share", repeats),
        lambda: _tools(place / "tools", (repeats + 2) // 3),
        lambda: _restores_with(place / "share", 4 * repeats),
        lambda: _pauses(place, repeats),
    ):
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
