"""Who a guest's user is: docker's USER, looked up in the guest's own passwd and group files."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .._core import Files

#: Looked at of either file, which is the image's and may be anything.
_MAX_BYTES = 4 << 20
_MAX_ID = (1 << 32) - 2


def ids(files: Files, user: str) -> tuple[int, int]:
    """The user's and the group's number; root's where the guest does not know them, as it then runs nothing either."""
    name, _, group = user.partition(":")
    if name in ("", "0", "root") and group in ("", "0", "root"):
        return 0, 0
    name = name or "0"
    uid, gid = _number(name), 0
    # passwd(5): name, password, uid, gid, …
    for fields in _lines(files, b"/etc/passwd"):
        if len(fields) >= 4 and (fields[0] == name or (uid is not None and _number(fields[2]) == uid)):
            uid, gid = _number(fields[2]), _number(fields[3]) or 0
            break
    if group:
        found = _number(group)
        if found is None:
            # group(5): name, password, gid, members.
            named = (fields for fields in _lines(files, b"/etc/group") if len(fields) >= 3 and fields[0] == group)
            found = next((_number(fields[2]) for fields in named), None)
        gid = found or 0
    return (0, 0) if uid is None else (uid, gid)


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdecimal() and len(text) <= 10):
        return None
    return value if (value := int(text)) <= _MAX_ID else None


def _lines(files: Files, path: bytes) -> list[list[str]]:
    parts: list[bytes] = []
    try:
        files.read(path, 0, _MAX_BYTES, parts.append)
    except OSError as error:
        if error.errno is None:
            raise  # not the guest's
        return []
    text = b"".join(parts)[:_MAX_BYTES].decode("utf-8", "surrogateescape")
    return [line.split(":") for line in text.splitlines()]
