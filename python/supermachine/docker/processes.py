"""A process in a container's guest, in the event loop: its pipes, its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .. import descriptors
from ..errors import CommandNotExecutable, CommandNotFound, HostShortage, SupermachineError, VMExited
from ..guest.processes import DEVNULL, PIPE, TimeoutExpired
from .errors import ApiError, BadRequest
from .pipes import PipeReader, PipeWriter, readable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..guest.processes import Popen
    from ..machine.vm import VM

#: Exit codes of docker for what could not be started, and of a process whose machine has gone.
NOT_EXECUTABLE, NOT_FOUND, KILLED = 126, 127, 137
#: Rows and columns of a terminal until its client says.
USUAL_SIZE = (24, 80)
#: Seconds between two looks at a process whose end nothing tells of.
_LOOK = 0.1


class Process:
    """Made in a thread by `start`, used in the event loop."""

    def __init__(self, popen: Popen, *, tty: bool) -> None:
        self._popen = popen
        self.tty = tty
        self.pid = popen.pid
        self.stdin = PipeWriter(_taken(popen.stdin)) if popen.stdin is not None else None
        self.stdout = PipeReader(_taken(popen.stdout)) if popen.stdout is not None else None
        self.stderr = PipeReader(_taken(popen.stderr)) if popen.stderr is not None else None

    @classmethod
    def start(
        cls,
        vm: VM,
        command: Sequence[str],
        *,
        tty: tuple[int, int] | None = None,
        stdin: bool = False,
        output: bool = True,
        environment: Mapping[str, str] | None = None,
        working_dir: str | None = None,
        user: str | None = None,
    ) -> Process:
        """Blocks until the process runs. Raises what `VM.popen` does."""
        popen = vm.popen(
            list(command),
            stdin=PIPE if stdin else DEVNULL,
            stdout=PIPE if output else DEVNULL,
            stderr=PIPE if output and tty is None else DEVNULL,
            env=environment,
            cwd=working_dir,
            user=user,
            bufsize=0,
            tty=tty,
        )
        try:
            return cls(popen, tty=tty is not None)
        except BaseException:
            # Nobody would have it.
            with contextlib.suppress(SupermachineError, OSError):
                popen.kill()
            raise

    async def wait(self) -> int:
        """Docker's exit code: a signal's number and 128, and 137 when the virtual machine has gone."""
        while True:
            told = await self._told()
            # Whoever asks for the first end in a guest may write down what a clone needs.
            with contextlib.suppress(RuntimeError):  # no thread can be had now
                code = await asyncio.get_running_loop().run_in_executor(None, self._code, 1.0 if told else 0.0)
                if code is not None:
                    return code
            await asyncio.sleep(_LOOK)

    async def _told(self) -> bool:
        """Waits until the process has ended; false when there is no descriptor to be told by."""
        try:
            descriptor = self._popen._exec.done_fd()
        except OSError:
            return False
        try:
            await readable(descriptor)
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return True

    def _code(self, timeout: float) -> int | None:
        """The exit code; ``None`` while it runs."""
        try:
            code = self._popen.wait(timeout)
        except TimeoutExpired:
            return None
        except VMExited as gone:
            # A guest whose init has ended has powered off.
            return 0 if gone.reason in ("guest-power-off", "shutdown") else KILLED
        except HostShortage:
            return None
        except (SupermachineError, OSError, ValueError):
            return KILLED
        return 128 - code if code < 0 else code

    def signal(self, number: int) -> None:
        """Blocks shortly. Without effect after the end."""
        with contextlib.suppress(SupermachineError, OSError):
            self._popen.send_signal(number)

    def resize(self, rows: int, columns: int) -> None:
        if self.tty:
            with contextlib.suppress(SupermachineError, OSError):
                self._popen.resize(rows, columns)

    def close(self) -> None:
        """Closes what is left of the pipes."""
        for pipe in (self.stdin, self.stdout, self.stderr):
            if pipe is not None:
                pipe.close()


def _taken(stream: object) -> int:
    """The descriptor of a file object that is closed for it."""
    descriptor = descriptors.raised(os.dup(stream.fileno()))  # type: ignore[attr-defined]
    stream.close()  # type: ignore[attr-defined]
    return descriptor


def not_started(error: Exception, command: Sequence[str]) -> tuple[int, ApiError]:
    """The exit code, and docker's words, for a command that could not be started.

    The command line of docker tells the exit codes apart by these words.
    """
    what = command[0] if command else ""
    prefix = "failed to create task for container: failed to create shim task: OCI runtime create failed"
    if isinstance(error, CommandNotFound):
        return NOT_FOUND, BadRequest(f'{prefix}: exec: "{what}": executable file not found in $PATH: {error}')
    if isinstance(error, CommandNotExecutable | PermissionError):
        return NOT_EXECUTABLE, BadRequest(f'{prefix}: exec: "{what}": permission denied: {error}')
    return NOT_FOUND, BadRequest(f"{prefix}: {error}")


async def drain(pipe: PipeReader) -> None:
    """Reads until the end what nobody wants."""
    while await pipe.read():
        pass
