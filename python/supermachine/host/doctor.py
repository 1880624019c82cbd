"""What this host offers, truthfully, and what to do about what is missing."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import asdict, dataclass
from typing import Any

from .. import __version__, directories, env
from ..errors import SupermachineError
from . import bundle, confinement, engines


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
    #: What this host lacks to confine workers; `None` when nothing.
    confinement_lacks: str | None
    #: Why the soft engine interprets all code; `None` when it translates what is hot.
    interprets: str | None
    #: Each file of the installation: where it is, or what is wrong.
    files: dict[str, str]
    missing: list[str]
    cache: str
    #: Whose say that is: an environment variable, the user's home directory, or that there is none.
    cache_by: str
    #: What is the matter with it; empty for nothing.
    cache_problems: list[str]

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
        lines += ["", f"Confinement of workers: {self.confinement_lacks or 'complete'}"]
        lines += [f"Translation of the soft engine's code: {self.interprets or 'on'}"]
        lines += ["", "Files:"]
        lines += [f"  {name:<10} {where}" for name, where in self.files.items()]
        lines += [f"  {'cache':<10} {self.cache}, by {self.cache_by}"]
        lines += [f"  {'':<10} {problem}" for problem in self.cache_problems]
        return "\n".join(lines)


#: Bytes that the cache's disk should have left: an image of some size, its layers and its snapshot.
_ROOM = 1 << 30


def _cache() -> tuple[str | None, str, list[str]]:
    """The cache directory, by whose say, and what is the matter with it."""
    problems = []
    home = directories.home()
    told = os.environ.get("HOME")
    if told is not None and not os.path.isabs(told):  # noqa: PTH117
        problems.append(f"HOME is {told!r}, which is no absolute path and is not used")
    try:
        place = directories.cache_directory()
    except SupermachineError as error:
        return None, env.CACHE, [*problems, f"{error}; {error.hint}"]
    by = next((name for name in (env.CACHE, "XDG_CACHE_HOME") if os.environ.get(name)), "the home directory")
    if by == "the home directory" and not (home and place.startswith(home.rstrip("/") + "/")):
        by = "that there is no home directory" if home is None else f"that {home} cannot be written to"
        problems.append("the system may remove it when it starts; SUPERMACHINE_CACHE names a better place")
    return place, by, [*problems, *_cache_problems(place)]


def _cache_problems(place: str) -> list[str]:
    from ..cache.store import Cache

    try:
        Cache(place).check()
    except SupermachineError as error:
        return [f"{error}; {error.hint}"]
    nearest = place
    while not os.path.exists(nearest):  # noqa: PTH110
        nearest = os.path.dirname(nearest)  # noqa: PTH120
    if not os.access(nearest, os.W_OK | os.X_OK):
        serves = "it serves what is in it, and takes nothing new" if nearest == place else "it cannot be made"
        return [f"this user cannot write to {directories.shown(nearest)}: {serves}"]
    if (room := _free(nearest)) < _ROOM:
        return [f"its disk has {room >> 20} MiB left"]
    return []


def _free(path: str) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


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
    try:
        lacks, interprets = confinement.missing(), confinement.interprets()
    except SupermachineError as error:
        lacks = interprets = str(error)
    cache, said_by, problems = _cache()
    return Report(
        version=__version__,
        host=f"{platform.system()} {platform.release()} {platform.machine()}, Python {sys.version.split()[0]}",
        cpus=os.cpu_count() or 1,
        engines=engines.probe(),
        chosen=chosen,
        problem=problem,
        confinement_lacks=lacks,
        interprets=interprets,
        files=files,
        missing=missing,
        cache=directories.shown(cache) if cache else "none",
        cache_by=said_by,
        cache_problems=problems,
    )
