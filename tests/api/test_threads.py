"""What goes wrong in a thread that feeds, drains or starts something is raised where somebody waits for it."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import pytest
import supermachine
from supermachine import PIPE, aio, errors

#: Seconds that a call has for coming back, whatever with.
PATIENCE = 30

INPUTS = {
    "a string without text": {"input": "text"},
    "bytes with text": {"input": b"bytes", "text": True},
    "what cannot be encoded": {"input": "hé", "encoding": "ascii"},
    "a lone surrogate": {"input": "\udc80", "encoding": "utf-8"},
    "an integer": {"input": 3},
    "a list": {"input": [b"a"]},
    "an object": {"input": object()},
    "an unknown encoding": {"input": "x", "encoding": "no-such-encoding"},
    "unknown error handling": {"input": "hé", "encoding": "ascii", "errors": "no-such-handling"},
    "a view of integers": {"input": memoryview(b"abcd").cast("I")},
    "a byte array": {"input": bytearray(b"abc")},
}


def comes_back(call: Callable[[], Any]) -> Any:
    """What the call gives or raises, when it comes back in time."""
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(call())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert found, "it never came back"
    return found[0]


def kind(outcome: Any) -> Any:
    """What can be compared of it."""
    if isinstance(outcome, BaseException):
        return next(c for c in type(outcome).__mro__ if c.__module__ in ("builtins", "subprocess"))
    if isinstance(outcome, subprocess.CompletedProcess):
        return outcome.stdout
    return outcome[0]


@pytest.mark.parametrize("what", INPUTS)
def test_input_is_taken_or_refused_as_by_subprocess(guest, what):
    options = INPUTS[what]
    theirs = comes_back(lambda: subprocess.run(["cat"], stdout=PIPE, **options))
    assert kind(comes_back(lambda: guest.run(["cat"], **options))) == kind(theirs)
    # And where the input comes later.
    rest = {name: value for name, value in options.items() if name != "input"}

    def communicate(popen):
        process = popen(["cat"], stdin=PIPE, stdout=PIPE, **rest)
        try:
            return process.communicate(options["input"])
        finally:
            process.kill()

    assert kind(comes_back(lambda: communicate(guest.popen))) == kind(comes_back(lambda: communicate(subprocess.Popen)))
    assert guest.run(["true"]).returncode == 0


@pytest.mark.parametrize("what", INPUTS)
def test_coroutines_take_and_refuse_the_same(stand_in, what):
    options = INPUTS[what]

    async def work():
        async with aio.VM("stand-in") as vm:
            try:
                return await asyncio.wait_for(vm.run(["cat"], **options), PATIENCE)
            except asyncio.TimeoutError:
                pytest.fail("it never came back")
            except Exception as error:
                return error

    theirs = comes_back(lambda: subprocess.run(["cat"], stdout=PIPE, **options))
    assert kind(asyncio.run(work())) == kind(theirs)


class Breaks:
    """A file of a process whose reads and writes fail."""

    def __init__(self, stream: Any, error: BaseException) -> None:
        self._stream, self._error = stream, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def fail(self, *_: object) -> Any:
        raise self._error

    read = read1 = write = flush = fail

    @property
    def buffer(self) -> Breaks:
        return self


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error"), RuntimeError("no"), SystemExit(3)])
@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
@pytest.mark.parametrize("text", [False, True])
def test_a_feeder_or_drain_that_fails_ends_the_wait(guest, stream, error, text):
    process = guest.popen(
        ["sh", "-c", "cat; cat /dev/zero; exit 0"] if stream == "stdout" else ["sh", "-c", "cat; yes >&2 || exit 0"],
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        text=text,
    )
    if stream == "stdin":
        process.kill()  # its other streams would go on for ever
        process = guest.popen(["cat"], stdin=PIPE, stdout=PIPE, text=text)
    setattr(process, stream, Breaks(getattr(process, stream), error))
    if stream == "stderr":
        process.stdout.close()
        process.stdout = None
    raised = comes_back(lambda: process.communicate("x" if text else b"x"))
    assert raised is error
    process.kill()
    assert guest.run(["true"]).returncode == 0


@pytest.fixture
def short_of_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Has the n-th thread from now on not start, as in a process that is at its limit."""

    def have(number: int) -> None:
        left = [number]
        start = threading.Thread.start

        def counted(thread: threading.Thread) -> None:
            # Those of the tests themselves do not count.
            if thread.name.startswith("supermachine") or "_core" in repr(thread) or _is_ours(thread):
                left[0] -= 1
                if left[0] == -1:
                    raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", counted)

    return have


def _is_ours(thread: threading.Thread) -> bool:
    target = getattr(thread, "_target", None)
    return getattr(target, "__module__", "").startswith("supermachine")


@pytest.mark.parametrize("number", range(4))
def test_a_thread_that_does_not_start_is_an_error_and_no_wait(guest, short_of_threads, monkeypatch, number):
    short_of_threads(number)
    outcome = comes_back(lambda: guest.run(["cat"], input=b"x"))
    monkeypatch.undo()
    assert isinstance(outcome, errors.HostShortage) or outcome.stdout == b"x"
    assert guest.run(["cat"], input=b"y").stdout == b"y"


@pytest.mark.parametrize("number", range(3))
def test_the_same_of_coroutines(stand_in, short_of_threads, monkeypatch, number):
    async def work():
        async with aio.VM("stand-in") as vm:
            short_of_threads(number)
            try:
                return await asyncio.wait_for(vm.run(["cat"], input=b"x"), PATIENCE)
            except errors.HostShortage as error:
                return error
            finally:
                monkeypatch.setattr(threading.Thread, "start", start)

    start = threading.Thread.start
    outcome = asyncio.run(work())
    assert isinstance(outcome, errors.HostShortage) or outcome.stdout == b"x"


def test_a_refill_that_has_no_thread_is_told_to_who_waits(stand_in, monkeypatch):
    with supermachine.Pool("stand-in", min=0, max=1) as pool:
        monkeypatch.setattr(supermachine.VM, "start", lambda _vm: (_ for _ in ()).throw(RuntimeError("no thread")))
        outcome = comes_back(lambda: pool.acquire(timeout=PATIENCE).__enter__())
        assert isinstance(outcome, RuntimeError)
        monkeypatch.undo()
        monkeypatch.setenv("SUPERMACHINE_NETWORK", "none")
