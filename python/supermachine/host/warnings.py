"""Where this package says something to whoever sits in front of it: stderr, as well as that goes.

On the way of every `supermachine run`: nothing here loads what takes long.
"""

from __future__ import annotations

import os
import sys

from ..errors import printable


def say(text: str) -> None:
    """A line on stderr, without control characters. A stderr that is full, closed or gone fails no work."""
    stream = sys.stderr
    if stream is None:
        return
    line = f"supermachine: {printable(text)}\n"
    try:
        stream.flush()
        try:
            descriptor = stream.fileno()
        except (OSError, ValueError, AttributeError):
            # A stand-in of somebody's, in memory.
            stream.write(line)
            return
        # Past the stream's own buffer, which would hold on to what cannot be written and fail the interpreter's end.
        os.write(descriptor, line.encode(errors="backslashreplace"))
    except (OSError, ValueError):
        return


def warn(text: str) -> None:
    """Something that deserves to be known, and stops nothing."""
    say(f"warning: {text}")
