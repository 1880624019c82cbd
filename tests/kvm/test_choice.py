"""The choice of KVM, by what a worker that is told beforehand says of it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from supermachine import VM
from supermachine.errors import ConfigurationError, EngineUnavailable, HardwareRequired
from supermachine.host import doctor, engines

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="KVM exists on Linux only")

USABLE = {"usable": True, "code": "usable", "status": "1500 million instructions a second", "remedy": None}
SLOW = {"usable": False, "code": "too slow", "status": "KVM is slow here", "remedy": "use another host"}
BUSY = {"usable": False, "code": "busy", "status": "another hypervisor holds it", "remedy": "end the other one"}
LACKING = {"usable": False, "code": "lacking", "status": "this host's KVM lacks a GICv3", "remedy": "a newer kernel"}
MISSING = {"usable": False, "code": "missing", "status": "/dev/kvm does not exist", "remedy": "sudo modprobe kvm_amd"}
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


@pytest.mark.parametrize("said", [MISSING, DENIED, BUSY, LACKING], ids=lambda said: said["code"])
def test_auto_goes_on_with_soft_when_it_is_not(tell: Tell, said: dict[str, Any]) -> None:
    tell(said)
    assert engines.choose().name == "soft"
    with pytest.raises(HardwareRequired) as required:
        engines.choose(require_hardware=True)
    assert f"kvm: {said['status']}" in (required.value.cause or "")
    with pytest.raises(EngineUnavailable) as caught:
        engines.choose("kvm")
    assert said["status"] in str(caught.value)
    assert (caught.value.code, caught.value.hint) == (f"engine.{said['code'].replace(' ', '-')}", said["remedy"])
    report = doctor.examine()
    assert report.chosen == "soft"
    assert f"kvm   not usable, hardware isolation: {said['status']}" in report.text()
    assert f"to change that: {said['remedy']}" in report.text()


def test_what_is_too_slow_is_taken_when_it_is_asked_for_and_says_so(
    tell: Tell, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tell(SLOW)
    monkeypatch.setenv("SUPERMACHINE_CACHE", str(tmp_path))
    assert engines.choose().name == "soft"
    with pytest.raises(HardwareRequired):
        engines.choose(require_hardware=True)
    engine = engines.choose("kvm", require_hardware=True)
    assert (engine.name, engine.usable) == ("kvm", False)
    for _ in range(2):
        engines.warn_once(engine)
    expected = "supermachine: warning: the kvm engine was asked for, and KVM is slow here (supermachine doctor)\n"
    assert capsys.readouterr().err == expected
    text = doctor.examine().text()
    assert "kvm   not usable, hardware isolation: KVM is slow here" in text
    assert "engine=kvm takes it all the same, with a warning" in text


#: Images' and the kernel's names of this host's architecture and of the other one.
OWN, OTHER = (("amd64", "x86_64"), ("arm64", "aarch64"))[:: 1 if os.uname().machine == "x86_64" else -1]


def test_auto_goes_by_the_platform(tell: Tell) -> None:
    tell(USABLE)
    assert engines.choose(platform=f"linux/{OWN[0]}").name == "kvm"
    assert engines.choose(platform=OWN[1]).name == "kvm"
    if OTHER[0] == "arm64":
        assert engines.choose(platform="linux/arm64/v8").name == "soft"
        with pytest.raises(HardwareRequired, match="for guests that are aarch64, as linux/arm64"):
            engines.choose(platform="linux/arm64", require_hardware=True)
    tell(DENIED)
    with pytest.raises(EngineUnavailable, match="no engine can be used here for guests that are x86_64") as caught:
        _forget_measures()
        engines.choose(platform="linux/amd64")
    assert "linux/arm64 runs on every host" in (caught.value.hint or "")


def _forget_measures() -> None:
    Path(engines._record()).unlink(missing_ok=True)


def test_a_platform_that_the_engine_does_not_run_is_refused_with_both_named(tell: Tell) -> None:
    tell(USABLE)
    wrong = f"linux/{OTHER[0]}"
    for choose in (
        lambda: engines.choose("kvm", platform=wrong),
        # Before the image is looked for.
        lambda: VM("/no/such/image", engine="kvm", platform=wrong),
    ):
        with pytest.raises(ConfigurationError) as caught:
            choose()
        assert f"{wrong} needs guests that are {OTHER[1]}" in str(caught.value)
        assert f"the kvm engine's are {OWN[1]}" in str(caught.value)
        assert "engine=auto" in (caught.value.hint or "")
    with pytest.raises(ConfigurationError, match="guests that are x86_64, and the soft engine's are aarch64"):
        engines.choose("soft", platform="linux/amd64")
    with pytest.raises(ConfigurationError, match="no engine runs images for linux/s390x"):
        engines.choose(platform="linux/s390x")


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
