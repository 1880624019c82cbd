"""What an earlier `supermachine run` of the same image and machine came to, so that the next one goes straight there.

To find that out takes longer than a virtual machine takes to start: a reference is read, an image looked up and its
configuration parsed, an engine chosen, the key of the baked snapshot made, and a good part of Python's library loaded
for it. What came of it is kept in the cache, as ``starts/<key>``. The key is of all that the user and the environment
say of it, and it holds while every file that it depends on is as it was. Where anything differs, and where the start
fails, the whole way is gone, at whose end it is remembered anew.

A file is the SHA-256 of the rest in hexadecimal digits, and strings that are separated by NUL, which none of them can
contain; a list is preceded by its length. A damaged file counts as none. Nothing here loads what takes long.
"""

from __future__ import annotations

import os
import stat

from ... import directories
from ..._core import VERSION, sha256
from ...errors import HostShortage, SupermachineError
from ...guest.process_context import Context, command
from ...host import bundle
from ...machine import launch
from ...network.policy import network
from ...settings import parsing
from ...settings.table import WRITTEN
from ...snapshots import working_set
from . import arguments, foreground
from .timings import Steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from ..._core import Worker
    from ...machine.vm import VM
    from ...network.policy import Network
    from .arguments import Arguments

#: A change here makes every file anew.
_FORMAT = "2"
#: Bytes of a file at most; environments are what is long in it.
_MAX_BYTES = 1 << 20
#: Files at most; one more, and all are forgotten.
_MAX_FILES = 512
#: Seconds that a file must not have changed for when it is remembered: more than the steps of any file system's clock,
#: so that a change afterwards shows.
_SETTLED = 2.0
#: Seconds that the virtual machine's process has to end in.
_END = 3.0


class Start:
    """Where to start from, and what the image says of its processes."""

    def __init__(
        self,
        *,
        engine: str,
        snapshot: str,
        rootfs: str,
        working_set: str,
        image_record: str,
        warning: str,
        working_dir: str,
        user: str,
        environment: dict[str, str],
        entrypoint: Sequence[str],
        cmd: Sequence[str],
        depends: dict[str, str],
    ) -> None:
        self.engine = engine
        self.snapshot = snapshot
        self.rootfs = rootfs
        #: Empty where none is to be used.
        self.working_set = working_set
        #: The file whose time of modification is when the image was last used.
        self.image_record = image_record
        #: What is to be said of the engine, if anything.
        self.warning = warning
        self.working_dir = working_dir
        self.user = user
        self.environment = environment
        self.entrypoint = entrypoint
        self.cmd = cmd
        #: Files, each with its `stamp`.
        self.depends = depends

    def encode(self) -> bytes:
        strings = [getattr(self, name) for name in _STRINGS]
        for items in (*(_flat(getattr(self, name)) for name in _PAIRS), *(getattr(self, name) for name in _LISTS)):
            strings += [str(len(items)), *items]
        if any("\0" in string for string in strings):
            raise ValueError("a NUL")
        body = "\0".join(strings).encode("utf-8", "surrogateescape")
        return sha256(body).encode() + body

    @classmethod
    def decode(cls, data: bytes) -> Start:
        """Raises ValueError for what `encode` would not have written."""
        digest, body = data[:64], data[64:]
        if sha256(body).encode() != digest:
            raise ValueError("damaged")
        strings = iter(body.decode("utf-8", "surrogateescape").split("\0"))
        try:
            fields: dict[str, Any] = {name: next(strings) for name in _STRINGS}
            for name in _PAIRS:
                items = _list(strings)
                fields[name] = dict(zip(items[::2], items[1::2], strict=True))
            for name in _LISTS:
                fields[name] = _list(strings)
        except StopIteration:
            raise ValueError("too short") from None
        return cls(**fields)

    def holds(self) -> bool:
        """Whether every file that this depends on is as it was."""
        return all(stamp(path) == known for path, known in self.depends.items())

    def is_of(self, cache: str) -> bool:
        """Whether what it starts from is that cache's, at the places where it has such files, and is this user's work.

        The file could be anybody's: what it names would run, and be written to.
        """
        baked = os.path.dirname(self.snapshot)  # noqa: PTH120
        expected = (
            (self.snapshot, f"{cache}/snapshots/{_name(baked)}/snapshot"),
            (self.working_set, f"{baked}/working-set" if self.working_set else ""),
            (self.rootfs, f"{cache}/rootfs/{_name(self.rootfs)}"),
            (self.image_record, f"{cache}/images/{_name(self.image_record)}"),
        )
        named = (cache, f"{cache}/snapshots", baked, self.snapshot, self.rootfs)
        return all(path == place for path, place in expected) and not any(map(directories.distrust, named))

    def code(self) -> str | None:
        """Where the snapshot's decoded code is, if it is there."""
        return os.path.join(os.path.dirname(self.snapshot), "code") if self.working_set else None  # noqa: PTH118, PTH120

    def worker(self, timeout: float, network: Network) -> Worker:
        """A worker whose guest is getting ready. Raises `_Fails`."""
        ranges = working_set.load(self.working_set) if self.working_set else ()
        with _Failing():
            _used(self.image_record)
            # Whether it is needed is for the snapshot to say.
            own = directories.nameless_file()
            try:
                return launch.spawn_restored(
                    self.engine,
                    [self.rootfs],
                    [self.snapshot],
                    None,
                    timeout,
                    ranges,
                    network=network,
                    scratch=(own, ()),
                    code=self.code(),
                )
            finally:
                os.close(own)


