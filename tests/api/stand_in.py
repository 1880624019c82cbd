"""A worker without a virtual machine: the protocol of rust/proto, written again from its description in Python.

Processes and files are the host's own, so whatever a test sees can be compared with `subprocess` and `pathlib`. The
control socket is standard input. The program name ``!vanish`` ends the worker without a word, ``!panic`` says first
that the guest's kernel panicked, and ``!hang-up`` closes its connection.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import threading
import time


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def number(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def signed(self) -> int:
        value = self.number()
        return (value >> 1) ^ -(value & 1)

    def bytes(self) -> bytes:
        length = self.number()
        self.at += length
        return self.data[self.at - length : self.at]


def number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def signed(value: int) -> bytes:
    return number((value << 1) ^ (value >> 63))


def blob(data: bytes) -> bytes:
    return number(len(data)) + data


class Stream:
    """Frames over a socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.lock, self.fds = sock, threading.Lock(), []

    def send(self, body: bytes) -> None:
        with self.lock:
            try:
                self.sock.sendall(struct.pack("<I", len(body)) + body)
            except OSError:
                pass

    def _exactly(self, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            part, fds, _, _ = socket.recv_fds(self.sock, size - len(data), 4)
            self.fds += fds
            if not part:
                return None
            data += part
        return data

    def receive(self) -> Reader | None:
        try:
            head = self._exactly(4)
            body = head and self._exactly(struct.unpack("<I", head)[0])
        except OSError:
            return None
        return None if body is None else Reader(body)


def exited(reason: int, message: str, tail: str) -> bytes:
    return b"\x01" + number(reason) + blob(message.encode()) + blob(tail.encode())


CONTROL = Stream(socket.socket(fileno=os.dup(0)))


def serve(stream: Stream) -> None:
    request = stream.receive()
    if request is None:
        return
    kind = request.number()
    if kind == 0:
        execute(stream, request)
    elif kind == 1:
        while (command := stream.receive()) is not None:
            try:
                number_ = command.number()
                if number_ in (0, 1, 2) and command.data[2:].startswith(b"/hostile/"):
                    hostile(stream, number_, command.bytes())
                else:
                    FILES[number_](stream, command)
            except OSError as error:
                stream.send(b"\x05" + signed(error.errno or 5))
    stream.sock.close()


def execute(stream: Stream, request: Reader) -> None:
    args = [request.bytes() for _ in range(request.number())]
    env = dict(request.bytes().partition(b"=")[::2] for _ in range(request.number()))
    cwd, _user = request.bytes(), request.bytes()
    if request.byte():
        request.number(), request.number()
    has_stdin = request.byte()
    if args[0] == b"!vanish":
        os._exit(9)
    if args[0] == b"!panic":
        CONTROL.send(exited(3, "the guest's kernel panicked", "Kernel panic - not syncing"))
        os._exit(0)
    if args[0] == b"!hang-up":
        return
    if args[0] in HOSTILE:
        return stream.sock.sendall(b"".join(struct.pack("<I", len(body)) + body for body in HOSTILE[args[0]]))
    if args[0] == b"!mute":
        while stream.receive() is not None:
            pass
        return
    env.setdefault(b"PATH", os.defpath.encode())
    try:
        process = subprocess.Popen(
            args,
            env=env,
            cwd=cwd or b"/",
            stdin=subprocess.PIPE if has_stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        kind = 3 if os.fsencode(error.filename or b"") == cwd != args[0] else 0
        return stream.send(b"\x05" + number(kind) + blob(b"no such file"))
    except PermissionError:
        return stream.send(b"\x05\x01" + blob(b"permission denied"))
    stream.send(b"\x00" + number(process.pid))
    done = threading.Event()

    def copy(source, tag):
        while data := os.read(source.fileno(), 65536):
            stream.send(tag + blob(data))

    def control():
        while (message := stream.receive()) is not None:
            kind = message.number()
            if kind == 0:
                data = message.bytes()
                try:
                    process.stdin.write(data)
                    process.stdin.flush()
                except (OSError, ValueError):
                    pass
                stream.send(b"\x03" + number(len(data)))
            elif kind == 1:
                try:
                    process.stdin.close()
                except OSError:
                    pass
            elif kind == 2:
                os.killpg(process.pid, message.signed())
        if not done.is_set():
            os.killpg(process.pid, signal.SIGKILL)

    threads = [
        threading.Thread(target=copy, args=(process.stdout, b"\x01")),
        threading.Thread(target=copy, args=(process.stderr, b"\x02")),
    ]
    for thread in [*threads, threading.Thread(target=control, daemon=True)]:
        thread.start()
    code = process.wait()
    for thread in threads:
        thread.join(0.5)
    done.set()
    stream.send(b"\x04" + (b"\x00" + signed(code) if code >= 0 else b"\x01" + signed(-code)))
    stream.sock.shutdown(socket.SHUT_WR)


DONE = b"\x00"

#: What no process does: programs of these names end with a status or by a signal that there is none of, or say
#: something that is meant for a terminal.
HOSTILE = {
    b"!status": [b"\x00\x01", b"\x04\x00" + signed(1 << 30)],
    b"!signal": [b"\x00\x01", b"\x04\x01" + signed(-(1 << 31))],
    b"!escape": [b"\x05\x05" + blob(b"\x1b]0;title\x07\x1b[2Jgone \xc2\x9b31m")],
}


def status(s: os.stat_result) -> bytes:
    fields = (s.st_dev, s.st_ino, s.st_mode, s.st_nlink, s.st_uid, s.st_gid, s.st_rdev, s.st_size, s.st_blocks)
    times = (s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns)
    return b"".join(map(number, fields)) + b"".join(map(signed, times))


def stat_(stream, c):
    path = c.bytes()
    stream.send(b"\x01" + status(os.stat(path, follow_symlinks=bool(c.byte()))))


def list_(stream, c):
    path = c.bytes()
    for name in os.listdir(path):
        entry = blob(name) + status(os.lstat(os.path.join(path, name)))
        stream.send(b"\x02" + number(1) + entry)
    stream.send(DONE)


def read(stream, c):
    path, offset, length, holes = c.bytes(), c.number(), c.number(), c.byte()
    with open(path, "rb", buffering=0) as file:
        at, end = offset, offset + (length or 1 << 62)
        while at < end:
            stop = end
            if holes:
                try:
                    start = os.lseek(file.fileno(), at, os.SEEK_DATA)
                    stop = os.lseek(file.fileno(), start, os.SEEK_HOLE)
                except OSError:  # no data any more
                    start = stop = max(at, os.fstat(file.fileno()).st_size)
                if start > at:
                    stream.send(b"\x06" + number(min(start, end) - at))
                at = start
            file.seek(at)
            before = at
            while at < min(stop, end) and (data := file.read(min(65536, min(stop, end) - at))):
                at += len(data)
                stream.send(b"\x03" + blob(data))
            if at == before:
                break
    stream.send(DONE)


def write(stream, c):
    path, mode, how = c.bytes(), c.number(), c.number()
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC, os.O_APPEND, os.O_EXCL)[how]
    with open(os.open(path, flags, mode), "wb") as file:
        stream.send(DONE)
        while (message := stream.receive()) is not None and (kind := message.number()) != 5:
            if kind == 4:
                file.write(message.bytes())
            else:
                file.truncate(file.seek(message.number(), os.SEEK_CUR))
    stream.send(DONE)


def make_dir(stream, c):
    path, mode, parents, exist_ok = c.bytes(), c.number(), c.byte(), c.byte()
    try:
        os.makedirs(path, mode) if parents else os.mkdir(path, mode)
    except FileExistsError:
        if not (exist_ok and os.path.isdir(path)):
            raise
    stream.send(DONE)


def simple(function, *kinds):
    def command(stream, c):
        function(*(getattr(c, kind)() for kind in kinds))
        stream.send(DONE)

    return command


def target(function):
    return lambda stream, c: stream.send(b"\x04" + blob(function(c.bytes())))


def remove_tree(path):
    import shutil

    shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)


