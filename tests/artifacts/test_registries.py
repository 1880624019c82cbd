"""A registry that is slow, breaks off, ignores ranges or lies: slower, or a typed error, never a wrong byte."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from supermachine import errors
from supermachine.artifacts import download, model
from supermachine.artifacts.pull import Pulled, pull
from supermachine.artifacts.push import Pushed, push
from supermachine.cache.store import Cache
from supermachine.oci.transport import Transport

from .conftest import PAGE, left_behind, ram, record_working_set, snapshot
from .registry import Registry, sha256

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@pytest.fixture
def pushed(registry: Registry, tmp_path: Path, cache: Cache) -> Pushed:
    """Some three megabytes in the registry, in several groups of frames; each blob is to be asked for."""
    id_ = snapshot(tmp_path / "a", ram(2000, used=0.8))
    record_working_set(cache, id_, [(5, 100, False)])
    made = push(tmp_path / "a", f"{registry.host}/bb:snap", cache=cache)
    body = json.loads(registry.manifests["bb", made.digest][1])
    for entry in (body["config"], *body["layers"]):
        entry.pop("data", None)
    digest = registry.put("bb", json.dumps(body).encode(), MANIFEST)
    return dataclasses.replace(made, reference=f"{registry.host}/bb@{digest}", digest=digest)


def blobs(registry: Registry, pushed: Pushed) -> dict[str, str]:
    """Digest to media type, the configuration's too."""
    body = json.loads(registry.manifests["bb", pushed.digest][1])
    return {entry["digest"]: entry["mediaType"] for entry in [body["config"], *body["layers"]]}


def again(pushed: Pushed, cache: Cache, transport: Transport) -> Pulled:
    return pull(pushed.reference, cache=cache, transport=transport)


@pytest.mark.parametrize("ranges", ["honour", "ignore"])
# One piece may meet all of these, and gives up at the fifth.
@pytest.mark.parametrize("cuts", [0, 4])
def test_breaks_and_ignored_ranges_only_cost_time(
    registry: Registry, pushed: Pushed, tmp_path: Path, elsewhere: Cache, transport: Transport, ranges: str, cuts: int
) -> None:
    registry.ranges, registry.cut, registry.cuts = ranges, 300_000, cuts
    found = again(pushed, elsewhere, transport)
    assert found.path.read_bytes() == (tmp_path / "a").read_bytes()
    assert registry.cuts == 0


def test_pieces_come_at_once_and_slowly(
    registry: Registry, pushed: Pushed, tmp_path: Path, elsewhere: Cache, transport: Transport
) -> None:
    registry.delay, registry.rate = 0.02, 40e6
    before = len(registry.requests)
    found = again(pushed, elsewhere, transport)
    assert found.path.read_bytes() == (tmp_path / "a").read_bytes()
    assert len(registry.requests) - before > 4, "the largest blob came in pieces"
    assert sum(registry.sent.values()) < pushed.size * 1.02 + 10_000, "nothing came twice"


@pytest.mark.parametrize("ranges", ["refuse", "wrong"])
def test_bad_answers_to_ranges_are_errors(
    registry: Registry, pushed: Pushed, elsewhere: Cache, transport: Transport, ranges: str
) -> None:
    registry.ranges = ranges
    with pytest.raises(errors.RegistryError, match="does not give the bytes"):
        again(pushed, elsewhere, transport)
    assert not left_behind(elsewhere.directory)


def test_every_changed_blob_is_found(
    registry: Registry, pushed: Pushed, elsewhere: Cache, transport: Transport
) -> None:
    for digest in blobs(registry, pushed):
        size = len(registry.blobs["bb", digest])
        for at in {0, 1, size // 3, size // 2, size - 1}:
            registry.change = (
                lambda name, data, d=digest, at=at: (  # type: ignore[misc]
                    data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :] if name == d else data
                )
            )
            with pytest.raises(errors.DigestMismatch):
                again(pushed, elsewhere, transport)
    assert not left_behind(elsewhere.directory)
    assert not list((elsewhere.directory / "artifacts").glob("*/snapshot"))


