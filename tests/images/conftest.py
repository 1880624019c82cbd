"""Images made in memory, a registry that misbehaves on demand, and the real ones of Debian."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import tarfile
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from supermachine.cache.store import Cache
from supermachine.images import ResolvedImage, resolve
from supermachine.images.resolution import Converter
from supermachine.oci.model import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from supermachine.oci.transport import Limits, Transport

from ..real import RealRegistry

GZIP_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@dataclass
class Image:
    """Blobs by digest, and the digest of the manifest among them."""

    blobs: dict[str, bytes]
    digest: str
    layers: list[str]

    @property
    def manifest(self) -> bytes:
        return self.blobs[self.digest]

    def descriptor(self, **extra: Any) -> dict[str, Any]:
        return {"mediaType": OCI_MANIFEST, "digest": self.digest, "size": len(self.manifest), **extra}


def make_image(
    *layers: dict[str, bytes],
    architecture: str = "arm64",
    config: dict[str, Any] | None = None,
    manifest_extra: dict[str, Any] | None = None,
    layer_type: str = GZIP_LAYER,
) -> Image:
    tars = [tar_of(files) for files in layers or ({"hello": b"world"},)]
    packed = [gzip.compress(t, mtime=0) if layer_type.endswith("gzip") else t for t in tars]
    config_bytes = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": config or {"Cmd": ["/hello"]},
            "rootfs": {"type": "layers", "diff_ids": [sha256(t) for t in tars]},
        }
    ).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "config": {"mediaType": OCI_CONFIG, "digest": sha256(config_bytes), "size": len(config_bytes)},
            "layers": [{"mediaType": layer_type, "digest": sha256(p), "size": len(p)} for p in packed],
            **(manifest_extra or {}),
        }
    ).encode()
    blobs = {sha256(data): data for data in (*packed, config_bytes, manifest)}
    return Image(blobs, sha256(manifest), [sha256(p) for p in packed])


def make_index(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)}).encode()


def write_layout(root: Path, image_blobs: dict[str, bytes], index: bytes) -> Path:
    (root / "blobs" / "sha256").mkdir(parents=True)
    (root / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (root / "index.json").write_bytes(index)
    for digest, data in image_blobs.items():
        (root / "blobs" / "sha256" / digest.partition(":")[2]).write_bytes(data)
    return root


class RecordingConverter:
    """Stands in for the extension: checks every digest it is given, writes the uncompressed layers, counts."""

    def __init__(self) -> None:
        self.calls: list[list[Any]] = []

    def convert(
        self, layers: list[Any], output: str, max_bytes: int, progress: Callable[[int, int], None] | None
    ) -> Any:
        self.calls.append(layers)
        total = sum(layer[2] for layer in layers)
        done = 0
        with open(output, "wb") as out:
            for path, offset, length, digest, diff_id, compression in layers:
                assert compression is None
                with open(path, "rb") as stream:
                    stream.seek(offset)
                    data = stream.read(length)
                assert len(data) == length
                assert digest is None or sha256(data) == digest
                plain = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
                assert diff_id is None or sha256(plain) == diff_id
                out.write(plain)
                done += length
                if progress is not None:
                    progress(done, total)
        return {}


@pytest.fixture
def recorder() -> RecordingConverter:
    return RecordingConverter()


@pytest.fixture
def converter(recorder: RecordingConverter) -> Converter:
    return Converter("test", recorder.convert)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody's own credentials, proxies or cache."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(("SUPERMACHINE_", "DOCKER_", "REGISTRY_", "XDG_")):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    """What a script does with one request; `cut` sends only so many bytes of the body it announced."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    hang: bool = False


Script = Callable[[Request], "Answer | None"]


