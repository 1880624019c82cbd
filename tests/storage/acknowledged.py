"""What `writer.c` must have left in a directory, by the changes that it said were made to last."""

from __future__ import annotations

import struct
from pathlib import Path

BLOCK, BLOCKS, FILES, RECORD = 4096, 64, 20, 32


def _record(number: int) -> bytes:
    return b"%0*d\n" % (RECORD - 1, number)


def _file(number: int) -> bytes:
    return b"%d\n" % number * (number * 13 % 3000 + 1)


def _block(number: int) -> bytes:
    return struct.pack("<i", number) * (BLOCK // 4)


def _state(changes: int) -> dict[str, bytes | None]:
    """After so many changes: each thing by its name, ``None`` for a file that is not there."""
    state: dict[str, bytes | None] = {"log": b""}
    state |= {f"block {n}": bytes(BLOCK) for n in range(BLOCKS)}
    state |= {f"file.{n}": None for n in range(FILES)}
    log = b""
    for number in range(changes):
        kind = number % 8
        if kind in (0, 4):
            log += _record(number)
        elif kind in (1, 3, 6):
            state[f"block {number * 7 % BLOCKS}"] = _block(number)
        elif kind in (2, 5):
            state[f"file.{number % FILES}"] = _file(number)
        else:
            state[f"file.{number % FILES}"] = None
    return state | {"log": log}


def _found(directory: Path) -> dict[str, bytes | None]:
    blocks = (directory / "blocks").read_bytes()
    assert len(blocks) == BLOCK * BLOCKS
    found: dict[str, bytes | None] = {"log": (directory / "log").read_bytes()}
    found |= {f"block {n}": blocks[n * BLOCK : (n + 1) * BLOCK] for n in range(BLOCKS)}
    files = {path.name: path.read_bytes() for path in directory.glob("file.*")}
    return found | {f"file.{n}": files.pop(f"file.{n}", None) for n in range(FILES)}


def check(directory: Path, changes: range) -> int:
    """Everything is as some number of changes left it, or as the next one did that was under way; gives this number."""
    found = _found(directory)
    wrong = []
    for count in changes:
        wrong.append(_differing(found, count))
        if not wrong[-1]:
            return count
    least = min(range(len(wrong)), key=lambda n: len(wrong[n]))
    raise AssertionError(f"{directory.name} is as no change left it: {wrong[least]} after {changes[least]}")


def _differing(found: dict[str, bytes | None], changes: int) -> list[str]:
    before, after = _state(changes), _state(changes + 1)
    wrong = [name for name, contents in found.items() if contents not in (before[name], after[name])]
    # A record may be there in part: its write was not said to last. ext4 has the size of an appended file before the
    # bytes where it has the block already, and another's fsync may make that last: they are zeros then.
    log, least, most = (state["log"] or b"" for state in (found, before, after))
    begun = log.startswith(least) and log.rstrip(b"\0") in (least, most[: len(log)]) and len(log) <= len(most)
    return [name for name in wrong if name != "log" or not begun]
