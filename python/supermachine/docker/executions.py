"""``docker exec``: further processes in a container that runs."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import SupermachineError
from . import names
from .errors import BadRequest, Conflict, NotFound
from .logs import STDERR, STDOUT, frame
from .processes import USUAL_SIZE, Process, drain, not_started
from .specification import environment as environment_of
from .specification import text as text_of
from .specification import texts as texts_of

if TYPE_CHECKING:
    from .container import Container
    from .http import Duplex
    from .pipes import PipeReader
    from .session import Session

#: Executions that are remembered, those that have ended included, and those that run at once in a container.
MAX_EXECUTIONS = 1024
_MAX_RUNNING = 256
#: Seconds that the last output has to arrive after the end.
_DRAIN_GRACE = 2.0


@dataclass
class Execution:
    id: str
    container: Container
    command: list[str]
    environment: dict[str, str]
    working_dir: str | None
    user: str | None
    tty: bool
    stdin: bool
    stdout: bool
    stderr: bool
    privileged: bool
    size: tuple[int, int] = USUAL_SIZE
    process: Process | None = None
    started: bool = False
    exit_code: int | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def running(self) -> bool:
        return self.started and self.exit_code is None

    def document(self) -> dict[str, Any]:
        return {
            "ID": self.id,
            "Running": self.running,
            "ExitCode": self.exit_code,
            "ProcessConfig": {
                "tty": self.tty,
                "entrypoint": self.command[0],
                "arguments": self.command[1:],
                "privileged": self.privileged,
                "user": self.user or "",
            },
            "OpenStdin": self.stdin,
            "OpenStderr": self.stderr,
            "OpenStdout": self.stdout,
            "CanRemove": False,
            "ContainerID": self.container.id,
            "DetachKeys": "",
            "Pid": self.process.pid if self.process is not None and self.running else 0,
        }


class Executions:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._executions: dict[str, Execution] = {}

    def get(self, wanted: str) -> Execution:
        try:
            return names.find("exec instance", wanted, self._executions, lambda _: ())
        except NotFound:
            raise NotFound(f"No such exec instance: {wanted[:80]}") from None

    def of(self, container: Container) -> list[str]:
        """Ids of those that run in a container."""
        return [e.id for e in self._executions.values() if e.container is container and e.running]

    def create(self, container: Container, body: dict[str, Any]) -> Execution:
        container.there()
        command = texts_of(body, "Cmd") or ()
        if not command:
            raise BadRequest("No exec command specified")
        while len(self._executions) >= MAX_EXECUTIONS:
            ended = next((e.id for e in self._executions.values() if not e.running), None)
            if ended is None:
                raise Conflict(f"{MAX_EXECUTIONS} commands are being run, which is the most there can be")
            del self._executions[ended]
        size = body.get("ConsoleSize")
        execution = Execution(
            names.new_id(),
            container,
            list(command),
            environment_of(texts_of(body, "Env") or ()),
            text_of(body, "WorkingDir") or None,
            text_of(body, "User") or None,
            bool(body.get("Tty")),
            bool(body.get("AttachStdin")),
            bool(body.get("AttachStdout")),
            bool(body.get("AttachStderr")),
            bool(body.get("Privileged")),
            size=terminal_size(size) or USUAL_SIZE,
        )
        self._executions[execution.id] = execution
        container.announce(f"exec_create: {' '.join(command)[:200]}", execID=execution.id)
        return execution

    async def start(self, execution: Execution, *, attached: bool) -> Process:
        """Raises Conflict, and what a command raises that cannot be started."""
        if execution.started:
            raise Conflict(f"Error: Exec command {execution.id} is already running")
        container = execution.container
        vm = container.there()
        if len(self.of(container)) >= _MAX_RUNNING:
            raise Conflict(f"{_MAX_RUNNING} commands run in container {container.id}, which is the most there can be")
        execution.started = True
        environment = dict(execution.environment)
        if execution.tty:
            environment.setdefault("TERM", "xterm")

        def begin() -> Process:
            return Process.start(
                vm,
                execution.command,
                tty=execution.size if execution.tty else None,
                stdin=execution.stdin and attached,
                output=attached,
                environment=environment,
                working_dir=execution.working_dir,
                user=execution.user,
            )

        try:
            process = await self._session.call(begin)
        except (SupermachineError, OSError, ValueError) as error:
            execution.exit_code, told = not_started(error, execution.command)
            raise told from error
        execution.process = process
        container.announce(f"exec_start: {' '.join(execution.command)[:200]}", execID=execution.id)
        self._session.background(self._end(execution, process))
        return process

    async def _end(self, execution: Execution, process: Process) -> None:
        code = await process.wait()
        execution.exit_code = code
        execution.ended.set()
        execution.container.announce("exec_die", execID=execution.id, exitCode=str(code))

    async def talk(self, execution: Execution, process: Process, duplex: Duplex) -> None:
        """Joins the command and its client until the command ends. A client that goes leaves it running."""
        lock = asyncio.Lock()
        gone = False

        async def send(pipe: PipeReader, stream: int) -> None:
            nonlocal gone
            while data := await pipe.read():
                if gone:
                    continue
                try:
                    async with lock:
                        await duplex.write(data if execution.tty else frame(stream, data))
                except Exception:  # whatever it is, the command must not wait for it
                    gone = True

        async def receive() -> None:
            assert process.stdin is not None
            while data := await duplex.read():
                if not await process.stdin.write(data):
                    return
            process.stdin.close()

        senders = []
        for pipe, stream, wanted in (
            (process.stdout, STDOUT, execution.stdout),
            (process.stderr, STDERR, execution.stderr),
        ):
            if pipe is not None:
                senders.append(asyncio.create_task(send(pipe, stream) if wanted else drain(pipe)))
        receiver = asyncio.create_task(receive()) if process.stdin is not None else None
        try:
            await process.wait()
            if senders:
                await asyncio.wait(senders, timeout=_DRAIN_GRACE)
        finally:
            for task in (*senders, *([receiver] if receiver is not None else [])):
                task.cancel()
            process.close()
        # What inspects it next is to find the end.
        await execution.ended.wait()

    async def resize(self, execution: Execution, rows: int, columns: int) -> None:
        execution.size = (rows, columns)
        if execution.process is not None and execution.running:
            with contextlib.suppress(SupermachineError, OSError):
                await self._session.call(execution.process.resize, rows, columns)


def terminal_size(said: object) -> tuple[int, int] | None:
    """``[rows, columns]``"""
    if isinstance(said, list) and len(said) == 2 and all(isinstance(n, int) and 0 < n < 65536 for n in said):
        return said[0], said[1]
    return None
