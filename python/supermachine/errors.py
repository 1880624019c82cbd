"""Every error that this package raises on purpose.

All of them derive from :class:`SupermachineError`, and each is also the builtin exception that it means, so
``except FileNotFoundError`` works without importing anything from here.

========== ==========================================================================================================
``code``   a constant, dotted, one per class; stable across releases, for programs to compare
``cause``  what happened underneath (an operating system or HTTP message), or ``None``
``hint``   what to do about it, or ``None``
``str(e)`` one sentence: what failed, on what
========== ==========================================================================================================
"""

from __future__ import annotations

# As `typing` has it, which takes longer to load than this module.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar


#: E2BIG, which has this number on every system; `errno` takes time to load.
_E2BIG = 7


def printable(text: str) -> str:
    """`text` without control characters: what a guest, an image or a registry says may reach a terminal in a message,
    where they would move the cursor, change its title or answer for the user. Lines stay lines.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


class SupermachineError(Exception):
    """The base of every error here; `message` is one sentence that names what failed."""

    default_code: ClassVar[str] = "supermachine.error"
    default_hint: ClassVar[str | None] = None

    code: str
    cause: str | None
    hint: str | None

    # OSError's own __new__ would look at the arguments and choose another class by errno; ours takes exactly one.
    def __new__(cls, message: str = "", *_args: Any, **_kwargs: Any) -> SupermachineError:
        return super().__new__(cls, message)

    def __init__(self, message: str = "", *, cause: str | None = None, hint: str | None = None) -> None:
        message = printable(message)
        super().__init__(message)
        self.message = message
        self.code = self.default_code
        self.cause = cause if cause is None else printable(cause)
        self.hint = hint if hint is not None else self.default_hint

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # Keyword-only arguments and OSError's own reduction do not survive pickling otherwise (multiprocessing).
        return (_rebuild, (type(self), self.message, dict(self.__dict__)))


def _rebuild(cls: type[SupermachineError], message: str, state: dict[str, Any]) -> SupermachineError:
    error = cls.__new__(cls, message)
    SupermachineError.__init__(error, message)
    error.__dict__.update(state)
    return error


class ConfigurationError(SupermachineError, ValueError):
    """An option, an environment variable or a combination of them makes no sense."""

    default_code = "configuration.invalid"


class HostShortage(SupermachineError, OSError):
    """The host, or a limit on this process, has no more of something: memory, descriptors, processes, disk.

    `hint` says whose limit it is and how it is raised. Nothing is damaged by it.
    """

    default_code = "host.shortage"


class HardwareRequired(SupermachineError, RuntimeError):
    """Hardware isolation was asked for and this host has none that is usable."""

    default_code = "engine.hardware-required"
    default_hint = "run `supermachine doctor` to see what this host lacks"


class ConfinementRequired(SupermachineError, RuntimeError):
    """Confined workers were asked for, and this host has not all that it takes."""

    default_code = "worker.unconfined"
    default_hint = "run `supermachine doctor` to see what this host lacks"


# Images: what is named, where it is, and whether it is what it claims to be.


class InvalidReference(SupermachineError, ValueError):
    """A string is not an image reference, nor a path that holds an image."""

    default_code = "image.reference-invalid"


class ImageNotFound(SupermachineError, FileNotFoundError):
    """The registry, the layout, the archive or the cache does not have the image."""

    default_code = "image.not-found"


class PlatformNotFound(SupermachineError, LookupError):
    """The image exists, but not for the platform that was asked for."""

    default_code = "image.platform-not-found"


class UnsupportedMediaType(SupermachineError, ValueError):
    """A manifest, a configuration or a layer has a type that is not an image's."""

    default_code = "image.media-type-unsupported"


class InvalidImage(SupermachineError, ValueError):
    """A manifest, a configuration, a layer or an archive is malformed."""

    default_code = "image.invalid"


class DigestMismatch(SupermachineError, ValueError):
    """The bytes are not those that their digest or size promises."""

    default_code = "image.digest-mismatch"