def hostile(stream, command, path):
    """Answers that do not fit, for paths below /hostile."""
    name = path.rsplit(b"/", 1)[-1]
    nothing = bytes(13)
    if name == b"endless":
        part = b"\x02" + number(1000) + b"".join(blob(b"%d" % n) + nothing for n in range(1000))
        while True:
            stream.sock.sendall(struct.pack("<I", len(part)) + part)
    if name == b"data":
        part = b"\x03" + blob(bytes(65536))
        while True:
            stream.sock.sendall(struct.pack("<I", len(part)) + part)
    if name == b"name":
        return stream.send(b"\x02\x01" + blob(b"../../etc/passwd") + nothing)
    if name == b"empty":
        return stream.send((b"\x02\x00", b"\x02\x00", b"\x03\x00")[command])
    if name == b"errno":
        return stream.send(b"\x05" + signed(-(1 << 31)))
    if name == b"silent":
        return None
    if name == b"drip":
        for byte in struct.pack("<I", 200_000) + bytes(200_000):
            stream.sock.sendall(bytes([byte]))
            time.sleep(0.02)
    return stream.send(b"\x04" + blob(bytes(9000)))


def _id(value):
    return -1 if value == 0xFFFFFFFF else value


FILES = {
    0: stat_,
    1: list_,
    2: read,
    3: write,
    6: make_dir,
    7: simple(os.unlink, "bytes"),
    8: simple(os.rmdir, "bytes"),
    9: simple(remove_tree, "bytes"),
    10: simple(os.rename, "bytes", "bytes"),
    11: simple(os.symlink, "bytes", "bytes"),
    12: simple(os.link, "bytes", "bytes"),
    13: target(os.readlink),
    14: target(lambda path: os.path.realpath(path, strict=True)),
    15: simple(os.chmod, "bytes", "number"),
    16: simple(
        lambda p, u, g, f: os.chown(p, _id(u), _id(g), follow_symlinks=bool(f)), "bytes", "number", "number", "byte"
    ),
    17: simple(lambda p, a, m: os.utime(p, ns=(a, m)), "bytes", "signed", "signed"),
    18: simple(os.mkfifo, "bytes", "number"),
}


def main() -> None:
    while (command := CONTROL.receive()) is not None:
        kind = command.number()
        if kind == 0:
            # What comes along with a start is for a disk.
            CONTROL.fds.clear()
            CONTROL.send(b"\x00" + number(1) + blob(b"agent") + number(1_000_000))
        elif kind == 1:
            peer = Stream(socket.socket(fileno=CONTROL.fds.pop(0)))
            threading.Thread(target=serve, args=(peer,), daemon=True).start()
        elif kind == 2:
            CONTROL.send(exited(0, "the guest was shut down", ""))
            os._exit(0)
    os._exit(0)


if __name__ == "__main__":
    main()
