"""Guests from everywhere that images come from, packed and carried by the tools that people use."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import supermachine
from supermachine import VM

from ..real import RealRegistry, require, run
from .conftest import BUSYBOX, packages, umoci_layout

pytestmark = pytest.mark.vm

#: Debian's nodejs, of which amd64 and arm64 say the same but for the name of the architecture.
NODE = "nodejs,base-files"
PROGRAM = Path(__file__).parent / "runtime.js"
EXPECTED = Path(__file__).parent / "runtime.json"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRegistry]:
    server = RealRegistry(tmp_path_factory.mktemp("sources") / "registry")
    yield server
    server.close()


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """busybox in an OCI layout as skopeo writes it, with a layer of umoci's."""
    require("skopeo", "umoci")
    place = tmp_path_factory.mktemp("layout")
    oci = place / "oci"
    run("skopeo", "--insecure-policy", "copy", "-q", f"oci-archive:{BUSYBOX}", f"oci:{oci}:v1")
    (place / "layer" / "etc").mkdir(parents=True)
    (place / "layer" / "etc" / "origin").write_text("umoci\n")
    run("umoci", "insert", "--image", f"{oci}:v1", place / "layer" / "etc" / "origin", "/etc/origin")
    run("umoci", "config", "--image", f"{oci}:v1", "--config.entrypoint", "cat", "--config.cmd", "/etc/origin")
    return oci


def output(reference: str | Path) -> str:
    """What the image's own command says."""
    return str(supermachine.run(reference, text=True, check=True).stdout)


def test_a_layout_by_umoci(layout: Path) -> None:
    assert output(f"oci:{layout}:v1") == "umoci\n"


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_archives(layout: Path, tmp_path: Path, kind: str) -> None:
    """A `docker save` tar, and the OCI one."""
    archive = tmp_path / "image.tar"
    run("skopeo", "--insecure-policy", "copy", "-q", f"oci:{layout}:v1", f"{kind}:{archive}:example.com/app:v1")
    assert output(archive) == "umoci\n"
    run("gzip", archive)
    assert output(f"{kind}:{archive}.gz:example.com/app:v1") == "umoci\n"


@pytest.mark.parametrize(
    ("suffix", "command"),
    [
        ("tar.gz", ["gzip", "-c"]),
        ("tgz", ["gzip", "-c"]),
        ("tar.xz", ["xz", "-c"]),
        ("txz", ["xz", "-c"]),
        ("tar.bz2", ["bzip2", "-c"]),
        ("tbz2", ["bzip2", "-c"]),
        ("tar.zst", ["zstd", "-q", "-c"]),
        ("tzst", ["zstd", "-q", "-c", "--ultra", "-22", "--long=31"]),
    ],
)
def test_an_archive_is_known_by_its_name_however_it_is_compressed(
    busybox: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    require(command[0])
    Path(f"image.{suffix}").write_bytes(subprocess.run([*command, busybox], stdout=subprocess.PIPE, check=True).stdout)
    assert supermachine.run(f"image.{suffix}", ["echo", "hi"], text=True, check=True).stdout == "hi\n"


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_multi_architecture_index_in_a_registry(
    layout: Path, registry: RealRegistry, tmp_path: Path, compression: str
) -> None:
    """An image for each of two architectures, pushed as one by skopeo, which compresses anew what is not so yet."""
    foreign = tmp_path / "foreign"
    shutil.copytree(layout, foreign)
    run("umoci", "config", "--image", f"{foreign}:v1", "--architecture", "amd64", "--config.cmd", "/etc/passwd")
    entries = []
    for architecture, source in (("amd64", foreign), ("arm64", layout)):
        (entry,) = json.loads((source / "index.json").read_text())["manifests"]
        entries.append({**entry, "annotations": {}, "platform": {"os": "linux", "architecture": architecture}})
    blobs = foreign / "blobs" / "sha256"
    for blob in (layout / "blobs" / "sha256").iterdir():
        shutil.copy(blob, blobs)
    kind = "application/vnd.oci.image.index.v1+json"
    index = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": entries}).encode()
    digest = hashlib.sha256(index).hexdigest()
    (blobs / digest).write_bytes(index)
    entry = {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(index)}
    entry["annotations"] = {"org.opencontainers.image.ref.name": "both"}
    (foreign / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    name = f"team/app:{compression}"
    registry.push(f"oci:{foreign}:both", name, "--all", "--dest-compress-format", compression)
    raw = json.loads(run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{registry.host}/{name}"))
    assert len(raw["manifests"]) == 2
    assert output(f"{registry.host}/{name}") == "umoci\n"
    with pytest.raises(supermachine.errors.PlatformNotFound) as caught:
        supermachine.images.resolve(f"{registry.host}/{name}", platform="linux/s390x")
    assert "linux/amd64, linux/arm64" in str(caught.value)


def test_a_layout_by_buildah(layout: Path, tmp_path: Path) -> None:
    require("buildah")
    storage = ["--root", str(tmp_path / "storage"), "--runroot", str(tmp_path / "run"), "--storage-driver", "vfs"]

    def buildah(command: str, *args: str) -> str:
        return run("buildah", command, *storage, *args).strip()

    container = buildah("from", "--arch", "arm64", f"oci:{layout}:v1")
    try:
        buildah("config", "--cmd", "echo by buildah", "--entrypoint", "[]", container)
        buildah("copy", "--chown", "5:6", container, str(PROGRAM), "/srv/file")
        for kind in ("oci", "docker"):
            target = tmp_path / kind
            buildah("commit", "--format", kind, container, f"oci:{target}:latest" if kind == "oci" else f"dir:{target}")
    finally:
        buildah("rm", container)
    assert output(tmp_path / "oci") == "by buildah\n"
    with VM(tmp_path / "oci") as vm:
        status = vm.path("/srv/file").stat()
        assert (status.st_uid, status.st_gid) == (5, 6)
        assert vm.path("/srv/file").read_bytes() == PROGRAM.read_bytes()


def test_a_runtime_with_a_compiler_of_its_own(tmp_path: Path) -> None:
    """Debian's nodejs from a `docker save` tar: what it computes is what it computes on real hardware."""
    umoci_layout(tmp_path / "oci", [packages(tmp_path / "rootfs.tar", NODE)], "--config.entrypoint", "node")
    archive = tmp_path / "node.tar"
    run("skopeo", "--insecure-policy", "copy", "-q", f"oci:{tmp_path}/oci:latest", f"docker-archive:{archive}")
    with VM(archive, memory="1g", vcpus=2) as vm:
        vm.copy_in(PROGRAM, "/tmp/program.js")
        done = vm.run(vm.command(["/tmp/program.js"]), text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("arch") == "arm64"
    assert found == json.loads(EXPECTED.read_text())
    if shutil.which("node") is not None:
        here = json.loads(subprocess.run(["node", PROGRAM], capture_output=True, check=True).stdout)
        assert {k: v for k, v in here.items() if k != "arch"} == found
