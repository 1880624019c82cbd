"""`resolve`: from a reference to an image that can be started, through the cache."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from .. import descriptors, env
from ..cache.locks import acquire, release
from ..cache.store import Cache, rootfs_key
from ..errors import (
    CacheError,
    ConfigurationError,
    DigestMismatch,
    ImageNotFound,
    ImageTooLarge,
    InvalidImage,
    RegistryError,
    RegistryTimeout,
    RegistryUnauthorized,
)
from ..oci.model import CONFIGS, INDEXES, MANIFESTS, Descriptor, ImageConfig, parse_config, parse_manifest
from ..oci.platforms import Platform
from ..oci.references import FileReference, RegistryReference, looked_at, parse_reference
from .progress import Progress, Reporter

if TYPE_CHECKING:
    from threading import Event

    from ..oci.layout import Region
    from ..oci.registry import Repository
    from ..oci.selection import Selected
    from ..oci.transport import Transport

Pull = Literal["missing", "always", "never"]
# The platform whose guests run on every host, by the software engine if need be.
DEFAULT_PLATFORM = Platform("linux", "arm64")
# Of the root file system, and of all layers together, compressed.
DEFAULT_MAX_BYTES = 64 << 30
#: What is downloaded may become so many times as large, and this much beyond: sparse files compress to next to nothing.
#: What claims more is a bomb, and its maker pays little for it.
_MOST_COMPRESSED = 200
_ANY_CONTENTS = 4 << 30
_PARALLEL_DOWNLOADS = 3
# Seconds between two looks at a lock that another process has.
_POLL = 0.05

# path, offset, length, digest of these bytes, digest of the tar inside, compression (None: by its first bytes)
Layer = tuple[str, int, int, str | None, str | None, str | None]
ConvertFunction = Callable[[list[Layer], str, int, Callable[[int, int], None] | None], Any]


class Converter(NamedTuple):
    """Makes one root file system of layers; another `version` makes other bytes, which are cached apart."""

    version: str
    convert: ConvertFunction

    @classmethod
    def default(cls) -> Converter:
        from importlib import import_module

        core: Any = import_module("supermachine._core")
        version = getattr(core, "CONVERTER_VERSION", None) or core.VERSION
        return cls(str(version), core.convert_image)


class ResolvedImage(NamedTuple):
    """An image on disk. `digest` is of the manifest (of the configuration for `docker save`), `size` of `rootfs`.

    While no file of `looked_at` appears, changes or goes, the same reference is the same image.
    """

    reference: str
    digest: str
    platform: Platform
    config: ImageConfig
    rootfs: Path
    size: int
    looked_at: tuple[Path, ...] = ()


def resolve(
    reference: str | os.PathLike[str],
    *,
    platform: str | Platform | None = None,
    pull: Pull = "missing",
    insecure: bool = False,
    progress: Progress | None = None,
    cache: Cache | None = None,
    converter: Converter | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    transport: Transport | None = None,
) -> ResolvedImage:
    """The image that `reference` names, as a root file system in the cache.

    `pull` is about registries: ``missing`` asks only when the cache does not have the reference, ``always`` asks every
    time (and downloads only what is new), ``never`` makes an absence an error. Local layouts and archives are looked
    at every time. `insecure` allows plain HTTP and unverified TLS; loopback hosts are allowed them anyway.
    `max_bytes` bounds the root file system, and the sum of the layers.

    Raises a subclass of :class:`~supermachine.errors.SupermachineError`; nothing half-made is left behind.
    """
    if pull not in ("missing", "always", "never"):
        raise ConfigurationError(f"pull is {pull!r}", hint="choose missing, always or never")
    parsed = parse_reference(reference)
    wanted = DEFAULT_PLATFORM if platform is None else Platform.parse(platform)
    cache = cache or Cache()
    cache.check()
    store = _Store(cache, converter or Converter.default(), Reporter(progress), max_bytes)
    if isinstance(parsed, FileReference):
        found, index = store.from_files(parsed, wanted)
        return found._replace(looked_at=(*looked_at(reference), *index))
    parsed = parsed.with_default_tag()
    cached = store.cached(parsed, wanted) if pull != "always" else None
    if cached is None and pull == "never":
        raise ImageNotFound(
            f"image {parsed.familiar} for {wanted} is not in the cache", hint="pull it first, or allow pulling"
        )
    found = cached or store.from_registry(parsed, wanted, insecure, transport)
    record = cache.reference_path(str(parsed), str(wanted))
    return found._replace(looked_at=(*looked_at(reference), record))


class _Store:
    def __init__(self, cache: Cache, converter: Converter, report: Reporter, max_bytes: int) -> None:
        self._cache = cache
        self._converter = converter
        self._report = report
        self._max_bytes = max_bytes

    def cached(self, reference: RegistryReference, wanted: Platform) -> ResolvedImage | None:
        record = self._cache.reference_record(str(reference), str(wanted))
        if record is None:
            return None
        return self._from_record(reference.familiar, str(record.get("digest")), str(record.get("image_platform")))

    def _from_record(self, name: str, digest: str, platform: str) -> ResolvedImage | None:
        """An image that is in the cache as this converter makes it."""
        record = self._cache.image_record(digest, platform)
        if record is None:
            return None
        layers, raw = record.get("layers"), record.get("config")
        if not isinstance(layers, list) or not isinstance(raw, str):
            return None
        key = rootfs_key(layers, platform, self._converter.version)
        rootfs = self._cache.rootfs(key)
        try:
            size = rootfs.stat().st_size
            config = parse_config(raw.encode(), f"the cached configuration of {name}")
        except (OSError, InvalidImage):
            return None
        self._cache.touch(digest, platform)
        return ResolvedImage(name, digest, Platform.parse(platform), config, rootfs, size)

    def from_files(self, reference: FileReference, wanted: Platform) -> tuple[ResolvedImage, list[Path]]:
        """The image, and the files that say that it is this one."""
        from ..oci.archive import decompress
        from ..oci.layout import open_source

        name = str(reference)
        self._report("resolve", name)
        with contextlib.ExitStack() as stack:

            def decompressed(path: Path, compression: str) -> Path:
                target = stack.enter_context(self._cache.scratch()) / "archive.tar"
                limit = self._bound(path.stat().st_size)
                with self._cache.errors("write to"):
                    decompress(path, compression, target, limit)
                return target

            source = open_source(reference, decompressed)
            selected = source.select(wanted)
            regions = source.regions(selected)
            found = self._finish(name, name, wanted, selected, lambda: contextlib.nullcontext(regions))
            return found, source.index

    def from_registry(
        self, reference: RegistryReference, wanted: Platform, insecure: bool, transport: Transport | None
    ) -> ResolvedImage:
        """The image of its registry, or of a mirror that has it; what a mirror lacks is no error."""
        from ..host import warnings
        from ..oci.mirrors import mirrored

        for mirror in mirrored(reference):
            try:
                return self._from(mirror, reference, wanted, insecure, transport)
            except (RegistryError, RegistryTimeout, RegistryUnauthorized, ImageNotFound, DigestMismatch) as error:
                warnings.warn(f"the mirror {mirror.domain} was of no use for {reference.familiar}: {error}")
        return self._from(reference, reference, wanted, insecure, transport)

    def _from(
        self,
        place: RegistryReference,
        reference: RegistryReference,
        wanted: Platform,
        insecure: bool,
        transport: Transport | None,
    ) -> ResolvedImage:
        """What `place` has, known as `reference` from then on."""
        from ..oci.registry import Repository
        from ..oci.selection import select
        from ..oci.transport import Transport

        self._report("resolve", str(place))
        own = transport is None
        transport = transport or Transport(insecure=insecure)
        try:
            repository = Repository(place, transport=transport)
            data, media_type, digest = repository.manifest(reference.target)
            # Parsed for its kind here, and again when it is chosen: it is small and in memory.
            top = Descriptor(media_type if _known(media_type) else "", digest, len(data))
            parse_manifest(data, top.media_type or None, f"the manifest of {reference.familiar}")

            def read(descriptor: Descriptor, what: str) -> bytes:
                if descriptor.digest == digest:
                    return data
                if descriptor.media_type in CONFIGS:
                    return repository.small_blob(descriptor, what)
                return repository.manifest(descriptor.digest)[0]

            selected = select(reference.familiar, top, read, wanted)
            return self._finish(
                reference.familiar,
                str(reference),
                wanted,
                selected,
                lambda: self._downloaded(repository, selected),
            )
        finally:
            if own:
                transport.close()

    def _finish(
        self,
        name: str,
        reference: str,
        wanted: Platform,
        selected: Selected,
        layers: Callable[[], contextlib.AbstractContextManager[list[Region]]],
    ) -> ResolvedImage:
        total = sum(layer.size for layer in selected.layers)
        if total > self._max_bytes:
            raise ImageTooLarge(f"the layers of {name} have {total} bytes; {self._max_bytes} is the limit")
        cache, platform = self._cache, str(selected.platform)
        identities = [
            layer.digest or diff_id for layer, diff_id in zip(selected.layers, selected.config.diff_ids, strict=True)
        ]
        key = rootfs_key(identities, platform, self._converter.version)
        rootfs = cache.rootfs(key)
        record = {"layers": identities, "config": selected.config_bytes.decode("utf-8", "replace"), "rootfs": key}
        image = (selected.digest, platform)
        kept = (reference, str(wanted), *image)
        # What is all there takes no lock, so that a cache that cannot be written to serves too.
        if not (rootfs.exists() and cache.has_reference(*kept) and cache.has_image(*image, record)):
            try:
                cache.prepare()
                with cache.locked("rootfs", key, on_wait=lambda: self._report("wait", selected.digest)):
                    if not rootfs.exists():
                        self._make(rootfs, selected, layers)
                    # Under the lock, so that nobody prunes a root file system that has no records yet.
                    cache.save_image(*image, record)
                    cache.save_reference(*kept)
            except CacheError:
                if not rootfs.exists():
                    raise  # else it can be used all the same
        size = rootfs.stat().st_size
        self._report("done", selected.digest, size, size)
        return ResolvedImage(name, selected.digest, selected.platform, selected.config, rootfs, size)

    def _make(
        self,
        rootfs: Path,
        selected: Selected,
        layers: Callable[[], contextlib.AbstractContextManager[list[Region]]],
    ) -> None:
        blobs = [layer.digest for layer in selected.layers if layer.digest]
        try:
            with layers() as regions:
                self._convert(regions, rootfs, selected.digest)
        except (DigestMismatch, InvalidImage):
            # If it is the disk that damaged them, the next attempt gets them anew.
            self._cache.drop_blobs(blobs)
            raise
        if os.environ.get(env.KEEP_BLOBS, "0") in ("", "0"):
            self._cache.drop_blobs(blobs)

    def _convert(self, regions: Sequence[Region], rootfs: Path, digest: str) -> None:
        layers: list[Layer] = [(str(r.path), r.offset, r.length, r.digest, r.diff_id, None) for r in regions]

        def progress(done: int, total: int) -> None:
            self._report("convert", digest, done, total)

        limit = self._bound(sum(region.length for region in regions))
        with self._cache.scratch() as place:
            output = place / "rootfs.erofs"
            with self._cache.errors("write to"):
                self._converter.convert(layers, str(output), limit, progress)
            self._cache.publish(output, rootfs)

    def _bound(self, compressed: int) -> int:
        """Bytes that so many may become when they are decompressed."""
        return min(self._max_bytes, _ANY_CONTENTS + _MOST_COMPRESSED * compressed)

    @contextlib.contextmanager
    def _downloaded(self, repository: Repository, selected: Selected) -> Iterator[list[Region]]:
        """The layers as blobs in the cache, protected from removal until the end."""
        from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
        from threading import Event

        from ..oci.layout import Region

        stop = Event()
        unique = {layer.digest: layer for layer in selected.layers}
        executor = ThreadPoolExecutor(_PARALLEL_DOWNLOADS, thread_name_prefix="supermachine-pull")
        futures = [executor.submit(self._fetch, repository, layer, stop) for layer in unique.values()]
        try:
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                failed = next((error for f in done if (error := f.exception()) is not None), None)
                if failed is not None:
                    raise failed
            except BaseException:
                stop.set()
                repository.abort()
                raise
            finally:
                executor.shutdown(wait=True, cancel_futures=True)
            yield [
                Region(self._cache.blob(layer.digest), 0, layer.size, layer.digest, diff_id)
                for layer, diff_id in zip(selected.layers, selected.config.diff_ids, strict=True)
            ]
        finally:
            for future in futures:
                if not future.cancelled() and future.exception() is None:
                    release(future.result())

    def _fetch(self, repository: Repository, layer: Descriptor, stop: Event) -> int:
        """Has the blob in the cache; gives the descriptor of a shared lock that keeps it there."""
        path, lock = self._cache.blob(layer.digest), self._cache.lock("blob", layer.digest)
        downloaded = False
        while True:
            shared = self._acquire(lock, layer, stop, shared=True)
            if _is_there(path, layer):
                if not downloaded:
                    self._report("exists", layer.digest, layer.size, layer.size)
                return shared
            release(shared)
            exclusive = self._acquire(lock, layer, stop, shared=False)
            try:
                if not _is_there(path, layer):
                    self._download(repository, layer, path, stop)
                    downloaded = True
            finally:
                release(exclusive)

    def _acquire(self, lock: Path, layer: Descriptor, stop: Event, *, shared: bool) -> int:
        """Asks for the lock again and again, as nothing could wake a thread that waits in the kernel."""
        told = False
        while True:
            if stop.is_set():
                raise _StoppedError
            fd = acquire(lock, shared=shared, block=False)
            if fd is not None:
                return fd
            if not told:
                self._report("wait", layer.digest)
                told = True
            stop.wait(_POLL)

    def _download(self, repository: Repository, layer: Descriptor, path: Path, stop: Event) -> None:
        def progress(done: int) -> None:
            if stop.is_set():
                raise _StoppedError
            self._report("download", layer.digest, done, layer.size)

        with self._cache.scratch() as place:
            temporary = place / "blob"
            with self._cache.errors("write to"):
                fd = descriptors.open_file(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL)
                with os.fdopen(fd, "wb") as stream:
                    repository.blob(layer, stream, f"layer {layer.digest} of {repository.name}", progress)
            self._cache.publish(temporary, path)


class _StoppedError(Exception):
    """Another layer failed, so this one is not needed."""


def _is_there(path: Path, layer: Descriptor) -> bool:
    return path.is_file() and path.stat().st_size == layer.size


def _known(media_type: str) -> bool:
    return media_type in INDEXES or media_type in MANIFESTS
