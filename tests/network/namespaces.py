"""A host and the world beside it: two network namespaces with a cable between them.

For tests that need public addresses of their own. Nothing outside of this machine is reached.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from ..real import require, require_root, run

_NUMBERS = itertools.count()


class Namespaces:
    """`host` is where machines run, `world` has the servers; each has these addresses, with their prefixes."""

    def __init__(self, host: Sequence[str], world: Sequence[str]) -> None:
        number = next(_NUMBERS)
        self.host, self.world = (f"supermachine-{os.getpid()}-{number}-{name}" for name in ("host", "world"))
        self._addresses = {self.host: host, self.world: world}

    def command(self, name: str, *command: str | Path) -> list[str | Path]:
        """This command in that namespace."""
        return ["ip", "netns", "exec", name, *command]

    def make(self) -> None:
        for name in self._addresses:
            run("ip", "netns", "add", name)
        run("ip", "-n", self.host, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", self.world)
        for name, addresses in self._addresses.items():
            for link in ("lo", "cable"):
                run("ip", "-n", name, "link", "set", link, "up")
            for address in addresses:
                nodad = ["nodad"] if ":" in address else []
                run("ip", "-n", name, "address", "add", address, "dev", "cable", *nodad)
        # The host's users may ping.
        everybody = "echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range"
        run(*self.command(self.host, "sh", "-c", everybody))

    def route(self, via: str, *, there: bool = True) -> None:
        """The host's default route."""
        family = "-6" if ":" in via else "-4"
        run("ip", family, "-n", self.host, "route", "add" if there else "del", "default", "via", via)

    @contextmanager
    def serving(self, program: str, *arguments: str) -> Iterator[None]:
        """A program of Python's in the world, from when it has said that it is ready."""
        command = self.command(self.world, sys.executable, "-c", program, *arguments)
        with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            try:
                assert server.stdout.readline() == b"ready\n"
                yield
            finally:
                server.kill()

    def remove(self) -> None:
        for name in self._addresses:
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


@contextmanager
def namespaces(host: Sequence[str], world: Sequence[str]) -> Iterator[Namespaces]:
    require("ip")
    require_root("a network namespace")
    if subprocess.run(["unshare", "--net", "true"], check=False, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("no network namespace can be made here")
    made = Namespaces(host, world)
    try:
        made.make()
        yield made
    finally:
        made.remove()
