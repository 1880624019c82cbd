"""The same names as coroutines: ``async with aio.VM(image) as vm: await vm.run([...])``.

Each call waits in a thread of its own, not in the event loop's pool, so any number may wait at once. Cancelling a
`run` or a `communicate` kills the process in the guest; cancelling a start kills the virtual machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from subprocess import CompletedProcess
from typing import IO, TYPE_CHECKING, Any, Literal

from ..guest import paths as _paths
from ..guest import processes as _processes
from ..guest.processes import DEVNULL, PIPE, STDOUT, CalledProcessError, TimeoutExpired
from ..machine import image as _image
from ..machine import pool as _pool
from ..machine import vm as _vm
from .calls import call as _call
from .named import Machine, attach, machines, start

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Unpack

    from ..guest.processes import Args
    from ..images import ResolvedImage
    from ..machine.snapshot import Snapshot
    from ..machine.timings import Timings
    from ..network.denials import GuestNetwork
    from ..settings.machine import MachineOptions
    from ..snapshots.baking import Warmup

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


def _kill_all(vms: Iterable[_vm.VM]) -> None:
    for vm in vms:
        vm.kill()


class Popen:
    """A running process; see :class:`supermachine.Popen`. Made by ``await vm.popen(...)``."""

    def __init__(self, process: _processes.Popen) -> None:
        self._process = process
        self.args = process.args
        self.pid = process.pid

    @property
    def stdin(self) -> IO[Any] | None:
        """The blocking file; in a loop use `communicate`, or ``asyncio``'s ``connect_write_pipe``."""
        return self._process.stdin

    @property
    def stdout(self) -> IO[Any] | None:
        """The blocking file; in a loop use `communicate`, or ``asyncio``'s ``connect_read_pipe``."""
        return self._process.stdout

    @property
    def stderr(self) -> IO[Any] | None:
        return self._process.stderr

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    def poll(self) -> int | None:
        return self._process.poll()

    async def wait(self, timeout: float | None = None) -> int:
        return await _call(self._process.wait, timeout)

    async def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:  # noqa: A002
        return await _call(self._process.communicate, input, timeout, cancel=self._process.kill)

    def send_signal(self, signal: int) -> None:
        self._process.send_signal(signal)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def resize(self, rows: int, columns: int) -> None:
        self._process.resize(rows, columns)

    async def __aenter__(self) -> Popen:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await _call(self._process.__exit__, *exc, cancel=self._process.kill)

    def __repr__(self) -> str:
        return repr(self._process)


class GuestPath:
    """A path in the guest; what asks the guest is a coroutine. See :class:`supermachine.GuestPath`."""

    __slots__ = ("_path",)

    def __init__(self, path: _paths.GuestPath) -> None:
        self._path = path

    def __truediv__(self, other: str | os.PathLike[str]) -> GuestPath:
        return GuestPath(self._path / other)

    def __str__(self) -> str:
        return str(self._path)

    def __fspath__(self) -> str:
        return str(self._path)

    def __repr__(self) -> str:
        return repr(self._path)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GuestPath) and self._path == other._path

    def __hash__(self) -> int:
        return hash(self._path)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._path, name)
        if name in _ASKING:
            return _asking(value)
        if isinstance(value, _paths.GuestPath):
            return GuestPath(value)
        if callable(value):

            def pure(*args: Any, **options: Any) -> Any:
                return _wrap(value(*args, **options))

            return pure
        return _wrap(value)

    async def iterdir(self) -> AsyncIterator[GuestPath]:
        for path, _status in await _call(self._path.entries):
            yield GuestPath(path)

    async def glob(self, pattern: str) -> AsyncIterator[GuestPath]:
        for path in await _call(lambda: list(self._path.glob(pattern))):
            yield GuestPath(path)

    async def rglob(self, pattern: str) -> AsyncIterator[GuestPath]:
        async for path in self.glob(f"**/{pattern}"):
            yield path

    async def walk(self) -> AsyncIterator[tuple[GuestPath, list[str], list[str]]]:
        for path, directories, files in await _call(lambda: list(self._path.walk())):
            yield GuestPath(path), directories, files


