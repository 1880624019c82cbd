"""kill -9 of keepers, workers and clients at random moments: `ps` tells the truth, and nothing is left.

A run in continuous integration takes a few moments; ``make soak`` takes a hundred.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import supermachine
from supermachine import errors
from supermachine.host import bundle
from supermachine.named.client import state_of
from supermachine.named.registry import Registry

from .conftest import CLI, alive, sm, until

pytestmark = pytest.mark.vm

MOMENTS = int(os.environ.get("SUPERMACHINE_TEST_MOMENTS", "9"))


def keepers(runtime: Path) -> list[int]:
    """Processes that keep machines of this directory, or are about to: all that were given its name."""
    found = []
    for place in Path("/proc").iterdir():
        try:
            if place.name.isdecimal() and os.fsencode(runtime) in (place / "environ").read_bytes():
                found += [int(place.name)] * alive(int(place.name))
        except OSError:
            continue
    return found


def workers() -> list[int]:
    """Processes of this installation's worker and policy process."""
    ours = {bundle.worker(), bundle.policy_process()}
    found = []
    for place in Path("/proc").iterdir():
        try:
            if place.name.isdecimal() and os.readlink(place / "exe") in ours and alive(int(place.name)):
                found.append(int(place.name))
        except OSError:
            continue
    return found


def listed_keepers(runtime: Path) -> set[int]:
    return {r.keeper for p in Registry(runtime).places() if (r := p.record()) is not None}


def kill(pid: int | None) -> None:
    if pid:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


@pytest.mark.parametrize("victim", ["client", "keeper", "worker"])
def test_whatever_is_killed_ps_tells_the_truth(busybox: str, runtime: Path, victim: str) -> None:
    # How long an undisturbed start takes here says when one can be disturbed.
    sm("run", "-m", "64m", busybox, "true")
    began = time.monotonic()
    sm("run", "-d", "--name", "first", "-m", "64m", busybox, "sleep", "1000")
    took = time.monotonic() - began
    sm("rm", "-f", "first")
    before = set(workers())
    chance = random.Random(f"{victim} {os.environ.get('SUPERMACHINE_TEST_SEED', '1')}")
    for moment in range(max(1, MOMENTS // 3)):
        name = f"{victim}-{moment}"
        options = ["--restart", "always"] if victim == "worker" and moment % 2 else []
        options += ["--rm"] if moment % 3 == 2 and not options else []
        command = [*CLI, "run", "-d", "-q", "-m", "64m", "--name", name, *options, busybox, "sleep", "1000"]
        # In the background group of nobody, so that the kill is the client's alone.
        client = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        delay = chance.uniform(0.0, 1.3 * took)
        time.sleep(delay)
        place = Registry(runtime).place(name)
        if victim == "client":
            client.kill()
        elif victim == "keeper":
            for pid in keepers(runtime):
                kill(pid)
        else:
            record = place.record()
            kill(record.worker if record is not None else None)
        client.wait(60)
        # It comes to rest: what was starting runs or is gone.
        assert until(lambda: not keepers(runtime) or _status(place) == "running"), delay  # noqa: B023
        said = {m.name: m.state for m in supermachine.machines(all=True)}
        if name in said and said[name].running:
            # A worker's end is known some milliseconds after it.
            assert until(lambda: _works(name) or not place.kept(), 20), delay  # noqa: B023
        elif name in said:
            assert said[name].status in ("dead", "exited")
        # No keeper but of a machine that is listed; one that is leaving may be there for a moment more.
        assert until(lambda: set(keepers(runtime)) <= listed_keepers(runtime), 20), delay
        if name in said:
            # One with --rm may be on its way out by itself, and one that was not up yet is nobody's to see.
            left = place.record()
            sm("rm", "-f", name, check="--rm" not in options and left is not None and left.started is not None)
        assert until(lambda: not place.path.exists()), delay  # noqa: B023
        assert until(lambda: not keepers(runtime) and set(workers()) <= before, 20), (delay, keepers(runtime))
    assert [p.name for p in (runtime / "machines").iterdir()] in ([".lock"], [])


def _works(name: str) -> bool:
    """Whether a command can be run in it. Whatever else is said is an error of machines that end."""
    try:
        return supermachine.attach(name).run(["echo", "well"], text=True).stdout == "well\n"
    except (supermachine.VMExited, errors.NoSuchMachine, errors.MachineNotRunning, errors.KeeperLost):
        return False


def _status(place: object) -> str:
    state = state_of(place)  # type: ignore[arg-type]
    return state.status if state is not None else ""
