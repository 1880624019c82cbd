"""Times as docker's users write them."""

from __future__ import annotations

import datetime
import re
import time

import click

from ..errors import ConfigurationError
from ..settings.durations import duration


def moment(text: str | None) -> float | None:
    """Seconds since 1970 of RFC 3339, of such seconds, or of a time before now, as 10m. Raises UsageError."""
    if text is None:
        return None
    if re.fullmatch(r"\d{1,11}(\.\d{1,9})?", text):
        return float(text)
    if re.fullmatch(r"\d{4}-\d\d-\d\d.*", text):
        # Before Python 3.11 neither Z nor nanoseconds were read.
        plain = re.sub(r"(\.\d{6})\d+", r"\1", text).replace("Z", "+00:00")
        plain = re.sub(r"\.(\d{1,5})(?=$|[+-])", lambda found: "." + found[1].ljust(6, "0"), plain)
        try:
            return datetime.datetime.fromisoformat(plain).timestamp()
        except ValueError:
            raise click.UsageError(f"{text!r} is not a time: write 2024-01-31T12:00:00Z") from None
    try:
        return time.time() - duration(text)
    except ConfigurationError:
        raise click.UsageError(f"{text!r} is not a time: write 2024-01-31T12:00:00Z, or how long ago, as 10m") from None
