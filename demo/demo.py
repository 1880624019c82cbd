"""The main job on the image that ships with the project, and how long its parts take on this machine."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import supermachine

IMAGE = str(Path(__file__).with_name("busybox.oci.tar"))
REPEATS = 5


def seconds(work: Callable[[], object]) -> str:
    """The median of a few runs, and the fastest and slowest."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return f"{statistics.median(times) * 1000:8.0f} ms   ({min(times) * 1000:.0f} to {max(times) * 1000:.0f})"


def main() -> None:
    """Runs a command in a microVM, then times a few things."""
    result = supermachine.run(
        IMAGE, ["sh", "-c", "echo hello from $(uname -sm), kernel $(uname -r)"], capture_output=True
    )
    sys.stdout.buffer.write(result.stdout)
    result.check_returncode()

    def whole(bake: bool) -> str:
        return seconds(lambda: supermachine.run(IMAGE, ["true"], check=True, bake=bake))

    rows = [("a VM for one command, booted", whole(False)), ("the same from its snapshot", whole(True))]
    with supermachine.VM(IMAGE) as vm:
        rows.append(("two clones of a running VM", seconds(lambda: [clone.kill() for clone in vm.fork(2)])))
        rows.append(("a command in a running VM", seconds(lambda: vm.run(["true"], check=True))))
        data = bytes(16 << 20)
        rows.append(("16 MiB written to the guest", seconds(lambda: vm.path("/root/data").write_bytes(data))))
        rows.append(
            ("sha256sum of them", seconds(lambda: vm.run(["sha256sum", "/root/data"], check=True, capture_output=True)))
        )
        print(f"\nisolation: {vm.isolation}; engine: {vm.engine}; median of {REPEATS} runs (fastest to slowest)")
    width = max(len(name) for name, _ in rows)
    for name, took in rows:
        print(f"  {name:{width}} {took}")


if __name__ == "__main__":
    main()
