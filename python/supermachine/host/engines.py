"""Which engine runs a virtual machine, and what this host has for each."""

from __future__ import annotations

import os
import sys
from typing import Any, Literal, NamedTuple

from .. import directories, env
from ..errors import ConfigurationError, EngineUnavailable, HardwareRequired, SupermachineError
from . import boots

EngineName = Literal["auto", "soft", "kvm", "hvf"]
Isolation = Literal["hardware", "software"]


class Engine(NamedTuple):
    """An engine as this host sees it."""

    name: str
    isolation: Isolation
    usable: bool
    #: A sentence: what was found.
    status: str
    #: What would change it, as an exact command or a sentence; ``None`` where nothing would.
    remedy: str | None = None
    #: Its guests' architecture, as the kernel names it.
    architecture: str = "aarch64"
    #: Why it is not usable, in a word or two: "missing", "not permitted", "busy", "too slow", "lacking" …
    code: str | None = None

    @property
    def forcible(self) -> bool:
        """Whether it runs guests all the same, when it is asked for by its name."""
        return self.code == "too slow"


#: The first macOS whose Hypervisor.framework has the interrupt controller that guests need.
_HVF_MACOS = 15


#: Verdicts that stay true until the host boots again; the others may change at any time.
_LASTING = ("usable", "too slow", "lacking")
#: Seconds that the worker gets to measure KVM; it takes milliseconds.
_PROBE_TIMEOUT = 20.0


def _kvm() -> Engine:
    if not sys.platform.startswith("linux"):
        return Engine("kvm", "hardware", False, "KVM exists on Linux only")
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
        permitted = True
    except OSError:
        permitted = False
    try:
        found = (_remembered() if permitted else None) or _measure()
    except SupermachineError as error:
        return Engine("kvm", "hardware", False, f"it cannot be measured: {error}")
    remedy = found.get("remedy")
    usable = found["usable"] is True
    return Engine(
        "kvm",
        "hardware",
        usable,
        str(found["status"]),
        str(remedy) if remedy else None,
        architecture=_host_architecture(),
        code=None if usable else str(found.get("code")),
    )


def _host_architecture() -> str:
    machine = os.uname().machine
    return "aarch64" if machine == "arm64" else machine


def _measure() -> dict[str, Any]:
    """What the worker finds; remembered when it will stay so."""
    import json
    import subprocess

    from . import bundle

    worker = bundle.worker()
    try:
        done = subprocess.run(
            [worker, "--probe-kvm"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_TIMEOUT,
            check=True,
        )
        found = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise EngineUnavailable(f"{worker} --probe-kvm failed: {error}") from error
    if not isinstance(found, dict) or not {"usable", "code", "status"} <= found.keys():
        raise EngineUnavailable(f"{worker} --probe-kvm said {done.stdout[:200]!r}")
    if found["code"] in _LASTING:
        _remember(found)
    return found


def _key() -> list[str] | None:
    """What a verdict holds for: one boot of the host, and one worker."""
    from . import bundle

    try:
        boot, worker = boots.boot_id(), os.stat(bundle.worker())  # noqa: PTH116
    except OSError:
        return None
    if not boot:
        return None
    return [boot, str(worker.st_mtime_ns), str(worker.st_size)]


def _record() -> str:
    return os.path.join(directories.cache_directory(), "kvm.json")  # noqa: PTH118


def _remembered() -> dict[str, Any] | None:
    import json

    try:
        path = _record()
        if directories.distrust(os.path.dirname(path)) or directories.distrust(path):  # noqa: PTH120
            return None
        with open(path, encoding="utf-8") as file:  # noqa: PTH123
            record = json.load(file)
    except (OSError, ValueError, RecursionError):
        return None
    key = _key()
    if not isinstance(record, dict) or key is None or record.get("for") != key:
        return None
    found = record.get("found")
    return found if isinstance(found, dict) and {"usable", "status"} <= found.keys() else None


def is_settled() -> bool:
    """Whether what this host has for hardware isolation stays so until it boots again, or /dev/kvm changes."""
    if not sys.platform.startswith("linux"):
        return True
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return True
    return _remembered() is not None


def _remember(found: dict[str, Any]) -> None:
    """Best effort: without it the next process measures again."""
    import contextlib
    import json
    import tempfile

    key, path = _key(), _record()
    if key is None:
        return
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)  # noqa: PTH103, PTH120
        with tempfile.NamedTemporaryFile("w", dir=os.path.dirname(path), delete=False) as file:  # noqa: PTH120
            json.dump({"for": key, "found": found}, file)
        os.replace(file.name, path)  # noqa: PTH105


