"""HTTP/1.1 as Docker's clients speak it: messages, bodies, and the limits on both. Knows nothing of Docker.

A client is a program of this user's, and may be a bad one: a head has a size and a deadline, a body that is kept has
both, a body that is passed on may not stall, and a connection that asks for nothing is closed.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import json
import math
import termios
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from .errors import ApiError, BadRequest

#: Bytes of a request's first line and headers.
MAX_HEAD = 64 << 10
#: Seconds that are waited for a client to read the head of an answer before what follows it is sent.
_TAKEN = 1.0
#: Seconds from the first byte of a head to its last.
HEAD_TIMEOUT = 20.0
#: Seconds that a connection may be idle between two requests.
IDLE_TIMEOUT = 300.0
#: Bytes of a body that is read as a whole, and the seconds that it may take.
MAX_DOCUMENT = 1 << 20
DOCUMENT_TIMEOUT = 60.0
#: Seconds without a byte of a body that is passed on.
STALL_TIMEOUT = 60.0
#: Bytes of a body that nobody has read, which are skipped for the next request's sake.
_MAX_SKIPPED = 64 << 10
#: Bytes of a chunk's first line (RFC 9112, 7.1) and of a trailer.
_MAX_CHUNK_LINE = 256
#: Bytes of one read.
PIECE = 64 << 10

_TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


class Disconnected(Exception):
    """The client has gone, or has stopped in the middle of a message."""


class Reader(asyncio.StreamReader):
    """A stream reader that tells of the other side's end also who does not read."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit=MAX_HEAD, loop=loop)
        self.ended = asyncio.Event()

    def feed_eof(self) -> None:
        super().feed_eof()
        self.ended.set()

    def set_exception(self, exc: Any) -> None:
        super().set_exception(exc)
        self.ended.set()


class Body:
    """A request's body, read once."""

    def __init__(
        self, reader: asyncio.StreamReader, length: int | None, go_on: Callable[[], Awaitable[None]] | None
    ) -> None:
        """`length` is ``None`` for a chunked body; `go_on` tells a client that waits for it to send the body."""
        self._reader = reader
        self._chunked = length is None
        #: Bytes to come of the body, or of the chunk.
        self._left = length or 0
        self._go_on = go_on
        self.done = length == 0

    async def read(self) -> bytes:
        """The next piece; empty at the end. Raises Disconnected, and ApiError for a body that stalls."""
        if self.done:
            return b""
        if self._go_on is not None:
            go_on, self._go_on = self._go_on, None
            await go_on()
        try:
            return await asyncio.wait_for(self._piece(), STALL_TIMEOUT)
        except asyncio.TimeoutError:
            raise ApiError(
                HTTPStatus.REQUEST_TIMEOUT, f"the request's body stalled for {STALL_TIMEOUT:g} seconds"
            ) from None
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise Disconnected from error

    async def _piece(self) -> bytes:
        if self._chunked and not self._left:
            self._left = _chunk_size(await self._line())
            if not self._left:
                while (await self._line()).strip():
                    pass  # trailers
                self.done = True
                return b""
        data = await self._reader.read(min(self._left, PIECE))
        if not data:
            raise Disconnected
        self._left -= len(data)
        if not self._left:
            if self._chunked:
                if await self._reader.readexactly(2) != b"\r\n":
                    raise BadRequest("a chunk of the request's body is longer than it says")
            else:
                self.done = True
        return data

    async def _line(self) -> bytes:
        try:
            line = await self._reader.readuntil(b"\r\n")
        except asyncio.LimitOverrunError:
            line = b" " * (_MAX_CHUNK_LINE + 1)
        if len(line) > _MAX_CHUNK_LINE:
            raise BadRequest("the request's body is not chunked as HTTP/1.1 has it")
        return line

    async def whole(self, limit: int = MAX_DOCUMENT) -> bytes:
        """All of it. Raises ApiError when it has more than `limit` bytes, or is slow."""

        async def gather() -> bytes:
            parts, size = [], 0
            while piece := await self.read():
                size += len(piece)
                if size > limit:
                    raise ApiError(
                        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the request's body has more than {limit} bytes"
                    )
                parts.append(piece)
            return b"".join(parts)

        try:
            return await asyncio.wait_for(gather(), DOCUMENT_TIMEOUT)
        except asyncio.TimeoutError:
            raise ApiError(
                HTTPStatus.REQUEST_TIMEOUT, f"the request's body took more than {DOCUMENT_TIMEOUT:g} seconds"
            ) from None

    async def skip(self) -> bool:
        """Reads what is left of it, if that is little and there; whether it is at its end."""
        if self._go_on is not None and not self.done:
            return False
        skipped = 0
        try:
            while not self.done and skipped <= _MAX_SKIPPED:
                skipped += len(await asyncio.wait_for(self.read(), 1.0))
        except (ApiError, Disconnected, asyncio.TimeoutError):
            return False
        return self.done


