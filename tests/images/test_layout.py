"""Layouts and archives that are odd, damaged or hostile."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from supermachine import errors
from supermachine.cache.store import Cache
from supermachine.images import resolve
from supermachine.images.resolution import Converter
from supermachine.oci.archive import Archive
from supermachine.oci.model import parse_config, parse_manifest
from supermachine.oci.platforms import Platform, best

from .conftest import make_image, make_index, sha256, tar_of, write_layout

NAME = "org.opencontainers.image.ref.name"


def docker_save(
    path: Path,
    *tags: str,
    architecture: str = "arm64",
    data: bytes = b"x",
    link: bool = False,
    config: bytes | None = None,
) -> Path:
    """The format of docker before version 25; `link` repeats a layer as a symbolic link, as it did."""
    layer = tar_of({"file": data})
    layers = ["aaa/layer.tar", "bbb/layer.tar"] if link else ["aaa/layer.tar"]
    config = (
        config
        or json.dumps(
            {"os": "linux", "architecture": architecture, "rootfs": {"diff_ids": [sha256(layer)] * len(layers)}}
        ).encode()
    )
    manifest = json.dumps([{"Config": "c.json", "RepoTags": list(tags) or None, "Layers": layers}]).encode()
    with tarfile.open(path, "w") as tar:
        for name, content in (("aaa/layer.tar", layer), ("c.json", config), ("manifest.json", manifest)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        if link:
            member = tarfile.TarInfo("bbb/layer.tar")
            member.type, member.linkname = tarfile.SYMTYPE, "../aaa/layer.tar"
            tar.addfile(member)
    return path


def test_docker_save(tmp_path: Path, cache: Cache, converter: Converter) -> None:
    path = docker_save(tmp_path / "x.tar", "app:1", link=True)
    for reference in (path, f"docker-archive:{path}:app:1", f"docker-archive:{path}:docker.io/library/app:1"):
        image = resolve(reference, cache=cache, converter=converter)
        assert image.rootfs.read_bytes() == tar_of({"file": b"x"}) * 2
    for reference, error in (
        (f"docker-archive:{path}:app:2", errors.ImageNotFound),
        (f"oci-archive:{path}", errors.InvalidImage),
        (f"oci:{path}", errors.InvalidReference),
    ):
        with pytest.raises(error):
            resolve(reference, cache=cache, converter=converter)
    with pytest.raises(errors.PlatformNotFound, match="it has linux/arm64"):
        resolve(path, platform="linux/amd64", cache=cache, converter=converter)


def test_wrong_diff_id_count(tmp_path: Path, cache: Cache, converter: Converter) -> None:
    path = docker_save(tmp_path / "x.tar", config=b'{"os": "linux", "architecture": "arm64", "rootfs": {}}')
    with pytest.raises(errors.InvalidImage, match="1 layers but"):
        resolve(path, cache=cache, converter=converter)


def test_every_cut_of_an_archive(tmp_path: Path, cache: Cache, converter: Converter) -> None:
    data = docker_save(tmp_path / "x.tar", "a:1").read_bytes()
    whole = data.rstrip(b"\0")
    for length in [*range(0, len(whole), 300), len(whole) - 1]:
        (tmp_path / "cut.tar").write_bytes(data[:length])
        with pytest.raises(errors.InvalidImage):
            resolve(tmp_path / "cut.tar", cache=cache, converter=converter)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(position=st.integers(0, 6000), value=st.integers(0, 255))
def test_any_changed_byte_of_an_archive(
    tmp_path: Path, cache: Cache, converter: Converter, position: int, value: int
) -> None:
    data = bytearray(docker_save(tmp_path / "x.tar", "a:1").read_bytes())
    data[position % len(data)] = value
    (tmp_path / "changed.tar").write_bytes(data)
    # AssertionError: the stand-in for the converter checks digests by assertion
    with contextlib.suppress(errors.SupermachineError, AssertionError):
        resolve(tmp_path / "changed.tar", cache=cache, converter=converter)


def test_absurd_header_sizes(tmp_path: Path) -> None:
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        member = tarfile.TarInfo("x")
        member.type, member.size = kind, 1 << 40
        (tmp_path / "x.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + b"\0" * 1024)
        with pytest.raises(errors.InvalidImage):
            Archive(tmp_path / "x.tar")


def test_links_in_a_circle(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, target in (("a", "b"), ("b", "a"), ("out", "../../etc/passwd")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    archive = Archive(tmp_path / "x.tar")
    assert archive.find("a") is None
    assert archive.find("out") is None


def test_not_an_archive(tmp_path: Path, cache: Cache, converter: Converter) -> None:
    (tmp_path / "rootfs.tar").write_bytes(tar_of({"etc/passwd": b""}))
    with pytest.raises(errors.InvalidImage, match="neither") as caught:
        resolve(tmp_path / "rootfs.tar", cache=cache, converter=converter)
    assert "docker save" in str(caught.value.hint)
    (tmp_path / "text.tar").write_text("hello" * 1000)
    (tmp_path / "zstd.tar").write_bytes(b"\x28\xb5\x2f\xfd" + b"\0" * 100)
    (tmp_path / "bad.tar.gz").write_bytes(b"\x1f\x8b\x08" + b"\0" * 100)
    os.mkfifo(tmp_path / "fifo")
    for name in ("text.tar", "zstd.tar", "bad.tar.gz", "fifo"):
        with pytest.raises(errors.InvalidImage):
            resolve(tmp_path / name, cache=cache, converter=converter)


def test_several_images_in_a_layout(tmp_path: Path, cache: Cache, converter: Converter) -> None:
    one, two, other = make_image({"a": b"1"}), make_image({"a": b"2"}), make_image(architecture="amd64")
    blobs = one.blobs | two.blobs | other.blobs
    named = write_layout(
        tmp_path / "named",
        blobs,
        make_index(one.descriptor(annotations={NAME: "one"}), two.descriptor(annotations={NAME: "two"})),
    )
    with pytest.raises(errors.InvalidReference, match="several images: one, two"):
        resolve(named, cache=cache, converter=converter)
    assert resolve(f"oci:{named}:two", cache=cache, converter=converter).digest == two.digest
    assert resolve(f"oci:{named}@{one.digest}", cache=cache, converter=converter).digest == one.digest
    platforms = write_layout(
        tmp_path / "platforms",
        blobs,
        make_index(
            other.descriptor(platform={"os": "linux", "architecture": "amd64"}),
            one.descriptor(platform={"os": "linux", "architecture": "arm64"}),
        ),
    )
    assert resolve(platforms, cache=cache, converter=converter).digest == one.digest
    assert resolve(platforms, platform="amd64", cache=cache, converter=converter).digest == other.digest
    empty = write_layout(tmp_path / "empty", {}, make_index())
    with pytest.raises(errors.ImageNotFound, match="no image in it"):
        resolve(empty, cache=cache, converter=converter)


@pytest.mark.parametrize("part", ["manifest", "config", "layer"])
@pytest.mark.parametrize("damage", ["missing", "changed", "longer", "fifo", "directory"])
def test_damaged_layout(tmp_path: Path, cache: Cache, converter: Converter, part: str, damage: str) -> None:
    image = make_image()
    layout = write_layout(tmp_path / "layout", image.blobs, make_index(image.descriptor()))
    config = json.loads(image.manifest)["config"]["digest"]
    digest = {"manifest": image.digest, "config": config, "layer": image.layers[0]}[part]
    blob = layout / "blobs" / "sha256" / digest.partition(":")[2]
    data = blob.read_bytes()
    blob.unlink()
    if damage == "changed":
        blob.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    elif damage == "longer":
        blob.write_bytes(data + b" ")
    elif damage == "fifo":
        os.mkfifo(blob)
    elif damage == "directory":
        blob.mkdir()
    expected = (errors.InvalidImage, errors.DigestMismatch)
    if part == "layer" and damage == "changed":
        expected = (AssertionError, *expected)  # the converter's to find; the stand-in asserts
    with pytest.raises(expected):
        resolve(layout, cache=cache, converter=converter)
    assert not list((cache.directory / "rootfs").glob("*"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "schemaVersion",
                    "mediaType",
                    "config",
                    "layers",
                    "manifests",
                    "digest",
                    "size",
                    "platform",
                    "os",
                    "architecture",
                    "rootfs",
                    "diff_ids",
                    "Env",
                    "Cmd",
                    "Labels",
                    "ExposedPorts",
                    "annotations",
                    "variant",
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@given(JSON)
def test_any_json_is_read_or_refused_by_a_typed_error(value: object) -> None:
    data = json.dumps(value).encode()
    for parse in (lambda: parse_manifest(data, None, "it"), lambda: parse_config(data, "it")):
        try:
            parse()
        except errors.SupermachineError as error:
            assert "it" in str(error)


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    for parse in (lambda: parse_manifest(data, None, "it"), lambda: parse_config(data, "it")):
        with contextlib.suppress(errors.SupermachineError):
            parse()


@pytest.mark.parametrize(
    ("wanted", "offered", "position"),
    [
        ("linux/arm64", ["linux/amd64", "linux/arm64/v8"], 1),
        ("linux/arm64/v8", ["linux/arm64"], 0),
        ("aarch64", ["linux/arm64"], 0),
        ("x86_64", ["linux/arm64", "linux/amd64"], 1),
        ("linux/amd64", ["linux/amd64/v3", "linux/amd64"], 1),
        ("linux/amd64", ["linux/amd64/v3"], None),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v3"], 1),
        ("linux/amd64/v3", ["linux/amd64"], 0),
        ("linux/arm64", ["linux/arm/v7", "windows/arm64"], None),
        ("linux/arm/v7", ["linux/arm"], 0),
        ("linux/arm64", [], None),
    ],
)
def test_platforms(wanted: str, offered: list[str], position: int | None) -> None:
    assert best(Platform.parse(wanted), [Platform.parse(o) for o in offered]) == position


@pytest.mark.parametrize("text", ["", "a/b/c/d", "linux/", "/arm64"])
def test_bad_platforms(text: str) -> None:
    with pytest.raises(errors.ConfigurationError):
        Platform.parse(text)
