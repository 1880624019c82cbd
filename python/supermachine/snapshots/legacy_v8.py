"""Snapshots of version 8, the format in the field: of arm64 guests, and silent about image, engine and agent.

What such a file does not say must be said by who restores it. What it does say of ports, its listeners, is published
again: each as ``"PORT/vsock"``, for it is the guest's vsock port that connections are handed to.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import ConfigurationError, EngineUnavailable, HardwareRequired, NotSupported
from ..host import engines
from ..host.engines import Engine

if TYPE_CHECKING:
    from pathlib import Path

    from .._core import _SnapshotV8
    from ..network.ports import Wanted

ARCHITECTURE = "aarch64"
#: Its name in the platform of an image.
PLATFORM_ARCHITECTURE = "arm64"
#: Listeners that are bound again at most: who wrote the file may be anybody.
_MAX_LISTENERS = 256
_STREAM = 1
#: Address families of listeners, as Linux and macOS number them, to where the host listens for them. Sockets of the
#: guest's vsock are offered on the loopback of IPv4.
_LOOPBACKS = {2: "127.0.0.1", 10: "::1", 30: "::1", 40: "127.0.0.1"}


def check_writable(engine: Engine, *, diff: bool) -> None:
    """Raises NotSupported for what the format cannot hold."""
    if engine.architecture != ARCHITECTURE:
        raise NotSupported(
            f"version 8 is for arm64 guests, and the {engine.name} engine's are {engine.architecture} here",
            hint="take one of version 9, or use an engine with arm64 guests: engine='soft' runs everywhere",
        )
    if diff:
        raise NotSupported("version 8 has no diffs", hint="take a whole snapshot, or one of version 9")


def choose(name: str, require_hardware: bool | None) -> Engine:
    """The engine to restore one on: the one that is named, else the first usable one with arm64 guests."""
    if name != "auto":
        engine = engines.choose(name, require_hardware)
        if engine.architecture != ARCHITECTURE:
            raise NotSupported(
                f"a snapshot of version 8 is of an arm64 guest, and the {name} engine's are {engine.architecture} here",
                hint="use engine='soft', which runs everywhere",
            )
        return engine
    usable = [e for e in engines.probe() if e.usable and e.architecture == ARCHITECTURE]
    if not engines.hardware_required(require_hardware):
        if not usable:
            raise EngineUnavailable("no engine here has arm64 guests")
        return usable[0]
    for engine in usable:
        if engine.isolation == "hardware":
            return engine
    raise HardwareRequired("hardware isolation is required, and no engine here gives it to an arm64 guest")


def listeners(path: Path, state: _SnapshotV8) -> Wanted:
    """The ports that the guest listened on, each for any free port of the host."""
    found = state["listeners"]
    without = "restore it with ports={}, without its listeners"
    if len(found) > _MAX_LISTENERS:
        raise NotSupported(f"{path} has {len(found)} listeners; at most {_MAX_LISTENERS} are bound again", hint=without)
    wanted: Wanted = {}
    for _, _, port, family, kind in found:
        address = _LOOPBACKS.get(family)
        if address is None or kind != _STREAM:
            raise NotSupported(
                f"{path} has a listener on port {port} with address family {family} and type {kind}, and only stream "
                "sockets of IPv4, IPv6 and vsock can be bound again",
                hint=without,
            )
        wanted[f"{port}/vsock"] = [(address, 0)]
    return wanted


def disks(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Absolute paths of files that were a guest's disks."""
    found = []
    for path in paths:
        try:
            # A pipe would keep the worker waiting.
            if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
                raise ConfigurationError(f"the disk {path} is not a file")
        except OSError as error:
            raise ConfigurationError(f"the disk {path} cannot be used: {error.strerror}") from error
        found.append(os.path.abspath(path))  # noqa: PTH100
    return found
