"""Baked snapshots: the first start of an image boots and takes one, later starts go on from it.

They live in the cache, a directory for each key, which is made of all that has gone into the guest's memory: the image,
the guest's files, this release, the engine, memory, the size of the disk, vCPUs and the warm-up. An environment, a user
and a host name are given to each process or each restored guest, so they are no part of it, unless a warm-up has run
with them::

    snapshots/<key>/snapshot      the guest, ready, before anything of the user's has run
    snapshots/<key>/working-set   the pages that a clone touches up to its first answer
    snapshots/<key>/code          the code that it runs up to then, decoded

Nothing here can fail a start: what cannot be read is made anew, and what cannot be written is left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from .. import descriptors, directories, env
from .._core import sha256
from ..errors import (
    BadSnapshot,
    CacheNotTrusted,
    ConfigurationError,
    HostShortage,
    SnapshotInUse,
    SupermachineError,
    VMExited,
)
from ..host import bundle, warnings
from . import code, working_set

if TYPE_CHECKING:
    from .._core import Worker
    from ..cache.store import Cache
    from ..host.engines import Engine
    from ..images import ResolvedImage
    from ..machine.vm import VM

#: What runs in a guest before it is baked: commands as `VM.run` takes them, or a callable that is given the machine.
Warmup: TypeAlias = "Callable[[VM], object] | Sequence[str | Sequence[str]]"

#: A change here makes every baked snapshot anew.
_FORMAT = 4
#: Seconds that a start waits for another that bakes the same, before it boots without.
_WAIT = 10.0
_WAIT_WARMUP = 120.0
_POLL = 0.01
_LET_GO = 2.0
#: Seconds that a capture may take before a start goes on without it.
_CAPTURE_TIMEOUT = 60.0
#: Guest files whose digests are remembered.
_MAX_REMEMBERED = 64


def enabled(asked: bool | None) -> bool:
    """Whether to bake: the argument, else unless SUPERMACHINE_NO_SNAPSHOT says no."""
    return not env.switch(env.NO_SNAPSHOT) if asked is None else asked


def warmup_key(warmup: Warmup | None, named: str | None, context: Sequence[object]) -> str | None:
    """What tells one warm-up from another; ``None`` for none. `context` is what its processes are given.

    A function is known by its code and the plain values that it uses. For one that depends on more, `named` is for its
    author to change when it does something else.
    """
    if warmup is None:
        return None
    if named is not None:
        what: object = ["named", named]
    elif callable(warmup):
        what = ["function", _function(warmup)]
    elif isinstance(warmup, (str, bytes)):
        raise ConfigurationError("warmup is a string; a list of commands or a callable is needed")
    else:
        what = ["commands", [[command] if isinstance(command, str) else list(command) for command in warmup]]
    return sha256(json.dumps([what, list(context)]).encode())


def _function(function: Any) -> list[str]:
    code = getattr(function, "__code__", None)
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    values = [*cells, *(getattr(function, "__defaults__", None) or ())]
    values += (getattr(function, "__kwdefaults__", None) or {}).values()
    if code is None or not all(isinstance(value, (str, bytes, int, float, bool, type(None))) for value in values):
        raise ConfigurationError(
            f"what the warm-up {function!r} does cannot be told from its code",
            hint="name it with warmup_key=, and change the name when it does something else",
        )
    return [f"{function.__module__}.{function.__qualname__}", *_code(code), *map(repr, values)]


def _code(code: Any) -> list[str]:
    inner = [_code(const) if hasattr(const, "co_code") else repr(const) for const in code.co_consts]
    return [code.co_code.hex(), repr(code.co_names), repr(inner)]


class Turn:
    """The right to bake one key's snapshot, which is true where it was had: `Baked.baking`."""

    def __init__(self, lock: int | None, mine: bool) -> None:
        self._lock = lock
        self._mine = mine

    def __bool__(self) -> bool:
        return self._mine

    def keep(self) -> Turn:
        """The same right, for longer than the block of `Baked.baking`: until its `release`."""
        kept, self._lock, self._mine = Turn(self._lock, self._mine), None, False
        return kept

    def release(self) -> None:
        from ..cache.locks import release

        lock, self._lock, self._mine = self._lock, None, False
        if lock is not None:
            release(lock)


