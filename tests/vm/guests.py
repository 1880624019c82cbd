"""What tests of many kinds do with guests and wait for in them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from supermachine import VM


def output(vm: VM, command: str) -> str:
    """What a command of the guest's shell says, which must succeed."""
    return str(vm.run(command, shell=True, text=True, check=True).stdout)


def wait_for(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    """Waits until the condition holds; a failure says `what` did not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} seconds in vain for {what}"
        time.sleep(0.02)


def was_restored(vm: VM) -> bool:
    """Whether it went on from a snapshot, by itself or as a template's copy, and has not booted."""
    return "open" in dict(vm.timings)


def answer(address: tuple[str, int], question: bytes = b"") -> bytes:
    """What a server at a port of the host says until the connection ends; nothing where there is none."""
    data = b""
    try:
        with socket.create_connection(address, timeout=30) as connection:
            connection.sendall(question)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(4096):
                data += part
    except OSError:
        pass
    return data


def refused(address: tuple[str, int]) -> bool:
    """Whether nobody listens at a port of the host."""
    try:
        socket.create_connection(address, timeout=30).close()
    except ConnectionRefusedError:
        return True
    return False