#: Methods of a path that ask the guest.
_ASKING = frozenset(
    (
        *("chmod", "chown", "entries", "exists", "hardlink_to", "is_block_device", "is_char_device"),
        *("is_dir", "is_fifo", "is_file", "is_socket", "is_symlink", "lstat", "mkdir", "open", "read_bytes"),
        *("read_text", "readlink", "rename", "replace", "resolve", "rmdir", "rmtree", "stat", "symlink_to", "touch"),
        *("unlink", "utime", "write_bytes", "write_text"),
    )
)


def _wrap(value: Any) -> Any:
    if isinstance(value, _paths.GuestPath):
        return GuestPath(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_wrap(item) for item in value)
    return value


def _asking(method: Callable[..., Any]) -> Callable[..., Any]:
    async def ask(*args: Any, **options: Any) -> Any:
        return _wrap(await _call(method, *args, **options))

    ask.__name__ = method.__name__
    ask.__doc__ = method.__doc__
    return ask


class VM:
    """A microVM; see :class:`supermachine.VM`, whose arguments it takes."""

    def __init__(self, image: str | os.PathLike[str], **options: Unpack[MachineOptions]) -> None:
        self._vm = _vm.VM(image, **options)

    @classmethod
    def _of(cls, vm: _vm.VM) -> VM:
        made = cls.__new__(cls)
        made._vm = vm
        return made

    @property
    def engine(self) -> str:
        return self._vm.engine

    @property
    def isolation(self) -> str:
        return self._vm.isolation

    @property
    def image(self) -> ResolvedImage:
        """The image, once it has been looked up by `start`; before, this blocks."""
        return self._vm.image

    @property
    def ports(self) -> dict[str, list[tuple[str, int]]]:
        return self._vm.ports

    @property
    def network(self) -> GuestNetwork:
        """Its network; what waits there blocks."""
        return self._vm.network

    @property
    def timings(self) -> Timings:
        return self._vm.timings

    @property
    def running(self) -> bool:
        return self._vm.running

    @property
    def pid(self) -> int | None:
        return self._vm.pid

    async def start(self) -> VM:
        await _call(self._vm.start, cancel=self._vm.kill, abandon=_vm.VM.kill)
        return self

    async def stop(self, timeout: float = _vm.DEFAULT_STOP_TIMEOUT) -> None:
        await _call(self._vm.stop, timeout)

    async def kill(self) -> None:
        await _call(self._vm.kill)

    async def wait(self, timeout: float | None = None) -> str:
        return await _call(self._vm.wait, timeout)

    async def __aenter__(self) -> VM:
        return await self.start()

    async def __aexit__(self, *_exc: object) -> None:
        await self.kill()

    def __repr__(self) -> str:
        return repr(self._vm)

    def command(self, args: Sequence[str] | str | None = None, entrypoint: Sequence[str] | None = None) -> list[str]:
        return self._vm.command(args, entrypoint)

    async def run(
        self,
        args: Args,
        *,
        input: Any = None,  # noqa: A002
        capture_output: bool | None = None,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        timeout: float | None = None,
        check: bool = False,
        text: bool | None = None,
        universal_newlines: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        shell: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: _processes.StrOrBytesPath | None = None,
        user: str | int | None = None,
    ) -> CompletedProcess[Any]:
        stop = threading.Event()
        return await _call(
            lambda: _processes.run(
                self._vm._context(),
                args,
                input=input,
                capture_output=capture_output,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                timeout=timeout,
                check=check,
                text=text,
                universal_newlines=universal_newlines,
                encoding=encoding,
                errors=errors,
                shell=shell,
                env=env,
                cwd=cwd,
                user=user,
                stop=stop,
            ),
            cancel=stop.set,
        )

    async def popen(self, args: Args, **options: Any) -> Popen:
        return Popen(await _call(self._vm.popen, args, **options))

    async def snapshot(
        self,
        path: str | os.PathLike[str],
        *,
        diff: bool = False,
        format: Literal[8, 9] = 9,  # noqa: A002
        timeout: float = _vm.SNAPSHOT_TIMEOUT,
    ) -> Snapshot:
        return await _call(self._vm.snapshot, path, diff=diff, format=format, timeout=timeout)

    async def fork(
        self, n: int = 1, *, volumes: Literal["refuse", "copy"] = "refuse", timeout: float = _vm.SNAPSHOT_TIMEOUT
    ) -> list[VM]:
        forks = await _call(self._vm.fork, n, volumes=volumes, timeout=timeout, abandon=_kill_all)
        return [VM._of(vm) for vm in forks]

    @classmethod
    async def restore(cls, snapshot: str | os.PathLike[str], **options: Unpack[_vm.RestoreOptions]) -> VM:
        """See :meth:`supermachine.VM.restore`, whose keywords it takes."""
        return cls._of(await _call(_vm.VM.restore, snapshot, abandon=_vm.VM.kill, **options))

    def path(self, *parts: str | os.PathLike[str]) -> GuestPath:
        return GuestPath(self._vm.path(*parts))

    async def copy_in(
        self,
        source: str | os.PathLike[str],
        target: str | os.PathLike[str],
        *,
        max_bytes: int | None = None,
        timeout: float | None = None,
    ) -> GuestPath:
        return GuestPath(await _call(self._vm.copy_in, source, target, max_bytes=max_bytes, timeout=timeout))

    async def copy_out(
        self,
        source: str | os.PathLike[str],
        target: str | os.PathLike[str],
        *,
        max_bytes: int | None = None,
        timeout: float | None = None,
    ) -> str:
        return await _call(self._vm.copy_out, source, target, max_bytes=max_bytes, timeout=timeout)


