"""The ways to a running guest: boot, the image's baked snapshot, a chain of snapshot files."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import ConfigurationError, HostShortage, SupermachineError, VMExited
from ..storage.scratch import Disk
from . import launch
from .guest import Guest, Origin

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .._core import Worker
    from ..artifacts.arrival import Arrival
    from ..images import ImageConfig, ResolvedImage
    from ..settings.machine import MachineSettings
    from ..snapshots.baking import Baked
    from ..storage.shares import Mounted
    from ..storage.volume_directories import Held
    from ..storage.volumes import Opened
    from .makers import Maker


class Root:
    """The disks of a guest: its image's root file system, and files beside it, none of which is written to."""

    def __init__(self, image: ResolvedImage | None, disks: Sequence[str] = (), *, agent: bool = True) -> None:
        """Without an `image` it is not known what the guest's disks hold; a foreign guest may have no `agent`."""
        self.image = image
        self.beside = disks
        self.agent = agent

    @property
    def disks(self) -> list[str]:
        return [*([str(self.image.rootfs)] if self.image is not None else []), *self.beside]

    @property
    def config(self) -> ImageConfig:
        """What the image says; of one that is not known nothing."""
        if self.image is not None:
            return self.image.config
        from ..images import ImageConfig

        return ImageConfig()