class _Fails(Exception):
    """The start from there fails, so that the whole way has to be gone."""


class _Failing:
    """Within the block, what a start fails of is `_Fails`."""

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, HostShortage):
            return  # the whole way would fail as well
        if isinstance(error, (SupermachineError, OSError)):
            raise _Fails from error


def _name(path: str) -> str:
    """The last part of a path, when it is one that the cache gives."""
    name = os.path.basename(path)  # noqa: PTH119
    return name if name.strip(".") else "?"


def _used(record: str) -> None:
    """Notes that the image was used now, where that can be."""
    try:
        os.utime(record)
    except FileNotFoundError:
        raise
    except OSError:
        return  # a cache that serves, and is not written to


_STRINGS = ("engine", "snapshot", "rootfs", "working_set", "image_record", "warning", "working_dir", "user")
_PAIRS = ("environment", "depends")
_LISTS = ("entrypoint", "cmd")


def _flat(pairs: dict[str, str]) -> list[str]:
    return [string for pair in pairs.items() for string in pair]


def _list(strings: Iterator[str]) -> list[str]:
    return [next(strings) for _ in range(int(next(strings)))]


def stamp(path: str) -> str:
    """What is another as soon as a file is: empty where there is none. Raises OSError when that cannot be told.

    Of a directory it is that it is this one: what comes and goes in it is no matter.
    """
    try:
        s = os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return ""
    state = (0, 0, 0) if stat.S_ISDIR(s.st_mode) else (s.st_size, s.st_mtime_ns, s.st_ctime_ns)
    return ".".join(map(str, (s.st_dev, s.st_ino, s.st_mode, *state)))


def place(said: Arguments) -> str | None:
    """The file for what was said; ``None`` for what always goes the whole way."""
    settings = said["settings"]
    written = [setting for setting in WRITTEN if settings[setting.name] not in (setting.default, ())]
    if settings["pull"] == "always" or any(setting.remembered == "full" for setting in written):
        return None
    image = said["image"]
    what = [
        _FORMAT,
        VERSION,
        image,
        # A name may be that of a local file.
        "" if image.startswith("/") else os.getcwd(),  # noqa: PTH109
        *(f"{setting.name}={settings[setting.name]}" for setting in written if setting.remembered == "key"),
        "" if settings["engine"] == "soft" else _hardware(),
        *sorted(f"{n}={v}" for n, v in os.environ.items() if n == "HOME" or n.startswith("SUPERMACHINE_")),
    ]
    key = sha256("\0".join(what).encode("utf-8", "surrogateescape"))
    return os.path.join(directories.cache_directory(), "starts", key)  # noqa: PTH118


