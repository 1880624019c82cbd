"""The ring that a container's output is kept in, against the plain list of what was written."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from supermachine.docker.logs import STDERR, STDOUT, Lines, Log, Record

BOTH = frozenset({STDOUT, STDERR})
_PIECES = st.lists(st.tuples(st.sampled_from([STDOUT, STDERR]), st.text("ab\n", min_size=1, max_size=30)), max_size=60)


def _all(log: Log, position: int) -> list[Record]:
    found: list[Record] = []
    while True:
        records, position = log.read(position)
        if not records:
            return found
        found += records


def _lines(records: list[Record]) -> list[tuple[int, bytes]]:
    lines = Lines()
    found = [line for record in records for line in lines.feed(record)]
    return [(line.stream, line.data) for line in (*found, *lines.rest())]


@given(pieces=_PIECES, size=st.integers(200, 4000))
def test_what_is_there_is_the_end_of_what_was_written(pieces: list[tuple[int, str]], size: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        log = Log(Path(place), size)
        written = []
        for stream, text in pieces:
            log.append(stream, text.encode())
            written.append((stream, text.encode()))
            assert sum(path.stat().st_size for path in Path(place).iterdir()) <= size
        there = [(record.stream, record.data) for record in _all(log, 0)]
        assert there == written[len(written) - len(there) :]
        assert there or not written
        log.close()
        assert not Path(place).exists()
        Path(place).mkdir()


@given(texts=st.lists(st.text("ab\n", min_size=1, max_size=30), max_size=40), count=st.integers(0, 12))
def test_the_last_lines(texts: list[str], count: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        log = Log(Path(place))
        for text in texts:
            log.append(STDOUT, text.encode())
        position, skip = log.position_of_tail(count, BOTH)
        found = b"".join(data for _, data in _lines(_all(log, position))[skip:])
        assert found == b"".join("".join(texts).encode().splitlines(keepends=True)[-count:] if count else [])
        log.close()
        Path(place).mkdir()


@given(pieces=_PIECES)
def test_lines_are_those_of_each_stream(pieces: list[tuple[int, str]]) -> None:
    lines = _lines([Record(0, stream, text.encode()) for stream, text in pieces])
    for wanted in BOTH:
        whole = "".join(text for stream, text in pieces if stream == wanted).encode()
        assert [data for stream, data in lines if stream == wanted] == whole.splitlines(keepends=True)


def test_who_follows_is_woken(tmp_path: Path) -> None:
    async def work() -> None:
        (tmp_path / "log").mkdir()
        log = Log(tmp_path / "log")
        over = False
        found: list[bytes] = []

        async def follow() -> None:
            async for record in log.follow(0, lambda: over):
                found.append(record.data)

        task = asyncio.create_task(follow())
        for text in (b"one", b"two"):
            await asyncio.sleep(0)
            log.append(STDOUT, text)
        await asyncio.sleep(0.01)
        assert found == [b"one", b"two"]
        over = True
        log.wake()
        await asyncio.wait_for(task, 5)

    asyncio.run(work())
