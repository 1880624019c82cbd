"""What was pushed is pulled, byte for byte; what is there is not sent again."""

from __future__ import annotations

import json
from pathlib import Path

import hypothesis
import pytest
import supermachine
from hypothesis import strategies as st
from supermachine import errors
from supermachine.artifacts import model
from supermachine.artifacts.pull import prune, pull
from supermachine.artifacts.push import push
from supermachine.cache.store import Cache
from supermachine.oci.transport import Transport
from supermachine.snapshots import working_set
from supermachine.snapshots.records import chain

from .conftest import PAGE, ram, record_working_set, snapshot
from .registry import Registry


def test_a_whole_snapshot_goes_round(registry: Registry, tmp_path: Path, cache: Cache, elsewhere: Cache) -> None:
    id_ = snapshot(tmp_path / "a", ram(1500))
    runs = [(10, 20, False), (100, 3, True), (1400, 50, False)]
    record_working_set(cache, id_, runs)
    done = push(tmp_path / "a", f"{registry.host}/bb:snap", cache=cache)
    assert done.linked and done.base is None and done.sent == done.size
    found = pull(done.reference, cache=elsewhere)
    assert found.path.read_bytes() == (tmp_path / "a").read_bytes()
    assert found.path.stat().st_blocks * 512 < 1500 * PAGE * 0.75, "holes are holes"
    assert found.path.stat().st_mode & 0o777 == 0o600
    assert working_set.load(working_set.beside(elsewhere, id_)) == runs
    asked = len(registry.requests)
    assert pull(done.reference, cache=elsewhere).path == found.path
    assert len(registry.requests) == asked, "what is pinned and there is not asked for"
    out = tmp_path / "out"
    assert pull(done.reference, out, cache=elsewhere).path == out
    assert out.read_bytes() == (tmp_path / "a").read_bytes()
    with pytest.raises(errors.SnapshotExists):
        pull(done.reference, out, cache=elsewhere)
    assert prune(elsewhere) > 0
    assert not found.path.exists()


def test_the_same_snapshot_has_the_same_digests_and_is_not_sent_twice(
    registry: Registry, tmp_path: Path, cache: Cache
) -> None:
    snapshot(tmp_path / "a", ram(1000))
    first = push(tmp_path / "a", f"{registry.host}/bb:one", cache=cache)
    second = push(tmp_path / "a", f"{registry.host}/bb:two", cache=Cache(tmp_path / "other"))
    assert (first.digest, second.sent) == (second.digest, 0)
    received = registry.received
    elsewhere = push(tmp_path / "a", f"{registry.host}/copy:x", mount="bb", cache=cache)
    layers = json.loads(registry.manifests["copy", "x"][1])["layers"]
    assert registry.count("POST", "mount=") == len(layers) == 2, "each blob is mounted"
    # What is not there is the configuration, which is sent: this repository has no image, so it is another.
    assert registry.received - received == elsewhere.sent < 4096
    assert {layer["digest"] for layer in layers} <= {
        name for repository, name in registry.blobs if repository == "copy"
    }


