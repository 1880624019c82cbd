"""Layers that hold one of everything a tar layer can say, made by Python's and GNU's tar."""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import tarfile
from pathlib import Path
from typing import Any

#: A moment with nanoseconds, which PAX keeps.
MOMENT = 1_600_000_000.123456789
EVERY_BYTE = bytes(range(1, 256))
#: VFS_CAP_REVISION_2 with CAP_NET_RAW permitted and effective (linux/capability.h).
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
#: POSIX_ACL_XATTR_VERSION 2: owner rw, user 1234 r, group r, mask r, others none (linux/posix_acl_xattr.h).
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, bits, who)
    for tag, bits, who in [
        (0x01, 6, 0xFFFFFFFF),
        (0x02, 4, 1234),
        (0x04, 4, 0xFFFFFFFF),
        (0x10, 4, 0xFFFFFFFF),
        (0x20, 0, 0xFFFFFFFF),
    ]
)


class Layer:
    """A tar being written: each method adds one entry."""

    def __init__(self, path: Path, form: int = tarfile.PAX_FORMAT) -> None:
        options = {"encoding": "utf-8", "errors": "surrogateescape"}
        self._tar = tarfile.open(path, "w", format=form, **options)  # noqa: SIM115 - closed by __exit__
        self._pax = form == tarfile.PAX_FORMAT

    def add(
        self, name: str, data: bytes | None = None, *, xattrs: dict[str, bytes] | None = None, **fields: Any
    ) -> None:
        """An entry; without `data` and `type` a directory when `name` ends with a slash."""
        member = tarfile.TarInfo(name)
        if data is None and "type" not in fields:
            assert name.endswith("/")
            member.type = tarfile.DIRTYPE
        member.mode = 0o755 if member.type == tarfile.DIRTYPE else 0o644
        member.mtime = MOMENT if self._pax else int(MOMENT)  # type: ignore[assignment]
        member.size = len(data or b"")
        for field, value in fields.items():
            setattr(member, field, value)
        for key, value in (xattrs or {}).items():
            # tarfile writes headers as UTF-8 and lets surrogates stand for other bytes.
            member.pax_headers[f"SCHILY.xattr.{key}"] = value.decode("utf-8", "surrogateescape")
        self._tar.addfile(member, io.BytesIO(data or b""))

    def link(self, name: str, target: str) -> None:
        self.add(name, type=tarfile.LNKTYPE, linkname=target)

    def symlink(self, name: str, target: str, **fields: Any) -> None:
        self.add(name, type=tarfile.SYMTYPE, linkname=target, mode=0o777, **fields)

    def whiteout(self, name: str) -> None:
        directory, _, base = name.rpartition("/")
        self.add(f"{directory}/.wh.{base}" if directory else f".wh.{base}", b"")

    def opaque(self, directory: str) -> None:
        self.add(f"{directory}/.wh..wh..opq", b"")

    def __enter__(self) -> Layer:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._tar.close()


