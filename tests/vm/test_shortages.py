"""A worker that the host has too little for: it is said whose limit was met, and nothing that others use is removed."""

from __future__ import annotations

import contextlib
import errno
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from supermachine import VM, errors
from supermachine.host import bundle

from .guests import was_restored

pytestmark = [pytest.mark.vm, pytest.mark.skipif(sys.platform != "linux", reason="limits are Linux's")]


@pytest.fixture
def limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has workers begin with a command of the shell; they are one worker, whatever the command."""
    script = tmp_path / "worker"
    script.write_text(f'#!/bin/sh\n. "$0.limits"\nexec {bundle.worker()} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("SUPERMACHINE_WORKER", str(script))

    def begin(command: str) -> None:
        script.with_name("worker.limits").write_text(command)

    return begin


@pytest.fixture
def baked(cache: Path, busybox: str, limited: Callable[[str], None]) -> list[Path]:
    """What there is of the image when it has been started."""
    limited("")
    with VM(busybox):
        pass
    return snapshots(cache)


def snapshots(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "snapshots").rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("command", "number", "hint"),
    [
        # Less than the guest's memory, in kilobytes.
        ("ulimit -v 200000", errno.ENOMEM, "memory"),
        ("ulimit -n 6", errno.EMFILE, "ulimit -n"),
        ("kill -9 $$", None, "memory"),
    ],
)
@pytest.mark.parametrize("bake", [True, False])
def test_it_is_named_and_nothing_is_removed(
    baked: list[Path],
    cache: Path,
    busybox: str,
    limited: Callable[[str], None],
    bake: bool,
    command: str,
    number: int | None,
    hint: str,
) -> None:
    limited(command)
    with pytest.raises(errors.HostShortage) as caught:
        VM(busybox, bake=bake).start()
    assert caught.value.errno == number
    assert hint in str(caught.value.hint)
    assert isinstance(caught.value, errors.WorkerKilled) == command.startswith("kill")
    assert snapshots(cache) == baked
    limited("")
    with VM(busybox) as vm:
        assert was_restored(vm)
        assert vm.run(["true"]).returncode == 0


@contextlib.contextmanager
def no_more_files(pid: int) -> Iterator[None]:
    """A process that has all the open files that it may have."""
    taken = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    free = next(number for number in range(len(taken) + 1) if number not in taken)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_a_worker_that_has_no_room_for_a_connection_says_so_each_time(busybox: str) -> None:
    """Whether that is noticed when a command is sent or when its answer does not come."""
    with VM(busybox) as vm:
        assert vm.pid is not None
        with no_more_files(vm.pid):
            for _ in range(20):
                with pytest.raises(errors.HostShortage, match="open files") as caught:
                    vm.run(["true"])
                assert caught.value.errno == errno.EMFILE
            with pytest.raises(errors.HostShortage):
                vm.path("/etc").exists()
            # Its end is noticed beside a caller that waits for nothing yet.
            with pytest.raises(errors.HostShortage):
                vm.popen(["cat"], stdin=-1).communicate(b"x", timeout=60)
        assert vm.run(["true"]).returncode == 0


def test_whatever_number_of_descriptors_there_is(
    baked: list[Path], cache: Path, busybox: str, tmp_path: Path, limited: Callable[[str], None]
) -> None:
    """One that a start needs is missing at each of its steps in turn."""
    started = 0
    # With fewer not even its libraries are loaded.
    for number in range(4, 60):
        limited(f"ulimit -n {number}")
        try:
            with VM(busybox, volumes=[f"{tmp_path}:/work"]) as vm:
                started += 1
                with contextlib.suppress(errors.HostShortage):
                    vm.run(["cat"], input=b"x", timeout=60)
        except errors.HostShortage as error:
            assert error.errno == errno.EMFILE, number
        if started == 5:
            break
    assert started == 5
    # Nothing is removed; the first start adds what it has noted of its memory.
    assert set(baked) <= set(snapshots(cache))
