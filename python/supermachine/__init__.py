"""Run any OCI image as a microVM.

    import supermachine

    print(supermachine.run("python:3.12-slim", ["python", "-c", "print(1)"], text=True).stdout)

    with supermachine.VM("debian:bookworm") as vm:
        vm.run(["apt-get", "--version"], check=True)
        vm.path("/tmp/x").write_text("hello")

Names load on first use, so that importing this package costs next to nothing.
"""

from __future__ import annotations

# As `typing` has it, which takes longer to load than all that `supermachine run` needs of this package.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from . import aio, errors, images, snapshots
    from ._core import VERSION as __version__  # noqa: N811
    from .errors import ConfinementRequired, HardwareRequired, SupermachineError, VMExited, VMTimeout
    from .guest.paths import GuestPath
    from .guest.processes import DEVNULL, PIPE, STDOUT, CalledProcessError, CompletedProcess, Popen, TimeoutExpired
    from .machine.image import Image, bake
    from .machine.pool import Pool
    from .machine.snapshot import Snapshot, pull
    from .machine.vm import VM, run
    from .named.client import Machine, attach, machines, start
    from .network.denials import NetworkDenied
    from .network.policy import Network
    from .network.secrets import Secret
    from .storage.shares import Share
    from .storage.stale import StaleFile
    from .storage.volumes import Volume

_HOMES = {
    "CalledProcessError": "guest.processes",
    "CompletedProcess": "guest.processes",
    "DEVNULL": "guest.processes",
    "GuestPath": "guest.paths",
    "ConfinementRequired": "errors",
    "HardwareRequired": "errors",
    "Image": "machine.image",
    "Machine": "named.client",
    "Network": "network.policy",
    "NetworkDenied": "network.denials",
    "Secret": "network.secrets",
    "PIPE": "guest.processes",
    "Pool": "machine.pool",
    "Popen": "guest.processes",
    "STDOUT": "guest.processes",
    "Share": "storage.shares",
    "Snapshot": "machine.snapshot",
    "StaleFile": "storage.stale",
    "SupermachineError": "errors",
    "TimeoutExpired": "guest.processes",
    "attach": "named.client",
    "VM": "machine.vm",
    "VMExited": "errors",
    "VMTimeout": "errors",
    "Volume": "storage.volumes",
    "bake": "machine.image",
    "machines": "named.client",
    "pull": "machine.snapshot",
    "run": "machine.vm",
    "start": "named.client",
}
_MODULES = ("aio", "errors", "images", "snapshots")

__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "VM",
    "CalledProcessError",
    "CompletedProcess",
    "ConfinementRequired",
    "GuestPath",
    "HardwareRequired",
    "Image",
    "Machine",
    "Network",
    "NetworkDenied",
    "Pool",
    "Popen",
    "Secret",
    "Share",
    "Snapshot",
    "StaleFile",
    "SupermachineError",
    "TimeoutExpired",
    "VMExited",
    "VMTimeout",
    "Volume",
    "__version__",
    "aio",
    "attach",
    "bake",
    "errors",
    "images",
    "machines",
    "pull",
    "run",
    "snapshots",
    "start",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES and name not in _HOMES and name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: Any
    if name == "__version__":
        value = import_module("._core", __name__).VERSION
    elif name in _MODULES:
        value = import_module(f".{name}", __name__)
    else:
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
