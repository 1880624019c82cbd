"""What a process in a guest is given when nobody says, how long its start may take, and how signals reach it.

On the way of every `supermachine run`: nothing here loads what takes long.
"""

from __future__ import annotations

import sys

from ..errors import ConfigurationError, VMTimeout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Protocol

    from .._core import Exec, Remote, Worker

    class Said(Protocol):
        """What an image says of its processes."""

        @property
        def environment(self) -> Mapping[str, str]: ...
        @property
        def working_dir(self) -> str: ...
        @property
        def user(self) -> str: ...
        @property
        def entrypoint(self) -> Sequence[str]: ...
        @property
        def cmd(self) -> Sequence[str]: ...


#: How long the guest may take to start a process when nobody says, in seconds: longer than a snapshot that stops it
#: meanwhile.
START_TIMEOUT = 180.0


class Context:
    """What a process in a guest inherits: who runs it, and with what."""

    def __init__(
        self,
        worker: Callable[[], Worker | Remote],
        said: Said,
        *,
        environment: Mapping[str, str],
        working_dir: str | None,
        user: str | None,
        ended: Callable[[], object] | None = None,
    ) -> None:
        """`environment`, `working_dir` and `user` are the machine's own, which go before what the image has `said`."""
        self.worker = worker
        #: Called when a process has ended and somebody asks.
        self.ended = ended
        self.env = {**said.environment, **environment}
        self.cwd = working_dir or said.working_dir or "/"
        self.user = said.user if user is None else user


def command(
    image: object, said: Said, args: Sequence[str] | str | None = None, entrypoint: Sequence[str] | None = None
) -> list[str]:
    """What docker would run: ENTRYPOINT, then `args` or, without any, CMD.

    As with docker, an `entrypoint` of one's own also sets CMD aside. `image` is for the error.
    """
    given = [args] if isinstance(args, str) else list(args or ())
    words = [*entrypoint, *given] if entrypoint is not None else [*said.entrypoint, *(given or said.cmd)]
    if not words:
        raise ConfigurationError(f"the image {image} names no command, and none was given")
    return words


def wait_started(exec: Exec, args: object) -> int:  # noqa: A002
    """Waits until a process runs, and gives its id in the guest; `args` are for the error."""
    pid = exec.wait_started(START_TIMEOUT)
    if pid is None:
        raise VMTimeout(
            f"the guest did not start {args!r} within {START_TIMEOUT:g} seconds",
            hint="it may be out of memory or overloaded: give it more memory or vCPUs",
        )
    return pid


def linux_signal(number: int) -> int:
    """The Linux number of a host's signal: guests run Linux whatever the host is."""
    if sys.platform == "linux":
        return int(number)
    import signal

    try:
        name = signal.Signals(number).name
    except ValueError:
        return int(number)
    return _LINUX_SIGNALS.get(name, int(number))


# Numbers that differ between systems; signal(7). The rest are the same everywhere.
_LINUX_SIGNALS = {
    "SIGBUS": 7,
    "SIGUSR1": 10,
    "SIGUSR2": 12,
    "SIGCHLD": 17,
    "SIGCONT": 18,
    "SIGSTOP": 19,
    "SIGTSTP": 20,
    "SIGURG": 23,
    "SIGIO": 29,
    "SIGSYS": 31,
}
