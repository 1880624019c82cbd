"""Processes in a guest, with the contract of the standard library's `subprocess`."""

from __future__ import annotations

import codecs
import contextlib
import io
import locale
import os
import signal as _signal
import stat
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from subprocess import DEVNULL, PIPE, STDOUT, CalledProcessError, CompletedProcess, TimeoutExpired
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from .. import shortage
from ..errors import CommandNotExecutable
from ..settings.parsing import encode
from .process_context import linux_signal, wait_started

if TYPE_CHECKING:
    from .._core import Exec, Remote, Worker
    from .process_context import Context

__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "CalledProcessError",
    "CompletedProcess",
    "Popen",
    "TimeoutExpired",
    "run",
]

StrOrBytesPath: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"
Args: TypeAlias = "StrOrBytesPath | Sequence[StrOrBytesPath]"
Target: TypeAlias = "int | IO[Any] | None"

#: How long a killed process may take to deliver its last output, in seconds.
_KILL_GRACE = 2.0


def arguments(args: Args, shell: bool) -> list[bytes]:
    """What to execute, as `subprocess` reads `args` on POSIX."""
    single = isinstance(args, (str, bytes, os.PathLike))
    items = [encode(args)] if single else [encode(a) for a in args]  # type: ignore[arg-type,union-attr]
    if shell:
        items = [b"/bin/sh", b"-c", *items]
    if not items:
        raise ValueError("args is empty: a program to run is needed")
    return items


def _encoding(encoding: str | None) -> str:
    return encoding or locale.getpreferredencoding(False)


def _input_bytes(data: Any, text: bool, encoding: str | None, errors: str | None) -> bytes:
    """What to send, checked as `subprocess` checks it, before anything runs or waits."""
    if text:
        return b"" if data is None else data.encode(_encoding(encoding), errors or "strict")
    return bytes(memoryview(data)) if data else b""


def _environment(env: Mapping[str, str] | None, variables: dict[bytes, bytes]) -> list[bytes]:
    """What the process gets: `variables` with `env` over them. Raises what `subprocess` raises."""
    for name, value in (env or {}).items():
        key = os.fsencode(name)
        if b"=" in key:
            raise ValueError("illegal environment variable name")
        variables[key] = os.fsencode(value)
    words = [name + b"=" + value for name, value in variables.items()]
    if any(b"\0" in word for word in words):
        raise ValueError("embedded null byte")
    return words


