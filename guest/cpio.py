"""Writes a guest's initramfs: a cpio archive with the agent as /init and the two device nodes that a process
needs before anything is mounted.

The format is "newc" (kernel Documentation/driver-api/early-userspace/buffer-format.rst).
"""

from __future__ import annotations

import stat
import sys
from pathlib import Path

# name, mode, device number
NODES = [
    ("dev", stat.S_IFDIR | 0o755, (0, 0)),
    ("dev/console", stat.S_IFCHR | 0o600, (5, 1)),
    ("dev/null", stat.S_IFCHR | 0o666, (1, 3)),
]


def entry(inode: int, name: str, mode: int, device: tuple[int, int] = (0, 0), data: bytes = b"") -> bytes:
    """One member, padded; owner, group and time are zero so that the same input gives the same bytes."""
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = [inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(name) + 1, 0]
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
    return b"".join(part + bytes(-len(part) % 4) for part in (head, data))


def archive(agent: bytes) -> bytes:
    """The whole archive."""
    members = [entry(n, name, mode, device) for n, (name, mode, device) in enumerate(NODES, 1)]
    members.append(entry(len(NODES) + 1, "init", stat.S_IFREG | 0o755, data=agent))
    members.append(entry(0, "TRAILER!!!", 0))
    return b"".join(members)


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(archive(Path(sys.argv[1]).read_bytes()))
