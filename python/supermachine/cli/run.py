"""``supermachine run``."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from .. import options
from ..errors import VMTimeout
from .progress import progress

if TYPE_CHECKING:
    from ..processes import Popen
    from ..vm import VM

#: Signals that are the guest's to handle.
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
#: How long a killed command may take to go, in seconds.
_KILL_GRACE = 2.0
#: Rows and columns for a command that is given a terminal where there is none.
_USUAL_SIZE = (24, 80)


class _Signalled(BaseException):
    """A signal before there was a process to pass it on to."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run_command(
    *,
    image: str,
    command: tuple[str, ...],
    env: tuple[str, ...],
    env_file: tuple[str, ...],
    workdir: str | None,
    user: str | None,
    memory: str | None,
    cpus: int,
    engine: str,
    entrypoint: str | None,
    hostname: str | None,
    publish: tuple[str, ...],
    no_snapshot: bool,
    interactive: bool,  # noqa: ARG001 - docker's habit; stdin is passed on without it
    no_stdin: bool,
    tty: bool | None,
    timeout: float | None,
    boot_timeout: float | None,
    pull: Any,
    platform: str | None,
    insecure: bool,
    require_hardware: bool | None,
    timings: bool,
    quiet: bool,
) -> int:
    from ..vm import DEFAULT_BOOT_TIMEOUT, VM

    started = time.perf_counter_ns()
    steps: list[tuple[str, int]] = []

    def step(name: str) -> None:
        steps.append((name, time.perf_counter_ns() - started))

    items: list[str] = []
    for name in env_file:
        with Path(name).open(encoding="utf-8") as file:
            items += options.environment_file(file)
    # As docker: after `--` or without, the words are the command's.
    words = command[1:] if command[:1] == ("--",) else command
    terminal = _wants_terminal(tty)
    running: list[Popen] = []
    with _signals(running), progress(quiet) as report:
        try:
            vm = VM(
                image,
                memory=memory or options.DEFAULT_MEMORY,
                vcpus=cpus,
                engine=engine,
                environment=[*items, *env],
                working_dir=workdir,
                user=user,
                hostname=hostname,
                require_hardware=require_hardware,
                platform=platform,
                pull=pull,
                insecure=insecure,
                ports=_published(publish),
                bake=False if no_snapshot else None,
                progress=report,
                boot_timeout=boot_timeout or DEFAULT_BOOT_TIMEOUT,
            )
            argv = vm.command(list(words), None if entrypoint is None else [entrypoint])
            step("image")
            report.close()
            # What runs processes is imported while the guest comes up.
            threading.Thread(target=_import_processes).start()
            with vm:
                steps.extend((name, steps[0][1] + at) for name, at in vm.timings)
                step("started")
                gc.freeze()
                gc.enable()
                code = _execute(vm, argv, terminal, no_stdin, timeout, running)
                step("command")
            step("end")
        except _Signalled as signalled:
            return 128 + signalled.number
    if timings:
        last = 0
        for name, at in sorted(steps, key=lambda s: s[1]):
            print(f"supermachine: {name:<24} {at / 1e6:10.1f} ms  +{(at - last) / 1e6:.1f}", file=sys.stderr)
            last = at
    return 128 - code if code < 0 else code


def _import_processes() -> None:
    from .. import processes  # noqa: F401


def _published(publish: tuple[str, ...]) -> Any:
    if not publish:
        return None
    from ..ports import published

    return published(publish)


def _wants_terminal(tty: bool | None) -> bool:
    if tty is not None:
        return tty
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout is not None and sys.stdout.isatty()


def _terminal_size() -> tuple[int, int]:
    """Rows and columns of the terminal itself: COLUMNS and LINES in the environment do not change with it."""
    for descriptor in (0, 1, 2):
        with suppress(OSError):
            columns, rows = os.get_terminal_size(descriptor)
            if rows and columns:
                return rows, columns
    return _USUAL_SIZE


def _execute(
    vm: VM, argv: list[str], terminal: bool, no_stdin: bool, timeout: float | None, running: list[Popen]
) -> int:
    from ..processes import DEVNULL, TimeoutExpired

    size = None
    if terminal:
        size = _terminal_size()
    term = {"TERM": os.environ["TERM"]} if terminal and os.environ.get("TERM") else None
    with _raw_terminal(terminal):
        process = vm.popen(argv, stdin=DEVNULL if no_stdin else None, env=term, tty=size)
        running.append(process)
        if terminal:
            _follow_size(process)
        try:
            return process.wait(timeout)
        except TimeoutExpired:
            process.kill()
            with suppress(TimeoutExpired):
                process.wait(_KILL_GRACE)
            raise VMTimeout(f"the command was killed: it still ran after {timeout:g} seconds") from None
        finally:
            running.clear()


@contextmanager
def _signals(running: list[Popen]) -> Iterator[None]:
    """Passes signals on to the command, once there is one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        if running:
            running[0].send_signal(number)
        else:
            raise _Signalled(number)

    # A signal that whoever started us has made us ignore (nohup) stays ignored.
    before = {s: signal.getsignal(s) for s in _PASSED_ON}
    taken = {s: old for s, old in before.items() if old is not signal.SIG_IGN}
    for number in taken:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, old in taken.items():
            signal.signal(number, old)


@contextmanager
def _raw_terminal(terminal: bool) -> Iterator[None]:
    """The terminal gives every key to the guest, and is as it was afterwards."""
    if not terminal or sys.stdin is None or not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor, termios.TCSANOW)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _follow_size(process: Popen) -> None:
    if threading.current_thread() is not threading.main_thread():
        return

    def resize(_number: int, _frame: FrameType | None) -> None:
        process.resize(*_terminal_size())

    signal.signal(signal.SIGWINCH, resize)
