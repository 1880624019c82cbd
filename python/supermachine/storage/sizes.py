"""Sizes as people write them, checked."""

from __future__ import annotations

from ..errors import ConfigurationError

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = r"(?i:(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?)"
#: Bytes of a disk at least and at most (`rust/storage`).
MIN_DISK, MAX_DISK = 16 << 20, 8 << 40


def size_bytes(value: int | str, what: str) -> int:
    """A number of bytes, or a text as docker writes it: "512m", "2g", "1.5GiB"."""
    if not isinstance(value, str):
        return value
    import re

    match = re.fullmatch(_SIZE, value.strip())
    if match is None:
        raise ConfigurationError(f"{value!r} is not {what}; write 512m or 2g")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def disk_bytes(value: int | str) -> int:
    """Bytes of a disk, in whole MiB; 0 is for none."""
    size = size_bytes(value, "the size of a disk")
    if size and not MIN_DISK <= size <= MAX_DISK:
        limits = f"{MIN_DISK >> 20} MiB to {MAX_DISK >> 40} TiB"
        raise ConfigurationError(f"a disk of {value!r} is outside {limits}", hint="0 is for none")
    return -(-size >> 20) << 20
