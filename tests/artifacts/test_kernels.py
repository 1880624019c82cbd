"""Snapshots whose frames are packed against the guest's kernel, which every installation has as a file."""

from __future__ import annotations

import base64
import json
import random
import zlib
from pathlib import Path

import pytest
from supermachine import errors
from supermachine.artifacts import model
from supermachine.artifacts.pull import pull
from supermachine.artifacts.push import Pushed, push
from supermachine.cache.store import Cache
from supermachine.oci.transport import Transport

from .conftest import PAGE, ram, record_working_set, snapshot
from .registry import Registry

#: Pages of the kernel.
PAGES = 300


def image(path: Path, seed: int) -> bytes:
    """An arm64 Image (kernel Documentation/arch/arm64/booting.rst) that does not compress."""
    data = bytearray(random.Random(seed).randbytes(PAGES * PAGE))
    data[8:16], data[56:60] = bytes(8), b"ARM\x64"
    path.write_bytes(data)
    return bytes(data)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """This installation's."""
    monkeypatch.setenv("SUPERMACHINE_KERNEL", str(tmp_path / "Image"))
    return image(tmp_path / "Image", 1)


def booted(kernel: bytes) -> bytearray:
    """RAM with that kernel, a few bytes of which were patched in each page, and what is not the kernel's."""
    contents = bytearray(kernel) + ram(400)
    for at in range(0, len(kernel), 1700):
        contents[at] ^= 1
    return contents


@pytest.fixture
def pushed(registry: Registry, tmp_path: Path, cache: Cache, kernel: bytes) -> Pushed:
    id_ = snapshot(tmp_path / "a", booted(kernel))
    record_working_set(cache, id_, [(20, 100, False), (500, 30, True), (2, 5, False)])
    return push(tmp_path / "a", f"{registry.host}/bb:snap", cache=cache)


def blob(registry: Registry, pushed: Pushed, kind: str) -> str:
    [found] = [x["digest"] for x in layers(registry, pushed) if x["mediaType"] == kind]
    return str(found)


def layers(registry: Registry, pushed: Pushed) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(registry.manifests["bb", pushed.digest][1])["layers"]
    return found


def config(registry: Registry, pushed: Pushed) -> dict[str, object]:
    digest = json.loads(registry.manifests["bb", pushed.digest][1])["config"]["digest"]
    found: dict[str, object] = json.loads(registry.blobs["bb", digest])
    return found


def test_pages_that_are_nearly_the_kernels_are_not_sent(
    registry: Registry, tmp_path: Path, cache: Cache, elsewhere: Cache, pushed: Pushed
) -> None:
    assert config(registry, pushed)["version"] == 2
    hot = next(x["size"] for x in layers(registry, pushed) if x["mediaType"] == model.PART_TYPE.format("ram.hot"))
    assert isinstance(hot, int) and hot < 30 * PAGE
    assert pushed.size < 400 * PAGE and pushed.sent == pushed.size + PAGES * PAGE
    held = blob(registry, pushed, model.KERNEL_TYPE)
    found = pull(pushed.reference, cache=elsewhere)
    assert found.path.read_bytes() == (tmp_path / "a").read_bytes()
    assert registry.count("GET", held) == 0, "it is here"
    contents = booted((tmp_path / "Image").read_bytes())
    contents[0] ^= 3
    (tmp_path / "alone").mkdir()
    snapshot(tmp_path / "alone" / "b", contents, created=2)
    again = push(tmp_path / "alone" / "b", f"{registry.host}/bb:b", cache=cache)
    assert again.sent < pushed.sent - PAGES * PAGE / 2, "the repository has the kernel"


