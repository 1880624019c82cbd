"""The choice of KVM, by what a worker that is told beforehand says of it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from supermachine import engines
from supermachine.errors import EngineUnavailable

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="KVM exists on Linux only")

USABLE = {"usable": True, "code": "usable", "status": "1500 million instructions a second", "remedy": None}
SLOW = {"usable": False, "code": "too slow", "status": "KVM is slow here", "remedy": "use another host"}
DENIED = {"usable": False, "code": "not permitted", "status": "no", "remedy": "sudo usermod -aG kvm $USER"}

Tell = Callable[[Any], Path]


@pytest.fixture
def tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tell:
    """Makes a worker that gives this verdict and counts how often it was asked; gives the count's file."""
    asked, verdict, worker = tmp_path / "asked", tmp_path / "verdict", tmp_path / "worker"
    worker.write_text(f'#!/bin/sh\n[ "$1" = --probe-kvm ] || exit 9\necho >> {asked}\ncat {verdict}\n')
    worker.chmod(0o755)
    monkeypatch.setenv("SUPERMACHINE_WORKER", str(worker))
    monkeypatch.setenv("SUPERMACHINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SUPERMACHINE_REQUIRE_HARDWARE", raising=False)
    opened = os.open
    # The device opens, whatever this host has.
    monkeypatch.setattr(os, "open", lambda path, *rest, **named: opened(
        "/dev/null" if path == "/dev/kvm" else path, *rest, **named
    ))  # fmt: skip

    def say(said: Any) -> Path:
        verdict.write_text(said if isinstance(said, str) else json.dumps(said))
        return asked

    return say


def count(asked: Path) -> int:
    return len(asked.read_text().splitlines()) if asked.exists() else 0


def test_auto_takes_kvm_when_it_is_usable(tell: Tell) -> None:
    tell(USABLE)
    engine = engines.choose()
    assert (engine.name, engine.isolation, engine.architecture) == ("kvm", "hardware", os.uname().machine)
    assert engines.choose(require_hardware=True).name == "kvm"


def test_auto_goes_on_with_soft_when_it_is_not(tell: Tell) -> None:
    tell(SLOW)
    assert engines.choose().name == "soft"
    with pytest.raises(EngineUnavailable, match="KVM is slow here") as caught:
        engines.choose("kvm")
    assert (caught.value.code, caught.value.hint) == ("engine.too-slow", "use another host")


def test_a_measure_is_made_once_for_each_boot(tell: Tell, tmp_path: Path) -> None:
    asked = tell(USABLE)
    engines.choose()
    tell(SLOW)
    assert engines.choose().name == "kvm"
    assert count(asked) == 1
    record = next((tmp_path / "cache").glob("kvm.json"))
    remembered = json.loads(record.read_text())
    remembered["for"][0] = "another boot"
    record.write_text(json.dumps(remembered))
    assert engines.choose().name == "soft"
    assert count(asked) == 2


def test_what_may_change_at_any_time_is_asked_each_time(tell: Tell) -> None:
    asked = tell(DENIED)
    for _ in range(2):
        with pytest.raises(EngineUnavailable) as caught:
            engines.choose("kvm")
        assert (caught.value.code, caught.value.hint) == ("engine.not-permitted", DENIED["remedy"])
    assert count(asked) == 2


@pytest.mark.parametrize("said", ["", "[]", "{", '{"usable": true}'])
def test_a_worker_that_says_nothing_sensible_is_no_kvm(tell: Tell, said: str) -> None:
    tell(said)
    assert engines.choose().name == "soft"
    engine = next(engine for engine in engines.probe() if engine.name == "kvm")
    assert not engine.usable
    assert "cannot be measured" in engine.status


@pytest.mark.parametrize("record", ["", "[]", '{"for": 1}', "\xff", '{"for": null, "found": {"usable": true}}'])
def test_a_damaged_record_is_measured_anew(tell: Tell, tmp_path: Path, record: str) -> None:
    asked = tell(USABLE)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "kvm.json").write_text(record, encoding="latin-1")
    assert engines.choose().name == "kvm"
    assert count(asked) == 1
