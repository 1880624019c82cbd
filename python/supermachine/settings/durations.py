"""Times as Go's programs write them, docker's among them."""

from __future__ import annotations

import re

from ..errors import ConfigurationError

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def duration(text: str) -> float:
    """Seconds of 1m30s, 500ms or 1.5h. Raises ConfigurationError."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|h|m|s)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ConfigurationError(f"{text!r} is not a time: write 30s, 1m30s or 500ms")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
