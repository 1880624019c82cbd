"""A session from its start to its end: alone, or around a command that is given its socket."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from .. import descriptors
from ..errors import CommandNotExecutable, CommandNotFound, ConfigurationError
from ..host import engines
from .server import Server
from .session import Session

_PREFIX = "supermachine-docker-"
_LOCK = "lock"
#: Bytes of a socket's path, the end included (unix(7)); macOS has 104.
_MAX_PATH = 104
#: Signals that are the command's to handle.
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
#: Variables by which a client would go elsewhere than to DOCKER_HOST.
_IN_THE_WAY = ("DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_API_VERSION")


@contextlib.asynccontextmanager
async def served(
    socket: Path | None = None,
    *,
    engine: str = "auto",
    policy: str | None = None,
    images: Mapping[str, str] | None = None,
) -> AsyncIterator[Path]:
    """A session and its socket, which is in a private directory unless `socket` names another place.

    At the end of the block everything in it ends.
    """
    _remove_left()
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
    # Another session removes a directory whose lock nobody holds: its name appears when it is held.
    unseen = directory / f"{_LOCK}-held"
    lock = descriptors.open_file(unseen, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        unseen.rename(directory / _LOCK)
        place = socket.absolute() if socket is not None else directory / "docker.sock"
        if len(os.fsencode(place)) >= _MAX_PATH:
            raise ConfigurationError(
                f"the socket's path {place} is longer than {_MAX_PATH - 1} bytes", hint="TMPDIR sets a shorter one"
            )
        if socket is not None:
            _vacate(place)
        session = Session(directory, engine=engine, policy=policy, images=images)
        engines.warn_once(session.engine)
        server = Server(session)
        try:
            await server.listen(place)
            yield place
        finally:
            await server.close()
            await session.close()
            if socket is not None:
                place.unlink(missing_ok=True)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def _vacate(place: Path) -> None:
    """Removes a socket on which nobody listens. Raises ConfigurationError for anything else."""
    try:
        if not stat.S_ISSOCK(place.lstat().st_mode):
            raise ConfigurationError(f"{place} is there, and is no socket")
    except FileNotFoundError:
        return
    with descriptors.local_socket() as probe:
        try:
            probe.connect(str(place))
        except ConnectionRefusedError:
            place.unlink()
            return
        except OSError as error:
            raise ConfigurationError(f"the socket {place} cannot be used", cause=str(error)) from error
    raise ConfigurationError(f"somebody serves the socket {place} already", hint="choose another by --socket")


def _remove_left() -> None:
    """Removes the directories of sessions that were killed."""
    for place in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if place.lstat().st_uid != os.getuid() or place.is_symlink():
                continue
            lock = descriptors.open_file(place / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(place, ignore_errors=True)
            finally:
                os.close(lock)


async def run(
    command: Sequence[str], *, engine: str = "auto", policy: str | None = None, images: Mapping[str, str] | None = None
) -> int:
    """Runs a command with DOCKER_HOST at a session's socket; gives its exit status, 128 and its number for a signal.

    Raises CommandNotFound and CommandNotExecutable.
    """
    async with served(engine=engine, policy=policy, images=images) as socket:
        environment = {name: value for name, value in os.environ.items() if name not in _IN_THE_WAY}
        environment["DOCKER_HOST"] = f"unix://{socket}"
        try:
            process = await asyncio.create_subprocess_exec(*command, env=environment)
        except FileNotFoundError as error:
            raise CommandNotFound(f"{command[0]}: command not found", cause=error.strerror) from None
        except PermissionError as error:
            raise CommandNotExecutable(f"{command[0]} cannot be executed", cause=error.strerror) from None
        loop = asyncio.get_running_loop()

        def pass_on(number: int) -> None:
            # A terminal has sent these to the command as well.
            if number in (signal.SIGINT, signal.SIGQUIT) and _is_foreground():
                return
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

        for number in _PASSED_ON:
            if signal.getsignal(number) != signal.SIG_IGN:
                loop.add_signal_handler(number, pass_on, number)
        try:
            code = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
            for number in _PASSED_ON:
                loop.remove_signal_handler(number)
    return 128 - code if code < 0 else code


def _is_foreground() -> bool:
    """Whether this process's group is the one that its terminal sends signals to."""
    try:
        return sys.stdin is not None and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):
        return False


async def serve(
    socket: Path | None, *, engine: str = "auto", policy: str | None = None, images: Mapping[str, str] | None = None
) -> None:
    """Serves until SIGINT, SIGTERM or SIGHUP; prints where, as a shell sets it."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    async with served(socket, engine=engine, policy=policy, images=images) as place:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, over.set)
        # Whoever named the socket can do without being told.
        with contextlib.suppress(OSError):
            print(f"export DOCKER_HOST=unix://{place}", flush=True)
        await over.wait()
