"""What a host that cannot confine a worker is told, and what it is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from supermachine import VM
from supermachine.errors import ConfinementRequired, EngineUnavailable, VMExited
from supermachine.host import confinement, doctor
from supermachine.machine import launch

LACKS = "this kernel has no Landlock; boot a newer one"


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An executable that stands for the worker; its answer is in the file beside it."""
    script = tmp_path / "worker"
    script.write_text('#!/bin/sh\n[ "$1" = --probe-confinement ] || exit 9\ncat "$0.answer"\n')
    script.chmod(0o755)
    monkeypatch.setenv("SUPERMACHINE_WORKER", str(script))
    monkeypatch.delenv("SUPERMACHINE_REQUIRE_CONFINEMENT", raising=False)
    return script.with_name("worker.answer")


@pytest.mark.parametrize("missing", [None, LACKS])
def test_doctor_tells_what_is_missing(worker: Path, missing: str | None) -> None:
    worker.write_text(json.dumps({"landlock": 7, "seccomp": True, "missing": missing}))
    assert confinement.missing() == missing
    report = doctor.examine()
    assert report.confinement_lacks == missing
    assert f"Confinement of workers: {missing or 'complete'}" in report.text()


@pytest.mark.parametrize("why", [None, "this system lets no memory be executable"])
def test_doctor_tells_whether_code_is_translated(worker: Path, why: str | None) -> None:
    worker.write_text(json.dumps({"missing": None, "interprets": why}))
    report = doctor.examine()
    assert report.interprets == why
    assert f"Translation of the soft engine's code: {why or 'on'}" in report.text()


@pytest.mark.parametrize("answer", ["", "[]", "{}", "nonsense"])
def test_a_worker_that_does_not_answer_is_an_error(worker: Path, answer: str) -> None:
    worker.write_text(answer)
    with pytest.raises(EngineUnavailable, match="--probe-confinement"):
        confinement.missing()


def test_it_is_required_by_argument_or_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUPERMACHINE_REQUIRE_CONFINEMENT", raising=False)
    assert not confinement.required(None)
    assert confinement.required(True)
    monkeypatch.setenv("SUPERMACHINE_REQUIRE_CONFINEMENT", "1")
    assert confinement.required(None)
    assert not confinement.required(False)


@pytest.mark.parametrize("said", [None, True, False])
def test_a_machine_that_is_told_so_requires_it(
    stand_in: object, monkeypatch: pytest.MonkeyPatch, said: bool | None
) -> None:
    asked: list[bool | None] = []
    monkeypatch.setattr(confinement, "required", lambda required: asked.append(required) or False)
    with VM("stand-in", require_confinement=said) as vm:
        assert vm.running
    assert asked == [said]


def test_a_worker_that_may_not_run_unconfined_is_a_typed_error() -> None:
    error = launch._meaning(VMExited(LACKS, reason="unconfined"), 1.0)
    assert isinstance(error, ConfinementRequired)
    assert error.code == "worker.unconfined"
    assert LACKS in str(error)
