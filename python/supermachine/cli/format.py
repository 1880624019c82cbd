"""How the command line writes values."""

from __future__ import annotations

from collections.abc import Sequence


def human(size: int) -> str:
    """A size in bytes for people."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def table(lines: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def ago(seconds: float) -> str:
    """A time that has passed, for people."""
    for unit, length in (("day", 86400.0), ("hour", 3600.0), ("minute", 60.0), ("second", 1.0)):
        if (count := int(seconds // length)) >= 1:
            return f"{count} {unit}{'s' * (count != 1)}"
    return "less than a second"