def kinds(path: Path) -> None:
    """Every kind of inode with every attribute at its edges."""
    noise = random.Random(1)
    with Layer(path) as layer:
        layer.add("./", mode=0o751, gid=4)
        layer.add("case/", mode=0o711, uid=7, gid=8)
        for mode in (0o000, 0o4755, 0o2755, 0o1644, 0o7777):
            layer.add(f"case/mode-{mode:04o}", b"mode", mode=mode)
        layer.add("case/sticky/", mode=0o1777)
        layer.add("case/setgid/", mode=0o2770, gid=50)
        for uid, gid in ((65534, 65534), (2097152, 2097151), (4294967294, 2147483648)):
            layer.add(f"case/owner-{uid}", b"owner", uid=uid, gid=gid)
            layer.add(f"case/owned-{uid}/", uid=uid, gid=gid)
        for name, moment in (("epoch", 0.0), ("past", -300_000_000.5), ("future", 4_102_444_800.25), ("second", 1.0)):
            layer.add(f"case/time-{name}", b"time", mtime=moment)
        layer.add("case/empty", b"")
        for size in (1, 4095, 4096, 4097, 8192, 100_000, 1 << 20):
            layer.add(f"case/size-{size}", noise.randbytes(size))
        layer.add("case/zeros", bytes(1 << 20))
        layer.add("case/holes", b"start" + bytes(300_000) + b"middle" + bytes(70_000))
        # Names.
        layer.add("case/" + "n" * 255, b"255 bytes")
        layer.add("case/" + "d" * 255 + "/", mode=0o700)
        layer.add("case/" + "d" * 255 + "/" + "e" * 255, b"510 bytes")
        layer.add("case/" + "ü" * 127, b"two bytes each")
        layer.add("case/with space\tand\nnewline", b"controls")
        layer.add("case/backslash\\and'quote\"", b"quotes")
        layer.add("case/.hidden", b"dot")
        layer.add("case/...", b"three dots")
        layer.add("/absolute/name", b"made relative")
        layer.add("../../../climbing/name", b"kept inside")
        layer.add("case/sub/../climbed", b"normalised")
        layer.add("./case/./dotted", b"normalised too")
        layer.add("implied/directories/to/file", b"nobody described the directories")
        # Links.
        layer.symlink("case/link", "size-1")
        layer.symlink("case/absolute-link", "/etc/passwd")
        layer.symlink("case/climbing-link", "../../../../etc/passwd", uid=12, gid=13)
        layer.symlink("case/dangling", "nowhere/at/all")
        layer.symlink("case/long-link", "l/" * 2000 + "end")
        layer.symlink("case/loop", "loop")
        layer.add("case/first name", b"one inode, four names", uid=3)
        for name in ("case/second name", "case/sticky/third name"):
            layer.link(name, "case/first name")
        layer.link("case/fourth name", "/case/second name")
        layer.link("case/link to a link", "case/dangling")
        # Other kinds.
        layer.add("case/fifo", type=tarfile.FIFOTYPE, mode=0o600)
        layer.add("case/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
        layer.add("case/disk", type=tarfile.BLKTYPE, devmajor=259, devminor=300, mode=0o660, gid=6)
        layer.add("case/large numbers", type=tarfile.CHRTYPE, devmajor=4095, devminor=1048575)
        # Extended attributes.
        layer.add(
            "case/attributes", b"x", xattrs={"user.a": b"1", "user.empty": b"", "user.binary": bytes(range(1, 256))}
        )
        layer.add("case/same attributes", b"y", xattrs={"user.a": b"1", "user.empty": b""})
        layer.add("case/large attribute", b"z", xattrs={"user.large": noise.randbytes(2000).replace(b"\0", b"0")})
        layer.add("case/with attributes/", xattrs={"user.directory": b"yes", "trusted.only": b"root"})
        layer.add("case/capable", b"program", mode=0o755, xattrs={"security.capability": CAPABILITY})
        layer.add("case/listed", b"acl", mode=0o640, xattrs={"system.posix_acl_access": ACL})
        # What the next layers change.
        layer.add("below/", mode=0o750, xattrs={"user.layer": b"1"})
        for name in ("kept", "removed", "replaced", "emptied", "shared", "other"):
            layer.add(f"below/{name}", f"{name} of the first layer".encode())
        layer.link("below/shared again", "below/shared")
        layer.add("below/tree/")
        layer.add("below/tree/deep/")
        layer.add("below/tree/deep/file", b"deep")
        layer.add("below/opaque/", mode=0o700)
        layer.add("below/opaque/old", b"old")
        layer.add("below/opaque/old directory/")
        layer.add("below/opaque/old directory/old", b"old")
        layer.add("below/reappearing/")
        layer.add("below/reappearing/old", b"old")
        layer.add("below/becomes a file/")
        layer.add("below/becomes a file/inside", b"gone")
        layer.add("below/becomes a directory", b"gone")
        layer.add("below/real/")
        layer.symlink("below/pointing", "real")
        layer.symlink("below/pointing absolutely", "/below/real")
        layer.symlink("below/pointing out", "../../../../../below/real")
        layer.add("below/many/")
        for number in range(3000):
            layer.add(f"below/many/file number {number}", b"%d" % number, mtime=number)


def changes(path: Path) -> None:
    """What upper layers do to lower ones."""
    with Layer(path) as layer:
        layer.add("below/", mode=0o705, uid=9, xattrs={"user.layer": b"2"})
        layer.whiteout("below/removed")
        layer.whiteout("below/tree/deep")
        layer.whiteout("below/never was")
        layer.add("below/replaced", b"replaced by the second layer, longer than before", mode=0o600)
        layer.add("below/emptied", b"")
        layer.add("below/shared", b"the other name keeps the old contents")
        layer.link("below/linked across layers", "below/kept")
        layer.link("below/linked across layers, with a time", "below/other")
        layer.add("below/opaque/before the mark", b"new")
        layer.opaque("below/opaque")
        layer.add("below/opaque/after the mark", b"new")
        layer.whiteout("below/reappearing")
        layer.add("below/reappearing/", mode=0o711)
        layer.add("below/reappearing/new", b"new")
        layer.add("below/becomes a file", b"a file now")
        layer.add("below/becomes a directory/")
        layer.add("below/becomes a directory/inside", b"new")
        layer.add("below/pointing/through a link", b"lands in the real directory")
        layer.add("below/pointing absolutely/through another", b"within the image, not the host")
        layer.add("below/pointing out/through a third", b"there too")
        for number in range(0, 3000, 2):
            layer.whiteout(f"below/many/file number {number}")


def gnu(path: Path) -> None:
    """GNU format has long names and large numbers its own way."""
    with Layer(path, tarfile.GNU_FORMAT) as layer:
        layer.add("gnu/", uid=3_000_000_000, gid=3_000_000_001)
        layer.add("gnu/" + "g" * 255, b"a long name", uid=2_097_152)
        layer.add("gnu/" + "h" * 200 + "/")
        layer.add("gnu/" + "h" * 200 + "/" + "i" * 200, b"a longer one")
        layer.symlink("gnu/long link", "t/" * 200)
        layer.add("gnu/bytes that are no UTF-8: \udcff\udcfe", b"a name of any bytes")
        layer.add("gnu/before 1970", b"", mtime=-12345)


#: Where the sparse file of `gnu_sparse` has data; its length.
SPARSE_DATA = (0, 1 << 20, (1 << 31) - 3, (1 << 32) + 70_001)
SPARSE_LENGTH = (1 << 32) + 500_000


def gnu_sparse(path: Path, place: Path) -> Path:
    """A sparse file of more than 4 GiB, by GNU tar itself; gives the file."""
    source = place / "sparse"
    with source.open("wb") as sparse:
        for offset in SPARSE_DATA:
            sparse.seek(offset)
            sparse.write(f"data at {offset}".encode())
        sparse.truncate(SPARSE_LENGTH)
    command = ["tar", "--format=gnu", "--sparse", "--owner=root:0", "--group=root:0", "-cf", str(path), source.name]
    subprocess.run(command, cwd=place, check=True, timeout=120)
    assert path.stat().st_size < 1 << 20
    return source


def pax_sparse(path: Path, place: Path) -> None:
    """A sparse file in PAX format 1.0, by GNU tar."""
    source = place / "pax sparse"
    with source.open("wb") as sparse:
        sparse.write(b"a")
        sparse.seek(30 << 20)
        sparse.write(b"b" * 5000)
    os.utime(source, ns=(0, 1_500_000_000_987_654_321))
    how = ["--format=posix", "--sparse", "--sparse-version=1.0", "--owner=root:0", "--group=root:0"]
    subprocess.run(["tar", *how, "-cf", str(path), source.name], cwd=place, check=True, timeout=120)
