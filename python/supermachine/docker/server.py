"""Connections of clients: each one's requests, one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import traceback
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from .. import env
from ..errors import SupermachineError
from ..host import warnings
from . import routes
from .errors import ApiError, as_api_error
from .http import (
    Answer,
    Disconnected,
    Duplex,
    Hijacked,
    Reader,
    Request,
    Response,
    Streamed,
    failure,
    read_request,
    send,
    taken,
)
from .routing import API_VERSION

if TYPE_CHECKING:
    from .session import Session

#: Clients at once.
MAX_CONNECTIONS = 1024
#: Seconds in which a client takes an answer that is there as a whole.
_ANSWER_TIMEOUT = 60.0
#: Bytes that wait in this process for a client to take them.
_WRITE_BUFFER = 256 << 10


class Server:
    """Serves a session on a socket of this user's own."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._router = routes.router()
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.AbstractServer | None = None

    async def listen(self, path: Path) -> None:
        loop = asyncio.get_running_loop()

        def made() -> asyncio.StreamReaderProtocol:
            reader = Reader(loop)
            return asyncio.StreamReaderProtocol(reader, lambda _, writer: self._accept(reader, writer), loop)

        self._server = await loop.create_unix_server(made, str(path), backlog=256)
        path.chmod(0o600)

    def _accept(self, reader: Reader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            writer.close()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def close(self) -> None:
        """Stops listening, and ends every connection."""
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: Reader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(_WRITE_BUFFER)
        try:
            while True:
                try:
                    request = await read_request(reader, writer)
                except ApiError as error:
                    await _whole(writer, failure(error), None, keep=False)
                    return
                if request is None or not await self._answer(request, reader, writer):
                    return
        except (Disconnected, ConnectionError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                await asyncio.wait_for(writer.wait_closed(), 1.0)

    async def _answer(self, request: Request, reader: Reader, writer: asyncio.StreamWriter) -> bool:
        """Answers a request; whether another may follow on the connection."""
        answer = await self._handled(request)
        if isinstance(answer, Hijacked):
            # What is left of the body would be taken for what the client says next.
            await request.body.skip()
            await send(writer, _hijacked_head(request, answer))
            await taken(writer)
            await answer.talk(Duplex(reader, writer))
            return False
        keep = await request.body.skip() and request.keep_alive
        if isinstance(answer, Response):
            await _whole(writer, answer, request, keep=keep)
            return keep
        return await self._stream(request, answer, reader, writer, keep=keep)

    async def _handled(self, request: Request) -> Answer:
        try:
            handler, parameters = self._router.find(request.method, request.path)
            return await handler(self._session, request, **parameters)
        except Disconnected:
            raise
        except (ApiError, SupermachineError, OSError) as error:
            return failure(as_api_error(error))
        except Exception as error:
            # A fault of ours, which must not take the other clients' containers along.
            if os.environ.get(env.DEBUG):
                warnings.say("".join(traceback.format_exception(error)))
            return failure(as_api_error(error))

    async def _stream(
        self, request: Request, answer: Streamed, reader: Reader, writer: asyncio.StreamWriter, *, keep: bool
    ) -> bool:
        """Sends pieces until they end, or the client goes."""
        chunked = not request.http_1_0
        keep = keep and chunked
        headers = dict(answer.headers)
        if chunked:
            headers["Transfer-Encoding"] = "chunked"
        await send(writer, _head(answer.status, headers, keep=keep))

        async def pieces() -> None:
            async for piece in answer.pieces:
                if piece:
                    await send(writer, b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            if chunked:
                await send(writer, b"0\r\n\r\n")

        sending = asyncio.create_task(pieces())
        gone = asyncio.create_task(reader.ended.wait())
        try:
            await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                return False
            # One that failed breaks the connection off, which is all that can be said after the head.
            sending.result()
            return keep
        except ApiError:
            return False
        finally:
            for task in (sending, gone):
                task.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)
            await answer.pieces.aclose()  # type: ignore[attr-defined]


async def _whole(writer: asyncio.StreamWriter, answer: Response, request: Request | None, *, keep: bool) -> None:
    headers = dict(answer.headers)
    bodiless = answer.status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
    if not bodiless:
        headers["Content-Length"] = str(len(answer.body))
    head = _head(answer.status, headers, keep=keep)
    body = b"" if bodiless or (request is not None and request.method == "HEAD") else answer.body
    await send(writer, head + body, _ANSWER_TIMEOUT)


def _head(status: int, headers: dict[str, str], *, keep: bool) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    lines = [f"HTTP/1.1 {status} {phrase}", f"Api-Version: {API_VERSION}", "Ostype: linux", "Server: supermachine"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if not keep:
        lines.append("Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def _hijacked_head(request: Request, answer: Hijacked) -> bytes:
    if request.upgrades:
        return (
            f"HTTP/1.1 101 UPGRADED\r\nContent-Type: {answer.media_type}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
            f"Api-Version: {API_VERSION}\r\n\r\n"
        ).encode()
    return f"HTTP/1.1 200 OK\r\nContent-Type: {answer.media_type}\r\nConnection: close\r\n\r\n".encode()
