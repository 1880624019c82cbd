"""What happens once, as a descriptor, so that it can be waited for beside a client that may leave."""

from __future__ import annotations

import threading

from .. import descriptors


class Moment:
    """Has come or has not. `fileno` gives a descriptor that reads as ended once it has."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended, bell = descriptors.pipe()
        self._bell: int | None = descriptors.unshared(bell)

    def fileno(self) -> int:
        return self._ended

    def is_set(self) -> bool:
        return self._bell is None

    def set(self) -> None:
        with self._lock:
            if self._bell is not None:
                bell, self._bell = self._bell, None
                descriptors.close(bell)