class ImageTooLarge(SupermachineError, ValueError):
    """An image, or a part of it, exceeds a limit."""

    default_code = "image.too-large"


class DiskFull(SupermachineError, OSError):
    """There is no room left (or the quota is used up) where the cache lives."""

    default_code = "cache.disk-full"
    default_hint = "free some space, run `supermachine prune`, or point SUPERMACHINE_CACHE to another disk"


class CacheError(SupermachineError, OSError):
    """The cache directory cannot be used as one."""

    default_code = "cache.unusable"


class CacheNotTrusted(CacheError):
    """Other users own the cache directory, or can write to it, so what is in it may be their work."""

    default_code = "cache.not-trusted"


class CacheTimeout(SupermachineError, TimeoutError):
    """Another process held a lock of the cache for longer than was allowed."""

    default_code = "cache.lock-timeout"


# Registries.


class RegistryError(SupermachineError, ConnectionError):
    """A registry could not be reached, or answered with something that is not the distribution protocol."""

    default_code = "registry.error"


class RegistryUnauthorized(SupermachineError, PermissionError):
    """The registry wants credentials, or does not accept (401) or allow (403) those it was given."""

    default_code = "registry.unauthorized"


class RegistryTimeout(SupermachineError, TimeoutError):
    """The registry stopped answering."""

    default_code = "registry.timeout"


class RegistryRateLimited(RegistryError):
    """The registry asked for fewer requests (429) for longer than we were willing to wait."""

    default_code = "registry.rate-limited"


class CredentialError(SupermachineError, PermissionError):
    """A credential file or a credential helper could not be used."""

    default_code = "registry.credentials"


# Virtual machines.


class VMExited(SupermachineError, ConnectionError):
    """The virtual machine is gone: `reason` says why, `console_tail` is the end of its console output."""

    default_code = "vm.exited"

    def __init__(
        self,
        message: str = "",
        *,
        reason: str = "unknown",
        console_tail: str = "",
        cause: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, cause=cause, hint=hint)
        self.reason = reason
        self.console_tail = console_tail


class WorkerKilled(VMExited, HostShortage):
    """SIGKILL from outside ended the virtual machine's process, most often because the host was short of memory."""

    default_code = "vm.killed"


class HostLost(VMExited):
    """The host of a fleet that a virtual machine was on is gone, or cannot be reached any more.

    What ran there may have been done or not; nothing is repeated.
    """

    default_code = "fleet.host-lost"

    def __init__(
        self,
        message: str = "",
        *,
        reason: str = "host-lost",
        console_tail: str = "",
        cause: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, reason=reason, console_tail=console_tail, cause=cause, hint=hint)


class VMTimeout(SupermachineError, TimeoutError):
    """The virtual machine did not do something in the time it was given."""

    default_code = "vm.timeout"


class CommandTimeout(VMTimeout):
    """A command was killed, because it still ran after the time that it was given."""

    default_code = "command.timeout"


class RenewFailed(SupermachineError, RuntimeError):
    """A restored guest did not take on an identity, random state and clock of its own, so it was not started."""

    default_code = "vm.renew-failed"
    default_hint = "start from another snapshot, or boot the image anew"


# Machines with names.


class NameInUse(SupermachineError, FileExistsError):
    """Another machine of this user has the name, be it one that has ended."""

    default_code = "machine.name-in-use"


class NoSuchMachine(SupermachineError, LookupError):
    """This user has no machine of that name."""

    default_code = "machine.not-found"
    default_hint = "`supermachine ps -a` lists those that there are"


class MachineNotRunning(SupermachineError, ConnectionError):
    """The machine has ended, so nothing can be asked of it but what it left."""

    default_code = "machine.not-running"


class MachineRunning(SupermachineError, RuntimeError):
    """The machine still runs, and what was asked for is for one that has ended."""

    default_code = "machine.running"


