"""What a guest that was restored or forked had open in shares, and has not any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .._core import Worker
    from .shares import Mounted

Reason: TypeAlias = Literal["changed", "read-only", "other-share", "refused"]
_REASONS = {
    "changed": "it has been removed, moved, or replaced by another file",
    "read-only": "it was open for writing, and the share is read-only now",
    "other-share": "there is no such share, or it is another directory",
    "refused": "the host does not let it be opened",
}


class StaleFile(NamedTuple):
    """Something that the guest had open in a share when it was captured: that alone is ``ESTALE`` to programs."""

    #: Where its share is in the guest; ``None`` where it is that which is another one now, or gone.
    target: str | None
    #: Beneath the share, as it was called; empty for the share itself.
    path: str
    #: "changed", "read-only", "other-share" or "refused".
    reason: Reason

    def __str__(self) -> str:
        place = self.path if self.target is None else "/".join(part for part in (self.target, self.path) if part)
        return f"{place} is stale: {_REASONS[self.reason]}"


class GuestShares:
    """The shares of a virtual machine that runs."""

    def __init__(self, worker: Callable[[], Worker], mounted: Callable[[], Sequence[Mounted]]) -> None:
        self._worker, self._mounted = worker, mounted

    def stale(self) -> list[StaleFile]:
        """What is stale, of 1,024 at most. It is known when the guest first uses a share after its start."""
        return self._since(self._worker(), 0, 0.0)

    def events(self, timeout: float | None = None) -> Iterator[StaleFile]:
        """The same as it comes, from the first; ends with the machine, or after `timeout` seconds without one."""
        worker, number = self._worker(), 0
        while found := self._since(worker, number, timeout):
            number += len(found)
            yield from found

    def _since(self, worker: Worker, number: int, timeout: float | None) -> list[StaleFile]:
        mounted = self._mounted()
        return [
            StaleFile(
                mounted[share].target if reason != "other-share" else None,
                path,
                cast("Reason", reason),
            )
            for share, path, reason in worker.stale(number, timeout)
        ]
