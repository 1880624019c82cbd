"""What a machine of a fleet costs over Ray: `acquire` of one that is ready, and of one of a host in this process.

`python -m benches.fleet` prints JSON; it wants `pip install 'supermachine[ray]'`. The two take turns. A round is an
`acquire`, a command, and a pause in which the host makes the next machine ready.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time

import supermachine
from supermachine.fleet import Fleet

from .guests import ROOT


def main() -> None:
    """Prints what was measured."""
    import ray

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", nargs="?", default=str(ROOT / "demo" / "busybox.oci.tar"))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between rounds")
    said = parser.parse_args()
    # Ray's workers run at a low priority otherwise, and a host in this process does not.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - its name
    acquired: dict[str, list[float]] = {"local": [], "ray": []}
    answered: dict[str, list[float]] = {"local": [], "ray": []}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["SUPERMACHINE_CACHE"] = cache
        supermachine.bake(said.image, memory="64m")
        ray.init(num_cpus=1, object_store_memory=80 << 20, log_to_driver=False, include_dashboard=False)
        try:
            with (
                Fleet(said.image, driver="local", per_host=4, ready=2, memory="64m") as local,
                Fleet(said.image, driver="ray", per_host=4, ready=2, memory="64m") as remote,
            ):
                for number in range(2 * said.rounds + 4):
                    name, fleet = (("local", local), ("ray", remote))[number % 2]
                    time.sleep(said.pause)
                    began = time.perf_counter()
                    vm = fleet.acquire(timeout=60)
                    there = time.perf_counter()
                    with vm:
                        vm.run(["true"], check=True)
                        done = time.perf_counter()
                    if number >= 4:
                        acquired[name].append(1000 * (there - began))
                        answered[name].append(1000 * (done - there))
        finally:
            from supermachine.fleet import ray_driver

            ray_driver.remove()
            ray.shutdown()
    rows = {}
    for name, times in acquired.items():
        rows[name] = {
            "acquire_p50_ms": round(statistics.median(times), 2),
            "acquire_fastest_ms": round(min(times), 2),
            "acquire_slowest_ms": round(max(times), 2),
            "command_p50_ms": round(statistics.median(answered[name]), 2),
        }
    beyond = rows["ray"]["acquire_p50_ms"] - rows["local"]["acquire_p50_ms"]
    print(json.dumps({**rows, "beyond_local_ms": round(beyond, 2), "load": os.getloadavg()[0]}, indent=2))


if __name__ == "__main__":
    main()