class Popen:
    """A running process in a guest; attributes and methods are those of `subprocess.Popen`.

    `pid` is the process id inside the guest. In a process that is forked from this one the object does nothing.
    """

    def __init__(
        self,
        context: Context,
        args: Args,
        *,
        stdin: Target = None,
        stdout: Target = None,
        stderr: Target = None,
        shell: bool = False,
        cwd: StrOrBytesPath | None = None,
        env: Mapping[str, str] | None = None,
        user: str | int | None = None,
        text: bool | None = None,
        universal_newlines: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        bufsize: int = -1,
        tty: tuple[int, int] | None = None,
        clear_env: bool = False,
        start_timeout: float | None = None,
    ) -> None:
        self.args = args
        self._context = context
        self.pid: int
        self.returncode: int | None = None
        self.stdin: IO[Any] | None = None
        self.stdout: IO[Any] | None = None
        self.stderr: IO[Any] | None = None
        if text is not None and universal_newlines is not None and bool(text) != bool(universal_newlines):
            raise subprocess.SubprocessError(
                "Cannot disambiguate when both text and universal_newlines are supplied but different."
            )
        self.encoding = encoding
        self.errors = errors
        self.text_mode = bool(encoding or errors or text or universal_newlines)
        self._buffers: tuple[list[bytes], list[bytes]] = ([], [])
        self._readers: dict[object, threading.Thread] = {}
        self._writer: threading.Thread | None = None
        #: What went wrong in one of the threads, for `communicate` to raise.
        self._trouble: BaseException | None = None
        self._owner = os.getpid()
        if not isinstance(bufsize, int):
            raise TypeError("bufsize must be an integer")
        if user is not None and not isinstance(user, (str, int)):
            raise TypeError("user must be a string or an integer")
        if self.text_mode:
            codecs.lookup(_encoding(encoding))
        command = arguments(args, shell)
        inherited = {} if clear_env else {encode(name): encode(value) for name, value in context.env.items()}
        variables = _environment(env, inherited)
        from .._core import Exec

        closing: list[int] = []
        try:
            targets = self._targets(stdin, stdout, stderr, tty is not None)
            if cwd is not None:
                _must_be_directory(context.worker(), encode(cwd))
            with shortage.Told("the process cannot be started"):
                self._exec: Exec = Exec.start(
                    context.worker(),
                    command,
                    env=variables,
                    cwd=encode(context.cwd if cwd is None else cwd),
                    user=context.user if user is None else str(user),
                    tty=tty,
                    stdin=targets[0],
                    stdout=targets[1],
                    stderr=targets[2],
                )
            closing = [fd for fd in self._exec.pipes if fd is not None]
            self._open_pipes(bufsize)
            closing = []
        finally:
            for fd in closing:
                os.close(fd)
        try:
            if start_timeout is None:
                self.pid = wait_started(self._exec, args)
            else:
                started = self._exec.wait_started(start_timeout)
                if started is None:
                    raise TimeoutExpired(args, start_timeout)
                self.pid = started
        except BaseException as error:
            self._exec.close()
            self._close_pipes()
            if isinstance(error, CommandNotExecutable):
                from .formats import explained

                variables_ = dict(word.partition(b"=")[::2] for word in variables)
                raise explained(error, context.worker(), command, variables_, encode(cwd or context.cwd)) from None
            raise

    def _targets(self, stdin: Target, stdout: Target, stderr: Target, tty: bool) -> tuple[Any, Any, Any]:
        def one(target: Target, name: str, inherited: int) -> int | str | None:
            if target is None:
                return inherited
            if isinstance(target, int):
                if target == DEVNULL:
                    return "null"
                if target == PIPE:
                    return "pipe"
                if target == STDOUT:
                    if name == "stderr":
                        return "stdout"
                    raise ValueError("STDOUT can only be used for stderr")
                return target
            return target.fileno()

        return (
            one(stdin, "stdin", 0),
            one(stdout, "stdout", 1),
            "null" if tty else one(stderr, "stderr", 2),
        )

    def _open_pipes(self, bufsize: int) -> None:
        stdin, stdout, stderr = self._exec.pipes
        lines = bufsize == 1
        bufsize = -1 if lines else bufsize  # lines are the text layer's matter
        if stdin is not None:
            raw = open(stdin, "wb", bufsize)  # noqa: SIM115, PTH123 - a descriptor that the caller closes
            self.stdin = raw
            if self.text_mode:
                self.stdin = io.TextIOWrapper(
                    raw, encoding=self.encoding, errors=self.errors, line_buffering=lines, write_through=True
                )
        if stdout is not None:
            self.stdout = self._reader(stdout, bufsize)
        if stderr is not None:
            self.stderr = self._reader(stderr, bufsize)

    def _reader(self, fd: int, bufsize: int) -> IO[Any]:
        raw = open(fd, "rb", bufsize)  # noqa: SIM115 - a descriptor that the caller closes
        if not self.text_mode:
            return raw
        return io.TextIOWrapper(raw, encoding=self.encoding, errors=self.errors)

    def _close_pipes(self) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def poll(self) -> int | None:
        """The return code when the process has ended."""
        if self.returncode is None:
            self._settle(self._exec.wait(0))
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end. Raises `TimeoutExpired`, or `VMExited` when the virtual machine ended first."""
        if self.returncode is None:
            code = self._exec.wait(timeout)
            if code is None:
                raise TimeoutExpired(self.args, timeout or 0.0)
            self._settle(code)
            return code
        return self.returncode

    def _settle(self, code: int | None) -> None:
        self.returncode = code
        if code is not None and self._context.ended is not None:
            self._context.ended()

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:  # noqa: A002
        """Sends `input`, reads both outputs to their end and waits. May be called again after a time-out."""
        deadline = None if timeout is None else time.monotonic() + timeout
        if self.stdin is not None and self._writer is None:
            data = _input_bytes(input, self.text_mode, self.encoding, self.errors)
            writer = threading.Thread(target=self._feed, args=(data,), daemon=True)
            shortage.start(writer, "the process cannot be written to")
            self._writer = writer
        elif input is not None and self.stdin is None:
            raise ValueError("Cannot send input when stdin is not a pipe")
        for stream, parts in ((self.stdout, self._buffers[0]), (self.stderr, self._buffers[1])):
            if stream is not None and stream not in self._readers:
                thread = threading.Thread(target=self._drain, args=(stream, parts), daemon=True)
                shortage.start(thread, "the process cannot be read from")
                self._readers[stream] = thread
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            self.wait(left)
        except TimeoutExpired:
            out, err = self._partial()
            raise TimeoutExpired(self.args, timeout or 0.0, output=out, stderr=err) from None
        for thread in self._readers.values():
            thread.join()
        if self._trouble is not None:
            raise self._trouble
        out = self._text(self._buffers[0]) if self.stdout is not None else None
        err = self._text(self._buffers[1]) if self.stderr is not None else None
        self._close_pipes()
        return out, err

    def _feed(self, data: bytes) -> None:
        """A thread: sends all of it. Whatever goes wrong, the process's input ends."""
        stream = self.stdin
        assert stream is not None
        try:
            stream.flush()
            getattr(stream, "buffer", stream).write(data)
        except (BrokenPipeError, ValueError):
            pass  # the process has closed its end, or the caller has closed this one
        except BaseException as error:
            self._trouble = error
        finally:
            try:
                stream.close()
            except BrokenPipeError:
                pass
            except BaseException as error:
                self._trouble = self._trouble or error

    def _drain(self, stream: Any, parts: list[bytes]) -> None:
        """A thread: reads all there is. One that fails closes its end, so that the process does not wait for it."""
        raw = getattr(stream, "buffer", stream)
        try:
            while data := raw.read1(65536) if hasattr(raw, "read1") else raw.read(65536):
                parts.append(data)
        except ValueError:
            pass  # closed by the caller while it was read
        except BaseException as error:
            self._trouble = error
            with contextlib.suppress(OSError):
                stream.close()

    def _partial(self) -> tuple[bytes | None, bytes | None]:
        out = b"".join(self._buffers[0]) if self.stdout is not None else None
        err = b"".join(self._buffers[1]) if self.stderr is not None else None
        return out or None, err or None

    def _text(self, parts: list[bytes]) -> Any:
        data = b"".join(parts)
        return decode(data, self.encoding, self.errors) if self.text_mode else data

    def send_signal(self, signal: int) -> None:
        """Sends a signal to the process group. Without effect after the end."""
        if self.poll() is None:
            self._exec.send_signal(linux_signal(signal))

    def terminate(self) -> None:
        self.send_signal(_signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(_signal.SIGKILL)

    def resize(self, rows: int, columns: int) -> None:
        """Tells the process's terminal its new size."""
        self._exec.resize(rows, columns)

    def __enter__(self) -> Popen:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._close_pipes()
        if self._owner == os.getpid():
            self.wait()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: returncode: {self.returncode} args: {self.args!r}>"


class _Captured(Popen):
    """A process for `run`: its input is known from the start, and both outputs are collected beside the interpreter,
    with no pipe and no thread of Python's between.
    """

    def __init__(self, context: Context, args: Args, data: Any, **options: Any) -> None:
        self._input = data
        super().__init__(context, args, **options)

    def _targets(self, stdin: Target, stdout: Target, stderr: Target, tty: bool) -> tuple[Any, Any, Any]:
        if self._input is not None:
            return _input_bytes(self._input, self.text_mode, self.encoding, self.errors), "buffer", "buffer"
        return super()._targets(stdin, stdout, stderr, tty)[0], "buffer", "buffer"

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:  # noqa: A002, ARG002
        try:
            self.wait(timeout)
        except TimeoutExpired:
            out, err = self._partial()
            raise TimeoutExpired(self.args, timeout or 0.0, output=out, stderr=err) from None
        self._collect()
        return self._text(self._buffers[0]), self._text(self._buffers[1])

    def _partial(self) -> tuple[bytes | None, bytes | None]:
        self._collect()
        return b"".join(self._buffers[0]) or None, b"".join(self._buffers[1]) or None

    def _collect(self) -> None:
        out, err = self._exec.take_output()
        self._buffers[0].append(out)
        self._buffers[1].append(err)


def _must_be_directory(worker: Worker | Remote, path: bytes) -> None:
    """The agent makes a working directory that is missing, as docker does for the image's; one named for a single
    command must be there, as with `subprocess`.
    """
    from .._core import Files
    from ..errors import BadWorkingDirectory, WorkingDirectoryNotFound

    shown = os.fsdecode(path)
    files = Files.open(worker)
    try:
        mode = files.stat(path if path.startswith(b"/") else b"/" + path, True)[2]
    except FileNotFoundError as error:
        raise WorkingDirectoryNotFound(
            f"the working directory {shown} does not exist in the guest", cause=error.strerror
        ) from None
    except OSError as error:
        if not error.errno:
            raise
        raise BadWorkingDirectory(
            f"the working directory {shown} cannot be entered in the guest", cause=error.strerror
        ) from None
    finally:
        files.close()
    if not stat.S_ISDIR(mode):
        raise BadWorkingDirectory(f"the working directory {shown} is no directory in the guest")


def decode(data: bytes, encoding: str | None, errors: str | None) -> str:
    """Text as `subprocess` gives it: decoded, with universal newlines."""
    text = data.decode(_encoding(encoding), errors or "strict")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def run(
    context: Context,
    args: Args,
    *,
    input: Any = None,  # noqa: A002
    capture_output: bool | None = None,
    stdin: Target = None,
    stdout: Target = None,
    stderr: Target = None,
    timeout: float | None = None,
    check: bool = False,
    text: bool | None = None,
    universal_newlines: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    stop: threading.Event | None = None,
    **options: Any,
) -> CompletedProcess[Any]:
    """`subprocess.run` in a guest; output is captured unless `stdout`, `stderr` or `capture_output` say otherwise.

    Setting `stop`, from another thread, kills the process.
    """
    if capture_output and (stdout is not None or stderr is not None):
        raise ValueError("stdout and stderr arguments may not be used with capture_output.")
    if input is not None:
        if stdin is not None:
            raise ValueError("stdin and input arguments may not both be used.")
        stdin = PIPE
    elif stdin is None:
        # A guest's process does not wait for this process's terminal unless told to.
        stdin = DEVNULL
    if capture_output or (capture_output is None and stdout is None and stderr is None):
        stdout, stderr = PIPE, PIPE
    deadline = None if timeout is None else time.monotonic() + timeout
    options.update(
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        text=text,
        universal_newlines=universal_newlines,
        encoding=encoding,
        errors=errors,
        start_timeout=timeout,
    )
    # A terminal has one output, and a pipe that nobody writes to is closed by `communicate`.
    captured = stdout is PIPE and stderr is PIPE and not options.get("tty") and (stdin is not PIPE or input is not None)
    process = _Captured(context, args, input, **options) if captured else Popen(context, args, **options)
    try:
        if stop is not None:
            watcher = threading.Thread(target=_kill_when, args=(stop, process), daemon=True)
            shortage.start(watcher, "the process cannot be watched")
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        out, err = process.communicate(input, timeout=left)
    except TimeoutExpired as expired:
        expired.timeout = timeout or 0.0
        process.kill()
        try:
            process.communicate(timeout=_KILL_GRACE)
        except TimeoutExpired:
            process._exec.close()
            process.wait()
        expired.output, expired.stderr = process._partial()
        raise
    except BaseException:
        process._exec.close()
        raise
    finally:
        if stop is not None:
            stop.set()
    code = process.wait()
    if check and code:
        raise CalledProcessError(code, args, output=out, stderr=err)
    return CompletedProcess(args, code, out, err)


def _kill_when(stop: threading.Event, process: Popen) -> None:
    stop.wait()
    if process.returncode is None:
        process._exec.close()
