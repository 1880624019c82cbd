"""Machines with names of a test's own, on the software engine; what is left of them at its end fails it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from supermachine.named.registry import Registry

from ..vm.conftest import BUSYBOX

CLI = [sys.executable, "-m", "supermachine"]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of this run's own."""
    path = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUPERMACHINE_CACHE", str(path))
        yield path


@pytest.fixture(scope="session")
def busybox() -> str:
    """The image that ships with the project."""
    return str(BUSYBOX)


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory of the test's own. Afterwards no process of a machine in it is there any more."""
    # Longer than the path of a Unix socket may be.
    directory = tmp_path / ("long-" * 20) / "run"
    monkeypatch.setenv("SUPERMACHINE_RUNTIME", str(directory))
    yield directory
    registry = Registry(directory)
    records = [place.record() for place in registry.places()]
    for place in registry.places():
        registry.end_keeper(place)
        registry.remove(place)
    assert gone([p for r in records if r is not None for p in (r.keeper, r.worker) if p])


def sm(*words: str, check: bool = True, timeout: float = 120, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs the command line."""
    options.setdefault("input", "")
    done = subprocess.run([*CLI, *words], capture_output=True, text=True, timeout=timeout, check=False, **options)
    assert "Traceback" not in done.stderr, done.stderr
    assert not check or done.returncode == 0, done.stderr
    return done


def alive(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Callable[[], object], seconds: float = 60) -> bool:
    """Whether it comes to hold."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def gone(pids: list[int]) -> bool:
    return until(lambda: not any(alive(pid) for pid in pids), 20)
