"""kill -9 of each process of a virtual machine, at random moments: everybody hears of it, and nothing is left.

`named` has the same of keepers and clients, `storage` of volumes. A run in continuous integration takes a few moments;
``make soak`` takes two hundred.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
import requests
from supermachine.cache.store import Cache

from ..docker.conftest import BUSYBOX, IMAGE, Session
from ..vm.guests import wait_for

pytestmark = [pytest.mark.vm, pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]

MOMENTS = int(os.environ.get("SUPERMACHINE_TEST_MOMENTS", "8"))
#: Seconds in which who waits for a process that is gone hears of it; the rest is for a machine that is busy.
HEARD = 10

#: Starts a machine with a network, bakes its snapshot, and goes on until something fails; says what.
CALLER = """
import sys, time, supermachine
from supermachine import VM, errors
place = sys.argv[2]
number = 0
print("begun", flush=True)
try:
    while True:
        with VM(sys.argv[1], memory="64m", network="none host", bake=True) as vm:
            for _ in range(3):
                # Nobody listens there; the process that decides so is started for it.
                vm.run("nc -w 1 10.0.2.2 9 </dev/null; true", shell=True, check=True)
                vm.path("/tmp/file").write_bytes(bytes(100000))
                number += 1
                vm.snapshot(f"{place}/{number}")
                print("round", flush=True)
except (errors.SupermachineError, OSError) as error:
    print("heard", type(error).__name__, str(error)[:200], flush=True)
"""


def state(process: int) -> str:
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    return "Z"


def below(process: int) -> dict[int, str]:
    """The processes below one that live, and their names."""
    found: dict[int, str] = {}
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{process}/task").glob("*/children"):
            for child in map(int, thread.read_text().split()):
                with contextlib.suppress(OSError):
                    found[child] = Path(f"/proc/{child}/comm").read_text().strip()
                    found |= below(child)
    return {process: name for process, name in found.items() if state(process) != "Z"}


def kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUPERMACHINE_CACHE", str(path))
        yield path


def whole(cache: Path, place: Path) -> None:
    """Nothing in these directories is half of something, but for what the next to come removes."""
    found = Cache(cache)
    found.prepare()
    found.remove_stale()
    assert [path.name for path in (cache / "tmp").iterdir()] == []
    for directory in (cache / "snapshots").iterdir() if (cache / "snapshots").is_dir() else ():
        if (snapshot := directory / "snapshot").exists():
            _verify(snapshot)
    for snapshot in place.iterdir():
        if not snapshot.name.startswith("."):
            _verify(snapshot)
        snapshot.unlink()


def _verify(snapshot: Path) -> None:
    from supermachine import snapshots

    snapshots.verify(snapshot)


@pytest.mark.parametrize("victim", ["caller", "worker", "netd"])
def test_of_a_program_with_machines(cache: Path, tmp_path: Path, victim: str) -> None:
    chance = random.Random(f"{victim} {os.environ.get('SUPERMACHINE_TEST_SEED', '1')}")
    named = {"worker": "supermachine-wo", "netd": "supermachine-ne"}
    took = 0.0
    for _ in range(max(2, MOMENTS // 4)):
        began = time.monotonic()
        # The first few are from no image, no snapshot; later ones from a cache that is filled.
        caller = subprocess.Popen(
            [sys.executable, "-c", CALLER, BUSYBOX, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        with caller:
            try:
                assert caller.stdout is not None
                assert caller.stdout.readline() == "begun\n"
                if not took:
                    assert caller.stdout.readline() == "round\n"
                    took = time.monotonic() - began
                time.sleep(chance.uniform(0, 1.5 * took))
                if victim != "caller":
                    # There is one, or there soon is.
                    wait_for(lambda: named[victim] in below(caller.pid).values(), f"a {victim}", 60)  # noqa: B023
                family = below(caller.pid)
                doomed = [process for process, name in family.items() if name == named.get(victim)] or [caller.pid]
                kill(doomed[0])
                if victim == "worker":
                    out, err = caller.communicate(timeout=60)
                    assert "heard" in out, err
                elif victim == "netd":
                    # The machine lives, without the world; it ends as ever.
                    wait_for(lambda: state(doomed[0]) == "Z", "the end of the process", HEARD)  # noqa: B023
                    caller.send_signal(signal.SIGINT)
                    caller.wait(60)
                else:
                    caller.wait(60)
                for process in family:
                    wait_for(lambda: state(process) == "Z", f"the end of {family[process]}", HEARD)  # noqa: B023
            finally:
                caller.kill()
        whole(cache, tmp_path)


def test_of_a_server_of_docker_s_api(cache: Path) -> None:
    chance = random.Random(f"docker {os.environ.get('SUPERMACHINE_TEST_SEED', '1')}")
    took = 0.0
    for _ in range(max(2, MOMENTS // 4)):
        session = Session(cache, "--image", f"{IMAGE}={BUSYBOX}")
        try:
            began = time.monotonic()
            client = docker.DockerClient(base_url=session.host, timeout=60)
            if not took:
                client.containers.run(IMAGE, ["true"])
                took = time.monotonic() - began
            delay = chance.uniform(0, 2 * took)
            killer = subprocess.Popen(
                [sys.executable, "-c", f"import os, time; time.sleep({delay}); os.kill({session.process.pid}, 9)"]
            )
            family: set[int] = set()
            # Whoever asks is answered, or told that there is nobody.
            with contextlib.suppress(docker.errors.APIError, requests.exceptions.RequestException):
                while session.process.poll() is None:
                    client.containers.run(IMAGE, ["sleep", "1000"], detach=True)
                    family |= set(below(session.process.pid))
                    client.containers.run(IMAGE, ["echo", "x"], remove=True)
            killer.wait(60)
            assert session.process.wait(HEARD) == -signal.SIGKILL
            for process in family:
                wait_for(lambda: state(process) == "Z", "the end of a container", HEARD)  # noqa: B023
            client.close()
        finally:
            session.end(signal.SIGKILL)
        left = session.socket.parent
        # What it has left the next one removes.
        following = Session(cache, "--image", f"{IMAGE}={BUSYBOX}")
        assert not left.exists()
        assert following.end() == 0
