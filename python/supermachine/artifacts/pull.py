"""From a reference to a snapshot's file: trusted first, then fetched, then verified as a whole, then there."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .. import _core, descriptors, directories
from ..cache.store import Cache
from ..errors import BadSnapshot, CacheNotTrusted, SupermachineError
from ..images import Progress
from ..images.progress import Reporter
from ..oci.model import Descriptor
from ..oci.references import RegistryReference, parse_registry_reference
from ..oci.registry import Repository
from ..oci.transport import Transport
from ..snapshots import capture, working_set
from ..snapshots.records import Head
from . import arrival, trust
from .arrival import Arrival
from .download import Download
from .model import KERNEL_TYPE, MAX_KERNEL, PART_TYPE, Config, Manifest
from .parts import HOT, HOT_ROOT, RAM, ROOT, KernelFile

#: Snapshots that one may build on, each on the next.
_MAX_DEPTH = 64
#: Bytes of a snapshot's file: RAM, what comes before it, and 64 GiB that were written to a disk.
_MAX_BYTES = _core.MAX_MEMORY + (64 << 30) + (33 << 20)


@dataclass(frozen=True)
class Pulled:
    """A snapshot that came from a registry."""

    path: Path
    #: Of its manifest: what it is pinned by.
    digest: str
    config: Config
    #: Who signed it; ``None`` if its digest was given.
    signer: str | None = None


def pull(
    reference: str,
    output: Path | None = None,
    *,
    insecure: bool = False,
    progress: Progress | None = None,
    cache: Cache | None = None,
    keys: trust.Keys | None = None,
    transport: Transport | None = None,
    early: Arrival | None = None,
) -> Pulled:
    """The snapshot that `reference` names, in the cache, or as a new file at `output`.

    It is there when all of it was verified. Raises UntrustedSnapshot, before anything of it is fetched, for one that is
    neither named by its digest nor signed by a trusted key. `early` hears when a guest may start from it, if that is
    before all of it is there.
    """
    parsed = parse_registry_reference(reference).with_default_tag()
    cache = cache or Cache()
    store = _Store(cache)
    if parsed.digest is not None and output is None and (found := store.find(parsed.digest)) is not None:
        return found
    with opened(parsed, insecure, transport) as repository:
        puller = Puller(repository, store, Reporter(progress), early)
        data, _, digest = repository.manifest(parsed.target)
        Manifest.decode(data, f"the manifest of {parsed.familiar}")
        signer = trust.check(repository, parsed, digest, keys)
        found = puller.fetch(digest, data, output)
    return Pulled(found.path, found.digest, found.config, signer)


def is_here(reference: str, cache: Cache | None = None) -> bool:
    """Whether the cache has the snapshot of a reference that is pinned; not whether it may be run."""
    digest = parse_registry_reference(reference).digest
    return digest is not None and (_Store(cache or Cache()).directory(digest) / "snapshot").is_file()


@contextlib.contextmanager
def opened(
    parsed: RegistryReference, insecure: bool, transport: Transport | None, *, push: bool = False
) -> Iterator[Repository]:
    """The repository of a reference, for the block."""
    own = transport is None
    transport = transport or Transport(insecure=insecure)
    try:
        yield Repository(parsed, transport=transport, push=push)
    finally:
        if own:
            transport.close()


class _Store:
    """Snapshots of registries in the cache, a directory for the digest of each manifest::

    artifacts/<digest>/snapshot     the file
    artifacts/<digest>/config       what the registry said of it
    artifacts/<digest>/base-<id>    of a diff, what it builds on
    """

    def __init__(self, cache: Cache) -> None:
        self.cache = cache

    def directory(self, digest: str) -> Path:
        return self.cache.directory / "artifacts" / digest.replace(":", "-")

    def find(self, digest: str) -> Pulled | None:
        """Raises CacheNotTrusted for what other users could have written: it is memory that would run."""
        place = self.directory(digest)
        self.cache.check()
        for path in (place.parent, place, place / "snapshot"):
            if (why := directories.distrust(path)) is not None:
                raise CacheNotTrusted(f"the snapshot {path} {why}, so it is not run", hint=f"remove it: rm -r {place}")
        try:
            config = Config.decode((place / "config").read_bytes(), f"the snapshot {place}")
            if Head.read(place / "snapshot").id != config.id:
                return None
        except (OSError, SupermachineError):
            return None
        return Pulled(place / "snapshot", digest, config)


class Puller:
    """Fetches snapshots that are trusted from one repository."""

    def __init__(self, repository: Repository, store: _Store, report: Reporter, early: Arrival | None = None) -> None:
        self._repository = repository
        self._store = store
        self._report = report
        self._early = early

    @classmethod
    def of(
        cls, repository: Repository, cache: Cache, progress: Progress | None, early: Arrival | None = None
    ) -> Puller:
        """One for this repository and cache. `early` is for the snapshot that is asked for, and not for its base."""
        return cls(repository, _Store(cache), Reporter(progress), early)

    def fetch(self, digest: str, data: bytes | None = None, output: Path | None = None, depth: int = 0) -> Pulled:
        """The snapshot whose manifest has this digest, which is believed; with what it builds on."""
        cache = self._store.cache
        if output is None and (found := self._store.find(digest)) is not None:
            return found
        if depth > _MAX_DEPTH:
            raise BadSnapshot(f"the snapshot {digest} builds on more than {_MAX_DEPTH} others")
        what = f"the snapshot {self._repository.name}@{digest}"
        manifest = Manifest.decode(data or self._repository.manifest(digest)[0], f"the manifest of {what}")
        config = self._config(manifest, what)
        base = None if config.base is None else self.fetch(config.base.manifest, depth=depth + 1)
        if base is not None and config.base is not None and base.config.id != config.base.id:
            raise BadSnapshot(f"{what} builds on {config.base.id}, and its registry gives {base.config.id} for that")
        if config.parent is not None and (base is None or base.config.id != config.parent):
            raise BadSnapshot(f"{what} is a diff to {config.parent}, and does not say where that is")
        if output is not None:
            with capture.published(output) as fd:
                self._make(config, manifest, fd, base, what)
            path = output
        else:
            directory = self._store.directory(digest)
            cache.prepare()
            with cache.locked("artifact", digest, on_wait=lambda: self._report("wait", digest)):
                if (found := self._store.find(digest)) is not None:
                    return found
                path = directory / "snapshot"
                with cache.scratch() as place:
                    with cache.errors("write to"):
                        fd = descriptors.open_file(place / "snapshot", os.O_RDWR | os.O_CREAT | os.O_EXCL)
                        try:
                            self._make(config, manifest, fd, base, what, path if depth == 0 else None)
                        finally:
                            os.close(fd)
                        (place / "config").write_bytes(config.encode())
                        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                    cache.publish(place / "config", directory / "config")
                    cache.publish(place / "snapshot", path)
        if config.parent is not None and base is not None:
            _beside(base, path.parent)
        self._keep_working_set(config)
        return Pulled(path, digest, config)

    def into(self, digest: str, fd: int, place: Path, wanted: Callable[[Config], bool]) -> Config:
        """A whole snapshot into an empty file of the caller's, which will be at `place`.

        Raises BadSnapshot, before its pages are fetched, for one that is not the `wanted` one.
        """
        what = f"the snapshot {self._repository.name}@{digest}"
        manifest = Manifest.decode(self._repository.manifest(digest)[0], f"the manifest of {what}")
        config = self._config(manifest, what)
        if not wanted(config):
            raise BadSnapshot(f"{what} is another one than its registry's list of referrers says")
        base = None if config.base is None else self.fetch(config.base.manifest, depth=1)
        self._make(config, manifest, fd, base, what, place)
        return config

    def _config(self, manifest: Manifest, what: str) -> Config:
        if (held := manifest.inline.get(manifest.config.digest)) is not None:
            return Config.decode(held, what)
        buffer = io.BytesIO()
        self._repository.blob(manifest.config, buffer, f"the configuration of {what}")
        return Config.decode(buffer.getvalue(), what)

    def _make(
        self, config: Config, manifest: Manifest, fd: int, base: Pulled | None, what: str, place: Path | None = None
    ) -> None:
        """Into an empty file; where it is to be at `place`, a guest may start from it before."""
        unpacker = _core.Unpacker(what, config.table, [fd], _MAX_BYTES)
        layers = {layer.media_type: layer for layer in manifest.layers}
        if config.kernel is not None:
            self._with_kernel(config, config.kernel, layers, unpacker, what)
        download = Download(self._repository, unpacker, lambda d, n, t: self._report("download", d, n, t))
        wanted, at_hand = [], {}
        for number, (name, _, size, _, shared) in enumerate(unpacker.parts()):
            if shared:
                if base is None:
                    raise BadSnapshot(f"{what} has pages of another snapshot, and does not say of which")
                offset = _core.read_snapshot(str(base.path))["ram_offset"]
                unpacker.copy_base(number, str(base.path), offset)
            if size:
                layer = _layer(layers, name, size, what)
                if (image := self._root_of(config, name)) is not None:
                    at_hand[number] = image
                if (held := manifest.inline.get(layer.digest)) is not None:
                    unpacker.frames(number, 0, held)
                else:
                    wanted.append((number, layer, f"the part {name} of {what}"))
        if self._early is not None and place is not None and arrival.possible(config):
            names = [part[0] for part in unpacker.parts()]
            later = [one for one in wanted if names[one[0]] in (RAM, ROOT)]
            first = [one for one in wanted if names[one[0]] in (HOT, HOT_ROOT)]
            download.parts([one for one in wanted if one not in later and one not in first])
            self._check(config, fd, what)
            self._keep_working_set(config)
            first = [one for one in first if not _from_root(unpacker, at_hand, one[0])]
            offset = _core.read_snapshot(f"/dev/fd/{fd}")["ram_offset"]
            local = {n: partial(_from_root, unpacker, at_hand, n) for n, _, _ in later if n in at_hand}
            self._early.begin(fd, place, config, unpacker, download, first, later, offset, local)
        else:
            download.parts([one for one in wanted if not _from_root(unpacker, at_hand, one[0])])
        if unpacker.finish() != config.id:
            raise BadSnapshot(f"{what} is another one than its configuration says")
        self._check(config, fd, what)

    def _root_of(self, config: Config, part: str) -> tuple[Path, bytes] | None:
        """The root image, if it is here, and which of its blocks the pages of a part are; ``None`` for other parts."""
        if config.root is None or (said := config.root.parts.get(part)) is None:
            return None
        image = self._store.cache.rootfs(config.root.image)
        return (image, said) if image.is_file() else None

    def _with_kernel(
        self, config: Config, digest: str, layers: dict[str, Descriptor], unpacker: _core.Unpacker, what: str
    ) -> None:
        """The kernel that frames are packed against: this installation's, or the registry's if that is another one."""
        kernel = KernelFile.of(config.architecture)
        if kernel is None or kernel.digest != digest:
            layer = layers.get(KERNEL_TYPE)
            if layer is None or layer.digest != digest or layer.size > MAX_KERNEL:
                raise BadSnapshot(f"{what} is packed against a kernel that neither it nor this installation has")
            buffer = io.BytesIO()
            self._repository.blob(layer, buffer, f"the kernel of {what}")
            unpacker.with_kernel(f"of {what}", buffer.getvalue())
        else:
            unpacker.with_kernel(str(kernel.path), kernel.data)

        def read() -> None:
            with contextlib.suppress(SupermachineError):  # whoever needs it is told
                unpacker.read_kernel()

        # Beside the first answers, which take as long.
        threading.Thread(target=read, name="supermachine-kernel", daemon=True).start()

    def _check(self, config: Config, fd: int, what: str) -> None:
        """Its manifest and configuration may be looked at in its place, so they say the same."""
        head = Head.of(Path(f"/dev/fd/{fd}"), _core.read_snapshot(f"/dev/fd/{fd}"))
        record = head.record()
        said = (config.id, config.parent, config.engine, config.memory, config.vcpus, config.image)
        if said != (head.id, head.parent, head.engine, head.memory, head.vcpus, record.digest):
            raise BadSnapshot(f"{what} is of another machine than its configuration says")

    def _keep_working_set(self, config: Config) -> None:
        if not config.working_set:
            return
        with contextlib.suppress(OSError, ValueError, SupermachineError):
            working_set.decode(config.working_set)
            place = working_set.beside(self._store.cache, config.id)
            with self._store.cache.scratch() as scratch:
                (scratch / "working-set").write_bytes(config.working_set)
                place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._store.cache.publish(scratch / "working-set", place)


def _from_root(unpacker: _core.Unpacker, at_hand: Mapping[int, tuple[Path, bytes]], part: int) -> bool:
    """Takes a part's pages from the root image; whether that had all of them. The others are fetched."""
    if (found := at_hand.get(part)) is None:
        return False
    image, said = found
    return unpacker.from_root(part, str(image), said)


def _layer(layers: dict[str, Descriptor], name: str, size: int, what: str) -> Descriptor:
    found = layers.get(PART_TYPE.format(name))
    if found is None or found.size != size:
        raise BadSnapshot(f"{what} has no blob of {size} bytes for its part {name}")
    return found


def _beside(base: Pulled, directory: Path) -> None:
    """Puts what a diff builds on where it is looked for."""
    for path in (base.path, *base.path.parent.glob("base-*")):
        target = directory / (path.name if path.name != "snapshot" else f"base-{base.config.id[:16]}")
        if target.exists():
            continue
        try:
            os.link(path, target)
        except OSError:
            with capture.published(target) as fd:
                capture.copy_sparse(path, fd)


def prune(cache: Cache) -> int:
    """Removes the snapshots of registries that no virtual machine runs from; gives the bytes freed."""
    freed = 0
    with contextlib.suppress(OSError):
        for directory in sorted((cache.directory / "artifacts").iterdir()):
            with contextlib.suppress(OSError, SupermachineError):
                freed += capture.delete(directory / "snapshot")
                shutil.rmtree(directory)
    with contextlib.suppress(OSError):
        shutil.rmtree(cache.directory / "uploads")
    return freed
