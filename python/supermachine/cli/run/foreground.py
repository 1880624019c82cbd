"""A command in a guest as if it ran here: with this process's standard streams, terminal and signals.

On the way of every `supermachine run`: nothing here loads what takes long, which is why the signals are those of the
module beneath `signal`, without its enumerations.
"""

from __future__ import annotations

import gc
import os
import sys

from ...errors import CommandNotExecutable, CommandTimeout, SupermachineError
from ...guest.process_context import linux_signal, wait_started
from ...settings.parsing import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
    from typing import Any

    from ..._core import Exec, Remote, Worker
    from ...guest.process_context import Context
else:
    import _signal

#: Signals that are the guest's to handle.
_PASSED_ON = (
    _signal.SIGINT,
    _signal.SIGTERM,
    _signal.SIGHUP,
    _signal.SIGQUIT,
    _signal.SIGUSR1,
    _signal.SIGUSR2,
)
#: How long a killed command may take to go, in seconds.
_KILL_GRACE = 2.0
#: Rows and columns for a command that is given a terminal where there is none.
_USUAL_SIZE = (24, 80)


class Signalled(BaseException):
    """A signal before there was a process to pass it on to."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """Within the block, signals are passed on to the command, once there is one, and before that raise `Signalled`."""

    def __init__(self) -> None:
        self._command: Exec | None = None
        #: Signals that came while the command was being started, which may have said something by then.
        self._held: list[int] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in _PASSED_ON:
            before = _signal.getsignal(number)
            # One that whoever started us has made us ignore (nohup) stays ignored.
            if before is not None and before != _signal.SIG_IGN:
                self._take(number, self._handle)
        return self

    def __exit__(self, *_exc: object) -> None:
        for number, before in self._before.items():
            _signal.signal(number, before)

    def hold(self) -> None:
        """Keeps signals for the command that is about to be started."""
        self._held = []

    def pass_to(self, command: Exec | None) -> None:
        """From now on signals are this command's, those that were held first."""
        # In this order: a signal may come between any two of these.
        self._command = command
        held, self._held = self._held, None
        for number in held or ():
            self._handle(number, None)

    def follow_size(self, command: Exec) -> None:
        """Tells the command of each new size of the terminal, until the end of the block."""
        self._take(_signal.SIGWINCH, lambda _number, _frame: command.resize(*terminal_size()))

    def _take(self, number: int, handler: Any) -> None:
        try:
            self._before[number] = _signal.signal(number, handler)
        except ValueError:
            return  # signals are the main thread's

    def _handle(self, number: int, _frame: object) -> None:
        if self._command is not None:
            self._command.send_signal(linux_signal(number))
        elif self._held is not None:
            self._held.append(number)
        else:
            raise Signalled(number)


def wants_terminal(tty: bool | None) -> bool:
    """Whether the command gets a terminal: what was said, else whether there is one here on both sides."""
    if tty is not None:
        return tty
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout is not None and sys.stdout.isatty()


def execute(
    worker: Worker | Remote,
    context: Context,
    argv: list[str],
    signals: Signals,
    *,
    terminal: bool,
    no_stdin: bool,
    timeout: float | None,
    wait_ready: Callable[[], None] | None = None,
) -> int:
    """Runs a command to its end; gives its return code as `subprocess` has it, or raises `CommandTimeout`.

    `wait_ready` waits for a guest that is still being started, and raises what that fails of. The command is on its
    way to it meanwhile; nothing has been read of stdin then, and signals are not the command's yet. A terminal stays as
    it is until the guest is ready: keys that end commands end this one.
    """
    # What has been made so far is needed until the end.
    gc.freeze()
    gc.enable()
    variables = dict(context.env)
    if terminal and os.environ.get("TERM"):
        variables["TERM"] = os.environ["TERM"]
    raw = Terminal()
    if terminal:
        if wait_ready is not None:
            wait_ready()
            wait_ready = None
        raw.make_raw()
    try:
        command = _start(worker, context, argv, signals, variables, terminal, no_stdin, wait_ready)
        if terminal:
            signals.follow_size(command)
        code = command.wait(timeout)
        if code is None:
            command.send_signal(linux_signal(_signal.SIGKILL))
            command.wait(_KILL_GRACE)
            raise CommandTimeout(f"the command was killed: it still ran after {timeout:g} seconds")
    finally:
        signals.pass_to(None)
        raw.restore()
    if context.ended is not None:
        context.ended()
    return code


def _start(
    worker: Worker | Remote,
    context: Context,
    argv: list[str],
    signals: Signals,
    variables: dict[str, str],
    terminal: bool,
    no_stdin: bool,
    wait_ready: Callable[[], None] | None,
) -> Exec:
    from ..._core import Exec

    if wait_ready is None:
        signals.hold()
    try:
        command = Exec.start(
            worker,
            [encode(word) for word in argv],
            env=[encode(f"{name}={value}") for name, value in variables.items()],
            cwd=encode(context.cwd),
            user=context.user,
            tty=terminal_size() if terminal else None,
            stdin="null" if no_stdin else 0,
            stdout=1,
            stderr="null" if terminal else 2,
        )
    except SupermachineError:
        if wait_ready is not None:
            wait_ready()  # says so, where that is why
        raise
    except OSError as error:
        from ... import shortage

        raise shortage.named(error, "the process cannot be started") or error from None
    try:
        if wait_ready is not None:
            wait_ready()
        signals.pass_to(command)
        wait_started(command, argv)
    except BaseException as error:
        command.close()
        if isinstance(error, CommandNotExecutable):
            from ...guest.formats import explained

            words = [encode(word) for word in argv]
            known = {encode(name): encode(value) for name, value in variables.items()}
            raise explained(error, worker, words, known, encode(context.cwd)) from None
        raise
    return command


def terminal_size() -> tuple[int, int]:
    """Rows and columns of the terminal itself: COLUMNS and LINES in the environment do not change with it."""
    for descriptor in (0, 1, 2):
        try:
            columns, rows = os.get_terminal_size(descriptor)
        except OSError:
            continue
        if rows and columns:
            return rows, columns
    return _USUAL_SIZE


class Terminal:
    """The terminal at stdin, if there is one, which `make_raw` has give every key to the guest, until `restore`."""

    def __init__(self) -> None:
        self._before: list[Any] | None = None

    def make_raw(self) -> None:
        if sys.stdin is None or not sys.stdin.isatty():
            return
        import termios
        import tty

        descriptor = sys.stdin.fileno()
        self._before = termios.tcgetattr(descriptor)
        tty.setraw(descriptor, termios.TCSANOW)

    def restore(self) -> None:
        """As it was. Does nothing the second time."""
        before, self._before = self._before, None
        if before is None:
            return
        import termios

        # Not to wait for output that nobody takes any more is better than to leave the terminal as it is.
        for when in (termios.TCSADRAIN, termios.TCSANOW):
            try:
                termios.tcsetattr(sys.stdin.fileno(), when, before)
            except (termios.error, OSError, ValueError):
                continue  # it has hung up, or was closed
            return


def explain(worker: Worker, code: int) -> None:
    """Says what the network's policy has denied, after a command that has failed."""
    if code == 0 or not worker.has_network or worker.exit is not None:
        return
    from ...host import warnings
    from ...network.denials import complaints

    for line in complaints(worker):
        warnings.say(line)
