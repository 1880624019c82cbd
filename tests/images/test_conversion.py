"""The real conversion of layers that are large in one way or another: bounded memory, sound images."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..real import require, run
from .conftest import make_image, make_index, sha256, write_layout

#: What a conversion may need at its peak, whatever the image; with the interpreter that asks for it.
LIMIT = 200 << 20

#: The peak is this program's own (VmHWM): getrusage(2) counts what its parent had when it was started.
PROGRAM = """
import re, sys
from pathlib import Path
from supermachine.images import resolve
image = resolve(sys.argv[1])
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(image.rootfs, int(peak[1]) << 10)
"""


def header(name: bytes, size: int, kind: bytes = b"0") -> bytes:
    """A ustar header, made faster than tarfile makes one."""
    prefix, _, base = name.rpartition(b"/") if len(name) > 100 else (b"", b"", name)
    block = bytearray(512)
    block[: len(base)] = base
    block[100:136] = b"%07o\x00%07o\x00%07o\x00%011o\x00" % (0o644, 0, 0, size)
    block[136:148] = b"%011o\x00" % 1
    block[148:156] = b"        "
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[345 : 345 + len(prefix)] = prefix
    block[148:156] = b"%06o\x00 " % sum(block)
    return bytes(block)


def many_files() -> Iterator[bytes]:
    """A quarter of a million small files in as many directories as a large distribution has."""
    noise = random.Random(1)
    for directory in range(2500):
        place = b"usr/share/some-package-%05d/of-names-that-are-not-short/" % directory
        yield header(place, 0, b"5")
        for file in range(100):
            data = noise.randbytes(file % 60)
            yield header(place + b"file-with-a-name-of-its-own-%03d" % file, len(data)) + data.ljust(
                -(-len(data) // 512) * 512, b"\0"
            )
    yield bytes(1024)


def one_file() -> Iterator[bytes]:
    """A file larger than the limit, of which every part is another."""
    size = 300 << 20
    yield header(b"large", size)
    block = os.urandom(1 << 20)
    for number in range(size >> 20):
        yield number.to_bytes(8, "little") + block[8:]
    yield bytes(1024)


def long_lists() -> Iterator[bytes]:
    """A hundred thousand links to one file, and whiteouts of what never was."""
    yield header(b"file", 5) + b"links".ljust(512, b"\0")
    for number in range(100_000):
        name = b"links/link-number-%06d" % number
        link = bytearray(header(name, 0, b"1"))
        link[157:161] = b"file"
        link[148:156] = b"        "
        link[148:156] = b"%06o\x00 " % sum(link)
        yield bytes(link)
        if number % 4 == 0:
            yield header(b"links/.wh.never-was-%06d" % number, 0)
    yield bytes(1024)


@pytest.mark.parametrize("make", [many_files, one_file, long_lists])
def test_peak_memory(tmp_path: Path, make: object, monkeypatch: pytest.MonkeyPatch) -> None:
    require("fsck.erofs")
    monkeypatch.setenv("SUPERMACHINE_CACHE", str(tmp_path / "cache"))
    layer = tmp_path / "layer"
    with gzip.open(layer, "wb", compresslevel=1) if make is not one_file else layer.open("wb") as file:
        file.writelines(make())  # type: ignore[operator]
    kind = "application/vnd.oci.image.layer.v1.tar" + ("" if make is one_file else "+gzip")
    image = make_image(layer_type=kind)
    manifest, digest = json.loads(image.manifest), f"sha256:{run('sha256sum', layer).split()[0]}"
    plain = digest if make is one_file else f"sha256:{shell_sum(layer)}"
    config = json.loads(image.blobs[manifest["config"]["digest"]])
    config["rootfs"]["diff_ids"] = [plain]
    encoded = json.dumps(config).encode()
    manifest["config"] |= {"digest": sha256(encoded), "size": len(encoded)}
    manifest["layers"] = [{"mediaType": kind, "digest": digest, "size": layer.stat().st_size}]
    top = json.dumps(manifest).encode()
    entry = {"mediaType": manifest.get("mediaType", "application/vnd.oci.image.manifest.v1+json"), "size": len(top)}
    entry |= {"digest": sha256(top), "platform": {"os": "linux", "architecture": "arm64"}}
    layout = write_layout(tmp_path / "image", {sha256(encoded): encoded, sha256(top): top}, make_index(entry))
    layer.rename(layout / "blobs" / "sha256" / digest.partition(":")[2])
    command = [sys.executable, "-c", PROGRAM, str(layout)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    rootfs, peak = done.stdout.split()
    print(f"{int(peak) / (1 << 20):.0f} MiB at the peak")
    assert int(peak) < LIMIT
    run("fsck.erofs", rootfs)


def shell_sum(layer: Path) -> str:
    return subprocess.run(
        f"gzip -dc < '{layer}' | sha256sum", shell=True, capture_output=True, text=True, check=True
    ).stdout.split()[0]
