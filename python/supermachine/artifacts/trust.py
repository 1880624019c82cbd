"""Who may say what runs here: a snapshot is the memory of a machine, so whoever wrote it decides what that does.

One from a registry is restored when it was named by its digest, or when a key that this user has named has signed it.
Keys are Ed25519's (RFC 8032), or identities as sigstore has them (`identities`). A signature is a manifest of its own
that refers to the snapshot's, found as all referrers are. It covers the digest of the snapshot's manifest, and by that
all that is in it.

In the directory of keys::

    private/NAME    a secret key of the user's, mode 0600
    trusted/NAME    a public key or an identity that is believed, and for which repositories
    sigstore/trusted_root.json  of identities: the root of trust, where it is not the public one
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .. import _core, descriptors, directories
from ..errors import ConfigurationError, InvalidImage, RegistryError, UntrustedSnapshot
from ..oci import referrers
from ..oci.model import OCI_MANIFEST, Descriptor, load_json
from ..oci.references import RegistryReference
from ..oci.registry import Repository
from ..oci.uploads import put_manifest
from . import model
from .upload import put_bytes

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_PREFIX = "ed25519:"
_IDENTITY_PREFIX = "sigstore:"
_SECRET_HEAD = "supermachine secret key 1 "  # noqa: S105 - a mark
_MAX_FILE = 4096
_MAX_KEYS = 256
#: Signatures of one snapshot that are looked at.
_MAX_SIGNATURES = 64
_MESSAGE = "supermachine snapshot signature 1\n{}\n"


@dataclass(frozen=True)
class Key:
    """A public key: `name` is this user's word for it, `scope` the beginning of the repositories that it is for."""

    name: str
    public: bytes
    #: Empty for all.
    scope: str = ""
    #: Whether this user has the secret one, and believes what it signed.
    own: bool = False
    trusted: bool = False
    #: Instead of a public key: somebody whom sigstore knows, and who vouches for that.
    identity: str = ""
    issuer: str = ""

    @property
    def text(self) -> str:
        if self.identity:
            return f"{_IDENTITY_PREFIX}{self.identity} {self.issuer}"
        return _PREFIX + base64.b64encode(self.public).decode()

    def covers(self, repository: str) -> bool:
        """Whether the key is for this repository: the scope is it, or a directory of it."""
        scope = self.scope.rstrip("/")
        return not scope or repository == scope or repository.startswith(scope + "/")


def parse_public(text: str) -> bytes:
    """The key in ``ed25519:…``. Raises ConfigurationError."""
    with contextlib.suppress(binascii.Error, ValueError):
        data = base64.b64decode(text.strip().removeprefix(_PREFIX), validate=True)
        if text.strip().startswith(_PREFIX) and len(data) == 32:
            _core.verify_signature(data, b"", bytes(64))
            return data
    raise ConfigurationError(f"{text[:80]!r} is no public key", hint=f"one begins with {_PREFIX}")


def _believed(name: str, text: str, scope: str) -> Key:
    """A key or an identity, as `Key.text` has it. Raises ConfigurationError."""
    if not text.startswith(_IDENTITY_PREFIX):
        return Key(name, parse_public(text), scope, trusted=True)
    identity, _, issuer = text.removeprefix(_IDENTITY_PREFIX).partition(" ")
    # An identity alone would be anybody's whom some issuer calls so.
    if not identity.isprintable() or not re.fullmatch(r"https://[!-~]{1,500}", issuer) or not 0 < len(identity) < 1024:
        raise ConfigurationError(
            f"{text[:80]!r} is no identity with its issuer",
            hint="sigstore:NAME@EXAMPLE.COM with --issuer https://…, as the certificate has them",
        )
    return Key(name, b"", scope, trusted=True, identity=identity, issuer=issuer)


