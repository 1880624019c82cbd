"""Fixtures: emulated hosts that all tests of a run share."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..real import unavailable
from . import site
from .disk import missing_tools
from .host import EMULATORS, Host

#: Where `Hosts.installed` puts supermachine.
SITE = "/opt/supermachine"


class Hosts:
    """Emulated hosts by architecture, each booted when it is first asked for."""

    def __init__(self) -> None:
        self._running: dict[str, Host] = {}
        self._installed: set[Host] = set()
        self._sites: dict[str, Path] = {}

    def get(self, architecture: str) -> Host:
        """The host of this architecture; skips where it cannot be made (in continuous integration: fails)."""
        missing = [*missing_tools(), *(e for e in [EMULATORS[architecture]] if shutil.which(e) is None)]
        if missing:
            unavailable(f"not installed: {', '.join(missing)}")
        host = self._running.get(architecture)
        if host is None or not host.is_running():
            host = Host(architecture)
            host.start()
            self._running[architecture] = host
        return host

    def installed(self, architecture: str) -> Host:
        """The same with supermachine in it: run `python3 -m supermachine` with PYTHONPATH set to SITE."""
        host = self.get(architecture)
        self.install(host)
        return host

    def install(self, host: Host) -> None:
        """Puts supermachine into a host, also into one that is not of these."""
        if host not in self._installed:
            host.put(self.site(host.architecture), SITE)
            self._installed.add(host)

    def site(self, architecture: str) -> Path:
        """What is installed in hosts of this architecture, as a directory here."""
        if architecture not in self._sites:
            try:
                self._sites[architecture] = site.directory(architecture)
            except site.SiteError as error:
                unavailable(str(error))
        return self._sites[architecture]

    def stop(self) -> None:
        """Ends them all."""
        for host in self._running.values():
            host.stop()


@pytest.fixture(scope="session")
def hosts() -> Iterator[Hosts]:
    """The emulated hosts of this run."""
    made = Hosts()
    yield made
    made.stop()


@pytest.fixture(params=["x86_64", "aarch64"])
def host(request: pytest.FixtureRequest, hosts: Hosts) -> Host:
    """Each of the two emulated hosts."""
    return hosts.get(str(request.param))


@pytest.fixture(scope="session")
def c_program(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, str], Path]:
    """Compiles a C file to a static program for an architecture: `c_program(source, architecture)`."""

    def build(source: Path, architecture: str) -> Path:
        compiler = f"{architecture}-linux-gnu-gcc"
        if shutil.which(compiler) is None:
            unavailable(f"not installed: {compiler}")
        out = tmp_path_factory.mktemp("program") / source.stem
        command = [compiler, "-static", "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(out), str(source), "-lm"]
        subprocess.run(command, check=True, timeout=120)
        return out

    return build
