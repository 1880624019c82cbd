"""A first program that does the worst in each state of the protocol: typed errors in time, and bounded memory."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from supermachine import VM, _core, errors
from supermachine.errors import SupermachineError, printable

from ..vm.conftest import BUSYBOX, initramfs
from ..vm.guests import wait_for
from .watch import Watch, workers

pytestmark = [pytest.mark.vm, pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]

SOURCE = Path(__file__).with_name("agent.c")
MAGIC = b"sunvail\0"
MEMORY = 96 << 20
#: Bytes that a worker may have beside its guest's RAM.
OWN = 64 << 20
DESCRIPTORS = 128

#: In the order of the program's own list. Those from "nobody listens" on are guests that say they are ready.
WORST = (
    "silent",
    "hello for ever",
    "ready first",
    "ready for ever",
    "never reads",
    "a frame without end",
    "a byte now and then",
    "comes and goes",
    "a crowd",
    "another version",
    "a long failure",
    "nobody listens",
    "nothing is answered",
    "noise",
    "started for ever",
    "output for ever",
    "ends twice",
    "unasked",
    "deaf to all",
)


@pytest.fixture(scope="module")
def program(c_program: Callable[[Path, str], Path]) -> bytes:
    return c_program(SOURCE, "aarch64").read_bytes()


@pytest.fixture
def machine(program: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], VM]:
    monkeypatch.setenv("SUPERMACHINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SUPERMACHINE_NO_SNAPSHOT", "1")

    def make(what: str) -> VM:
        at = program.index(MAGIC)
        told = MAGIC + WORST.index(what).to_bytes(4, "little") + _core.PROTOCOL_VERSION.to_bytes(4, "little")
        (tmp_path / "guest").mkdir(exist_ok=True)
        init = program[:at] + told + program[at + len(told) :]
        monkeypatch.setenv("SUPERMACHINE_INITRAMFS", str(initramfs(tmp_path / "guest", init)))
        return VM(str(BUSYBOX), engine="soft", memory=MEMORY, boot_timeout=6)

    return make


class Asked:
    """Calls that must come back, whatever with: a value or an error of the kinds that callers know."""

    def __init__(self) -> None:
        self.raised: list[Exception] = []

    def __call__(self, call: Callable[[], object], seconds: float = 40) -> None:
        failures: list[BaseException] = []

        def work() -> None:
            try:
                call()
            except (SupermachineError, OSError, subprocess.TimeoutExpired) as error:
                self.raised.append(error)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(seconds)
        assert not thread.is_alive(), "an answer was waited for without end"
        assert failures == []


@pytest.mark.parametrize("what", WORST)
def test_the_worst_in_each_state(machine: Callable[[str], VM], tmp_path: Path, what: str) -> None:
    vm, ask = machine(what), Asked()
    with Watch() as seen:
        ask(vm.start)
        # One that says it is ready may have been ended for what it said next.
        if not ask.raised:
            ask(lambda: vm.run(["true"], timeout=2))
            ask(lambda: vm.run(["cat"], input=bytes(4 << 20), timeout=2))
            ask(lambda: vm.snapshot(tmp_path / "snapshot"))
            ask(lambda: vm.stop(timeout=2))
        vm.kill()
    assert not vm.running
    # None that can be met here are said to be ready and are not heard from.
    if what in WORST[: WORST.index("nobody listens")] and what != "ready for ever":
        assert isinstance(ask.raised[0], (errors.VMTimeout, errors.VMExited))
    for error in ask.raised:
        assert printable(str(error)) == str(error)
        assert len(str(error)) < 10_000
    assert 0 < seen.memory < MEMORY + OWN
    assert seen.descriptors < DESCRIPTORS
    wait_for(lambda: not list(workers()), "the end of the worker", 10)


@pytest.mark.parametrize("what", ["ready for ever", "unasked", "deaf to all"])
def test_stopping_one_takes_no_longer_than_it_may(machine: Callable[[str], VM], what: str) -> None:
    vm = machine(what)
    vm.start()
    began = time.monotonic()
    vm.stop(timeout=1)
    assert not vm.running
    # The grace, and what a guest may take to power off; the rest is for a machine that is busy.
    assert time.monotonic() - began < 30
