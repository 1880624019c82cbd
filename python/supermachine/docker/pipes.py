"""Pipes of processes in the event loop, with no more kept of either direction than a piece."""

from __future__ import annotations

import asyncio
import contextlib
import os

#: Bytes of one read.
PIECE = 64 << 10


class PipeReader:
    """Reads from a pipe, which it owns."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._waiting: asyncio.Future[None] | None = None

    async def read(self) -> bytes:
        """What there is next; empty at the end."""
        while self._descriptor >= 0:
            try:
                return os.read(self._descriptor, PIECE)
            except BlockingIOError:
                await self._readable()
            except OSError:
                return b""
        return b""

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        self._waiting = waiting = loop.create_future()
        loop.add_reader(self._descriptor, _settle, waiting)
        try:
            await waiting
        finally:
            self._waiting = None
            if self._descriptor >= 0:
                loop.remove_reader(self._descriptor)

    def close(self) -> None:
        """Ends it; who reads finds the end."""
        if self._descriptor < 0:
            return
        descriptor, self._descriptor = self._descriptor, -1
        if self._waiting is not None:
            asyncio.get_running_loop().remove_reader(descriptor)
            _settle(self._waiting)
        os.close(descriptor)


class PipeWriter:
    """Writes to a pipe, which it owns. One writer at a time."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._lock = asyncio.Lock()
        self._waiting: asyncio.Future[None] | None = None

    async def write(self, data: bytes) -> bool:
        """Writes all of it, waiting while nobody reads; false when nobody will."""
        async with self._lock:
            view = memoryview(data)
            while view:
                if self._descriptor < 0:
                    return False
                try:
                    view = view[os.write(self._descriptor, view) :]
                except BlockingIOError:
                    await self._writable()
                except OSError:
                    self.close()
                    return False
            return True

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        self._waiting = waiting = loop.create_future()
        loop.add_writer(self._descriptor, _settle, waiting)
        try:
            await waiting
        finally:
            self._waiting = None
            if self._descriptor >= 0:
                loop.remove_writer(self._descriptor)

    def close(self) -> None:
        if self._descriptor < 0:
            return
        descriptor, self._descriptor = self._descriptor, -1
        if self._waiting is not None:
            asyncio.get_running_loop().remove_writer(descriptor)
            _settle(self._waiting)
        with contextlib.suppress(OSError):
            os.close(descriptor)


async def readable(descriptor: int) -> None:
    """Waits until a descriptor is."""
    loop = asyncio.get_running_loop()
    waiting = loop.create_future()
    loop.add_reader(descriptor, _settle, waiting)
    try:
        await waiting
    finally:
        loop.remove_reader(descriptor)


def _settle(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