class FakeRegistry:
    """The distribution protocol as far as pulling needs it; `scripts` come first and may answer anything."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}
        self.media_types: dict[str, str] = {}
        self.scripts: list[Script] = []
        self.requests: list[Request] = []
        self.released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.serve(self)

            def do_POST(self) -> None:
                outer.serve(self)

            def do_CONNECT(self) -> None:
                outer.serve(self)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        # Clients that go away in the middle are what some tests are about.
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.host = f"127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def add(self, image: Image, tag: str = "latest") -> None:
        self.blobs |= image.blobs
        self.tags[tag] = image.digest
        self.media_types[image.digest] = OCI_MANIFEST

    def add_index(self, data: bytes, tag: str = "latest", media_type: str = OCI_INDEX) -> None:
        self.blobs[sha256(data)] = data
        self.tags[tag] = sha256(data)
        self.media_types[sha256(data)] = media_type

    def on(self, part: str, *answers: Answer | Script) -> None:
        """Answers requests whose path contains `part`, one after the other; the rest go the normal way."""
        queue = list(answers)

        def script(request: Request) -> Answer | None:
            if part not in request.path or not queue:
                return None
            answer = queue.pop(0)
            return answer if isinstance(answer, Answer) else answer(request)

        self.scripts.append(script)

    def paths(self) -> list[str]:
        return [request.path for request in self.requests]

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        request = Request(handler.command, handler.path, dict(handler.headers.items()), handler.rfile.read(length))
        self.requests.append(request)
        answer = next((a for s in self.scripts if (a := s(request)) is not None), None) or self.normal(request)
        if answer.hang:
            self.released.wait(60)
            handler.close_connection = True
            return
        handler.send_response(answer.status)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        if "Content-Length" not in answer.headers:
            handler.send_header("Content-Length", str(len(answer.body)))
        handler.end_headers()
        body = answer.body if answer.cut is None else answer.body[: answer.cut]
        handler.wfile.write(body)
        if answer.cut is not None:
            handler.wfile.flush()
            handler.close_connection = True

    def normal(self, request: Request) -> Answer:
        parts = urllib.parse.urlsplit(request.path).path.split("/")
        kind, target = parts[-2], parts[-1]
        digest = self.tags.get(target, target) if kind == "manifests" else target
        data = self.blobs.get(digest)
        if parts[1] != "v2" or data is None:
            error = {"errors": [{"code": "NOT_FOUND", "message": "no such thing"}]}
            return Answer(404, json.dumps(error).encode(), {"Content-Type": "application/json"})
        headers = {"Docker-Content-Digest": digest}
        if kind == "manifests":
            headers["Content-Type"] = self.media_types.get(digest, OCI_MANIFEST)
        wanted = request.headers.get("Range")
        if wanted:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return Answer(206, data[start:], headers)
        return Answer(200, data, headers)

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    server = FakeRegistry()
    yield server
    server.close()


@pytest.fixture
def second_host() -> Iterator[FakeRegistry]:
    server = FakeRegistry()
    yield server
    server.close()


@dataclass
class Client:
    """A transport that does not wait for real; `slept` has what it would have waited."""

    transport: Transport
    slept: list[float]


@pytest.fixture
def client() -> Client:
    slept: list[float] = []
    limits = Limits(connect=5, read=0.5, stall=0.5, attempts=3)
    return Client(Transport(limits=limits, sleep=slept.append), slept)


@pytest.fixture
def real_registry(tmp_path: Path) -> Iterator[RealRegistry]:
    server = RealRegistry(tmp_path / "registry")
    yield server
    server.close()


@pytest.fixture
def private_registry(tmp_path: Path) -> Iterator[RealRegistry]:
    server = RealRegistry(tmp_path / "private", password=True)
    yield server
    server.close()


def docker_config(tmp_path: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "docker-config"
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(content))
    monkeypatch.setenv("DOCKER_CONFIG", str(directory))


def auth_entry(username: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{username}:{password}".encode()).decode()}


@pytest.fixture
def pull(registry: FakeRegistry, cache: Cache, converter: Converter, client: Client) -> Callable[..., ResolvedImage]:
    def pull(name: str = "app", **options: Any) -> ResolvedImage:
        return resolve(
            f"{registry.host}/{name}", cache=cache, converter=converter, transport=client.transport, **options
        )

    return pull
