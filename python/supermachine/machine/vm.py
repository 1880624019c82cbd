"""The class :class:`supermachine.VM`: a virtual machine's life, what runs in it, its files, its snapshots."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar

from ..errors import ConfigurationError
from ..guest import process_context
from ..settings.machine import MachineSettings
from ..settings.table import DEFAULT_BOOT_TIMEOUT, documentation
from .guest import DEFAULT_STOP_TIMEOUT, Guest, Origin

if TYPE_CHECKING:
    from pathlib import Path
    from subprocess import CompletedProcess

    from typing_extensions import Unpack

    from .._core import Worker
    from ..artifacts.arrival import Arrival
    from ..guest.paths import FileSystem, GuestPath
    from ..guest.processes import Args, Popen, StrOrBytesPath
    from ..images import Progress, ResolvedImage
    from ..images.resolution import Pull
    from ..network.denials import GuestNetwork
    from ..network.policy import Network
    from ..network.ports import Ports
    from ..network.secrets import Secrets
    from ..settings.machine import MachineOptions
    from ..settings.parsing import Environment
    from ..snapshots.baking import Baked
    from ..storage.shares import Mounts, Volumes
    from ..storage.stale import GuestShares
    from ..storage.tmpfs import Tmpfs
    from .makers import Maker
    from .snapshot import Snapshot
    from .starts import Root, Starter
    from .timings import Timings

__all__ = ["DEFAULT_BOOT_TIMEOUT", "DEFAULT_STOP_TIMEOUT", "SNAPSHOT_TIMEOUT", "VM", "RestoreOptions", "run"]

Self = TypeVar("Self", bound="VM")

#: Seconds that a snapshot may take; what is written is as much as the guest has touched.
SNAPSHOT_TIMEOUT = 120.0


class RestoreOptions(TypedDict, total=False):
    """The keywords of :meth:`VM.restore`."""

    hostname: str | None
    ports: Ports | Literal["fresh", "same"]
    network: Network | str | None
    secrets: Secrets | None
    allow: Sequence[str]
    deny: Sequence[str]
    environment: Environment | None
    working_dir: str | None
    user: str | None
    require_hardware: bool | None
    require_confinement: bool | None
    pull: Pull
    insecure: bool
    progress: Progress | None
    boot_timeout: float
    prefault: bool | None
    volumes: Volumes | None
    mounts: Mounts | None
    tmpfs: Tmpfs | None
    read_only: bool
    shm_size: int | str | None
    image: str | os.PathLike[str] | None
    disks: Sequence[str | os.PathLike[str]]
    engine: str
    agent: bool


class VM:
    """A microVM that runs an OCI image.

    ``with VM("debian:bookworm") as vm:`` starts and, at the end, kills it; `start`, `stop` and `kill` do so by hand.
    The first start of an image boots and bakes a snapshot, later starts restore it.

    `image` is a reference as docker writes it, or a path of an OCI layout, an OCI archive or a `docker save` archive.
    The other arguments are keywords:

    SETTINGS

    Raises `ConfigurationError` for values that make no sense, `EngineUnavailable` and `HardwareRequired` where the host
    lacks what they ask for.
    """

    def __init__(self, image: str | os.PathLike[str], **options: Unpack[MachineOptions]) -> None:
        self._set(image, MachineSettings.of(**options))

    def _set(self, reference: str | os.PathLike[str], settings: MachineSettings, root: Root | None = None) -> None:
        self._reference = reference
        self._settings = settings
        #: The disks; made of the image when that is first needed.
        self._root = root
        self._guest: Guest | None = None
        #: A start that is under way; `kill` ends that too.
        self._starter: Starter | None = None
        #: What makes this and others of the same snapshot; of a pool's.
        self._maker: Maker | None = None
        # A warm-up may use the machine that is being started.
        self._lock = threading.RLock()
        #: Where to start from: a chain of snapshot files, or nowhere that lasts.
        self._source: Origin | None = None
        self._filesystem: FileSystem | None = None

    @classmethod
    def _of(
        cls: type[Self],
        reference: str | os.PathLike[str],
        settings: MachineSettings,
        root: Root | None,
        source: Origin | None = None,
    ) -> Self:
        """A machine of settings that have been checked. `root` is ``None`` for the image's own."""
        vm = cls.__new__(cls)
        vm._set(reference, settings, root)
        vm._source = source
        return vm

    @classmethod
    def _arriving(cls: type[Self], path: Path, arrival: Arrival | None, given: Mapping[str, Any]) -> Self:
        """One of a snapshot's file, to be started; what `arrival` fetches may still be on its way."""
        from . import snapshotting

        if arrival is not None and arrival.complete and arrival.place is not None:
            path, arrival = arrival.place, None
        plan = snapshotting.plan(path, given)  # type: ignore[arg-type]
        origin = plan.origin
        if arrival is not None and arrival.place is not None:
            origin = origin._replace(files=[arrival.place], arrival=arrival)
        return cls._of(plan.reference, plan.settings, plan.root, origin)

    # What it is.

    @property
    def engine(self) -> str:
        """The engine that runs it: "kvm", "hvf" or "soft"."""
        return self._settings.engine.name

    @property
    def isolation(self) -> str:
        """Its isolation, "hardware" or "software"."""
        return self._settings.engine.isolation

    @property
    def image(self) -> ResolvedImage:
        """The image; looked up, and pulled if need be, on first use."""
        image = self._disks().image
        if image is None:
            raise ConfigurationError(f"the image of the guest of {self._reference} is not known")
        return image

    def _disks(self) -> Root:
        if self._root is None:
            self._root = self._resolve()
        return self._root

    def _resolve(self) -> Root:
        from ..images import resolve
        from .starts import Root

        settings = self._settings
        return Root(
            resolve(
                self._reference,
                platform=settings.platform or f"linux/{settings.engine.architecture}",
                pull=settings.pull,
                insecure=settings.insecure,
                progress=settings.progress,
            )
        )

    @property
    def ports(self) -> dict[str, list[tuple[str, int]]]:
        """Published ports while it runs: "80/tcp" to the addresses and ports of the host that lead there."""
        return self._guest.ports if self._guest is not None else {}

    @property
    def network(self) -> GuestNetwork:
        """Its network: the policy, what that has denied, what is open. Methods raise VMExited when it does not run."""
        from ..network.denials import GuestNetwork

        return GuestNetwork(self._running, lambda: self._settings.network, self._set_network)

    @property
    def shares(self) -> GuestShares:
        """Its shares: what was open in them and is stale. Methods raise VMExited when it does not run."""
        from ..storage.stale import GuestShares

        return GuestShares(self._running, lambda: self._settings.shares)

    def _set_network(self, network: Network) -> None:
        self._settings = self._settings._replace(network=network)

    @property
    def timings(self) -> Timings:
        """Steps of the last start: name, nanoseconds since the start of the worker process. `plot` draws them."""
        from .timings import Timings

        return Timings(self._guest.timings if self._guest is not None else ())

    @property
    def running(self) -> bool:
        return self._guest is not None and self._guest.running

    @property
    def pid(self) -> int | None:
        """Process id of the worker on the host, while it runs."""
        return self._guest.worker.pid if self._guest is not None and self._guest.running else None

    # Its life.

    def start(self: Self) -> Self:
        """Starts it and waits until the guest serves requests. Does nothing when it runs already."""
        from ..host import engines
        from .starts import Starter

        with self._lock:
            if self.running:
                return self
            self._guest = None
            self._forget_files()
            # An image that cannot be had is said before anything of the engine.
            root = self._disks()
            engines.warn_once(self._settings.engine)
            self._starter = starter = Starter(self._settings, root, maker=self._maker)
            try:
                if self._source is not None:
                    self._guest = starter.restore(self._source)
                else:
                    self._guest = starter.boot_or_restore(self.image, self._warm)
                self._guest.publish(self._settings.ports)
            except BaseException:
                self.kill()
                self._guest = None
                raise
            finally:
                starter.close()
                self._starter = None
            return self

    def _warm(self, guest: Guest) -> None:
        """Runs the warm-up in a guest that has booted."""
        self._guest = guest
        warmup = self._settings.warmup
        if warmup is None:
            return
        if callable(warmup):
            warmup(self)
        else:
            for command in warmup:
                self.run(command, shell=isinstance(command, str), check=True)
        # Connections do not outlive a snapshot.
        self._forget_files()

    def _baked(self) -> Baked | None:
        from .starts import baked_place

        return baked_place(self._settings, self.image)

    def stop(self, timeout: float = DEFAULT_STOP_TIMEOUT) -> None:
        """Ends it cleanly: SIGTERM to its processes, SIGKILL after `timeout` seconds, file systems synced."""
        if self._guest is not None:
            self._guest.stop(timeout)
            self._forget_files()

    def kill(self) -> None:
        """Ends it at once."""
        if (starter := self._starter) is not None:
            starter.kill()
        if (guest := self._guest) is not None:
            guest.kill()
        self._forget_files()

    def wait(self, timeout: float | None = None) -> str:
        """Waits until it has ended, and says why: "shutdown", "guest-power-off", "panic", "killed" …"""
        if self._guest is None:
            raise ConfigurationError("the virtual machine has not been started")
        return self._guest.wait(timeout)

    def __enter__(self: Self) -> Self:
        return self.start()

    def __exit__(self, *_exc: object) -> None:
        if self._settings.volumes:
            # What was written to them is not all on the host's disk yet.
            self.stop()
        self.kill()

    def __repr__(self) -> str:
        state = "running" if self.running else "stopped" if self._guest else "new"
        return f"<{type(self).__name__} {str(self._reference)!r} {self.engine} {state}>"

    def _started(self) -> Guest:
        if self._guest is None:
            raise ConfigurationError(
                "the virtual machine is not running", hint="start it with `with VM(...) as vm:` or vm.start()"
            )
        return self._guest

    def _running(self) -> Worker:
        return self._started().alive()

    def _served(self) -> Worker:
        return self._started().served()

    # What runs in it.

    def _context(self) -> process_context.Context:
        self._served()
        settings = self._settings
        return process_context.Context(
            self._served,
            self._disks().config,
            environment={**settings.network.environment, **settings.environment},
            working_dir=settings.working_dir,
            user=settings.user,
            ended=self._answered,
        )

    def _answered(self) -> None:
        if self._guest is not None:
            self._guest.answered()

    def command(self, args: Sequence[str] | str | None = None, entrypoint: Sequence[str] | None = None) -> list[str]:
        """What docker would run: ENTRYPOINT, then `args` or, without any, CMD.

        As with docker, an `entrypoint` of one's own also sets CMD aside.
        """
        return process_context.command(self._reference, self._disks().config, args, entrypoint)

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

        return snapshotting.take(
            self._started(),
            self._settings,
            self._disks().image,
            snapshotting.absolute(path),
            diff=diff,
            version=format,
            timeout=timeout,
        )

    def grow_volume(self, name: str, size: int | str) -> None:
        """Makes a volume larger that this machine has, while programs use it: bytes, or "100g".

        Raises ConfigurationError for one that it does not have or has `read_only`, and else as `Volume.grow` does.
        """
        from ..storage import volumes

        volumes.grow_attached(self._started().served(), self._settings.volumes, name, size)

    def fork(
        self: Self,
        n: int = 1,
        *,
        volumes: Literal["refuse", "copy"] = "refuse",
        timeout: float = SNAPSHOT_TIMEOUT,
    ) -> list[Self]:
        """`n` running machines that go on where this one is now, each with an identity of its own.

        They share the memory that none of them writes to. Published ports are on fresh ports of the host. A machine
        that has volumes is refused (`NotSupported`), unless with ``volumes="copy"`` each fork gets a copy of them,
        which ends with it; `VolumeChanged` when they are written to faster than they are copied.
        """
        from . import snapshotting

        settings, root = snapshotting.of_fork(self._settings), self._disks()
        forked = snapshotting.fork(self._started(), settings, root, n, timeout=timeout, copies=volumes == "copy")
        own = settings._replace(volumes=snapshotting.copied(settings.volumes))
        clones: list[Self] = []
        for guest in forked:
            clone = self._of(self._reference, own, root, Origin(()))
            clone._guest = guest
            clones.append(clone)
        return clones

    @classmethod
    def restore(cls: type[Self], snapshot: str | os.PathLike[str], **options: Unpack[RestoreOptions]) -> Self:
        """A running machine that goes on where the snapshot was taken, with an identity of its own.

        Before anything of the user's runs in it, the clock is set, the kernel's random state is fed from the host, and
        host name and machine-id are new; a guest that does not confirm that is ended (`RenewFailed`). Keywords are
        those of :class:`VM` that can still be chosen: `hostname`, `environment`, `working_dir`, `user`,
        `require_hardware`, `require_confinement`, `pull`, `insecure`, `progress`, `boot_timeout`, `prefault`;
        `volumes` and `mounts`, as a snapshot says nothing of the host's directories, and opens none; `ports`, which
        are those that were published, on ``"fresh"`` ports of the host (the default) or on the ``"same"``, or as
        given; and `network`, by default what both the snapshot's machine could reach and a new one here could. The
        image must be in the cache, unless `pull` allows to get it (default: ``"never"``).

        Four more are for snapshots of version 8, which do not say it themselves: the `image` whose root file system
        was the guest's first disk; files that were its further `disks`, or all of them without an image, which are not
        written to; the `engine` that it was taken on; and whether this package's `agent` runs in it. In a guest without
        one nothing can be run and no file reached, and nobody renews its identity, random state and clock. The ports
        that such a snapshot says the guest listened on are published as ``"PORT/vsock"``.
        """
        from ..errors import RenewFailed
        from . import snapshotting

        plan = snapshotting.plan(snapshotting.absolute(snapshot), options)
        vm = cls._of(plan.reference, plan.settings, plan.root, plan.origin)
        try:
            return vm.start()
        except RenewFailed as error:
            if plan.origin.v8:
                error.hint = "if this package's agent does not run in that guest, restore it with agent=False"
            raise

    # Its files.

    @property
    def _files(self) -> FileSystem:
        if self._filesystem is None:
            from ..guest.paths import FileSystem

            self._filesystem = FileSystem(self._served, self._user)
        return self._filesystem

    def _user(self) -> str:
        """Whose the files are that are made from outside, as docker's USER has it."""
        user = self._settings.user
        return self._disks().config.user if user is None else user

    def _forget_files(self) -> None:
        if self._filesystem is not None:
            self._filesystem.forget()

    def path(self, *parts: str | os.PathLike[str]) -> GuestPath:
        """A path in the guest, with the interface of `pathlib.Path`."""
        from ..guest.paths import GuestPath

        return GuestPath(*(parts or ("/",)), filesystem=self._files)

    def copy_in(
        self,
        source: str | os.PathLike[str],
        target: str | os.PathLike[str],
        *,
        max_bytes: int | None = None,
        timeout: float | None = None,
    ) -> GuestPath:
        """Copies a file or a tree of the host to `target`, or into it when it is a directory, as `cp -R`.

        Holes, hard links and FIFOs stay what they are; sockets, devices and what vanishes meanwhile are left out, and a
        warning names them. What is made belongs to the machine's user. `max_bytes` of contents are copied at most
        (default 64 GiB), within `timeout` seconds. Raises `CopyTooLarge`, `VMTimeout`, and `CopyIncomplete` when a
        tree has been copied in part.
        """
        from ..guest.copying import copy_in

        slash = os.fspath(target).endswith("/")
        return copy_in(source, self.path(target), into=slash, max_bytes=max_bytes, timeout=timeout)

    def copy_out(
        self,
        source: str | os.PathLike[str],
        target: str | os.PathLike[str],
        *,
        max_bytes: int | None = None,
        timeout: float | None = None,
    ) -> str:
        """Copies a file or a tree of the guest to `target`, or into it when it is a directory; see `copy_in`.

        What is made belongs to this user, and is never setuid or setgid.
        """
        from ..guest.copying import copy_out

        return copy_out(self.path(source), target, max_bytes=max_bytes, timeout=timeout)


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
    **machine: Unpack[MachineOptions],
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


if VM.__doc__ is not None:  # python -OO has none
    VM.__doc__ = VM.__doc__.replace("SETTINGS", documentation())
