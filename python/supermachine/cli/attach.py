"""``supermachine attach``."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, Any

import click

from .completion import machine_names

if TYPE_CHECKING:
    import socket

    from ..named.client import Machine

#: Control-P, Control-Q: leaves the machine as it is, as with docker.
_DETACH = b"\x10\x11"


@click.command()
@click.option("--no-stdin", is_flag=True, help="Do not pass stdin on.")
@click.option(
    "--sig-proxy/--no-sig-proxy", default=True, help="Pass signals on to its main process.  [default: pass on]"
)
@click.argument("name", shell_complete=machine_names)
def attach(name: str, no_stdin: bool, sig_proxy: bool) -> int:
    """Show what the main process of a machine writes from now on, and pass stdin on to it if it was started with -i.

    At a terminal, Control-P Control-Q leaves it. The exit status is the main process's.
    """
    from ..host.warnings import say
    from ..named import attached, client
    from .run import foreground

    machine = client.attach(name)
    connection, tty, interactive = machine._attached()
    left = threading.Event()
    raw = foreground.Terminal()
    with foreground.Signals() as signals, connection:
        try:
            if tty and interactive and not no_stdin:
                raw.make_raw()
            main: Any = _Main(machine)
            if sig_proxy:
                signals.pass_to(main)
            if tty:
                main.resize(*foreground.terminal_size())
                signals.follow_size(main)
            if interactive and not no_stdin and sys.stdin is not None:
                threading.Thread(target=_type, args=(connection, tty, left), daemon=True).start()
            for stream, data in attached.frames(connection):
                while data:
                    data = data[os.write(stream, data) :]
        except foreground.Signalled as signalled:
            return 128 + signalled.number
        finally:
            signals.pass_to(None)
            raw.restore()
    if left.is_set():
        return 0
    if not machine.state.running or machine.state.status == "stopping":
        code = machine.wait()
        return 0 if code is None else code
    say(f"{name} goes on; the output was not taken fast enough")
    return 125


class _Main:
    """The main process, as `foreground.Signals` has processes."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def send_signal(self, number: int) -> None:
        self._ask({"ask": "signal", "signal": number})

    def resize(self, rows: int, columns: int) -> None:
        self._ask({"ask": "resize", "rows": rows, "columns": columns})

    def _ask(self, request: dict[str, Any]) -> None:
        from contextlib import suppress

        from ..errors import SupermachineError

        with suppress(SupermachineError, OSError):
            self._machine._ask(request)


def _type(connection: socket.socket, tty: bool, left: threading.Event) -> None:
    """A thread: passes stdin on until its end, or until the keys that leave."""
    import socket
    from contextlib import suppress

    held = b""
    with suppress(OSError):
        while data := os.read(0, 1 << 16):
            data = held + data
            if tty and _DETACH in data:
                connection.sendall(data.partition(_DETACH)[0])
                left.set()
                connection.shutdown(socket.SHUT_RDWR)
                return
            # The first of the two keys alone waits for the next.
            held = data[-1:] if tty and data.endswith(_DETACH[:1]) else b""
            connection.sendall(data[: len(data) - len(held)])
        connection.shutdown(socket.SHUT_WR)
