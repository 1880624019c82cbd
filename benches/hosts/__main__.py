"""`python -m benches.hosts`: measures on KVM in emulated hosts, and writes hosts.json and hosts.md."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.hosts import Host
from tests.hosts.fixtures import SITE

from .. import guests
from . import inside, kernels, report, sides

#: The peers keep more of the host's memory than supermachine does.
MEMORY = 4 << 30

Side = Callable[[], Any]
#: By measurement and side, what each round found.
Found = dict[str, dict[str, list[Any]]]


def rounds(groups: dict[str, dict[str, Side]], repeats: int, found: Found, say: Callable[[str], None]) -> None:
    """Every side of every measurement in each round, twice in a row, of which the second counts: QEMU throws all of its
    translations of the host's code away when their buffer is full, and what runs next would pay for that. The first
    round, which finds files that nobody has read yet, does not count.
    """
    for n in range(repeats + 1):
        for group, members in groups.items():
            for name, measure in members.items():
                measure()
                got = measure()
                say(f"{group}, {name} {n}/{repeats}: {got['seconds']:.3f} s")
                if n:
                    found.setdefault(group, {}).setdefault(name, []).append(got)


def x86_64(place: Path, repeats: int, peers: bool, found: Found, say: Callable[[str], None]) -> str:
    with Host("x86_64", memory=MEMORY, packages=(kernels.PACKAGES["x86_64"],)) as host:
        sides.install_supermachine(host, place, "amd64")
        kernels.install(host, place)
        ready = {"supermachine": sides.ours(host, "supermachine_ready")}
        whole = {"supermachine": sides.ours(host, "command", *sides.COMMAND)}
        if peers:
            sides.install_peers(host, place)
            ready["microsandbox"] = lambda: sides.microsandbox_ready(host)
            ready["boxlite"] = lambda: sides.boxlite_ready(host)
            whole["msb run"] = lambda: sides.microsandbox_run(host)
            whole["msb restore, exec"] = lambda: sides.microsandbox_restore(host)
            whole["msb fork, exec"] = lambda: sides.microsandbox_fork(host)
            whole["boxlite"] = lambda: sides.boxlite_run(host)
        _rounds(host, ready, whole, repeats, found, say)
        return str(host.hello["kernel"])


def aarch64(place: Path, repeats: int, found: Found, say: Callable[[str], None]) -> str:
    with Host("aarch64", packages=(kernels.PACKAGES["aarch64"],)) as host:
        sides.install_supermachine(host, place, "arm64")
        kernels.install(host, place)
        ready = {"supermachine": sides.ours(host, "supermachine_ready")}
        whole = {"supermachine": sides.ours(host, "command", *sides.COMMAND)}
        _rounds(host, ready, whole, repeats, found, say)
        return str(host.hello["kernel"])


def _rounds(
    host: Host,
    ready: dict[str, Side],
    whole: dict[str, Side],
    repeats: int,
    found: Found,
    say: Callable[[str], None],
) -> None:
    ends: dict[str, Side] = {"supermachine": lambda: kernels.ours(host)}
    for machine in kernels.MACHINES[host.architecture]:
        ends[machine] = lambda machine=machine: kernels.qemu(host, machine)  # type: ignore[misc]
    # The image is converted, the snapshot baked and its working set recorded.
    for _ in range(2):
        whole["supermachine"]()
    sides.run(host, ["supermachine_restored"], SITE)
    groups = {
        "boot to a ready guest": ready,
        "whole command": whole,
        "restore to first output": {"supermachine": sides.ours(host, "supermachine_restored")},
        "kernel and first process": ends,
    }
    rounds({f"{host.architecture}: {group}": members for group, members in groups.items()}, repeats, found, say)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.hosts", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="rounds in each host (default %(default)s)")
    parser.add_argument("--only", choices=("x86_64", "aarch64"), help="one host alone")
    parser.add_argument("--skip-peers", action="store_true", help="supermachine and QEMU alone")
    parser.add_argument("--place", type=Path, default=guests.ROOT / "target" / "bench", help="for files and results")
    args = parser.parse_args()
    args.place.mkdir(parents=True, exist_ok=True)

    def say(line: str) -> None:
        print(f"{line} (load {os.getloadavg()[0]:.1f})", file=sys.stderr, flush=True)

    found: Found = {}
    environment = report.environment(args.repeats, inside.MEMORY_MIB)
    hosts: dict[str, str] = {}
    try:
        if args.only != "aarch64":
            hosts["x86_64"] = x86_64(args.place, args.repeats, not args.skip_peers, found, say)
        if args.only != "x86_64":
            hosts["aarch64"] = aarch64(args.place, args.repeats, found, say)
    finally:
        # What was measured before a failure is kept.
        (args.place / "hosts-found.json").write_text(json.dumps(found, indent=2) + "\n")
    results = {"environment": {**environment, "hosts": hosts}, "rows": report.rows(found)}
    (args.place / "hosts.json").write_text(json.dumps(results, indent=2) + "\n")
    text = report.markdown(results)
    (args.place / "hosts.md").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