class KeeperLost(SupermachineError, ConnectionError):
    """The process that keeps a machine ended, or does not answer."""

    default_code = "machine.keeper-lost"


class RuntimeDirectoryNotTrusted(SupermachineError, PermissionError):
    """Other users own the directory of machines with names, or can write to it."""

    default_code = "machine.directory-not-trusted"


# Snapshots.


class BadSnapshot(SupermachineError, ValueError):
    """A file is not a snapshot, is damaged, or is of a machine that this version or host cannot go on with."""

    default_code = "snapshot.bad"


class SnapshotNotFound(SupermachineError, FileNotFoundError):
    """A snapshot, one that it builds on, or the directory that one is to be written to is not there."""

    default_code = "snapshot.not-found"


class SnapshotExists(SupermachineError, FileExistsError):
    """A snapshot is never written over: the name is taken."""

    default_code = "snapshot.exists"
    default_hint = "choose another name, or delete what has it"


class SnapshotDamaged(BadSnapshot):
    """A snapshot was changed or cut off after it was written."""

    default_code = "snapshot.damaged"
    default_hint = "copy it again from where it came, or take a new one"


class SnapshotDenied(SupermachineError, PermissionError):
    """The operating system does not let this user read or write a snapshot."""

    default_code = "snapshot.denied"


class SnapshotError(SupermachineError, OSError):
    """The operating system could not read or write a snapshot."""

    default_code = "snapshot.io"


class SnapshotInUse(SupermachineError, PermissionError):
    """A snapshot that virtual machines run from cannot be deleted."""

    default_code = "snapshot.in-use"
    default_hint = "end the virtual machines that were restored from it first"


class SnapshotFailed(SupermachineError, OSError):
    """No snapshot was taken; the virtual machine goes on."""

    default_code = "snapshot.failed"


class UntrustedSnapshot(SupermachineError, PermissionError):
    """A snapshot in a registry is neither named by its digest nor signed by a key that this user trusts."""

    default_code = "snapshot.untrusted"


class SnapshotReference(UnsupportedMediaType):
    """A reference names a snapshot, where an image is needed."""

    default_code = "image.is-snapshot"
    default_hint = "`supermachine run` and `supermachine pull` take it, and supermachine.pull in Python"


# Pools.


class PoolClosed(SupermachineError, RuntimeError):
    """The pool has been closed."""

    default_code = "pool.closed"


class PoolTimeout(SupermachineError, TimeoutError):
    """No virtual machine of the pool became free in the time given."""

    default_code = "pool.timeout"
    default_hint = "give it longer, or the pool a larger max="


# Fleets.


class FleetFull(SupermachineError, TimeoutError):
    """No host of the fleet had room in the time given, or too many wait.

    `retry_after` estimates the seconds until one has, ``None`` while nobody knows.
    """

    default_code = "fleet.full"
    default_hint = "wait, give it longer, or add hosts"

    def __init__(
        self, message: str = "", *, retry_after: float | None = None, cause: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, cause=cause, hint=hint)
        self.retry_after = retry_after


class FleetClosed(SupermachineError, RuntimeError):
    """The fleet has been closed."""

    default_code = "fleet.closed"


class FleetFailed(SupermachineError, ConnectionError):
    """A host of a fleet could not be started or reached, or broke the protocol."""

    default_code = "fleet.failed"


class RemoteError(SupermachineError, RuntimeError):
    """A function that ran in a virtual machine raised something that only exists there: `cause` is its traceback."""

    default_code = "fleet.remote-error"


class PortUnavailable(SupermachineError, OSError):
    """A port of the host cannot be listened on."""

    default_code = "port.unavailable"


# Commands.


class CopyIncomplete(SupermachineError, OSError):
    """A tree was copied in part: the message says up to where, `errno` and `cause` why not further."""

    default_code = "copy.incomplete"


class CopyTooLarge(SupermachineError, OSError):
    """A file or a tree has more bytes, or more files, than a copy may move."""

    default_code = "copy.too-large"


