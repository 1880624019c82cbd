"""Image references, as docker writes them, and the names of local layouts and archives.

The grammar is that of the distribution project's reference package: ``[domain/]path[:tag][@digest]``. What comes before
the first slash is a domain when it contains a dot or a colon, is ``localhost``, or has an upper-case letter; otherwise
the domain is docker's own, and a path of one component there is in ``library/``. A reference with neither tag nor
digest means the tag ``latest``.

``docker://NAME`` is always one of a registry, as skopeo has it.

Local sources are ``oci:PATH[:TAG]`` (also ``oci-layout:``), ``oci-archive:PATH[:TAG]``, ``docker-archive:PATH[:TAG]``,
``file:///PATH`` and plain paths; these prefixes always mean a local source (a repository of that name needs its domain
spelt out). A plain path is one that begins with ``/``, ``./``, ``../`` or ``~/``, or any :class:`os.PathLike`; a
string that could also be a registry reference is a path only when it names an existing file with the suffix of an
archive, or has a slash and names an existing OCI layout. So a directory ``python`` never hides the image ``python``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal, NamedTuple

from .. import directories
from ..errors import InvalidReference

DEFAULT_DOMAIN = "docker.io"
_LEGACY_DEFAULT_DOMAIN = "index.docker.io"
_OFFICIAL = "library/"
DEFAULT_TAG = "latest"
_MAX_NAME = 255
_MAX_REFERENCE = 4096

_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[(?:[a-fA-F0-9:]+)\])(?::[0-9]+)?"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = rf"{_COMPONENT}(?:/{_COMPONENT})*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_IDENTIFIER = r"[a-f0-9]{64}"
# Hexadecimal digits of a digest. Without regular expressions, for every start looks at digests and few at names.
_DIGITS = {"sha256": 64, "sha512": 128}
_HEXADECIMAL = frozenset("0123456789abcdef")

FileKind = Literal["oci", "oci-archive", "docker-archive", "path"]
_SCHEMES: dict[str, FileKind] = {
    "oci": "oci",
    "oci-layout": "oci",
    "oci-archive": "oci-archive",
    "docker-archive": "docker-archive",
}
_REGISTRY, _FILE = "docker://", "file://"
_ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tar.zst", ".tzst")


def is_digest(text: object) -> bool:
    """Whether `text` is ``sha256:`` or ``sha512:`` and the right number of lower-case hexadecimal digits."""
    if not isinstance(text, str):
        return False
    algorithm, _, value = text.partition(":")
    return len(value) == _DIGITS.get(algorithm) and _HEXADECIMAL.issuperset(value)


class RegistryReference(NamedTuple):
    """An image in a registry. `str()` gives the full form, `familiar` the short one that docker shows."""

    domain: str
    path: str
    tag: str | None = None
    digest: str | None = None

    @property
    def name(self) -> str:
        return f"{self.domain}/{self.path}"

    @property
    def familiar(self) -> str:
        name = self.name
        if self.domain == DEFAULT_DOMAIN:
            name = self.path
            # Not when what is left would itself be taken for a domain or another official image.
            short = name.removeprefix(_OFFICIAL)
            if "/" not in short:
                name = short
        return name + self._suffix()

    @property
    def target(self) -> str:
        """What to ask the registry for: the digest if there is one, else the tag."""
        return self.digest or self.tag or DEFAULT_TAG

    def with_default_tag(self) -> RegistryReference:
        return self if self.tag or self.digest else self._replace(tag=DEFAULT_TAG)

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    def __str__(self) -> str:
        return self.name + self._suffix()


class FileReference(NamedTuple):
    """An image in a local layout or archive; `tag` chooses among several."""

    kind: FileKind
    path: Path
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        scheme = "" if self.kind == "path" else f"{self.kind}:"
        suffix = (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")
        return f"{scheme}{self.path}{suffix}"

    @property
    def familiar(self) -> str:
        return str(self)


Reference = RegistryReference | FileReference


def parse_reference(text: str | os.PathLike[str]) -> Reference:
    """Reads a reference, or a path. Raises :class:`~supermachine.errors.InvalidReference`."""
    if not isinstance(text, str):
        return FileReference("path", absolute(os.fspath(text)))
    if not text or len(text) > _MAX_REFERENCE or "\0" in text:
        raise _invalid(text, "it is empty, too long, or contains a NUL")
    if text.startswith(_REGISTRY):
        return parse_registry_reference(text.removeprefix(_REGISTRY))
    if text.startswith(_FILE):
        return _file("path", _path_of_url(text))
    scheme, colon, rest = text.partition(":")
    if colon and scheme in _SCHEMES:
        if not rest:
            raise _invalid(text, f"a path has to follow {scheme}:")
        return _file(_SCHEMES[scheme], rest)
    if text.startswith(("/", "./", "../", "~/")) or text in (".", ".."):
        return _file("path", text)
    if _names_local_image(text):
        return _file("path", text)
    return parse_registry_reference(text)


def parse_registry_reference(text: str) -> RegistryReference:
    """Reads a reference as docker does; nothing local is considered."""
    if len(text) > _MAX_REFERENCE:
        raise _invalid(text, "it is too long")
    if re.fullmatch(_IDENTIFIER, text):
        raise _invalid(text, "64 hexadecimal digits are an image identifier, not a name")
    rest, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise _invalid(text, "what follows @ is not a sha256 or sha512 digest")
    first, slash, remainder = rest.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first.lower() != first):
        domain = first
    else:
        domain, remainder = DEFAULT_DOMAIN, rest
    if domain == _LEGACY_DEFAULT_DOMAIN:
        domain = DEFAULT_DOMAIN
    path, colon, tag = remainder.partition(":")
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = _OFFICIAL + path
    if not re.fullmatch(_DOMAIN, domain):
        raise _invalid(text, f"{_short(domain)!r} is not a host name with an optional port")
    if path.lower() != path:
        raise _invalid(text, "the repository name must be lower case")
    if not re.fullmatch(_PATH, path):
        raise _invalid(text, f"{_short(path)!r} is not a repository name")
    if len(domain) + 1 + len(path) > _MAX_NAME:
        raise _invalid(text, f"the name has more than {_MAX_NAME} characters")
    if colon and not re.fullmatch(_TAG, tag):
        raise _invalid(text, f"{_short(tag)!r} is not a tag")
    return RegistryReference(domain, path, tag if colon else None, digest if at else None)


def _file(kind: FileKind, text: str) -> FileReference:
    head, at, digest = text.rpartition("@")
    if at and is_digest(digest):
        text = head
    else:
        digest = ""
    path, tag = text, ""
    if not absolute(text).exists():
        # A tag may contain colons (docker-archive:x.tar:name:tag) and so may a path: the longest existing path wins.
        colons = [i for i, c in enumerate(text) if c == ":"]
        cut = next((i for i in reversed(colons) if absolute(text[:i]).exists()), colons[0] if colons else None)
        if cut is not None:
            path, tag = text[:cut], text[cut + 1 :]
    if not path:
        raise _invalid(text, "there is no path in it")
    return FileReference(kind, absolute(path), tag or None, digest or None)


def _path_of_url(text: str) -> str:
    """The path that a URL of RFC 8089 names."""
    from urllib.parse import unquote

    path = text.removeprefix(_FILE).removeprefix("localhost")
    if not path.startswith("/"):
        raise _invalid(text, "file:// is followed by an absolute path: file:///srv/image.tar")
    path = unquote(path)
    if "\0" in path:
        raise _invalid(text, "it contains a NUL")
    return path


def _names_local_image(text: str) -> bool:
    if text.endswith(_ARCHIVE_SUFFIXES):
        return Path(text).is_file()
    if "/" not in text:
        return False
    candidates = [text, *(text[:i] for i, c in enumerate(text) if c == ":")]
    return any((Path(c) / "oci-layout").is_file() for c in candidates)


def looked_at(text: str | os.PathLike[str]) -> list[Path]:
    """The paths on whose existence it depends what a reference means."""
    if not isinstance(text, str):
        path = absolute(os.fspath(text))
        return [path, path / "oci-layout"]
    if text.startswith(_FILE):
        text = _path_of_url(text)
    scheme, colon, rest = text.partition(":")
    if colon and scheme in _SCHEMES:
        text = rest
    paths = [absolute(c) for c in (text, *(text[:i] for i, c in enumerate(text) if c == ":")) if c]
    return [*paths, *(path / "oci-layout" for path in paths)]


def absolute(text: str) -> Path:
    """A path with ``~`` expanded, independent of the working directory from now on."""
    # What stands for nobody's home directory is taken literally.
    if text == "~" or text.startswith("~/"):
        text = (directories.home() or "~") + text[1:]
    elif text.startswith("~"):
        text = os.path.expanduser(text)  # noqa: PTH111 - it does not raise
    return Path(text).absolute()


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "…"


def _invalid(text: str, why: str) -> InvalidReference:
    return InvalidReference(
        f"{_short(text)!r} is not an image reference: {why}",
        hint="write it as docker does (name:tag, host:port/name@digest) or as oci:PATH, oci-archive:PATH, "
        "docker-archive:PATH, file:///PATH or a path",
    )