class Baked:
    """The place of one key's snapshot in the cache, filled or not."""

    def __init__(self, cache: Cache, key: str) -> None:
        self._cache = cache
        self._lock = cache.lock("snapshot", key)
        self.directory = cache.directory / "snapshots" / key
        self.path = self.directory / "snapshot"
        self.working_set = self.directory / "working-set"
        self.code = self.directory / "code"
        #: Whether what is there has been tried, and is of no use.
        self.refused = False

    @classmethod
    def place(
        cls, image: ResolvedImage, engine: Engine, *, memory: int, disk: int, vcpus: int, warmup: str | None
    ) -> Baked | None:
        """``None`` for an image that is not in the cache: what its digest names could change."""
        from .._core import VERSION
        from ..images import Cache

        cache = Cache()
        if image.rootfs.parent != cache.directory / "rootfs":
            return None
        identity = [
            _FORMAT,
            VERSION,
            engine.name,
            image.digest,
            image.rootfs.stem,
            _guest_files(cache, engine.architecture),
        ]
        key = json.dumps([*identity, memory, disk, vcpus, warmup])
        return cls(cache, sha256(key.encode()))

    def exists(self) -> bool:
        return self.path.exists()

    @contextlib.contextmanager
    def usable(self) -> Iterator[bool]:
        """Whether there is a snapshot to restore in the block; when that fails there, the guest has to boot.

        All starts share it, so it is removed only when it is proved to be damaged. What else fails (a host under load,
        another host's file) leaves it as it is. That the host is short of something, and that somebody ended the
        machine meanwhile, are errors as ever.
        """
        self._check()
        try:
            yield self.exists()
        except HostShortage:
            raise
        except SupermachineError as error:
            if isinstance(error, VMExited) and error.reason == "killed":
                raise
            if not self.exists():
                return  # `prune` was faster
            if self._is_damaged():
                self.refused = True
                _warn(f"a baked snapshot is damaged and is made anew: {error}")
                # The worker that tried it holds it until its process is gone.
                self.discard(_LET_GO)
            else:
                _warn(
                    f"the guest boots, as its baked snapshot (`supermachine prune` removes it) cannot be used: {error}"
                )

    def _check(self) -> None:
        """Raises CacheNotTrusted for what other users could have written: it is memory that would run."""
        self._cache.check()
        for path in (self.directory, self.path):
            why = directories.distrust(path)
            if why is not None:
                raise CacheNotTrusted(
                    f"the baked snapshot {path} {why}, so it is not run", hint=f"remove it: rm -r {self.directory}"
                )

    def _is_damaged(self) -> bool:
        """Whether reading all of it proves that it is not as it was written."""
        from .._core import verify_snapshot

        try:
            verify_snapshot(str(self.path))
        except BadSnapshot:
            return True
        except (SupermachineError, OSError, MemoryError):
            return False
        return False

    def discard(self, patience: float = 0.0) -> int:
        """Removes it, unless a virtual machine runs from it for longer than `patience`; gives the bytes freed."""
        from . import capture

        freed = 0
        deadline = time.monotonic() + patience
        while True:
            try:
                freed = capture.delete(self.path)
            except SnapshotInUse:
                if time.monotonic() < deadline:
                    time.sleep(_POLL)
                    continue
                return 0
            except OSError:
                pass  # gone already
            break
        with contextlib.suppress(OSError):
            if not self.exists():
                self.working_set.unlink(missing_ok=True)
                freed += code.remove(self.code)
                self.directory.rmdir()
        return freed

    @contextlib.contextmanager
    def baking(
        self, *, long: bool, on_wait: Callable[[], None] | None = None, until: Callable[[], bool] = lambda: False
    ) -> Iterator[Turn]:
        """Holds the right to bake; a false one when that cannot be had, or is no longer needed, after a bounded wait.

        The wait ends when `until` holds, too. The kernel takes the lock back from who is killed.
        """
        from ..cache.locks import acquire

        deadline = time.monotonic() + (_WAIT_WARMUP if long else _WAIT)
        fd = None
        try:
            self._cache.prepare()
            while (fd := acquire(self._lock, block=False)) is None and time.monotonic() < deadline and not until():
                if on_wait is not None:
                    on_wait()
                    on_wait = None
                time.sleep(_POLL)
        except OSError as error:
            _warn(f"no snapshot is baked: {error}")
        turn = Turn(fd, fd is not None and (self.refused or not self.exists()))
        try:
            yield turn
        finally:
            turn.release()

    def bake(self, worker: Worker, image: ResolvedImage, api: bytes) -> bool:
        """Takes the snapshot of a guest that goes on afterwards. False, and a warning, when that fails."""
        from . import capture

        try:
            with self._cache.scratch() as place:
                temporary = place / "snapshot"
                fd = descriptors.open_file(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL)
                try:
                    capture.write(worker, fd, diff=False, image=image.digest, api=api, timeout=_CAPTURE_TIMEOUT)
                finally:
                    os.close(fd)
                self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                self.working_set.unlink(missing_ok=True)
                self._cache.publish(temporary, self.path)
        except VMExited:
            raise
        except OSError as error:
            cause = getattr(error, "cause", None)
            _warn(f"no snapshot was baked, so the next start boots again: {error}" + (f" ({cause})" if cause else ""))
            return False
        return True

    @property
    def key(self) -> str:
        """What it is found by, in this cache and in registries."""
        return self.directory.name

    def adopt(self, temporary: Path, working_set: bytes) -> None:
        """Takes a snapshot that was baked elsewhere, from a file in the cache's scratch, whose contents are trusted."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.working_set.unlink(missing_ok=True)
        if working_set:
            recorded = temporary.with_name("working-set")
            recorded.write_bytes(working_set)
            self._cache.publish(recorded, self.working_set)
        self._cache.publish(temporary, self.path)


def _guest_files(cache: Cache, architecture: str) -> str:
    """One digest of what a guest boots and what runs it, remembered for as long as the files stay as they are."""
    paths = [
        bundle.worker(),
        bundle.kernel(architecture),
        bundle.initramfs(architecture),
    ]
    stats = [os.stat(path) for path in paths]  # noqa: PTH116 - this is on the way of every start
    signature = json.dumps(
        [[p, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for p, s in zip(paths, stats, strict=True)]
    )
    memory = cache.directory / "snapshots" / "guest-files.json"
    remembered: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(memory.read_bytes())
        if isinstance(found, dict):
            remembered = {str(k): str(v) for k, v in found.items()}
    if (known := remembered.get(signature)) is not None:
        return known
    digest = sha256("".join(sha256(Path(path).read_bytes()) for path in paths).encode())
    remembered = dict([*remembered.items(), (signature, digest)][-_MAX_REMEMBERED:])
    with contextlib.suppress(OSError), cache.scratch() as place:
        memory.parent.mkdir(mode=0o700, exist_ok=True)
        with open(descriptors.open_file(place / "guest-files", os.O_WRONLY | os.O_CREAT), "w") as file:  # noqa: PTH123 - a descriptor
            json.dump(remembered, file)
        (place / "guest-files").rename(memory)
    return digest


def prune(cache: Cache, *, orphans: bool = False, removed: Callable[[str, int], object] | None = None) -> int:
    """Removes the baked snapshots that no virtual machine runs from and nobody makes; gives the bytes freed.

    `removed` is told of each.

    With `orphans` only those whose image is not in the cache any more.
    """
    from ..cache.locks import locked

    cache.prepare()
    freed = 0
    place = cache.directory / "snapshots"
    with contextlib.suppress(FileNotFoundError):
        for directory in sorted(place.iterdir()):
            if not directory.is_dir():
                continue
            lock = cache.lock("snapshot", directory.name)
            with locked(lock, block=False) as mine:
                if mine and not (orphans and _has_image(cache, directory / "snapshot")):
                    name = _of_which(directory / "snapshot") if removed is not None else ""
                    size = Baked(cache, directory.name).discard()
                    freed += size
                    if removed is not None and size:
                        removed(f"baked snapshot {name}", size)
                    lock.unlink(missing_ok=True)
    return freed if orphans else freed + working_set.prune(cache) + code.prune(cache)


def _of_which(path: Path) -> str:
    """What a snapshot is of, for people."""
    from .records import Head

    try:
        head = Head.read(path)
        return f"of {head.record().reference}, {head.memory >> 20} MiB, {head.engine}"
    except (SupermachineError, OSError):
        return path.parent.name[:12]


def _has_image(cache: Cache, path: Path) -> bool:
    from .records import Head

    try:
        return cache.rootfs(Head.read(path).record().rootfs).exists()
    except (SupermachineError, OSError):
        return False


_warned: set[str] = set()


def _warn(message: str) -> None:
    """One line on stderr, once in this process."""
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message)
