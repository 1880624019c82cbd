"""Pictures of restore and fork times, for the documentation.

`make bench-plots` takes the times, which needs some minutes and a machine that does nothing else, writes them into
recorded/starts.json with what they were measured on, and draws docs/concepts/restores.svg and forks.svg from there.
`python -m benches.plots draw` draws alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .chart import chart
from .guests import ROOT

RECORDED = ROOT / "benches" / "recorded" / "starts.json"
PICTURES = ROOT / "docs" / "concepts"
MEMORIES = ("256m", "2g")
FORKS = (1, 2, 5, 10, 20, 50, 100)
#: Clones that are spoken to at once.
_THREADS = 16
Recorded = dict[str, Any]


def measure(repeats: int, rounds: int) -> Recorded:
    """Milliseconds: of each restore to the first output; of forks, medians until ready and until all have answered."""
    from supermachine import VM

    from .snapshots import ECHO, IMAGE, restore

    restores: dict[str, list[float]] = {memory: [] for memory in MEMORIES}
    with tempfile.TemporaryDirectory() as place:
        snapshots = {}
        for memory in MEMORIES:
            with VM(IMAGE, memory=memory) as vm:
                vm.run(ECHO, check=True)
                snapshots[memory] = vm.snapshot(Path(place, memory))
            restore(snapshots[memory], True)  # records what it touches
        # By turns, so that other work on the machine is in both.
        for _ in range(repeats):
            for memory, snapshot in snapshots.items():
                start = time.perf_counter()
                restore(snapshot, True)
                restores[memory].append(round((time.perf_counter() - start) * 1000, 2))
    forks: list[dict[str, float]] = []
    with VM(IMAGE, memory="256m") as vm, ThreadPoolExecutor(_THREADS) as executor:
        vm.run(ECHO, check=True)
        for count in FORKS:
            ready, answered = [], []
            for _ in range(rounds):
                start = time.perf_counter()
                clones = vm.fork(count)
                ready.append((time.perf_counter() - start) * 1000)
                list(executor.map(lambda clone: clone.run(ECHO, check=True), clones))
                answered.append((time.perf_counter() - start) * 1000)
                for clone in clones:
                    clone.kill()
            medians = [round(statistics.median(times), 1) for times in (ready, answered)]
            forks.append({"count": count, "ready_ms": medians[0], "answered_ms": medians[1]})
    return {"environment": _environment(repeats, rounds), "restores_ms": restores, "forks": forks}


def _environment(repeats: int, rounds: int) -> dict[str, object]:
    cpu = next((x.partition(": ")[2] for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), "")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "load_1_min": round(os.getloadavg()[0], 1),
        "restores": repeats,
        "rounds_of_forks": rounds,
    }


def draw(recorded: Recorded) -> dict[str, str]:
    """The pictures by their names, as SVG."""
    on = recorded["environment"]
    where = f"soft engine, {on['cores']} cores, load {on['load_1_min']}, {on['date']}"
    restores = []
    for memory, times in recorded["restores_ms"].items():
        ordered = sorted(times)
        # The slowest fiftieth would squeeze the rest.
        shown = ordered[: max(1, round(len(ordered) * 0.98))]
        points = [(took, 100 * (number + 1) / len(ordered)) for number, took in enumerate(shown)]
        label = f"{memory[:-1]} {'MiB' if memory[-1] == 'm' else 'GiB'}: median {statistics.median(ordered):.0f} ms"
        restores.append((label, points))
    forks = [
        (label, [(row["count"], row[key]) for row in recorded["forks"]])
        for key, label in (("ready_ms", "until all are ready"), ("answered_ms", "until all have run a command"))
    ]
    return {
        "restores.svg": chart(f"Restore to first output: {where}", "milliseconds", "% of restores done", restores),
        "forks.svg": chart(f"vm.fork(n): {where}", "clones", "milliseconds", forks, dots=True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.plots", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("measure", "draw"), default="measure")
    parser.add_argument("--repeats", type=int, default=100, help="restores of each size (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="forks of each number (default %(default)s)")
    args = parser.parse_args()
    if args.what == "measure":
        RECORDED.parent.mkdir(exist_ok=True)
        RECORDED.write_text(json.dumps(measure(args.repeats, args.rounds)) + "\n")
    for name, picture in draw(json.loads(RECORDED.read_text())).items():
        (PICTURES / name).write_text(picture)


if __name__ == "__main__":
    main()
