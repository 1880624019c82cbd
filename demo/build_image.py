"""Writes demo/busybox.oci.tar: an OCI archive with Debian's static busybox for arm64, the same bytes every time.

    apt-get download busybox-static:arm64 && dpkg-deb -x busybox-static_*_arm64.deb unpacked
    python3 demo/build_image.py unpacked/bin/busybox 1:1.35.0-4+deb12u1+b1 applets.txt

where applets.txt is what `busybox --list-full` prints (on another architecture: under qemu-aarch64-static).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path

EPOCH = "2026-01-01T00:00:00Z"
MTIME = 1767225600

ACCOUNTS = """\
root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
"""
GROUPS = "root:x:0:\nnogroup:x:65534:\n"
DIRECTORIES = {"bin": 0o755, "etc": 0o755, "home": 0o755, "root": 0o700, "sbin": 0o755, "tmp": 0o1777}
DIRECTORIES |= {"usr": 0o755, "usr/bin": 0o755, "usr/sbin": 0o755, "var": 0o755, "var/tmp": 0o1777}


def member(name: str, kind: bytes, mode: int, data: bytes = b"", target: str = "") -> tarfile.TarInfo:
    """A header with nothing in it that varies from one build to the next."""
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime, info.size, info.linkname = kind, mode, MTIME, len(data), target
    return info


def layer(busybox: bytes, applets: list[str]) -> bytes:
    """The only layer: busybox, a link for each applet, and the few files that programs expect."""
    files = {"bin/busybox": (0o755, busybox), "etc/passwd": (0o644, ACCOUNTS.encode())}
    files |= {"etc/group": (0o644, GROUPS.encode()), "etc/hostname": (0o644, b"")}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, mode in DIRECTORIES.items():
            tar.addfile(member(name, tarfile.DIRTYPE, mode))
        for name, (mode, data) in files.items():
            tar.addfile(member(name, tarfile.REGTYPE, mode, data), io.BytesIO(data))
        for applet in sorted(set(applets) - set(files) - {"linuxrc"}):
            tar.addfile(member(applet, tarfile.SYMTYPE, 0o777, target="/bin/busybox"))
    return out.getvalue()


def main(busybox: Path, version: str, applets: Path) -> None:
    """Writes the archive beside this script."""
    tar = layer(busybox.read_bytes(), applets.read_text().split())
    blobs: list[bytes] = []

    def blob(data: bytes, media_type: str) -> dict[str, object]:
        blobs.append(data)
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    config = {
        "architecture": "arm64",
        "os": "linux",
        "created": EPOCH,
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Cmd": ["sh"],
            "Labels": {"org.opencontainers.image.title": "busybox", "org.opencontainers.image.version": version},
        },
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(tar).hexdigest()]},
        "history": [{"created": EPOCH, "created_by": f"busybox-static {version} of Debian"}],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": [blob(gzip.compress(tar, mtime=0), "application/vnd.oci.image.layer.v1.tar+gzip")],
    }
    entry = blob(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    entry["platform"] = {"architecture": "arm64", "os": "linux"}
    entry["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    }

    members = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": json.dumps(index).encode()}
    members |= {"blobs/sha256/" + hashlib.sha256(data).hexdigest(): data for data in blobs}
    with tarfile.open(Path(__file__).with_name("busybox.oci.tar"), "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members.items():
            archive.addfile(member(name, tarfile.REGTYPE, 0o644, data), io.BytesIO(data))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
