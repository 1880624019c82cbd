"""Calls that block, waited for in a coroutine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from .. import shortage

T = TypeVar("T")


async def call(
    work: Callable[..., T],
    *args: Any,
    cancel: Callable[[], object] | None = None,
    abandon: Callable[[T], object] | None = None,
    **options: Any,
) -> T:
    """`work` in a thread; when this is cancelled, `cancel` is what makes it end, and its result goes to `abandon`."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def fail(error: BaseException) -> None:
        if not future.done():
            future.set_exception(error)

    def succeed(value: T) -> None:
        if not future.done():
            future.set_result(value)
        elif abandon is not None:
            threading.Thread(target=abandon, args=(value,), name="supermachine-aio-abandon", daemon=True).start()

    def body() -> None:
        try:
            value = work(*args, **options)
        except BaseException as error:
            # StopIteration cannot be set on a future.
            wrapped = RuntimeError("the call raised StopIteration") if isinstance(error, StopIteration) else error
            post(loop, fail, wrapped)
        else:
            if not post(loop, succeed, value) and abandon is not None:
                abandon(value)

    shortage.start(threading.Thread(target=body, name="supermachine-aio", daemon=True), "the call cannot be made")
    try:
        return await future
    except asyncio.CancelledError:
        if cancel is not None:
            threading.Thread(target=cancel, name="supermachine-aio-cancel", daemon=True).start()
        raise


def post(loop: asyncio.AbstractEventLoop, deliver: Callable[[Any], None], value: Any) -> bool:
    """False when the loop is closed, so that nobody waits any more."""
    try:
        loop.call_soon_threadsafe(deliver, value)
    except RuntimeError:
        return False
    return True
