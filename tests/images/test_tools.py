"""Images as real tools make them: umoci, skopeo, buildah, and a registry that we did not write."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from supermachine import errors
from supermachine.cache.store import Cache
from supermachine.images import resolve
from supermachine.images.resolution import Converter

from ..real import RealRegistry, require, run
from .conftest import RecordingConverter, auth_entry, docker_config, make_index, tar_of


def umoci_layout(root: Path, architecture: str = "arm64", tag: str = "v1") -> Path:
    """Two layers, made by umoci, which writes manifests without media type and entries without platform."""
    require("umoci")
    layout = root / f"layout-{architecture}"
    run("umoci", "init", "--layout", str(layout))
    run("umoci", "new", "--image", f"{layout}:{tag}")
    run(
        "umoci",
        "config",
        "--image",
        f"{layout}:{tag}",
        "--architecture",
        architecture,
        "--os",
        "linux",
        "--config.entrypoint",
        "/bin/app",
        "--config.cmd",
        "x",
        "--config.env",
        "A=b",
        "--config.user",
        "1:2",
        "--config.workingdir",
        "/w",
        "--config.exposedports",
        "80/tcp",
        "--config.volume",
        "/data",
        "--config.label",
        "l=v",
        "--config.stopsignal",
        "SIGINT",
    )
    for number in (1, 2):
        layer = root / f"{architecture}-{number}.tar"
        layer.write_bytes(tar_of({f"file{number}": f"{architecture}{number}".encode() * 1000}))
        run("umoci", "raw", "add-layer", "--image", f"{layout}:{tag}", str(layer))
    return layout


def expected(architecture: str = "arm64") -> bytes:
    return b"".join(tar_of({f"file{n}": f"{architecture}{n}".encode() * 1000}) for n in (1, 2))


def test_umoci_layout(tmp_path: Path, cache: Cache, converter: Converter) -> None:
    layout = umoci_layout(tmp_path)
    manifest = json.loads(run("skopeo", "inspect", "--raw", f"oci:{layout}:v1"))
    assert "mediaType" not in manifest
    for reference in (f"oci:{layout}:v1", f"oci:{layout}", str(layout), f"{layout}:v1", layout):
        image = resolve(reference, cache=cache, converter=converter)
        assert image.rootfs.read_bytes() == expected()
        config = image.config
        assert (config.entrypoint, config.cmd, config.env[-1]) == (("/bin/app",), ("x",), "A=b")
        assert (config.user, config.working_dir, config.stop_signal) == ("1:2", "/w", "SIGINT")
        assert (config.exposed_ports, config.volumes, config.labels) == (("80/tcp",), ("/data",), {"l": "v"})
    with pytest.raises(errors.ImageNotFound, match="it has v1"):
        resolve(f"oci:{layout}:v2", cache=cache, converter=converter)
    with pytest.raises(errors.PlatformNotFound, match="it has linux/arm64"):
        resolve(layout, platform="linux/amd64", cache=cache, converter=converter)


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
@pytest.mark.parametrize("compressed", [False, True])
def test_archives_by_skopeo(
    tmp_path: Path, cache: Cache, converter: Converter, recorder: RecordingConverter, kind: str, compressed: bool
) -> None:
    require("skopeo", "gzip")
    layout = umoci_layout(tmp_path)
    archive = tmp_path / "image.tar"
    run("skopeo", "--insecure-policy", "copy", "-q", f"oci:{layout}:v1", f"{kind}:{archive}:example.com/team/app:v1")
    if compressed:
        run("gzip", str(archive))
        archive = tmp_path / "image.tar.gz"
    for reference in (f"{kind}:{archive}", f"{kind}:{archive}:example.com/team/app:v1", str(archive), archive):
        image = resolve(reference, cache=cache, converter=converter)
        assert image.rootfs.read_bytes() == expected()
        assert image.config.entrypoint == ("/bin/app",)
    assert len(recorder.calls) == 1
    if not compressed:
        assert {layer[0] for layer in recorder.calls[0]} == {str(archive)}
    assert not list((cache.directory / "tmp").iterdir())
    with pytest.raises(FileNotFoundError, match=r"example\.com/team/app:v1"):
        resolve(f"{kind}:{archive}:other", cache=cache, converter=converter)


def test_multi_architecture_in_a_real_registry(
    tmp_path: Path, cache: Cache, converter: Converter, real_registry: RealRegistry
) -> None:
    entries = []
    for architecture in ("amd64", "arm64"):
        real_registry.push(f"oci:{umoci_layout(tmp_path, architecture)}:v1", f"team/app:{architecture}")
        raw = run(
            "skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{real_registry.host}/team/app:{architecture}"
        )
        digest = run(
            "skopeo",
            "inspect",
            "--tls-verify=false",
            "--override-arch",
            architecture,
            "--format",
            "{{.Digest}}",
            f"docker://{real_registry.host}/team/app:{architecture}",
        ).strip()
        entries.append(
            {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "size": len(raw.encode()),
                "digest": digest,
                "platform": {"os": "linux", "architecture": architecture},
            }
        )
    index = make_index(*entries)
    request = urllib.request.Request(
        f"http://{real_registry.host}/v2/team/app/manifests/multi",
        data=index,
        method="PUT",
        headers={"Content-Type": "application/vnd.oci.image.index.v1+json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    assert opener.open(request, timeout=30).status == 201

    name = f"{real_registry.host}/team/app:multi"
    for architecture, entry in zip(("amd64", "arm64"), entries, strict=True):
        image = resolve(name, platform=f"linux/{architecture}", cache=cache, converter=converter)
        assert image.rootfs.read_bytes() == expected(architecture)
        assert image.digest == entry["digest"]
    with pytest.raises(errors.PlatformNotFound, match=r"linux/amd64, linux/arm64$"):
        resolve(name, platform="linux/s390x", cache=cache, converter=converter)
    with pytest.raises(errors.ImageNotFound, match="has no"):
        resolve(f"{real_registry.host}/team/app:none", cache=cache, converter=converter)
    assert len(cache.images()) == 2


def test_password(
    tmp_path: Path, cache: Cache, converter: Converter, private_registry: RealRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    private_registry.push(f"oci:{umoci_layout(tmp_path)}:v1", "app:v1", "--dest-creds=user:secret")
    name = f"{private_registry.host}/app:v1"
    with pytest.raises(PermissionError) as caught:
        resolve(name, cache=cache, converter=converter)
    assert f"supermachine login {private_registry.host}" in str(caught.value.hint)
    docker_config(tmp_path, {"auths": {private_registry.host: auth_entry("user", "wrong")}}, monkeypatch)
    with pytest.raises(errors.RegistryUnauthorized):
        resolve(name, cache=cache, converter=converter)
    docker_config(tmp_path, {"auths": {private_registry.host: auth_entry("user", "secret")}}, monkeypatch)
    assert resolve(name, cache=cache, converter=converter).rootfs.read_bytes() == expected()


def test_buildah_layout(tmp_path: Path, cache: Cache, converter: Converter) -> None:
    require("buildah")
    storage = ["--root", str(tmp_path / "storage"), "--runroot", str(tmp_path / "run"), "--storage-driver", "vfs"]
    probe = subprocess.run(["buildah", *storage, "from", "--arch", "arm64", "scratch"], capture_output=True, text=True)
    if probe.returncode != 0:
        pytest.skip(f"buildah cannot work here: {probe.stderr[-300:]}")
    container = probe.stdout.strip()
    (tmp_path / "hello").write_text("hello")
    run("buildah", *storage, "copy", container, str(tmp_path / "hello"), "/hello")
    run("buildah", *storage, "config", "--arch", "arm64", "--entrypoint", '["/hello"]', container)
    run("buildah", *storage, "commit", "-q", container, f"oci:{tmp_path / 'out'}:tag")
    image = resolve(f"oci:{tmp_path / 'out'}:tag", cache=cache, converter=converter)
    assert image.config.entrypoint == ("/hello",)
    assert b"hello" in image.rootfs.read_bytes()


def _pull(name: str, cache: str, barrier: object, output: object) -> None:
    recorder = RecordingConverter()
    barrier.wait()  # type: ignore[attr-defined]
    image = resolve(name, cache=Cache(cache), converter=Converter("test", recorder.convert))
    output.put((len(recorder.calls), image.rootfs.read_bytes()))  # type: ignore[attr-defined]


def test_concurrent_pulls_do_the_work_once(tmp_path: Path, cache: Cache, real_registry: RealRegistry) -> None:
    real_registry.push(f"oci:{umoci_layout(tmp_path)}:v1", "app:v1")
    context = multiprocessing.get_context("spawn")
    barrier, output = context.Barrier(5), context.Queue()
    arguments = (f"{real_registry.host}/app:v1", str(cache.directory), barrier, output)
    processes = [context.Process(target=_pull, args=arguments) for _ in range(5)]
    for process in processes:
        process.start()
    results = [output.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert sum(calls for calls, _ in results) == 1
    assert {data for _, data in results} == {expected()}


def test_import_is_light() -> None:
    """Neither the HTTP client nor the archive reader comes along before it is needed."""
    code = (
        "import sys, supermachine.images.resolution, supermachine.oci.references\n"
        "print([m for m in ('urllib3', 'tarfile', 'http.client', 'subprocess') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_unusual_directories(tmp_path: Path, cache: Cache, converter: Converter) -> None:
    for reference, error in (
        (tmp_path / "missing", FileNotFoundError),
        (f"oci:{tmp_path}/missing:tag", FileNotFoundError),
        (tmp_path, errors.InvalidReference),
    ):
        with pytest.raises(error):
            resolve(reference, cache=cache, converter=converter)
