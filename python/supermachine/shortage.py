"""What the host has no more of, whose limit that is, and how it is raised."""

from __future__ import annotations

import errno

from .errors import HostShortage, WorkerKilled

# As `typing` has it: this module is on the way of every `supermachine run`, and loads little before it is needed.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from threading import Thread

    from .errors import VMExited

#: Seconds after which whoever lacked something, and cannot give up, looks again.
MOMENT = 0.05
#: Below this much a limit of a control group counts as what was met.
_NEARLY = 32 << 20


def named(error: OSError, failed: str) -> HostShortage | None:
    """The error that names the shortage; ``None`` for errors that are none. `failed` is what could not be done."""
    # The extension's errors have it in their words alone.
    number = _number(str(error)) if error.errno is None else error.errno
    if number == errno.EMFILE:
        what, hint = _descriptors()
    elif number == errno.ENFILE:
        what, hint = "the system has no more open files to give", "raise it: sysctl fs.file-max"
    elif number == errno.ENOMEM:
        what, hint = _memory()
    elif number == errno.EAGAIN:
        what, hint = _processes()
    else:
        return None
    lacking = HostShortage(f"{failed}: {what}", cause=str(error), hint=hint)
    lacking.errno = number
    return lacking


def in_words(message: str, failed: str = "the virtual machine did not start") -> HostShortage | None:
    """Of what a worker, or the extension, said."""
    number = _number(message)
    return None if number is None else named(OSError(number, message), failed)


def _number(message: str) -> int | None:
    """Rust ends the text of a system error with its number."""
    _, found, rest = message.rpartition("(os error ")
    number = rest.partition(")")[0]
    return int(number) if found and number.isdecimal() else None


class Told:
    """Has an error of the system's in its block that is a shortage say so; `failed` is what could not be done."""

    def __init__(self, failed: str) -> None:
        self._failed = failed

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: object, _trace: object) -> None:
        if isinstance(error, OSError) and not isinstance(error, HostShortage):
            lacking = named(error, self._failed)
            if lacking is not None:
                raise lacking from None


def start(thread: Thread, failed: str) -> None:
    """Starts a thread. Raises HostShortage where the system has no more; `failed` is what could not be done."""
    try:
        thread.start()
    except RuntimeError as error:
        # Python says so in words alone, with no number of the system's.
        if (lacking := named(OSError(errno.EAGAIN, str(error)), failed)) is not None:
            raise lacking from None
        raise


def killed(failed: str, end: VMExited) -> WorkerKilled:
    """Of a worker that SIGKILL has ended, which nobody here sent: the kernel does that when memory is short."""
    what, hint = _memory()
    return WorkerKilled(
        f"{failed}: something outside sent it SIGKILL, most often because {what}",
        reason=end.reason,
        console_tail=end.console_tail,
        cause=str(end),
        hint=hint,
    )


def _descriptors() -> tuple[str, str]:
    try:
        import resource
    except (ImportError, OSError):
        # There is no descriptor to load it with.
        return "this process has all the open files that it may have", "raise RLIMIT_NOFILE: ulimit -n"

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = "" if hard == resource.RLIM_INFINITY else f" (its hard limit is {hard})"
    return f"this process may have {soft} open files and has them", f"raise RLIMIT_NOFILE: ulimit -n{room}"


def _memory() -> tuple[str, str]:
    import resource

    for name, option in (("RLIMIT_AS", "-v"), ("RLIMIT_DATA", "-d")):
        soft, _ = resource.getrlimit(getattr(resource, name))
        if soft != resource.RLIM_INFINITY:
            what = f"this process may have {soft >> 20} MiB of memory ({name})"
            return what, f"raise the limit: ulimit {option}; or give the virtual machine less with memory="
    for group, limit, used in _groups("memory.max", "memory.current"):
        if limit - used < _NEARLY:
            what = f"its control group may have {limit >> 20} MiB of memory"
            return what, f"raise memory.max of {group} (docker run --memory, MemoryMax= of systemd)"
    return "the host has no more memory to give", "end something else, or give the virtual machine less with memory="


def _processes() -> tuple[str, str]:
    import resource

    for group, limit, used in _groups("pids.max", "pids.current"):
        if used >= limit - 1:
            what = f"its control group may have {limit} processes and threads and has them"
            return what, f"raise pids.max of {group} (docker run --pids-limit, TasksMax= of systemd)"
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft != resource.RLIM_INFINITY:
        return f"this user may have {soft} processes and threads", "raise RLIMIT_NPROC: ulimit -u"
    return "the system has no more processes and threads to give", "raise it: sysctl kernel.threads-max"


def _groups(limit: str, used: str) -> Iterator[tuple[str, int, int]]:
    """Of the control groups (version 2) that this process is in: path, limit, use."""
    import os

    try:
        with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123
            own = next(line[3:].strip() for line in file if line.startswith("0::"))
    except (OSError, StopIteration):
        return
    while True:
        group = f"/sys/fs/cgroup{own.rstrip('/')}"
        try:
            values = []
            for name in (limit, used):
                with open(f"{group}/{name}", encoding="ascii") as file:  # noqa: PTH123
                    values.append(int(file.read()))
            yield group, values[0], values[1]
        except (OSError, ValueError):
            pass
        if own in ("", "/"):
            return
        own = os.path.dirname(own)  # noqa: PTH120
