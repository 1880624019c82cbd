"""What tests of many kinds do with guests and wait for in them."""

from __future__ import annotations

import time
from collections.abc import Callable

from supermachine import VM


def output(vm: VM, command: str) -> str:
    """What a command of the guest's shell says, which must succeed."""
    return str(vm.run(command, shell=True, text=True, check=True).stdout)


def wait_for(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    """Waits until the condition holds, which is `what` the message of a failure says was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} seconds in vain for {what}"
        time.sleep(0.02)
