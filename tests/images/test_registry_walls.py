"""What a registry and the hosts that it names are told, how long they may talk, and how much they may send."""

from __future__ import annotations

import contextlib
import os
import socket
import threading

import pytest
from supermachine import errors
from supermachine.images import resolution, resolve
from supermachine.oci import transport
from supermachine.oci.transport import Limits, Transport

from .conftest import Answer, auth_entry, docker_config, make_image, make_index, write_layout


def remote(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Has servers of this machine count as being elsewhere."""
    real = transport.is_loopback
    monkeypatch.setattr(transport, "is_loopback", lambda host: real(host) and host not in hosts)
    monkeypatch.setattr("supermachine.oci.authentication.is_loopback", transport.is_loopback)
    monkeypatch.setenv("SUPERMACHINE_INSECURE_REGISTRIES", ",".join(hosts))


def test_a_challenge_of_a_redirects_host_is_not_answered(registry, second_host, pull, tmp_path, monkeypatch) -> None:
    docker_config(tmp_path, {"auths": {registry.host: auth_entry("user", "secret")}}, monkeypatch)
    registry.add(make_image())
    to = {"Location": f"http://{second_host.host}/v2/app/manifests/latest"}
    registry.on("/manifests/", *[Answer(307, headers=to)] * 5)
    for challenge in ("Basic realm=x", f'Bearer realm="http://{second_host.host}/token"'):
        second_host.on("/manifests/", *[Answer(401, headers={"WWW-Authenticate": challenge})] * 2)
        with pytest.raises(errors.RegistryUnauthorized):
            pull()
        second_host.scripts.clear()
    assert second_host.requests
    assert all("authorization" not in {n.lower() for n in request.headers} for request in second_host.requests)
    assert not [path for path in second_host.paths() if "/token" in path]


@pytest.mark.parametrize("how", ["realm", "redirect"])
def test_a_registry_elsewhere_does_not_send_anyone_to_loopback(
    how, registry, second_host, pull, tmp_path, monkeypatch
) -> None:
    remote(monkeypatch, registry.host)
    docker_config(tmp_path, {"auths": {registry.host: auth_entry("user", "secret")}}, monkeypatch)
    if how == "realm":
        challenge = f'Bearer realm="http://{second_host.host}/token"'
        registry.on("/v2/", Answer(401, headers={"WWW-Authenticate": challenge}))
    else:
        registry.on("/v2/", Answer(307, headers={"Location": f"http://{second_host.host}/x"}))
    with pytest.raises(errors.RegistryError, match="on this machine"):
        pull()
    assert not second_host.requests


def test_a_realm_without_tls_is_the_registrys_own_or_refused(
    registry, second_host, pull, tmp_path, monkeypatch
) -> None:
    remote(monkeypatch, registry.host, second_host.host)
    docker_config(tmp_path, {"auths": {registry.host: auth_entry("user", "secret")}}, monkeypatch)
    registry.add(make_image())

    def guarded(host: str) -> None:
        def script(request):
            if request.path.startswith("/v2/") and "Authorization" not in request.headers:
                return Answer(401, headers={"WWW-Authenticate": f'Bearer realm="http://{host}/token"'})
            if request.path.startswith("/token"):
                return Answer(200, b'{"token": "t"}')
            return None

        registry.scripts[:] = [script]

    guarded(second_host.host)
    with pytest.raises(errors.RegistryError, match="not HTTPS"):
        pull()
    assert not second_host.requests
    guarded(registry.host)
    pull()


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.9.9.9:1", "localhost.", "a.localhost", "[::1]", "[::ffff:127.0.0.1]:2", "0.0.0.0"],
)
def test_what_is_on_this_machine(host: str) -> None:
    assert not Transport(registry="registry.invalid").may_name(host)
    assert Transport(registry="localhost:5000").may_name(host)
    assert Transport(registry="registry.invalid").may_name("elsewhere.invalid")


def test_insecure_is_for_the_registry_alone() -> None:
    client = Transport(insecure=True, registry="registry.invalid")
    assert client.lenient("registry.invalid")
    assert not client.lenient("storage.invalid")
    assert not client.lenient("registry.invalid:444")


@pytest.mark.parametrize("what", ["status", "headers"])
def test_headers_that_dribble_have_a_deadline(what: str) -> None:
    """Each byte comes in time, the whole never does."""
    done = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def dribble(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            if what == "headers":
                connection.sendall(b"HTTP/1.1 200 OK\r\n")
            while not done.wait(0.05):
                connection.sendall(b"H" if what == "status" else b"X")

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=dribble, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    host = f"127.0.0.1:{listener.getsockname()[1]}"
    client = Transport(limits=Limits(connect=1, read=1, attempts=1), sleep=lambda _: None)
    try:
        with pytest.raises(errors.RegistryTimeout, match="did not answer within"):
            client.request_url("GET", f"http://{host}/v2/", {})
    finally:
        done.set()
        listener.close()


@pytest.mark.parametrize("kind", ["registry", "archive"])
def test_what_unpacks_to_far_more_than_was_downloaded_is_refused(
    kind, registry, client, cache, tmp_path, monkeypatch
) -> None:
    """The bound is on the ratio: contents that are as large and do not compress pass."""
    monkeypatch.setattr(resolution, "_ANY_CONTENTS", 1 << 20)
    real = resolution.Converter.default()
    bomb, honest = make_image({"a": bytes(32 << 20)}), make_image({"a": os.urandom(8 << 20)})
    for image, outcome in (
        (honest, contextlib.nullcontext()),
        (bomb, pytest.raises(errors.ImageTooLarge, match="uncompressed")),
    ):
        registry.add(image)
        layout = write_layout(tmp_path / image.digest[7:], image.blobs, make_index(image.descriptor()))
        with outcome:
            if kind == "registry":
                resolve(f"{registry.host}/app", cache=cache, converter=real, transport=client.transport, pull="always")
            else:
                resolve(f"oci:{layout}", cache=cache, converter=real)
