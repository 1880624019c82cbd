"""Two checkouts against each other, by turns in one run: `python -m benches.against OTHER`.

OTHER is a checkout of another commit, built as this one is (its package has the worker, the guest's files and the
extension). What is compared does not hang on the clock: processor time of a process and all that it waited for
(wait4(2)), and guest instructions and exits of the software engine. Pairs run as ours, theirs, theirs, ours …; a row is
the median of the ratios of neighbours, with the middle half of them beside it. Exit status 1 when a median is above
--limit per cent and the middle half does not touch 1: what one run can tell apart from noise.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
IMAGE = "demo/busybox.oci.tar"
#: Tells a side's process to count.
COUNTED = "BENCH_COUNTED"
#: Pairs whose counts are taken. A guest that waits for the clock counts more on a busy host.
COUNTS = 5
#: Restores, captures and commands of one process: its own start is a small part of what is measured then.
TIMES = 8
PROGRAMS = {
    "sha256sum": "dd if=/dev/zero bs=1M count=48 2>/dev/null | sha256sum",
    "sort": "seq 60000 | sort -r | md5sum",
    "awk": "awk 'BEGIN { for (i = 0; i < 400000; i++) s += i * 1.5; print s }'",
    "shell": "i=0; while [ $i -lt 60000 ]; do i=$((i + 1)); done; echo $i",
}


# What runs in a process of each side, whose package is the side's and whose program is this file.


def _machine(**options: Any) -> Any:
    from supermachine import VM

    return VM(IMAGE, engine="soft", memory="256m", **options)


def _counts(vm: Any) -> dict[str, float]:
    """Counted up to a pause, which a capture makes: not while processor time is measured."""
    if not os.environ.get(COUNTED):
        return {}
    with tempfile.TemporaryDirectory() as scratch:
        vm.snapshot(Path(scratch) / "snapshot")
    exits, instructions = vm._running().stats(60)
    return {"instructions": instructions, "exits": sum(count for _, count in exits)}


def _boot(_: Path) -> dict[str, float]:
    with _machine(bake=False) as vm:
        vm.run(["/bin/true"], check=True)
        return _counts(vm)


def _restore(place: Path) -> dict[str, float]:
    from supermachine import VM

    for _ in range(TIMES):
        with VM.restore(place / "snapshot") as vm:
            vm.run(["/bin/echo", "hello"], check=True, capture_output=True)
            counts = _counts(vm)
    return counts


def _commands(place: Path) -> dict[str, float]:
    from supermachine import VM

    with VM.restore(place / "snapshot") as vm:
        for _ in range(TIMES * 4):
            vm.run(["/bin/echo", "hello"], check=True, capture_output=True)
        return _counts(vm)


def _capture(place: Path) -> dict[str, float]:
    from supermachine import VM

    with VM.restore(place / "snapshot") as vm, tempfile.TemporaryDirectory(dir=place) as scratch:
        for number in range(TIMES):
            vm.snapshot(Path(scratch) / str(number))
        return _counts(vm)


def _fork(place: Path) -> dict[str, float]:
    from supermachine import VM

    with VM.restore(place / "snapshot") as vm:
        for clone in vm.fork(TIMES):
            with clone:
                clone.run(["/bin/true"], check=True)
        return _counts(vm)


def _program(name: str) -> Callable[[Path], dict[str, float]]:
    def work(place: Path) -> dict[str, float]:
        from supermachine import VM

        with VM.restore(place / "snapshot") as vm:
            vm.run(["/bin/sh", "-c", PROGRAMS[name]], check=True, capture_output=True)
            return _counts(vm)

    return work


CASES: dict[str, Callable[[Path], dict[str, float]]] = {
    "boot": _boot,
    "restore": _restore,
    "commands": _commands,
    "capture": _capture,
    "fork": _fork,
    **{f"program {name}": _program(name) for name in PROGRAMS},
}


def _prepare(place: Path) -> None:
    """A snapshot of this side's own, and all that a second start finds in the cache."""
    with _machine() as vm:
        vm.run(["/bin/echo", "hello"], check=True)
        vm.snapshot(place / "snapshot")
    _restore(place)


# What compares.


