"""What is done to a container's guest from outside of its processes. All of it blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..machine.vm import VM

#: The control group of all that the agent starts in a guest.
GROUP = "/sys/fs/cgroup/supermachine"


def end_processes(vm: VM) -> None:
    """Ends every process that is left in a guest, as the end of a container's first process does."""
    if vm.running:
        vm.path(GROUP, "cgroup.kill").write_text("1")


def freeze(vm: VM, frozen: bool) -> None:
    vm.path(GROUP, "cgroup.freeze").write_text("1" if frozen else "0")


def host_line(text: str) -> str:
    """``name:address`` as a line of /etc/hosts; the host itself is there already, as host.docker.internal."""
    name, _, address = text.partition(":")
    if not address:
        name, _, address = text.partition("=")
    if address == "host-gateway":
        address = "10.0.2.2"
    return f"{address.strip('[]')}\t{name}\n" if name and address and "\n" not in text else ""