class InvalidArchive(SupermachineError, ValueError):
    """A tar for a guest is damaged, or has members that lie outside of where it is unpacked."""

    default_code = "archive.invalid"
    default_hint = "make the archive again, with names that are relative and without .."


class FileTooLarge(SupermachineError, OSError):
    """A file of the guest has more bytes than were to be read as a whole."""

    default_code = "file.too-large"


class CommandNotFound(SupermachineError, FileNotFoundError):
    """The guest has no such command; a shell would say 127."""

    default_code = "command.not-found"


class CommandNotExecutable(SupermachineError, PermissionError):
    """The guest has the file but may not execute it; a shell would say 126."""

    default_code = "command.not-executable"


class UnknownUser(SupermachineError, LookupError):
    """The guest's passwd or group file does not have the user or group that a command should run as."""

    default_code = "command.unknown-user"


class BadWorkingDirectory(SupermachineError, NotADirectoryError):
    """A command's working directory cannot be entered in the guest."""

    default_code = "command.working-directory"


class WorkingDirectoryNotFound(BadWorkingDirectory, FileNotFoundError):
    """A command's working directory is not in the guest."""

    default_code = "command.working-directory-not-found"


class InvalidCommand(SupermachineError, ValueError):
    """A command that no system could run: no arguments, or a NUL inside one."""

    default_code = "command.invalid"


class CommandNotStarted(SupermachineError, OSError):
    """The guest's kernel would not start another process (out of memory, out of processes …)."""

    default_code = "command.not-started"


class ArgumentsTooLong(SupermachineError, OSError):
    """A command's arguments and environment together are longer than a guest takes."""

    default_code = "command.arguments-too-long"
    default_hint = "put them into a file of the guest with vm.path(...).write_text, or send them by input="

    def __init__(self, message: str = "", *, cause: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, cause=cause, hint=hint)
        self.errno = _E2BIG


class AgentError(SupermachineError, ConnectionError):
    """The agent in the guest closed a connection or broke the protocol while the virtual machine goes on."""

    default_code = "agent.error"
    default_hint = "start the virtual machine again; when it happens again, please report it"


class EngineUnavailable(SupermachineError, RuntimeError):
    """The engine that was asked for is not in this build or not usable on this host."""

    default_code = "engine.unavailable"
    default_hint = "run `supermachine doctor` to see which engines this host can use"


class ShareNotFound(SupermachineError, FileNotFoundError):
    """What is to be shared with a guest is not there, or is neither a directory nor a file."""

    default_code = "share.not-found"
    default_hint = "make the directory first, or correct its path"


class VolumeNotFound(SupermachineError, FileNotFoundError):
    """There is no volume of this name."""

    default_code = "volume.not-found"
    default_hint = "`supermachine volume ls` lists those that there are"


class VolumeExists(SupermachineError, FileExistsError):
    """There is a volume of this name already."""

    default_code = "volume.exists"
    default_hint = "use it, or remove it with `supermachine volume rm`"


class VolumeInUse(SupermachineError, PermissionError):
    """Another virtual machine has the volume; `holder` is its process, where that is known."""

    default_code = "volume.in-use"
    default_hint = "end that virtual machine first, or have both mount it read-only"

    def __init__(
        self, message: str = "", *, holder: int | None = None, cause: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, cause=cause, hint=hint)
        self.holder = holder


class VolumeChanged(SupermachineError, ValueError):
    """A volume is not what it was when the snapshot was taken."""

    default_code = "volume.changed"
    default_hint = "restore without the volume (volumes=[]), or end a machine as soon as its snapshot is taken"


class NotSupported(SupermachineError, NotImplementedError):
    """Something that this version cannot do yet."""

    default_code = "feature.not-supported"


class InstallationError(SupermachineError, FileNotFoundError):
    """A file that belongs to this package is not where it should be."""

    default_code = "installation.incomplete"
    default_hint = "install supermachine again: pip install --force-reinstall supermachine"
