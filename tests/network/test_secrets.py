"""Secrets in real guests: real clients, over TLS, to servers on the loopback that the host trusts."""

from __future__ import annotations

import base64
import copy
import http.server
import json
import os
import pickle
import ssl
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from supermachine import VM, Network, Secret
from supermachine.errors import ConfigurationError, NotSupported
from supermachine.network.secrets import placeholder, secrets

from ..real import require, run
from ..vm.conftest import packages_layout
from .test_real_clients import repository, wheel

CLIENTS = "curl,git,python3,python3-pip,python3-requests,coreutils,base-files,base-passwd,netbase,dash,grep,sed,openssl"
HOST = "host.docker.internal"
VALUE = "value-that-no-guest-has-4711"
#: How a private key for P-256 begins in PKCS #8, as the authority's is kept.
KEY = bytes.fromhex("301306072a8648ce3d020106082a8648ce3d030107046d306b0201010420")


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a directory, and notes what it was sent; below /echo it sends that back."""

    protocol_version = "HTTP/1.1"

    def __init__(self, heard: list[dict[str, str]], *args: object, **more: object) -> None:
        self._heard = heard
        super().__init__(*args, **more)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self._heard.append({name.lower(): value for name, value in self.headers.items()} | {"path": self.path})
        if self.path.startswith(("/repository", "/simple")) and "Authorization" not in self.headers:
            # Clients send what is in an address once they are asked for it.
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="test"')
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if not self.path.startswith("/echo"):
            return super().do_GET()
        body = json.dumps(dict(self.headers.items())).encode()
        self.send_response(200)
        self.send_header("X-Echo", self.headers.get("Authorization", ""))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        pass


def certificates(place: Path) -> None:
    """An authority of the host's, `roots.pem`, and a server's certificate and key by it, `server.pem`; by OpenSSL."""
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    roots, key = place / "roots.pem", place / "roots.key"
    run("openssl", "req", "-x509", *curve, "-keyout", key, "-out", roots, "-subj", "/CN=roots", "-days", "30")
    request, certificate, server_key = place / "request", place / "certificate", place / "server.key"
    run("openssl", "req", *curve, "-keyout", server_key, "-out", request, "-subj", f"/CN={HOST}")
    (place / "extensions").write_text(f"subjectAltName=DNS:{HOST}\n")
    how = ["-CA", roots, "-CAkey", key, "-CAcreateserial", "-days", "30", "-extfile", place / "extensions"]
    run("openssl", "x509", "-req", "-in", request, "-out", certificate, *how)
    (place / "server.pem").write_bytes(certificate.read_bytes() + server_key.read_bytes())


class Site:
    def __init__(self, port: int) -> None:
        self.port = port
        self.address = f"{HOST}:{port}"
        self.heard: list[dict[str, str]] = []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    require("openssl", "git")
    place = tmp_path_factory.mktemp("site")
    root = place / "root"
    (root / "simple").mkdir(parents=True)
    wheel(root / "simple" / "hello-guest")
    repository(root / "repository.git", place / "source")
    certificates(place)
    site = Site(0)
    handler = partial(_Handler, site.heard, directory=str(root))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place / "server.pem")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        site.port = server.server_address[1]
        site.address = f"{HOST}:{site.port}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SSL_CERT_FILE", str(place / "roots.pem"))
            yield site
        server.shutdown()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("mmdebstrap", "umoci")
    place = tmp_path_factory.mktemp("clients")
    return packages_layout(place, CLIENTS)


@pytest.fixture(scope="module")
def guest(image: Path, site: Site) -> Iterator[VM]:
    network = Network(secrets={"TOKEN": Secret(VALUE, hosts=[site.address])})
    with VM(image, network=network, memory="512m", bake=False) as vm:
        yield vm


def output(vm: VM, command: str) -> str:
    return str(vm.run(command, shell=True, text=True, check=True, timeout=300).stdout)


def basic(user: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{VALUE}".encode()).decode()


def test_curl_sends_the_value_and_never_sees_it(guest: VM, site: Site) -> None:
    held = placeholder("TOKEN")
    assert output(guest, "echo $TOKEN") == f"{held}\n"
    said = output(guest, f'curl -fsSi -H "Authorization: Bearer $TOKEN" https://{site.address}/echo')
    assert site.heard[-1]["authorization"] == f"Bearer {VALUE}"
    assert VALUE not in said
    assert f"X-Echo: Bearer {held}" in said
    assert f"Bearer {'*' * len(VALUE)}" in said
    assert "http/1.1" in output(
        guest, f"openssl s_client -alpn h2,http/1.1 -connect {site.address} </dev/null 2>&1 | grep ALPN"
    )


def test_requests_git_and_pip_send_it(guest: VM, site: Site) -> None:
    program = (
        "import os, requests; s = requests.Session(); s.headers['X-Key'] = os.environ['TOKEN'];"
        f"print([s.get('https://{site.address}/echo').status_code for _ in range(3)])"
    )
    assert output(guest, f'python3 -c "{program}"') == "[200, 200, 200]\n"
    assert [heard["x-key"] for heard in site.heard[-3:]] == [VALUE] * 3
    output(guest, f"git clone -q https://me:$TOKEN@{site.address}/repository.git /tmp/clone 2>&1")
    assert output(guest, "cat /tmp/clone/README") == "hello from a repository\n"
    assert site.heard[-1]["authorization"] == basic("me")
    index = f"https://token:$TOKEN@{site.address}/simple"
    output(guest, f"python3 -m pip install -q --break-system-packages --index-url {index} hello-guest 2>&1")
    assert output(guest, "python3 -m hello_guest") == "hello from a wheel\n"
    assert site.heard[-1]["authorization"] == basic("token")


def test_what_is_not_plainly_for_the_host_goes_without_it(guest: VM, site: Site) -> None:
    held = placeholder("TOKEN")
    before = len(site.heard)
    # Host and TLS hello do not agree; HTTP/2 from the first byte; a path.
    said = output(guest, f'curl -sS -H "Host: evil.test" -H "X-Key: $TOKEN" https://{site.address}/echo')
    assert "Host" in json.loads(said)["reason"]
    assert len(site.heard) == before
    assert "Host" in guest.network.denials()[-1].reason
    prior = guest.run(
        f'curl -sS --http2-prior-knowledge --no-alpn -H "X-Key: $TOKEN" https://{site.address}/', shell=True, timeout=60
    )
    assert prior.returncode != 0 or len(site.heard) == before
    output(guest, f"curl -sS https://{site.address}/echo/$TOKEN?$TOKEN")
    assert site.heard[-1]["path"] == f"/echo/{held}?{held}"
    # Plain HTTP to the port of TLS, other ports, other names.
    plain = guest.run(f'curl -sS -H "X-Key: $TOKEN" http://{site.address}/', shell=True, timeout=60)
    other = guest.run(f'curl -skS -H "X-Key: $TOKEN" https://{HOST}:{site.port + 1}/', shell=True, timeout=60)
    name = guest.run('curl -sS -H "X-Key: $TOKEN" https://example.org/', shell=True, timeout=60)
    assert plain.returncode and other.returncode and name.returncode == 6


def test_a_host_that_is_not_verified_hears_nothing(image: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    network = Network(secrets={"TOKEN": Secret(VALUE, hosts=[site.address])})
    before = len(site.heard)
    with VM(image, network=network, memory="512m", bake=False) as vm:
        said = output(vm, f'curl -sS -H "X-Key: $TOKEN" https://{site.address}/echo')
        assert "certificate" in json.loads(said)["reason"]
        assert "certificate" in vm.network.denials()[-1].reason
    assert len(site.heard) == before


def test_values_and_keys_are_in_no_snapshot_and_forks_have_their_own(guest: VM, site: Site, tmp_path: Path) -> None:
    ask = f'curl -fsS -H "X-Key: $TOKEN" https://{site.address}/echo'
    issuer = f"openssl s_client -connect {site.address} </dev/null 2>/dev/null | openssl x509 -noout -issuer"
    authority = output(guest, issuer)
    assert "supermachine" in authority
    guest.snapshot(tmp_path / "snapshot")
    held = (tmp_path / "snapshot").read_bytes()
    assert placeholder("TOKEN").encode() in held
    assert VALUE.encode() not in held
    assert base64.b64encode(f"me:{VALUE}".encode()) not in held
    assert KEY not in held
    [fork] = guest.fork()
    with fork:
        output(fork, ask)
        assert site.heard[-1]["x-key"] == VALUE
        assert output(fork, issuer) not in ("", authority)
    output(guest, ask)
    assert output(guest, issuer) == authority
    # Who restores it says the secrets anew.
    reach = ["host"]
    with VM.restore(tmp_path / "snapshot", network=Network("none", allow=reach)) as vm:
        bundle = "cat /etc/ssl/supermachine-bundle.pem"
        assert output(vm, bundle) == ""
        sent = f'TOKEN={placeholder("TOKEN")}; curl -fsSk -H "X-Key: $TOKEN" https://{site.address}/echo'
        output(vm, sent)
        assert site.heard[-1]["x-key"] == placeholder("TOKEN")
    again = Secret("another-value-0815", hosts=[site.address])
    with VM.restore(tmp_path / "snapshot", network=Network(secrets={"TOKEN": again})) as vm:
        output(vm, ask)
        assert site.heard[-1]["x-key"] == "another-value-0815"


def test_the_process_that_has_it_shows_it_to_nobody(guest: VM, site: Site) -> None:
    output(guest, f"curl -fsS https://{site.address}/echo")
    pid = guest._running().network_pid
    assert pid is not None
    assert VALUE.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    assert next(line for line in limits if line.startswith("Max core file size")).split()[4:6] == ["0", "0"]
    if os.getuid():
        with pytest.raises(PermissionError):
            Path(f"/proc/{pid}/environ").read_bytes()
    else:
        for name in ("environ", "maps", "mem"):
            seen = subprocess.run(["cat", f"/proc/{pid}/{name}"], user=65534, capture_output=True, check=False)
            assert seen.returncode and not seen.stdout
    worker = guest._running().pid
    assert VALUE.encode() not in Path(f"/proc/{worker}/environ").read_bytes()


def test_secrets_need_a_network_that_denies_by_default() -> None:
    secret = Secret(VALUE, hosts=["api.example.com", "*.b.test:8443"])
    network = Network(allow=["a.test"], secrets={"TOKEN": secret})
    assert network.preset == "none"
    assert network.allow == ("a.test", "api.example.com:443/tcp", "*.b.test:8443/tcp")
    assert network.also(["c.test"]).secrets == {"TOKEN": secret}
    assert VALUE not in repr(network) + repr(secret) + json.dumps(network.record())
    assert copy.deepcopy(secret) is secret
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(secret)
    for preset in ("public", "all"):
        with pytest.raises(ConfigurationError, match="allows nothing but"):
            Network(preset, secrets={"TOKEN": secret})


@pytest.mark.parametrize("hosts", [[], "api.example.com", ["10.0.0.1"], ["public"], ["a.test/udp"], ["a b"]])
def test_hosts_of_secrets_are_names(hosts: list[str]) -> None:
    with pytest.raises(ConfigurationError):
        Secret(VALUE, hosts=hosts)


@pytest.mark.parametrize("value", ["", "short", "two\nlines-of-it", "x" * 8193, "ünprintable"])
def test_values_that_no_field_can_hold_are_refused_and_not_shown(value: str) -> None:
    with pytest.raises(ConfigurationError) as found:
        Secret(value, hosts=["a.test"])
    assert not value or value not in str(found.value)


def test_secrets_on_a_command_line_name_a_variable_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", VALUE)
    (tmp_path / "at@file").write_text(f"{VALUE}-2\n")
    found = secrets(["TOKEN@a.test,b.test:8443", f"OTHER={tmp_path}/at@file@c.test"])
    assert found["TOKEN"] == Secret(VALUE, hosts=["a.test", "b.test:8443"])
    assert found["OTHER"] == Secret(f"{VALUE}-2", hosts=["c.test"])
    for bad in ("TOKEN", "@a.test", "TOKEN@", "TOKEN=@a.test", "NOT_SET@a.test", "A-B@a.test", "TOKEN@10.0.0.1"):
        with pytest.raises(ConfigurationError):
            secrets([bad])
    with pytest.raises(ConfigurationError, match="twice"):
        secrets(["TOKEN@a.test", "TOKEN@b.test"])
    with pytest.raises(ConfigurationError, match="in the environment and among the secrets"):
        VM("x", environment={"TOKEN": "x"}, secrets=["TOKEN@a.test"])


def test_secrets_are_those_of_the_start(guest: VM) -> None:
    with pytest.raises(ConfigurationError, match="allows nothing but"):
        guest.network.update("public")
    with pytest.raises(NotSupported, match="secrets"):
        guest.network.update(Network("none", allow=["host"]))
