"""Functions that run in the Python of a guest, and what a guest may give back."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from supermachine import errors
from supermachine.fleet import Fleet, FleetExecutor, executor

pytest.importorskip("cloudpickle")
pytestmark = pytest.mark.vm
#: Debian's.
PYTHON = (3, 11)


@pytest.fixture(scope="module")
def functions(debian: Path) -> Iterator[FleetExecutor]:
    # Nothing in this image is compiled yet; what each guest would do again is done once.
    needed = "dataclasses, dis, enum, logging, pickle, platform, struct, threading, traceback, typing, uuid, zipfile"
    warmup = [["python3", "-c", f"import {needed}"]]
    with (
        Fleet(str(debian), per_host=2, user="root", warmup=warmup) as fleet,
        FleetExecutor(fleet, timeout=120) as executor,
    ):
        yield executor


@pytest.mark.skipif(sys.version_info[:2] != PYTHON, reason="functions travel between the same minor versions")
def test_functions_run_in_guests(functions: FleetExecutor) -> None:
    factor = 3

    def where(value: int) -> tuple[int, str, int]:
        import platform

        return value * factor, platform.machine(), os.getpid()

    class Own(Exception):
        pass

    def fail(kind: str) -> None:
        if kind == "own":
            raise Own("mine")
        raise KeyError("key")

    futures = [functions.submit(where, number) for number in range(2)]
    wrong = functions.submit(fail, "builtin")
    own = functions.submit(fail, "own")
    strange = functions.submit(lambda: Own)
    died = functions.submit(lambda: os._exit(7))
    results = [future.result(200) for future in futures]
    assert [result[:2] for result in results] == [(0, "aarch64"), (3, "aarch64")]
    with pytest.raises(KeyError, match="key"):
        wrong.result(200)
    with pytest.raises(errors.RemoteError, match="Own: mine") as raised:
        own.result(200)
    assert "Traceback" in str(raised.value.cause)
    with pytest.raises(errors.FleetFailed, match="no plain value"):
        strange.result(200)
    with pytest.raises(errors.FleetFailed, match="ended with 7"):
        died.result(200)


@pytest.mark.skipif(sys.version_info[:2] == PYTHON, reason="the image has this version")
def test_another_python_is_said(functions: FleetExecutor) -> None:
    with pytest.raises(errors.ConfigurationError, match=r"3\.11"):
        functions.submit(len, "x").result(200)


def test_what_a_guest_gives_back_runs_nothing_here(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "evil",))

    for value in (Evil(), [Evil()], {"x": (Evil(),)}, print, os.system):
        with pytest.raises(errors.FleetFailed, match="no plain value"):
            executor._plain(pickle.dumps(value), "the result")
    for data in (b"", b"garbage", pickle.dumps(1)[:-1], b"\x80\x04c__builtin__\neval\n."):
        with pytest.raises(errors.FleetFailed):
            executor._plain(data, "the result")
    assert not (tmp_path / "evil").exists()
    import datetime
    import decimal

    good = [
        1,
        "a",
        b"b",
        2.5,
        None,
        True,
        {1: {2, 3}},
        (1j, range(3)),
        decimal.Decimal("1.5"),
        datetime.date(2020, 1, 1),
    ]
    assert executor._plain(pickle.dumps(good), "the result") == good
