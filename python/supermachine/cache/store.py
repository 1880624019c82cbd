"""The cache of images: what is kept, where, and how several processes share it.

Under the cache directory (``SUPERMACHINE_CACHE``; else ``~/Library/Caches/supermachine`` on macOS and
``$XDG_CACHE_HOME/supermachine`` or ``~/.cache/supermachine`` elsewhere; ``/tmp/supermachine-<uid>`` for who has no
home)::

    blobs/sha256/<digest>     layers on their way into a root file system
    rootfs/<key>.erofs        root file systems; the key is of the ordered layers, the platform and the converter
    images/<key>.json         one record per image and platform: configuration, layers, which root file system
    references/<key>.json     which image a reference meant when it was last asked for
    artifacts/<digest>/       snapshots of registries, by the digests of their manifests
    code/<snapshot>           decoded code of snapshots elsewhere
    starts/<key>              what a command line came to, while all that says so stays as it is
    locks/                    one lock file per thing that only one process may make at a time
    tmp/                      work in progress, a locked directory per piece of work

A file with a final name is complete: it is written under ``tmp``, synced and renamed. What a killed process leaves
behind in ``tmp`` is unlocked, and the next process that writes removes it. Directories have the mode 0700, files 0600.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .. import descriptors, directories, shortage
from .._core import sha256
from ..errors import CacheError, CacheNotTrusted, DiskFull, SupermachineError
from .locks import acquire, locked, release

_DIRECTORIES = ("blobs", "rootfs", "images", "references", "starts", "snapshots", "code", "artifacts", "locks", "tmp")
# A directory in tmp exists for a moment before its lock does.
_STALE_SECONDS = 60.0
#: New scratch directories that others may take for stale ones before something else must be wrong.
_ATTEMPTS = 16
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# supermachine's cache; it can be deleted at any time.\n"


#: Told what was removed, and of how many bytes.
Removed = Callable[[str, int], object]


class CachedImage(NamedTuple):
    """One line of ``supermachine images``. Sizes are bytes on disk; `last_used` is seconds since the epoch."""

    digest: str
    platform: str
    references: tuple[str, ...]
    size: int
    rootfs: Path
    last_used: float


class Cache:
    """Safe to use from several threads and processes at once."""

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        self.directory = Path(directories.cache_directory() if directory is None else directory)
        self._prepared = False
        self._checked = False

    # Making and finding files.

    def check(self) -> None:
        """Raises CacheNotTrusted when other users own the cache or can write to it; once per instance."""
        if self._checked:
            return
        for path in (self.directory, *(self.directory / name for name in _DIRECTORIES)):
            why = directories.distrust(path)
            if why is not None:
                raise CacheNotTrusted(
                    f"the cache directory {path} {why}, so what is in it is not used",
                    hint=f"chmod go-w {path}, if it is yours; SUPERMACHINE_CACHE names another directory",
                )
        self._checked = True

    def prepare(self) -> None:
        """Creates what is missing, and removes what killed processes left; once per instance."""
        if self._prepared:
            return
        self.check()
        with self.errors("prepare"):
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in _DIRECTORIES:
                (self.directory / name).mkdir(mode=0o700, exist_ok=True)
            for algorithm in ("sha256", "sha512"):
                (self.directory / "blobs" / algorithm).mkdir(mode=0o700, exist_ok=True)
            tag = self.directory / "CACHEDIR.TAG"
            if not tag.exists():
                fd = descriptors.open_file(tag, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                with os.fdopen(fd, "w") as stream:
                    stream.write(_TAG)
        self._prepared = True
        self.remove_stale()

    @contextlib.contextmanager
    def errors(self, action: str) -> Iterator[None]:
        """Turns errors of the file system into those of this package."""
        try:
            yield
        except OSError as error:
            if error.errno is None or isinstance(error, SupermachineError):
                raise
            if error.errno in _FULL:
                raise DiskFull(f"there is no room left in the cache {self.directory}", cause=str(error)) from error
            if (lacking := shortage.named(error, f"cannot {action} the cache {self.directory}")) is not None:
                raise lacking from error
            raise CacheError(
                f"cannot {action} the cache {self.directory}",
                cause=str(error),
                hint="SUPERMACHINE_CACHE names another directory, which must be one that this user can write to",
            ) from error

    @contextlib.contextmanager
    def locked(self, kind: str, name: str, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """The right to make one thing, waited for. Raises CacheError where the cache cannot be written to."""
        with self.errors("write to"):
            lock = acquire(self.lock(kind, name), on_wait=on_wait)
        assert lock is not None
        try:
            yield
        finally:
            release(lock)

    def blob(self, digest: str) -> Path:
        algorithm, _, value = digest.partition(":")
        return self.directory / "blobs" / algorithm / value

    def rootfs(self, key: str) -> Path:
        return self.directory / "rootfs" / f"{key}.erofs"

    def lock(self, kind: str, name: str) -> Path:
        return self.directory / "locks" / f"{kind}-{name.replace(':', '-')}"

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A directory for work in progress, removed at the end, or by others after this process was killed."""
        self.prepare()
        with self.errors("write to"):
            place, lock = self._scratch()
        owner = os.getpid()
        try:
            yield place
        finally:
            if owner == os.getpid():
                _remove_tree(place)
            release(lock)

    def _scratch(self) -> tuple[Path, int]:
        """A new directory and the lock that says it is in use."""
        for _ in range(_ATTEMPTS):
            place = self.directory / "tmp" / os.urandom(16).hex()
            place.mkdir(mode=0o700)
            # Who cleans up may come between the lock's creation and its being held, and takes the directory for stale.
            with contextlib.suppress(FileNotFoundError):
                lock = acquire(place / "lock", block=False)
                if lock is not None:
                    return place, lock
        raise FileNotFoundError(errno.ENOENT, "new directories are removed at once", str(self.directory / "tmp"))

    def publish(self, temporary: Path, final: Path) -> None:
        """Makes a file of `scratch` permanent under its final name; all of it or nothing, even after a crash."""
        with self.errors("write to"):
            fd = descriptors.open_file(temporary, os.O_RDONLY)
            try:
                os.fchmod(fd, 0o600)
                os.fsync(fd)
            finally:
                os.close(fd)
            temporary.rename(final)
            _sync_directory(final.parent)

    def remove_stale(self) -> int:
        """Removes the scratch directories of processes that are gone; gives their number."""
        removed = 0
        with contextlib.suppress(OSError):
            for place in list((self.directory / "tmp").iterdir()):
                removed += self._remove_if_stale(place)
        return removed

    def _remove_if_stale(self, place: Path) -> bool:
        try:
            if time.time() - place.stat().st_mtime < _STALE_SECONDS and not (place / "lock").exists():
                return False
            with locked(place / "lock", block=False) as mine:
                if mine:
                    _remove_tree(place)
                return mine
        except OSError:
            return False

    # Records.

    def image_record(self, digest: str, platform: str) -> dict[str, Any] | None:
        return self._load("images", _key(digest, platform))

    def save_image(self, digest: str, platform: str, record: dict[str, Any]) -> None:
        if not self.has_image(digest, platform, record):
            self._save("images", _key(digest, platform), {**record, "digest": digest, "platform": platform})

    def has_image(self, digest: str, platform: str, record: dict[str, Any]) -> bool:
        """Whether this is the record; then it counts as used now."""
        if self.image_record(digest, platform) != {**record, "digest": digest, "platform": platform}:
            return False
        self.touch(digest, platform)
        return True

    def image_path(self, digest: str, platform: str) -> Path:
        """Of the record; the file's time of modification is when the image was last used."""
        return self.directory / "images" / f"{_key(digest, platform)}.json"

    def reference_path(self, reference: str, platform: str) -> Path:
        """Of the record."""
        return self.directory / "references" / f"{_key(reference, platform)}.json"

    def reference_record(self, reference: str, platform: str) -> dict[str, Any] | None:
        return self._load("references", _key(reference, platform))

    def save_reference(self, reference: str, platform: str, digest: str, image_platform: str) -> None:
        if not self.has_reference(reference, platform, digest, image_platform):
            record = {"reference": reference, "platform": platform, "digest": digest, "image_platform": image_platform}
            self._save("references", _key(reference, platform), record)

    def has_reference(self, reference: str, platform: str, digest: str, image_platform: str) -> bool:
        """Whether the reference is known to mean this image."""
        record = {"reference": reference, "platform": platform, "digest": digest, "image_platform": image_platform}
        return self.reference_record(reference, platform) == record

    def touch(self, digest: str, platform: str) -> None:
        """Notes that the image was used now."""
        with contextlib.suppress(OSError):
            os.utime(self.image_path(digest, platform))

    def _load(self, kind: str, key: str) -> dict[str, Any] | None:
        """A record; what cannot be read counts as absent, for it can be made again."""
        try:
            data = (self.directory / kind / f"{key}.json").read_bytes()
            value = json.loads(data)
        except (OSError, ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None

    def _save(self, kind: str, key: str, record: dict[str, Any]) -> None:
        with self.scratch() as place:
            with self.errors("write to"):
                temporary = place / "record"
                fd = descriptors.open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
                with os.fdopen(fd, "w") as stream:
                    json.dump(record, stream)
            self.publish(temporary, self.directory / kind / f"{key}.json")

    # What is there, and getting rid of it.

    def images(self) -> list[CachedImage]:
        """The images that can be started without asking a registry, the last used first."""
        self.check()
        references: dict[tuple[str, str], list[str]] = {}
        for _, record in self._records("references"):
            key = (str(record.get("digest")), str(record.get("image_platform")))
            references.setdefault(key, []).append(str(record.get("reference")))
        found = []
        for path, record in self._records("images"):
            digest, platform = str(record.get("digest")), str(record.get("platform"))
            rootfs = self.rootfs(str(record.get("rootfs")))
            try:
                size = rootfs.stat().st_blocks * 512
                last_used = path.stat().st_mtime
            except OSError:
                continue
            names = tuple(sorted(set(references.get((digest, platform), []))))
            found.append(CachedImage(digest, platform, names, size, rootfs, last_used))
        return sorted(found, key=lambda image: -image.last_used)

    def remove(self, name: str) -> int:
        """Forgets a reference, or the images of a digest; gives the bytes freed.

        `name` is a reference in full, or a digest or its beginning (12 digits at least).
        """
        self.prepare()
        digest = name if name.startswith(("sha256:", "sha512:")) else f"sha256:{name}"
        by_digest = len(digest) >= len("sha256:") + 12
        with self.errors("remove from"):
            for path, record in self._records("references"):
                stored = str(record.get("digest"))
                if record.get("reference") == name or (by_digest and stored.startswith(digest)):
                    path.unlink(missing_ok=True)
            if by_digest:
                for path, record in self._records("images"):
                    if str(record.get("digest")).startswith(digest):
                        path.unlink(missing_ok=True)
        return self.prune()

    def prune(self, *, everything: bool = False, removed: Removed | None = None) -> int:
        """Frees what no reference needs any more, or all of it; gives the bytes freed. `removed` is told of each.

        Root file systems that running machines have open stay alive for them, as deleted files do.
        """
        self.prepare()
        self.remove_stale()
        self.forget_starts()
        freed = 0
        names: dict[str, str] = {}
        for image in self.images() if removed is not None else ():
            names[image.rootfs.stem] = image.references[0] if image.references else image.digest
        with self.errors("remove from"):
            if everything:
                for path, _ in [*self._records("references"), *self._records("images")]:
                    path.unlink(missing_ok=True)
            wanted = {(str(r.get("digest")), str(r.get("image_platform"))) for _, r in self._records("references")}
            keep = set()
            for path, record in self._records("images"):
                if (str(record.get("digest")), str(record.get("platform"))) in wanted:
                    keep.add(str(record.get("rootfs")))
                else:
                    path.unlink(missing_ok=True)
            for path in (self.directory / "rootfs").glob("*.erofs"):
                if path.stem not in keep:
                    size = self._unlink_unless_locked(path, self.lock("rootfs", path.stem))
                    freed += size
                    if removed is not None and size:
                        removed(f"image {names.get(path.stem, path.stem[:12])}", size)
            for path in (self.directory / "blobs").glob("*/*"):
                digest = f"{path.parent.name}:{path.name}"
                size = self._unlink_unless_locked(path, self.lock("blob", digest))
                freed += size
                if removed is not None and size:
                    removed(f"layer {digest[:19]}", size)
        return freed

    def forget_starts(self) -> None:
        """Removes what is remembered of command lines; each is made again by the next start of its kind."""
        with contextlib.suppress(OSError):
            for path in (self.directory / "starts").iterdir():
                path.unlink(missing_ok=True)

    def drop_blobs(self, digests: Sequence[str]) -> None:
        """Removes blobs that have served their purpose, unless another process is using them."""
        for digest in digests:
            with contextlib.suppress(OSError):
                self._unlink_unless_locked(self.blob(digest), self.lock("blob", digest))

    def _unlink_unless_locked(self, path: Path, lock: Path) -> int:
        with locked(lock, block=False) as mine:
            if not mine:
                return 0
            try:
                size = path.stat().st_blocks * 512
                path.unlink()
            except FileNotFoundError:
                size = 0
            lock.unlink(missing_ok=True)
            return size

    def _records(self, kind: str) -> list[tuple[Path, dict[str, Any]]]:
        found = []
        for path in sorted((self.directory / kind).glob("*.json")):
            record = self._load(kind, path.stem)
            if record is not None:
                found.append((path, record))
        return found


def rootfs_key(layers: Sequence[str], platform: str, converter: str) -> str:
    """The name of what a conversion yields: the same layers in the same order by the same converter."""
    return _key("rootfs", converter, platform, *layers)


def _key(*parts: str) -> str:
    return sha256(json.dumps(parts).encode())


def _remove_tree(place: Path) -> None:
    """Scratch directories are flat, and shutil is slow to import."""
    with contextlib.suppress(OSError):
        for path in list(place.iterdir()):
            path.unlink()
        place.rmdir()


def _sync_directory(path: Path) -> None:
    fd = descriptors.open_file(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
