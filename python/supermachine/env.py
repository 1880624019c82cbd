"""Every variable of the environment that this package reads; ``docs/reference/environment.md`` is generated from here.

On the way of every `supermachine run`: nothing here loads a module that takes long.
"""

from __future__ import annotations

import os

from .errors import ConfigurationError

CACHE = "SUPERMACHINE_CACHE"
DATA = "SUPERMACHINE_DATA"
DEBUG = "SUPERMACHINE_DEBUG"
ENTITLEMENTS = "SUPERMACHINE_ENTITLEMENTS"
INITRAMFS = "SUPERMACHINE_INITRAMFS"
INSECURE_REGISTRIES = "SUPERMACHINE_INSECURE_REGISTRIES"
JIT = "SUPERMACHINE_JIT"
KEEP_BLOBS = "SUPERMACHINE_KEEP_BLOBS"
KERNEL = "SUPERMACHINE_KERNEL"
KEYS = "SUPERMACHINE_KEYS"
NETD = "SUPERMACHINE_NETD"
NETWORK = "SUPERMACHINE_NETWORK"
NO_PREFAULT = "SUPERMACHINE_NO_PREFAULT"
NO_SNAPSHOT = "SUPERMACHINE_NO_SNAPSHOT"
REGISTRY_MIRRORS = "SUPERMACHINE_REGISTRY_MIRRORS"
REGISTRY_TIMEOUT = "SUPERMACHINE_REGISTRY_TIMEOUT"
REQUIRE_CONFINEMENT = "SUPERMACHINE_REQUIRE_CONFINEMENT"
REQUIRE_HARDWARE = "SUPERMACHINE_REQUIRE_HARDWARE"
RUNTIME = "SUPERMACHINE_RUNTIME"
WORKER = "SUPERMACHINE_WORKER"

#: What each is for, and what holds without it.
VARIABLES = {
    CACHE: ("Directory of images, baked snapshots and remembered starts.", "the user's cache directory"),
    DATA: ("Directory of volumes.", "the user's data directory"),
    DEBUG: ("`1` prints the end of the guest's console with an error.", "off"),
    ENTITLEMENTS: ("File of the entitlements that the worker is signed with on macOS.", "the package's"),
    INITRAMFS: ("File that guests boot with.", "the package's"),
    INSECURE_REGISTRIES: ("Registries, separated by commas, that may speak plain HTTP.", "none"),
    JIT: ("`0` has the soft engine interpret all code, `always` translate all (for tests).", "hot code is translated"),
    KEEP_BLOBS: ("`1` keeps the layers of an image after its conversion.", "off"),
    KERNEL: ("Kernel that guests boot.", "the package's"),
    KEYS: ("Directory of the keys that snapshots are signed with, and of those that are trusted.", "the user's"),
    NETD: ("Executable that makes a guest's connections.", "the package's"),
    NETWORK: ("What guests may reach: `none`, `public` or `all`, and rules after it.", "public"),
    NO_PREFAULT: ("`1` neither records nor uses the pages that clones need first.", "off"),
    NO_SNAPSHOT: ("`1` boots each time: no snapshot is baked or restored.", "off"),
    REGISTRY_MIRRORS: (
        "Registries that are asked first: `docker.io=mirror.example.org/prefix`, separated by commas.",
        "none",
    ),
    REGISTRY_TIMEOUT: ("Seconds that a registry may be silent; at most 86,400.", "60"),
    REQUIRE_CONFINEMENT: ("`1` refuses a host that cannot confine workers.", "off"),
    REQUIRE_HARDWARE: ("`1` makes isolation in software an error.", "off"),
    RUNTIME: ("Directory of machines with names: records, sockets, logs.", "below the user's runtime directory"),
    WORKER: ("Executable that owns a virtual machine.", "the package's"),
}


def switch(name: str) -> bool:
    """Whether this variable is on; it is off when it is not set. Raises ConfigurationError for other values."""
    value = os.environ.get(name, "").strip().lower()
    if value in ("", "0", "false", "no", "off"):
        return False
    if value in ("1", "true", "yes", "on"):
        return True
    raise ConfigurationError(f"{name} is {value!r}; 1 or 0 is understood")


def page() -> str:
    """The page of the documentation."""
    rows = "\n".join(f"| `{name}` | {what} | {default} |" for name, (what, default) in sorted(VARIABLES.items()))
    return f"""# Variables of the environment

Generated from `python/supermachine/env.py`: `python -m supermachine.env > docs/reference/environment.md`.

| variable | is | without it |
|---|---|---|
{rows}
"""


if __name__ == "__main__":
    print(page(), end="")
