"""A microVM, as coroutines."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from subprocess import CompletedProcess
from typing import TYPE_CHECKING, Any, Literal

from ..guest import processes as _processes
from ..machine import vm as _vm
from .calls import call
from .paths import GuestPath
from .processes import Popen

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..guest.processes import Args
    from ..images import ResolvedImage
    from ..machine.snapshot import Snapshot
    from ..machine.timings import Timings
    from ..network.denials import GuestNetwork
    from ..settings.machine import MachineOptions
    from ..storage.stale import GuestShares


def _kill_all(vms: Iterable[_vm.VM]) -> None:
    for vm in vms:
        vm.kill()


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
    def shares(self) -> GuestShares:
        """Its shares; what waits there blocks."""
        return self._vm.shares

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
        await call(self._vm.start, cancel=self._vm.kill, abandon=_vm.VM.kill)
        return self

    async def stop(self, timeout: float = _vm.DEFAULT_STOP_TIMEOUT) -> None:
        await call(self._vm.stop, timeout)

    async def kill(self) -> None:
        await call(self._vm.kill)

    async def wait(self, timeout: float | None = None) -> str:
        return await call(self._vm.wait, timeout)

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
        return await call(
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
        return Popen(await call(self._vm.popen, args, **options))

    async def snapshot(
        self,
        path: str | os.PathLike[str],
        *,
        diff: bool = False,
        format: Literal[8, 9] = 9,  # noqa: A002
        timeout: float = _vm.SNAPSHOT_TIMEOUT,
    ) -> Snapshot:
        return await call(self._vm.snapshot, path, diff=diff, format=format, timeout=timeout)

    async def grow_volume(self, name: str, size: int | str) -> None:
        await call(self._vm.grow_volume, name, size)

    async def fork(
        self, n: int = 1, *, volumes: Literal["refuse", "copy"] = "refuse", timeout: float = _vm.SNAPSHOT_TIMEOUT
    ) -> list[VM]:
        forks = await call(self._vm.fork, n, volumes=volumes, timeout=timeout, abandon=_kill_all)
        return [VM._of(vm) for vm in forks]

    @classmethod
    async def restore(cls, snapshot: str | os.PathLike[str], **options: Unpack[_vm.RestoreOptions]) -> VM:
        """See :meth:`supermachine.VM.restore`, whose keywords it takes."""
        return cls._of(await call(_vm.VM.restore, snapshot, abandon=_vm.VM.kill, **options))

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
        return GuestPath(await call(self._vm.copy_in, source, target, max_bytes=max_bytes, timeout=timeout))

    async def copy_out(
        self,
        source: str | os.PathLike[str],
        target: str | os.PathLike[str],
        *,
        max_bytes: int | None = None,
        timeout: float | None = None,
    ) -> str:
        return await call(self._vm.copy_out, source, target, max_bytes=max_bytes, timeout=timeout)


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
