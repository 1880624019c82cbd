"""Snapshots without a machine, whose RAM is made up, and registries to put them into."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from supermachine._core import write_snapshot_v9
from supermachine.artifacts.trust import Keys
from supermachine.cache.store import Cache
from supermachine.oci.transport import Limits, Transport
from supermachine.snapshots import working_set
from supermachine.snapshots.records import VERSION

from .registry import Registry, sha256

PAGE = 4096
IMAGE = json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json"}).encode()


@pytest.fixture(autouse=True)
def own_directories(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(("SUPERMACHINE_", "DOCKER_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SUPERMACHINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SUPERMACHINE_KEYS", str(tmp_path / "keys"))


@pytest.fixture
def registry() -> Iterator[Registry]:
    server = Registry()
    server.put("bb", IMAGE, "application/vnd.oci.image.manifest.v1+json", "1")
    yield server
    server.close()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Cache:
    """The cache of another machine."""
    return Cache(tmp_path / "elsewhere")


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys")


@pytest.fixture
def transport() -> Iterator[Transport]:
    """One that does not wait long."""
    with_limits = Transport(limits=Limits(connect=5, read=5, attempts=3, backoff=0.01, backoff_max=0.02))
    yield with_limits
    with_limits.close()


def ram(pages: int, seed: int = 0, used: float = 0.6) -> bytearray:
    """Pages of numbers and text, like memory: some zero, some that compress, some that do not."""
    source = random.Random(seed)
    data = bytearray()
    for number in range(pages):
        kind = source.random()
        if kind > used:
            data += bytes(PAGE)
        elif kind > used / 2:
            data += (b"%d " % (number * 7919)).ljust(32, b".") * (PAGE // 32)
        else:
            data += source.randbytes(PAGE)
    return data


def snapshot(
    path: Path,
    contents: bytes | bytearray,
    *,
    parent: str | None = None,
    present: list[tuple[int, int]] | None = None,
    image: str = sha256(IMAGE),
    environment: dict[str, str] | None = None,
    created: int = 1,
    memory: int | None = None,
) -> str:
    """Writes one; gives its id."""
    api = {
        "version": VERSION,
        "image": {
            "reference": "bb:1",
            "digest": image,
            "platform": "linux/arm64",
            "rootfs": "0" * 64,
            "config": {"config": {}, "rootfs": {"type": "layers", "diff_ids": []}},
        },
        "environment": environment or {},
        "working_dir": None,
        "user": None,
        "ports": {},
        "parents": [],
    }
    identity = {
        "architecture": "aarch64",
        "engine": "soft",
        "engine_version": 1,
        "cpu_features": [],
        "kernel": "0" * 64,
        "initramfs": "0" * 64,
        "image": image,
        "devices": [],
        "vcpus": 1,
        "memory_bytes": memory or len(contents),
        "ram_gpa": 1 << 30,
        "parent": parent,
        "created_unix_ns": created,
    }
    sections = [("api", 0, 1, False, json.dumps(api).encode())]
    return write_snapshot_v9(str(path), identity, sections, bytes(contents), present, False)  # type: ignore[arg-type]


def record_working_set(cache: Cache, id_: str, runs: list[tuple[int, int, bool]]) -> None:
    place = working_set.beside(cache, id_)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(working_set.encode(runs))


def left_behind(place: Path) -> list[str]:
    """Files of unfinished work in a cache or a directory."""
    found = [str(path) for path in (place / "tmp").glob("*/*")] if (place / "tmp").is_dir() else []
    return found + [str(path) for path in place.glob(".*.partial-*")]
