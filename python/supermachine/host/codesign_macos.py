"""The worker's signature on macOS: only an executable that is signed with the hypervisor entitlement may make a VM.

A wheel that was built on a Mac brings its worker signed. Any other worker is signed at its first use: a copy in the
cache directory, ad hoc, once for each version of the file. All virtual machines run that one copy, since the system
checks the pages of each new executable once, which would be felt at every start.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

from ..errors import InstallationError

ENTITLEMENT = "com.apple.security.hypervisor"
_CODESIGN = "/usr/bin/codesign"
#: Mach-O, 64 bits, little-endian (mach-o/loader.h): header, and the command that tells where the signature is.
_MAGIC = 0xFEEDFACF
_HEADER = struct.Struct("<IiiIIIII")
_COMMAND = struct.Struct("<II")
_CODE_SIGNATURE = 0x1D
_SIGNATURE = struct.Struct("<II")
#: What is believed of the sizes that a file tells.
_MAX_COMMANDS = 1 << 20
_MAX_SIGNATURE = 16 << 20


def is_entitled(path: str | os.PathLike[str]) -> bool:
    """Whether an executable's signature holds the entitlement; whether it is valid is the system's to say."""
    with open(path, "rb") as file:  # noqa: PTH123 - this is on the way of every start
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size:
            return False
        magic, _, _, _, count, size, _, _ = _HEADER.unpack(head)
        if magic != _MAGIC or size > _MAX_COMMANDS:
            return False
        commands = file.read(size)
        at = 0
        for _ in range(count):
            if at + _COMMAND.size > len(commands):
                return False
            command, length = _COMMAND.unpack_from(commands, at)
            if command == _CODE_SIGNATURE and at + _COMMAND.size + _SIGNATURE.size <= len(commands):
                offset, length = _SIGNATURE.unpack_from(commands, at + _COMMAND.size)
                file.seek(offset)
                return ENTITLEMENT.encode() in file.read(min(length, _MAX_SIGNATURE))
            if length < _COMMAND.size:
                return False
            at += length
    return False


def entitled(worker: str, entitlements: str) -> str:
    """The worker itself when it is entitled, else the path of its signed copy, which is made when there is none yet."""
    if is_entitled(worker):
        return worker
    from ..cache.store import Cache

    stat = os.stat(worker)  # noqa: PTH116 - as above
    version = f"{stat.st_size:x}-{stat.st_mtime_ns:x}"
    cache = Cache()
    cache.check()
    target = cache.directory / "worker" / version / os.path.basename(worker)  # noqa: PTH119 - as above
    if not target.is_file():
        _sign(Path(worker), Path(entitlements), target)
    return str(target)


def _sign(worker: Path, entitlements: Path, target: Path) -> None:
    """Puts a signed copy at `target`, whole or not at all; one that another process has put there stays."""
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as place:
            copy = Path(place) / worker.name
            shutil.copyfile(worker, copy)
            copy.chmod(0o755)
            command = [_CODESIGN, "--sign", "-", "--force", "--entitlements", str(entitlements), str(copy)]
            signed = subprocess.run(command, capture_output=True, text=True, check=False)
            if signed.returncode != 0:
                raise InstallationError(
                    f"the worker {worker} cannot be signed with the hypervisor entitlement",
                    cause=signed.stderr.strip() or f"codesign exited with {signed.returncode}",
                    hint=f"try it by hand: {' '.join(command[:-1])} COPY",
                )
            try:
                os.link(copy, target)
            except FileExistsError:
                return
    except InstallationError:
        raise
    except OSError as error:
        raise InstallationError(f"the worker's signed copy {target} cannot be made", cause=str(error)) from error
