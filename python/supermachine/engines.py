"""Which engine runs a virtual machine, and what this host has for each."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Literal

from .errors import ConfigurationError, EngineUnavailable, HardwareRequired

EngineName = Literal["auto", "soft", "kvm", "hvf"]
Isolation = Literal["hardware", "software"]


@dataclass(frozen=True)
class Engine:
    """An engine as this host sees it."""

    name: str
    isolation: Isolation
    usable: bool
    #: A sentence: what was found.
    status: str
    #: What would change it, as an exact command or a sentence; ``None`` where nothing would.
    remedy: str | None = None


_KVM_ABSENT = "this version has no KVM engine yet"
#: The first macOS whose Hypervisor.framework has the interrupt controller that guests need.
_HVF_MACOS = 15


def _kvm() -> Engine:
    if not sys.platform.startswith("linux"):
        return Engine("kvm", "hardware", False, "KVM exists on Linux only")
    path = "/dev/kvm"
    remedy = None
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        found = "/dev/kvm is present and permitted"
    except FileNotFoundError:
        found = "/dev/kvm does not exist"
        remedy = "sudo modprobe -a kvm_intel kvm_amd  # needs virtualisation enabled in the firmware or the outer host"
    except PermissionError:
        found = "/dev/kvm exists but this user may not open it"
        remedy = "sudo usermod -aG kvm $USER  # then log in again"
    except OSError as error:
        found = f"/dev/kvm cannot be opened: {error.strerror}"
    return Engine("kvm", "hardware", False, f"{found}; {_KVM_ABSENT}", remedy)


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
    if asked is not None:
        return asked
    value = os.environ.get("SUPERMACHINE_REQUIRE_HARDWARE", "").strip().lower()
    if value in ("", "0", "false", "no", "off"):
        return False
    if value in ("1", "true", "yes", "on"):
        return True
    raise ConfigurationError(f"SUPERMACHINE_REQUIRE_HARDWARE is {value!r}; 1 or 0 is understood")


def choose(name: str = "auto", require_hardware: bool | None = None) -> Engine:
    """The engine for a new virtual machine."""
    required = hardware_required(require_hardware)
    if name == "auto":
        usable = [e for e in probe() if e.usable]
        engine = next((e for e in usable if not required or e.isolation == "hardware"), None)
        if engine is None:
            found = "; ".join(f"{e.name}: {e.status}" for e in probe() if e.isolation == "hardware")
            raise HardwareRequired("hardware isolation is required and no engine here gives it", cause=found)
        return engine
    check = _PROBES.get(name)
    if check is None:
        raise ConfigurationError(f"{name!r} is not an engine; auto, {', '.join(_PROBES)} are")
    engine = check()
    if required and engine.isolation != "hardware":
        raise HardwareRequired(f"hardware isolation is required and the {name} engine does not give it")
    if not engine.usable:
        raise EngineUnavailable(f"the {name} engine cannot be used: {engine.status}", hint=engine.remedy)
    return engine


_warned = False


def warn_once(engine: Engine) -> None:
    """One line on stderr, the first time that this process uses software isolation."""
    global _warned
    if _warned or engine.isolation == "hardware":
        return
    _warned = True
    if sys.stderr is not None:
        print(
            "supermachine: warning: the soft engine isolates in software only, not by hardware (supermachine doctor)",
            file=sys.stderr,
        )
