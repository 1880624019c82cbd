"""Emulated hosts with real KVM, for tests and benchmarks.

with Host("x86_64") as host:
    host.run(["uname", "-a"], timeout=60)
"""

from .disk import HostError
from .host import Host

__all__ = ["Host", "HostError"]
