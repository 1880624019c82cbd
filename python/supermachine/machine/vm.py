"""Virtual machines: what runs in them, their files, their snapshots."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..guest import process_context
from .lifecycle import DEFAULT_BOOT_TIMEOUT, DEFAULT_STOP_TIMEOUT, Machine

if TYPE_CHECKING:
    from subprocess import CompletedProcess

    from ..guest.paths import GuestPath
    from ..guest.processes import Args, Popen, StrOrBytesPath
    from ..images import Progress
    from ..images.resolution import Pull
    from ..network.ports import Ports
    from ..settings.parsing import Environment
    from ..snapshots.capture import Snapshot

__all__ = ["DEFAULT_BOOT_TIMEOUT", "DEFAULT_STOP_TIMEOUT", "SNAPSHOT_TIMEOUT", "VM", "run"]

#: Seconds that a snapshot may take; what is written is as much as the guest has touched.
SNAPSHOT_TIMEOUT = 120.0


class VM(Machine):
    """A microVM that runs an OCI image.

    ``with VM("debian:bookworm") as vm:`` starts and, at the end, kills it; `start`, `stop` and `kill` do so by hand.

    `image` is a reference as docker writes it, or a path of an OCI layout, an OCI archive or a `docker save` archive.
    `memory` is bytes or "512m", "2g" …; the host gives it as the guest touches it. `environment`, `working_dir` and
    `user` go before what the image says. `require_hardware` refuses software isolation
    (default: SUPERMACHINE_REQUIRE_HARDWARE). `boot_timeout` is in seconds.

    The first start of an image boots and bakes a snapshot, later starts go on from it; ``bake=False`` always boots
    (default: unless SUPERMACHINE_NO_SNAPSHOT). `warmup` runs in the guest before that: commands, or a callable that is
    given this object; `warmup_key` names it where its code does not tell all that it does. `ports` are published as
    ``{"80/tcp": 8080}``, ``None`` for any free port. ``prefault=False`` neither records nor uses which pages clones
    need first.
    """

    # What runs in it.

    def _context(self) -> process_context.Context:
        self._served()
        return process_context.Context(
            self._served,
            self._config,
            environment=self._environment,
            working_dir=self._working_dir,
            user=self._user,
            ended=self._answered,
        )

    def command(self, args: Sequence[str] | str | None = None, entrypoint: Sequence[str] | None = None) -> list[str]:
        """What docker would run: ENTRYPOINT, then `args` or, without any, CMD.

        As with docker, an `entrypoint` of one's own also sets CMD aside.
        """
        return process_context.command(self._reference, self._config, args, entrypoint)

    def run(
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
        cwd: StrOrBytesPath | None = None,
        user: str | int | None = None,
    ) -> CompletedProcess[Any]:
        """`subprocess.run` in the guest. Output is captured unless told otherwise; stdin is empty unless given.

        `env` is added to what the image and the virtual machine set.
        """
        from ..guest.processes import run as run_process

        return run_process(
            self._context(),
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
        )

    def popen(
        self,
        args: Args,
        *,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        shell: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: StrOrBytesPath | None = None,
        user: str | int | None = None,
        text: bool | None = None,
        universal_newlines: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        bufsize: int = -1,
        tty: tuple[int, int] | None = None,
    ) -> Popen:
        """`subprocess.Popen` in the guest. `tty=(rows, columns)` gives it a terminal; all output is stdout then."""
        from ..guest.processes import Popen

        return Popen(
            self._context(),
            args,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            shell=shell,
            env=env,
            cwd=cwd,
            user=user,
            text=text,
            universal_newlines=universal_newlines,
            encoding=encoding,
            errors=errors,
            bufsize=bufsize,
            tty=tty,
        )

    # Its snapshots.

    def snapshot(
        self,
        path: str | os.PathLike[str],
        *,
        diff: bool = False,
        format: Literal[8, 9] = 9,  # noqa: A002
        timeout: float = SNAPSHOT_TIMEOUT,
    ) -> Snapshot:
        """Takes a snapshot into a new file. The machine goes on; only `Snapshot.pause` of it is lost to the guest.

        With `diff` it holds only what has changed since the snapshot that this machine was restored from, whose files
        it needs from then on. `format` 8 is the one that older programs of this kind read; it is for arm64 guests,
        has no diffs and no checksums, and does not say which image it is of. Raises `SnapshotExists`, `SnapshotFailed`
        or `DiskFull`; then no file is left.
        """
        from . import snapshotting

        return snapshotting.take(self, snapshotting.absolute(path), diff=diff, version=format, timeout=timeout)

    def fork(self, n: int = 1, *, timeout: float = SNAPSHOT_TIMEOUT) -> list[VM]:
        """`n` running machines that go on where this one is now, each with an identity of its own.

        They share the memory that none of them writes to. Published ports are on fresh ports of the host.
        """
        from . import snapshotting

        return snapshotting.fork(self, n, timeout=timeout)

    @classmethod
    def restore(
        cls,
        snapshot: str | os.PathLike[str],
        *,
        hostname: str | None = None,
        ports: Ports | Literal["fresh", "same"] = "fresh",
        environment: Environment | None = None,
        working_dir: str | None = None,
        user: str | int | None = None,
        require_hardware: bool | None = None,
        pull: Pull = "never",
        insecure: bool = False,
        progress: Progress | None = None,
        boot_timeout: float = DEFAULT_BOOT_TIMEOUT,
        prefault: bool | None = None,
        image: str | os.PathLike[str] | None = None,
        disks: Sequence[str | os.PathLike[str]] = (),
        engine: str = "auto",
        agent: bool = True,
    ) -> VM:
        """A running machine that goes on where the snapshot was taken, with an identity of its own.

        Before anything of the user's runs in it, the clock is set, the kernel's random state is fed from the host, and
        host name and machine-id are new; a guest that does not confirm that is ended (`RenewFailed`). Ports that were
        published are so again, on fresh ports of the host, on the ``"same"``, or as given. The image must be in the
        cache, unless `pull` allows to get it.

        The last four are for snapshots of version 8, which do not say it themselves: the `image` whose root file system
        was the guest's first disk; files that were its further `disks`, or all of them without an image, which are not
        written to; the `engine` that it was taken on; and whether this package's `agent` runs in it. In a guest without
        one nothing can be run and no file reached, and nobody renews its identity, random state and clock. The ports
        that such a snapshot says the guest listened on are published as ``"PORT/vsock"``.
        """
        from . import snapshotting

        return snapshotting.restore(
            cls,
            snapshotting.absolute(snapshot),
            ports=ports,
            environment=environment,
            pull=pull,
            insecure=insecure,
            progress=progress,
            hostname=hostname,
            working_dir=working_dir,
            user=user,
            require_hardware=require_hardware,
            boot_timeout=boot_timeout,
            prefault=prefault,
            unsaid=snapshotting.Unsaid(image, disks, engine, agent),
        )

    # Its files.

    def path(self, *parts: str | os.PathLike[str]) -> GuestPath:
        """A path in the guest, with the interface of `pathlib.Path`."""
        from ..guest.paths import GuestPath

        return GuestPath(*(parts or ("/",)), filesystem=self._files)

    def copy_in(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> GuestPath:
        """Copies a file or a tree of the host to `target`, or into it when it is a directory, as `cp -R`."""
        from ..guest.copying import copy_in

        return copy_in(source, self.path(target))

    def copy_out(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> str:
        """Copies a file or a tree of the guest to `target`, or into it when it is a directory, as `cp -R`."""
        from ..guest.copying import copy_out

        return copy_out(self.path(source), target)


def run(
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
    **machine: Any,
) -> CompletedProcess[Any]:
    """Starts a virtual machine for one command: ENTRYPOINT with `args` or, without any, CMD, as docker does.

    `timeout` is about the command. `machine` are keywords of :class:`VM`. Nothing is left behind.
    """
    with VM(image, **machine) as vm:
        return vm.run(
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
