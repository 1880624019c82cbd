"""Many forks are made by one process that has restored their snapshot and copies itself: a template."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import supermachine
from supermachine import VM, Pool, VMExited, errors
from supermachine.machine import launch, makers, starts
from supermachine.machine.template import Template

from .guests import output, wait_for

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(sys.platform != "linux", reason="templates are there on Linux alone"),
]

#: As few as a template makes.
FEW = 4


@pytest.fixture(scope="module")
def vm(busybox: str) -> Iterator[VM]:
    with VM(busybox, memory="128m", engine="soft") as vm:
        output(vm, "echo before > /root/state; echo before > /tmp/state")
        yield vm


@pytest.fixture
def templates(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Those that are started meanwhile."""
    made: list[Any] = []
    spawn = launch.spawn_template

    def spawned(*arguments: Any) -> Any:
        made.append(spawn(*arguments))
        return made[-1]

    monkeypatch.setattr(launch, "spawn_template", spawned)
    return made


def children() -> set[int]:
    """Processes of this one that have not been reaped."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = stat.read_text(encoding="utf-8").rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                found.add(int(stat.parent.name))
    return found


def gone(*pids: int | None) -> bool:
    return not children() & set(pids)


def test_forks_are_its_copies_and_it_ends_with_the_call(vm: VM, templates: list[Any]) -> None:
    forks = vm.fork(FEW)
    try:
        (template,) = templates
        wait_for(lambda: gone(template.pid), "the end of the template")
        pids = {fork.pid for fork in forks}
        assert len(pids) == FEW
        assert pids <= children()
        for number, fork in enumerate(forks):
            assert output(fork, "cat /root/state /tmp/state") == "before\nbefore\n"
            output(fork, f"echo {number} > /root/state; echo {number} > /tmp/state; sync")
        for number, fork in enumerate(forks):
            assert output(fork, "cat /root/state /tmp/state") == f"{number}\n{number}\n"
        assert len({output(fork, "hostname; cat /proc/sys/kernel/random/uuid") for fork in forks}) == FEW
        assert output(vm, "cat /root/state /tmp/state") == "before\nbefore\n"
        # One that is killed is that one alone, and is reaped.
        victim = forks[0].pid
        forks[0].kill()
        assert gone(victim)
        assert output(forks[1], "echo lives") == "lives\n"
        # A fork of a fork has what that has written, and nothing less.
        output(forks[1], "head -c 3000000 /dev/urandom > /tmp/data; sha256sum /tmp/data > /tmp/sum")
        for fork in (again := forks[1].fork(FEW)):
            with fork:
                assert output(fork, "cat /root/state; sha256sum -c /tmp/sum") == "1\n/tmp/data: OK\n"
        assert len(again) == FEW
    finally:
        for fork in forks:
            fork.kill()


def test_a_hundred_forks_at_once(vm: VM, templates: list[Any]) -> None:
    forks = vm.fork(100)
    try:
        with ThreadPoolExecutor(16) as executor:
            said = set(executor.map(lambda fork: output(fork, "hostname; cat /tmp/state"), forks))
        assert len(said) == 100
        assert all(text.endswith("\nbefore\n") for text in said)
    finally:
        for fork in forks:
            fork.kill()
    assert len(templates) == 1
    assert gone(*(fork.pid for fork in forks))


def test_a_template_that_is_killed_leaves_no_fork(
    vm: VM, templates: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = launch.wait_ready

    def killed(worker: Any, timeout: float) -> Any:
        found = ready(worker, timeout)
        if worker in templates:
            os.kill(worker.pid, 9)
        return found

    monkeypatch.setattr(launch, "wait_ready", killed)
    before = children()
    with pytest.raises((VMExited, errors.SupermachineError)):
        vm.fork(FEW)
    wait_for(lambda: children() <= before, "the end of all workers")
    monkeypatch.undo()
    for fork in vm.fork(FEW):
        with fork:
            assert output(fork, "cat /tmp/state") == "before\n"


def test_where_there_can_be_none_each_is_started(vm: VM, monkeypatch: pytest.MonkeyPatch) -> None:
    spawn = launch.spawn_template
    failed: list[Any] = []

    def nowhere(engine: str, disks: Any, files: Any, *rest: Any) -> Any:
        failed.append(spawn(engine, disks, ["/nowhere"], *rest))
        return failed[-1]

    monkeypatch.setattr(launch, "spawn_template", nowhere)
    for fork in vm.fork(FEW):
        with fork:
            assert output(fork, "cat /tmp/state") == "before\n"
    assert failed[0].exit[0] == "bad-configuration"


def test_few_forks_are_started_one_by_one(vm: VM, templates: list[Any]) -> None:
    for fork in vm.fork(FEW - 1):
        with fork:
            assert output(fork, "cat /tmp/state") == "before\n"
    assert not templates


def test_other_engines_and_shares_have_none(vm: VM) -> None:
    engine = vm._settings.engine._replace(name="kvm")
    root, file = vm._disks(), "/nowhere"
    assert makers.begin(vm._settings._replace(engine=engine), root, file) is None
    assert makers.begin(vm._settings._replace(shares=("one",)), root, file) is None


def test_what_is_forked_again_and_again_has_one_that_stays(vm: VM, templates: list[Any]) -> None:
    with Template(vm) as template:
        for number in range(4):
            with template.fork() as fork:
                assert output(fork, "cat /tmp/state") == "before\n"
            # The first one tells which pages are needed first.
            assert len(templates) == min(number, 1)
        (made,) = templates
        assert made.exit is None
        os.kill(made.pid, 9)
        wait_for(lambda: made.exit is not None, "the end of the template")
        with template.fork() as fork:
            assert output(fork, "cat /tmp/state") == "before\n"
        assert len(templates) == 2
        left = template.fork()
    with left:
        wait_for(lambda: gone(*(made.pid for made in templates)), "the end of the templates")
        assert output(left, "cat /tmp/state") == "before\n"


def test_a_fork_whose_template_ends_meanwhile_is_started_by_itself(
    vm: VM, templates: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = launch.wait_ready

    def killed(worker: Any, timeout: float) -> Any:
        found = ready(worker, timeout)
        if worker in templates:
            os.kill(worker.pid, 9)
            wait_for(lambda: worker.exit is not None, "the end of the template")
        return found

    monkeypatch.setattr(launch, "wait_ready", killed)
    with Template(vm) as template:
        for _ in range(2):
            with template.fork() as fork:
                assert output(fork, "cat /tmp/state") == "before\n"
    # The first fork tells which pages are needed first.
    assert len(templates) == 1


def test_a_pool_has_one_from_the_third_machine_on(busybox: str, templates: list[Any]) -> None:
    supermachine.bake(busybox, memory="128m", engine="soft")
    with Pool(busybox, min=0, max=2, memory="128m", engine="soft") as pool:
        names = set()
        for number in range(5):
            with pool.acquire(timeout=60) as vm:
                names.add(output(vm, "hostname; echo used >> /root/used; cat /root/used"))
            # A machine more learns which pages are needed first, where nobody has.
            assert len(templates) <= (number >= 2)
        assert len(names) == 5
        (made,) = templates
        os.kill(made.pid, 9)
        wait_for(lambda: made.exit is not None, "the end of the template")
        with pool.acquire(timeout=60) as vm:
            assert output(vm, "echo lives") == "lives\n"
            assert made.pid not in children()
            assert len(templates) == 2
            assert vm.pid in children()
    wait_for(lambda: gone(*(made.pid for made in templates)), "the end of the templates")


def test_a_pool_that_closes_does_not_wait_for_one(
    busybox: str, templates: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    supermachine.bake(busybox, memory="128m", engine="soft")
    ready = launch.wait_ready

    def stopped(worker: Any, timeout: float) -> Any:
        if worker in templates:
            os.kill(worker.pid, signal.SIGSTOP)
        return ready(worker, timeout)

    monkeypatch.setattr(launch, "wait_ready", stopped)
    with Pool(busybox, min=3, max=4, memory="128m", engine="soft") as pool:
        wait_for(lambda: bool(templates), "a template")
        closing = threading.Thread(target=pool.close)
        closing.start()
        closing.join(30)
        assert not closing.is_alive()
    wait_for(lambda: gone(*(made.pid for made in templates)), "the end of the template")


def test_a_fork_that_is_killed_before_it_is_there_is_reaped(vm: VM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some end while their template has not yet made them."""
    fork = starts.Starter.fork
    begun: list[Any] = []

    def ended(self: Any, *arguments: Any, **named: Any) -> Any:
        waits = fork(self, *arguments, **named)
        begun.append(self._pending)
        if len(begun) == FEW:
            for worker in begun:
                worker.kill()
        return waits

    monkeypatch.setattr(starts.Starter, "fork", ended)
    before = children()
    with pytest.raises(VMExited) as raised:
        vm.fork(FEW)
    assert raised.value.reason == "killed"
    wait_for(lambda: children() <= before, "the end of all workers")


def test_all_end_with_their_owner(busybox: str, tmp_path: Path) -> None:
    code = f"""
        import time
        from supermachine import VM
        with VM({busybox!r}, memory="64m", engine="soft") as vm:
            forks = vm.fork({FEW})
            print(*[fork.pid for fork in forks], flush=True)
            time.sleep(600)
    """
    owner = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    with owner:
        assert owner.stdout is not None
        pids = owner.stdout.readline().split()
        assert len(pids) == FEW
        owner.kill()
    wait_for(lambda: not any(lives(pid) for pid in pids), "the end of all forks")


def lives(pid: str) -> bool:
    try:
        return ") Z " not in Path("/proc", pid, "stat").read_text(encoding="utf-8")
    except OSError:
        return False