def _hvf() -> Engine:
    if sys.platform != "darwin":
        return Engine("hvf", "hardware", False, "Hypervisor.framework exists on macOS only")
    import platform

    if platform.machine() != "arm64":
        found = f"this Python is for {platform.machine()}, and the engine is for Apple silicon"
        return Engine("hvf", "hardware", False, found, "on Apple silicon: install supermachine in an arm64 Python")
    version = platform.mac_ver()[0]
    if int(version.split(".")[0] or 0) < _HVF_MACOS:
        found = f"macOS {version} lacks Hypervisor.framework's interrupt controller"
        return Engine("hvf", "hardware", False, found, f"softwareupdate --install --all  # macOS {_HVF_MACOS} or newer")
    if _hv_support() == 0:
        found = "this Mac offers no hardware virtualisation: it is itself a virtual machine, as hosted runners are"
        return Engine("hvf", "hardware", False, found)
    return Engine("hvf", "hardware", True, f"Hypervisor.framework of macOS {version}")


def _hv_support() -> int | None:
    """What macOS says of hardware virtualisation (sysctl kern.hv_support); ``None`` when it says nothing."""
    import ctypes

    value, size = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    try:
        failed = ctypes.CDLL(None).sysctlbyname(b"kern.hv_support", ctypes.byref(value), ctypes.byref(size), None, 0)
    except (OSError, AttributeError):
        return None
    return None if failed else value.value


def _soft() -> Engine:
    return Engine("soft", "software", True, "an arm64 machine in software; it needs nothing of the host")


_PROBES = {"hvf": _hvf, "kvm": _kvm, "soft": _soft}


def probe() -> list[Engine]:
    """Every engine, the preferred ones first."""
    return [check() for check in _PROBES.values()]


def hardware_required(asked: bool | None) -> bool:
    """Whether only hardware isolation will do: the argument, else SUPERMACHINE_REQUIRE_HARDWARE."""
    return env.switch(env.REQUIRE_HARDWARE) if asked is None else asked


#: The kernel's names of the guests' architectures, by images' names of theirs.
_ARCHITECTURES = {"linux/arm64": "aarch64", "linux/amd64": "x86_64"}


def _architecture(platform: str) -> str:
    """The architecture of guests that run images for this platform."""
    from ..oci.platforms import Platform

    parsed = Platform.parse(platform)
    architecture = _ARCHITECTURES.get(f"{parsed.os}/{parsed.architecture}")
    if architecture is None:
        raise ConfigurationError(f"no engine runs images for {parsed}", hint="guests are linux/arm64 or linux/amd64")
    return architecture


def choose(name: str = "auto", require_hardware: bool | None = None, platform: str | None = None) -> Engine:
    """The engine for a new virtual machine, and for images for `platform` where that is given.

    ``"auto"`` takes none that is too slow to be of use. One that is asked for by its name is taken all the same, and
    `warn_once` says so.
    """
    required = hardware_required(require_hardware)
    architecture = _architecture(platform) if platform else None
    if name == "auto":
        return _best(required, platform, architecture)
    check = _PROBES.get(name)
    if check is None:
        raise ConfigurationError(f"{name!r} is not an engine; auto, {', '.join(_PROBES)} are")
    engine = check()
    if required and engine.isolation != "hardware":
        raise HardwareRequired(f"hardware isolation is required and the {name} engine does not give it")
    if not (engine.usable or engine.forcible):
        error = EngineUnavailable(f"the {name} engine cannot be used: {engine.status}", hint=engine.remedy)
        if engine.code:
            error.code = f"engine.{engine.code.replace(' ', '-')}"
        raise error
    if architecture not in (None, engine.architecture):
        raise ConfigurationError(
            f"the platform {platform} needs guests that are {architecture}, "
            f"and the {name} engine's are {engine.architecture} on this host",
            hint="leave out the platform, or take engine=auto, which goes by the platform",
        )
    return engine


def _best(required: bool, platform: str | None, architecture: str | None) -> Engine:
    """The first engine that is usable and has what is asked for."""
    found = probe()
    able = [e for e in found if e.usable and architecture in (None, e.architecture)]
    engine = next((e for e in able if not required or e.isolation == "hardware"), None)
    if engine is not None:
        return engine
    cause = "; ".join(
        f"{e.name}: {e.status}" + (f", for guests that are {e.architecture}" if e.usable else "")
        for e in found
        if e.isolation == "hardware" or not required
    )
    guests = f" for guests that are {architecture}, as {platform} needs" if architecture else ""
    if required:
        raise HardwareRequired(f"hardware isolation is required and no engine here gives it{guests}", cause=cause)
    raise EngineUnavailable(
        f"no engine can be used here{guests}",
        cause=cause,
        hint="take an image for another platform: linux/arm64 runs on every host" if architecture == "x86_64" else None,
    )


def warning(engine: Engine) -> str:
    """A line for whoever uses it: that it isolates in software only, or is too slow. Empty for the others."""
    if engine.isolation == "software":
        what = f"the {engine.name} engine isolates in software only, not by hardware"
    elif engine.forcible:
        what = f"the {engine.name} engine was asked for, and {engine.status}"
    else:
        return ""
    return f"warning: {what} (supermachine doctor)"


def warn_once(engine: Engine) -> None:
    """One line on stderr about an engine that deserves a warning, once a boot of the host."""
    if said := warning(engine):
        boots.say_once(engine.name, said)
