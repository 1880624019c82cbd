"""A registry in memory (distribution specification 1.1) that delays, shapes, ignores and breaks ranges, and lies."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

INDEX = "application/vnd.oci.image.index.v1+json"


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Registry:
    def __init__(self) -> None:
        self.blobs: dict[tuple[str, str], bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.uploads: dict[str, bytearray] = {}
        self.requests: list[tuple[str, str]] = []
        self.sent, self.received = Counter[str](), 0
        #: Of manifests.
        self.told = 0
        #: honour, ignore (200 and all of it), refuse (416), wrong (206, of another place)
        self.ranges = "honour"
        self.referrers = True
        #: Seconds before each answer, and bytes a second of all answers together.
        self.delay, self.rate = 0.0, 0.0
        #: Ends an answer with a blob after so many bytes, as often as this says.
        self.cut, self.cuts = 0, 0
        #: Ends an upload's request after so many bytes of its body, as often as this says.
        self.upload_cut, self.upload_cuts = 0, 0
        #: What becomes of a blob's bytes on their way.
        self.change: Callable[[str, bytes], bytes] = lambda _digest, data: data
        self.token: str | None = None
        self.scopes: list[str] = []
        self._lock, self._free_at = threading.Lock(), 0.0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_any(self) -> None:
                outer.serve(self)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = handle_any  # noqa: N815

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.host = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    # What is there.

    def put(self, repository: str, data: bytes, media_type: str, *tags: str) -> str:
        digest = sha256(data)
        for name in (digest, *tags):
            self.manifests[repository, name] = (media_type, data)
        return digest

    def count(self, method: str, part: str) -> int:
        return sum(m == method and part in path for m, path in self.requests)

    # What it answers.

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urllib.parse.urlsplit(handler.path)
        query = dict(urllib.parse.parse_qsl(parts.query))
        with self._lock:
            self.requests.append((handler.command, handler.path))
        if self.delay:
            time.sleep(self.delay)
        if parts.path == "/token":
            self.scopes.append(query.get("scope", ""))
            return self.say(handler, 200, json.dumps({"token": self.token}).encode())
        if self.token is not None and handler.headers.get("Authorization") != f"Bearer {self.token}":
            handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
            name = parts.path.removeprefix("/v2/").split("/")[0]
            actions = "pull" if handler.command in ("GET", "HEAD") else "pull,push"
            realm = f'Bearer realm="http://{self.host}/token",service="test",scope="repository:{name}:{actions}"'
            return self.say(handler, 401, b"", {"WWW-Authenticate": realm})
        found = re.fullmatch(r"/v2/(.+)/(blobs/uploads|blobs|manifests|referrers)/(.*)", parts.path)
        if found is None:
            return self.say(handler, 404)
        repository, kind, target = found.groups()
        if kind == "blobs/uploads":
            return self.upload(handler, repository, target, query)
        if kind == "referrers":
            return self.list(handler, repository, target, query)
        if kind == "manifests":
            return self.manifest(handler, repository, target)
        return self.blob(handler, repository, target)

    def say(
        self, handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)

    def manifest(self, handler: BaseHTTPRequestHandler, repository: str, target: str) -> None:
        if handler.command == "PUT":
            data = handler.rfile.read(int(handler.headers["Content-Length"]))
            body = json.loads(data)
            wanted = [*body.get("layers", []), *filter(None, [body.get("config")])]
            names = [descriptor["digest"] for descriptor in wanted]
            if missing := [name for name in names if (repository, name) not in self.blobs]:
                return self.say(
                    handler, 404, json.dumps({"errors": [{"code": "BLOB_UNKNOWN", "message": missing[0]}]}).encode()
                )
            digest = self.put(repository, data, handler.headers["Content-Type"], target)
            subject = body.get("subject", {}).get("digest")
            return self.say(handler, 201, b"", {"OCI-Subject": subject} if subject and self.referrers else {})
        found = self.manifests.get((repository, target))
        if found is None:
            return self.say(handler, 404)
        digest = sha256(found[1])
        if handler.command == "GET":
            self.told += len(found[1])
        self.say(handler, 200, found[1], {"Content-Type": found[0], "Docker-Content-Digest": digest})

    def list(self, handler: BaseHTTPRequestHandler, repository: str, target: str, query: dict[str, str]) -> None:
        if not self.referrers:
            return self.say(handler, 404)
        entries = {}
        for (name, _), (media_type, data) in list(self.manifests.items()):
            body = json.loads(data)
            if name == repository and body.get("subject", {}).get("digest") == target:
                entry = {"mediaType": media_type, "digest": sha256(data), "size": len(data)}
                entry |= {"artifactType": body["artifactType"], "annotations": body.get("annotations", {})}
                entries[sha256(data)] = entry
        wanted = query.get("artifactType")
        chosen = [entry for entry in entries.values() if wanted in (None, entry["artifactType"])]
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": chosen}
        self.say(handler, 200, json.dumps(index).encode(), {"Content-Type": INDEX})

    def blob(self, handler: BaseHTTPRequestHandler, repository: str, digest: str) -> None:
        data = self.blobs.get((repository, digest))
        if data is None:
            return self.say(handler, 404)
        if handler.command == "HEAD":
            return self.say(handler, 200, data)
        data = self.change(digest, data)
        status, headers, start, end = 200, {}, 0, len(data)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
        if wanted and self.ranges == "refuse":
            return self.say(handler, 416)
        if wanted and self.ranges != "ignore":
            start, end = int(wanted[1]), min(int(wanted[2] or len(data)) + 1, len(data))
            if self.ranges == "wrong":
                start, end = start + 1, end + 1
            status, headers = 206, {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
        body = data[start:end]
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        with self._lock:
            cut = self.cuts > 0 and len(body) > self.cut
            self.cuts -= cut
        if cut:
            body = body[: self.cut]
            handler.close_connection = True
        for at in range(0, len(body), 64 << 10):
            piece = body[at : at + (64 << 10)]
            self.shape(len(piece))
            handler.wfile.write(piece)
            self.sent[digest] += len(piece)

    def shape(self, count: int) -> None:
        if not self.rate:
            return
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + count / self.rate
            wait = self._free_at - time.monotonic()
        time.sleep(max(0.0, wait))

    def upload(self, handler: BaseHTTPRequestHandler, repository: str, session: str, query: dict[str, str]) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        with self._lock:
            cut = self.upload_cuts > 0 and length > self.upload_cut
            self.upload_cuts -= cut
        body = handler.rfile.read(self.upload_cut if cut else length)
        self.received += len(body)
        if handler.command == "POST":
            mounted = self.blobs.get((query.get("from", ""), query.get("mount", "")))
            if mounted is not None:
                self.blobs[repository, query["mount"]] = mounted
                return self.say(handler, 201)
            session = f"session-{len(self.uploads)}"
            self.uploads[session] = bytearray()
        held = self.uploads.get(session)
        if held is None:
            return self.say(handler, 404)
        if handler.command == "PATCH":
            start = int(handler.headers["Content-Range"].partition("-")[0])
            if start != len(held):
                return self.say(handler, 416)
        held += body
        if cut:
            handler.close_connection = True
            return None
        headers = {
            "Location": f"/v2/{repository}/blobs/uploads/{session}?state=x",
            "Range": f"0-{max(len(held) - 1, 0)}",
        }
        if handler.command == "PUT":
            if sha256(bytes(held)) != query["digest"]:
                return self.say(handler, 400, b'{"errors": [{"code": "DIGEST_INVALID"}]}')
            self.blobs[repository, query["digest"]] = bytes(held)
            del self.uploads[session]
            return self.say(handler, 201)
        return self.say(handler, 204 if handler.command == "GET" else 202, b"", headers)