class Pool:
    """Machines that are ready before they are asked for; see :class:`supermachine.Pool`, whose arguments it takes."""

    def __init__(
        self,
        image: str | os.PathLike[str],
        min: int = 1,  # noqa: A002
        max: int = 4,  # noqa: A002
        idle_timeout: float | None = None,
        **machine: Unpack[MachineOptions],
    ) -> None:
        self._pool = _pool.Pool(image, min, max, idle_timeout, **machine)

    @property
    def ready(self) -> int:
        return self._pool.ready

    @property
    def in_use(self) -> int:
        return self._pool.in_use

    @contextlib.asynccontextmanager
    async def acquire(self, timeout: float | None = None) -> AsyncIterator[VM]:
        pool, given_up = self._pool, threading.Event()

        def give_up() -> None:
            given_up.set()
            pool._wake()

        vm = await _call(pool._take, timeout, given_up, cancel=give_up, abandon=pool._end)
        try:
            yield VM._of(vm)
        finally:
            await asyncio.shield(_call(pool._end, vm))

    async def close(self) -> None:
        await _call(self._pool.close)

    async def __aenter__(self) -> Pool:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await asyncio.shield(self.close())

    def __repr__(self) -> str:
        return repr(self._pool)


class Image:
    """An image and how its machines are started; see :class:`supermachine.Image`."""

    def __init__(self, reference: str | os.PathLike[str], **machine: Unpack[MachineOptions]) -> None:
        self._image = _image.Image(reference, **machine)
        self.reference = reference

    def vm(self, **machine: Unpack[MachineOptions]) -> VM:
        return VM._of(self._image.vm(**machine))

    async def bake(self, warmup: Warmup | None = None, /, **machine: Unpack[MachineOptions]) -> Path:
        return await _call(self._image.bake, warmup, **machine)

    def __repr__(self) -> str:
        return repr(self._image)


async def bake(image: str | os.PathLike[str], **machine: Unpack[MachineOptions]) -> Path:
    """See :func:`supermachine.bake`. A `warmup` is given the machine of :mod:`supermachine`, in a thread."""
    return await _call(_image.bake, image, **machine)


async def run(
    image: str | os.PathLike[str],
    args: Sequence[str] | str | None = None,
    *,
    entrypoint: Sequence[str] | None = None,
    input: Any = None,  # noqa: A002
    capture_output: bool | None = None,
    stdin: Any = None,
    stdout: Any = None,
    stderr: Any = None,
    timeout: float | None = None,
    check: bool = False,
    text: bool | None = None,
    universal_newlines: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    **machine: Unpack[MachineOptions],
) -> CompletedProcess[Any]:
    """See :func:`supermachine.run`."""
    async with VM(image, **machine) as vm:
        return await vm.run(
            vm.command(args, entrypoint),
            input=input,
            capture_output=capture_output,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            timeout=timeout,
            check=check,
            text=text,
            universal_newlines=universal_newlines,
            encoding=encoding,
            errors=errors,
        )
