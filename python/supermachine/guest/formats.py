"""Why a guest's kernel does not execute a file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..errors import CommandNotExecutable, SupermachineError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .._core import Files, Remote, Worker

#: e_machine of elf.h: the values that programs for Linux have, by docker's names.
_MACHINES = {3: "386", 8: "mips", 20: "ppc", 21: "ppc64", 22: "s390x", 40: "arm", 62: "amd64", 183: "arm64"} | {
    243: "riscv64",
    258: "loong64",
}
#: Bytes of an ELF header that are needed.
_HEADER = 20
#: Seconds that the guest is asked for at most, for an explanation alone.
_PATIENCE = 10.0
_USUAL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def explained(
    error: CommandNotExecutable,
    worker: Worker | Remote,
    args: Sequence[bytes],
    environment: Mapping[bytes, bytes],
    cwd: bytes,
) -> CommandNotExecutable:
    """The error for a file that is no program there: with the architectures of both, where that is the matter."""
    if "Exec format error" not in str(error) or not args:
        return error
    from .._core import Files

    try:
        files = Files.open(worker, _PATIENCE)
        try:
            header, guest = _header(files, args[0], environment, cwd), _read(files, b"/proc/1/exe")
        finally:
            files.close()
    except (OSError, SupermachineError, ValueError):
        return error
    name = args[0].decode("utf-8", "backslashreplace")
    theirs, ours = _architecture(header), _architecture(guest)
    if header is None:
        return error
    if theirs is None:
        return CommandNotExecutable(
            f"{name} is neither a program nor a script with an interpreter: Exec format error",
            hint="a script begins with a line such as #!/bin/sh; or run it with one: sh FILE",
        )
    if ours is None or theirs == ours:
        return error
    return CommandNotExecutable(
        f"{name} is a program for {theirs}, and the guest is {ours}: Exec format error",
        hint=f"take an image for linux/{ours}, or an engine whose guests are {theirs}: --platform linux/{theirs}",
    )


def _header(files: Files, name: bytes, environment: Mapping[bytes, bytes], cwd: bytes) -> bytes | None:
    if b"/" in name:
        return _read(files, os.path.join(cwd or b"/", name))  # noqa: PTH118
    for directory in (environment.get(b"PATH") or _USUAL_PATH.encode()).split(b":"):
        found = _read(files, os.path.join(cwd or b"/", directory or b".", name))  # noqa: PTH118
        if found is not None:
            return found
    return None


def _read(files: Files, path: bytes) -> bytes | None:
    parts: list[bytes] = []
    try:
        files.read(path, 0, _HEADER, parts.append)
    except FileNotFoundError:
        return None
    return b"".join(parts)


def _architecture(header: bytes | None) -> str | None:
    """Docker's name of the architecture that an ELF file is for; ``None`` for other files."""
    if header is None or len(header) < _HEADER or header[:4] != b"\x7fELF":
        return None
    number = int.from_bytes(header[18:20], "little" if header[5] == 1 else "big")
    return _MACHINES.get(number, f"machine {number} of ELF")
