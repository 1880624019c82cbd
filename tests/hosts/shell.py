"""A shell in an emulated host, for people: `python -m tests.hosts.shell [--put SOURCE TARGET] x86_64 [COMMAND...]`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from pathlib import Path

from . import agent
from .disk import DEBIAN
from .host import Host


@contextlib.contextmanager
def raw_terminal() -> Iterator[None]:
    """Every key goes to the other end; the terminal is as it was afterwards."""
    if not sys.stdin.isatty():
        yield
        return
    saved = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, saved)


def interact(host: Host, command: list[str]) -> int:
    """Runs the command with this process's stdin, stdout and stderr; its status."""
    terminal = sys.stdin.isatty()
    channel = host.start_process(command, tty=terminal, env={"TERM": os.environ.get("TERM", "xterm")})

    def resize(*_: object) -> None:
        size = shutil.get_terminal_size()
        host.send(agent.RESIZE, channel, json.dumps([size.lines, size.columns]).encode())

    def feed() -> None:
        while data := os.read(0, 4096):
            host.send(agent.STDIN, channel, data)
        host.send(agent.STDIN, channel, b"")

    if terminal:
        resize()
        signal.signal(signal.SIGWINCH, resize)
    threading.Thread(target=feed, daemon=True).start()
    with raw_terminal():
        while True:
            message = host.next_message(channel, 3600)
            if message is None:
                continue
            kind, payload = message
            if kind in (agent.STDOUT, agent.STDERR):
                stream = sys.stdout if kind == agent.STDOUT else sys.stderr
                stream.buffer.write(payload)
                stream.buffer.flush()
            else:
                return host.status_of(kind, payload)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architecture", choices=sorted(DEBIAN))
    parser.add_argument("--put", nargs=2, action="append", default=[], metavar=("SOURCE", "TARGET"))
    parser.add_argument("--package", action="append", default=[], help="a further Debian package")
    parser.add_argument("--cpu", help="QEMU's name of another CPU")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    print(f"booting an emulated {options.architecture} host", file=sys.stderr)
    with Host(options.architecture, packages=tuple(options.package), cpu=options.cpu) as host:
        print(
            f"kernel {host.hello['kernel']}, /dev/kvm {'is there' if host.hello['kvm'] else 'is missing'}",
            file=sys.stderr,
        )
        for source, target in options.put:
            host.put(Path(source), target)
        return interact(host, options.command or ["sh"])


if __name__ == "__main__":
    sys.exit(main())