def test_blobs_that_end_early_go_on_or_are_gone(
    registry: Registry, pushed: Pushed, elsewhere: Cache, transport: Transport
) -> None:
    largest = max(blobs(registry, pushed), key=lambda name: len(registry.blobs["bb", name]))
    for change, expected in (
        (lambda data: data[: len(data) // 2], (errors.RegistryError, errors.DigestMismatch)),
        (lambda data: data[:0], (errors.RegistryError, errors.DigestMismatch)),
        (lambda data: data[1:] + b"x", errors.DigestMismatch),
    ):
        registry.change = lambda name, data, change=change: change(data) if name == largest else data  # type: ignore[misc]
        with pytest.raises(expected):
            again(pushed, elsewhere, transport)
    del registry.blobs["bb", largest]
    with pytest.raises(errors.ImageNotFound):
        again(pushed, elsewhere, transport)
    assert not left_behind(elsewhere.directory)


def test_a_frame_that_is_wrong_once_is_asked_for_again(
    registry: Registry, pushed: Pushed, tmp_path: Path, elsewhere: Cache, transport: Transport
) -> None:
    largest = max(blobs(registry, pushed), key=lambda name: len(registry.blobs["bb", name]))
    lies = [1]

    def change(name: str, data: bytes) -> bytes:
        return bytes(len(data)) if name == largest and lies and lies.pop() else data

    registry.change = change
    assert again(pushed, elsewhere, transport).path.read_bytes() == (tmp_path / "a").read_bytes()
    assert not lies


def replaced(
    registry: Registry, pushed: Pushed, config: dict[str, object], inline: bool = False, **extra: object
) -> str:
    """A manifest whose author signs whatever it says, with the configuration in it or not; gives its digest."""
    data = json.dumps(config).encode()
    registry.blobs["bb", sha256(data)] = data
    body = json.loads(registry.manifests["bb", pushed.digest][1])
    body["config"] |= {"digest": sha256(data), "size": len(data)}
    if inline:
        body["config"]["data"] = base64.b64encode(data).decode()
    return registry.put("bb", json.dumps({**body, **extra}).encode(), MANIFEST)


def test_configurations_that_lie_are_refused(
    registry: Registry, pushed: Pushed, elsewhere: Cache, transport: Transport
) -> None:
    body = json.loads(registry.manifests["bb", pushed.digest][1])
    good = json.loads(registry.blobs["bb", body["config"]["digest"]])
    table = base64.b64decode(good["table"])
    said = good["snapshot"]
    lies: list[dict[str, object]] = [
        {**good, "version": 3},
        {**good, "table": base64.b64encode(table[:-1]).decode()},
        {**good, "table": base64.b64encode(table + b"\0").decode()},
        {**good, "table": "not base64"},
        {**good, "table": ""},
        {**good, "snapshot": {**said, "id": "0" * 64}},
        {**good, "snapshot": {**said, "memory": said["memory"] * 2}},
        {**good, "snapshot": {**said, "engine": "kvm"}},
        {**good, "snapshot": {**said, "image": sha256(b"another")}},
        {**good, "snapshot": {**said, "parent": "1" * 64}},
        {**good, "base": {"manifest": sha256(b"none"), "id": "1" * 64}},
        {**good, "base": {"manifest": pushed.digest, "id": "1" * 64}},
        {name: value for name, value in good.items() if name != "key"},
    ]
    for lie, inline in itertools.product(lies, (False, True)):
        digest = replaced(registry, pushed, lie, inline)
        with pytest.raises((errors.BadSnapshot, errors.ImageNotFound)):
            pull(f"{registry.host}/bb@{digest}", cache=elsewhere, transport=transport)
    digest = replaced(registry, pushed, good, layers=body["layers"][:1])
    with pytest.raises(errors.BadSnapshot, match="no blob"):
        pull(f"{registry.host}/bb@{digest}", cache=elsewhere, transport=transport)
    assert not left_behind(elsewhere.directory)


def test_snapshots_that_build_on_each_other_without_end_are_refused(
    registry: Registry, pushed: Pushed, elsewhere: Cache, transport: Transport
) -> None:
    body = json.loads(registry.manifests["bb", pushed.digest][1])
    good = json.loads(registry.blobs["bb", body["config"]["digest"]])
    last = pushed.digest
    for _ in range(70):
        last = replaced(registry, pushed, {**good, "base": {"manifest": last, "id": "1" * 64}})
    with pytest.raises(errors.BadSnapshot, match="more than"):
        pull(f"{registry.host}/bb@{last}", cache=elsewhere, transport=transport)


def test_declared_lengths_bound_what_is_kept(
    registry: Registry, pushed: Pushed, tmp_path: Path, elsewhere: Cache, transport: Transport
) -> None:
    body = json.loads(registry.manifests["bb", pushed.digest][1])
    huge = {**body, "config": {**body["config"], "size": model.MAX_CONFIG + 1}}
    digest = registry.put("bb", json.dumps(huge).encode(), MANIFEST)
    with pytest.raises(errors.BadSnapshot, match="is the limit"):
        pull(f"{registry.host}/bb@{digest}", cache=elsewhere, transport=transport)
    # An endless answer: of the configuration it is an error, of a part no more is taken than was asked for.
    registry.ranges = "ignore"
    longer = body["config"]["digest"]
    registry.change = lambda name, data: data + bytes(100 << 20) if name == longer else data
    with pytest.raises(errors.DigestMismatch, match="longer"):
        again(pushed, elsewhere, transport)
    longer = body["layers"][0]["digest"]
    assert again(pushed, elsewhere, transport).path.read_bytes() == (tmp_path / "a").read_bytes()
    assert registry.sent[longer] < 50 << 20


def test_a_registry_that_says_nothing_is_a_timeout(
    registry: Registry, pushed: Pushed, elsewhere: Cache, transport: Transport
) -> None:
    from supermachine.oci.transport import Limits

    registry.delay = 3
    hurried = Transport(limits=Limits(connect=1, read=0.3, attempts=2, backoff=0.01))
    with pytest.raises(errors.RegistryTimeout):
        again(pushed, elsewhere, hurried)


def test_a_pull_that_is_killed_leaves_nothing(
    registry: Registry, pushed: Pushed, tmp_path: Path, elsewhere: Cache, transport: Transport
) -> None:
    registry.rate = 1e6
    script = (
        "import sys, pathlib; from supermachine.artifacts.pull import pull\n"
        "pull(sys.argv[1], *map(pathlib.Path, sys.argv[2:]))"
    )
    environment = {**os.environ, "SUPERMACHINE_CACHE": str(elsewhere.directory)}
    for output in ([], [str(tmp_path / "out")]):
        before = sum(registry.sent.values())
        process = subprocess.Popen([sys.executable, "-c", script, pushed.reference, *output], env=environment)
        while sum(registry.sent.values()) < before + 400_000:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not list(elsewhere.directory.glob("artifacts/*/snapshot"))
        assert not (tmp_path / "out").exists()
    registry.rate = 0
    assert again(pushed, elsewhere, transport).path.read_bytes() == (tmp_path / "a").read_bytes()
    pull(pushed.reference, tmp_path / "out", cache=elsewhere, transport=transport)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "a").read_bytes()
    # The next that writes clears up, what was under way in the cache and beside the output.
    elsewhere.remove_stale()
    assert not left_behind(elsewhere.directory) and not left_behind(tmp_path)


def test_groups_are_bounded() -> None:
    assert download._GROUP * download._PARALLEL <= 32 << 20
    assert PAGE * 64 <= download._GROUP
