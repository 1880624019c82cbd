"""Runs inside an emulated host, on a virtio-serial port: starts what the other end asks for and streams its output.

A message is its payload's length, a kind and a channel (big-endian u32, u8, u32), then the payload. A channel is one
process, numbered by the other end. No more than what the standard library has: this file is all that is copied in.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import pwd
import queue
import signal
import struct
import subprocess
import termios
import threading
from pathlib import Path
from typing import Any

HEADER = struct.Struct(">IBI")
PORT = "org.supermachine.test"
# To the agent.
START, STDIN, KILL, RESIZE = 1, 2, 3, 4
# From the agent.
HELLO, STDOUT, STDERR, EXIT, FAILED = 17, 18, 19, 20, 21
CHUNK = 64 * 1024
# linux/kvm.h
KVM_CREATE_VM, KVM_CREATE_VCPU, KVM_CREATE_IRQCHIP = 0xAE01, 0xAE41, 0xAE60


class Agent:
    """The port and the processes behind it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.lock = threading.Lock()
        self.processes: dict[int, Process] = {}

    def send(self, kind: int, channel: int, payload: bytes = b"") -> None:
        data = memoryview(HEADER.pack(len(payload), kind, channel) + payload)
        with self.lock:
            while data:
                data = data[os.write(self.fd, data) :]

    def receive(self, count: int) -> bytes:
        parts = []
        while count:
            # A port whose other end is not open reads as ended.
            part = os.read(self.fd, min(count, CHUNK))
            if not part:
                raise EOFError
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def serve(self) -> None:
        self.send(HELLO, 0, json.dumps({"kernel": os.uname().release, "kvm": Path("/dev/kvm").exists()}).encode())
        while True:
            length, kind, channel = HEADER.unpack(self.receive(HEADER.size))
            payload = self.receive(length)
            if kind == START:
                try:
                    self.processes[channel] = Process(self, channel, json.loads(payload))
                except (OSError, KeyError, ValueError) as error:
                    failure = {"errno": getattr(error, "errno", None), "message": str(error)}
                    self.send(FAILED, channel, json.dumps(failure).encode())
            elif (process := self.processes.get(channel)) is not None:
                if kind == STDIN:
                    process.input.put(payload)
                elif kind == KILL:
                    process.kill(json.loads(payload))
                elif kind == RESIZE:
                    process.resize(*json.loads(payload))


class Process:
    """One process, its stdin fed and its output drained by threads."""

    def __init__(self, agent: Agent, channel: int, request: dict[str, Any]) -> None:
        self.agent, self.channel = agent, channel
        self.input: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.terminal: int | None = None
        home = pwd.getpwuid(request["user"] or 0).pw_dir
        environment = {**os.environ, "HOME": home, **request["env"]}
        common: dict[str, Any] = {"cwd": request["cwd"], "env": environment, "user": request["user"]}
        if request["user"] is not None:
            common |= {"group": request["user"], "extra_groups": []}
        if request["tty"]:
            self.terminal, child = pty.openpty()
            self.process = subprocess.Popen(
                request["args"], stdin=child, stdout=child, stderr=child, **common,
                start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            )  # fmt: skip
            os.close(child)
            self.stdin, outputs = self.terminal, [(STDOUT, self.terminal)]
        else:
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(
                request["args"], stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True, bufsize=0, **common
            )
            assert self.process.stdin and self.process.stdout and self.process.stderr
            self.stdin = self.process.stdin.fileno()
            outputs = [(STDOUT, self.process.stdout.fileno()), (STDERR, self.process.stderr.fileno())]
        pumps = [threading.Thread(target=self.drain, args=output, daemon=True) for output in outputs]
        for thread in [*pumps, threading.Thread(target=self.feed, daemon=True)]:
            thread.start()
        threading.Thread(target=self.finish, args=(pumps,), daemon=True).start()

    def feed(self) -> None:
        while data := self.input.get():
            view = memoryview(data)
            with contextlib.suppress(OSError):
                while view:
                    view = view[os.write(self.stdin, view) :]
        if self.terminal is None and self.process.stdin:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    def drain(self, kind: int, fd: int) -> None:
        # A terminal whose last process is gone is an input/output error.
        with contextlib.suppress(OSError):
            while data := os.read(fd, CHUNK):
                self.agent.send(kind, self.channel, data)

    def finish(self, pumps: list[threading.Thread]) -> None:
        status = self.process.wait()
        for pump in pumps:
            pump.join()
        self.input.put(b"")
        self.agent.processes.pop(self.channel, None)
        self.agent.send(EXIT, self.channel, json.dumps(status).encode())

    def kill(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def resize(self, rows: int, columns: int) -> None:
        if self.terminal is not None:
            fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def port() -> Path:
    """The device of the port of our name."""
    for name in Path("/sys/class/virtio-ports").glob("*/name"):
        if name.read_text().strip() == PORT:
            return Path("/dev") / name.parent.name
    raise SystemExit(f"this machine has no virtio-serial port {PORT}")


def keep_a_virtual_machine() -> None:
    """Has KVM in use for as long as this host runs, by a virtual machine that never does.

    The kernel rewrites its own code, in the scheduler among other places, when the first virtual machine is made and
    when the last one goes (static keys: preempt_notifier_key, and apic_sw_disabled for each local APIC that is off).
    QEMU without hardware virtualisation sometimes keeps what it has translated of the breakpoint that is there
    meanwhile, and then a CPU of this host takes that breakpoint for ever.
    """
    with contextlib.suppress(OSError):
        machine = fcntl.ioctl(os.open("/dev/kvm", os.O_RDWR), KVM_CREATE_VM, 0)
        if os.uname().machine == "x86_64":
            fcntl.ioctl(machine, KVM_CREATE_IRQCHIP, 0)
        fcntl.ioctl(machine, KVM_CREATE_VCPU, 0)


def main() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    keep_a_virtual_machine()
    with contextlib.suppress(EOFError):
        Agent(os.open(port(), os.O_RDWR)).serve()
    # The other end is gone, perhaps killed: this machine must not outlive it.
    os.execv("/bin/busybox", ["busybox", "poweroff", "-f"])


if __name__ == "__main__":
    main()