class Keys:
    """The directory of keys."""

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        self._directory = Path(directories.keys_directory() if directory is None else directory)

    def generate(self, name: str) -> Key:
        """Makes a pair, and trusts it. Raises ConfigurationError for a name that is taken."""
        secret = os.urandom(32)
        text = _SECRET_HEAD + base64.b64encode(secret).decode() + "\n"
        self._write("private", name, text)
        key = Key(name, _core.public_key(secret))
        return self.trust(key.text, name)

    def trust(self, public: str, name: str, scope: str = "", issuer: str = "") -> Key:
        """Believes what this key signs, in repositories that begin with `scope`.

        Instead of one it may be ``sigstore:IDENTITY``, for which `issuer` vouches.
        """
        if scope and not re.fullmatch(r"[A-Za-z0-9./:\[\]_-]{1,255}", scope):
            raise ConfigurationError(f"{scope[:80]!r} is no beginning of a repository's name")
        key = _believed(name, f"{public.strip()} {issuer}".strip(), scope)
        self._write("trusted", name, f"{key.text} {scope}".rstrip() + "\n")
        return key

    def remove(self, name: str) -> None:
        """Forgets a key; a secret one is gone for good."""
        gone = False
        for kind in ("private", "trusted"):
            with contextlib.suppress(FileNotFoundError):
                self._path(kind, name).unlink()
                gone = True
        if not gone:
            raise ConfigurationError(f"there is no key {name!r}", hint="`supermachine key ls` lists them")

    def all(self) -> list[Key]:
        """Every key, by name."""
        trusted = {key.name: key for key in self.trusted()}
        found = dict(trusted)
        for name in self._names("private"):
            public = _core.public_key(self._secret(name))
            known = trusted.get(name)
            same = known is not None and known.public == public
            found[name] = Key(name, public, known.scope if known and same else "", own=True, trusted=same)
        return [found[name] for name in sorted(found)]

    def trusted(self, repository: str | None = None) -> list[Key]:
        """The keys that are believed, for this repository. Raises UntrustedSnapshot if others could have named them."""
        keys = []
        for name in self._names("trusted"):
            text = self._read("trusted", name).strip()
            words = text.split(" ", 2 if text.startswith(_IDENTITY_PREFIX) else 1)
            scope = words.pop() if len(words) > 1 + text.startswith(_IDENTITY_PREFIX) else ""
            keys.append(_believed(name, " ".join(words), scope.strip()))
        return [key for key in keys if repository is None or key.covers(repository)]

    def root_of_identities(self) -> Path | None:
        """The root of trust for identities, where this user has one. Raises UntrustedSnapshot as `trusted` does."""
        path = self._directory / "sigstore" / "trusted_root.json"
        if not path.exists():
            return None
        for place in (self._directory, path.parent, path):
            if (why := directories.distrust(place)) is not None:
                raise UntrustedSnapshot(f"{place} {why}, so it is not believed")
        return path

    def signer(self, name: str) -> Signer:
        """What signs with a secret key. Raises ConfigurationError when there is none of that name."""
        return Signer(name, self._secret(name))

    def _secret(self, name: str) -> bytes:
        text = self._read("private", name)
        with contextlib.suppress(binascii.Error, ValueError):
            secret = base64.b64decode(text.strip().removeprefix(_SECRET_HEAD), validate=True)
            if text.startswith(_SECRET_HEAD) and len(secret) == 32:
                return secret
        raise ConfigurationError(f"the secret key {name!r} is damaged")

    def _path(self, kind: str, name: str) -> Path:
        if not _NAME.match(name):
            raise ConfigurationError(f"{name[:80]!r} cannot be a key's name", hint="use letters, digits, . _ and -")
        return self._directory / kind / name

    def _names(self, kind: str) -> list[str]:
        try:
            names = sorted(os.listdir(self._directory / kind))  # noqa: PTH208 - names alone
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [name for name in names if _NAME.match(name)][:_MAX_KEYS]

    def _read(self, kind: str, name: str) -> str:
        path = self._path(kind, name)
        for place in (self._directory, path.parent, path):
            if (why := directories.distrust(place)) is not None:
                raise UntrustedSnapshot(f"{place} {why}, so the keys in it are not believed")
        try:
            with path.open("rb") as file:
                return file.read(_MAX_FILE).decode("ascii", "replace")
        except FileNotFoundError:
            raise ConfigurationError(
                f"there is no key {name!r}", hint="`supermachine key ls` lists them, `generate` makes one"
            ) from None

    def _write(self, kind: str, name: str, text: str) -> None:
        path = self._path(kind, name)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.parent / f".{os.getpid()}-{os.urandom(4).hex()}"
        fd = descriptors.open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            with os.fdopen(fd, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(fd)
            # A link and no rename: a key is never replaced by another of its name.
            os.link(temporary, path)
        except FileExistsError:
            raise ConfigurationError(f"there is a key {name!r} already", hint="choose another name") from None
        finally:
            temporary.unlink(missing_ok=True)


class Signer:
    """Signs snapshots; the secret does not leave it."""

    __slots__ = ("_secret", "name", "public")

    def __init__(self, name: str, secret: bytes) -> None:
        self.name = name
        self._secret = secret
        self.public = _core.public_key(secret)

    def __repr__(self) -> str:
        return f"Signer({self.name!r})"

    def push(self, repository: Repository, digest: str, size: int) -> str:
        """Puts a signature of a manifest beside it; gives the digest of that."""
        signature = bytes(_core.sign(self._secret, _message(digest)))
        empty = model.descriptor(model.EMPTY, model.EMPTY_TYPE)
        put_bytes(repository, empty, model.EMPTY, "an empty blob")
        said = {model.SIGNATURE: f"{Key('', self.public).text} {base64.b64encode(signature).decode()}"}
        subject = Descriptor(OCI_MANIFEST, digest, size)
        data = model.manifest(model.SIGNATURE_TYPE, empty, [empty], subject, said)
        put_referrer(repository, data, model.SIGNATURE_TYPE, said, digest)
        return model.descriptor(data, OCI_MANIFEST).digest


def put_referrer(
    repository: Repository,
    data: bytes,
    artifact_type: str,
    annotations: dict[str, str],
    subject: str | None,
    tag: str | None = None,
) -> str:
    """Puts a manifest, under its digest or a tag as well, so that it is found from its subject. Gives the digest."""
    own = model.descriptor(data, OCI_MANIFEST)
    answer = put_manifest(repository, own.digest, data, OCI_MANIFEST)
    # A registry that knows of referrers says so here; for another there is a tag.
    if subject is not None and answer.headers.get("OCI-Subject") != subject:
        entry = referrers.Referrer(own.digest, own.size, artifact_type, annotations)
        referrers.add(repository, subject, entry)
    if tag is not None:
        put_manifest(repository, tag, data, OCI_MANIFEST)
    return own.digest


def check(repository: Repository, reference: RegistryReference, digest: str, keys: Keys | None = None) -> str | None:
    """Whether a snapshot may be restored. Gives the name of the key that signed it; ``None`` if it was pinned.

    Raises UntrustedSnapshot, which says what to do.
    """
    if reference.digest is not None:
        if reference.digest != digest:
            raise UntrustedSnapshot(f"{reference.familiar} is not what the registry gives for it")
        return None
    keys = keys or Keys()
    trusted = keys.trusted(repository.name)
    pinned = f"{reference._replace(tag=None, digest=digest).familiar}"
    said = []
    why = None
    identities = [key for key in trusted if key.identity]
    if len(trusted) > len(identities):
        for public, signature in _signatures(repository, digest):
            for key in trusted:
                if key.public == public and _core.verify_signature(public, _message(digest), signature):
                    return key.name
            said.append(Key("", public).text)
    if identities:
        from . import identities as sigstore

        name, why = sigstore.signer(repository, digest, identities, keys.root_of_identities())
        if name is not None:
            return name
    who = f"it is signed by {', '.join(dict.fromkeys(said))}" if said else why or None
    raise UntrustedSnapshot(
        f"the snapshot {reference.familiar} is not restored: it is code, and "
        + ("no key that is trusted here has signed it" if trusted else "no key is trusted here"),
        cause=who,
        hint=f"pin it, if you know that it is the one: {pinned}; or trust the key of who signed it: "
        "supermachine key trust NAME ed25519:…",
    )


def _signatures(repository: Repository, digest: str) -> Iterator[tuple[bytes, bytes]]:
    """What claims to be signatures: public key and signature."""
    for found in referrers.find(repository, digest, model.SIGNATURE_TYPE)[:_MAX_SIGNATURES]:
        text = found.annotations.get(model.SIGNATURE)
        if text is None:
            # Registries need not copy annotations into the list.
            with contextlib.suppress(RegistryError, InvalidImage):
                data = repository.manifest(found.digest)[0]
                text = (load_json(data, "a signature").get("annotations") or {}).get(model.SIGNATURE)
        if not isinstance(text, str) or len(text) > 512:
            continue
        public, _, signature = text.partition(" ")
        with contextlib.suppress(ConfigurationError, binascii.Error, ValueError):
            yield parse_public(public), base64.b64decode(signature, validate=True)


def _message(digest: str) -> bytes:
    return _MESSAGE.format(digest).encode()
