"""References, against the table of docker's own grammar and as properties."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from supermachine.errors import InvalidReference
from supermachine.oci.references import (
    FileReference,
    RegistryReference,
    looked_at,
    parse_reference,
    parse_registry_reference,
)

DIGEST = "sha256:" + "0123456789abcdef" * 4

VALID = [
    # text, domain, path, tag, digest, familiar
    ("busybox", "docker.io", "library/busybox", None, None, "busybox"),
    ("python:3.12-slim", "docker.io", "library/python", "3.12-slim", None, "python:3.12-slim"),
    ("docker.io/python", "docker.io", "library/python", None, None, "python"),
    ("index.docker.io/python:1", "docker.io", "library/python", "1", None, "python:1"),
    ("docker.io/library/a/b", "docker.io", "library/a/b", None, None, "library/a/b"),
    ("me/app", "docker.io", "me/app", None, None, "me/app"),
    ("localhost/app", "localhost", "app", None, None, "localhost/app"),
    ("localhost:5000/app:1", "localhost:5000", "app", "1", None, "localhost:5000/app:1"),
    ("localhost:5000", "docker.io", "library/localhost", "5000", None, "localhost:5000"),
    ("test.com:80/a/b:tag", "test.com:80", "a/b", "tag", None, "test.com:80/a/b:tag"),
    ("Upper/app", "Upper", "app", None, None, "Upper/app"),
    ("[2001:db8::1]:5000/repo", "[2001:db8::1]:5000", "repo", None, None, "[2001:db8::1]:5000/repo"),
    ("xn--n3h.com/x", "xn--n3h.com", "x", None, None, "xn--n3h.com/x"),
    ("a__b/c.d/e---f", "docker.io", "a__b/c.d/e---f", None, None, "a__b/c.d/e---f"),
    (f"app@{DIGEST}", "docker.io", "library/app", None, DIGEST, f"app@{DIGEST}"),
    (f"h.x/app:1@{DIGEST}", "h.x", "app", "1", DIGEST, f"h.x/app:1@{DIGEST}"),
    ("a:" + "t" * 128, "docker.io", "library/a", "t" * 128, None, "a:" + "t" * 128),
    ("foo/foo_bar.com:8080", "docker.io", "foo/foo_bar.com", "8080", None, "foo/foo_bar.com:8080"),
]

INVALID = [
    "",
    ":tag",
    "@" + DIGEST,
    "Uppercase",
    "Uppercase:tag",
    "test:5000/Uppercase/lowercase:tag",
    "a/",
    "/a//b:x",
    "a//b",
    "-a",
    "a-",
    "a..b",
    "a___b",
    "a:",
    "a:" + "t" * 129,
    "a:-x",
    "a@sha256:xyz",
    "a@sha256:" + "0" * 63,
    "a@sha256:" + "A" * 64,
    "a@md5:" + "0" * 32,
    "0123456789abcdef" * 4,
    "aa/asdf$$^/aa",
    "-foo.com/a",
    "foo-.com/a",
    "x.y/" + "a/" * 130 + "a",
    "https://host.x/a",
    "a b",
    "a\n",
    "ä",
    "a:b:c",
    "a\0b",
    "host.x:port/a",
    "[fe80::1%eth0]:5000/repo",
    "docker.io/",
    "a" * 5000,
]


@pytest.mark.parametrize(("text", "domain", "path", "tag", "digest", "familiar"), VALID)
def test_valid(text: str, domain: str, path: str, tag: str | None, digest: str | None, familiar: str) -> None:
    reference = parse_reference(text)
    assert reference == RegistryReference(domain, path, tag, digest)
    assert reference.familiar == familiar
    assert parse_reference(str(reference)) == reference
    assert parse_reference(familiar) == reference


@pytest.mark.parametrize("text", INVALID)
def test_invalid(text: str) -> None:
    with pytest.raises(ValueError, match="not an image reference") as caught:
        parse_registry_reference(text)
    assert isinstance(caught.value, InvalidReference)
    assert caught.value.code == "image.reference-invalid"
    assert caught.value.hint


COMPONENT = st.from_regex(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+){0,3}", fullmatch=True).filter(lambda s: len(s) < 30)
DOMAIN = st.from_regex(r"[a-z][a-z0-9]{0,8}\.[a-z]{2,5}(:[0-9]{1,5})?", fullmatch=True)


@given(
    domain=DOMAIN,
    path=st.lists(COMPONENT, min_size=1, max_size=4).map("/".join),
    tag=st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", fullmatch=True).filter(str.isascii),
    digest=st.none() | st.binary(min_size=32, max_size=32).map(lambda b: f"sha256:{b.hex()}"),
)
def test_what_is_built_from_parts_is_read_as_these_parts(
    domain: str, path: str, tag: str | None, digest: str | None
) -> None:
    reference = RegistryReference(domain, path, tag, digest)
    assert parse_registry_reference(str(reference)) == reference


@given(st.text(max_size=200) | st.text("abAB01.:/@-_[]", max_size=80))
def test_any_text_is_a_reference_or_a_typed_error(text: str) -> None:
    try:
        reference = parse_registry_reference(text)
    except InvalidReference:
        return
    assert parse_registry_reference(str(reference)) == reference
    assert parse_registry_reference(reference.familiar) == reference


def test_default_tag() -> None:
    assert str(parse_registry_reference("a").with_default_tag()) == "docker.io/library/a:latest"
    assert parse_registry_reference(f"a@{DIGEST}").with_default_tag().tag is None


def test_local_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = tmp_path / "lay:out"
    layout.mkdir()
    (layout / "oci-layout").write_text("{}")
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "oci-layout").write_text("{}")
    (tmp_path / "x.tar").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert parse_reference(f"oci:{layout}") == FileReference("oci", layout)
    assert parse_reference(f"oci:{layout}:v1") == FileReference("oci", layout, "v1")
    assert parse_reference(f"oci-layout:{layout}:v1@{DIGEST}") == FileReference("oci", layout, "v1", DIGEST)
    assert parse_reference("docker-archive:x.tar:localhost:5000/a:b") == FileReference(
        "docker-archive", tmp_path / "x.tar", "localhost:5000/a:b"
    )
    assert parse_reference("oci-archive:none.tar:t") == FileReference("oci-archive", tmp_path / "none.tar", "t")
    assert parse_reference("x.tar") == FileReference("path", tmp_path / "x.tar")
    (tmp_path / "x.tar.zst").write_bytes(b"")
    assert parse_reference("x.tar.zst") == FileReference("path", tmp_path / "x.tar.zst")
    assert parse_reference("./python:3") == FileReference("path", tmp_path / "python", "3")
    assert parse_reference(layout) == FileReference("path", layout)
    # A directory never hides an image of that name.
    assert parse_reference("python:3") == RegistryReference("docker.io", "library/python", "3")
    assert isinstance(parse_reference("y.tar"), RegistryReference)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("docker://busybox", "busybox"),
        ("docker://localhost:5000/app:1", "localhost:5000/app:1"),
        (f"docker://h.x/app@{DIGEST}", f"h.x/app@{DIGEST}"),
        ("file:///srv/image.tar", "/srv/image.tar"),
        ("file://localhost/srv/image.tar", "/srv/image.tar"),
        ("file:///srv/with%20blank", "/srv/with blank"),
    ],
)
def test_prefixes_of_other_tools(text: str, same: str) -> None:
    assert parse_reference(text) == parse_reference(same)
    assert set(looked_at(same)) <= {*looked_at(text), *looked_at(same)}


@pytest.mark.parametrize(
    "text", ["docker://", "docker:///etc", "file://", "file://host/x", "file://x", "file:///a%00b"]
)
def test_prefixes_with_nothing_behind_them(text: str) -> None:
    with pytest.raises(InvalidReference):
        parse_reference(text)


def test_a_docker_url_never_means_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "image.tar").touch()
    assert isinstance(parse_reference("image.tar"), FileReference)
    assert isinstance(parse_reference("docker://image.tar"), RegistryReference)
    assert parse_reference(f"file://{tmp_path}/image.tar") == parse_reference(tmp_path / "image.tar")
