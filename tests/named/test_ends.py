"""Restarts, forks and ends that fail or come at a bad moment, and many machines that are asked at once."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import supermachine
from supermachine import errors, local_sockets
from supermachine.named import client, keeper
from supermachine.named.keeper import Keeper, Report
from supermachine.named.moment import Moment
from supermachine.named.records import Record
from supermachine.named.registry import Place, Registry
from supermachine.named.server import Server
from supermachine.named.spec import Policy, Spec

from .conftest import sm, until


class Kept(Keeper):
    """A keeper without a virtual machine, whose main process ends with 1 the first time and then stays."""

    def __init__(self, runtime: Path, policy: Policy) -> None:
        super().__init__(Spec("image", policy=policy), Report(-1))
        self._registry = Registry(runtime)
        self.place, self._lock = self._registry.create("web")
        self.record.name, self.record.started = "web", 1.0
        self.record.keeper = 0
        self.vm = MagicMock()
        self.vm.ports, self.vm.pid = {}, None
        self._main = MagicMock()
        self.logs = MagicMock()
        self._server = MagicMock()
        self.stop_signal = 15
        self.phase = "running"
        self.followed = 0
        self.refused: Exception | None = None

    def _begin(self) -> None:
        pass

    def _follow(self) -> tuple[int | None, str]:
        self.followed += 1
        if self.followed > 1:
            assert self._stop_asked.wait(60)
        return self.followed, ""

    def _start_main(self) -> None:
        if self.refused is not None:
            raise self.refused


@pytest.fixture
def pausing(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    """One that pauses for long before it starts its main process again."""
    monkeypatch.setattr(keeper, "_FIRST_PAUSE", 600.0)
    kept = Kept(runtime, Policy(restart="always"))
    life = threading.Thread(target=lambda: kept._finish(*kept._live()))
    life.start()
    assert until(lambda: kept.phase == "restarting" and kept.record.restarts == 1)
    yield kept
    kept._note_that(kept._stop_asked)
    life.join(60)
    assert not life.is_alive()


def test_a_restart_is_heard_in_a_pause_between_two(pausing: Kept) -> None:
    began = time.monotonic()
    pausing.restart(0.1)
    assert time.monotonic() - began < 10
    assert until(lambda: pausing.phase == "running")
    assert pausing.record.restarts == 1


def test_a_stop_is_heard_in_a_pause_between_two_restarts(pausing: Kept) -> None:
    pausing._main_over.set()
    began = time.monotonic()
    pausing.stop(0.1)
    assert until(pausing.over.is_set)
    assert time.monotonic() - began < 10
    assert pausing.record.exit_code == 1


def test_why_a_restart_failed_is_told_to_who_asked_for_it(pausing: Kept) -> None:
    pausing.refused = errors.HostShortage("there is no memory")
    with pytest.raises(errors.HostShortage, match="there is no memory"):
        pausing.restart(0.1)
    assert until(pausing.over.is_set)
    assert "the restart failed: there is no memory" in pausing.record.error


def test_what_nobody_has_foreseen_is_in_the_record(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(runtime, Policy())

    def fails() -> Any:
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(kept, "_live", fails)
    monkeypatch.setattr(os, "chdir", lambda _path: None)
    monkeypatch.setattr(keeper.signal, "signal", lambda *_: None)
    kept.logs.close.side_effect = OSError("no room")
    kept.keep()
    state = supermachine.attach("web").state
    assert (state.status, state.exit_code) == ("exited", None)
    assert state.error == "its keeper failed: ZeroDivisionError: of all things"


def test_a_fork_whose_agent_is_slow_goes_on(runtime: Path) -> None:
    kept = Kept(runtime, Policy())
    process = MagicMock()
    process.exists.side_effect = [TimeoutError("slow"), errors.AgentError("no connection left"), True, False]
    kept.vm.path.return_value = process
    kept.vm._running.return_value.wait.return_value = None
    assert kept._follow_fork() == (None, "")
    assert process.exists.call_count == 4
    os.close(kept._lock)


def test_those_without_a_name_are_called_after_another_at_once(runtime: Path) -> None:
    registry = Registry(runtime)
    locks = [registry.create("web-2")]
    with ThreadPoolExecutor(8) as pool:
        locks += pool.map(lambda _: registry.create(None, after="web"), range(8))
    assert sorted(place.name for place, _ in locks) == sorted(f"web-{number}" for number in range(1, 10))
    for _, fd in locks:
        os.close(fd)


@pytest.mark.vm
def test_a_fork_that_fails_leaves_none_and_two_at_once_have_names_of_their_own(busybox: str) -> None:
    machine = supermachine.start(busybox, ["sleep", "1000"], name="web")
    for names in (["made", "web"], ["web", "made"]):
        with pytest.raises(errors.NameInUse):
            machine.fork(2, names=names)
        assert [m.name for m in supermachine.machines(all=True)] == ["web"]
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda _: supermachine.attach("web").fork(2), range(2)))
    found = [m.name for forks in made for m in forks]
    assert sorted(found) == ["web-1", "web-2", "web-3", "web-4"]
    assert all(m.run(["echo", m.name], text=True).stdout == f"{m.name}\n" for forks in made for m in forks)


@pytest.fixture
def several(runtime: Path) -> Iterator[list[Place]]:
    """Machines that this process keeps, all of whose keepers but the first's stand still."""
    registry = Registry(runtime)
    with contextlib.ExitStack() as stack:
        places = []
        for number in range(6):
            place, fd = registry.create(f"web-{number}")
            stack.callback(os.close, fd)
            Record(place.name, "x", "image", started=1.0).write(place.record_path)
            if number:
                stack.enter_context(local_sockets.listen(place.socket))
            places.append(place)
        record = Record("web-0", "x", "image", started=1.0)
        machine = SimpleNamespace(running=False, ports={}, pid=None, engine="", isolation="")
        shown = SimpleNamespace(
            place=places[0],
            over=Moment(),
            vm=machine,
            record=record,
            phase="restarting",
            main_pid=1,
            health=None,
            logs=SimpleNamespace(dropped=0),
        )
        server = Server(shown).start()  # type: ignore[arg-type]
        stack.callback(server.close)
        yield places


def test_keepers_that_stand_still_are_waited_for_together(
    several: list[Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_GLANCE", 1.5)
    began = time.monotonic()
    found = client.states(supermachine.machines())
    assert time.monotonic() - began < 4
    assert [state.status for state in found if state is not None] == ["restarting", *["running"] * 5]
    assert len(found) == len(several)
    # With fewer at once it is one deadline all the same.
    monkeypatch.setattr(client, "_AT_ONCE", 2)
    began = time.monotonic()
    client.states(supermachine.machines())
    assert time.monotonic() - began < 4


def test_a_name_that_nobody_has_keeps_no_other_from_being_waited_for(runtime: Path) -> None:
    place, fd = Registry(runtime).create("web")
    Record("web", "x", "image", started=1.0, finished=2.0, exit_code=3).write(place.record_path)
    os.close(fd)
    done = sm("wait", "nobody", "web", check=False)
    assert (done.stdout, done.returncode) == ("3\n", 1)
    assert "there is no machine nobody" in done.stderr