def _hardware() -> str:
    """What verdicts on hardware engines depend on, beside the worker."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: PTH123
            boot = file.read()
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return "none"
    except OSError as error:
        return str(error.errno)
    return boot


def attempt(said: Arguments) -> int | None:
    """The return code as `subprocess` has it; ``None`` when the whole way has to be gone."""
    steps = Steps()
    try:
        file = place(said)
        if file is None:
            return None
        cache, kept = os.path.split(os.path.dirname(file))  # noqa: PTH120
        if directories.distrust(cache) or directories.distrust(os.path.join(cache, kept)):  # noqa: PTH118
            return None  # the whole way says so
        start = _read(file)
        if not (start.is_of(cache) and start.holds()):
            return None
    except (OSError, ValueError):
        return None
    entrypoint = None if said["entrypoint"] is None else [said["entrypoint"]]
    argv = command(said["image"], start, arguments.command_words(said), entrypoint)
    settings = said["settings"]
    own = parsing.environment([*parsing.environment_files(said["env_file"]), *settings["environment"]])
    terminal = foreground.wants_terminal(said["tty"])
    reach = network(settings["network"], settings["allow"], settings["deny"], settings["secrets"])
    if reach.secrets.keys() & own.keys() or reach.segments:
        return None  # the whole way says so, or puts it on its segments
    own = {**reach.environment, **own}
    try:
        with foreground.Signals() as signals:
            steps("image")
            timeout = min(settings["boot_timeout"], launch.RESTORE_TIMEOUT)
            worker = start.worker(timeout, reach)

            def wait_ready() -> None:
                with _Failing():
                    steps.add(launch.wait_ready(worker, timeout))
                steps("started")

            try:
                if start.warning and not said["quiet"]:
                    from ...host import boots

                    boots.say_once(start.engine, start.warning)
                context = Context(
                    lambda: worker, start, environment=own, working_dir=settings["working_dir"], user=settings["user"]
                )
                code = foreground.execute(
                    worker,
                    context,
                    argv,
                    signals,
                    terminal=terminal,
                    no_stdin=said["no_stdin"],
                    timeout=said["timeout"],
                    wait_ready=wait_ready,
                )
                steps("command")
                foreground.explain(worker, code)
            finally:
                worker.kill()
                worker.wait(_END)
            steps("end")
    except foreground.Signalled as signalled:
        return 128 + signalled.number
    except _Fails:
        _forget(file)
        return None
    if said["timings"]:
        steps.report(said["timings"], f"supermachine run {said['image']}")
    return code


def _read(file: str) -> Start:
    with open(file, "rb") as stream:  # noqa: PTH123
        return Start.decode(stream.read(_MAX_BYTES))


def _forget(file: str) -> None:
    try:
        os.unlink(file)  # noqa: PTH108
    except OSError:
        return


def remember(file: str, said: Arguments, vm: VM, began: float) -> None:
    """Keeps what a start came to that began then (seconds since 1970). Failing is no matter."""
    import contextlib

    from ...host import engines
    from ...images import Cache

    guest = vm._started()
    origin, engine = guest.origin, vm._settings.engine
    if origin is None or not origin.baked or not (said["settings"]["engine"] == "soft" or engines.is_settled()):
        return
    (snapshot,) = origin.files
    recorded = snapshot.parent / "working-set"
    prefault = working_set.enabled(None)
    if prefault and not working_set.load(recorded):
        return  # the next start has one
    image, cache, architecture = vm.image, Cache(), engine.architecture
    booted = (bundle.worker(), bundle.kernel(architecture), bundle.initramfs(architecture))
    with contextlib.suppress(OSError, ValueError):
        depends = {path: stamp(path) for path in (*map(str, image.looked_at), *booted)}
        changed = [int(known.rpartition(".")[2]) / 1e9 for known in depends.values() if known]
        if any(at > began - _SETTLED for at in changed):
            return
        data = Start(
            engine=vm.engine,
            snapshot=str(snapshot),
            rootfs=str(image.rootfs),
            working_set=str(recorded) if prefault else "",
            image_record=str(cache.image_path(image.digest, str(image.platform))),
            warning=engines.warning(engine),
            working_dir=image.config.working_dir,
            user=image.config.user,
            environment=dict(image.config.environment),
            entrypoint=image.config.entrypoint,
            cmd=image.config.cmd,
            depends=depends,
        ).encode()
        if len(data) >= _MAX_BYTES:
            return
        with cache.scratch() as scratch:
            if len(os.listdir(os.path.dirname(file))) >= _MAX_FILES:  # noqa: PTH120, PTH208
                cache.forget_starts()
            (scratch / "start").write_bytes(data)
            # Not synced: what a crash leaves of it is recognised.
            (scratch / "start").rename(file)
