"""Adds the golden snapshots of the engines' current versions: `python -m tests.kvm.golden`.

What this machine cannot run is made in emulated hosts. Files that are there stay as they are.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from ..hosts import Host, site
from ..hosts.disk import ROOT

FILES = ROOT / "rust/machine/tests/golden"
#: Where they, and the tests that read them, are in a host.
IN_HOST = "/root/golden"
PROGRAM = "/root/golden-test"
#: What `prepare` takes the tests from.
TEST = ("supermachine-machine", "golden")
PATIENCE = 600
#: Tells the tests which engine's files to make.
ENGINE = "SUPERMACHINE_GOLDEN_ENGINE"


def prepare(host: Host) -> None:
    """Puts the files and their tests into a host."""
    host.put(site.test_program(host.architecture, *TEST), PROGRAM)
    host.put(FILES, IN_HOST)


def run(host: Host, *arguments: str, **environment: str) -> str:
    """Runs the tests there; what they said."""
    environment |= {"SUPERMACHINE_GOLDEN": IN_HOST}
    done: subprocess.CompletedProcess[str] = host.run(
        [PROGRAM, "--nocapture", *arguments], PATIENCE, env=environment, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def main() -> None:
    making = ["--features", "hvf-soft", "--test", TEST[1], "--", "--ignored", "make"]
    for engine in ("soft", "hvf"):
        environment = {**os.environ, ENGINE: engine}
        subprocess.run(["cargo", "test", "--locked", "-p", TEST[0], *making], cwd=ROOT, check=True, env=environment)
    for architecture in ("x86_64", "aarch64"):
        with Host(architecture) as host:
            prepare(host)
            run(host, "--ignored", "make", **{ENGINE: "kvm"})
            for name in host.run(["ls", IN_HOST], PATIENCE, text=True, check=True).stdout.split():
                if not (FILES / name).exists():
                    (FILES / Path(name).name).write_bytes(host.get(f"{IN_HOST}/{name}"))
                    print(f"added {name}")


if __name__ == "__main__":
    main()
