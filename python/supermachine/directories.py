"""Where this package keeps what it makes, and whether what is found there may be believed."""

from __future__ import annotations

import os
import stat
import sys

from . import descriptors, env
from .errors import ConfigurationError, RuntimeDirectoryNotTrusted

# As `typing` has it; this module is on the way of every `supermachine run`, which is why it does without pathlib too.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# ruff: noqa: PTH103, PTH109, PTH111, PTH112, PTH116, PTH117, PTH118, PTH120


def home(environ: Mapping[str, str] = os.environ) -> str | None:
    """The user's home directory; ``None`` for a user id that has none: no absolute HOME and no entry in passwd."""
    told = environ.get("HOME", "")
    if os.path.isabs(told):
        return told
    try:
        import pwd

        entry = pwd.getpwuid(os.getuid()).pw_dir
    except (ImportError, KeyError):
        return None
    return entry if os.path.isabs(entry) else None


def cache_directory() -> str:
    """What can be made again: SUPERMACHINE_CACHE, else where the system has its users' caches.

    Users without a home directory, or with one that they cannot write to, have it in TMPDIR or /tmp, under a name of
    their own. Raises ConfigurationError when SUPERMACHINE_CACHE begins with a ``~`` that stands for nothing here.
    """
    explicit = os.environ.get(env.CACHE)
    if explicit:
        return os.path.join(os.getcwd(), _expanded(explicit, env.CACHE))
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The base directory specification: a relative path is to be ignored.
    if sys.platform != "darwin" and os.path.isabs(base):
        return os.path.join(base, "supermachine")
    own = home()
    if own is not None:
        parts = ("Library", "Caches") if sys.platform == "darwin" else (".cache",)
        usual = os.path.join(own, *parts, "supermachine")
        if _can_be(usual):
            return usual
    temporary = os.environ.get("TMPDIR", "")
    return os.path.join(temporary if os.path.isabs(temporary) else "/tmp", f"supermachine-{os.getuid()}")  # noqa: S108


def runtime_directory() -> str:
    """What lasts no longer than the host runs: SUPERMACHINE_RUNTIME, else below the user's runtime directory.

    That is XDG_RUNTIME_DIR, or where it usually is, if this user owns it; else there is one in /tmp (TMPDIR on macOS)
    under a name of the user's own.
    """
    explicit = os.environ.get(env.RUNTIME)
    if explicit:
        return os.path.join(os.getcwd(), _expanded(explicit, env.RUNTIME))
    own = os.getuid()
    if sys.platform != "darwin":
        # The second so that a shell without the variable (cron, su) has the machines of the others.
        for base in (os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{own}"):
            try:
                if os.path.isabs(base) and os.stat(base).st_uid == own:
                    return os.path.join(base, "supermachine")
            except OSError:
                continue
    temporary = os.environ.get("TMPDIR", "") if sys.platform == "darwin" else ""
    return os.path.join(temporary if os.path.isabs(temporary) else "/tmp", f"supermachine-run-{own}")  # noqa: S108


def keys_directory() -> str:
    """Where keys are: SUPERMACHINE_KEYS, else with what the system has of its users' settings.

    Raises ConfigurationError for a user without a home directory, who has to name one.
    """
    explicit = os.environ.get(env.KEYS)
    if explicit:
        return os.path.join(os.getcwd(), _expanded(explicit, env.KEYS))
    base = os.environ.get("XDG_CONFIG_HOME", "")
    if sys.platform != "darwin" and os.path.isabs(base):
        return os.path.join(base, "supermachine", "keys")
    own = home()
    if own is None:
        raise ConfigurationError("there is no home directory to keep keys in", hint=f"name a directory in {env.KEYS}")
    parts = ("Library", "Application Support") if sys.platform == "darwin" else (".config",)
    return os.path.join(own, *parts, "supermachine", "keys")


def _expanded(path: str, variable: str) -> str:
    if not path.startswith("~"):
        return path
    name, slash, rest = path.partition("/")
    found = home() if name == "~" else os.path.expanduser(name)
    if found is None or found.startswith("~"):
        raise ConfigurationError(
            f"{variable} is {path!r}, and {name} is nobody's home directory here",
            hint="write an absolute path; ./~ is a directory that is called so",
        )
    return found + slash + rest


def _can_be(path: str) -> bool:
    """Whether a directory is there or could be made."""
    while not os.path.lexists(path):
        parent = os.path.dirname(path)
        if parent == path or os.path.lexists(parent):
            return os.access(parent, os.W_OK | os.X_OK)
        path = parent
    return True


def data_directory() -> str:
    """What cannot be made again: SUPERMACHINE_DATA, else where the system has its users' data.

    For users without a home directory it is beside the cache.
    """
    explicit = os.environ.get(env.DATA)
    if explicit:
        return os.path.join(os.getcwd(), _expanded(explicit, env.DATA))
    base = os.environ.get("XDG_DATA_HOME", "")
    if sys.platform != "darwin" and os.path.isabs(base):
        return os.path.join(base, "supermachine")
    own = home()
    if own is not None:
        parts = ("Library", "Application Support") if sys.platform == "darwin" else (".local", "share")
        usual = os.path.join(own, *parts, "supermachine")
        if _can_be(usual):
            return usual
    return cache_directory() + "-data"


def nameless_file() -> int:
    """The descriptor of an empty file without a name, on the disk that the cache is on where that can be.

    It ends with the last process that has it open, and is never one of the standard streams.
    """
    try:
        return descriptors.open_file(os.path.join(cache_directory(), "tmp"), os.O_RDWR | os.O_TMPFILE)
    except (AttributeError, OSError):
        # A system or a file system that has no such files, or a cache that cannot be written to.
        place = os.path.join(cache_directory(), "tmp")
        return descriptors.nameless_file(place if os.access(place, os.W_OK) else None)


def distrust(path: str | os.PathLike[str]) -> str | None:
    """Why what is at `path` could be another user's work, as the end of a sentence; ``None`` when it could not.

    Root is believed, and a group that is one user's own. What is not there is nobody's work.
    """
    try:
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode):
            if found.st_uid not in (0, os.getuid()):
                return f"is a link that user {found.st_uid} has made"
            found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return f"cannot be looked at: {error.strerror}"
    own = os.getuid()
    if found.st_uid not in (0, own):
        return f"belongs to user {found.st_uid}"
    private_group = found.st_uid == own == found.st_gid
    if found.st_mode & (stat.S_IWOTH if private_group else stat.S_IWOTH | stat.S_IWGRP):
        return "can be written by other users"
    return None


def check_own(path: str | os.PathLike[str], what: str) -> None:
    """Raises RuntimeDirectoryNotTrusted where a directory of the runtime directory, or that one, could be another's."""
    for each in (os.path.dirname(path), path):
        if (why := distrust(each)) is not None:
            raise RuntimeDirectoryNotTrusted(
                f"the directory of {what} {shown(each)} {why}",
                hint="remove it, or name another with SUPERMACHINE_RUNTIME",
            )


def make_own(path: str | os.PathLike[str], what: str) -> None:
    """Makes a directory in the runtime directory, and that one, where they are missing. Raises as `check_own`."""
    check_own(path, what)
    for each in (os.path.dirname(path), path):
        try:
            os.makedirs(each, mode=0o700)
        except FileExistsError:
            if not os.path.isdir(each):
                raise
    check_own(path, what)


def shown(path: str | os.PathLike[str]) -> str:
    """A path for people, whatever bytes it is of."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
