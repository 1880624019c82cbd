"""The control group of all that the agent starts in a guest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .paths import GuestPath

    class Guest(Protocol):
        """A virtual machine, as far as this goes."""

        def path(self, *parts: str) -> GuestPath: ...


GROUP = "/sys/fs/cgroup/supermachine"


def kill(vm: Guest) -> None:
    """Ends every process in it."""
    vm.path(GROUP, "cgroup.kill").write_text("1")


def freeze(vm: Guest, frozen: bool) -> None:
    """Stops all of them where they are, or lets them go on."""
    vm.path(GROUP, "cgroup.freeze").write_text("1" if frozen else "0")