def _chunk_size(line: bytes) -> int:
    digits = line.split(b";", 1)[0].strip()
    if not digits or len(digits) > 15 or not all(c in b"0123456789abcdefABCDEF" for c in digits):
        raise BadRequest("a chunk of the request's body has no size")
    return int(digits, 16)


@dataclass
class Request:
    """A request whose body may still be to come. Names of headers are in lower case."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: Body
    http_1_0: bool = False

    @property
    def keep_alive(self) -> bool:
        said = self.headers.get("connection", "").lower()
        return "close" not in said and not (self.http_1_0 and "keep-alive" not in said)

    @property
    def upgrades(self) -> bool:
        """Whether the client asks for the connection itself."""
        return "upgrade" in self.headers.get("connection", "").lower() and bool(self.headers.get("upgrade"))

    def text(self, name: str, default: str = "") -> str:
        """A parameter of the query."""
        return self.query[name][-1] if self.query.get(name) else default

    def all(self, name: str) -> list[str]:
        """A parameter that may be repeated."""
        return list(self.query.get(name, ()))

    def flag(self, name: str, default: bool = False) -> bool:
        """A parameter as Docker reads booleans: anything but 0, no, false, none and nothing."""
        if name not in self.query:
            return default
        return self.text(name).strip().lower() not in ("", "0", "no", "false", "none")

    def number(self, name: str) -> int | None:
        """A whole number, or ``None`` where it was not given. Raises BadRequest."""
        text = self.text(name)
        if not text:
            return None
        try:
            return int(text[:20])
        except ValueError:
            raise BadRequest(f"{name} is {text[:50]!r}; a whole number is needed") from None

    async def document(self) -> dict[str, Any]:
        """The body as a JSON object; an empty one stands for nothing said."""
        data = await self.body.whole()
        if not data.strip():
            return {}
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"the request's body is not JSON: {str(error)[:100]}") from None
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise BadRequest("the request's body is not a JSON object")
        return value


@dataclass
class Response:
    """An answer that is there as a whole."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Streamed:
    """An answer that comes in pieces, and ends when they do or the client goes. The head is sent before the first."""

    pieces: AsyncIterator[bytes]
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Duplex:
    """The bare connection, after a client has taken it over."""

    def __init__(self, reader: Reader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self) -> bytes:
        """What the client sends next; empty when it has sent all."""
        try:
            return await self._reader.read(PIECE)
        except ConnectionError:
            return b""

    async def write(self, data: bytes) -> None:
        """Raises Disconnected. Waits while the client takes nothing."""
        await send(self._writer, data)


@dataclass
class Hijacked:
    """An answer that takes the connection over: `talk` has it from the head on."""

    talk: Callable[[Duplex], Awaitable[None]]
    media_type: str = "application/vnd.docker.raw-stream"


Answer = Response | Streamed | Hijacked


