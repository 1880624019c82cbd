"""Credential files of docker and podman, and helpers that are scripts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from supermachine.errors import CredentialError
from supermachine.oci.authentication import parse_challenge
from supermachine.oci.credentials import Credentials, find_credentials

from .conftest import auth_entry


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    for name in ("docker", "bin", "run/containers", "config/containers"):
        (tmp_path / name).mkdir(parents=True)
    return {
        "HOME": str(tmp_path),
        "DOCKER_CONFIG": str(tmp_path / "docker"),
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}/usr/bin:/bin",
    }


def write(path: Path, **content: object) -> None:
    path.write_text(json.dumps(content))


def helper(tmp_path: Path, name: str, script: str) -> None:
    path = tmp_path / "bin" / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_nothing(env: dict[str, str]) -> None:
    assert find_credentials("h.x", environ=env).credentials is None


@pytest.mark.parametrize(
    ("key", "domain", "path"),
    [
        ("h.x", "h.x", "a"),
        ("h.x:5000", "h.x:5000", "a"),
        ("https://h.x/v1/", "h.x", "a"),
        ("https://h.x", "h.x", "a"),
        ("h.x/team", "h.x", "team/app"),
        ("https://index.docker.io/v1/", "docker.io", "library/a"),
        ("docker.io", "docker.io", "library/a"),
    ],
)
def test_keys(env: dict[str, str], tmp_path: Path, key: str, domain: str, path: str) -> None:
    write(tmp_path / "docker/config.json", auths={key: auth_entry("u", "p:w")})
    assert find_credentials(domain, path, environ=env).credentials == Credentials("u", "p:w")
    assert find_credentials("other.x", path, environ=env).credentials is None
    assert find_credentials(domain + ".evil", path, environ=env).credentials is None


def test_order_of_files(env: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path / "config/containers/auth.json", auths={"h.x": auth_entry("config", "p")})
    assert find_credentials("h.x", environ=env).credentials == Credentials("config", "p")
    write(tmp_path / "run/containers/auth.json", auths={"h.x": auth_entry("run", "p")})
    assert find_credentials("h.x", environ=env).credentials == Credentials("run", "p")
    write(tmp_path / "docker/config.json", auths={"h.x": auth_entry("docker", "p")})
    assert find_credentials("h.x", environ=env).credentials == Credentials("docker", "p")
    write(tmp_path / "explicit", auths={})
    env["REGISTRY_AUTH_FILE"] = str(tmp_path / "explicit")
    assert find_credentials("h.x", environ=env).credentials is None


def test_the_most_special_key_wins(env: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path / "docker/config.json", auths={"h.x": auth_entry("a", "p"), "h.x/t/app": auth_entry("b", "p")})
    assert find_credentials("h.x", "t/app", environ=env).credentials == Credentials("b", "p")
    assert find_credentials("h.x", "t", environ=env).credentials == Credentials("a", "p")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"auths": {"h.x": {"auth": "!"}}}', '{"auths": {"h.x": {"auth": "dQ=="}}}']
)
def test_bad_files(env: dict[str, str], tmp_path: Path, text: str) -> None:
    (tmp_path / "docker/config.json").write_text(text)
    with pytest.raises(PermissionError) as caught:
        find_credentials("h.x", environ=env)
    assert isinstance(caught.value, CredentialError)


def test_helpers(env: dict[str, str], tmp_path: Path) -> None:
    helper(
        tmp_path,
        "one",
        '[ "$1" = get ] && [ "$(cat)" = h.x ] && echo \'{"ServerURL":"h.x","Username":"u","Secret":"s"}\'',
    )
    helper(tmp_path, "two", 'cat >/dev/null; echo \'{"Username":"<token>","Secret":"id"}\'')
    write(tmp_path / "docker/config.json", credHelpers={"h.x": "one"}, credsStore="two", auths={"h.x": {}})
    assert find_credentials("h.x", "a", environ=env).credentials == Credentials("u", "s")
    assert find_credentials("other.x", environ=env).credentials == Credentials(identity_token="id")


def test_helper_that_knows_nothing(env: dict[str, str], tmp_path: Path) -> None:
    helper(tmp_path, "none", "echo credentials not found in native keychain; exit 1")
    write(tmp_path / "docker/config.json", credsStore="none", auths={"h.x": auth_entry("u", "p")})
    assert find_credentials("h.x", environ=env).credentials == Credentials("u", "p")
    write(tmp_path / "docker/config.json", credHelpers={"h.x": "none"})
    assert find_credentials("h.x", environ=env).credentials is None


@pytest.mark.parametrize(
    "script", ["echo broken; exit 3", "echo '{}'", "echo 'no json'", 'echo \'{"Username":1,"Secret":2}\'']
)
def test_helper_that_fails(env: dict[str, str], tmp_path: Path, script: str) -> None:
    helper(tmp_path, "bad", script)
    write(tmp_path / "docker/config.json", credsStore="bad")
    with pytest.raises(CredentialError, match="docker-credential-bad"):
        find_credentials("h.x", environ=env)


def test_helper_that_hangs_with_a_child_on_the_pipe(env: dict[str, str], tmp_path: Path) -> None:
    helper(tmp_path, "slow", "sleep 1000 & sleep 1000")
    write(tmp_path / "docker/config.json", credsStore="slow")
    with pytest.raises(CredentialError, match=r"within 0\.3 seconds"):
        find_credentials("h.x", environ=env, helper_timeout=0.3)


def test_missing_helpers(env: dict[str, str], tmp_path: Path) -> None:
    """The default helper is only noted, as public images need none; the one for this registry is an error."""
    write(tmp_path / "docker/config.json", credsStore="desktop")
    found = find_credentials("h.x", environ=env)
    assert found.credentials is None
    assert "docker-credential-desktop" in str(found.note)
    write(tmp_path / "docker/config.json", credHelpers={"h.x": "desktop"})
    with pytest.raises(CredentialError, match="not installed"):
        find_credentials("h.x", environ=env)
    write(tmp_path / "docker/config.json", credHelpers={"h.x": "../../bin/sh"})
    with pytest.raises(CredentialError, match="not the name"):
        find_credentials("h.x", environ=env)


def test_secrets_are_not_shown() -> None:
    assert "s3cret" not in repr(Credentials("u", "s3cret", "s3cret", "s3cret"))


def test_challenges() -> None:
    header = 'Bearer realm="https://a/t?x=1,2",service="s \\"q\\"", scope=pull,error="insufficient_scope"'
    assert parse_challenge(header) == (
        "bearer",
        {"realm": "https://a/t?x=1,2", "service": 's "q"', "scope": "pull", "error": "insufficient_scope"},
    )
    assert parse_challenge('BASIC realm="x"') == ("basic", {"realm": "x"})
    assert parse_challenge("") == ("", {})
