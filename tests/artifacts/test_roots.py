"""Snapshots of guests that have read from their root image: pages that are its blocks are not fetched by who has it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from supermachine import errors
from supermachine.artifacts import model
from supermachine.artifacts.pull import pull
from supermachine.artifacts.push import Pushed, push
from supermachine.cache.store import Cache

from .conftest import PAGE, ram, record_working_set, snapshot
from .registry import Registry

#: Blocks of the image, the last of which are zero.
BLOCKS, ZEROS = 400, 20


def put_root(cache: Cache, seed: int = 1, changed: int | None = None) -> list[bytes]:
    """Puts the image of `conftest.snapshot` into a cache; gives its blocks. One may have been `changed`."""
    source = random.Random(seed)
    blocks = [source.randbytes(PAGE) for _ in range(BLOCKS - ZEROS)] + [bytes(PAGE)] * ZEROS
    if changed is not None:
        blocks[changed] = bytes([blocks[changed][0] ^ 1]) + blocks[changed][1:]
    place = cache.rootfs("0" * 64)
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    place.write_bytes(b"".join(blocks))
    return blocks


def read_by(blocks: list[bytes]) -> bytearray:
    """RAM of a guest that has read the blocks from 50 on, the last ones first, and 60 and 61 twice."""
    return ram(100) + b"".join(reversed(blocks[50:])) + ram(300, seed=2) + b"".join(blocks[60:62])


@pytest.fixture
def pushed(registry: Registry, tmp_path: Path, cache: Cache) -> Pushed:
    id_ = snapshot(tmp_path / "a", read_by(put_root(cache)))
    record_working_set(cache, id_, [(0, 100, False), (200, 150, True), (600, 3, False)])
    return push(tmp_path / "a", f"{registry.host}/bb:snap", cache=cache)


def blobs(registry: Registry, pushed: Pushed) -> dict[str, tuple[str, int]]:
    """Digest and length of each part's."""
    layers = json.loads(registry.manifests["bb", pushed.digest][1])["layers"]
    names = [layer["mediaType"].removeprefix("application/vnd.supermachine.snapshot.") for layer in layers]
    return {name.removesuffix(".v1+zstd"): (x["digest"], x["size"]) for name, x in zip(names, layers, strict=True)}


def asked(registry: Registry, pushed: Pushed) -> set[str]:
    """Parts of which something was fetched."""
    return {name for name, (digest, _) in blobs(registry, pushed).items() if registry.count("GET", digest)}


def config(registry: Registry, pushed: Pushed) -> dict[str, object]:
    digest = json.loads(registry.manifests["bb", pushed.digest][1])["config"]["digest"]
    found: dict[str, object] = json.loads(registry.blobs["bb", digest])
    return found


def test_who_has_the_image_does_not_fetch_its_blocks(
    registry: Registry, tmp_path: Path, elsewhere: Cache, pushed: Pushed
) -> None:
    parts = blobs(registry, pushed)
    assert parts["ram.hot.root"][1] > 149 * PAGE and parts["ram.root"][1] > 170 * PAGE
    assert parts["ram.hot"][1] < 100 * PAGE
    put_root(elsewhere)
    found = pull(pushed.reference, cache=elsewhere)
    assert found.path.read_bytes() == (tmp_path / "a").read_bytes()
    assert asked(registry, pushed) == {"ram", "ram.hot"}
    said = config(registry, pushed)
    assert (said["version"], said["kernel"]) == (2, None)


def test_who_has_it_not_or_another_fetches_them(registry: Registry, tmp_path: Path, pushed: Pushed) -> None:
    whole = (tmp_path / "a").read_bytes()
    assert pull(pushed.reference, cache=Cache(tmp_path / "none")).path.read_bytes() == whole
    assert asked(registry, pushed) == {"ram", "ram.hot", "ram.root", "ram.hot.root"}

    def fetched(name: str, seed: int = 1, changed: int | None = None) -> set[str]:
        registry.requests.clear()
        put_root(Cache(tmp_path / name), seed, changed)
        assert pull(pushed.reference, cache=Cache(tmp_path / name)).path.read_bytes() == whole
        return asked(registry, pushed) & {"ram.root", "ram.hot.root"}

    assert fetched("another", seed=2) == {"ram.root", "ram.hot.root"}
    # Pages 200 to 349 are blocks 399 - 100 down to 399 - 249.
    assert fetched("damaged", changed=200) == {"ram.hot.root"}
    assert fetched("damaged elsewhere", changed=320) == {"ram.root"}
    assert fetched("not read", changed=3) == set()
    registry.requests.clear()
    short = Cache(tmp_path / "short")
    put_root(short)
    with short.rootfs("0" * 64).open("r+b") as file:
        file.truncate(310 * PAGE)
    assert pull(pushed.reference, cache=short).path.read_bytes() == whole
    assert asked(registry, pushed) >= {"ram.root"}


def test_a_second_snapshot_is_still_a_tenth_or_less(
    registry: Registry, tmp_path: Path, cache: Cache, elsewhere: Cache, pushed: Pushed
) -> None:
    contents = read_by(put_root(cache))
    contents[30 * PAGE : 31 * PAGE] = random.Random(5).randbytes(PAGE)
    snapshot(tmp_path / "b", contents, created=2)
    second = push(tmp_path / "b", f"{registry.host}/bb:b", cache=cache)
    assert second.base == pushed.digest and second.sent < pushed.sent / 10
    put_root(elsewhere)
    assert pull(second.reference, cache=elsewhere).path.read_bytes() == (tmp_path / "b").read_bytes()


def test_few_pages_of_it_are_sent_as_all_are(registry: Registry, tmp_path: Path, cache: Cache) -> None:
    snapshot(tmp_path / "a", ram(300) + b"".join(put_root(cache)[:100]))
    done = push(tmp_path / "a", f"{registry.host}/bb:snap", cache=cache)
    assert config(registry, done)["version"] == 1 and set(blobs(registry, done)) == {"meta", "ram"}


def test_what_it_says_of_blocks_is_not_believed(
    registry: Registry, tmp_path: Path, elsewhere: Cache, pushed: Pushed
) -> None:
    good = config(registry, pushed)
    assert model.Config.decode(model.Config.decode(json.dumps(good).encode(), "x").encode(), "x").root is not None
    for root in (
        {"image": "../" + "0" * 61, "parts": {}},
        {"image": "0" * 64, "parts": {"ram.root": "x"}},
        {"image": "0" * 64, "parts": ["ram.root"]},
        {"image": "0" * 64},
        "x",
    ):
        with pytest.raises(errors.BadSnapshot):
            model.Config.decode(json.dumps({**good, "root": root}).encode(), "x")

    # One that says of a part what is true of another.
    assert isinstance(good["root"], dict)
    said = good["root"]["parts"]
    swapped = {**good["root"], "parts": {"ram.root": said["ram.hot.root"], "ram.hot.root": said["ram.root"]}}
    body = json.loads(registry.manifests["bb", pushed.digest][1])
    data = json.dumps({**good, "root": swapped}).encode()
    own = model.descriptor(data, body["config"]["mediaType"])
    registry.blobs["bb", own.digest] = data
    body["config"] = {"mediaType": own.media_type, "digest": own.digest, "size": own.size}
    digest = registry.put("bb", json.dumps(body).encode(), "application/vnd.oci.image.manifest.v1+json")
    put_root(elsewhere)
    with pytest.raises(errors.SupermachineError, match="blocks"):
        pull(f"{registry.host}/bb@{digest}", cache=elsewhere)
    assert not list((tmp_path / "elsewhere").glob("artifacts/*/snapshot"))