def reply(value: object, status: int = 200) -> Response:
    """A JSON document."""
    return Response(status, json.dumps(value).encode() + b"\n", {"Content-Type": "application/json"})


def nothing(status: int = 204) -> Response:
    return Response(status)


def failure(error: ApiError) -> Response:
    if error.status == HTTPStatus.NOT_MODIFIED:
        return Response(error.status)
    return reply({"message": error.message}, error.status)


async def send(writer: asyncio.StreamWriter, data: bytes, timeout: float = math.inf) -> None:
    """Writes and waits until the client has taken most of it. Raises Disconnected, also after `timeout` seconds."""
    if writer.is_closing():
        raise Disconnected
    try:
        writer.write(data)
        await asyncio.wait_for(writer.drain(), None if timeout == math.inf else timeout)
    except (ConnectionError, asyncio.TimeoutError) as error:
        raise Disconnected from error


async def taken(writer: asyncio.StreamWriter) -> None:
    """Waits until the client has read all that was sent, a second at most.

    docker-py reads the head of an answer into a buffer, and what follows it from the socket: what came together with
    the head would be lost.
    """
    unread, pause = array.array("i", [0]), 0.0002
    deadline = time.monotonic() + _TAKEN
    with contextlib.suppress(OSError):
        while time.monotonic() < deadline:
            # unix(7), SIOCOUTQ: what the other end has not read.
            fcntl.ioctl(writer.get_extra_info("socket").fileno(), termios.TIOCOUTQ, unread)
            if unread[0] == 0:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.01)


async def read_request(reader: Reader, writer: asyncio.StreamWriter) -> Request | None:
    """The next request; ``None`` when the client has ended, or asks for nothing for long.

    Raises ApiError for what is no request, after which nothing more can be read, and Disconnected.
    """
    try:
        first = await asyncio.wait_for(reader.read(1), IDLE_TIMEOUT)
        if not first:
            return None
        head = first + await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HEAD_TIMEOUT)
    except asyncio.TimeoutError:
        return None
    except asyncio.LimitOverrunError:
        raise ApiError(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the request's head has more than {MAX_HEAD} bytes"
        ) from None
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise Disconnected from error
    return _parse(head, reader, writer)


def _parse(head: bytes, reader: Reader, writer: asyncio.StreamWriter) -> Request:
    first, *lines = head.decode("latin-1").strip("\r\n").split("\r\n")
    parts = first.split(" ")
    if len(parts) != 3 or parts[2] not in ("HTTP/1.0", "HTTP/1.1") or not _TOKEN.issuperset(parts[0]):
        raise BadRequest("this is no request of HTTP/1.1")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        key = name.lower()
        if not colon or not name or not _TOKEN.issuperset(name):
            raise BadRequest("a header of the request is malformed")
        if key in headers and key in ("content-length", "transfer-encoding", "host"):
            raise BadRequest(f"the request has two headers {name}")
        headers[key] = f"{headers[key]}, {value.strip()}" if key in headers else value.strip()
    method, target, version = parts
    try:
        url = urlsplit(target)
        query = parse_qs(url.query, keep_blank_values=True, max_num_fields=100)
    except ValueError as error:
        raise BadRequest(f"the request's target is malformed: {error}") from None
    go_on = None
    if headers.get("expect", "").lower() == "100-continue":

        async def go_on() -> None:
            await send(writer, b"HTTP/1.1 100 Continue\r\n\r\n")

    body = Body(reader, _length(headers), go_on)
    return Request(method, unquote(url.path), query, headers, body, version == "HTTP/1.0")


def _length(headers: Mapping[str, str]) -> int | None:
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if coding is not None:
        if coding.lower() != "chunked" or length is not None:
            raise BadRequest("a request's body is either chunked or has a length")
        return None
    if length is None:
        return 0
    if not (length.isascii() and length.isdecimal() and len(length) <= 18):
        raise BadRequest("the request's Content-Length is no number")
    return int(length)
