"""What is done to a container's guest from outside of its processes. All of it blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..guest import group

if TYPE_CHECKING:
    from ..machine.vm import VM


def end_processes(vm: VM) -> None:
    """Ends every process that is left in a guest, as the end of a container's first process does."""
    if vm.running:
        group.kill(vm)


def thaw(vm: VM) -> None:
    """Lets what is left in a guest, and what is started in it, go on."""
    if vm.running:
        group.freeze(vm, False)


def host_line(text: str) -> str:
    """``name:address`` as a line of /etc/hosts; the host itself is there already, as host.docker.internal."""
    name, _, address = text.partition(":")
    if not address:
        name, _, address = text.partition("=")
    if address == "host-gateway":
        address = "10.0.2.2"
    return f"{address.strip('[]')}\t{name}\n" if name and address and "\n" not in text else ""