class Starter:
    """Starts a guest, once; `kill` ends a start from another thread."""

    def __init__(
        self,
        settings: MachineSettings,
        root: Root,
        volumes: Sequence[Opened] | None = None,
        maker: Maker | None = None,
    ) -> None:
        """`volumes` are those of the settings, where they are open already; `maker` makes more than this guest."""
        self._settings = settings
        self._root = root
        #: A worker whose guest is not ready yet.
        self._pending: Worker | None = None
        #: Open until the guest is ready, whose worker has them then.
        self._volumes = volumes
        self._maker = maker
        #: The locks on those that are directories, which are the guest's once it has them mounted.
        self._directories: Held | None = None

    def kill(self) -> None:
        self.close()
        if (pending := self._pending) is not None:
            pending.kill()

    def boot_or_restore(self, image: ResolvedImage, warm: Callable[[Guest], None]) -> Guest:
        """A guest of the image's baked snapshot, or one that boots, runs its warm-up, and is baked if wanted.

        Its shares come last, so that no baked snapshot has any.
        """
        return self._attached(self._boot_or_restore(image, warm))

    def _boot_or_restore(self, image: ResolvedImage, warm: Callable[[Guest], None]) -> Guest:
        from ..snapshots import baking

        settings = self._settings
        baked = baked_place(settings, image) if baking.enabled(settings.bake) else None
        if baked is None:
            guest = self._boot(image)
            warm(guest)
            return guest
        if (restored := self._from_baked(baked)) is not None:
            return restored
        if (restored := self._from_arriving(baked, self._arriving(baked))) is not None:
            return restored
        with baked.baking(
            long=settings.warmup is not None,
            on_wait=self._waits,
            until=lambda: self._arriving(baked) is not None,
        ) as turn:
            if not turn and not baked.refused and (restored := self._from_baked(baked)) is not None:
                return restored
            if not turn and (restored := self._from_arriving(baked, self._arriving(baked))) is not None:
                return restored
            if turn and (arrival := self._adopted(baked, image)) is not None:
                restored = self._from_arriving(baked, arrival)
                if not arrival.complete and arrival.failure() is None:
                    # Nobody else is to put one there before.
                    arrival.when_over(turn.keep().release)
                if restored is not None:
                    return restored
            mine = bool(turn)
            guest = self._boot(image)
            if mine:
                from ..guest import read_ahead

                read_ahead.fill(guest.alive(), image.config, settings.engine.architecture)
            warm(guest)
            if mine:
                from ..snapshots.records import Record

                said = Record.of(image, settings, bare=settings.warmup is None)
                baked.bake(guest.alive(), image, said.encode())
        return guest

    def _adopted(self, baked: Baked, image: ResolvedImage) -> Arrival | None:
        """What fetches the snapshot that the image's registry has, where there is one that can be trusted."""
        if self._settings.pull == "never":
            return None
        from ..artifacts import adoption

        return adoption.adopt(baked, image, insecure=self._settings.insecure, progress=self._settings.progress)

    def _arriving(self, baked: Baked) -> Arrival | None:
        """The same, where this process has begun with it and is not done."""
        from ..artifacts import adoption

        return adoption.arriving(baked)

    def _from_arriving(self, baked: Baked, arrival: Arrival | None) -> Guest | None:
        """A guest of a baked snapshot that may still be on its way; ``None``, and a warning, where that fails."""
        if arrival is None:
            return None
        if arrival.complete:
            return self._from_baked(baked)
        from ..host.warnings import warn
        from ..snapshots import working_set

        prefault = working_set.enabled(self._settings.prefault)
        ranges = arrival.working_set() if prefault else []
        try:
            guest = self._restored(Origin([baked.path], baked=True, arrival=arrival), ranges, prefault and not ranges)
        except HostShortage:
            raise
        except SupermachineError as error:
            if isinstance(error, VMExited) and error.reason == "killed":
                raise
            warn(f"the guest boots, as the snapshot of it from its registry cannot be used: {error}")
            return None
        except BaseException:
            arrival.cancel()
            raise
        if prefault and not ranges:
            self._record(guest, [baked.path], baked.working_set, None)
        return guest

    def restore(self, origin: Origin) -> Guest:
        """A guest that goes on from a chain of snapshot files."""
        if not origin.files:
            raise ConfigurationError(
                "a fork that has ended cannot be started again", hint="fork again, or use vm.snapshot and VM.restore"
            )
        from ..images import Cache
        from ..snapshots import code, working_set

        wanted = bool(origin.id) and working_set.enabled(self._settings.prefault)
        kept = working_set.beside(Cache(), origin.id) if wanted else None
        decoded = None
        if wanted and origin.arrival is None and code.has(self._settings.engine.name):
            decoded = code.beside(Cache(), origin.id, origin.files[-1])
        ranges = working_set.load(kept) if kept is not None else []
        records = kept is not None and not ranges
        guest = self._attached(self._restored(origin, ranges, records, decoded))
        self._record(guest, origin.files, kept if records else None, decoded)
        return guest

    def _record(self, guest: Guest, files: Sequence[Path], pages: Path | None, decoded: Path | None) -> None:
        """Has recorded what a first answer takes of memory, to `pages`, and of code, where it was not `decoded`."""
        from ..host import confinement
        from ..images import Cache
        from ..snapshots import code, working_set

        recorders: list[Callable[[Worker], None]] = []
        if pages is not None:
            recorders.append(lambda worker: working_set.record(worker, pages, Cache()))
        if decoded is not None and not code.was_taken(guest.timings):
            required = confinement.required(self._settings.require_confinement)
            recorders.append(lambda worker: code.make(worker, files, decoded, Cache(), required=required))
        if recorders:
            guest.record_until_answer(*recorders)

    def _restored(self, origin: Origin, ranges: launch.PageRanges, records: bool, decoded: Path | None = None) -> Guest:
        files: Sequence[str | os.PathLike[str]] = origin.files
        arrival = origin.arrival
        if arrival is None or (descriptor := arrival.attach()) is None:
            disk = self._disk(files)
            worker = self._restoring(files, disk, ranges, note_order=records, decoded=decoded)
            return self._ready(worker, origin, disk=disk)
        try:
            files = [arrival.path] if arrival.path is not None else files
            disk = self._disk(files)
            worker = self._restoring(files, disk, ranges, arriving=descriptor, note_order=records)
        finally:
            os.close(descriptor)
        try:
            guest = self._ready(worker, origin, disk=disk)
        except SupermachineError as error:
            # Whatever a guest makes of memory that is not there. That it was killed is somebody's wish.
            wished = isinstance(error, VMExited) and error.reason == "killed"
            if not wished and (failure := arrival.failure()) is not None:
                raise failure from error
            raise
        try:
            arrival.wait_for_first()
        except BaseException:
            guest.kill()
            raise
        return guest

    def fork(
        self,
        file: str,
        ranges: launch.PageRanges = (),
        shared: Disk | None = None,
        template: Worker | None = None,
    ) -> Callable[[], Guest]:
        """Starts a worker that restores `file`, and gives what waits for its guest. `ranges` are needed first.

        Where the disk is not in `file`, it is in the files of the one that is `shared`. A `template` is of that file.
        """
        disk = self._disk(shared or [file])
        worker = self._restoring([file], disk, ranges, shared=shared, template=template)
        self._pending = worker
        return lambda: self._attached(self._ready(worker, Origin(()), disk=disk))

    def _disk(self, layers: Sequence[str | os.PathLike[str]] | Disk) -> Disk:
        """The disk of a guest that is about to start, over these layers; nothing where it has none."""
        return Disk.over(layers) if self._settings.disk else Disk()

    def _from_baked(self, baked: Baked) -> Guest | None:
        from ..snapshots import code, working_set

        prefault = working_set.enabled(self._settings.prefault)
        ranges = working_set.load(baked.working_set) if prefault else ()
        decoded = baked.code if prefault and code.has(self._settings.engine.name) else None
        guest = None
        with baked.usable() as there:
            if not there:
                return None
            timeout = min(self._settings.boot_timeout, launch.RESTORE_TIMEOUT)
            learns = prefault and not ranges

            def start(template: Worker | None) -> Guest:
                disk = self._disk([baked.path])
                worker = self._restoring(
                    [baked.path], disk, ranges, timeout, note_order=learns, template=template, decoded=decoded
                )
                return self._ready(worker, Origin([baked.path], baked=True), timeout, disk=disk)

            # One that learns starts by itself: a copy of a process cannot see its own page tables.
            if self._maker is None or learns:
                guest = start(None)
                self._record(guest, [baked.path], baked.working_set if learns else None, decoded)
            else:
                guest = self._maker.make(self._settings, self._root, str(baked.path), start, decoded)
        return guest

    def _boot(self, image: ResolvedImage) -> Guest:
        s, disk = self._settings, self._disk(())
        worker = launch.spawn(
            s.engine,
            image,
            s.memory,
            s.vcpus,
            s.hostname,
            s.boot_timeout,
            s.network,
            self._open_shares(),
            (disk.own, s.disk) if disk else None,
            self._open_volumes(),
            s.require_confinement,
        )
        return self._ready(worker, None, disk=disk)

    def _restoring(
        self,
        files: Sequence[str | os.PathLike[str]],
        disk: Disk,
        ranges: launch.PageRanges,
        timeout: float | None = None,
        shared: Disk | None = None,
        arriving: int | None = None,
        note_order: bool = False,
        template: Worker | None = None,
        decoded: Path | None = None,
    ) -> Worker:
        settings, root = self._settings, self._root
        timeout = timeout or settings.boot_timeout
        return launch.spawn_restored(
            settings.engine.name,
            root.disks,
            files,
            settings.hostname,
            timeout,
            ranges,
            root.agent,
            settings.network,
            self._open_shares(),
            (disk.own, shared.paths() if shared else ()) if disk else None,
            self._open_volumes(),
            settings.require_confinement,
            arriving,
            note_order,
            template,
            decoded,
        )

    def _open_shares(self) -> Sequence[Mounted]:
        if not (mounted := self._settings.shares):
            return ()
        if self._directories is None and any(share.volume for share in mounted):
            from ..storage import shares

            self._directories = shares.held(mounted)
        return mounted

    def _open_volumes(self) -> launch.OpenVolumes:
        if not (mounted := self._settings.volumes):
            return ()
        if self._volumes is None:
            from ..storage import volumes

            self._volumes = volumes.opened(mounted)
        return [(disk.fd, disk.changes, disk.mounted.slot) for disk in self._volumes]

    def close(self) -> None:
        """Lets go what was opened for the start; it is over, one way or another."""
        if opened := self._volumes:
            from ..storage import volumes

            self._volumes = None
            volumes.close(opened)
        if held := self._directories:
            self._directories = None
            held.close()

    def _attached(self, guest: Guest) -> Guest:
        """Mounts shares and volumes in a guest that is ready, and puts it on its segments."""
        settings, opened = self._settings, self._volumes or ()
        if settings.shares or opened or settings.tmpfs or settings.shm_size or settings.read_only:
            from ..storage import shares

            try:
                user = settings.user or self._root.config.user
                if settings.read_only:
                    self._make_working_directory(guest)
                shares.attach(
                    guest.served(),
                    settings.shares,
                    user,
                    opened,
                    settings.tmpfs,
                    settings.shm_size,
                    settings.read_only,
                )
            except BaseException:
                guest.worker.kill()
                raise
        if held := self._directories:
            self._directories, guest.directories = None, held
            held.filled()
        if joins := self._settings.network.segments:
            from ..network import segments

            own = (self._settings.hostname,) if self._settings.hostname else ()
            try:
                for segment, names in joins:
                    segments.join(guest.worker, segment, (*own, *names))
            except BaseException:
                guest.worker.kill()
                raise
        self.close()
        return guest

    def _make_working_directory(self, guest: Guest) -> None:
        """As the first process would, which cannot when the root is read-only."""
        if where := self._settings.working_dir or self._root.config.working_dir:
            from ..guest.paths import FileSystem, GuestPath

            GuestPath(where, filesystem=FileSystem(guest.served)).mkdir(parents=True, exist_ok=True)

    def _ready(self, worker: Worker, origin: Origin | None, timeout: float | None = None, *, disk: Disk) -> Guest:
        """Waits until the worker's guest is ready."""
        self._pending = worker
        try:
            timings = launch.wait_ready(worker, timeout or self._settings.boot_timeout)
            return Guest(worker, timings, origin, agent=self._root.agent, disk=disk)
        finally:
            self._pending = None

    def _waits(self) -> None:
        if (report := self._settings.progress) is not None and self._root.image is not None:
            from ..images.progress import ProgressEvent

            report(ProgressEvent("wait", self._root.image.digest, 0, 0))


def baked_place(settings: MachineSettings, image: ResolvedImage) -> Baked | None:
    """Where the snapshot is that a machine of these settings starts from; ``None`` where there can be none."""
    from ..snapshots import baking

    context = [image.digest, settings.environment, settings.working_dir, settings.user]
    warmup = baking.warmup_key(settings.warmup, settings.warmup_key, context)
    return baking.Baked.place(
        image,
        settings.engine,
        memory=settings.memory,
        disk=settings.disk,
        vcpus=settings.vcpus,
        warmup=warmup,
    )
