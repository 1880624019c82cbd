"""Snapshots in registries: what a push sends, and how long a start from a registry takes over a shaped network.

`python -m benches.artifacts [IMAGE] [--command WORD…]` prints JSON. The registry is that of the tests, in another
process; each answer of it comes a round trip late, and all of them share the bandwidth. A real one adds its own time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import supermachine
from supermachine import VM
from supermachine.machine import remote

from .guests import ROOT

#: Seconds of a round trip, bytes a second.
DELAY, RATE = 0.02, 125e6


def _serve(pipe: Any) -> None:
    """A process: the registry, which does what it is told."""
    from tests.artifacts.registry import Registry

    registry = Registry()
    image = json.dumps({"schemaVersion": 2}).encode()
    registry.put("bench", image, "application/vnd.oci.image.manifest.v1+json")
    pipe.send(registry.host)
    while (said := pipe.recv()) is not None:
        what, value = said
        if what == "shape":
            registry.delay, registry.rate = value
        pipe.send((sum(registry.sent.values()) + registry.told, len(registry.requests)))
    registry.close()


def _cache(place: Path, images: Path) -> Path:
    """An empty cache but for the images."""
    (place / "rootfs").mkdir(parents=True, mode=0o700)
    for file in images.iterdir():
        os.link(file, place / "rootfs" / file.name)
    return place


def main() -> None:
    """Prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", nargs="?", default=str(ROOT / "demo" / "busybox.oci.tar"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--command", nargs=argparse.REMAINDER, default=["/bin/echo", "hello"], help="comes last")
    said = parser.parse_args()
    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=_serve, args=(there,), daemon=True)
    server.start()
    host = here.recv()

    def ask(what: str, value: Any = None) -> tuple[int, int]:
        here.send((what, value))
        answer: tuple[int, int] = here.recv()
        return answer

    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        os.environ["SUPERMACHINE_CACHE"] = str(place / "cache")
        supermachine.bake(said.image)
        with VM(said.image) as vm:
            vm.run(said.command, check=True)
            first = vm.snapshot(place / "first")
            vm.run(said.command, check=True)
            second = vm.snapshot(place / "second")
        pushed = [first.push(f"{host}/bench:first"), second.push(f"{host}/bench:second")]
        early = remote.push_baked(said.image, f"{host}/early", first=said.command, engine="soft").reference
        images = place / "cache" / "rootfs"
        ask("shape", (DELAY, RATE))
        whole, fetched, asked, local = [], [], [], []
        first_output, fetched_first, all_there, fetched_early = [], [], [], []
        asked_first, computed, waited_for = [], [], []
        for number in range(said.repeats):
            os.environ["SUPERMACHINE_CACHE"] = str(_cache(place / f"cache-{number}", images))
            before = ask("count")
            began = time.perf_counter()
            found = supermachine.pull(pushed[0].reference)
            there_at = time.perf_counter()
            with found.restore() as vm:
                vm.run(said.command, check=True)
                whole.append(time.perf_counter() - began)
            local.append(time.perf_counter() - there_at)
            after = ask("count")
            fetched.append(after[0] - before[0])
            asked.append(after[1] - before[1])
            os.environ["SUPERMACHINE_CACHE"] = str(_cache(place / f"early-{number}", images))
            before = ask("count")
            began, busy = time.perf_counter(), time.process_time()
            with remote.restored(early) as vm:
                computed.append(time.process_time() - busy)
                asked_first.append(ask("count")[1] - before[1])
                vm.run(said.command, check=True)
                first_output.append(time.perf_counter() - began)
                fetched_first.append(ask("count")[0] - before[0])
                waited_for.append(ask("count")[1] - before[1] - asked_first[-1])
                arrival = remote.arrival_of(vm)
                assert arrival is not None
                arrival.wait()
                all_there.append(time.perf_counter() - began)
            fetched_early.append(ask("count")[0] - before[0])
    here.send(None)
    server.join()
    result = {
        "first_push_bytes": pushed[0].sent,
        "second_push_bytes": pushed[1].sent,
        "second_of_first": round(pushed[1].sent / pushed[0].sent, 4),
        "round_trip_s": DELAY,
        "bytes_per_s": RATE,
        "pull_restore_and_command_s": round(statistics.median(whole), 3),
        "of_it_restore_and_command_s": round(statistics.median(local), 3),
        "fastest_s": round(min(whole), 3),
        "fetched_bytes": statistics.median(fetched),
        "requests": statistics.median(asked),
        "early_first_output_s": round(statistics.median(first_output), 3),
        "early_fastest_s": round(min(first_output), 3),
        "early_fetched_before_output_bytes": statistics.median(fetched_first),
        "early_requests_before_start": statistics.median(asked_first),
        "early_requests_while_it_ran": statistics.median(waited_for),
        "early_processor_s_before_start": round(min(computed), 3),
        "early_all_there_s": round(statistics.median(all_there), 3),
        "early_fetched_bytes": statistics.median(fetched_early),
        "load": os.getloadavg()[0],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
