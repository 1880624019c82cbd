"""The same names as coroutines: ``async with aio.VM(image) as vm: await vm.run([...])``.

Each call waits in a thread of its own, not in the event loop's pool, so any number may wait at once. Cancelling a
`run` or a `communicate` kills the process in the guest; cancelling a start kills the virtual machine.
"""

from __future__ import annotations

from subprocess import CompletedProcess

from ..guest.processes import DEVNULL, PIPE, STDOUT, CalledProcessError, TimeoutExpired
from .image import Image, bake
from .named import Machine, attach, machines, start
from .paths import GuestPath
from .pool import Pool
from .processes import Popen
from .vm import VM, run

__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "VM",
    "CalledProcessError",
    "CompletedProcess",
    "GuestPath",
    "Image",
    "Machine",
    "Pool",
    "Popen",
    "TimeoutExpired",
    "attach",
    "bake",
    "machines",
    "run",
    "start",
]
