"""What this host offers, truthfully, and what to do about what is missing."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import asdict, dataclass
from typing import Any

from .. import __version__
from ..errors import SupermachineError
from . import bundle, engines


@dataclass(frozen=True)
class Report:
    version: str
    host: str
    cpus: int
    engines: list[engines.Engine]
    #: The engine that `engine="auto"` takes.
    chosen: str | None
    #: Why none is.
    problem: str | None
    #: Each file of the installation: where it is, or what is wrong.
    files: dict[str, str]
    missing: list[str]
    cache: str

    @property
    def usable(self) -> bool:
        return self.chosen is not None and not self.missing

    def as_dict(self) -> dict[str, Any]:
        found = [engine._asdict() for engine in self.engines]
        return {**asdict(self), "engines": found, "usable": self.usable}

    def text(self) -> str:
        lines = [f"supermachine {self.version} on {self.host}, {self.cpus} CPUs", "", "Engines:"]
        for engine in self.engines:
            state = "usable" if engine.usable else "not usable"
            lines.append(f"  {engine.name:<5} {state}, {engine.isolation} isolation: {engine.status}")
            if engine.remedy:
                lines.append(f"        to change that: {engine.remedy}")
            if engine.forcible:
                lines.append(f"        engine={engine.name} takes it all the same, with a warning")
        lines += ["", f"Chosen by engine=auto: {self.chosen or 'none: ' + str(self.problem)}"]
        lines += ["", "Files:"]
        lines += [f"  {name:<10} {where}" for name, where in self.files.items()]
        lines += [f"  {'cache':<10} {self.cache}"]
        return "\n".join(lines)


def examine() -> Report:
    """Looks at the host; changes nothing."""
    chosen = problem = None
    architecture = "aarch64"
    try:
        engine = engines.choose()
        chosen, architecture = engine.name, engine.architecture
    except SupermachineError as error:
        problem = str(error)
    files: dict[str, str] = {}
    missing = []
    for name, find in (
        ("worker", bundle.worker),
        ("kernel", lambda: bundle.kernel(architecture)),
        ("initramfs", lambda: bundle.initramfs(architecture)),
    ):
        try:
            files[name] = find()
        except SupermachineError as error:
            files[name] = str(error)
            missing.append(name)
    from ..images import Cache

    return Report(
        version=__version__,
        host=f"{platform.system()} {platform.release()} {platform.machine()}, Python {sys.version.split()[0]}",
        cpus=os.cpu_count() or 1,
        engines=engines.probe(),
        chosen=chosen,
        problem=problem,
        files=files,
        missing=missing,
        cache=str(Cache().directory),
    )
