"""Starts keepers: processes of their own, in a session of their own, with nobody as their parent."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from .. import descriptors
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
    reader, writer = descriptors.pipe()
    descriptors.reserve()
    try:
        command = [sys.executable, "-I", "-c", _PROGRAM, str(writer), f"supermachine-keeper {spec.name or ''}".strip()]
        # Its first process forks and ends, so that the keeper is nobody's child and leads no session.
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
        with contextlib.suppress(BrokenPipeError):
            process.communicate(told)
    except BaseException:
        os.close(reader)
        raise
    finally:
        if writer >= 0:
            os.close(writer)
    return reader


def wait(reader: int, say: Callable[[str], object] | None = None) -> dict[str, Any]:
    """Waits until the machine runs, and closes the descriptor."""
    with open(reader, "rb") as stream:
        for line in stream:
            said = json.loads(line)
            if "say" in said:
                if say is not None:
                    say(said["say"])
            elif "failed" in said:
                raise protocol.error_from_json(said["failed"])
            else:
                return said  # type: ignore[no-any-return]
    raise KeeperLost(
        "the machine's keeper ended before the machine ran",
        hint="something ended it from outside; when the host is short of memory, its kernel does",
    )
