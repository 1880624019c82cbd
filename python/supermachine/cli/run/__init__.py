"""``supermachine run``: the fast way from a remembered start, and the full one."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .arguments import Arguments


def dispatch(said: Arguments) -> int:
    """`supermachine run`: the exit status, which is the command's, or 128 and a signal's number."""
    from . import fast

    code = fast.attempt(said)
    if code is None:
        from . import full

        code = full.whole_way(said)
    return 128 - code if code < 0 else code
