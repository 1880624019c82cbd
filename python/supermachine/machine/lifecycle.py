"""The life of a virtual machine: what it is made of, how it starts, and how it ends."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from ..errors import ConfigurationError, NotSupported, VMExited, VMTimeout
from ..host import engines
from ..settings import parsing
from . import launch

if TYPE_CHECKING:
    from pathlib import Path

    from .._core import Worker
    from ..guest.paths import FileSystem
    from ..images import ImageConfig, Progress, ResolvedImage
    from ..images.resolution import Pull
    from ..network.ports import Bound, Ports, Wanted
    from ..settings.parsing import Environment
    from ..snapshots.baking import Baked, Warmup
    from .vm import VM

Self = TypeVar("Self", bound="Machine")

#: Seconds that a guest has to become ready.
DEFAULT_BOOT_TIMEOUT = 60.0
#: Seconds that the guest's processes have to end after SIGTERM when a virtual machine is stopped.
DEFAULT_STOP_TIMEOUT = 10.0
#: Seconds beyond the grace that a worker takes at most.
_STOP_SLACK = 3.0
#: Seconds from the start in which the first process must end, for its pages to be what clones need first.
_FIRST_ANSWER = 10.0


class Source(NamedTuple):
    """What a guest was restored from. Forks have no files: theirs is gone as soon as they run."""

    files: Sequence[Path]
    #: Of the last file, where it is known.
    id: str = ""
    #: Whether the file is the cache's.
    baked: bool = False
    #: Whether it is of version 8, on which no diff can build.
    v8: bool = False


class Machine:
    """What :class:`supermachine.VM` is, but for what one does with it."""

    def __init__(
        self,
        image: str | os.PathLike[str],
        *,
        memory: int | str = parsing.DEFAULT_MEMORY,
        vcpus: int = 1,
        engine: str = "auto",
        environment: Environment | None = None,
        working_dir: str | None = None,
        user: str | int | None = None,
        hostname: str | None = None,
        require_hardware: bool | None = None,
        ports: Ports | None = None,
        volumes: Mapping[str, Any] | Sequence[str] | None = None,
        platform: str | None = None,
        pull: Pull = "missing",
        insecure: bool = False,
        progress: Progress | None = None,
        boot_timeout: float = DEFAULT_BOOT_TIMEOUT,
        bake: bool | None = None,
        warmup: Warmup | None = None,
        warmup_key: str | None = None,
        prefault: bool | None = None,
    ) -> None:
        if volumes:
            raise NotSupported("this version cannot mount volumes", hint="copy files with vm.copy_in and vm.copy_out")
        if boot_timeout <= 0:
            raise ConfigurationError(f"boot_timeout is {boot_timeout}; a positive number of seconds is needed")
        self._reference = image
        self._memory = parsing.memory_bytes(memory)
        self._engine = engines.choose(engine, require_hardware, platform)
        self._vcpus = parsing.vcpu_count(vcpus, self._engine.architecture)
        self._environment = parsing.environment(environment)
        self._working_dir = working_dir
        self._user = None if user is None else str(user)
        self._hostname = None if hostname is None else parsing.hostname(hostname)
        self._platform = platform
        self._pull: Pull = pull
        self._insecure = insecure
        self._progress = progress
        self._boot_timeout = boot_timeout
        self._bake = bake
        self._warmup = warmup
        self._warmup_key = warmup_key
        self._prefault = prefault
        self._wanted_ports: Wanted = {}
        if ports:
            from ..network.ports import parse

            self._wanted_ports = parse(ports)
        self._bound: Bound | None = None
        self._image: ResolvedImage | None = None
        #: Whether there is an image; a guest of a foreign snapshot may have none that is known.
        self._has_image = True
        #: Disks beside the image's, none of which is written to.
        self._disks: list[str] = []
        #: Whether this package's agent runs in the guest.
        self._has_agent = True
        self._worker: Worker | None = None
        #: A worker whose guest is not ready yet; `kill` ends that too.
        self._pending: Worker | None = None
        # A warm-up may use the machine that is being started.
        self._lock = threading.RLock()
        self._capturing = threading.Lock()
        self._timings: list[tuple[str, int]] = []
        #: Where to go on from: a chain of snapshot files, or nowhere that lasts.
        self._source: Source | None = None
        #: What the running guest was restored from.
        self._origin: Source | None = None
        self._recording: tuple[Path, float] | None = None
        self._filesystem: FileSystem | None = None

    @property
    def _files(self) -> FileSystem:
        if self._filesystem is None:
            from ..guest.paths import FileSystem

            self._filesystem = FileSystem(self._served)
        return self._filesystem

    # What it is.

    @property
    def engine(self) -> str:
        """The engine that runs it: "kvm" or "soft"."""
        return self._engine.name

    @property
    def isolation(self) -> str:
        """Its isolation, "hardware" or "software"."""
        return self._engine.isolation

    @property
    def image(self) -> ResolvedImage:
        """The image; looked up, and pulled if need be, on first use."""
        if not self._has_image:
            raise ConfigurationError(f"which image the guest of {self._reference} is of is not known")
        if self._image is None:
            from ..images import resolve

            self._image = resolve(
                self._reference,
                platform=self._platform or f"linux/{self._engine.architecture}",
                pull=self._pull,
                insecure=self._insecure,
                progress=self._progress,
            )
        return self._image

    @property
    def _config(self) -> ImageConfig:
        """What the image says; of one that is not known nothing."""
        from ..images import ImageConfig

        return self.image.config if self._has_image else ImageConfig()

    def _all_disks(self) -> list[str]:
        return [*([str(self.image.rootfs)] if self._has_image else []), *self._disks]

    @property
    def ports(self) -> dict[str, list[tuple[str, int]]]:
        """Published ports while it runs: "80/tcp" to the addresses and ports of the host that lead there."""
        return self._bound.places() if self._bound is not None and self.running else {}

    @property
    def timings(self) -> list[tuple[str, int]]:
        """Steps of the last start: name, nanoseconds since the start of the worker process."""
        return list(self._timings)

    @property
    def running(self) -> bool:
        return self._worker is not None and self._worker.exit is None

    @property
    def pid(self) -> int | None:
        """Process id of the worker on the host, while it runs."""
        return self._worker.pid if self._worker is not None and self.running else None

    # Its life.

    def start(self: Self) -> Self:
        """Starts it and waits until the guest serves requests. Does nothing when it runs already."""
        with self._lock:
            if self.running:
                return self
            self._worker = None
            if self._has_image:
                # Before anything is said of the engine.
                _ = self.image
            engines.warn_once(self._engine)
            self._recording = None
            try:
                self._launch()
                self._bind()
            except BaseException:
                self.kill()
                self._worker = None
                raise
            return self

    def _bind(self) -> None:
        if self._wanted_ports:
            from ..network.ports import Bound

            self._bound = Bound(self._running(), self._wanted_ports)

    def _adopt(self, worker: Worker, timings: launch.Timings, origin: Source) -> None:
        """Becomes the machine of a worker that another one of this class has started."""
        self._source = origin
        self._use(worker, timings, origin)
        self._bind()

    def _launch(self) -> None:
        """Goes on from a snapshot, or boots; and bakes, when that is wanted and not done."""
        if self._source is not None:
            self._go_on(self._source)
            return
        from ..snapshots import baking

        image = self.image
        baked = self._baked(image) if baking.enabled(self._bake) else None
        if baked is None:
            self._boot(image)
            self._warm()
            return
        if self._restored(baked):
            return
        with baked.baking(long=self._warmup is not None, on_wait=self._waits) as mine:
            if not mine and not baked.refused and self._restored(baked):
                return
            self._boot(image)
            if mine:
                from ..guest import read_ahead

                read_ahead.fill(cast("VM", self))
            self._warm()
            if mine:
                from .snapshotting import record

                said = record(self, [], bare=self._warmup is None)
                baked.bake(self._running(), image, said.encode())

    def _baked(self, image: ResolvedImage) -> Baked | None:
        """Where the snapshot is that this machine would start from; ``None`` where there can be none."""
        from ..snapshots import baking

        context = [image.digest, self._environment, self._working_dir, self._user]
        warmup = baking.warmup_key(self._warmup, self._warmup_key, context)
        return baking.Baked.place(image, self._engine, memory=self._memory, vcpus=self._vcpus, warmup=warmup)

    def _boot(self, image: ResolvedImage) -> None:
        worker = launch.spawn(self._engine, image, self._memory, self._vcpus, self._hostname, self._boot_timeout)
        self._await(worker, None)

    def _await(self, worker: Worker, origin: Source | None, timeout: float | None = None) -> None:
        """Waits until the worker's guest is ready, and becomes its machine."""
        self._pending = worker
        try:
            self._use(worker, launch.wait_ready(worker, timeout or self._boot_timeout), origin)
        finally:
            self._pending = None

    def _warm(self) -> None:
        if self._warmup is None:
            return
        if callable(self._warmup):
            self._warmup(cast("VM", self))
        else:
            for command in self._warmup:
                cast("VM", self).run(command, shell=isinstance(command, str), check=True)
        # Connections do not outlive a snapshot.
        self._files.forget()

    def _restored(self, baked: Baked) -> bool:
        from ..snapshots import working_set

        prefault = working_set.enabled(self._prefault)
        ranges = working_set.load(baked.working_set) if prefault else ()
        with baked.usable() as there:
            if not there:
                return False
            timeout = min(self._boot_timeout, launch.RESTORE_TIMEOUT)
            worker = self._restoring([baked.path], ranges, timeout)
            self._await(worker, Source([baked.path], baked=True), timeout)
        if self._worker is None:
            return False
        if prefault and not ranges:
            self._record_until(baked.working_set)
        return True

    def _go_on(self, source: Source) -> None:
        """Restores the snapshot that this object was made from."""
        if not source.files:
            raise ConfigurationError(
                "a fork that has ended cannot be started again", hint="fork again, or use vm.snapshot and VM.restore"
            )
        from ..images import Cache
        from ..snapshots import working_set

        ranges: working_set.Ranges = []
        wanted = bool(source.id) and working_set.enabled(self._prefault)
        kept = working_set.beside(Cache(), source.id) if wanted else None
        if kept is not None:
            ranges = working_set.load(kept)
        self._await(self._restoring(source.files, ranges), source)
        if kept is not None and not ranges:
            self._record_until(kept)

    def _restoring(
        self, files: Sequence[str | os.PathLike[str]], ranges: launch.PageRanges, timeout: float | None = None
    ) -> Worker:
        timeout = timeout or self._boot_timeout
        disks = self._all_disks()
        engine, agent = self._engine.name, self._has_agent
        return launch.spawn_restored(engine, disks, files, self._hostname, timeout, ranges, agent=agent)

    def _use(self, worker: Worker, timings: launch.Timings, origin: Source | None) -> None:
        self._worker = worker
        self._timings = timings
        self._origin = origin
        if self._filesystem is not None:
            self._filesystem.forget()

    def _record_until(self, path: Path) -> None:
        self._recording = (path, time.monotonic() + _FIRST_ANSWER)

    def _answered(self) -> None:
        """A process has ended: after the first one it is known what a clone needs for an answer."""
        recording, self._recording = self._recording, None
        worker = self._worker
        if recording is None or worker is None or time.monotonic() > recording[1]:
            return
        from ..images import Cache
        from ..snapshots import working_set

        working_set.record(worker, recording[0], Cache())

    def _waits(self) -> None:
        if self._progress is not None:
            from ..images.progress import ProgressEvent

            self._progress(ProgressEvent("wait", self.image.digest, 0, 0))

    def stop(self, timeout: float = DEFAULT_STOP_TIMEOUT) -> None:
        """Ends it cleanly: SIGTERM to its processes, SIGKILL after `timeout` seconds, file systems synced."""
        worker = self._worker
        if worker is None or worker.exit is not None:
            return
        worker.shutdown(max(0, int(timeout * 1000)))
        if worker.wait(timeout + _STOP_SLACK) is None:
            self.kill()
        self._ended()

    def kill(self) -> None:
        """Ends it at once."""
        if (pending := self._pending) is not None:
            pending.kill()
        worker = self._worker
        if worker is None:
            return
        worker.kill()
        worker.wait(_STOP_SLACK)
        self._ended()

    def _ended(self) -> None:
        if self._bound is not None:
            self._bound.close()
        if self._filesystem is not None:
            self._filesystem.forget()

    def wait(self, timeout: float | None = None) -> str:
        """Waits until it has ended, and says why: "shutdown", "guest-power-off", "panic", "killed" …"""
        if self._worker is None:
            raise ConfigurationError("the virtual machine has not been started")
        end = self._worker.wait(timeout)
        if end is None:
            raise VMTimeout(f"the virtual machine still runs after {timeout:g} seconds")
        return end[0]

    def __enter__(self: Self) -> Self:
        return self.start()

    def __exit__(self, *_exc: object) -> None:
        self.kill()

    def __repr__(self) -> str:
        state = "running" if self.running else "stopped" if self._worker else "new"
        return f"<{type(self).__name__} {str(self._reference)!r} {self.engine} {state}>"

    def _served(self) -> Worker:
        """The worker of a guest with an agent."""
        worker = self._running()
        if not self._has_agent:
            raise NotSupported(
                "this virtual machine was restored with agent=False: nothing in it runs commands, serves files or "
                "forwards TCP ports for its host",
                hint="reach what it runs by a vsock port: ports={'5000/vsock': None}",
            )
        return worker

    def _running(self) -> Worker:
        worker = self._worker
        if worker is None:
            raise ConfigurationError(
                "the virtual machine is not running", hint="start it with `with VM(...) as vm:` or vm.start()"
            )
        if (end := worker.exit) is not None:
            reason, message, console_tail = end
            raise VMExited(message, reason=reason, console_tail=console_tail)
        return worker
