"""What others make of it: Debian's registry keeps it, skopeo reads and copies it, oras checks and fetches it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from supermachine import errors
from supermachine.artifacts import model
from supermachine.artifacts.pull import pull
from supermachine.artifacts.push import push
from supermachine.artifacts.trust import Keys
from supermachine.cache.store import Cache

from ..real import RealRegistry, run, unavailable
from .conftest import ram, record_working_set, snapshot
from .registry import INDEX, sha256

BUSYBOX = Path(__file__).parents[2] / "demo" / "busybox.oci.tar"


@pytest.fixture
def real(tmp_path: Path) -> Iterator[RealRegistry]:
    server = RealRegistry(tmp_path / "registry")
    yield server
    server.close()


def skopeo(*words: str) -> str:
    return run("skopeo", "--insecure-policy", *words)


def test_debians_registry_keeps_it_and_skopeo_copies_it(
    real: RealRegistry, tmp_path: Path, cache: Cache, elsewhere: Cache, keys: Keys
) -> None:
    real.push(f"oci-archive:{BUSYBOX}", "bb:1")
    image = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{real.host}/bb:1"))["Digest"]
    contents = ram(600)
    id_ = snapshot(tmp_path / "a", contents, image=image)
    record_working_set(cache, id_, [(0, 64, False)])
    keys.generate("ours")
    done = push(tmp_path / "a", f"{real.host}/bb:snap", cache=cache, sign="ours", keys=keys)
    assert done.linked
    contents[:8] = b"changed!"
    snapshot(tmp_path / "b", contents, image=image, created=2)
    second = push(tmp_path / "b", f"{real.host}/bb:second", cache=cache)
    assert second.base == done.digest and second.sent < done.sent / 10

    raw = json.loads(skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{real.host}/bb:snap"))
    assert raw["artifactType"] == model.ARTIFACT_TYPE and raw["subject"]["digest"] == image
    listed = json.loads(
        skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{real.host}/bb:{image.replace(':', '-')}")
    )
    assert [entry["digest"] for entry in listed["manifests"]] == [done.digest, second.digest]

    assert pull(f"{real.host}/bb:snap", cache=elsewhere, keys=keys).signer == "ours"
    found = pull(second.reference, cache=elsewhere)
    assert found.path.read_bytes() == (tmp_path / "b").read_bytes()

    layout = tmp_path / "layout"
    skopeo("copy", "-q", "--src-tls-verify=false", f"docker://{real.host}/bb:snap", f"oci:{layout}:snap")
    index = json.loads((layout / "index.json").read_text())
    assert index["manifests"][0]["digest"] == done.digest
    for blob in (layout / "blobs" / "sha256").iterdir():
        assert sha256(blob.read_bytes()) == f"sha256:{blob.name}"
    skopeo("copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:snap", f"docker://{real.host}/mirror:snap")
    pinned = f"{real.host}/mirror@{done.digest}"
    assert pull(pinned, tmp_path / "mirrored", cache=elsewhere).path.read_bytes() == (tmp_path / "a").read_bytes()


def test_oras_checks_and_fetches_it(real: RealRegistry, tmp_path: Path, cache: Cache, keys: Keys) -> None:
    try:
        from oras.client import OrasClient
    except ImportError:
        unavailable("not installed: oras")
    real.push(f"oci-archive:{BUSYBOX}", "bb:1")
    image = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{real.host}/bb:1"))["Digest"]
    id_ = snapshot(tmp_path / "a", ram(600), image=image)
    record_working_set(cache, id_, [(0, 64, False)])
    keys.generate("ours")
    done = push(tmp_path / "a", f"{real.host}/bb:snap", cache=cache, sign="ours", keys=keys)

    client = OrasClient(hostname=real.host, insecure=True, tls_verify=False)
    assert {"1", "snap"} <= set(client.get_tags(f"{real.host}/bb"))
    # What stands in for referrers: the image's, and the snapshot's, which is its signature.
    listed = client.get_manifest(f"{real.host}/bb:{image.replace(':', '-')}", [INDEX], {})
    assert [entry["digest"] for entry in listed["manifests"]] == [done.digest]
    signed = client.get_manifest(f"{real.host}/bb:{done.digest.replace(':', '-')}", [INDEX], {})
    [signature] = signed["manifests"]
    for name, kind in (("snap", model.ARTIFACT_TYPE), (done.digest, model.ARTIFACT_TYPE), (signature["digest"], None)):
        reference = f"{real.host}/bb{'@' if name.startswith('sha256:') else ':'}{name}"
        # Held against the schema of a manifest that oras has.
        manifest = client.get_manifest(reference)
        assert manifest["artifactType"] == (kind or model.SIGNATURE_TYPE)
        out = tmp_path / name.replace(":", "-")
        files = client.pull(reference, outdir=str(out))
        assert len(files) == len(manifest["layers"])
        for file, layer in zip(map(Path, files), manifest["layers"], strict=True):
            assert (sha256(file.read_bytes()), file.stat().st_size) == (layer["digest"], layer["size"])
        client.download_blob(reference, manifest["config"]["digest"], str(out / "config"))
        assert sha256((out / "config").read_bytes()) == manifest["config"]["digest"]


def test_a_login_is_needed_and_used(tmp_path: Path, cache: Cache, elsewhere: Cache, monkeypatch) -> None:
    snapshot(tmp_path / "a", ram(50))
    server = RealRegistry(tmp_path / "closed", password=True)
    try:
        with pytest.raises(errors.RegistryUnauthorized):
            push(tmp_path / "a", f"{server.host}/bb:snap", cache=cache)
        config = {"auths": {server.host: {"auth": base64.b64encode(b"user:secret").decode()}}}
        (tmp_path / "docker").mkdir()
        (tmp_path / "docker" / "config.json").write_text(json.dumps(config))
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
        done = push(tmp_path / "a", f"{server.host}/bb:snap", cache=cache)
        assert pull(done.reference, cache=elsewhere).path.read_bytes() == (tmp_path / "a").read_bytes()
    finally:
        server.close()