class Side(NamedTuple):
    name: str
    tree: Path
    place: Path

    def run(self, command: list[str], *, counted: bool = False) -> tuple[float, str]:
        """Seconds of processor time, and what it printed. Raises CalledProcessError."""
        environment = dict(
            os.environ, PYTHONPATH=str(self.tree / "python"), SUPERMACHINE_CACHE=str(self.place / "cache")
        )
        environment[COUNTED] = "1" if counted else ""
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        assert process.stdout is not None
        output = process.stdout.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command, output)
        return usage.ru_utime + usage.ru_stime, output

    def cpu(self, name: str) -> dict[str, float]:
        if name == "import":
            command = [sys.executable, "-c", "import supermachine; supermachine.VM"]
        elif name == "whole command":
            words = ["run", "--engine", "soft", "--memory", "256m", "-q", IMAGE, "--", "/bin/true"]
            command = [sys.executable, "-m", "supermachine", *words]
        else:
            command = self.program(name)
        return {"cpu": self.run(command)[0]}

    def counts(self, name: str) -> dict[str, float]:
        found: dict[str, float] = json.loads(self.run(self.program(name), counted=True)[1])
        return found

    def program(self, name: str) -> list[str]:
        return [sys.executable, __file__, "--case", name, "--place", str(self.place)]


Pairs = list[tuple[dict[str, float], dict[str, float]]]


def _turns(sides: tuple[Side, Side], measure: Callable[[Side], dict[str, float]], repeats: int) -> Pairs:
    for side in sides:
        measure(side)  # does not count
    pairs = []
    for number in range(repeats):
        order = sides if number % 2 == 0 else sides[::-1]
        found = {side.name: measure(side) for side in order}
        pairs.append((found[sides[0].name], found[sides[1].name]))
    return pairs


def _row(ratios: list[float]) -> tuple[float, float, float]:
    """Median, and the middle half."""
    if len(ratios) < 2:
        return ratios[0], ratios[0], ratios[0]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return middle, low, high


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.against", description=__doc__)
    parser.add_argument("other", type=Path, nargs="?", help="the other checkout")
    parser.add_argument("--repeats", type=int, default=12, help="pairs of each case (default %(default)s)")
    parser.add_argument(
        "--limit", type=float, default=2.0, help="per cent that ours may take more (default %(default)s)"
    )
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--place", type=Path, default=ROOT / "target" / "against", help="for caches and snapshots")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        work = _prepare if args.case == "prepare" else CASES[args.case]
        print(json.dumps(work(args.place)))
        return
    if args.other is None:
        parser.error("the other checkout is missing")

    sides = (
        Side("ours", ROOT, args.place.resolve() / "ours"),
        Side("theirs", args.other.resolve(), args.place.resolve() / "theirs"),
    )
    for side in sides:
        side.place.mkdir(parents=True, exist_ok=True)
        (side.place / "snapshot").unlink(missing_ok=True)
        side.run(side.program("prepare"))
    slower = []
    print("| what | of | ours | theirs | ratio | middle half |\n|---|---|---|---|---|---|")
    for name in ("import", "whole command", *CASES):
        if args.only not in name:
            continue
        measured = [("cpu", _turns(sides, lambda side, name=name: side.cpu(name), args.repeats))]  # type: ignore[misc]
        if name in CASES:
            counts = _turns(sides, lambda side, name=name: side.counts(name), COUNTS)  # type: ignore[misc]
            measured += [(what, counts) for what in counts[0][0]]
        for what, pairs in measured:
            ours, theirs = ([pair[side][what] for pair in pairs] for side in (0, 1))
            middle, low, high = _row([a / b for a, b in zip(ours, theirs, strict=True) if b])
            first, second = statistics.median(ours), statistics.median(theirs)
            shown = (f"{first:.3f} s", f"{second:.3f} s") if what == "cpu" else (f"{first:,.0f}", f"{second:,.0f}")
            print(f"| {name} | {what} | {shown[0]} | {shown[1]} | {middle:.3f} | {low:.3f} to {high:.3f} |", flush=True)
            if middle > 1 + args.limit / 100 and low > 1:
                slower.append(f"{name} ({what})")
    if slower:
        sys.exit(f"slower by more than {args.limit:g} %: {', '.join(slower)}")


if __name__ == "__main__":
    main()
