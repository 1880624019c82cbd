"""Pulling from a registry that behaves, and from one that does not."""

from __future__ import annotations

import base64
import json
import urllib.parse
from pathlib import Path

import pytest
from supermachine import errors
from supermachine.cache.store import Cache
from supermachine.images import resolve
from supermachine.images.progress import ProgressEvent
from supermachine.oci.model import OCI_INDEX
from supermachine.oci.transport import Limits, Transport

from ..real import free_port
from .conftest import (
    Answer,
    FakeRegistry,
    RecordingConverter,
    Request,
    auth_entry,
    docker_config,
    make_image,
    make_index,
    sha256,
    tar_of,
)


def residue(cache: Cache) -> list[Path]:
    return [p for d in ("tmp", "rootfs", "images", "references") for p in (cache.directory / d).glob("*")]


def test_pull_and_use_of_the_cache(registry, cache, recorder, pull) -> None:
    files = [{"a": b"1"}, {"b": b"2" * 100_000}]
    registry.add(make_image(*files, config={"Entrypoint": ["/e"], "Env": ["A=1"], "WorkingDir": "/w", "User": "u"}))
    events: list[ProgressEvent] = []
    image = pull(progress=events.append)
    assert image.rootfs.read_bytes() == b"".join(map(tar_of, files))
    assert image.digest == registry.tags["latest"]
    assert (image.config.entrypoint, image.config.env, image.config.working_dir) == (("/e",), ("A=1",), "/w")
    assert image.config.environment == {"A": "1"}
    assert str(image.platform) == "linux/arm64"
    assert {e.phase for e in events} == {"resolve", "download", "convert", "done"}
    assert all(e.done <= e.total for e in events)
    assert not list((cache.directory / "blobs").glob("*/*"))

    asked = len(registry.requests)
    assert pull().rootfs == image.rootfs
    assert pull(pull="never") == image
    assert len(registry.requests) == asked
    pull(pull="always")
    assert len(registry.requests) > asked
    assert len(recorder.calls) == 1
    assert pull(f"app@{image.digest}").digest == image.digest


def test_a_moved_tag(registry, pull) -> None:
    registry.add(make_image({"a": b"old"}))
    old = pull()
    registry.add(make_image({"a": b"new"}))
    assert pull().digest == old.digest
    assert pull(pull="always").digest != old.digest