def test_another_installation_takes_the_kernel_from_the_registry(
    registry: Registry, tmp_path: Path, elsewhere: Cache, pushed: Pushed, monkeypatch: pytest.MonkeyPatch
) -> None:
    image(tmp_path / "Image.other", 2)
    monkeypatch.setenv("SUPERMACHINE_KERNEL", str(tmp_path / "Image.other"))
    found = pull(pushed.reference, cache=elsewhere)
    assert found.path.read_bytes() == (tmp_path / "a").read_bytes()
    assert registry.count("GET", blob(registry, pushed, model.KERNEL_TYPE)) == 1
    monkeypatch.setenv("SUPERMACHINE_KERNEL", str(tmp_path / "gone"))
    assert pull(pushed.reference, cache=Cache(tmp_path / "third")).path.read_bytes() == found.path.read_bytes()


def test_another_kernel_than_the_one_that_is_named_is_found(
    registry: Registry,
    tmp_path: Path,
    elsewhere: Cache,
    pushed: Pushed,
    transport: Transport,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = image(tmp_path / "Image.other", 2)
    monkeypatch.setenv("SUPERMACHINE_KERNEL", str(tmp_path / "Image.other"))
    held = blob(registry, pushed, model.KERNEL_TYPE)
    registry.change = lambda name, data: other if name == held else data
    with pytest.raises(errors.DigestMismatch):
        pull(pushed.reference, cache=elsewhere, transport=transport)

    # A manifest without the kernel that its configuration names; and one whose kernel is none.
    def changed(kernel: bytes | None) -> str:
        body = json.loads(registry.manifests["bb", pushed.digest][1])
        body["layers"] = [entry for entry in body["layers"] if entry["mediaType"] != model.KERNEL_TYPE]
        said = config(registry, pushed)
        if kernel is not None:
            named = model.descriptor(kernel, model.KERNEL_TYPE)
            registry.blobs["bb", named.digest] = kernel
            body["layers"].append({"mediaType": named.media_type, "digest": named.digest, "size": named.size})
            said["kernel"] = named.digest
        data = json.dumps(said).encode()
        own = model.descriptor(data, body["config"]["mediaType"])
        registry.blobs["bb", own.digest] = data
        body["config"] = {"mediaType": own.media_type, "digest": own.digest, "size": own.size}
        return registry.put("bb", json.dumps(body).encode(), "application/vnd.oci.image.manifest.v1+json")

    for kernel, reason in ((None, "neither it nor this installation"), (b"x" * 5000, "kernel"), (other, "of ")):
        with pytest.raises(errors.SupermachineError, match=reason):
            pull(f"{registry.host}/bb@{changed(kernel)}", cache=elsewhere, transport=transport)
    assert not list((tmp_path / "elsewhere").glob("artifacts/*/snapshot"))


def test_a_snapshot_with_little_of_a_kernel_is_as_older_releases_read_it(
    registry: Registry, tmp_path: Path, cache: Cache, kernel: bytes
) -> None:
    snapshot(tmp_path / "a", bytearray(kernel[: 50 * PAGE]) + ram(100))
    done = push(tmp_path / "a", f"{registry.host}/bb:snap", cache=cache)
    assert config(registry, done)["version"] == 1
    assert not [x for x in layers(registry, done) if x["mediaType"] == model.KERNEL_TYPE]


def test_a_configuration_of_version_2_is_bounded(
    registry: Registry, pushed: Pushed, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = config(registry, pushed)
    read = model.Config.decode(json.dumps(good).encode(), "x")
    assert model.Config.decode(read.encode(), "x") == read
    monkeypatch.setattr(model, "MAX_CONFIG", 1 << 20)
    bombs = [zlib.compress(bytes(1 << 24)), zlib.compress(b"x")[:-1], zlib.compress(b"x") + b"y", b"x"]
    for bomb in bombs:
        for name in ("table", "workingSet"):
            with pytest.raises(errors.BadSnapshot):
                model.Config.decode(json.dumps({**good, name: base64.b64encode(bomb).decode()}).encode(), "x")
    for change in ({"kernel": "x"}, {"kernel": None}, {"version": 3}, {"version": 0}, {"version": 2.5}):
        with pytest.raises(errors.BadSnapshot):
            model.Config.decode(json.dumps({**good, **change}).encode(), "x")
