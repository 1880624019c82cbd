"""What a worker that was taken over can have its caller do while a snapshot arrives."""

from __future__ import annotations

import contextlib
import socket
import threading
from queue import Queue

import pytest
from supermachine import descriptors
from supermachine._core import arrival_message
from supermachine.artifacts import arrival


def asks_for(page: int) -> bytes:
    """The worker's message (rust/proto/src/arrival.rs): the length of a frame, and a number in groups of seven bits."""
    body = bytearray()
    while page >= 0x80:
        body.append(page & 0x7F | 0x80)
        page >>= 7
    body.append(page)
    return len(body).to_bytes(4, "little") + bytes(body)


def everything(channel: socket.socket) -> bytes:
    data = b""
    # Who closes a socket with something unread in it resets the other end, which then has what was said before.
    with contextlib.suppress(ConnectionResetError):
        while part := channel.recv(65536):
            data += part
    return data


@pytest.mark.parametrize("missing", [0, 1, 1000])
def test_each_missing_page_is_asked_for_once_and_more_is_not_heard(missing: int) -> None:
    ours, theirs = descriptors.local_pair()
    heard: list[int] = []
    arrival._Guest(ours, heard.append, missing)
    with theirs:
        theirs.settimeout(60)

        def ask() -> None:
            # As fast as it can, until nobody listens.
            with pytest.raises(OSError):
                while True:
                    theirs.sendall(asks_for(300) * 1000)

        asking = threading.Thread(target=ask)
        asking.start()
        said = everything(theirs)
        asking.join(60)
        assert not asking.is_alive()
    assert heard == [300] * missing
    assert said == arrival_message("lost", why="its worker asked for more pages than are missing")


def test_who_asks_for_what_is_missing_is_told_what_comes() -> None:
    ours, theirs = descriptors.local_pair()
    heard: Queue[int] = Queue()
    guest = arrival._Guest(ours, heard.put, 2)
    with theirs:
        theirs.settimeout(60)
        theirs.sendall(asks_for(1) + asks_for(1 << 30))
        assert [heard.get(timeout=60), heard.get(timeout=60)] == [1, 1 << 30]
        guest.tell(arrival_message("all"), None)
        assert everything(theirs) == arrival_message("all")
