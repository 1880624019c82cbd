"""Processes that do one thing with little memory, or die of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

#: What reading a snapshot may take, beyond what the interpreter has when it begins.
MEMORY = 64 << 20

_PRELUDE = """
import resource, sys
from supermachine import _core, errors, snapshots
def limit(more):
    size = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, ((size << 10) + more, resource.RLIM_INFINITY))
"""


def environment() -> dict[str, str]:
    paths = [str(Path(__file__).parent), *(entry for entry in sys.path if entry)]
    # One arena: each further one would take address space of its own.
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "MALLOC_ARENA_MAX": "1"}


def start(code: str, *arguments: object, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", _PRELUDE + code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment(), text=True, **options)


def run(code: str, *arguments: object) -> str:
    """Runs it to its end and gives what it printed; an error of the test if it fails, however it does."""
    child = start(code, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = child.communicate(timeout=600)
    assert child.returncode == 0, f"exit status {child.returncode}: {err[-3000:]}"
    return out
