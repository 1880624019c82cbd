"""Machines of a snapshot go where it is already, as long as there is room."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import supermachine
from supermachine import VM
from supermachine.fleet import Fleet, wire
from supermachine.fleet.driver import Driver
from supermachine.fleet.drivers import ProcessesDriver

from ..artifacts.registry import Registry
from ..artifacts.test_product import with_demo
from .conftest import SMALL

pytestmark = pytest.mark.vm


class Hosts(Driver):
    """Two, of four machines each, with a cache of their own."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._drivers = {}
        for name in ("one", "other"):
            with monkeypatch.context() as patch:
                patch.setenv("SUPERMACHINE_CACHE", str(place / name))
                self._drivers[name] = ProcessesDriver(4, 1)
                self._drivers[name].addresses()

    def addresses(self) -> list[wire.Address]:
        return [each._replace(name=name) for name, driver in self._drivers.items() for each in driver.addresses()]

    def close(self) -> None:
        for driver in self._drivers.values():
            driver.close()


@pytest.fixture
def registry() -> Iterator[Registry]:
    server = Registry()
    yield server
    server.close()


def until_known(fleet: Fleet, name: str) -> None:
    """The hosts say each second what they have."""
    deadline = time.monotonic() + 30
    while not fleet._hosts[name].has_snapshot:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(("having", "without"), [("one", "other"), ("other", "one")])
def test_a_host_that_has_the_snapshot_is_preferred_while_it_has_room(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, having: str, without: str
) -> None:
    with VM(with_demo(registry), bake=False, **SMALL) as vm:
        vm.path("/tmp/x").write_text("x")
        snapshot = vm.snapshot(tmp_path / "snapshot").push(f"{registry.host}/demo:snapshot").reference
    with monkeypatch.context() as patch:
        patch.setenv("SUPERMACHINE_CACHE", str(tmp_path / having))
        supermachine.pull(snapshot)
    with Fleet(snapshot=snapshot, driver=Hosts(tmp_path, monkeypatch), ready=0) as fleet:
        # Its image comes with the first machine.
        held = [fleet.acquire(timeout=120)]
        sent = registry.sent.total()
        held.append(fleet.acquire(timeout=120))
        assert [vm.host for vm in held] == [having] * 2
        assert registry.sent.total() == sent
        held.append(fleet.acquire(timeout=120))
        assert held[-1].host == without, "half of the host that has it is in use"
        assert registry.sent.total() > sent, "it was fetched there"
        until_known(fleet, without)
        # Both have it now, and the most room decides.
        held.append(fleet.acquire(timeout=120))
        assert held[-1].host == without
        assert [vm.path("/tmp/x").read_text() for vm in held] == ["x"] * 4


def test_where_all_hosts_have_it_the_most_room_decides(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with VM(with_demo(registry), bake=False, **SMALL) as vm:
        path = vm.snapshot(tmp_path / "snapshot").path
    for name in ("one", "other"):
        with monkeypatch.context() as patch:
            patch.setenv("SUPERMACHINE_CACHE", str(tmp_path / name))
            supermachine.bake(with_demo(registry), **SMALL)
    # A file at the same path is on both.
    with Fleet(snapshot=str(path), driver=Hosts(tmp_path, monkeypatch), ready=0) as fleet:
        held = [fleet.acquire(timeout=120) for _ in range(4)]
        assert sorted(vm.host for vm in held) == ["one", "one", "other", "other"]


def test_a_snapshot_travels_by_its_digest(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host pushes what its machine is; machines of another fleet go on from that, on another host."""
    hosts = Hosts(tmp_path, monkeypatch)
    with Fleet(with_demo(registry), driver=hosts, ready=0, **SMALL) as fleet, fleet.acquire(timeout=120) as vm:
        vm.path("/tmp/x").write_text("travels")
        pinned = vm.push(f"{registry.host}/demo:travels")
    assert pinned.startswith(f"{registry.host}/demo@sha256:")
    hosts = Hosts(tmp_path / "elsewhere", monkeypatch)
    with Fleet(snapshot=pinned, driver=hosts, ready=0) as fleet, fleet.acquire(timeout=120) as vm:
        (clone,) = vm.fork(1)
        assert [each.path("/tmp/x").read_text() for each in (vm, clone)] == ["travels"] * 2
