"""``supermachine login``: against Debian's registry, read again by skopeo and by us."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..real import RealRegistry, run
from .test_credentials import helper


@pytest.fixture
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "docker"
    monkeypatch.setenv("DOCKER_CONFIG", str(directory))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    return directory / "config.json"


def command(*words: str, text: str = "", path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"PATH": f"{path}:{os.environ['PATH']}"} if path else {})}
    return subprocess.run(
        [sys.executable, "-m", "supermachine", *words],
        input=text, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_a_login_is_kept_where_others_find_it(private_registry: RealRegistry, configuration: Path) -> None:
    host = private_registry.host
    configuration.parent.mkdir()
    configuration.write_text('{"psFormat": "mine", "auths": {"other": {"auth": "eDp5"}}}')
    wrong = command("login", "-u", "user", "--password-stdin", host, text="wrong\n")
    assert wrong.returncode == 125
    assert "does not know this user name" in wrong.stderr
    assert host not in configuration.read_text()

    done = command("login", "-u", "user", "--password-stdin", f"http://{host}/v2/", text="secret\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert str(configuration) in done.stdout
    assert "secret" not in done.stdout
    assert configuration.stat().st_mode & 0o777 == 0o600
    kept = json.loads(configuration.read_text())
    assert kept["psFormat"] == "mine"
    assert set(kept["auths"]) == {"other", host}
    assert run("skopeo", "login", "--get-login", "--authfile", configuration, host).strip() == "user"

    assert command("logout", host).stdout == f"Removing login credentials for {host}\n"
    assert command("logout", host).stdout == f"Not logged in to {host}\n"
    assert set(json.loads(configuration.read_text())["auths"]) == {"other"}


def test_a_helper_that_is_configured_keeps_it(
    private_registry: RealRegistry, configuration: Path, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    helper(tmp_path, "vault", f'echo "$1" >> {tmp_path}/asked; cat >> {tmp_path}/asked')
    configuration.parent.mkdir()
    configuration.write_text('{"credsStore": "vault"}')
    path = tmp_path / "bin"
    done = command("login", "-u", "user", "-p", "secret", private_registry.host, path=path)
    assert done.returncode == 0, done.stderr
    action, said = (tmp_path / "asked").read_text().splitlines()
    assert action == "store"
    assert json.loads(said) == {"ServerURL": private_registry.host, "Username": "user", "Secret": "secret"}
    assert "secret" not in configuration.read_text()


def test_what_is_asked_for_and_what_is_refused(private_registry: RealRegistry, configuration: Path) -> None:
    assert command("login", private_registry.host, text="user\nsecret\n").returncode == 0
    for words in (["-p", "x", "--password-stdin"], ["--password-stdin"], ["-u", "a:b", "-p", "x"]):
        assert command("login", *words, private_registry.host).returncode == 125
    configuration.write_text("no JSON")
    said = command("login", "-u", "user", "-p", "secret", private_registry.host)
    assert said.returncode == 125
    assert "is not JSON" in said.stderr