def test_modes(registry, cache, pull) -> None:
    registry.add(make_image())
    pull()
    for path in [cache.directory, *cache.directory.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_never(pull, registry) -> None:
    with pytest.raises(FileNotFoundError, match="not in the cache"):
        pull(pull="never")
    assert not registry.requests


def test_index(registry, pull) -> None:
    arm, amd = make_image({"a": b"arm"}), make_image({"a": b"amd"}, architecture="amd64")
    for image in (arm, amd):
        registry.blobs |= image.blobs
    registry.add_index(
        make_index(
            amd.descriptor(platform={"os": "linux", "architecture": "amd64"}),
            arm.descriptor(platform={"os": "linux", "architecture": "arm64", "variant": "v8"}),
            amd.descriptor(platform={"os": "unknown", "architecture": "unknown"}),
        )
    )
    assert pull().digest == arm.digest
    assert pull(platform="linux/amd64").digest == amd.digest
    assert pull(platform="linux/arm64/v8").digest == arm.digest
    with pytest.raises(errors.PlatformNotFound, match=r"nothing for linux/riscv64: it has linux/amd64, linux/arm64$"):
        pull(platform="linux/riscv64")


def test_index_without_platforms(registry, pull) -> None:
    arm, amd = make_image({"a": b"arm"}), make_image({"a": b"amd"}, architecture="amd64")
    for image in (arm, amd):
        registry.blobs |= image.blobs
    registry.add_index(make_index(amd.descriptor(), arm.descriptor()))
    assert pull().digest == arm.digest
    with pytest.raises(LookupError, match="it has linux/amd64, linux/arm64"):
        pull(platform="linux/s390x")


def test_single_image_of_another_platform(registry, pull, cache) -> None:
    registry.add(make_image(architecture="amd64"))
    with pytest.raises(errors.PlatformNotFound, match="it has linux/amd64"):
        pull()
    assert not residue(cache)


@pytest.mark.parametrize(
    ("status", "error", "attempts"),
    [
        (401, errors.RegistryUnauthorized, 1),
        (403, errors.RegistryUnauthorized, 1),
        (404, errors.ImageNotFound, 1),
        (500, errors.RegistryError, 3),
        (503, errors.RegistryError, 3),
        (429, errors.RegistryRateLimited, 3),
        (418, errors.RegistryError, 1),
    ],
)
@pytest.mark.parametrize("where", ["/manifests/", "/blobs/"])
def test_statuses(registry, pull, cache, where, status, error, attempts) -> None:
    registry.add(make_image())
    body = json.dumps({"errors": [{"code": "CODE", "message": "the reason\x1b[31m"}]}).encode()
    registry.on(where, *[Answer(status, body)] * 10)
    with pytest.raises(error) as caught:
        pull()
    assert type(caught.value).__mro__.index(error) <= 1
    assert len([p for p in registry.paths() if where in p]) == attempts
    if status != 429:
        assert f"HTTP {status}: CODE: the reason?[31m" in str(caught.value.cause)
    assert not residue(cache)


def test_transient_failures_are_repeated(registry, pull, client) -> None:
    registry.add(make_image())
    registry.on("/manifests/", Answer(503), Answer(429, headers={"Retry-After": "7"}))
    registry.on("/blobs/", Answer(500))
    pull()
    assert 7.0 in client.slept


def test_retry_after_that_is_too_long(registry, pull, client) -> None:
    registry.add(make_image())
    registry.on("/manifests/", Answer(429, headers={"Retry-After": "100000"}))
    with pytest.raises(errors.RegistryRateLimited) as caught:
        pull()
    assert "100000" in str(caught.value.cause)
    assert not client.slept


@pytest.mark.parametrize("where", ["/manifests/", "/blobs/"])
def test_hang(registry, pull, cache, where) -> None:
    registry.add(make_image())
    registry.on(where, *[Answer(hang=True)] * 10)
    with pytest.raises(TimeoutError, match="did not answer within") as caught:
        pull()
    assert isinstance(caught.value, errors.RegistryTimeout)
    assert not residue(cache)


def test_cut_download_is_resumed(registry, pull, client) -> None:
    image = make_image({"big": bytes(range(256)) * 4096, "more": b"x" * 5000})
    layer = image.layers[0]
    registry.add(image)
    data = registry.blobs[layer]
    half = len(data) // 2
    registry.on(layer, Answer(200, data, cut=half))
    pull()
    ranges = [r.headers.get("Range") for r in registry.requests if layer in r.path]
    assert ranges[0] is None
    assert ranges[1] == f"bytes={half}-"
    assert len(ranges) == 2


@pytest.mark.parametrize("kind", ["ignored", "416", "wrong"])
def test_registry_that_does_not_resume(registry, pull, kind) -> None:
    image = make_image({"big": bytes(range(256)) * 4096})
    layer = image.layers[0]
    registry.add(image)
    data = registry.blobs[layer]
    second = {
        "ignored": Answer(200, data),
        "416": Answer(416),
        "wrong": Answer(206, data[3:], {"Content-Range": f"bytes 3-{len(data)}/{len(data)}"}),
    }[kind]
    registry.on(layer, Answer(200, data, cut=len(data) // 2), second)
    assert pull().rootfs.exists()


def test_endless_cutting_ends(registry, pull, cache) -> None:
    image = make_image({"big": b"x" * 100})
    registry.add(image)
    data = registry.blobs[image.layers[0]]
    registry.on(image.layers[0], *[Answer(200, data, cut=0)] * 50)
    with pytest.raises(errors.RegistryError):
        pull()
    assert not residue(cache)


@pytest.mark.parametrize("change", [lambda d: d[:-1] + b"!", lambda d: d + b"more", lambda d: b"\0" * len(d)])
def test_wrong_blob(registry, pull, cache, change) -> None:
    image = make_image()
    registry.add(image)
    registry.blobs[image.layers[0]] = change(registry.blobs[image.layers[0]])
    with pytest.raises(errors.DigestMismatch):
        pull()
    assert not residue(cache)
    assert not list((cache.directory / "blobs").glob("*/*"))


def test_wrong_manifest_and_config(registry, pull) -> None:
    image = make_image()
    registry.add(image)
    registry.blobs[image.digest] += b" "
    with pytest.raises(errors.DigestMismatch):
        pull(f"app@{image.digest}")
    registry.add(image)
    config = json.loads(image.manifest)["config"]["digest"]
    registry.blobs[config] = b"x" + registry.blobs[config][1:]
    with pytest.raises(errors.DigestMismatch):
        pull()


def test_huge_manifest(registry, pull) -> None:
    registry.add_index(b" " * (5 << 20))
    with pytest.raises(errors.ImageTooLarge):
        pull()


def test_huge_image(registry, pull) -> None:
    registry.add(make_image())
    with pytest.raises(errors.ImageTooLarge, match="10 is the limit"):
        pull(max_bytes=10)


def tokens(registry: FakeRegistry, expected: str | None = None, lifetime: int = 300) -> list[Request]:
    """Makes the registry want a token from its own token service; gives the requests that reach that."""
    seen: list[Request] = []

    def script(request: Request) -> Answer | None:
        if request.path.startswith("/token"):
            seen.append(request)
            if expected is not None and request.headers.get("Authorization") != expected:
                return Answer(401)
            return Answer(200, json.dumps({"token": f"t{len(seen)}", "expires_in": lifetime}).encode())
        if not request.headers.get("Authorization", "").startswith("Bearer t"):
            challenge = f'Bearer realm="http://{registry.host}/token",service="s",scope="repository:app:pull"'
            return Answer(401, headers={"WWW-Authenticate": challenge})
        return None

    registry.scripts.append(script)
    return seen


def test_anonymous_token(registry, pull) -> None:
    registry.add(make_image({"a": b"1"}, {"b": b"2"}))
    seen = tokens(registry)
    pull()
    assert len(seen) == 1
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(seen[0].path).query)
    assert query == {"service": ["s"], "scope": ["repository:app:pull"]}


def test_token_with_password(registry, pull, tmp_path, monkeypatch) -> None:
    registry.add(make_image())
    expected = "Basic " + base64.b64encode(b"user:pass:word").decode()
    seen = tokens(registry, expected)
    with pytest.raises(errors.RegistryUnauthorized, match="anonymous"):
        pull()
    docker_config(tmp_path, {"auths": {registry.host: auth_entry("user", "pass:word")}}, monkeypatch)
    pull()
    assert "account=user" in seen[-1].path


def test_identity_token(registry, pull, tmp_path, monkeypatch) -> None:
    registry.add(make_image())
    seen = tokens(registry)
    docker_config(tmp_path, {"auths": {registry.host: {"identitytoken": "id"}}}, monkeypatch)
    pull()
    assert seen[0].method == "POST"
    fields = urllib.parse.parse_qs(seen[0].body.decode())
    assert fields["grant_type"] == ["refresh_token"]
    assert fields["refresh_token"] == ["id"]


def test_refused_token_is_not_asked_for_without_end(registry, pull) -> None:
    registry.add(make_image())
    challenge = f'Bearer realm="http://{registry.host}/token",service="s"'
    registry.on("/token", *[Answer(200, b'{"token": "t"}')] * 50)
    registry.on("/v2/", *[Answer(401, headers={"WWW-Authenticate": challenge})] * 50)
    with pytest.raises(errors.RegistryUnauthorized):
        pull()
    assert len(registry.requests) < 8


@pytest.mark.parametrize("realm", ["", "file:///etc/passwd", "http://token.example/x", "//x"])
def test_bad_realm(registry, pull, realm) -> None:
    registry.on("/v2/", *[Answer(401, headers={"WWW-Authenticate": f'Bearer realm="{realm}"'})] * 5)
    with pytest.raises(errors.RegistryError, match="token service"):
        pull()


def test_redirects_keep_credentials_to_themselves(registry, second_host, pull, tmp_path, monkeypatch) -> None:
    image = make_image()
    registry.add(image)
    second_host.blobs |= image.blobs
    tokens(registry)
    layer = image.layers[0]

    def redirect(request: Request) -> Answer | None:
        if "Authorization" not in request.headers:
            return None
        return Answer(307, headers={"Location": f"http://{second_host.host}/v2/x/blobs/{layer}?signature=s"})

    registry.scripts.append(lambda r: redirect(r) if layer in r.path else None)
    pull()
    assert len(second_host.requests) == 1
    assert "Authorization" not in second_host.requests[0].headers


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://x/y", "/v2/blobs/loop"])
def test_bad_redirects(registry, pull, location) -> None:
    registry.add(make_image())
    registry.on("/blobs/", *[Answer(302, headers={"Location": location})] * 100)
    with pytest.raises(errors.RegistryError, match="redirects"):
        pull()


def test_foreign_layer_urls_are_not_followed(registry, second_host, pull) -> None:
    image = make_image()
    manifest = json.loads(image.manifest)
    manifest["layers"][0]["urls"] = [f"http://{second_host.host}/layer"]
    data = json.dumps(manifest).encode()
    del image.blobs[image.layers[0]]
    registry.blobs |= image.blobs
    registry.add_index(data, media_type="application/vnd.oci.image.manifest.v1+json")
    with pytest.raises(errors.ImageNotFound):
        pull()
    assert not second_host.requests


def test_proxy(registry, cache, converter, monkeypatch) -> None:
    """The proxy gets the request for a host that does not exist otherwise; loopback goes around it."""
    image = make_image()
    registry.add(image)
    monkeypatch.setenv("HTTP_PROXY", f"http://{registry.host}")
    monkeypatch.setenv("HTTPS_PROXY", f"http://{registry.host}")
    registry.scripts.append(lambda r: Answer(502) if r.method == "CONNECT" else None)
    transport = Transport(insecure=True, limits=Limits(connect=5, read=5, attempts=1), sleep=lambda _: None)
    resolve("registry.invalid/app", cache=cache, converter=converter, transport=transport)
    assert "registry.invalid:443" in registry.paths()
    assert any(p.startswith("http://registry.invalid/v2/app/") for p in registry.paths())
    monkeypatch.setenv("NO_PROXY", "registry.invalid")
    asked = len(registry.requests)
    with pytest.raises(errors.RegistryError):
        resolve("registry.invalid/other", cache=cache, converter=converter, transport=transport)
    assert len(registry.requests) == asked


def test_plain_http_only_when_asked_for(monkeypatch) -> None:
    assert not Transport().lenient("registry.invalid")
    assert Transport().lenient("localhost:5000")
    assert Transport().lenient("[::1]:5000")
    assert Transport(insecure=True, registry="registry.invalid").lenient("registry.invalid")
    monkeypatch.setenv("SUPERMACHINE_INSECURE_REGISTRIES", "a.invalid:5000, registry.invalid")
    assert Transport().lenient("a.invalid:5000")
    assert not Transport().lenient("a.invalid")
    assert Transport().lenient("registry.invalid:1")


def test_nobody_there(pull, registry) -> None:
    registry.host = f"127.0.0.1:{free_port()}"
    with pytest.raises(ConnectionError, match="cannot be reached"):
        pull()


MANIFESTS = [
    (b"", errors.InvalidImage),
    (b"[]", errors.InvalidImage),
    (b"[" * 100_000, errors.InvalidImage),
    (b"{}", errors.UnsupportedMediaType),
    (b'{"schemaVersion": 1, "layers": []}', errors.UnsupportedMediaType),
    (b'{"schemaVersion": 2, "layers": [], "manifests": []}', errors.InvalidImage),
    (b'{"schemaVersion": 2, "layers": {}}', errors.InvalidImage),
    (b'{"schemaVersion": 2, "mediaType": "text/x", "layers": []}', errors.UnsupportedMediaType),
    (b'{"schemaVersion": 2, "layers": [], "config": {"digest": "sha256:1", "size": 1}}', errors.InvalidImage),
    (
        b'{"schemaVersion": 2, "layers": [], "config": {"mediaType": "application/vnd.cncf.helm.config.v1+json", '
        b'"size": 1, "digest": "sha256:' + b"0" * 64 + b'"}}',
        errors.UnsupportedMediaType,
    ),
    (b'{"schemaVersion": 2, "manifests": [{"digest": 5}]}', errors.InvalidImage),
    (b'{"schemaVersion": 2, "manifests": []}', errors.PlatformNotFound),
]


@pytest.mark.parametrize(("data", "error"), MANIFESTS)
def test_odd_manifests(registry, pull, data, error) -> None:
    registry.add_index(data, media_type="application/octet-stream")
    with pytest.raises(error):
        pull()


def test_unknown_layer_type(registry, pull) -> None:
    registry.add(make_image(layer_type="application/vnd.oci.image.layer.v1.tar+gzip+encrypted"))
    with pytest.raises(errors.UnsupportedMediaType, match=r"layer 0 .*encrypted") as caught:
        pull()
    assert "decrypted" in str(caught.value.hint)


def test_index_that_contains_itself_in_depth(registry, pull) -> None:
    data = make_index(make_image().descriptor(platform={"os": "linux", "architecture": "arm64"}))
    for _ in range(8):
        registry.blobs[sha256(data)] = data
        entry = {"mediaType": OCI_INDEX, "digest": sha256(data), "size": len(data)}
        data = make_index(entry)
    registry.add_index(data)
    with pytest.raises(errors.InvalidImage, match="nested"):
        pull()


def test_layers_shared_by_two_images_and_kept_blobs(registry, pull, cache, monkeypatch) -> None:
    monkeypatch.setenv("SUPERMACHINE_KEEP_BLOBS", "1")
    shared = {"base": b"b" * 1000}
    one, two = make_image(shared, {"x": b"1"}), make_image(shared, {"x": b"2"})
    registry.add(one, "1")
    registry.add(two, "2")
    pull("app:1")
    pull("app:2")
    assert len([p for p in registry.paths() if one.layers[0] in p]) == 1
    assert len(list((cache.directory / "blobs").glob("*/*"))) == 3
    assert cache.prune() > 0
    assert not list((cache.directory / "blobs").glob("*/*"))
    assert len(cache.images()) == 2


def test_recorder_sees_regions(registry, pull, recorder: RecordingConverter) -> None:
    image = make_image({"a": b"1"}, {"b": b"2"})
    registry.add(image)
    pull()
    assert [layer[3] for layer in recorder.calls[0]] == image.layers


def test_a_mirror_is_asked_first_and_the_registry_where_that_fails(
    registry, second_host, pull, monkeypatch, capfd
) -> None:
    registry.add(make_image({"a": b"own"}))
    second_host.add(make_image({"a": b"own"}))
    monkeypatch.setenv("SUPERMACHINE_REGISTRY_MIRRORS", f"h.x=127.0.0.1:1, {registry.host}={second_host.host}/deep/er")
    image = pull()
    assert not registry.requests
    assert all(path.startswith("/v2/deep/er/app/") for path in second_host.paths())
    assert image.reference == f"{registry.host}/app:latest"
    assert pull(pull="never") == image

    second_host.on("manifests", *[Answer(404)] * 3)
    registry.add(make_image({"a": b"new"}))
    assert pull(pull="always").digest == registry.tags["latest"]
    assert registry.requests
    assert f"the mirror {second_host.host} was of no use for" in capfd.readouterr().err


@pytest.mark.parametrize("mirrors", ["docker.io", "=mirror.example", "{}=", "{}=nowhere", "{}=h.x/UPPER"])
def test_mirrors_that_are_none(registry, pull, monkeypatch, mirrors: str) -> None:
    monkeypatch.setenv("SUPERMACHINE_REGISTRY_MIRRORS", mirrors.replace("{}", registry.host))
    with pytest.raises(errors.ConfigurationError, match="SUPERMACHINE_REGISTRY_MIRRORS"):
        pull()
