"""Starts keepers: processes of their own, in a session of their own, with nobody as their parent."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from .. import descriptors, shortage
from ..errors import KeeperLost, NotSupported
from . import protocol
from .spec import Spec

#: Seconds that the snapshot may take which forks go on from.
FORK_TIMEOUT = 120.0

#: What a keeper's interpreter runs: the modules are looked for where this process would, whatever its environment is.
_PROGRAM = """\
import json, sys
sys.path[:] = json.loads(sys.stdin.buffer.readline())
from supermachine.named.keeper import main
main()
"""


def start(spec: Spec, say: Callable[[str], object] | None = None) -> dict[str, Any]:
    """Starts a machine and gives what its keeper says of it, once it runs: its name above all.

    `say` gets each line that the start has for whoever watches it. Raises what kept it from starting.
    """
    return wait(begin(spec), say)


def begin(spec: Spec) -> int:
    """Starts a keeper; a descriptor to `wait` on, whose closing ends a machine that does not run yet."""
    if not sys.executable:
        raise NotSupported("this program has no Python interpreter of its own to start a machine's keeper with")
    told = json.dumps([path or os.getcwd() for path in sys.path]).encode() + b"\n" + spec.encode()  # noqa: PTH109
    failed = "the machine's keeper cannot be started"
    with shortage.Told(failed):
        reader, writer = descriptors.pipe()
    descriptors.reserve()
    try:
        command = [sys.executable, "-I", "-c", _PROGRAM, str(writer), f"supermachine-keeper {spec.name or ''}".strip()]
        # Its first process forks and ends, so that the keeper is nobody's child and leads no session.
        with shortage.Told(failed):
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(writer,),
                start_new_session=True,
            )
        os.close(writer)
        writer = -1
        try:
            process.communicate(told, timeout=protocol.ANSWER)
        except BrokenPipeError:
            pass  # what it said to that is read by `wait`
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise KeeperLost(f"{failed}: it does not begin within {protocol.ANSWER:g} seconds") from None
    except BaseException:
        os.close(reader)
        raise
    finally:
        if writer >= 0:
            os.close(writer)
    return reader


def _lines(reader: int) -> Iterator[bytes]:
    """What a keeper says, until its end. Raises KeeperLost when it has said nothing for too long."""
    waits = select.poll()
    waits.register(reader, select.POLLIN)
    rest = b""
    while waits.poll(protocol.ANSWER * 1000):
        if not (data := os.read(reader, 1 << 16)):
            return
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
    raise KeeperLost(
        f"the machine's keeper has said nothing for {protocol.ANSWER:g} seconds",
        hint="something has stopped it from outside, or the host has no time for it",
    )


def wait(reader: int, say: Callable[[str], object] | None = None) -> dict[str, Any]:
    """Waits until the machine runs, and closes the descriptor. Raises KeeperLost where the keeper stands still."""
    try:
        for line in _lines(reader):
            said = json.loads(line)
            if "say" in said:
                if say is not None:
                    say(said["say"])
            elif "failed" in said:
                raise protocol.error_from_json(said["failed"])
            elif "alive" not in said:
                return said  # type: ignore[no-any-return]
    finally:
        os.close(reader)
    raise KeeperLost(
        "the machine's keeper ended before the machine ran",
        hint="something ended it from outside; when the host is short of memory, its kernel does",
    )
