"""A machine with hardware virtualisation, emulated by QEMU without any: real KVM on Debian's stock kernel.

Commands run in it over a virtio-serial port (agent.py). Every wait has a deadline, and a machine that ends wakes
everyone who waits for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from . import agent
from .disk import CONSOLE, HostError, make, tar_of

#: From power-on to an agent that answers: ten seconds on an idle machine, and machines are not always idle.
BOOT_TIMEOUT = 400.0
EMULATORS = {"x86_64": "qemu-system-x86_64", "aarch64": "qemu-system-aarch64"}
MACHINES = {
    # AMD's virtualisation is what QEMU emulates, nested paging included.
    "x86_64": ["-machine", "q35", "-cpu", "EPYC,+svm"],
    "aarch64": ["-machine", "virt,virtualization=on,gic-version=3", "-cpu", "cortex-a76"],
}
CHUNK = 256 * 1024


class Host:
    """One emulated host, from `__enter__` (or `start`) to `__exit__` (or `stop`). Threads may share it."""

    def __init__(
        self,
        architecture: str,
        *,
        packages: tuple[str, ...] = (),
        cpus: int = 2,
        memory: int = 3 << 30,
        cpu: str | None = None,
        machine: str | None = None,
        boot_timeout: float = BOOT_TIMEOUT,
    ) -> None:
        """`packages` are Debian packages beyond those that every host has; `memory` is in bytes; `cpu` and
        `machine` are QEMU's names of a CPU and a machine in place of the default ones.
        """
        self.architecture = architecture
        self.packages = packages
        self.cpus, self.memory, self.boot_timeout = cpus, memory, boot_timeout
        self.cpu, self.machine = cpu, machine
        #: What the host said of itself: "kernel", its release, and "kvm", whether it has /dev/kvm.
        self.hello: dict[str, Any] = {}
        self._channels: dict[int, queue.SimpleQueue[tuple[int, bytes] | None]] = {}
        self._lock, self._sending = threading.Lock(), threading.Lock()
        self._last = 0
        self._dead = False
        self._qemu: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._place: Path | None = None

    def __enter__(self) -> Host:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Boots; returns when commands can run."""
        emulator = EMULATORS.get(self.architecture, "")
        if shutil.which(emulator) is None:
            raise HostError(
                f"an emulated {self.architecture} host needs {emulator or 'an emulator'}; it is not installed"
            )
        disk = make(self.architecture, self.packages)
        self._place = Path(tempfile.mkdtemp(prefix="host-"))
        path = self._place / "port"
        machine = list(MACHINES[self.architecture])
        if self.machine:
            machine[1] = self.machine
        if self.cpu:
            machine[-1] = self.cpu
        console = CONSOLE[self.architecture]
        command = [
            emulator, *machine, "-accel", "tcg,thread=multi", "-smp", str(self.cpus), "-m", f"{self.memory >> 20}M",
            "-nodefaults", "-display", "none", "-no-reboot",
            "-kernel", str(disk.kernel), "-initrd", str(disk.initramfs),
            "-append", f"console={console} quiet panic=-1 mitigations=off",
            "-drive", f"file={disk.disk},format=raw,if=none,id=root,snapshot=on",
            "-device", "virtio-blk-pci,drive=root",
            "-chardev", f"socket,id=port,path={path},server=on,wait=off", "-device", "virtio-serial-pci",
            "-device", f"virtserialport,chardev=port,name={agent.PORT}",
            "-chardev", f"file,id=console,path={self._place / 'console'}", "-serial", "chardev:console",
        ]  # fmt: skip
        deadline = time.monotonic() + self.boot_timeout
        with (self._place / "qemu").open("wb") as log:
            self._qemu = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "TMPDIR": str(self._place)},
            )
        try:
            self._socket = self._connect(path, deadline)
            self._channels[0] = queue.SimpleQueue()
            threading.Thread(target=self._read, args=(self._socket,), daemon=True).start()
            kind, payload = self._next(0, deadline) or (0, b"")
            if kind != agent.HELLO:
                raise HostError(f"the {self.architecture} host did not get ready: {self.console_tail()}")
            self.hello = json.loads(payload)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends the machine; what it wrote to its disk is gone."""
        self._dead = True
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait(30)
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        if self._place is not None:
            shutil.rmtree(self._place, ignore_errors=True)

    def is_running(self) -> bool:
        """Whether commands can run."""
        return not self._dead and self._qemu is not None and self._qemu.poll() is None

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        if self._qemu is None:
            raise HostError("the host is not running")
        return self._qemu.pid

    def console_tail(self, size: int = 4000) -> str:
        """The last that the kernel and QEMU said."""
        if self._place is None:
            return ""
        parts = [path.read_bytes() for name in ("qemu", "console") if (path := self._place / name).exists()]
        return b"".join(parts)[-size:].decode(errors="replace").strip() or "it said nothing"

    def run(
        self,
        args: Sequence[str | os.PathLike[str]],
        timeout: float,
        *,
        input: bytes | str | None = None,  # noqa: A002 (the name that subprocess.run has)
        text: bool = False,
        check: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str = "/root",
        user: int | None = None,
    ) -> subprocess.CompletedProcess[Any]:
        """Runs a program in the host, as `subprocess.run(..., capture_output=True)` does here.

        After `timeout` seconds its process group is killed and TimeoutExpired raised with what it had written; `user`
        is a numeric user id in place of root's.
        """
        deadline = time.monotonic() + timeout
        channel = self.start_process(args, env=env, cwd=cwd, user=user)
        data = input.encode() if isinstance(input, str) else input or b""
        feeder = threading.Thread(target=self._feed, args=(channel, data), daemon=True)
        feeder.start()
        outputs: dict[int, list[bytes]] = {agent.STDOUT: [], agent.STDERR: []}
        status: int | None = None
        try:
            while status is None:
                message = self._next(channel, deadline)
                if message is None:
                    self._send_quietly(agent.KILL, channel, json.dumps(signal.SIGKILL).encode())
                    raise subprocess.TimeoutExpired(
                        [*map(str, args)], timeout, *(_decoded(b"".join(outputs[k]), text) for k in outputs)
                    )
                kind, payload = message
                if kind in outputs:
                    outputs[kind].append(payload)
                else:
                    status = self.status_of(kind, payload)
        finally:
            self.forget(channel)
        stdout, stderr = (_decoded(b"".join(outputs[kind]), text) for kind in outputs)
        done = subprocess.CompletedProcess([*map(str, args)], status, stdout, stderr)
        if check and status:
            raise HostError(f"{done.args} failed with status {status}: {_tail(stderr) or _tail(stdout)}")
        return done

    def put(self, source: Path, target: str, *, timeout: float = 300) -> None:
        """Copies a file with its permissions, or what is in a directory, to a path in the host."""
        if source.is_dir():
            self.run(["mkdir", "-p", target], timeout, check=True)
            self.run(["tar", "-x", "-C", target], timeout, input=tar_of(source), check=True)
            return
        mode = f"{source.stat().st_mode & 0o7777:o}"
        script = 'mkdir -p "$(dirname "$1")" && cat >"$1" && chmod "$2" "$1"'
        self.run(["sh", "-c", script, "sh", target, mode], timeout, input=source.read_bytes(), check=True)

    def get(self, source: str, *, timeout: float = 300) -> bytes:
        """What a file in the host holds."""
        return bytes(self.run(["cat", source], timeout, check=True).stdout)

    # What run() and the shell are made of.

    def start_process(
        self,
        args: Sequence[str | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "/root",
        user: int | None = None,
        tty: bool = False,
    ) -> int:
        """Starts a program and returns its channel."""
        with self._lock:
            self._last += 1
            channel = self._last
            self._channels[channel] = queue.SimpleQueue()
            if self._dead:
                self._channels[channel].put(None)
        request = {"args": [*map(str, args)], "env": dict(env or {}), "cwd": cwd, "user": user, "tty": tty}
        self.send(agent.START, channel, json.dumps(request).encode())
        return channel

    def send(self, kind: int, channel: int, payload: bytes = b"") -> None:
        """Sends one message."""
        if self._socket is None:
            raise HostError("the host is not running")
        try:
            with self._sending:
                self._socket.sendall(agent.HEADER.pack(len(payload), kind, channel) + payload)
        except OSError as error:
            raise self._death() from error

    def status_of(self, kind: int, payload: bytes) -> int:
        """The exit status that a channel's last message tells of."""
        if kind == agent.EXIT:
            return int(json.loads(payload))
        failure = json.loads(payload)
        raise OSError(failure["errno"], f"in the {self.architecture} host: {failure['message']}")

    def next_message(self, channel: int, timeout: float) -> tuple[int, bytes] | None:
        """The next message of a channel; None when none has come in `timeout` seconds."""
        return self._next(channel, time.monotonic() + timeout)

    def forget(self, channel: int) -> None:
        """Drops a channel, and what still comes in on it."""
        with self._lock:
            self._channels.pop(channel, None)

    def _next(self, channel: int, deadline: float) -> tuple[int, bytes] | None:
        try:
            message = self._channels[channel].get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return None
        if message is None:
            raise self._death()
        return message

    def _death(self) -> HostError:
        return HostError(f"the emulated {self.architecture} host is gone: {self.console_tail()}")

    def _feed(self, channel: int, data: bytes) -> None:
        for start in range(0, len(data), CHUNK):
            self._send_quietly(agent.STDIN, channel, data[start : start + CHUNK])
        self._send_quietly(agent.STDIN, channel, b"")

    def _send_quietly(self, kind: int, channel: int, payload: bytes) -> None:
        # Whoever waits for the channel hears of it.
        with contextlib.suppress(HostError):
            self.send(kind, channel, payload)

    def _connect(self, path: Path, deadline: float) -> socket.socket:
        assert self._qemu is not None
        connection = socket.socket(socket.AF_UNIX)
        while True:
            try:
                connection.connect(str(path))
                return connection
            except OSError as error:
                if self._qemu.poll() is not None or time.monotonic() > deadline:
                    raise HostError(f"QEMU did not start: {self.console_tail()}") from error
                time.sleep(0.05)

    def _read(self, connection: socket.socket) -> None:
        """Sorts what comes in by channel, until the machine ends."""
        with contextlib.suppress(OSError, EOFError), connection.makefile("rb") as stream:
            while True:
                length, kind, channel = agent.HEADER.unpack(_exactly(stream, agent.HEADER.size))
                payload = _exactly(stream, length)
                with self._lock:
                    waiting = self._channels.get(channel)
                if waiting is not None:
                    waiting.put((kind, payload))
        with self._lock:
            self._dead = True
            for waiting in self._channels.values():
                waiting.put(None)


def _exactly(stream: Any, count: int) -> bytes:
    data: bytes = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data


def _decoded(data: bytes, text: bool) -> bytes | str:
    return data.decode(errors="replace") if text else data


def _tail(output: bytes | str) -> str:
    return (output if isinstance(output, str) else output.decode(errors="replace")).strip()[-2000:]
