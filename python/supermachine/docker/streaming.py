"""What a thread makes, as the body of an answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from ..errors import SupermachineError
from .errors import as_api_error

if TYPE_CHECKING:
    from .session import Session

#: Pieces that wait for the client.
_WAITING = 8


async def from_thread(
    session: Session,
    work: Callable[[Callable[[bytes], None]], None],
    cancel: Callable[[], object] | None = None,
) -> AsyncIterator[bytes]:
    """What `work` writes with the function that it is given, no faster than the client takes it.

    When the client has gone the next write raises, after `cancel`, which ends what keeps `work` from writing.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    room = threading.Semaphore(_WAITING)
    gone = threading.Event()

    def write(data: bytes) -> None:
        room.acquire()
        if gone.is_set():
            raise _Gone
        loop.call_soon_threadsafe(queue.put_nowait, data)

    def wholly() -> None:
        try:
            work(write)
        finally:
            loop.call_soon_threadsafe(queue.put_nowait, b"")

    task = asyncio.ensure_future(session.call(wholly))
    try:
        while piece := await queue.get():
            room.release()
            yield piece
        await task
    except (SupermachineError, OSError) as error:
        # The head has been sent: a body that breaks off says that it is not whole.
        raise as_api_error(error) from error
    finally:
        gone.set()
        room.release()
        if not task.done():
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            if cancel is not None:
                await session.call(cancel)


class _Gone(Exception):
    """The client has gone."""
