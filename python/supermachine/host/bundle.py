"""Where the files that come with this package are."""

from __future__ import annotations

import os
import sys

from .. import env
from ..errors import InstallationError

# pathlib would cost half of the import.
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120


def _file(variable: str, *parts: str) -> str:
    path = os.environ.get(variable) or os.path.join(_PACKAGE, *parts)  # noqa: PTH118
    if not os.path.isfile(path):  # noqa: PTH113
        where = f"{variable} says so" if os.environ.get(variable) else "this package should have brought it"
        raise InstallationError(f"{path} does not exist; {where}")
    return path


def worker() -> str:
    """The executable that owns a virtual machine; SUPERMACHINE_WORKER overrides it."""
    path = _file(env.WORKER, "_bin", "supermachine-worker")
    if sys.platform != "darwin":
        return path
    from .codesign_macos import entitled

    return entitled(path, _file(env.ENTITLEMENTS, "_bin", "entitlements.plist"))


def policy_process() -> str:
    """The executable that makes a guest's connections; SUPERMACHINE_NETD overrides it."""
    return _file(env.NETD, "_bin", "supermachine-netd")


def kernel(architecture: str) -> str:
    """The guest's kernel for "aarch64" or "x86_64"; SUPERMACHINE_KERNEL overrides it."""
    name = "vmlinux.zst" if architecture == "x86_64" else "Image.zst"
    return _file(env.KERNEL, "_guest", architecture, name)


def initramfs(architecture: str) -> str:
    """The guest's initramfs for "aarch64" or "x86_64"; SUPERMACHINE_INITRAMFS overrides it."""
    return _file(env.INITRAMFS, "_guest", architecture, "initramfs.cpio.zst")
