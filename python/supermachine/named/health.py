"""HEALTHCHECK of images: a command in the guest, now and then, whose exit status says how the machine fares."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import IO, Any, NamedTuple

from .. import shortage
from ..errors import SupermachineError, VMExited
from ..guest.process_context import Context

#: Nanoseconds and a count where the image does not say, as docker's.
_DEFAULTS = {
    "Interval": 30_000_000_000,
    "Timeout": 30_000_000_000,
    "StartPeriod": 0,
    "StartInterval": 5_000_000_000,
    "Retries": 3,
}
#: The least that is waited between two, in seconds: an image may say a nanosecond.
_LEAST = 0.001
#: Results that are kept, and bytes of each one's output.
_KEPT, _OUTPUT = 5, 4096
#: Seconds in which what a check has written is there after its end; what it has left running may hold its output open.
_LAST_WORDS = 1.0


class Check(NamedTuple):
    """What is run, and when; times in seconds."""

    args: tuple[str, ...]
    shell: bool
    interval: float
    timeout: float
    start_period: float
    start_interval: float
    retries: int


def check_of(said: Mapping[str, Any] | None) -> Check | None:
    """What an image's HEALTHCHECK comes to; ``None`` for none, and for what nobody can read."""
    test = (said or {}).get("Test")
    if said is None or not isinstance(test, list) or len(test) < 2 or not all(isinstance(word, str) for word in test):
        return None
    kind, *words = test
    if kind not in ("CMD", "CMD-SHELL"):
        return None
    numbers = {}
    for name, usual in _DEFAULTS.items():
        value = said.get(name)
        numbers[name] = value if isinstance(value, int) and 0 < value < 1 << 62 else usual
    seconds = {name: max(_LEAST, value / 1e9) for name, value in numbers.items()}
    return Check(
        args=tuple(words),
        shell=kind == "CMD-SHELL",
        interval=seconds["Interval"],
        timeout=seconds["Timeout"],
        start_period=numbers["StartPeriod"] / 1e9,
        start_interval=seconds["StartInterval"],
        retries=numbers["Retries"],
    )


class Health:
    """Runs a check in a thread until it is told to end."""

    def __init__(self, check: Check, context: Callable[[], Context], changed: Callable[[str], object]) -> None:
        self._check = check
        self._context = context
        self._changed = changed
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.status = "starting"
        #: Set while the guest's processes stand still: nothing is checked then.
        self.paused = False
        self._failing = 0
        self._log: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)

    def start(self) -> Health:
        self._thread.start()
        return self

    def end(self) -> None:
        self._over.set()

    def as_json(self) -> dict[str, Any]:
        """As `docker inspect` has it."""
        with self._lock:
            return {"Status": self.status, "FailingStreak": self._failing, "Log": list(self._log)}

    def _run(self) -> None:
        check, began = self._check, time.monotonic()
        while True:
            starting = self.status == "starting" and time.monotonic() - began < check.start_period
            if self._over.wait(min(check.start_interval, check.interval) if starting else check.interval):
                return
            if self.paused:
                continue
            at, (code, output) = time.time(), self._once()
            if self._over.is_set():
                return
            # In the start period a failure does not count, and a success ends it.
            counts = code != 0 and not (self.status == "starting" and time.monotonic() - began < check.start_period)
            with self._lock:
                self._log.append({"Start": at, "End": time.time(), "ExitCode": code, "Output": output})
                before = self.status
                self._failing = 0 if code == 0 else self._failing + counts
                if code == 0:
                    self.status = "healthy"
                elif self._failing >= check.retries:
                    self.status = "unhealthy"
                after = self.status
            if after != before:
                self._changed(after)

    def _once(self) -> tuple[int, str]:
        from ..guest.processes import DEVNULL, PIPE, STDOUT, Popen, TimeoutExpired

        check, kept = self._check, _Tail()
        args = check.args[0] if check.shell else list(check.args)
        try:
            began = time.monotonic()
            process = Popen(
                self._context(),
                args,
                shell=check.shell,
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=STDOUT,
                start_timeout=check.timeout,
            )
            try:
                reader = threading.Thread(target=kept.read, args=(process.stdout,), name="health", daemon=True)
                shortage.start(reader, "the check cannot be looked at")
                code = process.wait(max(0.0, began + check.timeout - time.monotonic()))
                reader.join(_LAST_WORDS)
            finally:
                if process.returncode is None:
                    process._exec.close()  # kills it
        except TimeoutExpired:
            return -1, f"the check took longer than {check.timeout:g} seconds"
        except VMExited:
            self._over.set()
            return -1, ""
        except (SupermachineError, OSError, ValueError) as error:
            return -1, str(error)
        return code, kept.text()


class _Tail:
    """The last of what a check says; the guest decides how much that is in all."""

    def __init__(self) -> None:
        self._kept = b""

    def read(self, stream: IO[bytes]) -> None:
        """A thread: reads to the end."""
        with contextlib.suppress(OSError, ValueError), stream:
            while data := stream.read1(1 << 16):  # type: ignore[attr-defined]
                self._kept = (self._kept + data)[-_OUTPUT:]

    def text(self) -> str:
        return self._kept.decode("utf-8", "replace")
