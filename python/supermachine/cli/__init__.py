"""The command line ``supermachine``."""

from __future__ import annotations

import gc
import os
import sys

from .. import env

# As `typing` has it: this module is on the way of every `supermachine run`, and loads nothing that takes long.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

# As POSIX numbers them for `kill`.
_SIGINT = 2
_SIGPIPE = 13


def main() -> NoReturn:
    """Runs the command line and exits."""
    # What is made while a command starts is needed until it ends; to look through it for garbage costs a fifteenth of
    # the imports. A command in a guest looks from when it starts.
    gc.disable()
    try:
        code = _main()
    except KeyboardInterrupt:
        code = 128 + _SIGINT
    except BrokenPipeError:
        code = 128 + _SIGPIPE
    code = _flushed(code)
    # The interpreter's own end takes apart, object by object, what the kernel takes back at once; that is as long as a
    # tenth of `supermachine run`. Nothing of ours waits for it.
    os._exit(code)


def _flushed(code: int) -> int:
    """The exit status, when all that was printed has been written."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except BrokenPipeError:
            if stream is sys.stdout:
                code = 128 + _SIGPIPE  # whoever read it has gone
        except OSError as error:
            # A stderr that takes nothing has kept nobody from the work.
            if stream is sys.stdout:
                from .exit_status import OWN_FAILURE

                code = code or OWN_FAILURE
                _complain("the output cannot be written", str(error), None)
    return code


def _main() -> int:
    from ..errors import SupermachineError, VMExited

    try:
        return _dispatch()
    except SupermachineError as error:
        _complain(str(error), error.cause, error.hint)
        if isinstance(error, VMExited) and error.console_tail and os.environ.get(env.DEBUG):
            from ..host.warnings import say

            for line in error.console_tail.splitlines():
                say(line)
        return _status(error)
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        _complain(str(error), None, None)
        return _status(error)


def _status(error: Exception) -> int:
    from ..errors import CommandNotExecutable, CommandNotFound, CommandTimeout
    from . import exit_status

    if isinstance(error, CommandNotFound):
        return exit_status.NOT_FOUND
    if isinstance(error, CommandTimeout):
        return exit_status.TIMED_OUT
    return exit_status.NOT_EXECUTABLE if isinstance(error, CommandNotExecutable) else exit_status.OWN_FAILURE


def _dispatch() -> int:
    if sys.argv[1:2] == ["run"] and "_SUPERMACHINE_COMPLETE" not in os.environ:
        from .run import arguments

        plain = arguments.parse(sys.argv[2:])
        if plain is not None:
            from . import run

            return run.dispatch(plain)
    gc.enable()
    import contextlib

    import click

    _stand_in()

    from .commands import cli

    try:
        result = cli.main(prog_name="supermachine", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.exceptions.Abort:
        return 128 + _SIGINT
    except click.ClickException as error:
        with contextlib.suppress(OSError):
            error.show()
        return _status(error)


def _stand_in() -> None:
    """Streams that were closed when this process was started are as /dev/null, which `_core` has opened there."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123 - until the end


def _complain(message: str, cause: str | None, hint: str | None) -> None:
    from ..host.warnings import say

    say(message + (f" ({cause})" if cause and cause not in message else ""))
    if hint:
        say(f"hint: {hint}")