def test_variables_are_named_before_anything_is_sent(
    registry: Registry, tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot(tmp_path / "a", ram(100), environment={"TOKEN": "x", "COLOUR": "green"})
    said: list[tuple[str, int]] = []
    monkeypatch.setattr("supermachine.artifacts.push.warn", lambda text: said.append((text, registry.received)))
    done = push(tmp_path / "a", f"{registry.host}/bb:one", cache=cache)
    assert said == [
        (f"the snapshot holds these variables, for all who can read {registry.host}/bb:one: COLOUR, TOKEN", 0)
    ]
    assert done.environment == ("COLOUR", "TOKEN") and registry.received > 0


def test_a_manifest_says_what_it_is(registry: Registry, tmp_path: Path, cache: Cache) -> None:
    id_ = snapshot(tmp_path / "a", ram(300))
    record_working_set(cache, id_, [(0, 300, False)])
    done = push(tmp_path / "a", f"{registry.host}/bb:snap", cache=cache)
    body = json.loads(registry.manifests["bb", "snap"][1])
    assert body["artifactType"] == model.ARTIFACT_TYPE
    assert body["subject"]["digest"].startswith("sha256:")
    assert body["annotations"]["dev.supermachine.snapshot"] == id_
    kinds = [layer["mediaType"] for layer in body["layers"]]
    assert kinds == [model.PART_TYPE.format(name) for name in ("meta", "ram.hot")], "nothing was left for the third"
    assert done.digest in [name for _, name in registry.manifests]


def test_a_second_snapshot_of_an_image_is_a_tenth_or_less(
    registry: Registry, tmp_path: Path, cache: Cache, elsewhere: Cache
) -> None:
    contents = ram(2000)
    snapshot(tmp_path / "a", contents)
    first = push(tmp_path / "a", f"{registry.host}/bb:a", cache=cache)
    for page in range(0, 2000, 50):
        contents[page * PAGE : page * PAGE + 8] = b"changed!" if page % 100 else bytes(8)
    contents[PAGE * 77 : PAGE * 99] = bytes(22 * PAGE)
    id_ = snapshot(tmp_path / "b", contents, created=2)
    second = push(tmp_path / "b", f"{registry.host}/bb:b", cache=cache)
    assert second.base == first.digest
    assert second.sent <= first.sent / 10
    found = pull(second.reference, cache=elsewhere)
    assert found.path.read_bytes() == (tmp_path / "b").read_bytes()
    assert found.config.id == id_
    # Where the first one's file is not at hand, all of it is sent.
    (tmp_path / "alone").mkdir()
    (tmp_path / "b").rename(tmp_path / "alone" / "b")
    again = push(tmp_path / "alone" / "b", f"{registry.host}/bb:b", cache=cache)
    assert again.base is None
    assert pull(again.reference, cache=elsewhere).path.read_bytes() == found.path.read_bytes()


@pytest.mark.parametrize("referrers", [True, False])
def test_a_chain_of_diffs_goes_round(
    registry: Registry, tmp_path: Path, cache: Cache, elsewhere: Cache, referrers: bool
) -> None:
    registry.referrers = referrers
    contents = ram(500)
    ids = [snapshot(tmp_path / "0", contents)]
    for number in (1, 2, 3):
        start = number * 40 * PAGE
        contents[start : start + PAGE] = bytes([number]) * PAGE
        contents[start + PAGE : start + 2 * PAGE] = bytes(PAGE)
        present = [(start, start + 2 * PAGE)]
        ids.append(snapshot(tmp_path / str(number), contents, parent=ids[-1], present=present, created=number + 1))
    done = push(tmp_path / "3", f"{registry.host}/bb:diff", cache=cache)
    found = pull(done.reference, cache=elsewhere)
    heads = chain(found.path)
    assert [head.id for head in heads] == ids
    assert [head.path.read_bytes() for head in heads] == [(tmp_path / str(n)).read_bytes() for n in range(4)]
    (tmp_path / "out").mkdir()
    pull(done.reference, tmp_path / "out" / "x", cache=elsewhere)
    assert [head.id for head in chain(tmp_path / "out" / "x")] == ids
    assert push(tmp_path / "2", f"{registry.host}/bb:two", cache=cache).sent < 10_000


def test_a_repository_without_the_image_takes_it_too(
    registry: Registry, tmp_path: Path, cache: Cache, elsewhere: Cache
) -> None:
    snapshot(tmp_path / "a", ram(50), environment={"TOKEN": "x", "HOME": "/"})
    done = push(tmp_path / "a", f"{registry.host}/team/other:v1", cache=cache)
    assert not done.linked
    contents = ram(50)
    contents[:4] = b"more"
    snapshot(tmp_path / "b", contents, created=2)
    second = push(tmp_path / "b", f"{registry.host}/team/other:v2", cache=cache)
    assert second.base == done.digest and second.sent < done.sent / 2
    assert pull(second.reference, cache=elsewhere).path.read_bytes() == (tmp_path / "b").read_bytes()
    assert done.environment == ("HOME", "TOKEN")
    assert pull(done.reference, cache=elsewhere).path.read_bytes() == (tmp_path / "a").read_bytes()


def test_what_cannot_be_pushed_says_why(registry: Registry, tmp_path: Path, cache: Cache, transport: Transport) -> None:
    snapshot(tmp_path / "a", ram(10))
    with pytest.raises(errors.InvalidReference, match="digest"):
        push(tmp_path / "a", f"{registry.host}/bb@sha256:{'0' * 64}", cache=cache)
    with pytest.raises(errors.SnapshotNotFound):
        push(tmp_path / "none", f"{registry.host}/bb:x", cache=cache)
    registry.close()
    with pytest.raises(errors.RegistryError):
        push(tmp_path / "a", f"{registry.host}/bb:x", cache=cache, transport=transport)


def test_an_image_is_no_snapshot_and_the_other_way_round(registry: Registry, tmp_path: Path, cache: Cache) -> None:
    snapshot(tmp_path / "a", ram(10))
    push(tmp_path / "a", f"{registry.host}/bb:snap", cache=cache)
    with pytest.raises(errors.SnapshotReference, match="snapshot"):
        supermachine.images.resolve(f"{registry.host}/bb:snap")
    with pytest.raises(errors.BadSnapshot):
        pull(f"{registry.host}/bb:1", cache=cache)


@hypothesis.given(
    pages=st.lists(st.sampled_from([0, 0, 1, 2, 3]), min_size=16, max_size=200),
    changes=st.lists(st.tuples(st.integers(0, 199), st.sampled_from([0, 1, 2, 9])), max_size=30),
    hot=st.sets(st.integers(0, 199), max_size=20),
)
@hypothesis.settings(max_examples=6)
def test_any_contents_go_round(
    tmp_path_factory: pytest.TempPathFactory,
    pages: list[int],
    changes: list[tuple[int, int]],
    hot: set[int],
) -> None:
    place = tmp_path_factory.mktemp("any")
    here, there = Cache(place / "cache"), Cache(place / "elsewhere")
    registry = Registry()
    try:
        base = b"".join(bytes([page]) * PAGE for page in pages)
        changed = bytearray(base)
        for at, byte in changes:
            at %= len(pages)
            changed[at * PAGE : (at + 1) * PAGE] = bytes([byte]) * PAGE
        for number, contents in enumerate((base, bytes(changed))):
            id_ = snapshot(place / str(number), contents, created=number + 1)
            runs = [(page, 1, False) for page in sorted(hot) if page < len(pages)]
            if runs:
                record_working_set(here, id_, runs)
            done = push(place / str(number), f"{registry.host}/x:{number}", cache=here)
            assert pull(done.reference, cache=there).path.read_bytes() == (place / str(number)).read_bytes()
    finally:
        registry.close()


def test_what_is_small_comes_with_the_manifest(
    registry: Registry, tmp_path: Path, cache: Cache, elsewhere: Cache
) -> None:
    id_ = snapshot(tmp_path / "a", ram(600))
    record_working_set(cache, id_, [(0, 100, False)])
    done = push(tmp_path / "a", f"{registry.host}/bb:snap", cache=cache)
    registry.requests.clear()
    assert pull(done.reference, cache=elsewhere).path.read_bytes() == (tmp_path / "a").read_bytes()
    body = json.loads(registry.manifests["bb", "snap"][1])
    large = [layer["digest"] for layer in body["layers"] if layer["size"] > model.MAX_INLINE]
    asked = {path.removeprefix("/v2/bb/") for _, path in registry.requests}
    assert asked == {f"manifests/{done.digest}", *(f"blobs/{digest}" for digest in large)}
    assert len(large) == 2, "the first part is small"

    # Releases that know nothing of it have written none; what a manifest says wrongly of itself is refused.
    for entry in (body["config"], body["layers"][0]):
        held = entry.pop("data")
        other = registry.put("bb", json.dumps({**body}).encode(), "application/vnd.oci.image.manifest.v1+json")
        found = pull(f"{registry.host}/bb@{other}", tmp_path / f"out-{len(held)}", cache=Cache(tmp_path / other[-9:]))
        assert found.path.read_bytes() == (tmp_path / "a").read_bytes()
        for wrong in (held[:-8] + "AAAAAAA=", held[:-4], "?", 7, {}):
            entry["data"] = wrong
            other = registry.put("bb", json.dumps(body).encode(), "application/vnd.oci.image.manifest.v1+json")
            with pytest.raises(errors.BadSnapshot):
                pull(f"{registry.host}/bb@{other}", tmp_path / "wrong", cache=elsewhere)
        del entry["data"]


def test_working_sets_of_several_starts_are_one() -> None:
    """In the order of the first; around pages that some have touched and others have not, all are in it."""
    always = [(500, 3, True), (10, 2, False)]
    found = working_set.union([[*always, (200, 1, False)], always, [(12, 1, False), *always]])
    assert found[:3] == [(500, 3, True), (10, 2, False), (200, 1, False)]
    working_set.decode(working_set.encode(found))
    pages = [page for start, count, _ in found for page in range(start, start + count)]
    around = {*range(64), *range(192, 256)}
    assert len(pages) == len(set(pages)) and set(pages) == around | {500, 501, 502}
    assert working_set.union([always]) == working_set.union([always, always]) == always
    assert working_set.union([]) == []
